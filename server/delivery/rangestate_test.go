package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/target"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// plane is a metadata plane of rangestate's machines, one replica a range, all in one store.
type plane struct {
	t       *testing.T
	mu      sync.Mutex
	db      *pebble.DB
	ranges  map[cluster.GroupID]*rangestate.Machine
	targets []*metapb.SysTarget
	index   uint64
}

func newPlane(t *testing.T, targets ...*metapb.SysTarget) *plane {
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, Logger: quiet{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &plane{t: t, db: db, ranges: map[cluster.GroupID]*rangestate.Machine{10: rangestate.New(10)}, targets: targets}
	b := db.NewBatch()
	if err := rangestate.Birth(b, &metapb.RangeDescriptor{Group: 10}); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	cfg := &metapb.NotificationConfig{Rules: []*metapb.NotificationRule{{
		Id: "r", Kind: metapb.NotificationRule_KIND_QUEUE, Arn: "arn:aws:sqs:eu:1:a", Events: []string{"s3:ObjectCreated:*", "s3:ObjectRestore:*"},
	}}}
	row := &metapb.BucketRow{Id: 1, Generation: 1, Events: &metapb.BucketEvents{Name: "b", Owner: "o", Region: "eu", Config: cfg}}
	p.must(10, &metapb.RangeCommand{Op: &metapb.RangeCommand_PutBucket{PutBucket: &metapb.PutBucketOp{Row: row}}})
	return p
}

type quiet struct{ t *testing.T }

func (q quiet) Infof(string, ...interface{})      {}
func (q quiet) Errorf(f string, a ...interface{}) { q.t.Errorf(f, a...) }
func (q quiet) Fatalf(f string, a ...interface{}) { q.t.Fatalf(f, a...) }

func (p *plane) must(g cluster.GroupID, cmd *metapb.RangeCommand) {
	p.t.Helper()
	if res, err := p.apply(g, cmd); err != nil || !res.Ok {
		p.t.Fatal(res, err)
	}
}

func (p *plane) apply(g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index++
	cmd.Version, cmd.Id, cmd.IssuedMs = 1, fmt.Appendf(nil, "%016d", p.index), time.Now().UnixMilli()
	data, err := cmd.MarshalVT()
	if err != nil {
		return nil, err
	}
	b := p.db.NewIndexedBatch()
	m := p.ranges[g]
	out, err := m.Apply(b, []cluster.Entry{{Index: p.index, Term: 1, TimeMS: time.Now().UnixMilli(), Data: data, Config: 1, Birth: cmd.GetSplit() != nil}})
	if err != nil {
		return nil, err
	}
	for _, child := range m.Born() {
		p.ranges[child.Child] = rangestate.New(child.Child)
	}
	res := &metapb.RangeResult{}
	return res, errors.Join(res.UnmarshalVT(out[0]), b.Commit(pebble.NoSync))
}

func (p *plane) put(g cluster.GroupID, key, class string) {
	p.t.Helper()
	p.mu.Lock()
	w := fmt.Appendf(nil, "%016d", p.index)
	p.mu.Unlock()
	p.must(g, &metapb.RangeCommand{Op: &metapb.RangeCommand_PutObject{PutObject: &metapb.PutObjectOp{
		Bucket: 1, Key: []byte(key), Row: &metapb.ObjectRow{WriteId: w, Data: &metapb.Data{}, Attributes: &metapb.Attributes{StorageClass: class}},
	}}})
}

// split gives the keys from one on to a child.
func (p *plane) split(g, child cluster.GroupID, from string) {
	p.t.Helper()
	var generation uint64
	err := p.Read(p.t.Context(), g, func(r rangestate.Reader) error {
		info, err := r.Info()
		generation = info.Descriptor.GetGeneration()
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.must(g, &metapb.RangeCommand{Op: &metapb.RangeCommand_Split{Split: &metapb.SplitOp{
		Child: uint64(child), At: &metapb.PosPB{Bucket: 1, Key: []byte(from)}, Generation: generation, ConfigIndex: 1,
		Replicas: []*metapb.ChildReplica{{Parent: fmt.Sprint("r", g), Child: fmt.Sprint("r", child), Drive: make([]byte, 16), Voter: true}},
	}}})
}

func (p *plane) Led() []cluster.GroupID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.ranges))
}

