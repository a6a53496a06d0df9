package background

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

// aDay is short, because all the store's heartbeats go on while it passes.
const aDay = 2 * time.Minute

// lifecycleStore runs test on a fresh store in fake time, with short days.
func lifecycleStore(t *testing.T, test func(s *store)) {
	bubble.Test(t, func(t *testing.T) {
		s := &store{T: t, fs: vfsx.NewMem(), rnd: rand.New(rand.NewPCG(seed.Of(t), 0)), want: map[string][]byte{}, day: aDay}
		s.open(true)
		t.Cleanup(s.close)
		time.Sleep(aDay / 2) // away from midnight
		test(s)
	})
}

// rules puts lifecycle rules, or removes them.
func (s *store) rules(all ...*metapb.LifecycleRule) {
	s.Helper()
	var cfg *metapb.LifecycleConfig
	if len(all) > 0 {
		cfg = &metapb.LifecycleConfig{Rules: all}
	}
	if err := s.Objects.PutBucketLifecycle(s.Context(), harness.Account, "bucket", cfg); err != nil {
		s.Fatal(err)
	}
}

func rule(id, prefix string) *metapb.LifecycleRule {
	return &metapb.LifecycleRule{Id: id, Filter: &metapb.LifecycleFilter{Prefix: prefix}}
}

func expiring(prefix string, days uint32) *metapb.LifecycleRule {
	r := rule("expire "+prefix, prefix)
	r.Expiration = &metapb.LifecycleExpiration{Days: days}
	return r
}

func moving(prefix string, days uint32, class storage.StorageClass) *metapb.LifecycleRule {
	r := rule("move "+prefix, prefix)
	r.Transitions = []*metapb.LifecycleTransition{{Days: days, StorageClass: string(class)}}
	return r
}

// is reports whether a key is there.
func (s *store) is(key string) bool {
	s.Helper()
	_, err := s.Objects.HeadObject(s.Context(), harness.Account, &objects.GetInput{Bucket: "bucket", Key: storage.Key(key)})
	if err != nil && !errs.Is(err, errs.NoSuchKey) && !errs.Is(err, errs.IsDeleteMarker) {
		s.Fatal(key, err)
	}
	return err == nil
}

// row is a key's current version.
func (s *store) row(key string) (row *metapb.ObjectRow) {
	s.Helper()
	b, err := s.Objects.HeadBucket(s.Context(), harness.Account, "bucket")
	if err != nil {
		s.Fatal(err)
	}
	err = s.Meta.Read(s.Context(), b.ID, storage.Key(key), func(v rangestate.Reader) (err error) {
		row, err = v.Object(b.ID, storage.Key(key), nil)
		return err
	})
	if err != nil {
		s.Fatal(key, err)
	}
	return row
}

// wantClass checks that a version is of a class, by its row and by where its bytes lie.
func (s *store) wantClass(key string, class storage.StorageClass) {
	s.Helper()
	row := s.row(key)
	if got := row.GetAttributes().GetStorageClass(); got != string(class) {
		s.Fatalf("%s is of class %q, want %q", key, got, class)
	}
	s.wantIn(key, row, cmp.Or(class, storage.Standard))
}

// wantIn checks that the bytes of a version lie in the placement groups of a class.
func (s *store) wantIn(key string, row *metapb.ObjectRow, class storage.StorageClass) {
	s.Helper()
	t := s.Controller.Topology()
	refs := row.GetData().GetChunks()
	if row.GetData().GetUploadSeq() != 0 {
		b, err := s.Objects.HeadBucket(s.Context(), harness.Account, "bucket")
		if err == nil {
			err = s.Meta.Read(s.Context(), b.ID, storage.Key(key), func(v rangestate.Reader) error {
				segs, err := v.Segments(b.ID, storage.Key(key), row, 0, int64(row.Size), 1<<20)
				for _, seg := range segs {
					refs = append(refs, seg.Chunks...)
				}
				return err
			})
		}
		if err != nil || len(refs) == 0 {
			s.Fatal(key, err)
		}
	}
	for _, ref := range refs {
		if pg := t.PGs[storage.PGID(ref.Pg)]; placement.SameTarget(pg.Class) != placement.SameTarget(class) || ref.Missing != 0 {
			s.Fatalf("%s lies in placement group %d of class %s, missing %b", key, ref.Pg, pg.Class, ref.Missing)
		}
	}
}

func (s *store) versioning(on bool) {
	s.Helper()
	if err := s.Objects.PutBucketVersioning(s.Context(), harness.Account, "bucket", on); err != nil {
		s.Fatal(err)
	}
}

