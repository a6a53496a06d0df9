package store

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"cairn/cluster/metaclient"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
	"cairn/test/harness"
)

const day = 600_000 // of an archiving store, ms

// archiving is a store with objects of the archive classes, whose restores are quick.
type archiving struct {
	*testing.T
	c     *core.Core
	s     *objects.Store // with days of ten minutes, and restores of ten seconds, one minute or a quarter of an hour
	reads []*objects.Store
	body  []byte
}

func newArchiving(t *testing.T) *archiving {
	c, _ := openWith(t, harness.Options{Tune: func(tune *core.Tuning) { tune.Raft.HeartbeatTimeout = time.Second }})
	meta := metaclient.New(metaclient.Config{Groups: c.Groups, Topology: c.Controller.Topology, Now: time.Now, Rand: rand.Reader, RetryMin: time.Millisecond})
	s := objects.New(objects.Config{
		Meta: meta, Chunks: c.Bodies, Pins: c.Pins, Day: 10 * time.Minute,
		RestoreTimes: func(_ storage.StorageClass, tier string) time.Duration {
			return map[string]time.Duration{"Expedited": 10 * time.Second, "Standard": time.Minute, "Bulk": 15 * time.Minute}[tier]
		},
	})
	if err := s.PutBucketVersioning(t.Context(), acct, "bucket", true); err != nil {
		t.Fatal(err)
	}
	return &archiving{T: t, c: c, s: s, reads: []*objects.Store{s, elsewhere(t, c)}, body: []byte(strings.Repeat("archived", 20000))}
}

// put puts an object of a class and answers its version.
func (a *archiving) put(key, class string, body []byte) objects.VersionRef {
	a.Helper()
	out, err := a.s.PutObject(a.Context(), acct, &objects.PutInput{
		Bucket: "bucket", Key: storage.Key(key), Body: harness.NewBody(body), Attributes: &metapb.Attributes{StorageClass: class},
	})
	if err != nil {
		a.Fatal(err)
	}
	return objects.VersionRef{Bucket: "bucket", Key: storage.Key(key), VersionID: out.VersionID}
}

func (a *archiving) get(s *objects.Store, v objects.VersionRef, cond objects.Conditions) ([]byte, error) {
	o, err := s.GetObject(a.Context(), acct, &objects.GetInput{Bucket: v.Bucket, Key: v.Key, VersionID: v.VersionID, Conditions: cond})
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if o.NotModified {
		return nil, nil
	}
	var b bytes.Buffer
	err = o.Send(&b)
	return b.Bytes(), err
}

func (a *archiving) copy(v objects.VersionRef, key string) error {
	_, err := a.s.CopyObject(a.Context(), acct, &objects.CopyInput{
		SourceBucket: v.Bucket, SourceKey: v.Key, SourceVersionID: v.VersionID, Bucket: "bucket", Key: storage.Key(key),
	})
	return err
}

func (a *archiving) copyPart(v objects.VersionRef) error {
	a.Helper()
	up, err := a.s.CreateUpload(a.Context(), acct, &objects.CreateUploadInput{Bucket: "bucket", Key: "parts", Attributes: &metapb.Attributes{}})
	if err != nil {
		a.Fatal(err)
	}
	_, err = a.s.UploadPartCopy(a.Context(), acct, &objects.UploadPartCopyInput{
		SourceBucket: v.Bucket, SourceKey: v.Key, SourceVersionID: v.VersionID, Bucket: "bucket", Key: "parts", UploadID: up.ID, Number: 1,
	})
	return err
}

// archived checks that the version can be seen everywhere and read nowhere.
func (a *archiving) archived(v objects.VersionRef, class storage.StorageClass) {
	a.Helper()
	is := func(what string, err error) {
		a.Helper()
		var e *objects.ArchivedError
		if !errs.Is(err, errs.InvalidObjectState) || !errors.As(err, &e) || e.Class != class {
			a.Errorf("%s of %s, which is archived: %v", what, v.Key, err)
		}
	}
	for _, s := range a.reads {
		_, err := a.get(s, v, objects.Conditions{})
		is("a read", err)
		// Conditions are judged first.
		if _, err := a.get(s, v, objects.Conditions{IfMatch: []string{"other"}}); !errs.Is(err, errs.PreconditionFailed) {
			a.Errorf("If-Match: %v", err)
		}
		if _, err := a.get(s, v, objects.Conditions{IfNoneMatch: []string{"*"}}); err != nil {
			a.Errorf("If-None-Match: %v", err)
		}
		o := a.head(s, v)
		if o.Size == 0 || o.Attributes.GetStorageClass() != string(class) {
			a.Errorf("HEAD: %+v", o)
		}
	}
	is("a copy", a.copy(v, "copy"))
	is("a copy to a part", a.copyPart(v))
}

