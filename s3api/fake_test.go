package s3api

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/checksum"
	"cairn/storage/errs"
)

// fake is a Backend in memory: the smallest that means what S3 means.
type fake struct {
	mu       sync.Mutex
	buckets  map[string]*fakeBucket
	uploads  int
	seq      uint64 // of versions
	err      error  // answered by every call, if set
	sendErr  error  // answered by Send after sendN bytes, if set
	sendN    int
	block    chan struct{} // HeadObject waits for it, if set
	now      time.Time
	puts     []*objects.PutInput        // as they came
	targets  []string                   // of events
	asked    func(acct objects.Account) // told who asks about a bucket, if set
	untagged []objects.VersionRef       // whose tags were deleted
	open     int                        // objects not closed
}

type fakeBucket struct {
	objects.Bucket
	objects map[string]*fakeObject   // the current ones; see fakeBucket.settle
	history map[string][]*fakeObject // versions and markers of each key, the newest first
	uploads map[string]*fakeUpload
}

type fakeObject struct {
	id       string // of its version
	marker   bool
	data     []byte
	etag     string
	attrs    *metapb.Attributes
	sums     []*metapb.Checksum
	modified time.Time
	parts    []int
	detail   []objects.Part // of the parts
	restore  *metapb.Restore
	tiering  *metapb.Tiering
}

type fakeUpload struct {
	objects.Upload
	parts map[int]*fakeObject
}

func newFake() *fake {
	return &fake{buckets: map[string]*fakeBucket{}, now: time.Date(2026, 11, 3, 10, 20, 30, 123e6, time.UTC)}
}

func (f *fake) bucket(acct objects.Account, name string) (*fakeBucket, error) {
	if f.err != nil {
		return nil, f.err
	}
	if f.asked != nil {
		f.asked(acct)
	}
	b := f.buckets[name]
	if b == nil {
		return nil, errs.New(errs.NoSuchBucket, "fake", name, "")
	}
	if b.Owner != acct.ID {
		return nil, errs.New(errs.AccessDenied, "fake", name, "")
	}
	return b, nil
}

func (f *fake) CreateBucket(_ context.Context, acct objects.Account, name string, opt objects.BucketOptions) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if b := f.buckets[name]; b != nil {
		if b.Owner == acct.ID {
			return errs.New(errs.BucketAlreadyOwned, "fake", name, "")
		}
		return errs.New(errs.BucketAlreadyExists, "fake", name, "")
	}
	b := &fakeBucket{Bucket: objects.Bucket{Name: name, Owner: acct.ID, Region: opt.Region, Created: f.now, OwnershipControls: true}, objects: map[string]*fakeObject{}, history: map[string][]*fakeObject{}, uploads: map[string]*fakeUpload{}}
	if opt.ObjectLock {
		b.Versioning, b.Lock.Enabled = metapb.Versioning_VERSIONING_ENABLED, true
	}
	f.buckets[name] = b
	return nil
}

func (f *fake) HeadBucket(_ context.Context, acct objects.Account, name string) (objects.Bucket, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err != nil {
		return objects.Bucket{}, err
	}
	return b.Bucket, nil
}

func (f *fake) DeleteBucket(_ context.Context, acct objects.Account, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err != nil {
		return err
	}
	if len(b.history) > 0 {
		return errs.New(errs.BucketNotEmpty, "fake", name, "")
	}
	delete(f.buckets, name)
	return nil
}

func (f *fake) ListBuckets(_ context.Context, acct objects.Account, prefix, after string, max int) (out []objects.Bucket, truncated bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range sortedKeys(f.buckets) {
		if b := f.buckets[name]; b.Owner == acct.ID && strings.HasPrefix(name, prefix) && name > after {
			if len(out) == max {
				return out, true, f.err
			}
			out = append(out, b.Bucket)
		}
	}
	return out, false, f.err
}

func sortedKeys[V any](m map[string]V) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	return ks
}

