package core

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/s3api"
	"cairn/s3api/objects"
	"cairn/server/config"
	"cairn/server/status"
	"cairn/server/target"
	"cairn/server/targets"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// inbox is a target in memory.
type inbox struct {
	mu     sync.Mutex
	got    []target.Message
	down   error
	refuse string // events of this key
	opened int
	closed int
}

func (b *inbox) Send(_ context.Context, batch []target.Message) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down != nil {
		return 0, b.down
	}
	for i, m := range batch {
		if m.Key != "" && m.Key == b.refuse {
			return i, &target.Rejected{Err: errors.New("not this one")}
		}
		b.got = append(b.got, m)
	}
	return len(batch), nil
}

func (b *inbox) Check(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.down
}

func (b *inbox) Close() error { b.mu.Lock(); defer b.mu.Unlock(); b.closed++; return nil }

func (b *inbox) set(down error, refuse string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down, b.refuse = down, refuse
}

// take answers what came, as event and key, and forgets it.
func (b *inbox) take() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.got {
		out = append(out, m.Event+" "+m.Key)
	}
	b.got = nil
	return out
}

// eventStore is a store whose targets are inboxes by name.
type eventStore struct {
	*testing.T
	*Core
	inboxes map[string]*inbox
	acct    objects.Account
}