func (p *plane) Read(ctx context.Context, g cluster.GroupID, fn func(rangestate.Reader) error) error {
	if !pause(ctx, time.Millisecond) {
		return ctx.Err()
	}
	snapshot := p.db.NewSnapshot()
	defer snapshot.Close()
	v, err := rangestate.NewView(snapshot, g)
	if err != nil {
		return err
	}
	return fn(v)
}

func (p *plane) Propose(ctx context.Context, g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	if !pause(ctx, 5*time.Millisecond) {
		return nil, ctx.Err()
	}
	res, err := p.apply(g, cmd)
	if err == nil && !res.Ok {
		err = errs.New(errs.Kind(res.Kind), "plane", "", res.Detail)
	}
	return res, err
}

func (p *plane) Targets(context.Context) ([]*metapb.SysTarget, error) { return p.targets, nil }

// state sums up a range's outbox.
func (p *plane) state(g cluster.GroupID) (s rangestate.EventState) {
	p.t.Helper()
	err := p.Read(p.t.Context(), g, func(r rangestate.Reader) (err error) {
		s, err = r.EventState()
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *plane) queued() (n uint64) {
	for _, g := range p.Led() {
		for _, t := range p.state(g).Targets {
			n += t.Row.Queued
		}
	}
	return n
}

// counted sums up the counters of all ranges.
func (p *plane) counted() (delivered, dead, dropped int64) {
	p.t.Helper()
	for _, g := range p.Led() {
		err := p.Read(p.t.Context(), g, func(r rangestate.Reader) error {
			all, next, err := r.EventCounters(nil, 1000)
			for _, c := range all {
				delivered, dead, dropped = delivered+c.Row.Delivered, dead+c.Row.Dead, dropped+c.Row.Dropped
			}
			if next != nil {
				p.t.Error("more counters than there can be")
			}
			return err
		})
		if err != nil {
			p.t.Fatal(err)
		}
	}
	return delivered, dead, dropped
}

// worker starts one that sends all to a place.
func (p *plane) worker(to *place) *Worker {
	w, err := New(Config{Meta: p, Open: func(*metapb.SysTarget) (target.Target, error) { return to.opened(), nil }, Retention: time.Hour})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(w.Close)
	return w
}

// sequencer is the record's.
func sequencer(t *testing.T, m target.Message) string {
	var doc struct {
		Records []struct {
			S3 struct{ Object struct{ Sequencer string } }
		}
	}
	if err := json.Unmarshal(m.Body, &doc); err != nil || len(doc.Records) != 1 {
		t.Fatal(err, string(m.Body))
	}
	return doc.Records[0].S3.Object.Sequencer
}

// TestOnRangestate delivers from real ranges that split meanwhile, to a target that fails at every turn: by the sequencers, the events of every
// key come in order, each once.
func TestOnRangestate(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newPlane(t, &metapb.SysTarget{Name: "a", Kind: "webhook"})
		rnd, to := rand.New(rand.NewPCG(1, 2)), &place{}
		to.take = func(batch []target.Message) (int, error) {
			for i, m := range batch {
				switch {
				case m.Key == "p":
					return i, &target.Rejected{Err: errors.New("not this one")}
				case rnd.IntN(40) == 0:
					return i, errors.New("busy")
				}
			}
			return len(batch), nil
		}
		to.down = true
		p.worker(to)
		keys, owner := "abcdefghijklmnop", func(string) cluster.GroupID { return 10 }
		wanted, refused := int64(0), int64(0)
		writes := func(n int) {
			for i := range n {
				k := keys[i*7%len(keys)]
				if wanted++; k == 'p' {
					refused++
				}
				p.put(owner(string(k)), string(k), "STANDARD")
				if i%10 == 0 {
					time.Sleep(20 * time.Millisecond)
				}
			}
		}
		writes(300)
		p.split(10, 11, "f")
		owner = func(k string) cluster.GroupID { return map[bool]cluster.GroupID{true: 11, false: 10}[k >= "f"] }
		writes(300)
		p.split(11, 12, "k")
		before := owner
		owner = func(k string) cluster.GroupID { return map[bool]cluster.GroupID{true: 12, false: before(k)}[k >= "k"] }
		writes(300)
		to.set(func(p *place) { p.down = false })
		writes(300)
		for end := time.Now().Add(time.Hour); p.queued() > 0; time.Sleep(time.Second) {
			if time.Now().After(end) {
				t.Fatalf("%d events still wait", p.queued())
			}
		}
		time.Sleep(5 * time.Second)
		last, count := map[string]string{}, 0
		for _, m := range to.messages() {
			s := sequencer(t, m)
			if s <= last[m.Key] {
				t.Errorf("%s: %s comes behind %s", m.Key, s, last[m.Key])
			}
			last[m.Key] = s
			count++
		}
		delivered, dead, dropped := p.counted()
		if delivered != wanted-refused || dead != refused || dropped != 0 || count != int(delivered) {
			t.Errorf("%d delivered, %d dead, %d dropped, %d came", delivered, dead, dropped, count)
		}
		for _, g := range p.Led() {
			if s := p.state(g); s.Log.WaitGroup != 0 || s.Log.Rows == 0 {
				t.Errorf("range %d: %v", g, s.Log)
			}
		}
		time.Sleep(time.Hour + 2*trimIdle)
		for _, g := range p.Led() {
			if s := p.state(g); s.Log.Rows != 0 || s.Log.Bytes != 0 {
				t.Errorf("range %d keeps %v", g, s.Log)
			}
		}
	})
}

