package netsim

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
)

// backlogMax is how many dialled connections wait for an Accept.
const backlogMax = 128

// Network is a network in memory: addresses are any HOST:PORT. Safe for concurrent use.
type Network struct {
	sim *Sim
	mu  struct {
		sync.Mutex
		listeners map[string]*listener
		port      int
		conns     map[*conn][2]*Host // dialling and accepting
	}
}

// NewNetwork makes a network whose traffic obeys the simulator's rules.
func NewNetwork(sim *Sim) *Network {
	n := &Network{sim: sim}
	n.mu.listeners = map[string]*listener{}
	n.mu.conns = map[*conn][2]*Host{}
	n.mu.port = 40000
	return n
}

// Host is one incarnation of a node in the network, from its start to its Kill.
type Host struct {
	net   *Network
	place Place
	dead  bool // guarded by net.mu
}

// Host gives the node at a place its network. A killed node that starts again needs a new one.
func (n *Network) Host(p Place) *Host { return &Host{net: n, place: p} }

// Listen listens at an address; port 0 takes a free one. An address belongs to one listener at a time.
func (h *Host) Listen(addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == "0" {
		n.mu.port++
		addr = net.JoinHostPort(host, strconv.Itoa(n.mu.port))
	}
	if h.dead {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: memAddr(addr), Err: syscall.ENETDOWN}
	}
	if n.mu.listeners[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: memAddr(addr), Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &listener{host: h, addr: addr, backlog: make(chan *conn, backlogMax), done: make(chan struct{})}
	n.mu.listeners[addr] = l
	return l, nil
}

// Dial connects to a listener, by the rules: refused if nobody listens, waiting for ctx in a black hole.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	n := h.net
	fail := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: memAddr(addr), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return nil, fail(err)
	}
	l := n.listener(addr)
	if l != nil {
		if err := n.sim.reach(ctx, h.place, l.host.place, addr); err != nil {
			return nil, err
		}
		l = n.listener(addr)
	}
	if l == nil {
		return nil, fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	c, err := n.connect(h, l, memAddr(addr))
	if err != nil {
		return nil, fail(err)
	}
	n.sim.add(c)
	return c.dialled, nil
}

// connect makes a connection and puts it before the listener.
func (n *Network) connect(h *Host, l *listener, addr memAddr) (*conn, error) {
	n.mu.Lock()
	n.mu.port++
	local := memAddr(fmt.Sprintf("%s:%d", h.place.Node, n.mu.port))
	n.mu.Unlock()
	c := n.sim.newConn(h.place, l.host.place, local, addr)
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case h.dead:
		return nil, syscall.ENETDOWN
	case n.mu.listeners[l.addr] != l:
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	for old := range n.mu.conns {
		if old.over() {
			delete(n.mu.conns, old)
		}
	}
	select {
	case l.backlog <- c:
	default: // full
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	n.mu.conns[c] = [2]*Host{h, l.host}
	return c, nil
}

func (n *Network) listener(addr string) *listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.listeners[addr]
}

// Kill is the sudden end of the node's process: its listeners are gone, its
// connections are reset as the operating system does it, and it can neither listen
// nor dial again. (A machine that loses its power is a black hole too.)
func (h *Host) Kill() {
	n := h.net
	n.mu.Lock()
	h.dead = true
	var ls []*listener
	for _, l := range n.mu.listeners {
		if l.host == h {
			ls = append(ls, l)
		}
	}
	var ends []*end
	for c, hosts := range n.mu.conns {
		if hosts[0] == h {
			ends = append(ends, c.dialled)
		}
		if hosts[1] == h {
			ends = append(ends, c.accepted)
		}
	}
	n.mu.Unlock()
	for _, l := range ls {
		l.Close()
	}
	for _, e := range ends {
		e.kill()
	}
}

// over reports that both ends are closed or the connection broken.
func (c *conn) over() bool {
	c.state.Lock()
	defer c.state.Unlock()
	return c.state.closed == 2 || c.state.reset
}

// listener is a net.Listener of a Network.
type listener struct {
	host    *Host
	addr    string
	backlog chan *conn
	once    sync.Once
	done    chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, l.fail(net.ErrClosed)
	default:
	}
	select {
	case c := <-l.backlog:
		return c.accepted, nil
	case <-l.done:
		return nil, l.fail(net.ErrClosed)
	}
}

// Close also resets what was dialled and not accepted.
func (l *listener) Close() error {
	err := l.fail(net.ErrClosed)
	l.once.Do(func() {
		err = nil
		n := l.host.net
		n.mu.Lock()
		if n.mu.listeners[l.addr] == l {
			delete(n.mu.listeners, l.addr)
		}
		n.mu.Unlock()
		close(l.done)
		for {
			select {
			case c := <-l.backlog:
				c.accepted.kill()
				c.accepted.Close()
			default:
				return
			}
		}
	})
	return err
}

func (l *listener) fail(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: memAddr(l.addr), Err: err}
}

func (l *listener) Addr() net.Addr { return memAddr(l.addr) }