func openEvents(t *testing.T, fs vfsx.FS, faked bool) *eventStore {
	t.Helper()
	s := &eventStore{T: t, inboxes: map[string]*inbox{"mine": {}, "default": {}}, acct: objects.Account{ID: "owner"}}
	cfg := config.Default()
	cfg.DataDir, cfg.CacheBytes, cfg.BufferBytes, cfg.Reserve = "/data", 4<<20, 32<<20, 1
	var err error
	s.Core, err = Open(t.Context(), cfg, Env{FS: fs, Tune: func(tune *Tuning) {
		tune.Raft.HeartbeatTimeout, tune.Raft.LogMemTableBytes, tune.Raft.StateMemTableBytes = 200*time.Millisecond, 1<<20, 1<<20
		tune.Drive = func(d *drive.Config) { d.ExtentBytes, d.MemTableBytes, d.FlushBytes = 8<<20, 256<<10, 2<<20 }
		if faked {
			tune.OpenTarget = s.open
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *eventStore) open(t *metapb.SysTarget) (target.Target, error) {
	if t.Kind == "log" {
		return nil, nil
	}
	b := s.inboxes[t.Name]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened++
	return b, nil
}

func (s *eventStore) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// webhook is a target that is valid, and that nobody dials.
func webhook(name string) *metapb.SysTarget {
	return &metapb.SysTarget{Name: name, Kind: "webhook", Settings: []*metapb.KV{{Name: "url", Value: "http://127.0.0.1:1/"}}}
}

// bucket makes a bucket whose creations and deletions go to a target, and all its events to EventBridge if that is said.
func (s *eventStore) bucket(name, to string, bridge bool) {
	s.Helper()
	s.must(s.Objects.CreateBucket(s.Context(), s.acct, name, objects.BucketOptions{Region: "us-east-1"}))
	s.must(s.Objects.PutBucketNotification(s.Context(), s.acct, name, &metapb.NotificationConfig{EventBridge: bridge, Rules: []*metapb.NotificationRule{{
		Id: "rule", Kind: metapb.NotificationRule_KIND_QUEUE, Arn: "arn:aws:sqs:us-east-1:0:" + to, Events: []string{"s3:ObjectCreated:*", "s3:ObjectRemoved:*"},
	}}}))
}

type eventBody struct{ *bytes.Reader }

func (eventBody) Checksums() []*metapb.Checksum       { return nil }
func (eventBody) Algorithm() metapb.ChecksumAlgorithm { return metapb.ChecksumAlgorithm_CHECKSUM_NONE }
func (b eventBody) Size() int64                       { return b.Reader.Size() }

func (s *eventStore) put(bucket, key string) {
	s.Helper()
	_, err := s.Objects.PutObject(s.Context(), s.acct, &objects.PutInput{
		Bucket: bucket, Key: storage.Key(key), Body: eventBody{bytes.NewReader([]byte("x"))}, Attributes: &metapb.Attributes{},
	})
	s.must(err)
}

func (s *eventStore) tail(q TailQuery) (keys []string, position string, lost bool) {
	s.Helper()
	s.must(s.Events.Tail(s.Context(), q, func(l *status.EventLine) error {
		var r struct {
			EventName string
			S3        struct{ Object struct{ Key string } }
		}
		if lost = lost || l.Lost; l.Event == nil {
			return nil
		}
		s.must(json.Unmarshal(l.Event, &r))
		keys, position = append(keys, r.S3.Object.Key), l.Position
		return nil
	}))
	return keys, position, lost
}

func (s *eventStore) load(name string) status.EventLoad {
	s.Helper()
	st, err := s.Events.Status(s.Context())
	s.must(err)
	for _, l := range st.Targets {
		if l.Target == name {
			return l
		}
	}
	return status.EventLoad{}
}

// TestEvents: what happens to objects comes to targets, can be read and sent again, and is accounted for.
func TestEvents(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		ctx, mine := t.Context(), s.inboxes["mine"]
		s.must(s.Events.AddTarget(ctx, webhook("mine"), nil, false))
		s.must(s.Events.AddTarget(ctx, webhook("default"), nil, false))
		s.bucket("one", "mine", false)
		s.bucket("two", "mine", true)
		for i := range 5 {
			s.put("one", fmt.Sprint("a", i))
		}
		s.put("two", "b")
		time.Sleep(5 * time.Second)
		if got := mine.take(); len(got) != 6 || !slices.Contains(got, "ObjectCreated:Put a0") {
			t.Fatal("came:", got)
		}
		if got := s.inboxes["default"].take(); !slices.Equal(got, []string{"ObjectCreated:Put b"}) {
			t.Error("came to EventBridge:", got)
		}
		if l := s.load("mine"); l.Queued != 0 || l.Delivered != 6 || l.Kind != "webhook" {
			t.Errorf("%+v", l)
		}
		st, err := s.Events.Status(ctx)
		if s.must(err); len(st.Buckets) != 3 || st.Buckets[0].Bucket != "one" || st.Buckets[0].Delivered != 5 || st.Kept != 6 || len(st.Workers) != 2 {
			t.Errorf("%+v", st)
		}

		for max, want := range map[int]int{2: 0, 3: 3} {
			loads, buckets, err := s.Events.Counts(ctx, max)
			if s.must(err); len(loads) != 2 || loads[1].Delivered != 6 || len(buckets) != want {
				t.Errorf("%+v %+v", loads, buckets)
			}
		}
		if st := s.Status(ctx); len(st.Events) != 2 || st.Events[1].Target != "mine" || st.Events[1].Queued != 0 {
			t.Errorf("%+v", st.Events)
		}

		keys, at, _ := s.tail(TailQuery{Bucket: "one", From: "begin"})
		if !slices.Equal(keys, []string{"a0", "a1", "a2", "a3", "a4"}) {
			t.Error("tail:", keys)
		}
		if keys, _, _ := s.tail(TailQuery{From: "now"}); len(keys) != 0 {
			t.Error("from now on:", keys)
		}
		then := time.Now().Add(time.Second).Format(time.RFC3339)
		time.Sleep(5 * time.Second)
		s.put("one", "a5")
		for _, from := range []string{at, then} {
			if keys, _, lost := s.tail(TailQuery{Bucket: "one", From: from}); !slices.Equal(keys, []string{"a5"}) || lost {
				t.Errorf("from %s: %v, lost %v", from, keys, lost)
			}
		}
		for from, bucket := range map[string]string{"yesterday": "one", "begin": "none"} {
			if err := s.Events.Tail(ctx, TailQuery{Bucket: bucket, From: from}, nil); !errs.Is(err, errs.InvalidArgument) && !errs.Is(err, errs.NoSuchBucket) {
				t.Errorf("%s of %s: %v", from, bucket, err)
			}
		}

		time.Sleep(5 * time.Second)
		mine.take()
		p, err := s.Events.Replay(ctx, ReplayQuery{Target: "mine", Bucket: "one"}, nil)
		if s.must(err); p.Sent != 6 || p.Lost || len(mine.take()) != 6 {
			t.Errorf("replayed %+v", p)
		}
		if p, err := s.Events.Replay(ctx, ReplayQuery{Target: "mine", From: p.Position}, nil); err != nil || p.Sent != 0 {
			t.Errorf("replayed from the end %+v %v", p, err)
		}
		if _, err := s.Events.Replay(ctx, ReplayQuery{Target: "nobody"}, nil); !errs.Is(err, errs.NotFound) {
			t.Error(err)
		}
	})
}

// TestTailEnds: a tail that does not follow ends at what there was when it began, whatever goes on.
func TestTailEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		s.must(s.Events.AddTarget(t.Context(), &metapb.SysTarget{Name: "mine", Kind: "log"}, nil, false))
		s.bucket("one", "mine", false)
		for range 3 {
			s.put("one", "k")
		}
		lines := 0
		s.must(s.Events.Tail(t.Context(), TailQuery{From: "begin"}, func(l *status.EventLine) error {
			if lines++; lines < 20 {
				s.put("one", "k")
			}
			return nil
		}))
		if lines != 3 {
			t.Errorf("%d lines", lines)
		}
	})
}

