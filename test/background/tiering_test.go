package background

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/lifecycle"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

const (
	frequent       = metapb.Tiering_FREQUENT
	infrequent     = metapb.Tiering_INFREQUENT
	archiveInstant = metapb.Tiering_ARCHIVE_INSTANT
	archive        = metapb.Tiering_ARCHIVE
	deepArchive    = metapb.Tiering_DEEP_ARCHIVE
)

// tierDay is shorter than aDay: the tests of tiers take hundreds of them.
const tierDay = 6 * time.Second

// tieredStore runs test on a fresh store in fake time, with short days.
func tieredStore(t *testing.T, workers bool, test func(s *store)) {
	bubble.Test(t, func(t *testing.T) {
		s := &store{T: t, fs: vfsx.NewMem(), rnd: rand.New(rand.NewPCG(seed.Of(t), 0)), want: map[string][]byte{}, day: tierDay}
		s.open(workers)
		t.Cleanup(func() { s.close() })
		now := time.Now().UnixNano()
		time.Sleep(time.Duration(int64(tierDay) - now%int64(tierDay) + int64(tierDay)/2)) // away from midnight
		test(s)
	})
}

// putTiered stores an object of INTELLIGENT_TIERING.
func (s *store) putTiered(key string, n int) {
	s.Helper()
	p := s.noise(n)
	_, err := s.Objects.PutObject(s.Context(), harness.Account, &objects.PutInput{
		Bucket: "bucket", Key: storage.Key(key), Body: harness.NewBody(p), Attributes: &metapb.Attributes{StorageClass: "INTELLIGENT_TIERING"},
	})
	if err != nil {
		s.Fatal(err)
	}
	s.want[key] = p
}

// wantTier checks that a version is in a tier, by its row and by where its bytes lie.
func (s *store) wantTier(key string, tier metapb.Tiering_Tier) {
	s.Helper()
	row := s.row(key)
	if got := row.GetTiering().GetTier(); got != tier || row.Attributes.GetStorageClass() != "INTELLIGENT_TIERING" {
		s.Fatalf("%s is in tier %v of class %s, want %v", key, got, row.Attributes.GetStorageClass(), tier)
	}
	s.wantIn(key, row, lifecycle.PlaceOf(storage.IntelligentTiering, tier))
}

// read reads a key and checks its bytes.
func (s *store) read(key string) {
	s.Helper()
	if got, err := s.b.Get(s.Context(), key); err != nil || !bytes.Equal(got, s.want[key]) {
		s.Fatalf("%s: %d bytes, %v", key, len(got), err)
	}
}

// wantArchived checks that a key's bytes can't be read, and what is said of that.
func (s *store) wantArchived(key string, tier metapb.Tiering_Tier) {
	s.Helper()
	_, err := s.b.Get(s.Context(), key)
	var a *objects.ArchivedError
	if !errors.As(err, &a) || a.Class != storage.IntelligentTiering || a.Tier != tier {
		s.Fatalf("%s: %v, want it to be archived in %v", key, err, tier)
	}
	_, err = s.Objects.CopyObject(s.Context(), harness.Account, &objects.CopyInput{SourceBucket: "bucket", SourceKey: storage.Key(key), Bucket: "bucket", Key: "copy"})
	if !errors.As(err, &a) {
		s.Fatalf("a copy of %s: %v", key, err)
	}
}

func (s *store) tiering(cfg *metapb.TieringConfig) {
	s.Helper()
	if err := s.Objects.PutBucketTiering(s.Context(), harness.Account, "bucket", cfg); err != nil {
		s.Fatal(err)
	}
}

func (s *store) restoreTier(key, tier string) error {
	_, err := s.Objects.RestoreObject(s.Context(), harness.Account, objects.VersionRef{Bucket: "bucket", Key: storage.Key(key)}, objects.RestoreRequest{Tier: tier})
	return err
}

// days lets days go by.
func (s *store) days(n int) { time.Sleep(time.Duration(n) * tierDay) }

