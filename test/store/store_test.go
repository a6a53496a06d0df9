// Package store tests what S3's operations mean on a whole store in one process:
// the parts that no single package can show.
package store

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/harness"
	"cairn/test/seed"
)

var acct = harness.Account

func open(t *testing.T) (*core.Core, harness.Bucket) {
	t.Helper()
	return openWith(t, harness.Options{Workers: true})
}

func openWith(t *testing.T, o harness.Options) (*core.Core, harness.Bucket) {
	t.Helper()
	o.FS, o.Dir, o.Zones, o.DrivesPerZone = vfsx.NewMem(), "/data", 3, 1
	c, err := harness.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := harness.MakeBucket(t.Context(), c, "bucket")
	if err != nil {
		t.Fatal(err)
	}
	return c, b
}

// losing is a metadata plane whose answers get lost: the command happens, the
// client hears that its fate is unknown.
type losing struct {
	metaclient.Groups
	lose func() bool
	mu   sync.Mutex
	last map[cluster.GroupID][]byte // the latest command of each group
}

func (l *losing) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	l.mu.Lock()
	l.last[g] = bytes.Clone(data)
	l.mu.Unlock()
	res, err := l.Groups.Propose(ctx, g, data)
	if err == nil && l.lose() {
		return nil, errs.New(errs.OutcomeUnknown, "test", "", "the answer got lost")
	}
	return res, err
}

// over is a second gateway of the store, with a metadata plane of its own.
func over(c *core.Core, g metaclient.Groups) *objects.Store {
	meta := metaclient.New(metaclient.Config{Groups: g, Topology: c.Controller.Topology, Now: time.Now, Rand: rand.Reader, RetryMin: time.Millisecond})
	return objects.New(objects.Config{Meta: meta, Chunks: c.Bodies, Pins: c.Pins})
}

func put(s *objects.Store, ctx context.Context, key, body string, cond objects.Conditions) error {
	_, err := s.PutObject(ctx, acct, &objects.PutInput{Bucket: "bucket", Key: storage.Key(key), Body: harness.NewBody([]byte(body)), Attributes: &metapb.Attributes{}, Conditions: cond})
	return err
}

func TestLostAnswers(t *testing.T) {
	c, b := open(t)
	var n atomic.Int64
	l := &losing{Groups: c.Groups, last: map[cluster.GroupID][]byte{}, lose: func() bool { return n.Add(1)%3 != 0 }}
	s := over(c, l)
	for i := range 30 {
		// Were the repeat applied anew, it would see its own first try and answer 412.
		key := fmt.Sprintf("once-%d", i)
		if err := put(s, t.Context(), key, "body", objects.Conditions{IfNoneMatch: []string{"*"}}); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		if err := put(s, t.Context(), key, "other", objects.Conditions{IfNoneMatch: []string{"*"}}); !errs.Is(err, errs.PreconditionFailed) {
			t.Fatalf("%s exists, but a second If-None-Match: * got %v", key, err)
		}
		if got, err := b.Get(t.Context(), key); err != nil || string(got) != "body" {
			t.Fatalf("%s reads %q, %v", key, got, err)
		}
	}
}