// readable checks that the version can be read everywhere.
func (a *archiving) readable(v objects.VersionRef) {
	a.Helper()
	for _, s := range a.reads {
		if got, err := a.get(s, v, objects.Conditions{}); err != nil || len(got) == 0 || !bytes.HasPrefix(a.body, got) {
			a.Errorf("%s was restored and reads %d bytes, %v", v.Key, len(got), err)
		}
	}
	if err := a.copy(v, "copy"); err != nil {
		a.Errorf("a copy of %s: %v", v.Key, err)
	}
	if err := a.copyPart(v); err != nil {
		a.Errorf("a copy of %s to a part: %v", v.Key, err)
	}
}

func (a *archiving) head(s *objects.Store, v objects.VersionRef) *objects.Object {
	a.Helper()
	o, err := s.HeadObject(a.Context(), acct, &objects.GetInput{Bucket: v.Bucket, Key: v.Key, VersionID: v.VersionID})
	if err != nil {
		a.Fatal(err)
	}
	return o
}

// restore restores, and answers what HEAD and the listings say of it.
func (a *archiving) restore(v objects.VersionRef, days int, tier string, already bool) *metapb.Restore {
	a.Helper()
	out, err := a.s.RestoreObject(a.Context(), acct, v, objects.RestoreRequest{Days: days, Tier: tier})
	if err != nil || out.AlreadyRestored != already || v.VersionID != "" && out.VersionID != v.VersionID {
		a.Fatalf("restored: %+v, %v", out, err)
	}
	v.VersionID = out.VersionID
	for _, s := range a.reads {
		said := a.head(s, v).Restore
		page, err := s.ListVersions(a.Context(), acct, &objects.ListVersionsInput{Bucket: "bucket", Prefix: string(v.Key), Max: 100})
		if err != nil {
			a.Fatal(err)
		}
		for _, l := range page.Versions {
			archived := l.Attributes.GetStorageClass() != ""
			if l.VersionID == v.VersionID && (said == nil || !archived || !l.Restore.EqualVT(said)) || !archived && l.Restore != nil {
				a.Errorf("HEAD says %v, a listing %+v", said, l)
			}
		}
	}
	return a.head(a.s, v).Restore
}

func (a *archiving) until(ms int64) { time.Sleep(time.Until(time.UnixMilli(ms))) }

func TestRestore(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newArchiving(t)
		for _, class := range []storage.StorageClass{storage.Glacier, storage.DeepArchive} {
			big, small := a.put("big", string(class), a.body), a.put("small", string(class), a.body[:10])
			plain := a.put("small", "", a.body[:10]) // the current one
			a.readable(plain)
			for _, v := range []objects.VersionRef{big, small} {
				a.archived(v, class)
				if _, err := a.s.PutTags(t.Context(), acct, v, []*metapb.KV{{Name: "a", Value: "b"}}); err != nil {
					t.Error(err)
				}
				before := a.head(a.s, v)
				asked := time.Now().UnixMilli()
				r := a.restore(v, 2, "Standard", false)
				if least := asked + 2*day; r.ReadyMs < asked+60_000 || r.ReadyMs > asked+70_000 || r.ExpiresMs%day != 0 || r.ExpiresMs < least || r.ExpiresMs > least+day+10_000 {
					t.Errorf("asked at %d: %v", asked, r)
				}
				a.archived(v, class)
				a.until(r.ReadyMs - 1000)
				a.archived(v, class)
				a.until(r.ReadyMs + 1)
				a.readable(v)
				longer := a.restore(v, 3, "Standard", true)
				if longer.ExpiresMs <= r.ExpiresMs || longer.ReadyMs != r.ReadyMs {
					t.Errorf("%v, before %v", longer, r)
				}
				if shorter := a.restore(v, 1, "Standard", true); shorter.ExpiresMs > r.ExpiresMs {
					t.Errorf("%v, before %v", shorter, r)
				} else {
					a.until(shorter.ExpiresMs - 1000)
					a.readable(v)
					a.until(shorter.ExpiresMs + 1)
				}
				a.archived(v, class)
				a.restore(v, 1, "Standard", false) // again
				if after := a.head(a.s, v); after.ETag != before.ETag || !after.Modified.Equal(before.Modified) {
					t.Errorf("%+v became %+v", before, after)
				}
			}
		}
	})
}

