package rpc

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"cairn/cluster"
	"cairn/cluster/pki"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

const (
	attemptTimeout = 10 * time.Second // of one address of Join and Renew
	servingTimeout = 3 * time.Second  // of Serving
	joinRoundEvery = time.Second
)

// Dialer is what Join and Renew need of the machine; the zero value is TCP and the system's clock.
type Dialer struct {
	Dial     func(ctx context.Context, addr string) (net.Conn, error)
	Now      func() time.Time
	Software string // for people
}

func (d Dialer) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

// call makes a connection to addr for one call.
func (d Dialer) call(ctx context.Context, addr string, c *caller, f func(context.Context, grpc.ClientConnInterface) error) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	raw, err := d.dial(ctx, addr)
	if err != nil {
		return errs.Wrap(errs.Unavailable, "rpc.dial", addr, err)
	}
	c.now, c.software = d.now, d.Software
	conn, _, _, err := c.greet(ctx, raw)
	if err != nil {
		return err
	}
	defer conn.Close()
	var used atomic.Bool
	cc, err := grpc.NewClient("passthrough:///once", append(DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // greet did it
		grpc.WithAuthority("cairn"),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errors.New("the connection broke")
			}
			return conn, nil
		}))...)
	if err != nil {
		return errs.Wrap(errs.Other, "rpc.dial", addr, err)
	}
	defer cc.Close()
	return f(ctx, cc)
}

// Serving answers one of the addresses at which a node of some cluster serves, "" if there is none: nobody is there, or
// only nodes that wait to be let in. It takes as long as the slowest address, a few seconds at most. It works with and without TLS
// at the other end, and proves nothing of who is there.
func (d Dialer) Serving(ctx context.Context, addrs []string) string {
	ctx, cancel := context.WithTimeout(ctx, servingTimeout)
	defer cancel()
	found := make(chan string, len(addrs))
	var wg sync.WaitGroup
	for _, addr := range addrs {
		wg.Go(func() {
			if d.serves(ctx, addr) {
				found <- addr
				cancel()
			}
		})
	}
	wg.Wait()
	select {
	case addr := <-found:
		return addr
	default:
		return ""
	}
}

