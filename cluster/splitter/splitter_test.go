package splitter

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// plane is a metadata plane of one replica a group, all in one store, whose commands are applied as they are proposed.
type plane struct {
	t    *testing.T
	db   *pebble.DB
	meta *metaclient.Client

	mu       sync.Mutex
	groups   map[cluster.GroupID]*rangestate.Machine
	stuck    map[cluster.GroupID]bool // have no quorum: what asks them waits until it gives up
	asked    map[cluster.GroupID]int  // how often something waited for them
	proposed []string                 // "group command", in order
	reads    func(cluster.GroupID)    // if not nil, told of every read
	split    func() error             // if not nil, answers instead of a split if it is an error
	next     cluster.GroupID          // to be given out
	name     string                   // begins the names of replicas
	index    uint64
}

// newPlane has these groups with one bucket each, whose id is the group's: it is the range of these alone.
func newPlane(t *testing.T, groups ...cluster.GroupID) *plane {
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, Logger: quiet{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &plane{
		t: t, db: db, next: 100, name: "replica-",
		groups: map[cluster.GroupID]*rangestate.Machine{}, stuck: map[cluster.GroupID]bool{}, asked: map[cluster.GroupID]int{},
	}
	p.meta = metaclient.New(metaclient.Config{Groups: p, Topology: p.topology, Now: time.Now, Rand: rand.Reader})
	for _, g := range groups {
		b := db.NewBatch()
		d := &metapb.RangeDescriptor{Group: uint64(g), Start: &metapb.PosPB{Bucket: uint64(g)}, End: &metapb.PosPB{Bucket: uint64(g) + 1}}
		if err := rangestate.Birth(b, d); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		p.groups[g] = rangestate.New(g)
		p.must(g, &metapb.RangeCommand{Op: &metapb.RangeCommand_PutBucket{PutBucket: &metapb.PutBucketOp{Row: &metapb.BucketRow{Id: uint64(g), Generation: 1}}}})
	}
	return p
}

type quiet struct{ t *testing.T }

func (q quiet) Infof(string, ...interface{})      {}
func (q quiet) Errorf(f string, a ...interface{}) { q.t.Errorf(f, a...) }
func (q quiet) Fatalf(f string, a ...interface{}) { q.t.Fatalf(f, a...) }

func (p *plane) must(g cluster.GroupID, cmd *metapb.RangeCommand) {
	p.t.Helper()
	if _, err := p.meta.DoGroup(p.t.Context(), g, cmd); err != nil {
		p.t.Fatal(err)
	}
}

// fill writes n objects into the group's bucket.
func (p *plane) fill(g cluster.GroupID, n int) {
	p.t.Helper()
	for i := range n {
		w := p.meta.NewWriteID()
		p.must(g, &metapb.RangeCommand{Op: &metapb.RangeCommand_PutObject{PutObject: &metapb.PutObjectOp{
			Bucket: uint64(g), Key: fmt.Appendf(nil, "%04d", i), Row: &metapb.ObjectRow{WriteId: w[:], Data: &metapb.Data{}},
		}}})
	}
}

func (p *plane) topology() *cluster.Topology {
	t := &cluster.Topology{Groups: map[cluster.GroupID]cluster.Group{}}
	p.mu.Lock()
	defer p.mu.Unlock()
	for g := range p.groups {
		t.Groups[g] = cluster.Group{ID: g, Generation: 100, Bounds: cluster.Bounds{Start: cluster.Pos{Bucket: storage.BucketID(g)}}}
	}
	return t
}

// wait waits as a group without a quorum has one wait.
func (p *plane) wait(ctx context.Context, g cluster.GroupID) error {
	p.mu.Lock()
	stuck := p.stuck[g]
	if stuck {
		p.asked[g]++
	}
	p.mu.Unlock()
	if !stuck {
		return nil
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
	}
	return errs.New(errs.Unavailable, "plane", "", "no quorum")
}

func (p *plane) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	if err := p.wait(ctx, g); err != nil {
		return nil, err
	}
	if g == cluster.SystemGroup {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.next++
		return (&metapb.SysResult{Ok: true, Group: uint64(p.next)}).MarshalVT()
	}
	return p.apply(g, data, false)
}

