package verify

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
)

// world is a store in small: six drives in three zones, a range, and rows.
type world struct {
	*storagetest.Cluster
	items    []*rangestate.Item
	timeMS   int64
	seq      uint64
	coded    storage.PGID
	copied   storage.PGID
	replicas []Replica
	walked   func() // called after the walk: what changes during the check
	scanned  func() // called after a drive's scan
	bad      []string
}

func newWorld() *world {
	w := &world{Cluster: storagetest.NewCluster(3, 2), timeMS: time.Now().UnixMilli()}
	w.coded = w.AddPG(storage.Scheme{K: 2, M: 4}, 1, 2, 3, 4, 5, 6)
	w.copied = w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	for i := range 3 {
		w.replicas = append(w.replicas, Replica{Group: cluster.FirstRange, Drive: w.Drive(byte(i + 1)).ID, Voter: true, Applied: 7, Hash: []byte("same")})
	}
	return w
}

func (w *world) next() storage.WriteID {
	w.seq++
	var id storage.WriteID
	binary.BigEndian.PutUint64(id[:], w.seq)
	return id
}

// noise is n bytes that look random, the same each time.
func noise(n int) []byte {
	rnd := rand.New(rand.NewPCG(uint64(n), 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func sumOf(b []byte) string { s := md5.Sum(b); return hex.EncodeToString(s[:]) }

// put adds a version of one chunk.
func (w *world) put(key storage.Key, pg storage.PGID, size int, skip uint64) *rangestate.Item {
	id := w.next()
	data := noise(size)
	ref := w.Write(storage.Owner{Bucket: 1, Key: key, Write: id}, pg, w.timeMS-time.Hour.Milliseconds(), data, skip)
	it := &rangestate.Item{Kind: 'c', Bucket: 1, Key: key, Object: &metapb.ObjectRow{
		Seq: w.seq, NullVersion: true, WriteId: id[:], Size: uint64(size), Etag: sumOf(data),
		Data: &metapb.Data{Generation: 1, Chunks: []*metapb.ChunkRef{ref}},
	}}
	w.items = append(w.items, it)
	return it
}

func (w *world) inline(key storage.Key, data string) *rangestate.Item {
	id := w.next()
	it := &rangestate.Item{Kind: 'v', Bucket: 1, Key: key, Object: &metapb.ObjectRow{
		Seq: w.seq, Nonce: 5, WriteId: id[:], Size: uint64(len(data)), Etag: sumOf([]byte(data)), Data: &metapb.Data{Inline: []byte(data)},
	}}
	w.items = append(w.items, it)
	return it
}

// multipart adds a completed upload of parts.
func (w *world) multipart(key storage.Key, parts int) (object, manifest *rangestate.Item, rows []*rangestate.Item) {
	id := w.next()
	up := w.seq
	sums := md5.New()
	manifest = &rangestate.Item{Kind: 'm', Bucket: 1, Key: key, Seq: storage.Seq(up), Manifest: &metapb.ManifestRow{}}
	size := 0
	for n := range uint32(parts) {
		it := w.put(key, w.coded, 2000+int(n), 0)
		s, _ := hex.DecodeString(it.Object.Etag)
		sums.Write(s)
		*it = rangestate.Item{Kind: 'p', Bucket: 1, Key: key, Seq: storage.Seq(up), Number: n + 1, Part: &metapb.PartRow{
			Number: n + 1, WriteId: it.Object.WriteId, Size: it.Object.Size, Etag: it.Object.Etag, Data: it.Object.Data,
		}}
		rows = append(rows, it)
		size += int(it.Part.Size)
		manifest.Manifest.Parts = append(manifest.Manifest.Parts, &metapb.ManifestPart{Number: n + 1, Size: it.Part.Size})
	}
	object = &rangestate.Item{Kind: 'c', Bucket: 1, Key: key, Object: &metapb.ObjectRow{
		Seq: up, Nonce: 3, WriteId: id[:], Size: uint64(size), Etag: fmt.Sprintf("%x-%d", sums.Sum(nil), parts),
		Data: &metapb.Data{UploadSeq: up, Parts: uint32(parts)},
	}}
	w.items = append(w.items, object, manifest)
	return object, manifest, rows
}

func (w *world) drop(it *rangestate.Item) {
	w.items = slices.DeleteFunc(w.items, func(x *rangestate.Item) bool { return x == it })
}

// fill stores some of everything, all of it sound.
func (w *world) fill() {
	for i := range 12 {
		w.put(storage.Key(fmt.Sprint("coded", i)), w.coded, 1+i*400, 0)
		w.put(storage.Key(fmt.Sprint("copied", i)), w.copied, 1+i*400, 0)
	}
	w.inline("inline", "hello")
	w.inline("empty", "")
	w.items = append(w.items, &rangestate.Item{Kind: 'v', Bucket: 1, Key: "marker", Object: &metapb.ObjectRow{Seq: 9, DeleteMarker: true}})
	w.multipart("multipart", 3)
	w.garbage(w.put("deleted", w.copied, 700, 0))
	up := w.put("uploading", w.coded, 900, 0)
	*up = rangestate.Item{Kind: 'p', Bucket: 1, Key: "uploading", Seq: 1000, Number: 4, Part: &metapb.PartRow{
		Number: 4, WriteId: up.Object.WriteId, Size: up.Object.Size, Etag: up.Object.Etag, Data: up.Object.Data,
	}}
	w.items = append(w.items, &rangestate.Item{Kind: 'u', Bucket: 1, Key: "uploading", Seq: 1000, Upload: &metapb.UploadRow{Seq: 1000}})
	w.drop(w.put("under way", w.coded, 5000, 0)) // not committed
	// A write that moved to another group left this, with frames behind its end.
	moved := w.put("moved", w.coded, 5000, 0)
	moved.Object.Data.Chunks[0].Length = 2048
	moved.Object.Size, moved.Object.Etag = 2048, "d41d8cd98f00b204e9800998ecf8427e-1"
}

// garbage turns a version into a garbage row.
func (w *world) garbage(it *rangestate.Item) {
	*it = rangestate.Item{Kind: 'g', Bucket: 1, Key: it.Key, Seq: storage.Seq(it.Object.Seq), Garbage: &metapb.GarbageRow{
		Bucket: 1, Key: []byte(it.Key), PinWrite: it.Object.WriteId, Chunks: it.Object.Data.Chunks,
	}}
}

func (w *world) Ranges() []cluster.GroupID { return []cluster.GroupID{cluster.FirstRange} }

func (w *world) Walk(_ context.Context, _ cluster.GroupID, fn func(*rangestate.Item) error) (int64, error) {
	for _, it := range w.items {
		if err := fn(it); err != nil {
			return 0, err
		}
	}
	if w.walked != nil {
		w.walked()
	}
	return w.timeMS, nil
}

func (w *world) Ref(_ context.Context, o storage.Owner, chunk storage.ChunkID) (*metapb.ChunkRef, error) {
	for _, it := range w.items {
		for _, ref := range append(it.Object.GetData().GetChunks(), it.Part.GetData().GetChunks()...) {
			if it.Key == o.Key && storage.ChunkID(ref.Id) == chunk {
				return ref.CloneVT(), nil
			}
		}
	}
	return nil, nil
}

func (w *world) Refers(ctx context.Context, o storage.Owner, chunk storage.ChunkID) (bool, int64, error) {
	ref, err := w.Ref(ctx, o, chunk)
	return ref != nil, w.timeMS, err
}

func (w *world) Replicas(context.Context) ([]Replica, error) { return w.replicas, nil }

// read is chunkio.Plane.Read.
func (w *world) read(ctx context.Context, _ storage.Owner, refs []*metapb.ChunkRef, _, _ int64, write func([]byte) error) error {
	b, err := w.ReadAll(ctx, refs)
	if err != nil {
		return err
	}
	return write(b)
}

func (w *world) scan(d *storagetest.Drive) func(context.Context, func(Frame) error) error {
	return func(_ context.Context, fn func(Frame) error) error {
		for _, s := range d.Shards() {
			f := Frame{Header: s.Header, Bytes: len(s.Payload), Where: "extent 1 at 4096"}
			if s.Corrupt {
				f.Err = errs.New(errs.Corrupt, "scan", "", "block 0 does not match its checksum")
			}
			if err := fn(f); err != nil {
				return err
			}
		}
		if w.scanned != nil {
			w.scanned()
		}
		return nil
	}
}

// check runs a verification of all active drives. Live: of a running server.
func (w *world) check(t *testing.T, live bool, tune ...func(*Config)) *status.Report {
	t.Helper()
	cfg := Config{
		Topology: w.Topology, Meta: w, TempDir: t.TempDir(), SortBytes: 32 << 10, Deep: true, Read: w.read, Parallel: 1,
		BucketName: func(storage.BucketID) string { return "photos" },
		OnBad: func(o storage.Owner, _ *metapb.ChunkRef, stripe, index int, _ storage.DriveID, err error) {
			w.bad = append(w.bad, fmt.Sprintf("%s %d %d %v", o.Key, stripe, index, errs.KindOf(err)))
		},
	}
	for n := byte(1); n <= 6; n++ {
		d := w.Drive(n)
		if w.Topology().Drives[d.ID].State != cluster.DriveActive {
			continue
		}
		x := Drive{ID: d.ID, Path: fmt.Sprintf("/drive-%d", n), Scan: w.scan(d)}
		if live {
			x.Store = d
		}
		cfg.Drives = append(cfg.Drives, x)
	}
	for _, f := range tune {
		f(&cfg)
	}
	rep, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func wantClean(t *testing.T, rep *status.Report) {
	t.Helper()
	if rep.Found != 0 {
		t.Fatalf("%d problems: %v", rep.Found, rep.Problems)
	}
}

// wantOnly wants problems of these kinds, each at least once and no others, about keys that begin with key.
func wantOnly(t *testing.T, rep *status.Report, key string, kinds ...string) {
	t.Helper()
	seen := map[string]bool{}
	for _, p := range rep.Problems {
		seen[p.Kind] = true
		if !slices.Contains(kinds, p.Kind) || !strings.HasPrefix(p.Key, key) {
			t.Errorf("unexpected: %v", p)
		}
		if p.Detail == "" || p.Key != "" && p.Bucket != "photos" {
			t.Errorf("does not say enough: %+v", p)
		}
	}
	for _, k := range kinds {
		if !seen[k] {
			t.Errorf("no problem of kind %q among %v", k, rep.Problems)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}
