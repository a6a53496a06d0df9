// Package delivery takes events from the outboxes of the ranges that are led here to their targets.
//
// # What is promised
//
// Every event comes to its target at least once, and the events of a key come in their order: when one comes for the first time, all before
// it have come. An event comes again where it was sent and that was not recorded, for want of an answer or because its range got another leader
// meanwhile; such a repeat may come behind later events. Its id and its sequencer are the same every time.
//
// An event does not come if its target refuses it for good (it becomes a dead letter), if there is no such target when its turn comes, or if it is given up
// because too many wait or it waits too long, as the target's configuration says. All of that is counted in the range, and what is given up is logged.
//
// # How it is done
//
// For each range that is led here there is one loop (outbox) that reads how far each target is: ten times a second while something happens, once a second else, and
// at once when it is poked. For each target with events waiting it has a lane, the only one here that moves this target's cursor in this range. A lane takes a page of
// events behind the cursor, sends them, and moves the cursor through Raft behind what was acknowledged; meanwhile it prepares the next page, which it sends
// once the cursor has moved. An event that comes after a while without any is sent at once; then pages that are not full go out ten times a second at most, since each
// costs a request and a command however many events it has. Cursors only move from where they were read, so of two leaders one starts again from what the other recorded.
//
// # Targets that fail
//
// Once a target has failed it is left alone for a while: at random between 100 ms and a bound that doubles up to 60 s with every failure. Then one lane
// of all ranges here tries it, and with the first success all go on. Lanes that try again have places of their own, so that targets that are down take none
// from those that work; of those a target has at most targetSends at once.
//
// # Ranges that were split off
//
// A child delivers nothing to a target before its parent, and as long as that waits itself its parent and so on, has delivered to that target all that was in its outbox at
// the split. These ancestors are asked once a second, or less often if that takes long, beside everything else: what they said last counts until they say something else, since a target that
// they do not hold back any more is never held back again. Once none can be, the range is told to forget them (EventsReady).
//
// # Bounds
//
// If more events wait for a target in a range than it may have, or their rows take more than they may (Config.QueueBytes), either the oldest are given up until nine tenths are left (DROP_OLDEST), or commands that would make
// another are refused until nine tenths are left (HOLD_WRITES). Events that wait longer than the target allows are given up with
// DROP_OLDEST, but only while the target fails, so that a store that was off for long tries first; HOLD_WRITES gives up none for its age.
//
// Memory is bounded by the senders at once (sendsMax and probesMax) times two pages of pageEvents or pageBytes, and chores (choresMax).
//
// # What else the outbox needs
//
// Events that nobody waits for are kept for a time and up to a size, to be read and replayed; then they are trimmed, around those that a target waits for. Rows that make events with time (timers) are
// looked through when the next one is due, and fired by the clock here; the range judges by its own time.
package delivery
