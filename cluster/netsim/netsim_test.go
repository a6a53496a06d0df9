package netsim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"cairn/cluster"
	"cairn/test/bubble"
)

var (
	a1 = Place{"n1", "a"}
	a2 = Place{"n2", "a"}
	b1 = Place{"n3", "b"}
)

// pair is a connection from one place to another in memory.
func pair(t *testing.T, n *Network, from, to Place) (dialled, accepted net.Conn) {
	t.Helper()
	l, err := n.Host(to).Listen(string(to.Node) + ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if dialled, err = n.Host(from).Dial(t.Context(), l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

func set(t *testing.T, s *Sim, rules ...Rule) {
	t.Helper()
	if err := s.Set(Rules{rules}); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryConnIsANetConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := NewNetwork(New(1))
		l, err := n.Host(b1).Listen("n3:1")
		if err != nil {
			return nil, nil, nil, err
		}
		if c1, err = n.Host(a1).Dial(context.Background(), "n3:1"); err != nil {
			return nil, nil, nil, err
		}
		c2, err = l.Accept()
		return c1, c2, func() { l.Close(); c1.Close(); c2.Close() }, err
	})
}

// real is a TCP connection that is dialled through a simulator.
func real(s *Sim) (dialled, accepted net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	dial := s.Dialer(a1, func(string) (Place, bool) { return b1, true }, func(ctx context.Context, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	})
	if dialled, err = dial(context.Background(), l.Addr().String()); err != nil {
		return nil, nil, err
	}
	accepted, err = l.Accept()
	return dialled, accepted, err
}

func TestWrappedConnIsANetConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, c2, err = real(New(1))
		return c1, c2, func() { c1.Close(); c2.Close() }, err
	})
}

func TestWrappedConnCutAndHealed(t *testing.T) {
	s := New(1)
	c1, c2, err := real(s)
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	end := time.Now().Add(time.Minute) // of all waiting
	c1.SetReadDeadline(end)
	set(t, s, Rule{From: "zone:a", To: "zone:b", BlackHole: true})
	if _, err := c1.Write([]byte("kept")); err != nil {
		t.Fatal(err)
	}
	c2.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	buf := make([]byte, 16)
	if n, err := c2.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("through a black hole came %q, %v", buf[:n], err)
	}
	set(t, s)
	c2.SetReadDeadline(end)
	if n, err := c2.Read(buf); err != nil || string(buf[:n]) != "kept" {
		t.Fatalf("after it healed: %q %v", buf[:n], err)
	}
	set(t, s, Rule{From: "node:n1", To: "node:n3", Partition: true})
	if _, err := c1.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("near end: %v", err)
	}
	if _, err := c2.Read(buf); !errors.Is(err, syscall.ECONNRESET) && err != io.EOF {
		t.Fatalf("far end: %v", err)
	}
	c1.Close()
	for s.Conns() > 0 { // until its pumps have ended
		if time.Now().After(end) {
			t.Fatalf("%d connections are never closed", s.Conns())
		}
		time.Sleep(time.Millisecond)
	}
}

func TestLatencyAndOrder(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(1)
		set(t, s, Rule{From: "zone:a", To: "zone:b", Latency: Duration(10 * time.Millisecond), Jitter: Duration(5 * time.Millisecond)})
		start := time.Now()
		c1, c2 := pair(t, NewNetwork(s), a1, b1)
		if took := time.Since(start); took != 20*time.Millisecond {
			t.Errorf("a dial took %v, want a round trip", took)
		}
		var sent bytes.Buffer
		go func() {
			for i := range 200 {
				fmt.Fprintf(c1, "%d,", i)
				time.Sleep(100 * time.Microsecond)
			}
			c1.Close()
		}()
		for i := range 200 {
			fmt.Fprintf(&sent, "%d,", i)
		}
		start = time.Now()
		got, err := io.ReadAll(c2)
		if err != nil || !bytes.Equal(got, sent.Bytes()) {
			t.Fatalf("got %q, %v", got, err)
		}
		if took := time.Since(start); took < 30*time.Millisecond || took > 35*time.Millisecond {
			t.Errorf("200 writes in 20 ms arrived after %v, want 30 to 35 ms", took)
		}
		near, near2 := pair(t, NewNetwork(s), a1, a2)
		start = time.Now()
		near.Write([]byte("x"))
		near2.Read(make([]byte, 1))
		if took := time.Since(start); took != 0 {
			t.Errorf("within the zone: %v", took)
		}
	})
}

func TestBandwidthIsOfTheLink(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(1)
		set(t, s, Rule{Bandwidth: 1 << 20})
		n := NewNetwork(s)
		start := time.Now()
		var wg sync.WaitGroup
		for range 2 {
			c1, c2 := pair(t, n, a1, b1)
			wg.Go(func() { c1.Write(make([]byte, 4<<20)); c1.Close() })
			wg.Go(func() {
				if got, err := io.Copy(io.Discard, c2); got != 4<<20 || err != nil {
					t.Error(got, err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took < 8*time.Second || took > 8100*time.Millisecond {
			t.Errorf("2 x 4 MiB at 1 MiB/s took %v", took)
		}
	})
}

func TestLossCostsTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(7)
		set(t, s, Rule{Loss: 0.2})
		c1, c2 := pair(t, NewNetwork(s), a1, b1)
		start := time.Now()
		buf := make([]byte, 1)
		for range 100 {
			c1.Write(buf)
			if _, err := c2.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took < 10*LossStall || took > 60*LossStall {
			t.Errorf("100 packets with 20%% loss took %v", took)
		}
		set(t, s, Rule{Loss: 1})
		start = time.Now()
		c1.Write(buf)
		if c2.Read(buf); time.Since(start) < 10*time.Second {
			t.Errorf("all packets lost cost only %v", time.Since(start))
		}
	})
}

func TestBlackHole(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(1)
		n := NewNetwork(s)
		c1, c2 := pair(t, n, a1, b1)
		l, _ := n.Host(b1).Listen("n3:9")
		defer l.Close()
		set(t, s, Rule{From: "zone:a", To: "!zone:a", OneWay: true, BlackHole: true})
		if _, err := c1.Write([]byte("x")); err != nil {
			t.Fatalf("a sender notices nothing: %v", err)
		}
		buf := make([]byte, 8)
		c2.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c2.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("through the hole: %v", err)
		}
		c2.Write([]byte("y"))
		if k, err := c1.Read(buf); k != 1 || err != nil {
			t.Fatalf("the other way: %d %v", k, err)
		}
		c1.SetWriteDeadline(time.Now().Add(time.Second))
		if k, err := c1.Write(make([]byte, 4<<20)); k > inFlightBytesMax || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the hole takes %d bytes, %v", k, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if _, err := n.Host(a1).Dial(ctx, "n3:9"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Fatalf("dial into the hole: %v after %v", err, time.Since(start))
		}
		dialled := make(chan error)
		go func() {
			c, err := n.Host(a1).Dial(t.Context(), "n3:9")
			if err == nil {
				c.Close()
			}
			dialled <- err
		}()
		synctest.Wait()
		set(t, s)
		if err := <-dialled; err != nil {
			t.Errorf("a dial waiting when it healed: %v", err)
		}
		c2.SetReadDeadline(time.Time{})
		if _, err := c2.Read(buf[:1]); err != nil || buf[0] != 'x' {
			t.Errorf("after it healed: %q %v", buf[0], err)
		}
	})
}

func TestPartition(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(1)
		n := NewNetwork(s)
		c1, c2 := pair(t, n, a1, b1)
		near1, near2 := pair(t, n, a1, a2)
		l, _ := n.Host(b1).Listen("n3:9")
		defer l.Close()
		blocked := make(chan error)
		go func() { _, err := c2.Read(make([]byte, 1)); blocked <- err }()
		synctest.Wait()
		set(t, s, Rule{From: "zone:b", To: "!zone:b", Partition: true})
		if err := <-blocked; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("blocked read: %v", err)
		}
		if _, err := c1.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write: %v", err)
		}
		if _, err := n.Host(a1).Dial(t.Context(), "n3:9"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
		near1.Write([]byte("x"))
		if _, err := near2.Read(make([]byte, 1)); err != nil {
			t.Errorf("within the zone: %v", err)
		}
		set(t, s)
		if c, err := n.Host(a1).Dial(t.Context(), "n3:9"); err != nil {
			t.Errorf("dial after it healed: %v", err)
		} else {
			c.Close()
		}
		if _, err := c1.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a reset connection came back: %v", err)
		}
	})
}

func TestKill(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(1)
		n := NewNetwork(s)
		victim := n.Host(b1)
		l, _ := victim.Listen("n3:9")
		c, err := n.Host(a1).Dial(t.Context(), "n3:9")
		if err != nil {
			t.Fatal(err)
		}
		far, _ := l.Accept()
		far.Write([]byte("last words"))
		waiting, err := n.Host(a1).Dial(t.Context(), "n3:9")
		if err != nil {
			t.Fatal(err)
		}
		victim.Kill()
		buf := make([]byte, 20)
		if k, err := c.Read(buf); string(buf[:k]) != "last words" || err != nil {
			t.Errorf("%q %v", buf[:k], err)
		}
		for _, conn := range []net.Conn{c, waiting} {
			if _, err := conn.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
			if _, err := conn.Write(buf); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("write: %v", err)
			}
			conn.Close()
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		if _, err := victim.Listen("n3:9"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("a dead process listens: %v", err)
		}
		if _, err := victim.Dial(t.Context(), "n1:1"); err == nil {
			t.Errorf("a dead process dials")
		}
		again, err := n.Host(b1).Listen("n3:9")
		if err != nil {
			t.Fatalf("the next incarnation: %v", err)
		}
		again.Close()
		far.Close()
		if s.Conns() != 0 {
			t.Errorf("%d connections are still known", s.Conns())
		}
	})
}

func TestGRPCInABubble(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := New(1)
		n := NewNetwork(s)
		l, err := n.Host(b1).Listen("n3:9002")
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
		go srv.Serve(l)
		defer srv.Stop()
		from := n.Host(a1)
		cc, err := grpc.NewClient("passthrough:///n3:9002", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(from.Dial))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		call := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
			return err
		}
		if err := call(); err != nil {
			t.Fatal(err)
		}
		set(t, s, Rule{Latency: Duration(time.Millisecond)})
		start := time.Now()
		if err := call(); err != nil || time.Since(start) != 2*time.Millisecond {
			t.Fatalf("a call took %v, %v", time.Since(start), err)
		}
		for _, rule := range []Rule{{BlackHole: true}, {Partition: true}} {
			set(t, s, rule)
			if err := call(); err == nil {
				t.Fatal("a call went through")
			}
			set(t, s)
			if err := call(); err != nil {
				t.Fatalf("after it healed: %v", err)
			}
		}
	})
}

func TestRulesCombine(t *testing.T) {
	r, err := Parse([]byte(`{"rules": [
		{"from": "zone:a", "to": "zone:b", "latency": "1ms"},
		{"from": "node:n3", "latency": "100ms", "bandwidth_bytes_per_s": 1000},
		{"bandwidth_bytes_per_s": 5000, "loss": 0.75},
		{"from": "zone:b", "to": "node:n1", "one_way": true, "black_hole": true, "loss": 0.75},
		{"from": "node:n2", "to": "!zone:a", "one_way": true, "partition": true}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.between(a1, b1), (conditions{latency: 101 * time.Millisecond, bandwidth: 1000, loss: 0.75}); got != want {
		t.Errorf("there: %+v", got)
	}
	if got, want := r.between(b1, a1), (conditions{latency: 101 * time.Millisecond, bandwidth: 1000, loss: 1, blackHole: true}); got != want {
		t.Errorf("back: %+v", got)
	}
	if got := r.between(b1, a2); !got.partition {
		t.Errorf("a partition is of both directions: %+v", got)
	}
	if got := r.between(a1, a1); got != (conditions{}) {
		t.Errorf("a node with itself: %+v", got)
	}
}

func TestBadRules(t *testing.T) {
	for _, text := range []string{
		`{"rules":[{"from":"zone"}]}`, `{"rules":[{"to":"rack:1"}]}`, `{"rules":[{"latency":"1"}]}`, `{"rules":[{"latency":"-1s"}]}`,
		`{"rules":[{"loss":1.5}]}`, `{"rules":[{"partition":true,"black_hole":true}]}`, `{"rule":[]}`, `{} {}`, `[]`,
	} {
		if r, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: taken as %+v", text, r)
		}
	}
	s := New(1)
	good := Rule{Latency: 1}
	set(t, s, good)
	if err := s.Set(Rules{[]Rule{{Loss: 2}}}); err == nil || !reflect.DeepEqual(s.Rules().Rules, []Rule{good}) {
		t.Errorf("bad rules: %v, then %+v", err, s.Rules())
	}
}

func TestLocator(t *testing.T) {
	top := &cluster.Topology{Nodes: map[cluster.NodeID]cluster.Node{
		"n1": {ID: "n1", Zone: "a", Addresses: []string{"h1:9002", "shared:1"}, State: cluster.NodeActive},
		"n2": {ID: "n2", Zone: "b", Addresses: []string{"h2:9002", "shared:1"}, State: cluster.NodeDown},
		"n3": {ID: "n3", Zone: "b", Addresses: []string{"h2:9002"}, State: cluster.NodeRemoved},
	}}
	locate := Locator(func() *cluster.Topology { return top })
	for addr, want := range map[string]Place{"h1:9002": {"n1", "a"}, "h2:9002": {"n2", "b"}, "h3:9002": {}, "shared:1": {}} {
		if got, ok := locate(addr); got != want || ok != (want != Place{}) {
			t.Errorf("%s: %v %v", addr, got, ok)
		}
	}
}

func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules.json")
	s := New(1)
	ctx, cancel := context.WithCancel(t.Context())
	type saying struct {
		rules int
		err   bool
	}
	said := make(chan saying)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Watch(ctx, path, time.Millisecond, func(r Rules, err error) { said <- saying{len(r.Rules), err != nil} })
	}()
	// Written beside it and renamed: the watcher never sees half a file.
	write := func(text string) {
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		text string
		want saying
		left int
	}{
		{`{"rules":[{"latency":"1ms"}]}`, saying{1, false}, 1},
		{`{"rules":[{"latency":`, saying{0, true}, 1},
		{`{"rules":[]}`, saying{0, false}, 0},
	} {
		write(step.text)
		if got := <-said; got != step.want || len(s.Rules().Rules) != step.left {
			t.Errorf("%s: said %+v, rules %+v", step.text, got, s.Rules())
		}
	}
	cancel()
	<-done
}