// putTieredParts is putTiered of an object of parts.
func (s *store) putTieredParts(key string, sizes ...int) {
	s.Helper()
	up, err := s.Objects.CreateUpload(s.Context(), harness.Account, &objects.CreateUploadInput{
		Bucket: "bucket", Key: storage.Key(key), Attributes: &metapb.Attributes{StorageClass: "INTELLIGENT_TIERING"},
	})
	if err != nil {
		s.Fatal(err)
	}
	in := &objects.CompleteInput{Bucket: "bucket", Key: storage.Key(key), UploadID: up.ID}
	for i, n := range sizes {
		p := s.noise(n)
		out, err := s.Objects.UploadPart(s.Context(), harness.Account, &objects.UploadPartInput{Bucket: "bucket", Key: in.Key, UploadID: up.ID, Number: i + 1, Body: harness.NewBody(p)})
		if err != nil {
			s.Fatal(err)
		}
		in.Parts = append(in.Parts, objects.CompletePart{Number: i + 1, ETag: out.ETag})
		s.want[key] = append(s.want[key], p...)
	}
	if _, err := s.Objects.CompleteUpload(s.Context(), harness.Account, in); err != nil {
		s.Fatal(err)
	}
}

// TestTiers: what is not read goes to colder tiers, and comes back once it is read, without a rule of the bucket's.
func TestTiers(t *testing.T) {
	tieredStore(t, true, func(s *store) {
		s.putTiered("cold", 300_000)
		s.putTiered("read", 300_000)
		s.putTiered("small", 128<<10-1)
		s.putTiered("least", 128<<10)
		s.put("standard", 300_000)
		s.putTieredParts("multi", 5<<20, 150_000)
		all := []string{"cold", "read", "small", "least", "multi"}
		for _, key := range all {
			s.wantTier(key, frequent)
		}
		s.days(30)
		b, err := s.Objects.HeadBucket(s.Context(), harness.Account, "bucket")
		if err == nil { // the child's counters know nothing of what it got
			_, err = s.Splits.Split(s.Context(), cluster.FirstRange, cluster.Pos{Bucket: b.ID, Key: "multi"})
		}
		if err != nil {
			t.Fatal(err)
		}
		s.read("read")
		s.days(1) // the midnight after 30 days
		s.wantTier("cold", infrequent)
		s.wantTier("least", infrequent)
		s.wantTier("multi", infrequent)
		s.wantTier("read", frequent)
		s.wantTier("small", frequent)
		s.wantClass("standard", "")
		seq := s.row("cold").Seq

		s.read("cold")
		s.read("multi")
		s.days(1)
		s.wantTier("cold", frequent)
		s.wantTier("multi", frequent)
		s.days(29)
		s.wantTier("read", infrequent) // it was read a day earlier
		s.wantTier("cold", frequent)
		s.days(62)
		s.wantTier("cold", archiveInstant)
		s.wantTier("multi", archiveInstant)
		s.wantTier("least", archiveInstant)
		s.wantTier("small", frequent)
		s.days(40)
		s.wantTier("cold", archiveInstant) // the archives must be asked for
		if row := s.row("cold"); row.Seq != seq {
			t.Fatal("another version")
		}
		s.wantAll()
		s.days(1)
		for _, key := range all {
			s.wantTier(key, frequent)
		}
		if st := s.Lifecycle.Status(); st.LastErr != "" || st.Retiered == 0 || st.Transitioned != 0 {
			t.Fatalf("%+v", st)
		}
		s.wantClean()
	})
}