// readBody reads a body in small pieces, so that every path of the reader is walked.
func readBody(b objects.Body, algs ...metapb.ChecksumAlgorithm) (*fakeObject, error) {
	var buf bytes.Buffer
	want := b.Size()
	if l, ok := b.(objects.LateBody); ok && l.Sure() > 0 {
		sure := l.Sure()
		if _, err := io.CopyN(&buf, b, sure); err != nil {
			return nil, err
		}
		rest, err := l.Rest()
		if err != nil {
			return nil, err
		}
		want = sure + rest
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{&buf}, struct{ io.Reader }{b}, make([]byte, 1000)); err != nil {
		return nil, err
	}
	if int64(buf.Len()) != want {
		return nil, errs.New(errs.Other, "fake", "", "size")
	}
	sum := md5.Sum(buf.Bytes())
	o := &fakeObject{data: buf.Bytes(), etag: hex.EncodeToString(sum[:]), sums: b.Checksums()}
	for _, a := range algs {
		if h := checksum.New(a); h != nil && o.sums[0].Algorithm != a {
			h.Write(o.data)
			o.sums = []*metapb.Checksum{{Algorithm: a, Value: h.Sum(nil)}}
		}
	}
	return o, nil
}

func (o *fakeObject) check(c objects.Conditions) (notModified bool, err error) {
	listed := func(l []string) bool { return slices.Contains(l, "*") || slices.Contains(l, o.etag) }
	at := o.modified.Truncate(time.Second)
	switch {
	case len(c.IfMatch) > 0 && !listed(c.IfMatch), len(c.IfMatch) == 0 && !c.IfUnmodifiedSince.IsZero() && at.After(c.IfUnmodifiedSince),
		c.IfMatchSize != nil && *c.IfMatchSize != int64(len(o.data)), !c.IfMatchModified.IsZero() && !c.IfMatchModified.Equal(at):
		return false, errs.New(errs.PreconditionFailed, "fake", "", "")
	case len(c.IfNoneMatch) > 0:
		return listed(c.IfNoneMatch), nil
	}
	return !c.IfModifiedSince.IsZero() && !at.After(c.IfModifiedSince), nil
}

func (b *fakeBucket) writable(key storage.Key, c objects.Conditions) error {
	o := b.objects[string(key)]
	if o == nil {
		if len(c.IfMatch) > 0 {
			return errs.New(errs.NoSuchKey, "fake", string(key), "")
		}
		return nil
	}
	if clash, err := o.check(c); err != nil || clash {
		return errs.New(errs.PreconditionFailed, "fake", string(key), "")
	}
	return nil
}