// TestTailFromNowhere: a place that cannot be here is refused, and not waited for in silence.
func TestTailFromNowhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		s.must(s.Events.AddTarget(t.Context(), webhook("mine"), nil, false))
		s.bucket("one", "mine", false)
		s.put("one", "k")
		_, at, _ := s.tail(TailQuery{From: "begin"})
		p, err := ParsePosition(at)
		s.must(err)
		p[cluster.FirstRange]++
		taken := func(*status.EventLine) error { return errors.New("it was taken") }
		now := time.Now()
		for from, says := range map[string]string{p.String(): "of another store", now.Add(2 * time.Minute).Format(time.RFC3339): "in the future"} {
			for what, err := range map[string]error{
				"tail":   s.Events.Tail(t.Context(), TailQuery{From: from}, taken),
				"follow": s.Events.Tail(t.Context(), TailQuery{From: from, Follow: true}, taken),
				"replay": func() error {
					_, err := s.Events.Replay(t.Context(), ReplayQuery{Target: "mine", From: from}, nil)
					return err
				}(),
			} {
				if !errs.Is(err, errs.InvalidArgument) || !strings.Contains(err.Error(), says) {
					t.Errorf("%s from %s: %v", what, from, err)
				}
			}
		}
		for _, from := range []string{at, now.Add(30 * time.Second).Format(time.RFC3339)} {
			if keys, _, _ := s.tail(TailQuery{From: from}); len(keys) != 0 {
				t.Errorf("from %s: %v", from, keys)
			}
		}
	})
}

// TestTailFollows: a tail sees what happens while it runs, over a split too, and ends with its context.
func TestTailFollows(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		s.must(s.Events.AddTarget(t.Context(), &metapb.SysTarget{Name: "mine", Kind: "log"}, nil, false))
		s.bucket("one", "mine", false)
		s.put("one", "before")
		ctx, cancel := context.WithCancel(t.Context())
		var keys []string
		positions, done := 0, make(chan error)
		go func() {
			done <- s.Events.Tail(ctx, TailQuery{Bucket: "one", Follow: true}, func(l *status.EventLine) error {
				if l.Event == nil {
					positions++
					return nil
				}
				_, rest, _ := strings.Cut(string(l.Event), `"object":{"key":"`)
				key, _, _ := strings.Cut(rest, `"`)
				keys = append(keys, key)
				return nil
			})
		}()
		time.Sleep(time.Second)
		s.put("one", "k")
		b, err := s.Objects.HeadBucket(t.Context(), s.acct, "one")
		s.must(err)
		_, err = s.Splits.Split(t.Context(), cluster.FirstRange, cluster.Pos{Bucket: b.ID, Key: "b"})
		s.must(err)
		s.put("one", "k")
		s.put("one", "a")
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if slices.Sort(keys); !slices.Equal(keys, []string{"a", "k", "k"}) {
			t.Error("seen:", keys)
		}
		if positions < 3 {
			t.Errorf("%d lines with a position alone", positions)
		}
	})
}

