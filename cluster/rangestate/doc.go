// Package rangestate is the deterministic state machine of a range and the reads
// of its state. A range holds everything about the objects of one contiguous
// piece of the ordered key space (bucket id, key): it is what one Raft group
// replicates. The package imports neither raft nor time nor rand and starts no
// goroutine: what a command does follows from the state and the log entries alone.
//
// A [Machine] applies entries to a Pebble batch. A [View] reads any consistent
// pebble.Reader: the store itself inside one linearizable read, or a snapshot.
//
// # Rows
//
// All integers are big endian. B is a bucket id of 8 bytes. E is a key, escaped so
// that the order of the bytes is the order of the keys and nothing is a prefix of
// anything else: 0x00 becomes 0x00 0xff, and the end is 0x00 0x01.
//
// Rows in bounds carry no group: a split hands them to the child as they lie.
//
//	'b' B start              BucketRow. One for each bucket whose keys can fall in the range;
//	                         start is the raw key at which the range begins inside the bucket, or empty.
//	                         The rows of deleted buckets stay (see Buckets).
//	'c' B rawkey             ObjectRow, the current version: a plain listing reads nothing else.
//	'd' B E seq(8)           DoomedRow: parts of an upload to expand into garbage.
//	'e' B E seq(8)           EventTimerRow, of a version whose restore has something to tell yet.
//	'k' B E upload(8)        CompletedUploadRow: answers a repeated CompleteMultipartUpload.
//	'm' B E upload(8) pg(4)  ManifestRow: page pg (from 0) of a multipart object, 1000 parts each.
//	'n' B E                  8 bytes: sequence of the null version while that lies in 'v'.
//	'o' B E command(16)      OutcomeRow: what the command did to the key.
//	'p' B E upload(8) nr(4)  PartRow, of an upload in progress or of a multipart object.
//	'r' B E seq(8)           RepairRow.
//	'u' B E seq(8)           UploadRow, an upload in progress.
//	'v' B E ^seq(8)          ObjectRow, a noncurrent version or a delete marker; newest first.
//
// Rows of the group stay with it in a split. G is the group id of 8 bytes.
//
//	'G' G 'b' B rawkey       ChildRow: the child that a split at this place made.
//	'G' G 'c' B class        CounterRow; class is S3's name of the storage class.
//	'G' G 'd'                RangeDescriptor.
//	'G' G 'g' seq(8) n(4)    GarbageRow.
//	'G' G 'h'                CheckRow: the hash of the bounds at the last CheckBounds.
//	'G' G 'l'                EventLogRow: the outbox as a whole. None before the first event.
//	'G' G 'p' target         EventTargetRow: how far the range has come with a target.
//	'G' G 'q' B target       EventCounterRow.
//	'G' G 's'                the raw key at which the next Sweep goes on.
//	'G' G 't'                GroupClock.
//	'G' G 'x' target 0 seq(8) DeadEventRow: a dead letter, under the sequence of its event.
//	'z' G seq(8)             EventRow: the outbox, in tables of its own ([TableBounds]).
//
// # Versions of a key
//
// If a 'c' row exists it is the newest version of its key, and it is never a delete
// marker. When a newer version comes on a bucket with versions it moves to 'v' and
// gets noncurrent_ms. Delete markers always lie in 'v', the newest with noncurrent_ms
// zero. At most one version of a key is the null version. Every get and put of a key
// touches a fixed number of rows, however many versions the key has.
//
// UpdateVersion changes tags, retention, legal hold or restore in the version's row, where it lies. RewriteData changes only the data,
// under the data's own generation: neither hinders the other. A transition is a RewriteData that also names the storage class
// that the version has from then on, in its row and in the counters; the chunks that it releases become garbage of the class
// they were written for. The parts of a multipart object are rewritten one by one, and the version's class changes last,
// with its data as it is. Data that lies in its row stays there.
//
// The restore of a version of an archive class is a state of its row, too: times between which readers may read it ([Readable]).
// No bytes move, and nothing happens when the times come. What is asked for while a restore lasts is judged by range time.
//
// INTELLIGENT_TIERING is a class whose versions lie in tiers. Touch raises the last access of versions, RewriteData changes a tier as a transition
// changes a class, if the version was not read since that was decided. A restore from a tier that is an archive has no end: from when it is
// ready the version counts as FREQUENT ([TierOf]), and the change of the tier to that ends it.
//
// # Lifecycle
//
// What a bucket's lifecycle rules ask for is decided outside, by a look at the state ([View.Lifecycle]), and carried out by
// Expire and RewriteData under the condition that it still holds. Each names the generation of the bucket that
// it was decided by: the rules themselves are no business of the ranges, but a change of them raises the generation, and from
// then on the range refuses what older ones decided, with Conflict. An entry of an Expire names a version, delete marker or
// upload by sequence and nonce and says what it is taken for; if it is not there, is not that any more (current,
// noncurrent, the only one), or has other tags than it was decided by, it is a Conflict too, and nothing changes. A lock keeps what it protects: nothing bypasses it here.
//
// # Events
//
// A command that changes an object writes, in the same batch, the event that tells of it, if the notification configuration in the bucket's
// row wants it: a row of the outbox, under a sequence of its own, which is its sequencer. A child goes on with its parent's sequence, so
// the sequencers of a key rise over splits, too. What a repeat finds done, or what is refused, tells nothing. Events are of
//
//   - PutObject and CompleteUpload, and of each entry of a DeleteObjects or Expire that removed something or left a delete marker;
//   - a RewriteData that changes the storage class, or moves a version of INTELLIGENT_TIERING to another archive tier;
//   - an UpdateVersion that replaces or deletes tags, or begins a restore. That a restore is ready, or over, comes with time: a timer
//     row beside the version says when, and FireTimers, which the range's leader proposes, tells it. Only a restore that was asked for (or made
//     longer or faster) under a notification configuration has a timer. It goes with its version, after what was due.
//
// An event is for the target that the rule names, and for [DefaultBus] where the bucket has an EventBridge configuration; if that rule names
// the same target, for that once. A rule whose ARN names no target wants nothing. Each target has a cursor: every event for it up to there is
// delivered, dead or given up, and all behind it wait, in order of their sequences. AckEvents moves the cursor of one target on and names the place
// that it was read at, so that acks of two leaders cannot pass each other. Who has taken the last ack for lost delivers again: at least once, in order for
// each key. What a target refused for good becomes a dead letter beside its queue, of which the newest [DeadMax] are kept.
// TrimEvents forgets events up to a place (EventLogRow.trimmed) but for those that a target waits for: such a one goes with the AckEvents of the last target
// that waited for it. So a target that is away costs what waits for it and nothing else. How long others are kept is not decided here.
//
// A target that is held gets no more: a command that would make an event for it is refused with Busy before it changes anything, as
// definitely as for any other reason. Timers are not, since time does not wait, nor is a RewriteData: what moves data is no client that could wait, and
// a target must not stop it for other buckets. An entry of an Expire is; it stays due.
//
// A split moves no events. The child knows where its parent's sequence was (EventLogRow.wait_seq), and its leader delivers nothing to a target before the
// parent has delivered what it had up to there. EventsReady ends that. If the parent never had an event, and waits for none of its own
// parent's, there is nothing to wait for. Counters stay with the events, timers go with their keys.
//
// Events outlive their bucket. What was counted of a dropped bucket's goes to bucket 0 once none of them waits.
//
// # Accounting
//
// Counters change in the batch of what they count. Of what there is they say how much it is; of what is over they keep what it owed:
// a version that is removed, overwritten or moved before its storage class's minimum is over leaves its bytes times the rest of the
// time, and a restore that is begun its bytes. How long a day is comes with the command. What a dropped bucket owed goes
// to bucket 0, so that no rows of it stay.
//
// # Buckets
//
// What a bucket's row says was decided in the system group, which counts the decisions on a bucket as its generation. Any
// gateway may carry out a decision, several at once, and the commands of one that was held up come late. So every command on a
// bucket's row names the generation it was decided at, and the row keeps it: a row of a creation does
// not replace what a deletion left, and a fence does not replace a row that lifted it.
//
// A deletion goes through the bucket's ranges twice, in order: it fences all, then drops all, or lifts all by a put of the
// next generation. Where one gateway drops and another lifts, the range with the bucket's first key decides: a drop
// refuses what is not fenced any more, and nothing lifts what was dropped; who is refused there does as the other.
//
// A dropped bucket's row stays, without its configuration, for otherwise a creation that was held up would bring the bucket
// back. That no creation can come any more is known of no bucket: who sends one has read the system group
// before, but not within any time. Ids are never given out twice, so that this is one row of some 20 bytes for each deleted bucket in
// each range that held it. A split copies the row of the one bucket that it cuts, dropped or not.
//
// # Chunks
//
// A chunk that a command brought is from then on in exactly one place: named by an
// object or part row (the parts of a multipart object and of a doomed upload are its
// part rows), or named by a garbage row until DropGarbage. Nothing else removes
// data. A definite refusal (a failed condition, a lock, no such bucket) puts the
// chunks that the command brought into garbage in that same command, and says so in
// RangeResult.freed. These refusals free nothing:
//
//   - TooLate, because an earlier try may have succeeded and be forgotten.
//   - WrongRange, because the proposer repeats the same command where the key lies
//     now, and because a try sent before a split may arrive after its repeat succeeded
//     in the child: freeing here would free a live object's chunks there.
//   - Malformed commands and those of an unknown version: what they bring is not known.
//   - A write id that the row to replace has already: the chunks are that row's.
//
// What such a command brought and nothing names is found as orphans.
//
// # Outcomes
//
// Every command that names a key or a bucket leaves an outcome row beside it, in
// bounds, also when it was refused. It is answered, and nothing changes, when the
// command comes again. The row counts until OutcomeRetention has passed in range time
// since it was applied or issued, whichever was later. A command whose issued_ms is
// older than that and has no such row is refused as TooLate; so is one issued more
// than OutcomeRetention ahead of range time, since its outcome could not be kept long
// enough. So a command is never applied twice, whatever issued_ms says.
//
// An outcome of a bucket command lies under the key of the bucket's row. A bulk delete or an
// Expire has one outcome for each key it names, so that a split keeps them with the keys.
//
// DropGarbage, DropRepair, ExpandDoomed, Sweep, Touch and Tick need no outcomes: the first
// two name rows by sequence numbers that are never given out twice, the next two go on
// from progress that is itself state, a Touch only raises a time, and the last does nothing.
// Nor do those on the outbox: an AckEvents names the cursor that it moves, what FireTimers told is not due any more, and the others
// say how things should be.
//
// # Time and sequence
//
// Range time is max(previous, the entry's stamp). The clock also counts the changes
// of the descriptor and of bucket rows, so that [Views] need not read those every time.
// The sequence rises by one for every version, upload, garbage row, doomed row,
// repair row and event made.
//
// # Splits
//
// A split narrows the parent's descriptor, writes the child's descriptor and clock, what its events wait for, and a ChildRow, and copies the row
// of the bucket that it cuts. Nothing else is touched: the rows in the child's bounds are the child's from then on.
// The machine tells its host of the birth ([Machine.Born]), which makes the child's replica in the same batch, or
// deletes the child's rows if none is to live there. Starts of ranges never change and ends only move down, so
// who has an old idea of the bounds always asks a range that lies before the right one, and is sent on from there:
// WrongRange names the child that was born with the key.
//
// # Determinism and versions
//
// RangeCommand.version is 1. What version 1 does, the constants of package storage it
// uses included (OutcomeRetention, ChunkCommitMax, CompletedUploadTTL), must not change
// in a later release; a change is a new version.
// Results are a function of state and entries; how the entries are cut into batches
// leaves no trace in the state.
//
// # Options of the state store
//
// The store's options are its host's. The machine and [View.Object] read by exact key
// (Get), so bloom filters over whole keys pay at every level: with Pebble's default
// comparer that is FilterPolicy bloom.FilterPolicy(10). Most lookups of a fresh key's
// current row and outcome miss; the filter saves them a block each. The default comparer's order is
// required. Value separation is of no use below a few KiB, rows are smaller.
package rangestate
