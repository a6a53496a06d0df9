// Package multiraft hosts the Raft replicas of one process: many groups, each with
// replicas on several drives, here or (through a Transport) on other nodes.
//
// # Replicas and drives
//
// A replica's log and state live together on one drive: the log in the drive's
// raftlog store, synced; the state in the drive's state store, a Pebble whose WAL is
// off and which all groups of the drive share. Every batch of applied commands is one batch
// there and carries the group's applied index, so after a crash the state is an exact
// prefix and Raft replays the rest. The log is truncated only past a marker that was
// flushed together with the state it stands for.
//
// A replica id (cluster.ReplicaID) belongs to one drive incarnation. A replica that
// lost any of its term, vote, log or state never acts again: it is reported as lost
// (Status) until the group replaces it under a new id. To notice,
// log and state each hold a record of the replica, the drive's two stores are
// paired by a random id and a start counter, and the applied index must fit the log.
//
// # Rows in the state store
//
// First byte 0x01 belongs to this package, 0x10 to 0x7f to the state machines:
//
//	0x01 group 'R'   the replica record (JSON)
//	0x01 group 'A'   applied index and term: format 1, 8 and 8 bytes, big endian
//	0x01 group 'C'   the group's configuration and the index of its entry (JSON)
//	0x01 group 'M'   the snapshot marker: index, term, configuration (JSON)
//	0x01 group 'I'   an install under way: where the spool lies, what it replaces (JSON)
//	0x01 0     'P'   the pairing of this store with the log (JSON)
//
// group is 8 bytes, big endian. An entry on the Raft log is
// [format][leader's time, unix ms, 8 bytes big endian][command]; the format is 1, or 2 for a command that may give
// birth to a group (see birth.go).
//
// # Snapshots
//
// A local snapshot is a flush and a marker. A follower that is too far behind, or
// empty, gets the rows streamed from a Pebble snapshot (blocks of [length
// 4][CRC32C 4][payload], little endian). The receiver spools and syncs the stream before raft hears of
// it, writes a marker and flushes, replaces the rows, flushes, truncates
// the log and clears the marker. A crash in between is seen at start and the
// install repeated from the spool: a half-replaced state is never served.
//
// # Leases and clocks
//
// Where voters are in other processes a leader reads under a lease; lease.go says why that is right. A node whose wall
// clock most others contradict neither leads nor stamps commands (NoteClock).
//
// # Failure of a drive
//
// The first error of a drive stops its replicas here and nowhere else. They are cut off first: no
// message, answer, read or acknowledgement of theirs gets out any more; then raft is shut
// down. What is stuck in the dead drive (a few goroutines and the memory of two Pebbles)
// stays until the process ends. If the drive held a leader, a remaining local voter, if there is one, is
// made to stand at once.
package multiraft