// TestDeadLetters: what a target refuses is kept, and sent again when it is asked for.
func TestDeadLetters(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		ctx, mine := t.Context(), s.inboxes["mine"]
		s.must(s.Events.AddTarget(ctx, webhook("mine"), nil, false))
		s.bucket("one", "mine", false)
		mine.set(nil, "bad")
		s.put("one", "good")
		s.put("one", "bad")
		time.Sleep(5 * time.Second)
		if l := s.load("mine"); l.Delivered != 1 || l.Dead != 1 || l.DeadKept != 1 {
			t.Errorf("%+v", l)
		}
		var letters []*status.DeadEvent
		s.must(s.Events.DeadEvents(ctx, "", 10, func(d *status.DeadEvent) error { letters = append(letters, d); return nil }))
		if len(letters) != 1 || letters[0].Target != "mine" || !strings.Contains(letters[0].Error, "not this one") || !strings.Contains(string(letters[0].Event), `"bad"`) {
			t.Errorf("%+v", letters)
		}
		if p, err := s.Events.Replay(ctx, ReplayQuery{Target: "mine", Dead: true}, nil); err != nil || p.Sent != 0 || p.Refused != 1 {
			t.Errorf("refused again: %+v %v", p, err)
		}
		mine.set(nil, "")
		mine.take()
		if p, err := s.Events.Replay(ctx, ReplayQuery{Target: "mine", Dead: true}, nil); err != nil || p.Sent != 1 {
			t.Errorf("%+v %v", p, err)
		}
		if got := mine.take(); !slices.Equal(got, []string{"ObjectCreated:Put bad"}) {
			t.Error(got)
		}
		if l := s.load("mine"); l.DeadKept != 0 || l.Dead != 1 {
			t.Errorf("%+v", l)
		}
		mine.set(errors.New("away"), "")
		if p, err := s.Events.Replay(ctx, ReplayQuery{Target: "mine"}, nil); !errs.Is(err, errs.InvalidRequest) || p.Sent != 0 || !strings.Contains(err.Error(), "away") {
			t.Errorf("a target that is away: %+v %v", p, err)
		}
	})
}

// TestRemoveTarget: a target that is needed goes only by force.
func TestRemoveTarget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		ctx, mine := t.Context(), s.inboxes["mine"]
		if err := s.Events.RemoveTarget(ctx, "mine", true); !errs.Is(err, errs.NotFound) {
			t.Error(err)
		}
		s.must(s.Events.AddTarget(ctx, webhook("mine"), nil, false))
		if err := s.Events.AddTarget(ctx, webhook("mine"), nil, false); !errs.Is(err, errs.Conflict) {
			t.Error(err)
		}
		s.must(s.Events.AddTarget(ctx, webhook("mine"), nil, true))
		if err := s.Events.AddTarget(ctx, &metapb.SysTarget{Name: "other", Kind: "pigeon"}, nil, false); !errs.Is(err, errs.InvalidArgument) {
			t.Error(err)
		}
		s.bucket("one", "mine", false)
		mine.set(errors.New("away"), "")
		s.put("one", "k")
		err := s.Events.RemoveTarget(ctx, "mine", false)
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "wait for it: 1") || !strings.Contains(err.Error(), "one") || !strings.Contains(err.Error(), "--force") {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if st, err := s.Events.Status(ctx); err != nil || len(st.Workers) != 1 || st.Workers[0].Error == "" || st.Workers[0].Retry == nil {
			t.Errorf("%+v %v", st, err)
		}
		s.must(s.Events.RemoveTarget(ctx, "mine", true))
		time.Sleep(2 * time.Minute)
		if l := s.load("mine"); l.Queued != 0 || l.Dropped != 1 || l.Kind != "" {
			t.Errorf("%+v", l)
		}
	})
}

