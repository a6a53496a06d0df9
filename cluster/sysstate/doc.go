// Package sysstate is the state machine of the system group: the store's
// identity, its nodes, drives, placement groups, Raft groups, buckets and targets
// of events. It is pure:
// it imports neither raft nor time nor rand, starts no goroutine and keeps
// nothing in memory, so two replicas that apply the same entries hold the same
// bytes, however the entries were cut into batches.
//
// # Rows
//
// All rows begin with the byte 'S', integers are big endian:
//
//	S s                      SysStore: identity, topology version, id counters
//	S c                      GroupClock: the group's time, which only rises
//	S m [name]               SysNode
//	S k [token]              SysToken: lets one node join
//	S a                      SysCA: the cluster's certificate authority, sealed
//	S d [drive 16]           SysDrive, with its start counter
//	S p [pg 4]               SysPG
//	S g [group 8]            SysGroup
//	S b [bucket 8]           SysBucket
//	S n [name]               bucket id by name
//	S o [len 1][owner][name] bucket id by owner and name
//	S u [bucket 8]           marks a bucket that is being created or deleted, or whose configuration is on its way to the ranges
//	S l [bucket 8]           marks a bucket that has lifecycle rules
//	S e [name]               SysTarget: a destination of events
//	S f [len 1][target][bucket 8] marks a bucket whose notification configuration names a target
//	S r [command 16]         OutcomeRow: the SysResult that answers a repeat
//	S t [time 8][command 16] outcomes by age, swept as time passes
//
// # Commands
//
// A command is a metapb.SysCommand; its meaning depends on its version alone.
// Every command, refused ones too, leaves an outcome for
// storage.OutcomeRetention after it was applied or issued, whichever was later: the
// same command id again is answered from it and changes nothing (design rule 10).
// A command issued longer ago than that, or further ahead of the group's time, is
// refused as TooLate. Who wants another try of a refused command draws a new id.
//
// # Nodes
//
// A node is active, down or removed. Its sessions are not recorded, only what
// follows from them: NodeStarted when a process begins to act under the name, and
// NodesDown, which names the incarnation that fell silent, so that it never hits
// the one that came after. A node goes down together with its drives, and a drive
// of a node that is down cannot become active before the node is.
//
// # Targets
//
// A bucket's notification configuration can be put only while the targets that it names exist, and such a target is removed only by force. After
// that, and until one of its name comes again, the bucket's events for it go nowhere. Targets are nothing that gateways
// read under a lease: a delivery by the target as it was a moment ago is one that happened earlier.
//
// # Configuration
//
// SysStore.config counts the changes of what gateways read from their own copy
// under a lease (design rule 9). Whoever acknowledges such a change first waits
// until no gateway can act on an older count.
//
// Every change of nodes, drives, placement groups or groups raises SysStore.version by
// one per command; buckets and start counters do not.
package sysstate