// TestLateRepeat sends a command again after others changed the key: it is
// answered from its first outcome and changes nothing.
func TestLateRepeat(t *testing.T) {
	c, b := open(t)
	l := &losing{Groups: c.Groups, last: map[cluster.GroupID][]byte{}, lose: func() bool { return false }}
	s := over(c, l)
	ctx := t.Context()
	big := strings.Repeat("x", 300<<10)
	if err := put(s, ctx, "key", big, objects.Conditions{}); err != nil {
		t.Fatal(err)
	}
	first := l.last[cluster.FirstRange]
	if err := put(s, ctx, "key", "newer", objects.Conditions{}); err != nil {
		t.Fatal(err)
	}
	decode := func(out []byte, err error) *metapb.RangeResult {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		r := &metapb.RangeResult{}
		if err := r.UnmarshalVT(out); err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := decode(c.Groups.Propose(ctx, cluster.FirstRange, first))
	if !r.Ok {
		t.Fatalf("the repeat was refused: %v", r)
	}
	if got, err := b.Get(ctx, "key"); err != nil || string(got) != "newer" {
		t.Fatalf("after the repeat the key reads %q, %v", got, err)
	}
	if err := b.Delete(ctx, "key"); err != nil {
		t.Fatal(err)
	}
	decode(c.Groups.Propose(ctx, cluster.FirstRange, first))
	if _, err := b.Get(ctx, "key"); err == nil {
		t.Fatal("the repeat brought the deleted object back")
	}
}

func TestOneConditionalWriterWins(t *testing.T) {
	c, b := open(t)
	for round := range 5 {
		key := fmt.Sprintf("key-%d", round)
		var won atomic.Int64
		var winner atomic.Value
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				body := fmt.Sprintf("writer %d %s", i, strings.Repeat("z", i*1000))
				switch err := put(c.Objects, t.Context(), key, body, objects.Conditions{IfNoneMatch: []string{"*"}}); {
				case err == nil:
					won.Add(1)
					winner.Store(body)
				case !errs.Is(err, errs.PreconditionFailed) && !errs.Is(err, errs.ConditionalConflict):
					t.Errorf("writer %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d writers won", won.Load())
		}
		if got, err := b.Get(t.Context(), key); err != nil || string(got) != winner.Load().(string) {
			t.Fatalf("the key does not hold the winner's body: %v", err)
		}
	}
}

// TestDeleteBucketAgainstWriters: a bucket is deleted only while it is empty; an
// object acknowledged in it is never lost with it.
func TestDeleteBucketAgainstWriters(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	for round := range 15 {
		name := fmt.Sprintf("contended-%d", round)
		if err := c.Objects.CreateBucket(ctx, acct, name, objects.BucketOptions{Region: "us-east-1"}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var acked atomic.Int64
		for i := range 4 {
			wg.Go(func() {
				_, err := c.Objects.PutObject(ctx, acct, &objects.PutInput{Bucket: name, Key: storage.Key(fmt.Sprint(i)), Body: harness.NewBody([]byte("x")), Attributes: &metapb.Attributes{}})
				switch {
				case err == nil:
					acked.Add(1)
				case !errs.Is(err, errs.NoSuchBucket) && !errs.Is(err, errs.BucketBusy):
					t.Errorf("put: %v", err)
				}
			})
		}
		var deleted bool
		wg.Go(func() {
			err := c.Objects.DeleteBucket(ctx, acct, name)
			deleted = err == nil
			if err != nil && !errs.Is(err, errs.BucketNotEmpty) {
				t.Errorf("delete bucket: %v", err)
			}
		})
		wg.Wait()
		if deleted && acked.Load() > 0 {
			t.Fatalf("round %d: the bucket was deleted with %d objects acknowledged in it", round, acked.Load())
		}
		out, err := c.Objects.ListObjects(ctx, acct, &objects.ListInput{Bucket: name, Max: 10})
		if deleted != errs.Is(err, errs.NoSuchBucket) || !deleted && int64(len(out.Objects)) != acked.Load() {
			t.Fatalf("round %d: deleted %v, %d acknowledged, listing: %v", round, deleted, acked.Load(), err)
		}
	}
}

// failing is a metadata plane that stops after some commands, like a gateway that dies.
type failing struct {
	metaclient.Groups
	left atomic.Int64
}

var errDied = errors.New("the gateway died")

func (f *failing) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	if f.left.Add(-1) < 0 {
		return nil, errDied
	}
	return f.Groups.Propose(ctx, g, data)
}

// TestInterruptedBuckets lets the gateway die after each command of a creation,
// a deletion and a change of the configuration; the finisher completes them.
func TestInterruptedBuckets(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	for steps := range 3 {
		name := fmt.Sprintf("half-made-%d", steps)
		f := &failing{Groups: c.Groups}
		f.left.Store(int64(steps))
		if err := over(c, f).CreateBucket(ctx, acct, name, objects.BucketOptions{}); !errors.Is(err, errDied) {
			t.Fatalf("creation with %d commands: %v", steps, err)
		}
		finishBuckets(t, c.Objects)
		if err := c.Objects.CreateBucket(ctx, acct, name, objects.BucketOptions{}); err != nil && !errs.Is(err, errs.BucketAlreadyOwned) {
			t.Fatalf("after %d commands the name cannot be had: %v", steps, err)
		}
		if err := (harness.Bucket{Core: c, Name: name}).Put(ctx, "k", []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	// Who asks for another bucket than the one that is half made gets told that it has that one.
	f := &failing{Groups: c.Groups}
	f.left.Store(1)
	if err := over(c, f).CreateBucket(ctx, acct, "half-made", objects.BucketOptions{}); !errors.Is(err, errDied) {
		t.Fatal(err)
	}
	if err := c.Objects.CreateBucket(ctx, acct, "half-made", objects.BucketOptions{ObjectLock: true}); !errs.Is(err, errs.BucketAlreadyOwned) {
		t.Fatalf("a bucket with object lock instead of one without: %v", err)
	}
	if b, err := c.Objects.HeadBucket(ctx, acct, "half-made"); err != nil || b.Lock.Enabled {
		t.Fatal(b, err)
	}
	for steps := range 4 {
		name := fmt.Sprintf("half-gone-%d", steps)
		if err := c.Objects.CreateBucket(ctx, acct, name, objects.BucketOptions{}); err != nil {
			t.Fatal(err)
		}
		f := &failing{Groups: c.Groups}
		f.left.Store(int64(steps))
		if err := over(c, f).DeleteBucket(ctx, acct, name); !errors.Is(err, errDied) {
			t.Fatalf("deletion with %d commands: %v", steps, err)
		}
		finishBuckets(t, c.Objects)
		_, err := c.Objects.HeadBucket(ctx, acct, name)
		if steps == 0 && err != nil || steps > 0 && !errs.Is(err, errs.NoSuchBucket) {
			t.Fatalf("after %d commands of the deletion: %v", steps, err)
		}
	}
	for steps := range 3 {
		name := fmt.Sprintf("half-changed-%d", steps)
		if err := c.Objects.CreateBucket(ctx, acct, name, objects.BucketOptions{}); err != nil {
			t.Fatal(err)
		}
		f := &failing{Groups: c.Groups}
		f.left.Store(int64(steps))
		if err := over(c, f).PutBucketVersioning(ctx, acct, name, true); !errors.Is(err, errDied) {
			t.Fatalf("configuration with %d commands: %v", steps, err)
		}
		finishBuckets(t, c.Objects)
		b, err := c.Objects.HeadBucket(ctx, acct, name)
		if err != nil || (b.Versioning == metapb.Versioning_VERSIONING_ENABLED) != (steps > 0) {
			t.Fatalf("after %d commands of the configuration: %+v, %v", steps, b, err)
		}
		if got := putVersion(t, c.Objects, name, "key"); (len(got) == 32) != (steps > 0) {
			t.Fatalf("after %d commands of the configuration a put makes version %q", steps, got)
		}
	}
}

func TestMultipart(t *testing.T) { planes(t, testMultipart) }

func testMultipart(t *testing.T, c *core.Core, b harness.Bucket) {
	s, ctx := b.Core.Objects, t.Context()
	up, err := s.CreateUpload(ctx, acct, &objects.CreateUploadInput{Bucket: "bucket", Key: "mp", Attributes: &metapb.Attributes{ContentType: "text/x"}})
	if err != nil {
		t.Fatal(err)
	}
	part := func(n, size int) ([]byte, objects.CompletePart) {
		t.Helper()
		body := make([]byte, size)
		mrand.NewChaCha8([32]byte{byte(n), byte(size), byte(size >> 8)}).Read(body)
		out, err := s.UploadPart(ctx, acct, &objects.UploadPartInput{Bucket: "bucket", Key: "mp", UploadID: up.ID, Number: n, Body: harness.NewBody(body)})
		if err != nil {
			t.Fatal(err)
		}
		return body, objects.CompletePart{Number: n, ETag: out.ETag}
	}
	part(1, 100)                            // replaced below
	part(9, 200)                            // not named in the end
	p3, c3 := part(3, 777)                  // the last may be small
	p1, c1 := part(1, storage.PartBytesMin) // in any order
	p2, c2 := part(2, storage.PartBytesMin+12345)
	complete := func(parts ...objects.CompletePart) (*objects.PutOutput, error) {
		return s.CompleteUpload(ctx, acct, &objects.CompleteInput{Bucket: "bucket", Key: "mp", UploadID: up.ID, Parts: parts})
	}
	if _, err := complete(c2, c1); !errs.Is(err, errs.InvalidPartOrder) {
		t.Fatalf("wrong order: %v", err)
	}
	if _, err := complete(c1, objects.CompletePart{Number: 2, ETag: c1.ETag}); !errs.Is(err, errs.InvalidPart) {
		t.Fatalf("wrong etag: %v", err)
	}
	if _, err := complete(c3, objects.CompletePart{Number: 9, ETag: c3.ETag}); !errs.Is(err, errs.InvalidPart) && !errs.Is(err, errs.EntityTooSmall) {
		t.Fatalf("small part: %v", err)
	}
	out, err := complete(c1, c2, c3)
	if err != nil {
		t.Fatal(err)
	}
	again, err := complete(c1, c2, c3)
	if err != nil || again.ETag != out.ETag || again.VersionID != out.VersionID {
		t.Fatalf("the repeated complete: %v, %v", again, err)
	}
	sum := md5.New()
	for _, p := range [][]byte{p1, p2, p3} {
		h := md5.Sum(p)
		sum.Write(h[:])
	}
	if want := hex.EncodeToString(sum.Sum(nil)) + "-3"; out.ETag != want {
		t.Fatalf("etag %s, want %s", out.ETag, want)
	}
	want := slices.Concat(p1, p2, p3)
	got, err := b.Get(ctx, "mp")
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	for _, r := range [][2]int64{{0, 1}, {storage.PartBytesMin - 1, 2}, {storage.PartBytesMin + 5, 1 << 20}, {int64(len(want)) - 800, 800}} {
		o, err := s.GetObject(ctx, acct, &objects.GetInput{Bucket: "bucket", Key: "mp", Range: &objects.Range{First: r[0], Last: r[0] + r[1] - 1}})
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		if err := o.Send(&buf); err != nil || !bytes.Equal(buf.Bytes(), want[r[0]:r[0]+r[1]]) {
			t.Fatalf("range %v: %d bytes, %v", r, buf.Len(), err)
		}
		o.Close()
	}
	o, err := s.HeadObject(ctx, acct, &objects.GetInput{Bucket: "bucket", Key: "mp", PartNumber: 2})
	if err != nil || o.Length != int64(len(p2)) || o.Offset != int64(len(p1)) || o.Parts != 3 {
		t.Fatalf("part 2: %+v, %v", o, err)
	}
	if err := s.AbortUpload(ctx, acct, "bucket", "mp", up.ID); !errs.Is(err, errs.NoSuchUpload) {
		t.Fatalf("abort of a completed upload: %v", err)
	}
	if err := b.Delete(ctx, "mp"); err != nil {
		t.Fatal(err)
	}
	spaceReturns(t, c)
}

// spaceReturns waits until no drive holds a live shard any more.
func spaceReturns(t *testing.T, c *core.Core) {
	t.Helper()
	var left int64
	for range 400 {
		left = 0
		for _, d := range c.Controller.Drives() {
			left += d.Stats().Shards
		}
		if left == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%d shards are still there", left)
}

func TestCopy(t *testing.T) { planes(t, testCopy) }

func testCopy(t *testing.T, _ *core.Core, b harness.Bucket) {
	s, ctx := b.Core.Objects, t.Context()
	body := bytes.Repeat([]byte("0123456789"), 200_000)
	if err := b.Put(ctx, "src", body); err != nil {
		t.Fatal(err)
	}
	sum := md5.Sum(body)
	out, err := s.CopyObject(ctx, acct, &objects.CopyInput{SourceBucket: "bucket", SourceKey: "src", Bucket: "bucket", Key: "dst"})
	if err != nil || out.ETag != hex.EncodeToString(sum[:]) {
		t.Fatalf("%+v, %v", out, err)
	}
	if err := b.Delete(ctx, "src"); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(ctx, "dst"); err != nil || !bytes.Equal(got, body) {
		t.Fatalf("the copy reads %d bytes, %v", len(got), err)
	}
	_, err = s.CopyObject(ctx, acct, &objects.CopyInput{SourceBucket: "bucket", SourceKey: "dst", Bucket: "bucket", Key: "x", SourceConditions: objects.Conditions{IfNoneMatch: []string{out.ETag}}})
	if !errs.Is(err, errs.PreconditionFailed) {
		t.Fatalf("copy with a failed condition: %v", err)
	}
	other := objects.Account{ID: "stranger"}
	if _, err := s.CopyObject(ctx, other, &objects.CopyInput{SourceBucket: "bucket", SourceKey: "dst", Bucket: "bucket", Key: "x"}); !errs.Is(err, errs.AccessDenied) {
		t.Fatalf("a stranger's copy: %v", err)
	}
}

// TestListings compares listings with a sorted model.
func TestListings(t *testing.T) { planes(t, testListings) }

func testListings(t *testing.T, _ *core.Core, b harness.Bucket) {
	ctx := t.Context()
	seed := seed.Of(t)
	rnd := mrand.New(mrand.NewPCG(seed, 0))
	alphabet := []string{"a", "b", "/", "//", "\x00", "é", "\xff", "~", " "}
	model := map[string]bool{}
	for range 150 {
		var k strings.Builder
		for range 1 + rnd.IntN(5) {
			k.WriteString(alphabet[rnd.IntN(len(alphabet))])
		}
		if err := b.Put(ctx, k.String(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		model[k.String()] = true
	}
	var keys []string
	for k := range model {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	pick := func(from []string) string { return from[rnd.IntN(len(from))] }
	for range 300 {
		in := objects.ListInput{Bucket: "bucket", Max: 1 + rnd.IntN(20)}
		in.Prefix = pick([]string{"", "", "a", "b", "/", "a/", "é"})
		in.Delimiter = pick([]string{"", "/", "/", "//", "a", "a/"})
		in.After = pick([]string{"", "a", "b/", pick(keys)})
		want := expect(keys, in)
		var got []string
		for pages := 0; ; pages++ {
			out, err := b.Core.Objects.ListObjects(ctx, acct, &in)
			if err != nil {
				t.Fatal(err)
			}
			var page []string
			for _, o := range out.Objects {
				page = append(page, string(o.Key))
			}
			page = append(page, out.CommonPrefixes...)
			if len(page) > in.Max {
				t.Fatalf("a page of %d with max %d", len(page), in.Max)
			}
			got = append(got, page...)
			if !out.Truncated {
				break
			}
			in.After = out.Next
			if pages > 400 {
				t.Fatal("the listing does not end")
			}
		}
		sort.Strings(got)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d %+v:\ngot  %q\nwant %q", seed, in, got, want)
		}
	}
}

// expect is a listing by the book: every key behind After with the prefix, folded at the delimiter.
func expect(keys []string, in objects.ListInput) []string {
	var out []string
	for _, k := range keys {
		if !strings.HasPrefix(k, in.Prefix) || k <= in.After {
			continue
		}
		if in.Delimiter != "" {
			if i := strings.Index(k[len(in.Prefix):], in.Delimiter); i >= 0 {
				k = k[:len(in.Prefix)+i+len(in.Delimiter)]
				if k <= in.After {
					continue
				}
			}
		}
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out
}

func TestReadersOfOtherAccounts(t *testing.T) {
	c, b := open(t)
	ctx := t.Context()
	if err := b.Put(ctx, "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	stranger := objects.Account{ID: "stranger"}
	if _, err := c.Objects.GetObject(ctx, stranger, &objects.GetInput{Bucket: "bucket", Key: "k"}); !errs.Is(err, errs.AccessDenied) {
		t.Fatalf("get: %v", err)
	}
	if err := c.Objects.CreateBucket(ctx, stranger, "bucket", objects.BucketOptions{}); !errs.Is(err, errs.BucketAlreadyExists) {
		t.Fatalf("create: %v", err)
	}
	if bs, _, err := c.Objects.ListBuckets(ctx, stranger, "", "", 10); err != nil || len(bs) != 0 {
		t.Fatalf("list: %v, %v", bs, err)
	}
}