// TestRemoveDefault: the bus goes only by force while a bucket sends to EventBridge.
func TestRemoveDefault(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		ctx := t.Context()
		s.must(s.Events.AddTarget(ctx, webhook("mine"), nil, false))
		s.must(s.Events.AddTarget(ctx, webhook("default"), nil, false))
		s.bucket("plain", "mine", false)
		s.bucket("bridged", "mine", true)
		err := s.Events.RemoveTarget(ctx, "default", false)
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "EventBridge, of bridged:") {
			t.Error(err)
		}
		s.must(s.Objects.PutBucketNotification(ctx, s.acct, "bridged", nil))
		s.must(s.Events.RemoveTarget(ctx, "default", false))
	})
}

// TestDeadLettersOfGone: dead letters keep a target from going, outlive one that went, and go by force.
func TestDeadLettersOfGone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		ctx, mine := t.Context(), s.inboxes["mine"]
		remove := func() error {
			_, err := s.Meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_RemoveTarget{RemoveTarget: &metapb.RemoveTargetOp{Name: "mine"}}})
			return err
		}
		letters := func(name string) (n int) {
			t.Helper()
			s.must(s.Events.DeadEvents(ctx, name, 1000, func(d *status.DeadEvent) error {
				if n++; d.Target != "mine" {
					t.Errorf("%+v", d)
				}
				return nil
			}))
			return n
		}
		s.must(s.Events.AddTarget(ctx, webhook("mine"), nil, false))
		s.bucket("one", "mine", false)
		mine.set(nil, "bad")
		const many = deadPage + 5
		for range many {
			s.put("one", "bad")
		}
		time.Sleep(time.Minute)
		s.must(s.Objects.PutBucketNotification(ctx, s.acct, "one", nil))
		err := s.Events.RemoveTarget(ctx, "mine", false)
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), fmt.Sprint(many, " dead letters are kept for it")) {
			t.Error(err)
		}
		s.must(remove()) // past the check
		if n, all := letters("mine"), letters(""); n != many || all != many {
			t.Errorf("%d and %d dead letters of a target that is gone", n, all)
		}
		if err := s.Events.RemoveTarget(ctx, "mine", false); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "--force") {
			t.Error(err)
		}
		s.must(s.Events.RemoveTarget(ctx, "mine", true))
		if l, n := s.load("mine"), letters(""); l.DeadKept != 0 || l.Dead != many || n != 0 {
			t.Errorf("%+v, %d dead letters", l, n)
		}
		for _, force := range []bool{true, false} {
			if err := s.Events.RemoveTarget(ctx, "mine", force); !errs.Is(err, errs.NotFound) {
				t.Error("nothing is left of it:", err)
			}
		}
		if err := s.Events.DeadEvents(ctx, "mine", 10, nil); !errs.Is(err, errs.NotFound) {
			t.Error(err)
		}

		// One that is there goes together with them.
		s.must(s.Events.AddTarget(ctx, webhook("mine"), nil, false))
		s.bucket("two", "mine", false)
		s.put("two", "bad")
		time.Sleep(time.Minute)
		if n := letters("mine"); n != 1 {
			t.Errorf("%d dead letters", n)
		}
		s.must(s.Events.RemoveTarget(ctx, "mine", true))
		if n := letters(""); n != 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// TestAnnounce: nothing is sent unless all would take it, and every one that would not is named.
