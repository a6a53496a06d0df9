package store

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	mrand "math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/checksum"
	"cairn/storage/errs"
	"cairn/test/harness"
)

// counting counts the reads of ranges.
type counting struct {
	metaclient.Groups
	reads atomic.Int64
}

func (c *counting) Read(ctx context.Context, g cluster.GroupID, fn func(pebble.Reader) error) error {
	c.reads.Add(1)
	return c.Groups.Read(ctx, g, fn)
}

// A download of many parts learns of them as it goes, and ends with the old bytes also if the object and its bucket go meanwhile.
func TestDownloadOfManyParts(t *testing.T) {
	c, b := open(t)
	ctx := t.Context()
	groups := &counting{Groups: c.Groups}
	s := over(c, groups)
	up, err := s.CreateUpload(ctx, acct, &objects.CreateUploadInput{Bucket: "bucket", Key: "key", Attributes: &metapb.Attributes{}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := storage.ParseUploadID(up.ID)
	if err != nil {
		t.Fatal(err)
	}
	const parts = 300
	rnd := mrand.NewChaCha8([32]byte{1})
	var want []byte
	op := &metapb.CompleteUploadOp{Key: []byte("key"), UploadSeq: uint64(id.Seq), UploadNonce: id.Nonce, UploadGeneration: 1 + parts, Etag: "etag-300"}
	for n := range parts {
		p := make([]byte, 900+n%100)
		rnd.Read(p)
		want = append(want, p...)
		if _, err := s.UploadPart(ctx, acct, &objects.UploadPartInput{Bucket: "bucket", Key: "key", UploadID: up.ID, Number: n + 1, Body: harness.NewBody(p)}); err != nil {
			t.Fatal(err)
		}
		op.Parts = append(op.Parts, &metapb.ManifestPart{Number: uint32(n + 1), Size: uint64(len(p))})
	}
	// S3 does not allow such small parts, the range does.
	bucket, err := s.HeadBucket(ctx, acct, "bucket")
	if err != nil {
		t.Fatal(err)
	}
	op.Bucket = uint64(bucket.ID)
	if _, err := c.Meta.Do(ctx, bucket.ID, "key", &metapb.RangeCommand{Op: &metapb.RangeCommand_CompleteUpload{CompleteUpload: op}}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*objects.Range{nil, {First: 1000, Last: 200_000}, {First: 150_000, Last: 150_001}} {
		o, err := s.GetObject(ctx, acct, &objects.GetInput{Bucket: "bucket", Key: "key", Range: r})
		if err != nil {
			t.Fatal(err)
		}
		before := groups.reads.Load()
		var got bytes.Buffer
		if err := o.Send(&got); err != nil {
			t.Fatal(err)
		}
		o.Close()
		if !bytes.Equal(got.Bytes(), want[o.Offset:o.Offset+o.Length]) {
			t.Fatalf("range %v: other bytes came than were put", r)
		}
		// Of the parts' rows, of which each has some more bytes than its part, no more is held than a page.
		if n, pages := groups.reads.Load()-before, o.Length/(70<<10); n < pages || n > 2*pages+1 {
			t.Errorf("range %v: %d bytes took %d reads", r, o.Length, n)
		}
	}
	o, err := s.GetObject(ctx, acct, &objects.GetInput{Bucket: "bucket", Key: "key"})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var got bytes.Buffer
	err = o.Send(writer(func(p []byte) (int, error) {
		if got.Len() == 0 {
			if err := b.Delete(ctx, "key"); err != nil {
				return 0, err
			}
			if err := c.Objects.DeleteBucket(ctx, acct, "bucket"); err != nil {
				return 0, err
			}
		}
		return got.Write(p)
	}))
	if err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the download of an object that was deleted meanwhile: %d bytes of %d, %v", got.Len(), len(want), err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// sumBody is a body with a checksum of its own.
type sumBody struct {
	objects.Body
	alg  metapb.ChecksumAlgorithm
	sums []*metapb.Checksum
}

func (b sumBody) Algorithm() metapb.ChecksumAlgorithm { return b.alg }
func (b sumBody) Checksums() []*metapb.Checksum       { return b.sums }

// A part gets the checksum of its upload, and it is computed only if the body does not.
func TestPartChecksums(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	const unknown = metapb.ChecksumAlgorithm(99) // nobody can compute it: only the body knows it
	put := func(upload metapb.ChecksumAlgorithm, b sumBody) ([]*metapb.Checksum, error) {
		t.Helper()
		up, err := c.Objects.CreateUpload(ctx, acct, &objects.CreateUploadInput{Bucket: "bucket", Key: "key", Attributes: &metapb.Attributes{ChecksumAlgorithm: upload}})
		if err != nil {
			t.Fatal(err)
		}
		b.Body = harness.NewBody([]byte("123456789"))
		out, err := c.Objects.UploadPart(ctx, acct, &objects.UploadPartInput{Bucket: "bucket", Key: "key", UploadID: up.ID, Number: 1, Body: b})
		if err != nil {
			return nil, err
		}
		return out.Checksums, nil
	}
	own := []*metapb.Checksum{{Algorithm: unknown, Value: []byte("sum")}}
	if sums, err := put(unknown, sumBody{alg: unknown, sums: own}); err != nil || len(sums) != 1 || sums[0] != own[0] {
		t.Errorf("the body's own checksum: %v, %v", sums, err)
	}
	crc := []byte{0xcb, 0xf4, 0x39, 0x26} // of 123456789, as everywhere
	dflt := []*metapb.Checksum{{Algorithm: metapb.ChecksumAlgorithm_CRC64NVME, Value: []byte("default")}}
	for name, b := range map[string]sumBody{"the default": {alg: metapb.ChecksumAlgorithm_CRC64NVME, sums: dflt}, "none": {}} {
		sums, err := put(metapb.ChecksumAlgorithm_CRC32, b)
		if err != nil || len(sums) != 1 || !bytes.Equal(sums[0].Value, crc) {
			t.Errorf("a body with %s: %v, %v", name, sums, err)
		}
	}
	if sums, err := put(metapb.ChecksumAlgorithm_CRC32, sumBody{alg: unknown, sums: own}); !errs.Is(err, errs.InvalidRequest) {
		t.Errorf("a body with another checksum than the upload declared: %v, %v", sums, err)
	}
	// An upload that declared none keeps the client's beside its own.
	if sums, err := put(metapb.ChecksumAlgorithm_CHECKSUM_NONE, sumBody{alg: unknown, sums: own}); err != nil || len(sums) != 2 || sums[0] != own[0] {
		t.Errorf("an upload that declared no algorithm: %v, %v", sums, err)
	}
	if _, err := put(unknown, sumBody{}); !errs.Is(err, errs.NotImplemented) {
		t.Errorf("an algorithm that nobody knows: %v", err)
	}
	if sums, err := put(unknown, sumBody{alg: unknown}); err == nil {
		t.Errorf("a body that breaks its promise: %v", sums)
	}
}

// Complete joins the parts' checksums as the upload's type says, and refuses a client that expects another type or value.
func TestCompleteChecksums(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	parts := [][]byte{bytes.Repeat([]byte("a"), storage.PartBytesMin), []byte("the end")}
	for _, tc := range []struct {
		alg  metapb.ChecksumAlgorithm
		full bool
	}{
		{metapb.ChecksumAlgorithm_CRC32, true}, {metapb.ChecksumAlgorithm_CRC32, false}, {metapb.ChecksumAlgorithm_CRC64NVME, true}, {0, true},
		{metapb.ChecksumAlgorithm_CHECKSUM_MD5, false}, {metapb.ChecksumAlgorithm_XXHASH3, false}, {metapb.ChecksumAlgorithm_XXHASH128, false}, {metapb.ChecksumAlgorithm_SHA512, false},
	} {
		alg := tc.alg
		if alg == 0 {
			alg = metapb.ChecksumAlgorithm_CRC64NVME
		}
		up, err := c.Objects.CreateUpload(ctx, acct, &objects.CreateUploadInput{Bucket: "bucket", Key: "key", Attributes: &metapb.Attributes{ChecksumAlgorithm: tc.alg, ChecksumFullObject: tc.full && tc.alg != 0}})
		if err != nil {
			t.Fatal(err)
		}
		in := &objects.CompleteInput{Bucket: "bucket", Key: "key", UploadID: up.ID}
		whole := checksum.New(alg)
		for i, p := range parts {
			out, err := c.Objects.UploadPart(ctx, acct, &objects.UploadPartInput{Bucket: "bucket", Key: "key", UploadID: up.ID, Number: i + 1, Body: harness.NewBody(p)})
			if err != nil {
				t.Fatal(err)
			}
			in.Parts = append(in.Parts, objects.CompletePart{Number: i + 1, ETag: out.ETag, Checksums: out.Checksums})
			if tc.full {
				whole.Write(p)
			} else {
				whole.Write(out.Checksums[0].Value)
			}
		}
		want := whole.Sum(nil)
		kind, other := "COMPOSITE", "FULL_OBJECT"
		if tc.full {
			kind, other = other, kind
		}
		in.ChecksumType = other
		if _, err := c.Objects.CompleteUpload(ctx, acct, in); !errs.Is(err, errs.InvalidRequest) {
			t.Errorf("%v: completed as %s: %v", tc, other, err)
		}
		in.ChecksumType, in.Checksums = kind, []*metapb.Checksum{{Algorithm: alg, Value: make([]byte, len(want))}}
		if _, err := c.Objects.CompleteUpload(ctx, acct, in); !errs.Is(err, errs.BadDigest) {
			t.Errorf("%v: completed with a wrong checksum: %v", tc, err)
		}
		in.Checksums[0].Value = want
		out, err := c.Objects.CompleteUpload(ctx, acct, in)
		if err != nil || len(out.Checksums) != 1 || out.Checksums[0].Composite == tc.full || !bytes.Equal(out.Checksums[0].Value, want) {
			t.Errorf("%v: %v, %v", tc, out, err)
		}
		// A part is verified with its own checksum.
		for i := range parts {
			o, err := c.Objects.HeadObject(ctx, acct, &objects.GetInput{Bucket: "bucket", Key: "key", PartNumber: i + 1})
			if err != nil {
				t.Fatal(err)
			}
			if len(o.PartChecksums) != 1 || o.PartChecksums[0].Algorithm != alg || !bytes.Equal(o.PartChecksums[0].Value, in.Parts[i].Checksums[0].Value) {
				t.Errorf("%v: part %d shows %v", tc, i+1, o.PartChecksums)
			}
		}
	}
}

// lateBody is a body that knows its size only when its last bytes are near.
type lateBody struct {
	objects.Body
	sure, rest int64
	err        error // of Rest
	asked      bool
}

func (b *lateBody) Size() int64 { return b.sure + b.rest + 1000 }
func (b *lateBody) Sure() int64 { return b.sure }
func (b *lateBody) Rest() (int64, error) {
	b.asked = true
	return b.rest, b.err
}

// A body whose size shows late is stored like any other, and one that is refused at its end is not.
func TestLateBodies(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	for _, n := range [][2]int64{{100_000, 0}, {100_000, 1}, {storage.StripeBytes, 20_000}, {storage.StripeBytes + 1, storage.ReplicateBelow}, {storage.ChunkBytesMax + 5, 7}} {
		data := make([]byte, n[0]+n[1])
		for i := range data {
			data[i] = byte(i * i >> 7)
		}
		out, err := c.Objects.PutObject(ctx, acct, &objects.PutInput{Bucket: "bucket", Key: "late", Body: &lateBody{Body: harness.NewBody(data), sure: n[0], rest: n[1]}})
		if err != nil || out.Size != int64(len(data)) || out.ETag != hex.EncodeToString(md5Of(data)) {
			t.Fatalf("%v: %+v, %v", n, out, err)
		}
		o, err := c.Objects.GetObject(ctx, acct, &objects.GetInput{Bucket: "bucket", Key: "late", Range: &objects.Range{First: n[0] - 3, Last: -1}})
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		err = o.Send(&got)
		o.Close()
		if err != nil || o.Size != int64(len(data)) || !bytes.Equal(got.Bytes(), data[n[0]-3:]) {
			t.Errorf("%v: read back %d bytes, %v", n, got.Len(), err)
		}
	}
	refusal := errs.New(errs.EntityTooLarge, "test", "", "")
	b := &lateBody{Body: harness.NewBody(make([]byte, 200_000)), sure: 200_000, err: refusal}
	if _, err := c.Objects.PutObject(ctx, acct, &objects.PutInput{Bucket: "bucket", Key: "refused", Body: b}); !errs.Is(err, errs.EntityTooLarge) || !b.asked {
		t.Errorf("refused at its end: %v", err)
	}
	if _, err := c.Objects.HeadObject(ctx, acct, &objects.GetInput{Bucket: "bucket", Key: "refused"}); !errs.Is(err, errs.NoSuchKey) {
		t.Errorf("what was refused: %v", err)
	}
	large := &lateBody{Body: harness.NewBody(nil), sure: storage.PutBytesMax + 1}
	if _, err := c.Objects.PutObject(ctx, acct, &objects.PutInput{Bucket: "bucket", Key: "refused", Body: large}); !errs.Is(err, errs.EntityTooLarge) {
		t.Errorf("too large for certain: %v", err)
	}
}

func md5Of(b []byte) []byte {
	sum := md5.Sum(b)
	return sum[:]
}