// TestArchiveTiers: a configuration sends what matches to the archives, whence only a restore leads back, for good.
func TestArchiveTiers(t *testing.T) {
	tieredStore(t, true, func(s *store) {
		s.tiering(&metapb.TieringConfig{Id: "both", Filter: &metapb.LifecycleFilter{Prefix: "a/"}, ArchiveDays: 90, DeepArchiveDays: 180})
		s.tiering(&metapb.TieringConfig{Id: "off", Disabled: true, ArchiveDays: 90})
		s.putTiered("a/x", 300_000)
		s.putTiered("a/y", 300_000)
		s.putTiered("b/x", 300_000)
		s.days(92)
		s.wantTier("a/x", archive)
		s.wantTier("a/y", archive)
		s.wantTier("b/x", archiveInstant)
		s.wantArchived("a/x", archive)
		s.read("b/x")
		var wrong *objects.DaysError
		_, err := s.Objects.RestoreObject(s.Context(), harness.Account, objects.VersionRef{Bucket: "bucket", Key: "a/x"}, objects.RestoreRequest{Tier: rangestate.TierBulk, Days: 3})
		if !errors.As(err, &wrong) {
			t.Fatal(err)
		}
		var notThere *objects.ArchivedError
		if err := s.restoreTier("b/x", rangestate.TierBulk); !errors.As(err, &notThere) || notThere.Tier != frequent {
			t.Fatal(err)
		}
		if err := s.restoreTier("a/x", rangestate.TierBulk); err != nil { // half a day
			t.Fatal(err)
		}
		s.wantArchived("a/x", archive)
		if err := s.restoreTier("a/x", rangestate.TierBulk); err == nil {
			t.Fatal("restored twice")
		}
		if err := s.restoreTier("a/x", rangestate.TierStandard); err != nil { // five hours
			t.Fatal(err)
		}
		time.Sleep(tierDay * 6 / 24)
		s.wantTier("a/x", archive) // its bytes still lie there
		s.read("a/x")
		if err := s.restoreTier("a/x", rangestate.TierStandard); !errors.As(err, &notThere) || notThere.Tier != archive {
			t.Fatal(err)
		}
		s.days(1)
		s.wantTier("a/x", frequent)
		if row := s.row("a/x"); row.Restore != nil {
			t.Fatalf("%+v", row)
		}
		s.days(29)
		s.wantTier("a/x", frequent)
		s.days(2)
		s.wantTier("a/x", infrequent)
		s.days(60)
		s.wantTier("a/x", archive)
		s.wantTier("a/y", deepArchive)
		s.wantArchived("a/y", deepArchive)
		if err := s.restoreTier("a/y", rangestate.TierExpedited); err == nil {
			t.Fatal("a deep archive has no such tier")
		}
		if err := s.Objects.DeleteBucketTiering(s.Context(), harness.Account, "bucket", "both"); err != nil {
			t.Fatal(err)
		}
		s.days(40)
		s.wantTier("a/x", archive) // it stays, and goes no further
		for _, key := range []string{"a/x", "a/y"} {
			if err := s.restoreTier(key, rangestate.TierStandard); err != nil {
				t.Fatal(err)
			}
		}
		s.days(2)
		s.wantAll()
		s.wantTier("a/x", frequent)
		s.wantTier("a/y", frequent)
		s.wantClean()
	})
}

// TestTieringTransitions: rules lead into the class and out of it; the time without access begins with the first.
func TestTieringTransitions(t *testing.T) {
	tieredStore(t, true, func(s *store) {
		s.put("k", 300_000)
		r := moving("k", 10, storage.IntelligentTiering)
		s.rules(r)
		s.days(12)
		s.wantTier("k", frequent)
		s.days(28)
		s.wantTier("k", frequent)
		s.days(3)
		s.wantTier("k", infrequent)
		r.Transitions[0] = &metapb.LifecycleTransition{Days: 60, StorageClass: "GLACIER"}
		s.rules(r)
		s.days(30)
		s.wantClass("k", storage.Glacier)
		if row := s.row("k"); row.Tiering != nil {
			t.Fatalf("%+v", row.Tiering)
		}
		delete(s.want, "k")
		s.wantClean()
	})
}

// TestTieringCrash: a node that is cut off anywhere in a change of tiers leaves every object whole, and the next one ends it.
func TestTieringCrash(t *testing.T) {
	tieredStore(t, false, func(s *store) {
		s.putTieredParts("multi", 5<<20, 300_000)
		for i := range 3 {
			s.putTiered(fmt.Sprint("one/", i), 200_000+i)
		}
		s.days(32)
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
			s.wantAll() // which is no access that the next crash leaves
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
			s.wantTier(key, infrequent)
		}
		s.step(s.Garbage)
		if rep := s.wantClean(); count(rep, "shards awaiting removal") != 0 {
			s.Fatalf("%+v", rep.Counts)
		}
	})
}
