package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"cairn/cluster"
	"cairn/cluster/pki"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// Versions of all RPCs together. A release speaks its own and the one before.
const (
	Version    = 1
	VersionMin = 1
)

const (
	greetingMagic    = "CRN\x01"
	greetingBytesMax = 8 << 10
	greetingHead     = len(greetingMagic) + 4
)

// Class is what a connection carries, so that bulk data does not delay votes.
type Class uint8

// Classes.
const (
	Raft Class = iota
	Meta
	Bulk
	classes = iota // how many there are
)

func (c Class) String() string {
	switch c {
	case Raft:
		return "raft"
	case Meta:
		return "meta"
	case Bulk:
		return "bulk"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Peer is the node at the other end of a connection, as far as it was made sure of.
type Peer struct {
	Node     cluster.NodeID
	Class    Class
	Version  uint32 // of RPCs, the newest that both speak
	Software string // for people
	// ClockOffset is how far its clock was ahead when the connection was made, give or take a round trip.
	ClockOffset time.Duration
	// Joining callers have shown no certificate: they may call Join only.
	Joining bool
	// Expired callers' certificates are over: they may call Renew only.
	Expired bool
}

func writeGreeting(w io.Writer, g *nodepb.Greeting) error {
	b := make([]byte, greetingHead, greetingHead+g.SizeVT())
	copy(b, greetingMagic)
	body, err := g.MarshalVT()
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(b[len(greetingMagic):], uint32(len(body)))
	_, err = w.Write(append(b, body...))
	return err
}

var (
	errNotGreeting = errors.New("the other end does not speak cairn's protocol")
	errSpeaksTLS   = errors.New("the other end speaks TLS")
)

// readGreeting reads exactly one greeting and nothing behind it.
func readGreeting(r io.Reader) (*nodepb.Greeting, error) {
	var head [greetingHead]byte
	// The first bytes tell what it is, even if no more come.
	if _, err := io.ReadFull(r, head[:len(greetingMagic)]); err != nil {
		return nil, err
	}
	if head[0] == 0x16 || head[0] == 0x15 { // a handshake or an alert
		return nil, errSpeaksTLS
	}
	if string(head[:len(greetingMagic)]) != greetingMagic {
		return nil, errNotGreeting
	}
	if _, err := io.ReadFull(r, head[len(greetingMagic):]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[len(greetingMagic):])
	if n > greetingBytesMax {
		return nil, errNotGreeting
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	g := new(nodepb.Greeting)
	if err := g.UnmarshalVT(body); err != nil {
		return nil, errNotGreeting
	}
	return g, nil
}

// agree is the newest version that both speak.
func agree(g *nodepb.Greeting) (uint32, error) {
	v := min(Version, g.Version)
	if v < VersionMin || v < g.VersionMin {
		return 0, errs.Newf(errs.Unavailable, "rpc.greet", g.Node,
			"%s (release %s) speaks versions %d to %d of the protocol between nodes, this node %d to %d: bring all nodes to releases next to each other",
			orUnnamed(g.Node), orUnnamed(g.Software), g.VersionMin, g.Version, VersionMin, Version)
	}
	return v, nil
}

func orUnnamed(s string) string {
	if s == "" {
		return "(unnamed)"
	}
	return s
}

// caller is what one side needs to know to open a connection.
type caller struct {
	self     cluster.NodeID
	storeID  string
	software string
	class    Class
	want     cluster.NodeID // empty: anybody of the store
	joining  bool
	renewing bool
	tls      *tls.Config // nil: plaintext
	verify   func([]*x509.Certificate, time.Time) (pki.Peer, error)
	now      func() time.Time
}

// greet makes a connection out of raw: TLS, the other's certificate, greetings. It
// ends with ctx. On an error raw is closed. The duration is one round trip and
// what the other end took for its answer.
func (c *caller) greet(ctx context.Context, raw net.Conn) (net.Conn, Peer, time.Duration, error) {
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	conn, p, rtt, err := c.exchange(ctx, raw)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = raw.Close()
		if cerr := ctx.Err(); cerr != nil && errs.KindOf(err) == errs.Other {
			err = errs.Wrap(errs.Timeout, "rpc.greet", raw.RemoteAddr().String(), cerr)
		}
		return nil, Peer{}, 0, err
	}
	return conn, p, rtt, nil
}

func (c *caller) exchange(ctx context.Context, raw net.Conn) (net.Conn, Peer, time.Duration, error) {
	conn := raw
	var shown cluster.NodeID
	expired := false
	if c.tls != nil {
		tc := tls.Client(raw, c.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			var rec tls.RecordHeaderError
			if errors.As(err, &rec) {
				return nil, Peer{}, 0, errs.New(errs.Foreign, "rpc.greet", string(c.want), "this node wants TLS, the node called speaks plaintext: set --cluster-plaintext on all nodes or on none")
			}
			return nil, Peer{}, 0, errs.Wrap(errs.Unavailable, "rpc.greet", string(c.want), err)
		}
		vp, err := c.verify(tc.ConnectionState().PeerCertificates, c.now())
		if err != nil {
			return nil, Peer{}, 0, err
		}
		if vp.Expired && !c.renewing {
			return nil, Peer{}, 0, errs.New(errs.AccessDenied, "rpc.greet", string(vp.Node), "the certificate of the node called has expired; it is renewed as soon as that node runs with a right clock")
		}
		conn, shown, expired = tc, vp.Node, vp.Expired
	}
	start := time.Now()
	err := writeGreeting(conn, &nodepb.Greeting{
		Version: Version, VersionMin: VersionMin, StoreId: c.storeID, Node: string(c.self), WantNode: string(c.want), Class: uint32(c.class),
		Software: c.software, Joining: c.joining, Renewing: c.renewing, TimeMs: c.now().UnixMilli(),
	})
	if err != nil {
		return nil, Peer{}, 0, errs.Wrap(errs.Unavailable, "rpc.greet", string(c.want), err)
	}
	g, err := readGreeting(conn)
	if errors.Is(err, errSpeaksTLS) {
		return nil, Peer{}, 0, errs.New(errs.Foreign, "rpc.greet", string(c.want), "the node called wants TLS, this node speaks plaintext: set --cluster-plaintext on all nodes or on none")
	}
	if err != nil {
		return nil, Peer{}, 0, errs.Wrap(errs.Unavailable, "rpc.greet", string(c.want), err)
	}
	if r := g.Refusal; r != nil {
		return nil, Peer{}, 0, &errs.Error{Kind: errs.Kind(r.Kind), Op: r.Op, Subject: r.Subject, Detail: r.Detail}
	}
	v, err := agree(g)
	if err != nil {
		return nil, Peer{}, 0, err
	}
	if c.storeID != "" && g.StoreId != c.storeID {
		return nil, Peer{}, 0, otherStore(cluster.NodeID(g.Node), g.StoreId, c.storeID)
	}
	if shown != "" && string(shown) != g.Node || c.want != "" && g.Node != string(c.want) {
		return nil, Peer{}, 0, otherNode(cluster.NodeID(g.Node), c.want)
	}
	return conn, Peer{
		Node: cluster.NodeID(g.Node), Class: c.class, Version: v, Software: g.Software, Expired: expired,
		ClockOffset: time.UnixMilli(g.TimeMs).Sub(c.now()),
	}, time.Since(start), nil
}

func otherStore(node cluster.NodeID, theirs, ours string) error {
	return errs.Newf(errs.Foreign, "rpc.greet", string(node), "belongs to store %s, not to %s: an address leads to another cluster, or a node's files came from one", orUnnamed(theirs), orUnnamed(ours))
}

// strangersStore is otherStore without the name of ours.
func strangersStore(node cluster.NodeID, theirs string) error {
	return errs.Newf(errs.Foreign, "rpc.greet", string(node), "belongs to another store than %s: an address leads to another cluster, or a node's files came from one", orUnnamed(theirs))
}

func otherNode(is, wanted cluster.NodeID) error {
	return errs.Newf(errs.Unavailable, "rpc.greet", string(wanted), "its address now belongs to node %s", orUnnamed(string(is)))
}
