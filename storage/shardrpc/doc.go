// Package shardrpc reaches the drives of other nodes: Client makes a
// storage.ShardStore of a remote drive, Server answers for the drives of this node.
//
// # Appends
//
// All appends from one node to another share two streams, one for small payloads
// and one for large ones, so that a small write neither costs a stream of its own
// nor waits behind a large one. What is waiting goes out as one frame, and
// answers come back in any order, many in one message. A frame is
//
//	4 bytes  length of the head, little endian
//	4 bytes  CRC32C of the head
//	head     nodepb.ShardAppendBatch
//	         the payloads, one behind the other, in the order of the head
//
// Large payloads are handed to the transport by reference and are lent until it
// has written them or the answer is here. The transport does not always tell: not
// when a connection breaks while it has some, nor for a message sent just as the first
// answer of its stream arrives. What is left is taken back takeBack after the end of
// the stream. Should the transport still read one then, the checksum fails at the
// other side and nothing is stored.
//
// # Reads
//
// A read is a call of its own; the answer is a frame with a nodepb.ShardReadHead and
// the bytes, which are copied once, from the transport's buffers to their place, and
// checked on the way. The drive has verified them against its own checksums before.
//
// # Limits
//
// The client bounds calls and bytes under way per drive and per node; past them
// AppendAsync answers Busy and the other calls wait for their turn, as long as their
// deadline allows. The server bounds bytes and calls per drive and in all and answers
// Busy; a payload it has no room for is dropped as it arrives, and a read counts until the
// transport has written its answer. So a drive that hangs, or a peer that takes nothing, holds
// its own share of the memory and nothing of the other drives'.
//
// # Peers that do not answer
//
// Every call has a deadline. The server is told how long an append may take and
// answers Timeout for a drive that is too slow; when nothing at all comes back in that time and a
// while longer, the peer is taken for dead: the stream ends and all that was
// under way on it is Unavailable, its outcome unknown.
package shardrpc