// versions are the versions and delete markers there are, newest first of each key: "key" and "key (marker)".
func (s *store) versions() (out []string) {
	s.Helper()
	page, err := s.Objects.ListVersions(s.Context(), harness.Account, &objects.ListVersionsInput{Bucket: "bucket", Max: 1000})
	if err != nil {
		s.Fatal(err)
	}
	for _, v := range page.Versions {
		name := string(v.Key)
		if v.DeleteMarker {
			name += " (marker)"
		}
		out = append(out, name)
	}
	return out
}

func TestLifecycleExpires(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		s.put("logs/old", 300_000)
		s.put("logs/tiny", 10)
		s.put("other", 5000)
		s.rules(expiring("logs/", 2))
		time.Sleep(aDay)
		s.put("logs/late", 5000)
		if !s.is("logs/old") || !s.is("logs/tiny") {
			s.Fatal("gone before its time")
		}
		time.Sleep(2 * aDay) // past the midnight after two days
		if s.is("logs/old") || s.is("logs/tiny") {
			s.Fatal("still there")
		}
		delete(s.want, "logs/old")
		delete(s.want, "logs/tiny")
		s.wantAll()
		if st := s.Lifecycle.Status(); st.Expired != 2 || st.LastErr != "" || len(st.Rules) != 1 || st.Rules[0].Done != 2 || st.Rules[0].Due != 0 {
			s.Fatalf("%+v", st)
		}
		time.Sleep(2 * aDay)
		if s.is("logs/late") {
			s.Fatal("the later one is still there")
		}
		delete(s.want, "logs/late")
		s.wantClean()
	})
}

// TestLifecycleRulesBindAtOnce: a rule that was removed or made longer before it acted does not act.
func TestLifecycleRulesBindAtOnce(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		s.put("a/x", 5000)
		s.put("b/x", 5000)
		s.put("c/x", 5000)
		s.rules(expiring("a/", 1), expiring("b/", 1), expiring("c/", 1))
		time.Sleep(aDay + aDay/4) // before the second midnight
		s.rules(expiring("b/", 5), expiring("c/", 1))
		time.Sleep(aDay / 2)
		if s.is("c/x") || !s.is("a/x") || !s.is("b/x") {
			s.Fatal(s.is("a/x"), s.is("b/x"), s.is("c/x"))
		}
		s.rules()
		time.Sleep(10 * aDay)
		if !s.is("a/x") || !s.is("b/x") {
			s.Fatal("expired by a rule that is gone")
		}
		s.rules(expiring("b/", 5)) // acts at once: the object is old enough
		time.Sleep(aDay / 2)
		if s.is("b/x") || !s.is("a/x") {
			s.Fatal("a new rule has not acted")
		}
		if lag := s.Lifecycle.Status(); len(lag.Rules) != 1 || lag.Rules[0].Due != 0 {
			s.Fatalf("%+v", lag)
		}
	})
}

func TestLifecycleVersions(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		s.versioning(true)
		r := expiring("k", 1)
		r.NoncurrentExpiration = &metapb.LifecycleNoncurrentExpiration{Days: 2, NewerNoncurrent: 1}
		s.rules(r)
		for range 4 {
			s.put("k", 3000)
			time.Sleep(time.Second)
		}
		time.Sleep(2 * aDay)
		if got := fmt.Sprint(s.versions()); got != "[k (marker) k k k k]" {
			s.Fatal(got)
		}
		time.Sleep(3 * aDay)
		if got := fmt.Sprint(s.versions()); got != "[k (marker) k]" {
			s.Fatal(got)
		}
		if s.is("k") {
			s.Fatal("expired, but there")
		}
		r.NoncurrentExpiration.NewerNoncurrent = 0
		s.rules(r) // the last goes, and then the marker with nothing behind it
		time.Sleep(aDay)
		if got := s.versions(); len(got) != 0 {
			s.Fatal(got)
		}
		delete(s.want, "k")
		s.wantClean()
	})
}

func TestLifecycleAborts(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		r := rule("abort", "up/")
		r.AbortDays = 1
		s.rules(r)
		s.upload("up/a", 5<<20)
		s.upload("other", 5<<20)
		time.Sleep(2 * aDay)
		page, err := s.Objects.ListUploads(s.Context(), harness.Account, &objects.ListUploadsInput{Bucket: "bucket", Max: 10})
		if err != nil || len(page.Uploads) != 1 || page.Uploads[0].Key != "other" {
			s.Fatalf("%+v %v", page, err)
		}
		s.wantClean()
	})
}