func TestAnnounce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := openEvents(t, vfsx.NewMem(), true)
		defer func() { s.must(s.Close()) }()
		ctx, mine, other := t.Context(), s.inboxes["mine"], s.inboxes["default"]
		s.must(s.Events.AddTarget(ctx, webhook("mine"), nil, false))
		s.must(s.Events.AddTarget(ctx, webhook("default"), nil, false))
		s.must(s.Events.AddTarget(ctx, &metapb.SysTarget{Name: "log", Kind: "log"}, nil, false))
		other.set(errors.New("away"), "")
		err := s.Events.Announce(ctx, "b", []string{"mine", "default", "nobody", "log"}, []byte("{}"))
		var failed *s3api.DestinationError
		if !errors.As(err, &failed) || len(failed.Failed) != 2 || failed.Failed[0].Target != "default" || failed.Failed[0].Reason != "away" || failed.Failed[0].Unknown || failed.Failed[1].Target != "nobody" || !failed.Failed[1].Unknown {
			t.Error(err)
		}
		if got := mine.take(); len(got) != 0 {
			t.Error("sent all the same:", got)
		}
		other.set(nil, "")
		s.must(s.Events.Announce(ctx, "b", []string{"mine", "default", "log"}, []byte("{}")))
		if got := append(mine.take(), other.take()...); !slices.Equal(got, []string{"TestEvent ", "TestEvent "}) {
			t.Error(got)
		}
		s.must(s.Events.TestTarget(ctx, "mine"))
		mine.set(errors.New("away"), "")
		if err := s.Events.TestTarget(ctx, "mine"); !errs.Is(err, errs.InvalidRequest) || !strings.Contains(err.Error(), "away") {
			t.Error(err)
		}
		if err := s.Events.TestTarget(ctx, "nobody"); !errs.Is(err, errs.NotFound) {
			t.Error(err)
		}
		if mine.opened-mine.closed > 1 || other.opened-other.closed > 1 {
			t.Errorf("%d and %d targets are left open", mine.opened-mine.closed, other.opened-other.closed)
		}
	})
}

// TestTargetSecrets: secrets are kept sealed, under a key that outlives the process.
func TestTargetSecrets(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fs := vfsx.NewMem()
		s := openEvents(t, fs, false)
		row := func() (row *metapb.SysTarget) {
			t.Helper()
			s.must(s.Meta.SysRead(t.Context(), func(r pebble.Reader) (err error) { row, err = sysstate.Target(r, "mine"); return err }))
			return row
		}
		if _, err := s.Events.sealKey(false); !errs.Is(err, errs.NotFound) {
			t.Error("a key before there is a secret:", err)
		}
		s.must(s.Events.AddTarget(t.Context(), webhook("mine"), map[string]string{"secret": "open sesame"}, false))
		if b, err := row().MarshalVT(); err != nil || bytes.Contains(b, []byte("sesame")) || !bytes.Contains(b, []byte("secret")) {
			t.Errorf("%q %v", b, err)
		}
		list, err := s.Events.ListTargets(t.Context())
		if s.must(err); len(list) != 1 || !slices.Equal(list[0].Secrets, []string{"secret"}) || list[0].Settings["url"] == "" || list[0].WhenFull != "drop" {
			t.Errorf("%+v", list)
		}
		s.must(s.Close())

		s = openEvents(t, fs, false)
		to, err := s.Events.openTarget(row())
		s.must(err)
		s.must(to.Close())
		s.must(fs.Remove("/data/" + eventKeyName))
		if _, err := s.Events.openTarget(row()); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "--replace") {
			t.Error("without the key:", err)
		}
		s.must(s.Events.AddTarget(t.Context(), webhook("mine"), map[string]string{"secret": "other"}, true))
		if to, err = s.Events.openTarget(row()); err != nil {
			t.Fatal(err)
		}
		s.must(to.Close())
		s.must(s.Close())
	})
}

// TestSealKeyOfCluster: nodes have the key without a file.
func TestSealKeyOfCluster(t *testing.T) {
	for _, plaintext := range []bool{true, false} {
		fs := vfsx.NewMem()
		var keys []targets.SealKey
		for range 2 {
			c, err := openFirst(t, fs, plaintext, "127.0.0.1:9002")
			if err != nil {
				t.Fatal(err)
			}
			k, err := c.Events.sealKey(false)
			if keys = append(keys, k); err != nil {
				t.Error(err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if keys[0] != keys[1] || keys[0] == (targets.SealKey{}) {
			t.Error("another key after a restart, plaintext", plaintext)
		}
		if _, err := fs.Stat("/data/" + eventKeyName); err == nil {
			t.Error("a file was made")
		}
	}
}
