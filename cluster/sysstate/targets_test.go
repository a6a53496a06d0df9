package sysstate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

func aTarget(name string) *metapb.SysTarget {
	return &metapb.SysTarget{Name: name, Kind: "log"}
}

// notifies is a change of a bucket's configuration to one whose rules name targets, as a queue, a topic and a function in turn; none: no rules.
func notifies(bucket uint64, targets ...string) *metapb.SetBucketConfigOp {
	cfg := &metapb.NotificationConfig{EventBridge: true}
	for i, name := range targets {
		kind := metapb.NotificationRule_Kind(1 + i%3)
		arn := []string{"arn:aws:sns:us-east-1:1:" + name, "arn:aws:sqs:::" + name, "arn:aws:lambda:::function:" + name + ":$LATEST"}[i%3]
		cfg.Rules = append(cfg.Rules, &metapb.NotificationRule{Id: fmt.Sprint(i), Kind: kind, Arn: arn, Events: []string{"s3:ObjectCreated:Put"}, Prefix: fmt.Sprint(i, "/")})
	}
	return &metapb.SetBucketConfigOp{Bucket: bucket, Notification: &metapb.SetNotification{Config: cfg}}
}

func silent(bucket uint64) *metapb.SetBucketConfigOp {
	return &metapb.SetBucketConfigOp{Bucket: bucket, Notification: &metapb.SetNotification{}}
}

func targetNames(t *testing.T, s *sim) (names []string) {
	t.Helper()
	all, err := NewView(s.db).Targets()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range all {
		names = append(names, g.Name)
	}
	return names
}

func TestTargets(t *testing.T) {
	s := newSim(t)
	put := func(g *metapb.SysTarget, replace bool) *metapb.PutTargetOp {
		return &metapb.PutTargetOp{Target: g, Replace: replace}
	}
	first := aTarget("b.first-1_")
	first.Settings, first.Secrets = []*metapb.KV{{Name: "url", Value: "u"}}, []*metapb.SealedKV{{Name: "token", Sealed: []byte("sealed")}}
	first.CreatedMs, first.Generation, first.QueueMax, first.WhenFull, first.AgeMaxMs, first.CloudEvents = 7, 9, 11, metapb.WhenFull_HOLD_WRITES, 13, true
	s.ms = 5000
	if r := s.ok(put(first, false)); r.Config != 0 || r.Version != 1 {
		t.Errorf("a target is a change of what gateways hold: %v", r)
	}
	s.ms = 6000
	s.ok(put(aTarget("a"), true)) // which there is not yet
	want := first.CloneVT()
	want.Format, want.CreatedMs, want.Generation = 1, 5000, 1
	if got, err := NewView(s.db).Target("b.first-1_"); err != nil || !got.EqualVT(want) {
		t.Errorf("%v, %v", got, err)
	}
	if got := targetNames(t, s); !slices.Equal(got, []string{"a", "b.first-1_"}) {
		t.Error(got)
	}
	s.refused(errs.Conflict, put(aTarget("b.first-1_"), false))
	s.ok(put(aTarget("b.first-1_"), true))
	if got, err := Target(s.db, "b.first-1_"); err != nil || got.CreatedMs != 5000 || got.Generation != 2 || got.Settings != nil || got.CloudEvents {
		t.Errorf("replaced: %v, %v", got, err)
	}
	large := aTarget("large")
	large.Settings = []*metapb.KV{{Name: "a", Value: strings.Repeat("x", targetBytesMax/2)}}
	large.Secrets = []*metapb.SealedKV{{Name: "b", Sealed: make([]byte, targetBytesMax/2)}}
	for name, g := range map[string]*metapb.SysTarget{
		"none": nil, "no name": aTarget(""), "a long name": aTarget(strings.Repeat("x", 81)), "a colon": aTarget("a:b"), "a dot": aTarget("."), "two dots": aTarget(".."), "a letter": aTarget("ä"), "a slash": aTarget("a/b"),
		"no kind": {Name: "a"}, "a long kind": {Name: "a", Kind: strings.Repeat("k", 256)}, "too much": large, "an age": {Name: "a", Kind: "log", AgeMaxMs: -1}, "a policy": {Name: "a", Kind: "log", WhenFull: 7},
	} {
		if r := s.refused(errs.InvalidArgument, put(g, true)); r.Detail == "" {
			t.Error(name)
		}
	}
	s.ok(put(aTarget(strings.Repeat("x", 80)), false))
	s.refused(errs.NotFound, &metapb.RemoveTargetOp{Name: "c"})
	s.refused(errs.NotFound, &metapb.RemoveTargetOp{Force: true})
	s.ok(&metapb.RemoveTargetOp{Name: "a"})
	if _, err := Target(s.db, "a"); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	s.ok(put(aTarget("a"), false))
	if got, err := Target(s.db, "a"); err != nil || got.Generation != 1 {
		t.Errorf("removed and put again: %v, %v", got, err)
	}
	for i := range targetsMax - 3 {
		s.ok(put(aTarget(fmt.Sprintf("n%04d", i)), false))
	}
	s.refused(errs.EntityTooLarge, put(aTarget("one-more"), false))
	s.refused(errs.EntityTooLarge, put(aTarget("one-more"), true))
	s.ok(put(aTarget("n0500"), true))
	s.ok(&metapb.RemoveTargetOp{Name: "n0500"})
	s.ok(put(aTarget("one-more"), false))
}

