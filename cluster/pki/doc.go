// Package pki is a store's own certificate authority: its key, the nodes'
// certificates, and the tokens with which nodes join.
//
// The CA is made with the store. Its key is kept only sealed (AES-256-GCM) in the
// system group's state, so that every member can sign, and a drive that leaves the
// house shows nothing; the seal key lies beside each node's own key, in the file
// described at Identity.Encode.
//
// A node's certificate names the store and the node in one URI,
// cairn://<store id>/node/<name>, and serves for both ends of a connection. It is
// valid for 90 days and renewed when a third of them is left. Who may take part is
// decided by the members' list in the system group, not by a certificate alone: a
// removed node still holds one.
package pki
