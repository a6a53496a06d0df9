// Package raftlog keeps the Raft logs, terms and votes of all replicas on one drive in one
// Pebble, whose WAL is synced before anything is answered.
//
// # On disk
//
// The directory is a Pebble. Its keys:
//
//	'L' len(id) id index   an entry of the replica's log; index is 8 bytes, big endian
//	'S' len(id) id name    a value of the replica's stable store
//	'M' name               a row of the store's owner (replica records, the drive's pairing)
//
// An entry is: format (1 byte, 1), type (1 byte), term (uvarint), the leader's append time
// (unix ns, varint), length of the extensions (uvarint), extensions, data.
//
// # Failure
//
// Nothing here ever makes the process panic, and nothing that was not synced is acknowledged. After each synced
// commit the owner's Check runs before anyone is answered (an fsync on an
// unlinked file succeeds). The first error fails the whole store: OnFail is called, and the owner must isolate
// the drive's replicas (nothing they say may get out any more) and then Cut their
// views. Until it does, calls whose errors raft would answer with a panic block; afterwards
// they return made-up values, which only serve to let raft shut down. StoreLogs and DeleteRange return an error
// at once: raft steps down on it.
package raftlog