// TestLifecycleMoves: the bytes lie in the other class, are the same, and the old ones are gone.
func TestLifecycleMoves(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		s.fill()
		up, parts, data := s.upload("multi", 5<<20, 6<<20, 100_000)
		if _, err := s.Objects.CompleteUpload(s.Context(), harness.Account, &objects.CompleteInput{Bucket: "bucket", Key: "multi", UploadID: up.ID, Parts: parts}); err != nil {
			s.Fatal(err)
		}
		s.want["multi"] = data
		big := rule("big", "")
		big.Transitions = []*metapb.LifecycleTransition{{Days: 31, StorageClass: "ONEZONE_IA"}}
		small := rule("small", "small/")
		small.Filter.HasSizeGreater = true
		small.Transitions = []*metapb.LifecycleTransition{{Days: 1, StorageClass: "GLACIER_IR"}}
		tiny := rule("tiny", "shape/2")
		tiny.Filter.HasSizeGreater = true
		tiny.Transitions = []*metapb.LifecycleTransition{{Days: 31, StorageClass: "STANDARD_IA"}}
		s.rules(big, small, tiny)
		before := map[string]int64{}
		for key := range s.want {
			before[key] = s.row(key).ModifiedMs
		}
		time.Sleep(33 * aDay)
		s.wantAll()
		for key, p := range s.want {
			switch {
			case strings.HasPrefix(key, "small/"):
				s.wantClass(key, storage.GlacierIR)
			case key == "shape/2":
				s.wantClass(key, storage.StandardIA)
			case len(p) >= 128<<10:
				s.wantClass(key, storage.OnezoneIA)
			default:
				s.wantClass(key, "")
			}
			if s.row(key).ModifiedMs != before[key] {
				s.Fatalf("%s: another time", key)
			}
		}
		st := s.Lifecycle.Status()
		moved, bytes := int64(0), int64(0)
		for key, p := range s.want {
			if s.row(key).GetAttributes().GetStorageClass() == "" {
				continue
			}
			if moved++; len(p) > storage.InlineBytesMax {
				bytes += int64(len(p))
			}
		}
		if st.LastErr != "" || st.Transitioned != moved || st.MovedBytes != bytes {
			s.Fatalf("%+v; %d versions moved, %d bytes", st, moved, bytes)
		}
		s.wantClean()
		counters := map[string]int64{}
		for _, g := range s.Meta.AllRanges() {
			_ = s.Meta.ReadGroup(s.Context(), g.ID, func(v rangestate.Reader) error {
				all, err := v.Counters()
				for _, c := range all {
					counters[string(c.Class)] += c.Row.Objects
				}
				return err
			})
		}
		if counters["GLACIER_IR"] != 20 || counters["STANDARD_IA"] != 1 || counters["ONEZONE_IA"] == 0 || counters["STANDARD"] == 0 {
			s.Fatalf("counters %v", counters)
		}
	})
}

// TestLifecycleLocks: a lock keeps a version from every rule, and the rest goes on.
func TestLifecycleLocks(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		err := s.Objects.CreateBucket(s.Context(), harness.Account, "locks", objects.BucketOptions{Region: "us-east-1", ObjectLock: true})
		if err != nil {
			s.Fatal(err)
		}
		put := func(key string, a *metapb.Attributes) {
			s.Helper()
			_, err := s.Objects.PutObject(s.Context(), harness.Account, &objects.PutInput{Bucket: "locks", Key: storage.Key(key), Body: harness.NewBody([]byte("body")), Attributes: a})
			if err != nil {
				s.Fatal(err)
			}
		}
		for _, key := range []string{"hold", "kept", "free"} {
			a := &metapb.Attributes{LegalHold: key == "hold"}
			if key == "kept" {
				a.LockMode, a.LockUntilMs = "GOVERNANCE", time.Now().Add(6*aDay).UnixMilli()
			}
			put(key, a)
		}
		r := expiring("", 1)
		r.NoncurrentExpiration = &metapb.LifecycleNoncurrentExpiration{Days: 1}
		cfg := &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{r}}
		if err := s.Objects.PutBucketLifecycle(s.Context(), harness.Account, "locks", cfg); err != nil {
			s.Fatal(err)
		}
		want := func(want string) {
			s.Helper()
			page, err := s.Objects.ListVersions(s.Context(), harness.Account, &objects.ListVersionsInput{Bucket: "locks", Max: 100})
			if err != nil {
				s.Fatal(err)
			}
			got := []string{}
			for _, v := range page.Versions {
				if v.DeleteMarker {
					v.Key = "-" + v.Key
				}
				got = append(got, string(v.Key))
			}
			if fmt.Sprint(got) != want {
				s.Fatalf("%v, want %s", got, want)
			}
		}
		time.Sleep(5 * aDay)
		want("[-hold hold -kept kept]")
		if st := s.Lifecycle.Status(); st.Rules[0].Due != 0 || st.LastErr != "" {
			s.Fatalf("what is locked is not due: %+v", st)
		}
		time.Sleep(4 * aDay)
		want("[-hold hold]")
	})
}