// Pages end where they have been told to, and together they are all there is.
func TestTargetsPage(t *testing.T) {
	s := newSim(t)
	var want []string
	for i := range 10 {
		g := aTarget(fmt.Sprintf("t%d", i))
		g.Settings = []*metapb.KV{{Name: "s", Value: strings.Repeat("x", 1000*i)}}
		s.ok(&metapb.PutTargetOp{Target: g})
		want = append(want, g.Name)
	}
	for _, c := range []struct{ max, bytes, pages int }{{1000, 1 << 20, 1}, {10, 1 << 20, 1}, {3, 1 << 20, 4}, {1, 1, 10}, {1000, 1, 10}, {1000, 11000, 7}} {
		var got []string
		pages := 0
		for more := true; more && pages < 20; pages++ {
			after := ""
			if len(got) > 0 {
				after = got[len(got)-1]
			}
			page, m, err := TargetsPage(s.db, after, c.max, c.bytes)
			if err != nil || len(page) == 0 || len(page) > c.max {
				t.Fatal(len(page), err)
			}
			size := 0
			for _, g := range page {
				got, size = append(got, g.Name), size+g.SizeVT()
			}
			if size > c.bytes && len(page) > 1 {
				t.Errorf("%+v: %d bytes", c, size)
			}
			more = m
		}
		if !slices.Equal(got, want) || c.pages < 7 && pages != c.pages {
			t.Errorf("%+v: %v in %d pages", c, got, pages)
		}
	}
}

// A configuration is put only if its targets exist, and they only go by force as long as it is there.
func TestNotificationConfigurations(t *testing.T) {
	s := newSim(t)
	s.ok(create("b", "ann"))
	s.refused(errs.BucketBusy, notifies(1))
	s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: bCreating, To: bActive})
	born := create("born", "ann")
	born.Bucket.Notification = notifies(1).Notification.Config
	s.refused(errs.InvalidArgument, born)
	for _, name := range []string{"q", "t", "f", "qq"} {
		s.ok(&metapb.PutTargetOp{Target: aTarget(name)})
	}
	kept := func(want *metapb.NotificationConfig) {
		t.Helper()
		if row, err := BucketByID(s.db, 1); err != nil || !row.Notification.EqualVT(want) {
			t.Fatalf("%v, %v", row, err)
		}
	}
	held := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if r := s.refused(errs.Conflict, &metapb.RemoveTargetOp{Name: name}); !strings.Contains(r.Detail, "bucket b ") {
				t.Error(r.Detail)
			}
		}
	}
	op := notifies(1, "t", "q", "f")
	r := s.ok(op)
	if b := r.Bucket; b.Generation != 3 || b.Notification != nil || r.Config == 0 {
		t.Error("the ranges and the gateways need it, results do not: ", r)
	}
	if p, err := PendingBuckets(s.db, 0, 10); err != nil || len(p) != 1 || p[0].Notification != nil {
		t.Error(p, err)
	}
	if p, err := AllBuckets(s.db, 0, 10); err != nil || len(p) != 1 || p[0].Notification != nil {
		t.Error(p, err)
	}
	if p, _, err := ListBuckets(s.db, "ann", "", "", 10); err != nil || len(p) != 1 || p[0].Notification != nil {
		t.Error(p, err)
	}
	s.ok(&metapb.BucketRowsDoneOp{Bucket: 1, Generation: 3})
	kept(op.Notification.Config)
	held("t", "q", "f")
	s.ok(&metapb.RemoveTargetOp{Name: "qq"})
	// What else a command would do is not done either.
	bad := notifies(1, "t", "q", "gone")
	bad.Tags, bad.Versioning = &metapb.Tags{Tags: []*metapb.KV{{Name: "n", Value: "v"}}}, metapb.Versioning_VERSIONING_ENABLED
	if r := s.refused(errs.NotFound, bad); r.Detail != "arn:aws:lambda:::function:gone:$LATEST" {
		t.Errorf("it is not the ARN: %q", r.Detail)
	}
	if r := s.refused(errs.NotFound, notifies(1, strings.Repeat("x", 200))); !strings.HasPrefix(r.Detail, "arn:aws:sns:us-east-1:1:xxx") {
		t.Error(r.Detail)
	}
	noARN, long, many := notifies(1, "t"), notifies(1, "t"), notifies(1, slices.Repeat([]string{"t"}, 101)...)
	noARN.Notification.Config.Rules[0].Arn = "t"
	long.Notification.Config.Rules[0].Prefix = strings.Repeat("x", notificationMax)
	for _, op := range []*metapb.SetBucketConfigOp{noARN, long, many} {
		s.refused(errs.InvalidArgument, op)
	}
	kept(op.Notification.Config)
	// A change of something else leaves it.
	s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Versioning: metapb.Versioning_VERSIONING_ENABLED})
	kept(op.Notification.Config)
	held("t", "q", "f")
	next := notifies(1, "q", "q", "q")
	s.ok(next)
	kept(next.Notification.Config)
	s.ok(&metapb.RemoveTargetOp{Name: "t"})
	held("q")
	s.ok(&metapb.RemoveTargetOp{Name: "q", Force: true})
	kept(next.Notification.Config)
	s.refused(errs.NotFound, next)
	s.ok(&metapb.PutTargetOp{Target: aTarget("q")})
	held("q")
	s.ok(notifies(1)) // EventBridge alone
	s.ok(&metapb.RemoveTargetOp{Name: "q"})
	s.ok(silent(1))
	kept(nil)
	s.ok(notifies(1, "f"))
	s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: bActive, To: bDeleting})
	held("f")
	s.ok(&metapb.RemoveBucketOp{Bucket: 1})
	s.ok(&metapb.RemoveTargetOp{Name: "f"})
}

