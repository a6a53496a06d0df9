package multiraft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

// tape is a state machine that writes down every command in order: row n of a group is its
// n-th command. The result is n. Commands "set k v" also set a register.
type tape struct {
	g     cluster.GroupID
	spoil func(e cluster.Entry) error // makes Apply fail
}

func tapeKey(g cluster.GroupID, kind byte, suffix ...byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{kind}, uint64(g)), suffix...)
}

func tapeRow(g cluster.GroupID, n uint64) []byte {
	return binary.BigEndian.AppendUint64(tapeKey(g, 0x20), n)
}

func tapeLen(r pebble.Reader, g cluster.GroupID) (uint64, error) {
	b, err := get(r, tapeKey(g, 0x21))
	if err != nil || b == nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

func (m *tape) Apply(b *pebble.Batch, entries []cluster.Entry) ([][]byte, error) {
	n, err := tapeLen(b, m.g)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, e := range entries {
		if m.spoil != nil {
			if err := m.spoil(e); err != nil {
				return nil, err
			}
		}
		n++
		if err := b.Set(tapeRow(m.g, n), e.Data, nil); err != nil {
			return nil, err
		}
		if f := bytes.SplitN(e.Data, []byte(" "), 3); len(f) == 3 && string(f[0]) == "set" {
			if err := b.Set(tapeKey(m.g, 0x22, f[1]...), f[2], nil); err != nil {
				return nil, err
			}
		}
		out = append(out, binary.BigEndian.AppendUint64(nil, n))
	}
	return out, b.Set(tapeKey(m.g, 0x21), binary.BigEndian.AppendUint64(nil, n), nil)
}

func (m *tape) Spans(pebble.Reader) ([]cluster.KeySpan, error) {
	var out []cluster.KeySpan
	for _, kind := range []byte{0x20, 0x21, 0x22} {
		out = append(out, cluster.KeySpan{Start: tapeKey(m.g, kind), End: tapeKey(m.g+1, kind)})
	}
	return out, nil
}

func (m *tape) Reset() {}

// readTape is all commands in order.
func readTape(r pebble.Reader, g cluster.GroupID) ([]string, error) {
	n, err := tapeLen(r, g)
	if err != nil {
		return nil, err
	}
	var out []string
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: tapeRow(g, 0), UpperBound: tapeRow(g+1, 0)})
	if err != nil {
		return nil, err
	}
	for ok := it.First(); ok; ok = it.Next() {
		out = append(out, string(it.Value()))
		if binary.BigEndian.Uint64(it.Key()[9:]) != uint64(len(out)) {
			err = fmt.Errorf("row %d is missing", len(out))
			break
		}
	}
	if err == nil && uint64(len(out)) != n {
		err = fmt.Errorf("%d rows, the length says %d", len(out), n)
	}
	return out, errors.Join(err, it.Close())
}

// cell is a host with some drives, all on one file system in memory.
type cell struct {
	t      testing.TB
	fs     *vfsx.Mem
	h      *Host
	cfg    Config
	drives int
	mu     sync.Mutex
	failed map[storage.DriveID]error
}

// patience is how long a test waits for what has to come; a busy machine may take long.
const patience = time.Minute

func driveID(i int) storage.DriveID { return storage.DriveID{byte(i + 1)} }

// seed is where a test's random choices begin: the same each time, or what CAIRN_SEED says, a number or "random".
func seed(t testing.TB) uint64 {
	t.Helper()
	n := uint64(1)
	switch s := os.Getenv("CAIRN_SEED"); s {
	case "":
	case "random":
		n = rand.Uint64()
	default:
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("CAIRN_SEED: %v", err)
		}
	}
	t.Logf("CAIRN_SEED=%d", n)
	return n
}

