package store

import (
	"context"
	"sync"
	"testing"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/harness"
)

// holding is a metadata plane that holds up the first range command that held says is the one.
type holding struct {
	metaclient.Groups
	held func(*metapb.RangeCommand) bool
	once sync.Once
	at   chan struct{} // closed when it has come
	on   chan struct{} // close it to let it go on
}

func newHolding(g metaclient.Groups, held func(*metapb.RangeCommand) bool) *holding {
	return &holding{Groups: g, held: held, at: make(chan struct{}), on: make(chan struct{})}
}

func (h *holding) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	cmd := &metapb.RangeCommand{}
	if g != cluster.SystemGroup && cmd.UnmarshalVT(data) == nil && h.held(cmd) {
		h.once.Do(func() {
			close(h.at)
			<-h.on
		})
	}
	return h.Groups.Propose(ctx, g, data)
}

func putsBucket(cmd *metapb.RangeCommand) bool    { return cmd.GetPutBucket() != nil }
func fencesBucket(cmd *metapb.RangeCommand) bool  { return cmd.GetFenceBucket() != nil }
func removesBucket(cmd *metapb.RangeCommand) bool { return cmd.GetDropBucket() != nil }

// Three gateways, of which one is held up at some command of a creation or a deletion while the others go on: what
// it does later must not undo what was decided meanwhile.
func TestHeldUpGateway(t *testing.T) {
	c, _ := openWith(t, harness.Options{}) // without workers: nobody else finishes anything
	ctx := t.Context()
	const name = "held-up"
	key := func(s *objects.Store) harness.Bucket {
		return harness.Bucket{Core: &core.Core{Objects: s}, Name: name}
	}
	// begin begins what with a gateway that is held up, waits until it is, and answers how to let it go on to its end.
	begin := func(held func(*metapb.RangeCommand) bool, what func(*objects.Store) error) (end func() error) {
		h := newHolding(c.Groups, held)
		done := make(chan error, 1)
		go func() { done <- what(over(c, h)) }()
		<-h.at
		return func() error {
			close(h.on)
			return <-done
		}
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	create := func(s *objects.Store) error { return s.CreateBucket(ctx, acct, name, objects.BucketOptions{}) }
	remove := func(s *objects.Store) error { return s.DeleteBucket(ctx, acct, name) }

	two := func() (b, other *objects.Store) { return c.Objects, over(c, c.Groups) }

	t.Run("creation", func(t *testing.T) {
		b, other := two()
		end := begin(putsBucket, create)
		must(t, create(b))
		must(t, key(other).Put(ctx, "key", []byte("body"))) // it knows the bucket from now on
		must(t, key(other).Delete(ctx, "key"))
		must(t, remove(b))
		if err := end(); !errs.Is(err, errs.BucketBusy) {
			t.Errorf("the creation that came late: %v", err)
		}
		if err := key(other).Put(ctx, "key", []byte("body")); !errs.Is(err, errs.NoSuchBucket) {
			t.Errorf("a put into the deleted bucket: %v", err)
		}
	})
	t.Run("creation, between fence and drop", func(t *testing.T) {
		b, other := two()
		endCreation := begin(putsBucket, create)
		must(t, create(b))
		endDeletion := begin(removesBucket, remove)
		if err := endCreation(); !errs.Is(err, errs.BucketBusy) {
			t.Errorf("the creation that came late: %v", err)
		}
		if err := key(other).Put(ctx, "key", nil); !errs.Is(err, errs.BucketBusy) {
			t.Errorf("a put into the fenced bucket: %v", err)
		}
		must(t, endDeletion())
		if err := key(other).Put(ctx, "key", nil); !errs.Is(err, errs.NoSuchBucket) {
			t.Errorf("a put into the deleted bucket: %v", err)
		}
	})
	t.Run("lift", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		must(t, key(other).Put(ctx, "key", []byte("body")))
		end := begin(putsBucket, remove) // it found the key
		must(t, key(other).Delete(ctx, "key"))
		finishBuckets(t, b)
		must(t, end()) // it is deleted, by whomever
		if err := key(other).Put(ctx, "key", []byte("body")); !errs.Is(err, errs.NoSuchBucket) {
			t.Errorf("a put into the deleted bucket: %v", err)
		}
		if _, err := other.HeadBucket(ctx, acct, name); !errs.Is(err, errs.NoSuchBucket) {
			t.Errorf("the deleted bucket: %v", err)
		}
	})
	t.Run("lift, in the next deletion", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		must(t, key(other).Put(ctx, "key", []byte("body")))
		end := begin(putsBucket, remove)
		finishBuckets(t, b) // active again
		must(t, key(other).Delete(ctx, "key"))
		endNext := begin(removesBucket, remove)
		if err := end(); !errs.Is(err, errs.BucketBusy) {
			t.Errorf("the deletion that came late: %v", err)
		}
		if err := key(other).Put(ctx, "key", []byte("body")); !errs.Is(err, errs.BucketBusy) {
			t.Errorf("a put into the fenced bucket: %v", err)
		}
		must(t, endNext())
	})
	t.Run("fence", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		must(t, key(other).Put(ctx, "key", []byte("body")))
		end := begin(fencesBucket, remove)
		finishBuckets(t, b) // it is not empty, so that this makes it active again
		must(t, key(other).Delete(ctx, "key"))
		if err := end(); !errs.Is(err, errs.BucketNotEmpty) {
			t.Errorf("the deletion that came late: %v", err)
		}
		must(t, key(other).Put(ctx, "key", []byte("body")))
		must(t, key(other).Delete(ctx, "key"))
		must(t, remove(b))
	})
	enable := func(s *objects.Store) error { return s.PutBucketVersioning(ctx, acct, name, true) }
	suspend := func(s *objects.Store) error { return s.PutBucketVersioning(ctx, acct, name, false) }
	t.Run("configuration, by the next one", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		end := begin(putsBucket, enable)
		must(t, suspend(b))
		if got := putVersion(t, other, name, "key"); got != "null" {
			t.Errorf("after versioning was suspended a put made version %q", got)
		}
		must(t, end()) // it was enabled, and then suspended
		if got := putVersion(t, other, name, "key"); got != "null" {
			t.Errorf("the configuration that came late: a put made version %q", got)
		}
		must(t, key(other).Delete(ctx, "key"))
		if _, err := other.DeleteObject(ctx, acct, name, objects.DeleteItem{Key: "key", VersionID: "null"}); err != nil {
			t.Fatal(err)
		}
		must(t, remove(b))
		noPending(t, b)
	})
	t.Run("configuration, deleted", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		end := begin(putsBucket, enable)
		must(t, remove(b))
		if err := end(); !errs.Is(err, errs.NoSuchBucket) {
			t.Errorf("the configuration that came late: %v", err)
		}
		if err := key(other).Put(ctx, "key", nil); !errs.Is(err, errs.NoSuchBucket) {
			t.Errorf("a put into the deleted bucket: %v", err)
		}
		noPending(t, b)
	})
	t.Run("configuration, between fence and drop", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		end := begin(putsBucket, enable)
		endDeletion := begin(removesBucket, remove)
		if err := end(); !errs.Is(err, errs.BucketBusy) {
			t.Errorf("the configuration that came late: %v", err)
		}
		if err := enable(other); !errs.Is(err, errs.BucketBusy) {
			t.Errorf("a configuration in the deletion: %v", err)
		}
		if err := key(other).Put(ctx, "key", nil); !errs.Is(err, errs.BucketBusy) {
			t.Errorf("a put into the fenced bucket: %v", err)
		}
		must(t, endDeletion())
		noPending(t, b)
	})
	t.Run("configuration, deletion given up", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		must(t, key(other).Put(ctx, "key", []byte("body")))
		end := begin(putsBucket, enable)
		if err := remove(b); !errs.Is(err, errs.BucketNotEmpty) {
			t.Fatalf("a deletion of what is not empty: %v", err)
		}
		if got := putVersion(t, other, name, "key"); len(got) != 32 {
			t.Errorf("the deletion that was given up brought the configuration decided before it: version %q", got)
		}
		must(t, end())
		noPending(t, b)
		emptyBucket(t, b, name)
		must(t, remove(b))
	})
	t.Run("lift, after a configuration", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		must(t, key(other).Put(ctx, "key", []byte("body")))
		end := begin(putsBucket, remove) // it found the key
		finishBuckets(t, b)              // active again
		must(t, enable(b))
		if err := end(); !errs.Is(err, errs.BucketNotEmpty) {
			t.Errorf("the deletion that came late: %v", err)
		}
		if got := putVersion(t, other, name, "key"); len(got) != 32 {
			t.Errorf("the lift that came late took the configuration back: version %q", got)
		}
		noPending(t, b)
		emptyBucket(t, b, name)
		must(t, remove(b))
	})
	t.Run("drop", func(t *testing.T) {
		b, other := two()
		must(t, create(b))
		end := begin(removesBucket, remove)
		finishBuckets(t, b)
		must(t, create(other))
		must(t, key(other).Put(ctx, "key", []byte("body")))
		must(t, end())
		if got, err := key(b).Get(ctx, "key"); err != nil || string(got) != "body" {
			t.Errorf("the bucket that was created since: %q, %v", got, err)
		}
	})
}

