package targettest

import (
	"net"
	"sync"
	"testing"
)

// Proxy stands between a target and its broker, and is how a broker dies, hangs and comes back. Its address stays.
type Proxy struct {
	ln      net.Listener
	backend string

	mu     sync.Mutex
	change *sync.Cond // of any of these
	cut    bool
	hung   bool
	left   int // bytes towards the broker until it cuts itself; below 0: no limit
	asked  int // connections and bytes that came from the target since the last change of state
	conns  map[net.Conn]bool
	wg     sync.WaitGroup
}

// NewProxy listens; where to is said by To. It is gone with the test.
func NewProxy(t testing.TB) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{ln: ln, left: -1, conns: map[net.Conn]bool{}}
	p.change = sync.NewCond(&p.mu)
	p.wg.Add(1)
	go p.accept()
	t.Cleanup(func() {
		ln.Close()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// To names the broker's own address. It comes before the first connection.
func (p *Proxy) To(backend string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backend = backend
}

// Addr is host:port as the target dials it.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// NetAddr is Addr for brokers that tell clients where they are.
func (p *Proxy) NetAddr() net.Addr { return p.ln.Addr() }

// Cut ends all connections and every new one at once, until Back.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutLocked()
}

func (p *Proxy) cutLocked() {
	p.cut, p.left, p.asked = true, -1, 0
	for c := range p.conns {
		c.Close()
	}
	p.change.Broadcast()
}

// CutAfter lets n more bytes through to the broker and then cuts.
func (p *Proxy) CutAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = n
}

// IsCut tells whether it has.
func (p *Proxy) IsCut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut
}

// Hang takes connections and bytes and forwards nothing (it loses them), in neither direction, until Back.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hung, p.asked = true, 0
	p.change.Broadcast()
}

// Asked waits until the target has connected or sent something since Hang.
func (p *Proxy) Asked() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.asked == 0 && !p.cut {
		p.change.Wait()
	}
}

// Back ends Cut, CutAfter and Hang. Connections that hung are cut: what they held never arrives.
func (p *Proxy) Back() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutLocked()
	p.cut, p.hung = false, false
}

func (p *Proxy) accept() {
	defer p.wg.Done()
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Add(1)
		go p.serve(c)
	}
}

func (p *Proxy) serve(c net.Conn) {
	defer p.wg.Done()
	p.mu.Lock()
	backend := p.backend
	if p.cut {
		p.mu.Unlock()
		c.Close()
		return
	}
	p.conns[c] = true
	p.asked++ // with some protocols the broker speaks first
	p.change.Broadcast()
	p.mu.Unlock()
	b, err := net.Dial("tcp", backend)
	if err != nil {
		p.drop(c)
		return
	}
	p.mu.Lock()
	p.conns[b] = true
	if !p.conns[c] || p.cut {
		b.Close()
	}
	p.mu.Unlock()
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		p.pump(c, b, true)
	}()
	p.pump(b, c, false)
}

func (p *Proxy) drop(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		c.Close()
		delete(p.conns, c)
	}
}

func (p *Proxy) pump(from, to net.Conn, towards bool) {
	defer p.drop(from, to)
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			allowed, ok := p.pass(n, towards, from)
			if _, werr := to.Write(buf[:allowed]); werr != nil || !ok {
				if !ok {
					p.Cut()
				}
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass answers how many of n bytes go through and whether more may follow.
func (p *Proxy) pass(n int, towards bool, c net.Conn) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if towards {
		p.asked += n
		p.change.Broadcast()
	}
	if p.hung || p.cut || !p.conns[c] {
		return 0, true // lost: a connection that hung ends with it
	}
	if !towards || p.left < 0 {
		return n, true
	}
	if n < p.left {
		p.left -= n
		return n, true
	}
	return p.left, false
}