// TestRestoreOnRangestate: what comes with time comes to the target, though nobody writes anything then.
func TestRestoreOnRangestate(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p, to := newPlane(t, &metapb.SysTarget{Name: "a", Kind: "webhook"}), &place{}
		w := p.worker(to)
		p.put(10, "k", "DEEP_ARCHIVE")
		time.Sleep(time.Hour)
		ready, over := time.Now().Add(12*time.Hour), time.Now().Add(36*time.Hour)
		p.must(10, &metapb.RangeCommand{Op: &metapb.RangeCommand_UpdateVersion{UpdateVersion: &metapb.UpdateVersionOp{
			Bucket: 1, Key: []byte("k"), Change: &metapb.UpdateVersionOp_Restore{Restore: &metapb.Restore{ReadyMs: ready.UnixMilli(), ExpiresMs: over.UnixMilli(), Tier: "Standard"}},
		}}})
		w.Poke()
		came := func(at time.Time, want ...string) {
			t.Helper()
			time.Sleep(time.Until(at))
			var got []string
			for _, m := range to.messages() {
				got = append(got, m.Event)
			}
			if !slices.Equal(got, want) {
				t.Errorf("came: %v, want %v", got, want)
			}
		}
		came(ready.Add(-time.Second), "ObjectCreated:Put", "ObjectRestore:Post")
		came(ready.Add(3*time.Second), "ObjectCreated:Put", "ObjectRestore:Post", "ObjectRestore:Completed")
		came(over.Add(-time.Second), "ObjectCreated:Put", "ObjectRestore:Post", "ObjectRestore:Completed")
		came(over.Add(3*time.Second), "ObjectCreated:Put", "ObjectRestore:Post", "ObjectRestore:Completed", "ObjectRestore:Delete")
		time.Sleep(5 * time.Second)
		if s := p.state(10); s.Timers {
			t.Error("a timer is left")
		}
	})
}