func (f *fake) PutObject(_ context.Context, acct objects.Account, in *objects.PutInput) (*objects.PutOutput, error) {
	f.mu.Lock()
	b, err := f.bucket(acct, in.Bucket)
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	o, err := readBody(in.Body)
	if err != nil {
		return nil, errs.Wrap(errs.KindOf(err), "fake.put", string(in.Key), err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := b.writable(in.Key, in.Conditions); err != nil {
		return nil, err
	}
	if err := b.mayLock(in.Attributes); err != nil {
		return nil, err
	}
	f.puts = append(f.puts, in)
	return f.store(b, in.Key, o, in.Attributes), nil
}

func (f *fake) store(b *fakeBucket, key storage.Key, o *fakeObject, attrs *metapb.Attributes) *objects.PutOutput {
	o.attrs = attrs
	if b.Lock.Mode != "" && attrs.GetLockMode() == "" {
		o.attrs = attrs.CloneVT()
		o.attrs.LockMode, o.attrs.LockUntilMs = b.Lock.Mode, f.now.AddDate(int(b.Lock.Years), 0, int(b.Lock.Days)).UnixMilli()
	}
	f.push(b, string(key), o)
	return &objects.PutOutput{ETag: o.etag, VersionID: b.shown(o), Checksums: o.sums, Modified: o.modified, Size: int64(len(o.data)), Attributes: o.attrs, Lifecycle: b.Lifecycle}
}

func (f *fake) find(acct objects.Account, in *objects.GetInput) (*objects.Object, *fakeObject, error) {
	b, err := f.bucket(acct, in.Bucket)
	if err != nil {
		return nil, nil, err
	}
	o, err := b.version(in.Key, in.VersionID)
	if err != nil {
		return nil, nil, err
	}
	out := b.object(string(in.Key), o)
	if out.VersionID = b.shown(o); in.VersionID != "" {
		out.VersionID = o.id
	} else {
		out.Lifecycle = b.Lifecycle
	}
	if out.NotModified, err = o.check(in.Conditions); err != nil || out.NotModified {
		return out, o, err
	}
	out.Length = out.Size
	switch {
	case in.PartNumber > 0:
		if in.PartNumber > max(len(o.parts), 1) {
			return nil, nil, errs.New(errs.InvalidRange, "fake", "", "no such part")
		}
		out.Partial = true
		if len(o.parts) > 0 {
			for _, n := range o.parts[:in.PartNumber-1] {
				out.Offset += int64(n)
			}
			out.Length = int64(o.parts[in.PartNumber-1])
			out.PartChecksums = o.detail[in.PartNumber-1].Checksums
		}
	case in.Range != nil:
		first, last := in.Range.First, in.Range.Last
		if in.Range.Suffix {
			first, last = max(0, out.Size-last), out.Size-1
			if in.Range.Last == 0 {
				first = out.Size
			}
		}
		if last < 0 || last >= out.Size {
			last = out.Size - 1
		}
		if first > last {
			return nil, nil, errs.New(errs.InvalidRange, "fake", "", "")
		}
		out.Offset, out.Length, out.Partial = first, last-first+1, true
	}
	return out, o, nil
}

func (b *fakeBucket) object(key string, o *fakeObject) *objects.Object {
	return &objects.Object{Key: storage.Key(key), Size: int64(len(o.data)), ETag: o.etag, Modified: o.modified, Attributes: o.attrs, Checksums: o.sums, Owner: b.Owner, Parts: len(o.parts), Restore: o.restore, Tiering: o.tiering}
}

// read is find for who wants the bytes.
func (f *fake) read(acct objects.Account, in *objects.GetInput) (*objects.Object, *fakeObject, error) {
	out, o, err := f.find(acct, in)
	if err == nil && !out.NotModified && o.archived() && !o.readable(f.now) {
		err = o.refuse()
	}
	return out, o, err
}

func (f *fake) GetObject(_ context.Context, acct objects.Account, in *objects.GetInput) (*objects.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out, o, err := f.read(acct, in)
	if err != nil {
		return nil, err
	}
	f.open++
	sendErr, sendN := f.sendErr, f.sendN
	send := func(w io.Writer) error {
		data := o.data[out.Offset : out.Offset+out.Length]
		if sendErr != nil {
			if sendN > 0 {
				w.Write(data[:sendN])
			}
			return sendErr
		}
		_, err := w.Write(data)
		return err
	}
	out.Attach(send, func() { f.mu.Lock(); f.open--; f.mu.Unlock() })
	return out, nil
}

func (f *fake) HeadObject(ctx context.Context, acct objects.Account, in *objects.GetInput) (*objects.Object, error) {
	if f.block != nil {
		<-f.block
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out, _, err := f.find(acct, in)
	return out, err
}

func (f *fake) DeleteObject(ctx context.Context, acct objects.Account, bucket string, item objects.DeleteItem) (objects.DeleteResult, error) {
	res, err := f.DeleteObjects(ctx, acct, bucket, []objects.DeleteItem{item})
	if err != nil {
		return objects.DeleteResult{}, err
	}
	return res[0], res[0].Err
}

func (f *fake) DeleteObjects(_ context.Context, acct objects.Account, bucket string, items []objects.DeleteItem) ([]objects.DeleteResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, bucket)
	if err != nil {
		return nil, err
	}
	out := make([]objects.DeleteResult, len(items))
	for i, it := range items {
		if out[i], err = f.remove(b, it); err != nil {
			out[i] = objects.DeleteResult{Err: err}
		}
	}
	return out, nil
}

func (f *fake) CopyObject(_ context.Context, acct objects.Account, in *objects.CopyInput) (*objects.PutOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o, src, err := f.read(acct, &objects.GetInput{Bucket: in.SourceBucket, Key: in.SourceKey, VersionID: in.SourceVersionID, Conditions: in.SourceConditions})
	if err == nil && o.NotModified {
		err = errs.New(errs.PreconditionFailed, "fake", "", "")
	}
	if err != nil {
		return nil, err
	}
	b, err := f.bucket(acct, in.Bucket)
	if err != nil {
		return nil, err
	}
	if err := b.writable(in.Key, in.Conditions); err != nil {
		return nil, err
	}
	dup := *src
	dup.parts, dup.detail, dup.restore = nil, nil, nil
	dup.tiering = nil
	attrs := in.Attributes.CloneVT()
	if attrs == nil {
		attrs = src.attrs.CloneVT()
		attrs.StorageClass = in.StorageClass
	}
	if attrs.Tags = in.Tags; !in.ReplaceTags {
		attrs.Tags = src.attrs.GetTags()
	}
	attrs.LockMode, attrs.LockUntilMs, attrs.LegalHold = in.Retention.Mode, 0, in.LegalHold
	if in.Retention.Mode != "" {
		attrs.LockUntilMs = in.Retention.Until.UnixMilli()
	}
	if err := b.mayLock(attrs); err != nil {
		return nil, err
	}
	if h := checksum.New(in.ChecksumAlgorithm); h != nil {
		h.Write(src.data)
		dup.sums = []*metapb.Checksum{{Algorithm: in.ChecksumAlgorithm, Value: h.Sum(nil)}}
	}
	return f.store(b, in.Key, &dup, attrs), nil
}

func (f *fake) ListObjects(_ context.Context, acct objects.Account, in *objects.ListInput) (*objects.ListOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, in.Bucket)
	if err != nil {
		return nil, err
	}
	out := &objects.ListOutput{}
	for _, k := range sortedKeys(b.objects) {
		if !strings.HasPrefix(k, in.Prefix) || k <= in.After {
			continue
		}
		common := ""
		if in.Delimiter != "" {
			if i := strings.Index(k[len(in.Prefix):], in.Delimiter); i >= 0 {
				common = k[:len(in.Prefix)+i+len(in.Delimiter)]
				if common <= in.After || slices.Contains(out.CommonPrefixes, common) {
					continue
				}
			}
		}
		if len(out.Objects)+len(out.CommonPrefixes) == in.Max {
			out.Truncated = true
			break
		}
		if common != "" {
			out.CommonPrefixes = append(out.CommonPrefixes, common)
			out.Next = common
			continue
		}
		out.Objects = append(out.Objects, b.object(k, b.objects[k]))
		out.Next = k
	}
	return out, nil
}

func (f *fake) CreateUpload(_ context.Context, acct objects.Account, in *objects.CreateUploadInput) (objects.Upload, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, in.Bucket)
	if err != nil {
		return objects.Upload{}, err
	}
	if err := b.mayLock(in.Attributes); err != nil {
		return objects.Upload{}, err
	}
	f.uploads++
	u := &fakeUpload{Upload: objects.Upload{Key: in.Key, ID: fmt.Sprintf("upload-%04d", f.uploads), Initiated: f.now, Owner: acct.ID, Attributes: in.Attributes, Lifecycle: b.Lifecycle}, parts: map[int]*fakeObject{}}
	b.uploads[u.ID] = u
	return u.Upload, nil
}