func TestRestoreTiers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newArchiving(t)
		fails := func(v objects.VersionRef, days int, tier string, kind errs.Kind) error {
			t.Helper()
			_, err := a.s.RestoreObject(t.Context(), acct, v, objects.RestoreRequest{Days: days, Tier: tier})
			if !errs.Is(err, kind) {
				t.Errorf("%d days by %q: %v, want %v", days, tier, err, kind)
			}
			return err
		}
		v := a.put("key", "GLACIER", a.body)
		bulk := a.restore(objects.VersionRef{Bucket: v.Bucket, Key: v.Key}, 1, "Bulk", false) // the current one; longer than a day of this store
		if bulk.ExpiresMs < bulk.ReadyMs+day || bulk.ExpiresMs > bulk.ReadyMs+2*day {
			t.Errorf("it would expire before it is ready: %v", bulk)
		}
		fails(v, 9, "Bulk", errs.RestoreInProgress)
		faster := a.restore(v, 9, "Standard", false)
		if faster.ReadyMs >= bulk.ReadyMs || faster.ExpiresMs != bulk.ExpiresMs || faster.Tier != "Standard" {
			t.Errorf("%v, before %v", faster, bulk)
		}
		fails(v, 1, "Bulk", errs.RestoreInProgress)
		fails(v, 1, "Standard", errs.RestoreInProgress)
		if fastest := a.restore(v, 1, "Expedited", false); fastest.ReadyMs >= faster.ReadyMs {
			t.Errorf("%v, before %v", fastest, faster)
		}
		fails(v, 1, "Expedited", errs.RestoreInProgress)

		deep := a.put("deep", "DEEP_ARCHIVE", a.body)
		fails(deep, 1, "Expedited", errs.InvalidArgument)
		for _, days := range []int{-1, 0, 36501} {
			fails(deep, days, "Bulk", errs.InvalidArgument)
		}
		fails(deep, 1, "bulk", errs.InvalidArgument)
		fails(deep, 1, "", errs.InvalidArgument)
		for class, name := range map[string]storage.StorageClass{"": storage.Standard, "STANDARD_IA": storage.StandardIA, "GLACIER_IR": storage.GlacierIR} {
			var e *objects.ArchivedError
			if err := fails(a.put("plain", class, a.body), 1, "Bulk", errs.InvalidObjectState); !errors.As(err, &e) || e.Class != name {
				t.Errorf("%q: %v", class, err)
			}
		}
		fails(objects.VersionRef{Bucket: "bucket", Key: "none"}, 1, "Bulk", errs.NoSuchKey)
		fails(objects.VersionRef{Bucket: "bucket", Key: "deep", VersionID: v.VersionID}, 1, "Bulk", errs.NoSuchVersion)
		fails(objects.VersionRef{Bucket: "bucket", Key: "deep", VersionID: "?"}, 1, "Bulk", errs.NoSuchVersion)
		fails(objects.VersionRef{Bucket: "nowhere", Key: "deep"}, 1, "Bulk", errs.NoSuchBucket)
		if _, err := a.s.DeleteObject(t.Context(), acct, "bucket", objects.DeleteItem{Key: "deep"}); err != nil {
			t.Fatal(err)
		}
		// A bucket without versions, whose objects' next ones are not restored.
		if _, err := harness.MakeBucket(t.Context(), a.c, "plain"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			in := &objects.PutInput{Bucket: "plain", Key: "key", Body: harness.NewBody(a.body), Attributes: &metapb.Attributes{StorageClass: "GLACIER"}}
			if _, err := a.s.PutObject(t.Context(), acct, in); err != nil {
				t.Fatal(err)
			}
			plain := objects.VersionRef{Bucket: "plain", Key: "key"}
			if o := a.head(a.s, plain); o.Restore != nil {
				t.Errorf("restored when it was put: %v", o.Restore)
			}
			out, err := a.s.RestoreObject(t.Context(), acct, plain, objects.RestoreRequest{Days: 1, Tier: "Bulk"})
			if err != nil || out != (objects.RestoreResult{}) || a.head(a.s, plain).Restore == nil {
				t.Errorf("%+v, %v", out, err)
			}
		}
		var e *objects.DeleteMarkerError
		if err := fails(objects.VersionRef{Bucket: "bucket", Key: "deep"}, 1, "Bulk", errs.IsDeleteMarker); !errors.As(err, &e) {
			t.Error(err)
		}
	})
}

// How long restores take and last where nothing else is said.
func TestRestoreTimes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newArchiving(t)
		a.s = a.c.Objects
		time.Sleep(10 * time.Minute) // the store began at midnight, which is when days begin
		const hour = int64(3600_000)
		for _, c := range []struct {
			class, tier string
			ready       int64
		}{
			{"GLACIER", "Expedited", 5 * 60_000}, {"GLACIER", "Standard", 5 * hour}, {"GLACIER", "Bulk", 12 * hour},
			{"DEEP_ARCHIVE", "Standard", 12 * hour}, {"DEEP_ARCHIVE", "Bulk", 48 * hour},
		} {
			v := a.put("key", c.class, a.body)
			asked := time.Now().UnixMilli()
			r := a.restore(v, 3, c.tier, false)
			want := (asked/(24*hour) + 4) * 24 * hour // the midnight after three days
			if r.ReadyMs < asked+c.ready || r.ReadyMs > asked+c.ready+60_000 || r.ExpiresMs != want {
				t.Errorf("%s %s at %d: %v, expiry %d", c.class, c.tier, asked, r, want)
			}
		}
	})
}