// serves reports whether a greeting is answered, by a greeting, a refusal or an alert of TLS.
func (d Dialer) serves(ctx context.Context, addr string) bool {
	raw, err := d.dial(ctx, addr)
	if err != nil {
		return false
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	err = writeGreeting(raw, &nodepb.Greeting{Version: Version, VersionMin: VersionMin, Joining: true, Software: d.Software, TimeMs: d.now().UnixMilli()})
	if err != nil {
		return false
	}
	_, err = readGreeting(raw)
	return err == nil || errors.Is(err, errSpeaksTLS)
}

func (d Dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	if d.Dial != nil {
		return d.Dial(ctx, addr)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// final reports whether an answer holds at every address, so that asking elsewhere is of no use.
func final(err error) bool {
	if IsTransport(err) {
		return false
	}
	switch errs.KindOf(err) {
	case errs.AccessDenied, errs.InvalidArgument, errs.InvalidRequest, errs.Conflict, errs.PreconditionFailed, errs.NotImplemented:
		return true
	}
	return false
}

// round asks each address until one answers for good.
func (d Dialer) round(ctx context.Context, op string, addrs []string, c func() *caller, f func(context.Context, grpc.ClientConnInterface) error) (err error, done bool) {
	var all []error
	refused := 0
	var kind errs.Kind
	for _, addr := range addrs {
		answered := false
		err := d.call(ctx, addr, c(), func(ctx context.Context, cc grpc.ClientConnInterface) error {
			err := f(ctx, cc)
			answered = err == nil || final(err)
			return err
		})
		if answered {
			return err, true
		}
		if cerr := ctx.Err(); cerr != nil {
			return errors.Join(append(all, cerr)...), true
		}
		if k := errs.KindOf(err); !IsTransport(err) && (k == errs.Foreign || k == errs.AccessDenied) {
			kind = k
			refused++
		}
		all = append(all, errs.Wrap(errs.KindOf(err), "", addr, err))
	}
	if len(all) == 0 {
		all = append(all, errors.New("no address is known of any other node"))
	}
	if refused < len(all) {
		kind = errs.Unavailable // somebody may yet answer
	}
	return errs.Wrap(kind, op, "", errors.Join(all...)), false
}

// JoinConfig is what a node brings when it joins.
type JoinConfig struct {
	Dialer
	Token     pki.Token
	Addresses []string // tried first, then the token's
	Node      *nodepb.NodeInfo
	Plaintext bool
	// Progress is told why it takes longer, once a round. nil is none.
	Progress func(error)
}

// Joined is what a node gets; it must be made durable before anything else.
type Joined struct {
	StoreID  string
	Identity *pki.Identity // nil in a cluster without TLS
	Nodes    []*nodepb.NodeInfo
}

// Join asks the members that the token names to let this node in. While none of
// them can answer for good (no quorum, starting, not reachable), it asks again every second
// until ctx ends. A refusal ends it: AccessDenied, InvalidArgument, or Foreign if
// every address leads to strangers. The token is spent by success, also by one
// whose answer was lost: Join itself repeats such a request as it was.
func Join(ctx context.Context, cfg JoinConfig) (*Joined, error) {
	const op = "rpc.join"
	node := cluster.NodeID(cfg.Node.GetNode())
	if err := pki.CheckNodeName(node); err != nil {
		return nil, err
	}
	if (cfg.Token.Pin == pki.Pin{}) != cfg.Plaintext {
		return nil, errs.New(errs.InvalidArgument, op, string(node), "the join token and this node do not agree on TLS: set --cluster-plaintext on all nodes or on none")
	}
	key, csr, err := pki.NewRequest(node)
	if err != nil {
		return nil, err
	}
	req := &nodepb.JoinRequest{Secret: cfg.Token.Secret[:], Node: cfg.Node}
	if !cfg.Plaintext {
		req.Csr = csr
	}
	newCaller := func() *caller {
		c := &caller{self: node, storeID: cfg.Token.StoreID, class: Meta, joining: true}
		if !cfg.Plaintext {
			c.tls, c.verify = cfg.Token.ClientTLS(), cfg.Token.Verify
		}
		return c
	}
	var resp *nodepb.JoinResponse
	ask := func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
		req.TimeMs = cfg.now().UnixMilli()
		resp, err = nodepb.NewJoinClient(cc).Join(ctx, req)
		return err
	}
	addrs := append(append([]string(nil), cfg.Addresses...), cfg.Token.Addresses...)
	var last error // of a whole round
	for {
		err, done := cfg.round(ctx, op, addrs, newCaller, ask)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, errors.Join(err, last)
		}
		if done || errs.KindOf(err) != errs.Unavailable {
			return nil, err
		}
		if cfg.Progress != nil {
			cfg.Progress(err)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(joinRoundEvery):
		}
		last = err
	}
	out := &Joined{StoreID: resp.StoreId, Nodes: resp.Nodes}
	if resp.StoreId != cfg.Token.StoreID {
		return nil, otherStore("", resp.StoreId, cfg.Token.StoreID)
	}
	if cfg.Plaintext {
		return out, nil
	}
	var seal pki.SealKey
	if copy(seal[:], resp.SealKey) != len(seal) {
		return nil, errs.New(errs.Corrupt, op, string(node), "the answer has no seal key: bring all nodes to the same release")
	}
	if out.Identity, err = pki.NewIdentity(resp.Certificate, resp.Ca, key, seal); err != nil {
		return nil, err
	}
	if id := out.Identity; id.Pin() != cfg.Token.Pin || id.Node != node || id.StoreID != resp.StoreId {
		return nil, errs.Newf(errs.Foreign, op, string(node), "the certificate given is for %s of store %s", id.Node, id.StoreID)
	}
	return out, nil
}

// Renew asks members at the addresses for the next certificate of id, which may
// have expired, as may theirs (design rule 23). One round; the caller repeats it.
func (d Dialer) Renew(ctx context.Context, id *pki.Identity, addrs []string) (*pki.Identity, error) {
	const op = "rpc.renew"
	key, csr, err := id.Request()
	if err != nil {
		return nil, err
	}
	newCaller := func() *caller {
		return &caller{self: id.Node, storeID: id.StoreID, class: Meta, renewing: true, tls: id.ClientTLS(), verify: id.Verify}
	}
	var resp *nodepb.RenewResponse
	err, _ = d.round(ctx, op, addrs, newCaller, func(ctx context.Context, cc grpc.ClientConnInterface) (err error) {
		resp, err = nodepb.NewJoinClient(cc).Renew(ctx, &nodepb.RenewRequest{Csr: csr})
		return err
	})
	if err != nil {
		return nil, err
	}
	return id.Renewed(resp.Certificate, key)
}