// fastConfig makes little of what is kept, and elects no other leader on a machine that is merely busy.
func fastConfig() Config {
	c := Config{
		HeartbeatTimeout: time.Second,
		StallTimeout:     500 * time.Millisecond,
		CommitTimeout:    30 * time.Millisecond,
		SnapshotEntries:  200,
		ProposalsMax:     64,
		TrailingLogs:     64,
	}
	if os.Getenv("CAIRN_TEST_LOG") != "" {
		c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return c
}

// hastyConfig is for tests that hold whoever leads, and are the better the more often that changes.
func hastyConfig() Config {
	c := fastConfig()
	c.HeartbeatTimeout, c.StallTimeout = 150*time.Millisecond, 100*time.Millisecond
	return c
}

func newCell(t testing.TB, fs *vfsx.Mem, drives int, cfg Config) *cell {
	t.Helper()
	c := &cell{t: t, fs: fs, cfg: cfg, drives: drives, failed: map[storage.DriveID]error{}}
	c.start()
	return c
}

func (c *cell) start() {
	c.t.Helper()
	cfg := c.cfg
	if cfg.NewStateMachine == nil {
		cfg.NewStateMachine = func(g cluster.GroupID) StateMachine { return &tape{g: g} }
	}
	h, err := New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.h = h
	for i := range c.drives {
		if err := h.AddDrive(c.drive(i)); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cell) dir(i int) string { return fmt.Sprintf("drive%d", i) }

func (c *cell) drive(i int) Drive {
	dir := c.dir(i)
	if err := c.fs.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := errors.Join(syncDir(c.fs, "/"), syncDir(c.fs, dir)); err != nil {
		c.t.Fatal(err)
	}
	id, err := c.fs.StatID(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	return Drive{
		ID: driveID(i), FS: c.fs, Dir: dir,
		Check: func() error {
			now, err := c.fs.StatID(dir)
			if err != nil {
				return err
			}
			if now.Inode != id.Inode {
				return errors.New("another directory")
			}
			return nil
		},
		Fail: func(err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.failed[driveID(i)] = err
		},
	}
}

func testGroup(id cluster.GroupID, voters ...int) cluster.Group {
	g := cluster.Group{ID: id}
	for _, d := range voters {
		g.Replicas = append(g.Replicas, cluster.Replica{ID: cluster.MakeReplicaID(id, uint64(d+1)), Drive: driveID(d), Voter: true})
	}
	return g
}

func noBirth(*pebble.Batch) error { return nil }

func (c *cell) birth(g cluster.Group) {
	c.t.Helper()
	if err := c.h.Birth(g, noBirth); err != nil {
		c.t.Fatal(err)
	}
	c.waitLeader(g.ID)
}

func testCtx(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func (c *cell) waitLeader(g cluster.GroupID) *replica {
	c.t.Helper()
	if err := c.h.WaitLeader(testCtx(c.t, patience), g); err != nil {
		c.t.Fatal(err)
	}
	return c.h.group(g, false).leader.Load()
}

// propose repeats until the command is in; it may be in twice if the outcome was unknown.
func (c *cell) propose(g cluster.GroupID, cmd string) uint64 {
	c.t.Helper()
	ctx := testCtx(c.t, patience)
	for {
		res, err := c.h.Propose(ctx, g, []byte(cmd))
		if err == nil {
			return binary.BigEndian.Uint64(res)
		}
		if ctx.Err() != nil {
			c.t.Fatalf("propose %q: %v", cmd, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (c *cell) fill(g cluster.GroupID, from, n int) {
	c.t.Helper()
	var wg sync.WaitGroup
	sem := make(chan struct{}, 16)
	for i := range n {
		sem <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			c.propose(g, fmt.Sprintf("c%06d", from+i))
			<-sem
		}()
	}
	wg.Wait()
}

func (c *cell) tape(g cluster.GroupID) []string {
	c.t.Helper()
	var out []string
	ctx := testCtx(c.t, patience)
	for {
		err := c.h.Read(ctx, g, func(r pebble.Reader) (err error) {
			s := Snapshot(r)
			defer s.Close()
			out, err = readTape(s, g)
			return err
		})
		if err == nil {
			return out
		}
		if !errs.Is(err, errs.NotLeader) && !errs.Is(err, errs.Unavailable) || ctx.Err() != nil {
			c.t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// distinct counts the commands of a tape: one whose outcome was unknown may be there twice.
func distinct(tape []string) int {
	seen := map[string]bool{}
	for _, cmd := range tape {
		seen[cmd] = true
	}
	return len(seen)
}

// waitEqual waits until n replicas run and all have applied the same, and checks that their rows are the same.
func (c *cell) waitEqual(g cluster.GroupID, n int) []string {
	c.t.Helper()
	end := time.Now().Add(patience)
	for {
		bad := ""
		want := c.tape(g) // again each time: an unknown outcome may come true
		reps := c.h.group(g, false).replicas()
		if len(reps) != n {
			bad = fmt.Sprintf("%d replicas run", len(reps))
		}
		for _, r := range reps {
			var got []string
			err := r.withState("test", func(db pebble.Reader) (err error) {
				s := Snapshot(db)
				got, err = readTape(s, g)
				return errors.Join(err, s.Close())
			})
			if err != nil && !errs.Is(err, errs.Unavailable) {
				c.t.Fatal(r.id, err)
			}
			if strings.Join(got, ",") != strings.Join(want, ",") {
				bad = fmt.Sprintf("%s has %d commands, the leader %d", r.id, len(got), len(want))
			}
		}
		if bad == "" {
			return want
		}
		if time.Now().After(end) {
			c.t.Fatalf("%s; status %+v", bad, c.h.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *cell) close() {
	c.t.Helper()
	if err := c.h.Close(); err != nil {
		c.t.Fatal(err)
	}
}

// crash cuts the power: a new cell on what the file system then holds. The old one goes on in its own world until it is closed.
func (c *cell) crash(seed uint64) *cell {
	c.t.Helper()
	fs := c.fs.CrashClone(seed)
	return newCell(c.t, fs, c.drives, c.cfg)
}

func installRequest(from *replica, m *raft.SnapshotMeta) *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{
		RPCHeader:       raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(from.id), Addr: []byte(from.id)},
		SnapshotVersion: 1, Term: from.raft.CurrentTerm(), LastLogIndex: m.Index, LastLogTerm: m.Term,
		Configuration: raft.EncodeConfiguration(m.Configuration), ConfigurationIndex: m.ConfigurationIndex,
	}
}

func readAll(t testing.TB, r io.Reader) []byte {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