func (f *fake) upload(acct objects.Account, bucket string, key storage.Key, id string) (*fakeBucket, *fakeUpload, error) {
	b, err := f.bucket(acct, bucket)
	if err != nil {
		return nil, nil, err
	}
	u := b.uploads[id]
	if u == nil || u.Key != key {
		return nil, nil, errs.New(errs.NoSuchUpload, "fake", id, "")
	}
	return b, u, nil
}

func (f *fake) UploadPart(_ context.Context, acct objects.Account, in *objects.UploadPartInput) (*objects.PutOutput, error) {
	f.mu.Lock()
	_, u, err := f.upload(acct, in.Bucket, in.Key, in.UploadID)
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	o, err := readBody(in.Body, u.Attributes.GetChecksumAlgorithm())
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	o.modified = f.now
	u.parts[in.Number] = o
	return &objects.PutOutput{ETag: o.etag, Checksums: o.sums, Modified: o.modified, Size: int64(len(o.data))}, nil
}

func (f *fake) UploadPartCopy(_ context.Context, acct objects.Account, in *objects.UploadPartCopyInput) (*objects.PutOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, u, err := f.upload(acct, in.Bucket, in.Key, in.UploadID)
	if err != nil {
		return nil, err
	}
	o, src, err := f.read(acct, &objects.GetInput{Bucket: in.SourceBucket, Key: in.SourceKey, VersionID: in.SourceVersionID, Conditions: in.SourceConditions, Range: in.SourceRange})
	if err != nil {
		return nil, err
	}
	data := src.data[o.Offset : o.Offset+o.Length]
	sum := md5.Sum(data)
	h := checksum.New(metapb.ChecksumAlgorithm_CRC64NVME)
	h.Write(data)
	u.parts[in.Number] = &fakeObject{data: data, etag: hex.EncodeToString(sum[:]), modified: f.now, sums: []*metapb.Checksum{{Algorithm: metapb.ChecksumAlgorithm_CRC64NVME, Value: h.Sum(nil)}}}
	return &objects.PutOutput{ETag: hex.EncodeToString(sum[:]), Modified: f.now, Size: o.Length, Checksums: u.parts[in.Number].sums}, nil
}