func (p *plane) Split(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	p.mu.Lock()
	split := p.split
	p.mu.Unlock()
	if split != nil {
		if err := split(); err != nil {
			return nil, err
		}
	}
	return p.apply(g, data, true)
}

func (p *plane) apply(g cluster.GroupID, data []byte, birth bool) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := &metapb.RangeCommand{}
	if err := cmd.UnmarshalVT(data); err != nil {
		return nil, err
	}
	p.proposed = append(p.proposed, fmt.Sprintf("%d %T", g, cmd.Op))
	p.index++
	b := p.db.NewIndexedBatch()
	m := p.groups[g]
	out, err := m.Apply(b, []cluster.Entry{{Index: p.index, Term: 1, TimeMS: time.Now().UnixMilli(), Data: data, Config: 1, Birth: birth}})
	if err != nil {
		return nil, err
	}
	for _, child := range m.Born() {
		p.groups[child.Child] = rangestate.New(child.Child)
	}
	return out[0], b.Commit(pebble.NoSync)
}

func (p *plane) Read(ctx context.Context, g cluster.GroupID, fn func(pebble.Reader) error) error {
	p.mu.Lock()
	reads := p.reads
	p.mu.Unlock()
	if reads != nil {
		reads(g)
	}
	if err := p.wait(ctx, g); err != nil {
		return err
	}
	return fn(p.db)
}

func (p *plane) ReadSnapshot(ctx context.Context, g cluster.GroupID, fn func(pebble.Reader, <-chan struct{}) error) error {
	return p.Read(ctx, g, func(r pebble.Reader) error { return fn(r, nil) })
}

func (p *plane) replicaOf(g cluster.GroupID) cluster.ReplicaID {
	return cluster.ReplicaID(fmt.Sprint(p.name, g))
}

func (p *plane) Configuration(g cluster.GroupID) (uint64, []cluster.Replica, error) {
	return 1, []cluster.Replica{{ID: p.replicaOf(g), Drive: storage.DriveID{1}, Voter: true}}, nil
}

func (p *plane) EachReplica(g cluster.GroupID, fn func(cluster.ReplicaID, pebble.Reader) error) error {
	return fn(p.replicaOf(g), p.db)
}

func (p *plane) Status() (out []multiraft.GroupStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for g := range p.groups {
		out = append(out, multiraft.GroupStatus{Group: g, Local: true})
	}
	slices.SortFunc(out, func(a, b multiraft.GroupStatus) int { return int(a.Group) - int(b.Group) })
	return out
}

func (p *plane) splitter(change func(*Config)) *Splitter {
	cfg := Config{Host: p, Meta: p.meta, Topology: p.topology}
	if change != nil {
		change(&cfg)
	}
	return New(cfg)
}

func (p *plane) stick(stuck bool, groups ...cluster.GroupID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range groups {
		p.stuck[g] = stuck
	}
}

// count counts the commands of a kind that a group was proposed.
func (p *plane) count(g cluster.GroupID, op any) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.proposed {
		if s == fmt.Sprintf("%d %T", g, op) {
			n++
		}
	}
	return n
}