// TestRandomTargets compares targets and what names them with a model.
func TestRandomTargets(t *testing.T) {
	for seed := range uint64(4) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		s := newSim(t)
		targets := map[string]uint64{}   // their generations
		buckets := map[uint64][]string{} // what the active ones name
		next := uint64(1)                // bucket
		name := func() string { return fmt.Sprint("t", rnd.IntN(5)) }
		for range 200 {
			var op any
			var want errs.Kind
			switch n := name(); rnd.IntN(6) {
			case 0, 1:
				replace := rnd.IntN(2) == 0
				op = &metapb.PutTargetOp{Target: aTarget(n), Replace: replace}
				if targets[n] > 0 && !replace {
					want = errs.Conflict
				} else {
					targets[n]++
				}
			case 2:
				force := rnd.IntN(3) == 0
				op = &metapb.RemoveTargetOp{Name: n, Force: force}
				named := false
				for _, names := range buckets {
					named = named || slices.Contains(names, n)
				}
				switch {
				case targets[n] == 0:
					want = errs.NotFound
				case named && !force:
					want = errs.Conflict
				default:
					delete(targets, n)
				}
			case 3:
				s.ok(create(fmt.Sprint("b", next), "ann"))
				op = &metapb.SetBucketStateOp{Bucket: next, From: bCreating, To: bActive}
				buckets[next] = nil
				next++
			default:
				if len(buckets) == 0 {
					continue
				}
				ids := slices.Sorted(maps.Keys(buckets))
				id := ids[rnd.IntN(len(ids))]
				if rnd.IntN(8) == 0 {
					s.ok(&metapb.SetBucketStateOp{Bucket: id, From: bActive, To: bDeleting})
					op = &metapb.RemoveBucketOp{Bucket: id}
					delete(buckets, id)
					break
				}
				var names []string
				for range rnd.IntN(4) {
					n := name()
					if names = append(names, n); targets[n] == 0 {
						want = errs.NotFound
					}
				}
				if op = notifies(id, names...); want == 0 {
					buckets[id] = names
				}
			}
			if want != 0 {
				s.refused(want, op)
			} else {
				s.ok(op)
			}
		}
		if got := targetNames(t, s); !slices.Equal(got, slices.Sorted(maps.Keys(targets))) {
			t.Fatalf("seed %d: %v, want %v", seed, got, targets)
		}
		for n, generation := range targets {
			if g, err := Target(s.db, n); err != nil || g.Generation != generation {
				t.Fatalf("seed %d: %v, %v, want generation %d", seed, g, err, generation)
			}
		}
		marks := map[string]bool{}
		for id, names := range buckets {
			row, err := BucketByID(s.db, storage.BucketID(id))
			if err != nil {
				t.Fatal(err)
			}
			if cfg := notifies(id, names...).Notification.Config; row.Notification != nil && !row.Notification.EqualVT(cfg) || row.Notification == nil && len(names) > 0 {
				t.Fatalf("seed %d: bucket %d has %v", seed, id, row.Notification)
			}
			for _, n := range names {
				marks[string(namedKey(n, id))] = true
			}
		}
		start, end := kindSpan(kindNamed)
		err := scan(s.db, start, end, func(k, _ []byte) (bool, error) {
			if !marks[string(k)] {
				t.Errorf("seed %d: a mark %q of nothing", seed, k)
			}
			delete(marks, string(k))
			return true, nil
		})
		if err != nil || len(marks) > 0 {
			t.Errorf("seed %d: without marks: %v, %v", seed, marks, err)
		}
	}
}