func (f *fake) CompleteUpload(_ context.Context, acct objects.Account, in *objects.CompleteInput) (*objects.PutOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, u, err := f.upload(acct, in.Bucket, in.Key, in.UploadID)
	if err != nil {
		return nil, err
	}
	if err := b.writable(in.Key, in.Conditions); err != nil {
		return nil, err
	}
	alg, full := u.Attributes.GetChecksumAlgorithm(), u.Attributes.GetChecksumFullObject()
	if alg == 0 {
		alg, full = metapb.ChecksumAlgorithm_CRC64NVME, true
	}
	joiner, err := checksum.NewJoiner(alg, full)
	if err != nil {
		return nil, err
	}
	o := &fakeObject{}
	sum := md5.New()
	for _, p := range in.Parts {
		part := u.parts[p.Number]
		if part == nil || part.etag != p.ETag {
			return nil, errs.Newf(errs.InvalidPart, "fake", "", "part %d", p.Number)
		}
		raw, _ := hex.DecodeString(part.etag)
		sum.Write(raw)
		if part.sums[0].Algorithm != alg {
			joiner = nil // as the store: nothing to join
		} else if joiner != nil {
			if err := joiner.Add(part.sums[0].Value, int64(len(part.data))); err != nil {
				return nil, err
			}
		}
		o.data = append(o.data, part.data...)
		o.parts = append(o.parts, len(part.data))
		o.detail = append(o.detail, objects.Part{Number: p.Number, ETag: part.etag, Size: int64(len(part.data)), Checksums: part.sums})
	}
	o.etag = fmt.Sprintf("%x-%d", sum.Sum(nil), len(in.Parts))
	if joiner != nil {
		o.sums = []*metapb.Checksum{joiner.Checksum()}
	}
	for _, c := range in.Checksums {
		if c.Algorithm != o.sums[0].Algorithm || !bytes.Equal(c.Value, o.sums[0].Value) {
			return nil, errs.New(errs.BadDigest, "fake", "", "")
		}
	}
	delete(b.uploads, in.UploadID)
	return f.store(b, in.Key, o, u.Attributes), nil
}

func (f *fake) AbortUpload(_ context.Context, acct objects.Account, bucket string, key storage.Key, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, _, err := f.upload(acct, bucket, key, id)
	if err != nil {
		return err
	}
	delete(b.uploads, id)
	return nil
}

func (f *fake) ListParts(_ context.Context, acct objects.Account, in *objects.ListPartsInput) (*objects.ListPartsOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, u, err := f.upload(acct, in.Bucket, in.Key, in.UploadID)
	if err != nil {
		return nil, err
	}
	out := &objects.ListPartsOutput{Upload: u.Upload}
	out.Upload.Lifecycle = b.Lifecycle
	for n := in.After + 1; n <= storage.PartNumberMax; n++ {
		p := u.parts[n]
		if p == nil {
			continue
		}
		if len(out.Parts) == in.Max {
			out.Truncated = true
			break
		}
		out.Parts = append(out.Parts, objects.Part{Number: n, ETag: p.etag, Size: int64(len(p.data)), Modified: p.modified, Checksums: p.sums})
		out.Next = n
	}
	return out, nil
}

func (f *fake) ListUploads(_ context.Context, acct objects.Account, in *objects.ListUploadsInput) (*objects.ListUploadsOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, in.Bucket)
	if err != nil {
		return nil, err
	}
	out := &objects.ListUploadsOutput{}
	ids := sortedKeys(b.uploads)
	sort.SliceStable(ids, func(i, j int) bool { return b.uploads[ids[i]].Key < b.uploads[ids[j]].Key })
	for _, id := range ids {
		u := b.uploads[id]
		if !strings.HasPrefix(string(u.Key), in.Prefix) || string(u.Key) < in.KeyMarker || string(u.Key) == in.KeyMarker && id <= in.UploadIDMarker {
			continue
		}
		if len(out.Uploads) == in.Max {
			out.Truncated = true
			break
		}
		out.Uploads = append(out.Uploads, u.Upload)
		out.NextKey, out.NextUploadID = string(u.Key), id
	}
	return out, nil
}

var errBoom = errors.New("boom")