// Ranges without a quorum cost the others seconds, once in a while, and are looked after again when they answer.
func TestStuckRanges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newPlane(t, 2, 3, 4, 5)
		for g := range p.groups {
			p.fill(g, 10)
		}
		s := p.splitter(func(c *Config) { c.RowsMax = 5 })
		p.stick(true, 2, 4)
		at := time.Now()
		done, _, err := s.Step(t.Context())
		if took := time.Since(at); done != 2 || err != nil || took > 2*patience {
			t.Errorf("%d ranges were split, %v, after %v", done, err, took)
		}
		// What does not answer is asked ever less often.
		p.asked = map[cluster.GroupID]int{}
		slowest := time.Duration(0)
		for at := time.Now(); time.Since(at) < time.Hour; time.Sleep(5 * time.Second) {
			began := time.Now()
			if _, _, err := s.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(began))
		}
		if n := p.asked[2] + p.asked[4]; n < 20 || n > 60 || slowest > patience {
			t.Errorf("asked %d times in an hour; the slowest step took %v", n, slowest)
		}
		p.stick(false, 2, 4)
		at = time.Now()
		split := int64(0)
		for split < 2 && time.Since(at) < time.Hour {
			time.Sleep(5 * time.Second)
			done, _, err := s.Step(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			split += done
		}
		if took := time.Since(at); took > backoffMax+10*time.Second {
			t.Errorf("%d ranges were split %v after they answered again", split, took)
		}
		// If nothing answers, the step says so.
		for g := range p.groups {
			p.stick(true, g)
		}
		for range 3 * len(p.groups) { // of those that failed one a step is tried
			if _, _, err = s.Step(t.Context()); err != nil {
				break
			}
			time.Sleep(5 * time.Second)
		}
		if !errs.Is(err, errs.Unavailable) {
			t.Errorf("no range answers: %v", err)
		}
	})
}

// A range whose splits fail has its bounds compared all the same, and of replicas that are gone nothing is kept.
func TestChecksGoOn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newPlane(t, 2)
		p.fill(2, 10)
		s := p.splitter(func(c *Config) { c.RowsMax = 5 })
		p.split = func() error { return errs.New(errs.Conflict, "test", "", "") }
		for at := time.Now(); time.Since(at) < 4*time.Hour+time.Minute; time.Sleep(10 * time.Minute) {
			if _, _, err := s.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if _, _, err := s.Step(t.Context()); err != nil { // tells of the check
				t.Fatal(err)
			}
		}
		if n := p.count(2, &metapb.RangeCommand_CheckBounds{}); n < 3 || n > 4 {
			t.Errorf("%d checks in four hours", n)
		}
		if n, m := p.count(2, &metapb.RangeCommand_JudgeBounds{}), p.count(2, &metapb.RangeCommand_CheckBounds{}); n != m {
			t.Errorf("%d checks, told of %d", m, n)
		}
		p.name = "another-" // the replica was replaced
		for range 2 {
			if _, _, err := s.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if told := s.ranges[2].told; len(told) != 1 || told["another-2"] == "" {
			t.Errorf("remembers %v", told)
		}
		delete(p.groups, 2)
		if _, _, err := s.Step(t.Context()); err != nil || len(s.ranges) != 0 {
			t.Errorf("remembers %d ranges, %v", len(s.ranges), err)
		}
	})
}

// A split that waits for another one ends with its ctx, and counts its range before it waits.
func TestSplitsWait(t *testing.T) {
	p := newPlane(t, 2, 3)
	p.fill(2, 10)
	p.fill(3, 10)
	s := p.splitter(nil)
	began, goOn, counted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var once sync.Once
	p.split = func() error {
		once.Do(func() {
			close(began)
			<-goOn
		})
		return nil
	}
	split := func(ctx context.Context, g cluster.GroupID, at cluster.Pos) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := s.Split(ctx, g, at)
			done <- err
		}()
		return done
	}
	await := func(what string, ch <-chan struct{}) {
		t.Helper()
		select {
		case <-ch:
		case <-time.After(20 * time.Second):
			t.Fatal(what)
		}
	}
	first := split(t.Context(), 2, cluster.Pos{Bucket: 2, Key: "0005"})
	await("the first split did not begin", began)

	ctx, cancel := context.WithCancel(t.Context())
	second := split(ctx, 2, cluster.Pos{Bucket: 2, Key: "0003"})
	cancel()
	select {
	case err := <-second:
		if !errs.Is(err, errs.Unavailable) {
			t.Errorf("the split that was given up: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a split outlives its ctx")
	}

	var counts sync.Once
	p.mu.Lock()
	p.reads = func(g cluster.GroupID) {
		if g == 3 {
			counts.Do(func() { close(counted) })
		}
	}
	p.mu.Unlock()
	third := split(t.Context(), 3, cluster.Pos{})
	await("a range is not counted while another is split", counted)
	close(goOn)
	for _, done := range []chan error{first, third} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