// putVersion puts a key and answers the version id.
func putVersion(t *testing.T, s *objects.Store, bucket, key string) string {
	t.Helper()
	out, err := s.PutObject(t.Context(), acct, &objects.PutInput{Bucket: bucket, Key: storage.Key(key), Body: harness.NewBody([]byte("body")), Attributes: &metapb.Attributes{}})
	if err != nil {
		t.Fatal(err)
	}
	return out.VersionID
}

// emptyBucket deletes all versions, of a few.
func emptyBucket(t *testing.T, s *objects.Store, bucket string) {
	t.Helper()
	page, err := s.ListVersions(t.Context(), acct, &objects.ListVersionsInput{Bucket: bucket, Max: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range page.Versions {
		if _, err := s.DeleteObject(t.Context(), acct, bucket, objects.DeleteItem{Key: v.Key, VersionID: v.VersionID}); err != nil {
			t.Fatal(err)
		}
	}
}

// noPending fails if a finisher would find anything to do.
func noPending(t *testing.T, s *objects.Store) {
	t.Helper()
	if n, err := s.FinishBuckets(t.Context(), 1000); n != 0 || err != nil {
		t.Errorf("%d buckets are pending, %v", n, err)
	}
}

func finishBuckets(t *testing.T, s *objects.Store) {
	t.Helper()
	for {
		n, err := s.FinishBuckets(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// A gateway that remembers a bucket which others have deleted and created anew since, for the same or another account:
// what it remembers is never its answer.
func TestRememberedBucket(t *testing.T) {
	c, _ := openWith(t, harness.Options{})
	ctx := t.Context()
	const name = "moved"
	a, b := c.Objects, over(c, c.Groups)
	other := objects.Account{ID: "other", DisplayName: "other"}
	put := func(s *objects.Store, who objects.Account, key string, body []byte) error {
		_, err := s.PutObject(ctx, who, &objects.PutInput{Bucket: name, Key: storage.Key(key), Body: harness.NewBody(body), Attributes: &metapb.Attributes{}})
		return err
	}
	large := make([]byte, storage.InlineBytesMax+1)
	// anew makes the bucket anew for who through a, behind the back of b, which remembers the one before.
	owner := acct
	if err := a.CreateBucket(ctx, owner, name, objects.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	anew := func(t *testing.T, who objects.Account) {
		t.Helper()
		if err := put(b, owner, "key", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := a.DeleteObjects(ctx, owner, name, []objects.DeleteItem{{Key: "key"}, {Key: "source"}}); err != nil {
			t.Fatal(err)
		}
		if err := a.DeleteBucket(ctx, owner, name); err != nil {
			t.Fatal(err)
		}
		owner = who
		if err := a.CreateBucket(ctx, who, name, objects.BucketOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("inline", func(t *testing.T) {
		anew(t, acct)
		if err := put(b, acct, "key", []byte("body")); err != nil {
			t.Errorf("a small put: %v", err)
		}
	})
	t.Run("chunks", func(t *testing.T) {
		anew(t, acct)
		if err := put(b, acct, "key", large); !errs.Is(err, errs.Unavailable) {
			t.Errorf("a large put, whose body cannot be read again: %v", err)
		}
		if err := put(b, acct, "key", large); err != nil {
			t.Errorf("its repeat: %v", err)
		}
	})
	t.Run("part", func(t *testing.T) {
		up, err := b.CreateUpload(ctx, acct, &objects.CreateUploadInput{Bucket: name, Key: "key", Attributes: &metapb.Attributes{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.AbortUpload(ctx, acct, name, "key", up.ID); err != nil {
			t.Fatal(err)
		}
		anew(t, acct)
		if _, err := b.UploadPart(ctx, acct, &objects.UploadPartInput{Bucket: name, Key: "key", UploadID: up.ID, Number: 1, Body: harness.NewBody(large)}); !errs.Is(err, errs.NoSuchUpload) {
			t.Errorf("a part of an upload that is gone: %v", err)
		}
	})
	t.Run("read", func(t *testing.T) {
		anew(t, acct)
		if _, err := b.HeadObject(ctx, acct, &objects.GetInput{Bucket: name, Key: "key"}); !errs.Is(err, errs.NoSuchKey) {
			t.Errorf("what is not there: %v", err)
		}
	})
	t.Run("another account", func(t *testing.T) {
		anew(t, other)
		if err := put(b, acct, "key", nil); !errs.Is(err, errs.AccessDenied) {
			t.Errorf("the account before: %v", err)
		}
		if err := put(b, other, "key", nil); err != nil {
			t.Errorf("the account now: %v", err)
		}
		anew(t, acct)
		if err := put(b, acct, "key", nil); err != nil { // b remembers that it is other's
			t.Errorf("the account now: %v", err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		anew(t, acct)
		if err := put(b, acct, "key", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := a.DeleteObject(ctx, acct, name, objects.DeleteItem{Key: "key"}); err != nil {
			t.Fatal(err)
		}
		if err := a.DeleteBucket(ctx, acct, name); err != nil {
			t.Fatal(err)
		}
		for _, who := range []objects.Account{other, acct} {
			if err := put(b, who, "key", large); !errs.Is(err, errs.NoSuchBucket) {
				t.Errorf("%s: %v", who.ID, err)
			}
		}
	})
}