// TestLifecycleCrash: a node that is cut off anywhere in a move leaves every object whole, and the next one ends it.
func TestLifecycleCrash(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &store{T: t, fs: vfsx.NewMem(), rnd: rand.New(rand.NewPCG(seed.Of(t), 0)), want: map[string][]byte{}, day: aDay}
		s.open(false)
		t.Cleanup(func() { s.close() })
		up, parts, data := s.upload("multi", 5<<20, 5<<20, 300_000)
		if _, err := s.Objects.CompleteUpload(s.Context(), harness.Account, &objects.CompleteInput{Bucket: "bucket", Key: "multi", UploadID: up.ID, Parts: parts}); err != nil {
			s.Fatal(err)
		}
		s.want["multi"] = data
		for i := range 4 {
			s.put(fmt.Sprint("one/", i), 200_000+i)
		}
		s.rules(moving("", 1, storage.GlacierIR))
		time.Sleep(3 * aDay)
		for steps := 1; ; steps++ {
			more := true
			for range steps {
				if !more {
					break
				}
				var err error
				if _, more, err = s.Lifecycle.Step(s.Context()); err != nil {
					s.Fatal(err)
				}
			}
			fs := s.fs.CrashClone(s.rnd.Uint64())
			s.close()
			s.fs = fs
			s.open(false)
			s.wantAll()
			s.step(s.Garbage)
			s.wantClean()
			if !more {
				break
			}
			if steps > 20 {
				s.Fatal("never done")
			}
		}
		s.step(s.Lifecycle)
		for key := range s.want {
			s.wantClass(key, storage.GlacierIR)
		}
		s.step(s.Garbage)
		rep := s.wantClean()
		if count(rep, "shards awaiting removal") != 0 {
			s.Fatalf("%+v", rep.Counts)
		}
	})
}

// TestLifecyclePowerCut: the power may fail at any moment of a move.
func TestLifecyclePowerCut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &store{T: t, fs: vfsx.NewMem(), rnd: rand.New(rand.NewPCG(seed.Of(t), 0)), want: map[string][]byte{}, day: aDay}
		s.open(false)
		t.Cleanup(func() { s.close() })
		s.put("large", 2_500_000)
		s.put("small", 129<<10)
		s.rules(moving("", 1, storage.GlacierIR))
		time.Sleep(3 * aDay)
		var mu sync.Mutex
		var cuts []*vfsx.Mem
		left := 0
		s.fs.SetHook(func(vfsx.Op, string) error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left <= 0 && len(cuts) < 10 {
				left = 1 + s.rnd.IntN(40)
				cuts = append(cuts, s.fs.CrashClone(s.rnd.Uint64()))
			}
			return nil
		})
		s.step(s.Lifecycle)
		s.step(s.Garbage)
		s.fs.SetHook(nil)
		if len(cuts) < 5 {
			s.Fatalf("only %d cuts", len(cuts))
		}
		for _, fs := range cuts {
			s.close()
			s.fs = fs
			s.open(false)
			s.wantAll()
			s.wantClean()
			s.step(s.Lifecycle)
			s.step(s.Garbage)
			s.wantAll()
			s.wantClean()
			s.wantClass("large", storage.GlacierIR)
			s.wantClass("small", storage.GlacierIR)
		}
	})
}

// TestLifecycleSplits: what lies in another range by now is found there.
func TestLifecycleSplits(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		for i := range 20 {
			s.put(fmt.Sprintf("k%02d", i), 3000)
		}
		s.rules(expiring("k", 1), moving("", 1, storage.GlacierIR))
		if _, err := s.Splits.Split(s.Context(), cluster.FirstRange, cluster.Pos{}); err != nil {
			s.Fatal(err)
		}
		s.put("stays", 200_000)
		time.Sleep(aDay) // the child is published
		if _, err := s.Splits.Split(s.Context(), cluster.FirstRange, cluster.Pos{}); err != nil {
			s.Fatal(err)
		}
		time.Sleep(2 * aDay)
		for i := range 20 {
			if key := fmt.Sprintf("k%02d", i); s.is(key) {
				s.Fatal(key, "is there")
			} else {
				delete(s.want, key)
			}
		}
		s.wantClass("stays", storage.GlacierIR)
		s.wantAll()
		s.wantClean()
		if st := s.Lifecycle.Status(); st.Expired != 20 || st.Transitioned != 1 || st.LastErr != "" {
			s.Fatalf("%+v", st)
		}
	})
}
