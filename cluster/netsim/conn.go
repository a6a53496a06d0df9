package netsim

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// conn is a connection between two places. It has two ends; in a simulated real
// connection the other end is the pumps that join it to the real one.
type conn struct {
	sim         *Sim
	there, back *half // from the dialling end and to it
	dialled     *end
	accepted    *end
	onReset     func() // once, after a reset
	state       struct {
		sync.Mutex
		closed int // ends closed
		reset  bool
		gone   bool // no longer known to the simulator
	}
}

// end is one end of a conn; a net.Conn.
type end struct {
	conn          *conn
	in, out       *half
	local, remote net.Addr
	read, write   *deadline
	closed        sync.Once
}

func (s *Sim) newConn(from, to Place, local, remote net.Addr) *conn {
	there, back, _ := s.ways(from, to)
	c := &conn{sim: s, there: newHalf(there), back: newHalf(back)}
	c.dialled = &end{conn: c, in: c.back, out: c.there, local: local, remote: remote, read: newDeadline(), write: newDeadline()}
	c.accepted = &end{conn: c, in: c.there, out: c.back, local: remote, remote: local, read: newDeadline(), write: newDeadline()}
	return c
}

// apply takes up changed rules. The simulator's lock is held.
func (c *conn) apply() {
	if c.there.link.now().partition || c.back.link.now().partition {
		c.reset(syscall.ECONNRESET)
		return
	}
	c.there.apply()
	c.back.apply()
}

func (c *conn) isClosed() bool {
	c.state.Lock()
	defer c.state.Unlock()
	return c.state.closed > 0
}

// reset breaks the connection at both ends.
func (c *conn) reset(err error) {
	c.there.reset(err)
	c.back.reset(err)
	c.state.Lock()
	first := !c.state.reset
	c.state.reset = true
	c.state.Unlock()
	if first && c.onReset != nil {
		c.onReset()
	}
}

// forget is called when an end was closed; the simulator forgets the connection with the second.
func (c *conn) forget() {
	c.state.Lock()
	c.state.closed++
	last := c.state.closed == 2 && !c.state.gone
	c.state.gone = c.state.gone || last
	c.state.Unlock()
	if last {
		c.sim.remove(c)
	}
}

func (e *end) Read(p []byte) (int, error) {
	n, err := e.in.read(p, e.read)
	return n, e.wrap("read", err)
}

func (e *end) Write(p []byte) (int, error) {
	n, err := e.out.write(p, e.write)
	return n, e.wrap("write", err)
}

func (e *end) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: e.local, Addr: e.remote, Err: err}
}

// Close never waits; what was written still goes to the other end.
func (e *end) Close() error {
	err := net.ErrClosed
	e.closed.Do(func() {
		err = nil
		e.out.end(io.EOF)
		e.in.stop()
		e.conn.forget()
	})
	return e.wrap("close", err)
}

func (e *end) LocalAddr() net.Addr  { return e.local }
func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) SetDeadline(t time.Time) error {
	e.read.set(t)
	e.write.set(t)
	return nil
}

func (e *end) SetReadDeadline(t time.Time) error  { e.read.set(t); return nil }
func (e *end) SetWriteDeadline(t time.Time) error { e.write.set(t); return nil }

// wrap puts the rules between the caller and a real connection.
func (s *Sim) wrap(raw net.Conn, from, to Place) net.Conn {
	c := s.newConn(from, to, raw.LocalAddr(), raw.RemoteAddr())
	c.onReset = func() {
		if tcp, ok := raw.(*net.TCPConn); ok {
			tcp.SetLinger(0) // the peer sees a reset too
		}
		raw.Close()
	}
	s.add(c)
	var pumps sync.WaitGroup
	pumps.Go(func() { // what the caller wrote; ends with its Close
		_, err := io.CopyBuffer(onlyWriter{raw}, onlyReader{c.accepted}, make([]byte, segmentBytesMax))
		if err != nil {
			c.there.stop()
		}
		raw.Close()
	})
	pumps.Go(func() { // what the caller will read
		_, err := io.CopyBuffer(onlyWriter{c.accepted}, onlyReader{raw}, make([]byte, segmentBytesMax))
		if err == nil {
			err = io.EOF
		}
		c.back.end(cause(err)) // a reset, too, is seen only once it has come through
	})
	go func() {
		pumps.Wait()
		c.accepted.Close()
	}()
	return c.dialled
}

// cause is the error below what package net put around it.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		err = sys.Err
	}
	if errors.Is(err, net.ErrClosed) {
		err = syscall.ECONNRESET
	}
	return err
}

// kill is the end of the process that has this end.
func (e *end) kill() {
	e.out.end(syscall.ECONNRESET)
	e.in.stop()
}

// onlyReader and onlyWriter hide what else a connection can do, so that CopyBuffer copies.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }
