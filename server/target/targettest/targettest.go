// Package targettest is what every destination of events must do, as a suite that each adapter's tests run against its broker.
package targettest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/server/target"
)

// Harness is an adapter with its broker.
type Harness struct {
	// Start runs a new, empty broker behind a proxy until the test ends.
	Start func(t *testing.T) *Broker
	// Stacks is text that stands in the stack of every goroutine of the client library.
	Stacks []string
}

// Broker is one broker that runs.
type Broker struct {
	Proxy *Proxy
	// Open opens a target that reaches the broker through the proxy only, with this time limit.
	Open func(t *testing.T, timeout time.Duration) target.Target
	// Taken answers the ids of the messages that the broker holds, in its order (in each partition, if it has several), repeats
	// included as it keeps them. It is called while the proxy lets everything through.
	Taken func(t *testing.T) []string
	// Unwell makes the broker there without the queue, topic or table. Check fails then.
	Unwell func(t *testing.T)
	// Refused is the body of a message that the broker refuses for what it is; nil if it refuses none.
	Refused []byte
}

const (
	patient  = 30 * time.Second // a time limit that a test never comes to
	watchdog = 20 * time.Second // what ends at once has ended by then
)

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"order", order},
		{"nothing", nothing},
		{"cut in the middle", cutInTheMiddle},
		{"repeats", repeats},
		{"refused for good", refused},
		{"context ends", contextEnds},
		{"time limit", timeLimit},
		{"away and back", awayAndBack},
		{"check", check},
		{"at once", atOnce},
		{"close", closes},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, h) })
	}
}

// Refused is the one test of the suite that says what becomes of refused messages, for brokers with several reasons.
func Refused(t *testing.T, h Harness) { refused(t, h) }

// batch is n messages of some keys; names of keys are any bytes.
func batch(from, n int, prefix string) []target.Message {
	var all []target.Message
	for i := from; i < from+n; i++ {
		key := fmt.Sprintf("%skey %d\xff\x00ü/%%2F\n", prefix, i%5)
		all = append(all, target.Message{
			ID:     fmt.Sprintf("%s%06d", prefix, i),
			Bucket: "b-" + prefix + "x",
			Key:    key,
			Event:  "ObjectCreated:Put",
			Time:   time.Unix(1_800_000_000+int64(i), 123_000_000).UTC(),
			Body:   fmt.Appendf(nil, `{"Records":[{"n":%d,"key":%q}]}`, i, strings.Repeat("ä", i%7)),
		})
	}
	return all
}

func open(t *testing.T, b *Broker, timeout time.Duration) target.Target {
	t.Helper()
	tgt := b.Open(t, timeout)
	t.Cleanup(func() {
		if err := tgt.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return tgt
}

// all sends until everything is acknowledged, as the sender of a bucket's events does.
func all(t *testing.T, tgt target.Target, messages []target.Message) {
	t.Helper()
	deadline := time.Now().Add(watchdog)
	for len(messages) > 0 {
		n, err := send(t, tgt, messages)
		messages = messages[n:]
		if err != nil && time.Now().After(deadline) {
			t.Fatalf("%d are left: %v", len(messages), err)
		}
	}
}

func send(t *testing.T, tgt target.Target, messages []target.Message) (int, error) {
	t.Helper()
	n, err := tgt.Send(t.Context(), messages)
	if n < 0 || n > len(messages) || (n < len(messages)) != (err != nil) {
		t.Fatalf("%d of %d acknowledged, error %v", n, len(messages), err)
	}
	return n, err
}

// complete checks that the broker holds the messages, and that those of a key came first in their order.
func complete(t *testing.T, b *Broker, messages []target.Message, exact bool) {
	t.Helper()
	taken := b.Taken(t)
	first := map[string]int{}
	for i, id := range taken {
		if _, ok := first[id]; !ok {
			first[id] = i
		} else if exact {
			t.Errorf("%s came twice", id)
		}
	}
	if len(first) != len(messages) {
		t.Errorf("the broker holds %d messages, %d were sent", len(first), len(messages))
	}
	last := map[string]target.Message{}
	for _, m := range messages {
		at, ok := first[m.ID]
		if !ok {
			t.Fatalf("%s was acknowledged and is not there", m.ID)
		}
		if before, ok := last[m.Bucket+"/"+m.Key]; ok && first[before.ID] > at {
			t.Errorf("%s came before %s", m.ID, before.ID)
		}
		last[m.Bucket+"/"+m.Key] = m
	}
}

func order(t *testing.T, h Harness) {
	b := h.Start(t)
	tgt := open(t, b, patient)
	messages := batch(0, 60, "")
	for _, part := range [][]target.Message{messages[:1], messages[1:40], messages[40:]} {
		if n, err := send(t, tgt, part); n != len(part) {
			t.Fatal(err)
		}
	}
	complete(t, b, messages, true)
}

func nothing(t *testing.T, h Harness) {
	b := h.Start(t)
	tgt := open(t, b, patient)
	if n, err := tgt.Send(t.Context(), nil); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if taken := b.Taken(t); len(taken) != 0 {
		t.Fatal(taken)
	}
}

// cutInTheMiddle lets the broker die at many places of a call. What was acknowledged is there, and what follows leaves neither gap nor disorder.
func cutInTheMiddle(t *testing.T, h Harness) {
	b := h.Start(t)
	tgt := open(t, b, 400*time.Millisecond) // some clients go on trying for as long as they may
	messages := batch(0, 24, "warm")
	all(t, tgt, messages)
	cuts := 0
	for _, bytes := range []int{0, 100, 700, 1500, 3000, 5000, 8000} {
		more := batch(0, 24, fmt.Sprintf("c%d-", bytes))
		b.Proxy.CutAfter(bytes)
		n, err := send(t, tgt, more)
		if err != nil {
			cuts++
		}
		b.Proxy.Back()
		taken := b.Taken(t)
		for _, m := range more[:n] {
			if !slices.Contains(taken, m.ID) {
				t.Fatalf("cut after %d bytes: %s was acknowledged and is not there", bytes, m.ID)
			}
		}
		all(t, tgt, more[n:])
		messages = append(messages, more...)
	}
	if cuts < 3 {
		t.Errorf("only %d calls met the cut", cuts)
	}
	complete(t, b, messages, false)
}

func repeats(t *testing.T, h Harness) {
	b := h.Start(t)
	messages := batch(0, 10, "")
	all(t, open(t, b, patient), messages)
	all(t, open(t, b, patient), messages[3:]) // as after a change of leader
	complete(t, b, messages, false)           // same ids, or it would hold more than were sent
}

func refused(t *testing.T, h Harness) {
	b := h.Start(t)
	if b.Refused == nil {
		t.Log("this broker refuses no message for what it is")
		return
	}
	tgt := open(t, b, patient)
	messages := batch(0, 12, "")
	messages[4].Body = b.Refused
	messages[5].Key, messages[11].Key = messages[4].Key, messages[4].Key // later ones of the key
	n, err := send(t, tgt, messages)
	var rejected *target.Rejected
	if n != 4 || !errors.As(err, &rejected) {
		t.Fatalf("%d acknowledged, %v", n, err)
	}
	rest := slices.Concat(messages[:4], messages[5:])
	all(t, tgt, messages[5:])
	complete(t, b, rest, false)

	if n, err := send(t, tgt, messages[4:5]); n != 0 || !errors.As(err, &rejected) {
		t.Fatalf("alone: %d acknowledged, %v", n, err)
	}
	all(t, tgt, batch(100, 3, ""))
}

type result struct {
	n   int
	err error
}

// contextEnds ends the context of a call that the broker does not answer, on a fresh connection and on one in use.
func contextEnds(t *testing.T, h Harness) {
	for _, used := range []bool{false, true} {
		b := h.Start(t)
		tgt := open(t, b, 10*time.Minute)
		var messages []target.Message
		if used {
			messages = batch(0, 3, "used")
			all(t, tgt, messages)
		}
		b.Proxy.Hang()
		for _, call := range []func(context.Context) (int, error){
			func(ctx context.Context) (int, error) { return tgt.Send(ctx, batch(0, 3, "")) },
			func(ctx context.Context) (int, error) { return 0, tgt.Check(ctx) },
		} {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan result, 1)
			b.Proxy.Hang() // counts anew
			go func() {
				n, err := call(ctx)
				done <- result{n, err}
			}()
			b.Proxy.Asked()
			cancel()
			select {
			case r := <-done:
				if r.n != 0 || !errors.Is(r.err, context.Canceled) {
					t.Errorf("in use %v: %d acknowledged, %v", used, r.n, r.err)
				}
			case <-time.After(watchdog):
				buf := make([]byte, 1<<20)
				t.Fatalf("in use %v: the call does not end with its context\n%s", used, buf[:runtime.Stack(buf, true)])
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if n, err := tgt.Send(ctx, batch(0, 1, "")); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("over from the start: %d acknowledged, %v", n, err)
		}
		b.Proxy.Back()
		messages = append(messages, batch(0, 3, "")...)
		all(t, tgt, messages[len(messages)-3:])
		complete(t, b, messages, false)
	}
}

// timeLimit has no context that ends: the target's own limit does it.
func timeLimit(t *testing.T, h Harness) {
	b := h.Start(t)
	tgt := open(t, b, 200*time.Millisecond)
	b.Proxy.Hang()
	for _, call := range []func() (int, error){
		func() (int, error) { return tgt.Send(t.Context(), batch(0, 3, "")) },
		func() (int, error) { return 0, tgt.Check(t.Context()) },
	} {
		done := make(chan result, 1)
		go func() {
			n, err := call()
			done <- result{n, err}
		}()
		select {
		case r := <-done:
			if r.n != 0 || r.err == nil {
				t.Errorf("%d acknowledged, %v", r.n, r.err)
			}
		case <-time.After(watchdog):
			t.Fatal("the call does not end with the time limit")
		}
	}
	b.Proxy.Back()
	all(t, tgt, batch(0, 3, ""))
	complete(t, b, batch(0, 3, ""), false)
}

// awayAndBack opens a target whose broker is not there, and loses it again later.
func awayAndBack(t *testing.T, h Harness) {
	b := h.Start(t)
	b.Proxy.Cut()
	tgt := open(t, b, 500*time.Millisecond)
	messages := batch(0, 8, "")
	for range 2 {
		if n, err := send(t, tgt, messages); n != 0 || err == nil {
			t.Fatalf("%d acknowledged, %v", n, err)
		}
		if err := tgt.Check(t.Context()); err == nil {
			t.Fatal("the check passes")
		}
	}
	b.Proxy.Back()
	all(t, tgt, messages[:4])
	b.Proxy.Cut()
	if n, err := send(t, tgt, messages[4:]); n != 0 || err == nil {
		t.Fatalf("%d acknowledged, %v", n, err)
	}
	b.Proxy.Back()
	all(t, tgt, messages[4:])
	complete(t, b, messages, false)
}

func check(t *testing.T, h Harness) {
	b := h.Start(t)
	tgt := open(t, b, patient)
	for range 2 {
		if err := tgt.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if taken := b.Taken(t); len(taken) != 0 {
		t.Fatalf("a check delivered %q", taken)
	}
	b.Unwell(t)
	if err := tgt.Check(t.Context()); err == nil {
		t.Fatal("the check passes")
	} else {
		t.Log(err)
	}
}

func atOnce(t *testing.T, h Harness) {
	b := h.Start(t)
	tgt := open(t, b, patient)
	var wg sync.WaitGroup
	var messages []target.Message
	for i := range 6 {
		own := batch(0, 30, fmt.Sprintf("s%d-", i))
		messages = append(messages, own...)
		wg.Go(func() {
			for _, part := range [][]target.Message{own[:10], own[10:]} {
				if n, err := tgt.Send(t.Context(), part); n != len(part) || err != nil {
					t.Errorf("%d of %d acknowledged, %v", n, len(part), err)
				}
			}
			if err := tgt.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	complete(t, b, messages, true)
}

// closes checks that nothing runs on after Close: whether the target was used, failed, or was never used.
func closes(t *testing.T, h Harness) {
	b := h.Start(t)
	before := clientGoroutines(h.Stacks)
	for _, use := range []func(target.Target){
		func(target.Target) {},
		func(tgt target.Target) {
			all(t, tgt, batch(0, 10, ""))
			if len(h.Stacks) > 0 && clientGoroutines(h.Stacks) == 0 {
				t.Error("no goroutine of the client is seen while it is in use: the harness names the wrong text")
			}
		},
		func(tgt target.Target) {
			b.Proxy.Cut()
			if _, err := tgt.Send(t.Context(), batch(0, 10, "")); err == nil {
				t.Error("sent to nobody")
			}
			b.Proxy.Back()
		},
	} {
		tgt := b.Open(t, time.Second)
		use(tgt)
		if err := tgt.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := tgt.Send(t.Context(), batch(0, 1, "")); n != 0 || err == nil {
			t.Errorf("sent through a closed target: %d, %v", n, err)
		}
	}
	deadline := time.Now().Add(watchdog)
	for clientGoroutines(h.Stacks) > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("goroutines are left:\n%s", buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond) // until it is so: how long it takes is the scheduler's business
	}
}

func clientGoroutines(texts []string) int {
	buf := make([]byte, 4<<20)
	n := 0
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(g, s) }) {
			n++
		}
	}
	return n
}
