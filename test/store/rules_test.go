package store

import (
	"errors"
	"fmt"
	"testing"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/checker"
	"cairn/test/harness"
)

// Once rules were put, no range carries out what older ones decided, wherever the bucket's keys lie; and a gateway that
// dies on the way leaves this to the finisher.
func TestLifecycleRules(t *testing.T) {
	c, b := openWith(t, harness.Options{}) // without workers: nobody else finishes anything
	ctx := t.Context()
	head := func() objects.Bucket {
		t.Helper()
		bucket, err := c.Objects.HeadBucket(ctx, acct, b.Name)
		if err != nil {
			t.Fatal(err)
		}
		return bucket
	}
	for _, k := range []storage.Key{"a", "n"} {
		if err := b.Put(ctx, string(k), []byte("body")); err != nil {
			t.Fatal(err)
		}
	}
	id := head().ID
	if _, err := c.Splits.Split(ctx, cluster.FirstRange, cluster.Pos{Bucket: id, Key: "m"}); err != nil {
		t.Fatal(err)
	}
	rules := func(n int) *metapb.LifecycleConfig {
		return &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{Id: fmt.Sprint("rule ", n), Expiration: &metapb.LifecycleExpiration{Days: 1}}}}
	}
	// current is the current version of a key as the range that holds it walks it, and that range's generation of the bucket.
	current := func(key storage.Key) (e *metapb.ExpireEntry, generation uint64) {
		t.Helper()
		err := c.Meta.Read(ctx, id, key, func(r rangestate.Reader) error {
			row, err := r.Bucket(id)
			if err != nil {
				return err
			}
			generation, e = row.Generation, nil
			_, err = r.(rangestate.LifecycleReader).Lifecycle(id, &rangestate.LifecyclePos{Key: key}, 1, func(r *rangestate.LifecycleRow) (bool, error) {
				e = &metapb.ExpireEntry{What: metapb.ExpireEntry_CURRENT, Key: []byte(key), VersionSeq: r.Object.Seq, VersionNonce: r.Object.Nonce}
				return false, nil
			})
			return err
		})
		if err != nil || e == nil {
			t.Fatal(e, err)
		}
		return e, generation
	}
	expire := func(key storage.Key, generation uint64) error {
		t.Helper()
		e, _ := current(key)
		_, err := c.Meta.Do(ctx, id, key, &metapb.RangeCommand{Op: &metapb.RangeCommand_Expire{Expire: &metapb.ExpireOp{
			Bucket: uint64(id), ConfigGeneration: generation, Entries: []*metapb.ExpireEntry{e},
		}}})
		return err
	}
	before := head()
	if before.Lifecycle != nil {
		t.Fatal(before)
	}
	f := &failing{Groups: c.Groups}
	for n := range 4 {
		// The decision, the rows of two ranges, and that they are done.
		f.left.Store(int64(n))
		if err := over(c, f).PutBucketLifecycle(ctx, acct, b.Name, rules(n)); !errors.Is(err, errDied) {
			t.Fatalf("rules with %d commands: %v", n, err)
		}
		finishBuckets(t, c.Objects)
		after := head()
		if n == 0 {
			if after.Lifecycle != nil || after.Generation != before.Generation {
				t.Fatal(after)
			}
			continue
		}
		if !after.Lifecycle.EqualVT(rules(n)) || after.Generation != before.Generation+1 {
			t.Fatalf("after %d commands: %+v", n, after)
		}
		for _, k := range []storage.Key{"a", "n"} {
			if _, g := current(k); g != after.Generation {
				t.Errorf("after %d commands the range of %s is at generation %d, the bucket at %d", n, k, g, after.Generation)
			}
			if err := expire(k, before.Generation); !errs.Is(err, errs.Conflict) {
				t.Errorf("the rules before were carried out on %s: %v", k, err)
			}
		}
		before = after
	}
	if err := c.Objects.PutBucketLifecycle(ctx, acct, b.Name, nil); err != nil {
		t.Fatal(err)
	}
	if after := head(); after.Lifecycle != nil || after.Generation != before.Generation+1 {
		t.Fatal(after)
	}
	if err := expire("n", before.Generation); !errs.Is(err, errs.Conflict) {
		t.Errorf("rules were carried out after they were removed: %v", err)
	}
	if err := c.Objects.PutBucketLifecycle(ctx, acct, b.Name, rules(9)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []storage.Key{"a", "n"} {
		if err := expire(k, head().Generation); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(ctx, string(k)); !errors.Is(err, checker.ErrNotFound) {
			t.Errorf("%s: %v", k, err)
		}
	}
	if err := c.Objects.PutBucketLifecycle(ctx, objects.Account{ID: "another"}, b.Name, nil); !errs.Is(err, errs.AccessDenied) {
		t.Error(err)
	}
}
