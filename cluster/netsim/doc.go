// Package netsim makes a network worse than it is: latency, jitter, loss,
// bandwidth and cuts between zones or nodes, by rules that are data and may
// change at any moment. Nothing of it is in a process that does not ask for it.
//
// It stands at the dialer: a Sim wraps the connections that its process dials, in
// both directions. As every connection between two nodes is dialled by one of
// them, rules hold for all traffic once every node runs with them. A real network
// is simulated by Sim.Dialer around the real dialer; Network is one that lives in
// memory only, for many nodes in one process, under testing/synctest too (a Sim,
// its Network and everything dialled must be made inside the bubble).
//
// Streams lose no bytes. What packets would suffer shows as time:
//
//   - loss: a lost packet holds up what is behind it for a retransmission timeout
//     (LossStall and a round trip), twice that if the repetition is lost too, and so on;
//   - black hole: what was sent arrives when the hole is gone; until then the
//     sender notices nothing, and a dial waits for its ctx;
//   - partition: a dial is refused and open connections are reset, as if a router said so.
//
// A Sim starts no goroutine, except two for each wrapped real connection, which
// end with it, and those of Watch.
package netsim
