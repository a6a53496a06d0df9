// Package rpc is how nodes talk to each other: gRPC over mutual TLS, with the
// errors of package errs carried across and large values not copied.
//
// # Connections
//
// A Client keeps one connection for each peer and class (Raft, Meta, Bulk), so that
// bulk data delays no vote. A connection begins with TLS by the store's own CA
// (package pki), then both sides say in a nodepb.Greeting who they are, of which store and
// which versions of the protocol they speak; whoever disagrees says why in words
// before it hangs up. Only then comes HTTP/2. Certificates are judged after the
// handshake of TLS for the same reason: an alert explains nothing. In plaintext
// the greetings alone say who is who.
//
// A caller without a certificate may call Join and nothing else, one whose
// certificate has expired Renew and nothing else (design rule 23). Certificates don't make
// members: ServerConfig.Admit does, at every connection and every call.
//
// # Failures
//
// A peer that refuses or resets is noticed at once. One that merely goes silent is
// found like this: while the peer owes an answer, the raw connection is looked at
// every half second; after a second without a single byte the peer is pinged on all its
// connections, and each that brings nothing within another second and a half is closed, which
// ends its calls. Keepalive of gRPC cannot do this (10 s at least). A connection at rest costs nothing:
// the server alone asks every 20 s whether the caller still lives, to be rid of the calls of the dead.
//
// While the last attempt to reach a peer failed, calls to it fail at once; attempts go
// on once a second, over all addresses that are known then.
//
// # Errors
//
// What a handler returns arrives at the caller as an errs.Error of the same kind,
// operation and subject, with the text of its causes. Everything else is Unavailable
// (Timeout if a deadline passed on the way), and IsTransport: the call may have been carried
// out, unless NotSent. If the caller's own ctx ended, its error is returned as it is.
package rpc
