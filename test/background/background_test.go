// Package background holds the background workers and the checker to their
// promises in a whole store: six drives in three zones in one process, in memory
// and in fake time.
package background

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/config"
	"cairn/server/core"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/chunkio"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/storage/worker"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

// store is a store under test.
type store struct {
	*testing.T
	fs *vfsx.Mem
	*core.Core
	b    harness.Bucket
	rnd  *rand.Rand
	want map[string][]byte
	day  time.Duration // of lifecycle rules; 0: as long as it is
}

// inBubble runs test on a fresh store in fake time.
func inBubble(t *testing.T, workers bool, test func(s *store)) {
	bubble.Test(t, func(t *testing.T) { onStore(t, workers, test) })
}

// onStore runs test on a fresh store.
func onStore(t *testing.T, workers bool, test func(s *store)) {
	s := &store{T: t, fs: vfsx.NewMem(), rnd: rand.New(rand.NewPCG(seed.Of(t), 0)), want: map[string][]byte{}}
	s.open(workers)
	t.Cleanup(s.close)
	test(s)
}

func (s *store) open(workers bool) {
	s.Helper()
	var err error
	s.Core, err = harness.Open(s.Context(), harness.Options{FS: s.fs, Dir: "/data", Zones: 3, DrivesPerZone: 2, Workers: workers, Log: testing.Verbose(), Config: func(c *config.Config) {
		if s.day > 0 {
			c.LifecycleDay = s.day
		}
	}})
	if err != nil {
		s.Fatal(err)
	}
	if s.b, err = harness.MakeBucket(s.Context(), s.Core, "bucket"); err != nil {
		s.Fatal(err)
	}
}

func (s *store) close() {
	if err := s.Core.Close(); err != nil {
		s.Error(err)
	}
}

func (s *store) noise(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(s.rnd.Uint32())
	}
	return p
}

// put stores an object. As any client does it repeats what was answered 503, for some seconds.
func (s *store) put(key string, n int) {
	s.Helper()
	p := s.noise(n)
	err := s.b.Put(s.Context(), key, p)
	for end := time.Now().Add(5 * time.Second); (errs.Is(err, errs.Unavailable) || errs.Is(err, errs.Busy)) && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
		err = s.b.Put(s.Context(), key, p)
	}
	if err != nil {
		s.Fatal(err)
	}
	s.want[key] = p
}

func (s *store) del(key string) {
	s.Helper()
	if err := s.b.Delete(s.Context(), key); err != nil {
		s.Fatal(err)
	}
	delete(s.want, key)
}

// fill stores objects of all shapes: inline, copied, coded, several chunks' worth of stripes.
func (s *store) fill() {
	s.Helper()
	for i, n := range []int{0, 1, 900, 5000, 70_000, 131_071, 131_072, 1 << 20, 1<<20 + 1, 3_500_000} {
		s.put(fmt.Sprintf("shape/%d", i), n)
	}
	for i := range 20 {
		s.put(fmt.Sprintf("small/%d", i), 2000+i)
	}
}

func (s *store) wantAll() {
	s.Helper()
	for key, want := range s.want {
		got, err := s.b.Get(s.Context(), key)
		if err != nil || !bytes.Equal(got, want) {
			s.Fatalf("%s: %d bytes of %d, %v", key, len(got), len(want), err)
		}
	}
}

func (s *store) verify(heal bool) status.Report {
	s.Helper()
	rep, err := s.Core.Verify(s.Context(), heal, nil)
	if err != nil {
		s.Fatal(err)
	}
	return rep
}

func (s *store) wantClean() status.Report {
	s.Helper()
	rep := s.verify(false)
	if rep.Found != 0 {
		s.Fatalf("%d problems: %v", rep.Found, rep.Problems)
	}
	return rep
}

func count(rep status.Report, what string) int64 {
	for _, c := range rep.Counts {
		if c.What == what {
			return c.N
		}
	}
	return -1
}

// step runs a worker until it has no more to do right now.
func (s *store) step(w worker.Worker) {
	s.Helper()
	for range 100_000 {
		_, more, err := w.Step(s.Context())
		if err != nil {
			s.Fatalf("%s: %v", w.Name(), err)
		}
		if !more {
			return
		}
	}
	s.Fatalf("%s is never done", w.Name())
}

// eventually waits.
func (s *store) eventually(what string, within time.Duration, cond func() bool) {
	s.Helper()
	for end := time.Now().Add(within); !cond(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("not within %v: %s", within, what)
		}
	}
}

// shards is how many live shards the drives hold.
func (s *store) shards() (n int64) {
	for _, d := range s.Controller.Drives() {
		n += d.Stats().Shards
	}
	return n
}

// frames are all live frames of a drive.
func (s *store) frames(d *drive.Drive) (out []drive.FrameInfo) {
	s.Helper()
	if err := d.Scan(s.Context(), func(f drive.FrameInfo) error {
		out = append(out, f)
		return nil
	}); err != nil {
		s.Fatal(err)
	}
	return out
}

// rot flips a byte in the middle of a frame's payload, or of its header.
func (s *store) rot(d *drive.Drive, f drive.FrameInfo, inHeader bool) {
	s.Helper()
	at := f.Off + f.Bytes - int64(f.Payload)/2 - 8
	if inHeader {
		at = f.Off + 60
	}
	if err := s.fs.XorByte(path.Join(d.Dir(), "extents", fmt.Sprintf("%08x.extent", f.Extent)), at, 0x10); err != nil {
		s.Fatal(err)
	}
}

func TestGarbageGoes(t *testing.T) {
	inBubble(t, true, func(s *store) {
		s.put("keep", 300_000)
		before := s.shards()
		s.fill()
		keys := []string{}
		for key := range s.want {
			if key != "keep" {
				keys = append(keys, key)
				s.put(key, 1+s.rnd.IntN(200_000)) // overwritten once
			}
		}
		s.wantClean()
		for _, key := range keys {
			s.del(key)
		}
		s.eventually("all garbage is gone", time.Minute, func() bool { return s.shards() == before })
		rep := s.wantClean()
		if count(rep, "shards awaiting removal") != 0 || count(rep, "objects") != 1 {
			s.Fatalf("%+v", rep.Counts)
		}
		s.wantAll()
	})
}

// upload begins an upload and uploads parts of these sizes, numbered from 1.
func (s *store) upload(key string, sizes ...int) (up objects.Upload, parts []objects.CompletePart, data []byte) {
	s.Helper()
	up, err := s.Objects.CreateUpload(s.Context(), harness.Account, &objects.CreateUploadInput{Bucket: "bucket", Key: storage.Key(key), Attributes: &metapb.Attributes{}})
	if err != nil {
		s.Fatal(err)
	}
	for i, n := range sizes {
		p := s.noise(n)
		out, err := s.Objects.UploadPart(s.Context(), harness.Account, &objects.UploadPartInput{
			Bucket: "bucket", Key: storage.Key(key), UploadID: up.ID, Number: i + 1, Body: harness.NewBody(p),
		})
		if err != nil {
			s.Fatal(err)
		}
		parts = append(parts, objects.CompletePart{Number: i + 1, ETag: out.ETag})
		data = append(data, p...)
	}
	return up, parts, data
}

// TestMultipart: parts that no object names any more go, those of an object that is being read stay.
func TestMultipart(t *testing.T) {
	inBubble(t, true, func(s *store) {
		const part = storage.PartBytesMin
		up, parts, data := s.upload("multi", part, part+1, 1000, 20_000)
		listed := slices.Delete(slices.Clone(parts), 2, 3) // part 3 is left out
		if _, err := s.Objects.CompleteUpload(s.Context(), harness.Account, &objects.CompleteInput{Bucket: "bucket", Key: "multi", UploadID: up.ID, Parts: listed}); err != nil {
			s.Fatal(err)
		}
		want := slices.Concat(data[:2*part+1], data[2*part+1001:])
		s.want["multi"] = want
		aborted, _, _ := s.upload("aborted", 500_000, 500_000)
		s.upload("under way", 200_000)
		if err := s.Objects.AbortUpload(s.Context(), harness.Account, "bucket", "aborted", aborted.ID); err != nil {
			s.Fatal(err)
		}
		s.wantClean()
		time.Sleep(time.Minute)
		if rep := s.wantClean(); count(rep, "parts") != 4 || count(rep, "uploads in progress") != 1 || count(rep, "shards awaiting removal") != 0 {
			s.Fatalf("%+v", rep.Counts)
		}
		s.wantAll()

		o, err := s.Objects.GetObject(s.Context(), harness.Account, &objects.GetInput{Bucket: "bucket", Key: "multi"})
		if err != nil {
			s.Fatal(err)
		}
		s.del("multi")
		time.Sleep(time.Minute)
		if held := s.Garbage.Stats().UploadsHeld; held != 1 {
			s.Errorf("%d uploads held", held)
		}
		s.wantClean()
		var got bytes.Buffer
		if err := o.Send(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
			s.Fatalf("%d of %d bytes, %v", got.Len(), len(want), err)
		}
		o.Close()
		time.Sleep(time.Minute)
		if rep := s.wantClean(); count(rep, "parts") != 1 || count(rep, "shards awaiting removal") != 0 {
			s.Fatalf("%+v", rep.Counts)
		}
	})
}

// slowWriter lets a read go on only byte by byte of the test's will.
type slowWriter struct {
	bytes.Buffer
	gate chan struct{}
	once sync.Once
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { <-w.gate })
	return w.Buffer.Write(p)
}

// TestSlowRead: a read that began before its object was overwritten and deleted ends with the old bytes.
func TestSlowRead(t *testing.T) {
	inBubble(t, true, func(s *store) {
		s.put("slow", 5<<20)
		want := s.want["slow"]
		o, err := s.Objects.GetObject(s.Context(), harness.Account, &objects.GetInput{Bucket: "bucket", Key: "slow"})
		if err != nil {
			s.Fatal(err)
		}
		w := &slowWriter{gate: make(chan struct{})}
		sent := make(chan error, 1)
		go func() { sent <- o.Send(w) }()
		s.put("slow", 1000)
		s.del("slow")
		time.Sleep(time.Minute)
		if held := s.Garbage.Stats().RowsHeld; held != 1 {
			s.Errorf("%d rows held", held)
		}
		close(w.gate)
		if err := <-sent; err != nil || !bytes.Equal(w.Bytes(), want) {
			s.Fatalf("%d of %d bytes, %v", w.Len(), len(want), err)
		}
		o.Close()
		s.eventually("the space is free", time.Minute, func() bool { return s.shards() == 0 })
		s.wantClean()
	})
}

// TestRot flips bytes in payloads and headers: verify names the objects, reads
// answer the right bytes, verify's report heals them, and then it is clean.
func TestRot(t *testing.T) {
	inBubble(t, true, func(s *store) {
		s.fill()
		hit := map[string]bool{}
		for i, d := range s.Controller.Drives() {
			frames := s.frames(d)
			if len(frames) == 0 {
				continue
			}
			f := frames[s.rnd.IntN(len(frames))]
			if hit[string(f.Header.Owner.Key)] {
				continue // two bad shards of a copy may be too many
			}
			hit[string(f.Header.Owner.Key)] = true
			s.rot(d, f, i%2 == 0)
		}
		rep := s.verify(true)
		for key := range hit {
			if !slices.ContainsFunc(rep.Problems, func(p status.Problem) bool { return p.Key == key && p.Bucket == "bucket" }) {
				s.Errorf("%s is not named: %v", key, rep.Problems)
			}
		}
		s.wantAll()
		s.eventually("healed", 10*time.Minute, func() bool { return s.verify(false).Found == 0 })
		s.wantAll()
	})
}

// TestScrub: rot that nobody reads is found and healed by scrub.
func TestScrub(t *testing.T) {
	inBubble(t, false, func(s *store) {
		s.fill()
		d := s.Controller.Drives()[2]
		frames := s.frames(d)
		s.rot(d, frames[0], false)
		s.rot(d, frames[len(frames)-1], false)
		if s.verify(false).Found == 0 {
			s.Fatal("verify is clean")
		}
		s.step(s.Repair.Scrub)
		if st := s.Repair.Scrub.Stats(); st.BadShards != 2 || st.Healed != 2 || len(s.Repair.Scrub.Problems()) != 0 {
			s.Fatalf("%+v, %v", st, s.Repair.Scrub.Problems())
		}
		s.wantClean()
	})
}

// orphan writes a chunk as a gateway does that dies before its commit, at a time ago.
func (s *store) orphan(key storage.Key, ago time.Duration) {
	s.Helper()
	p := s.noise(300_000)
	if _, err := s.Chunks.Write(s.Context(), chunkio.WriteRequest{
		Owner: storage.Owner{Bucket: 1, Key: key, Write: storage.WriteID{1}}, Class: storage.Standard, Size: int64(len(p)), Body: bytes.NewReader(p),
		BirthMS: func() int64 { return time.Now().Add(-ago).UnixMilli() },
	}); err != nil {
		s.Fatal(err)
	}
}

// TestOrphans: what a write left that never committed is young, then a problem,
// and scrub removes it then and not before.
func TestOrphans(t *testing.T) {
	inBubble(t, false, func(s *store) {
		s.fill()
		s.orphan("young", storage.OrphanAge-time.Hour)
		before := s.shards()
		s.orphan("old", storage.OrphanAge+2*time.Hour)
		rep := s.verify(false)
		if rep.Found == 0 || count(rep, "young shards") == 0 || slices.ContainsFunc(rep.Problems, func(p status.Problem) bool { return p.Key != "old" }) {
			s.Fatalf("%v %v", rep.Counts, rep.Problems)
		}
		s.step(s.Repair.Scrub)
		if st := s.Repair.Scrub.Stats(); st.OrphansRemoved != 1 || s.shards() != before {
			s.Fatalf("%+v, %d shards of %d", st, s.shards(), before)
		}
		s.wantClean()
		s.wantAll()
	})
}

// TestRepairRows: a shard that missed its write is made by the worker, and the row says so.
func TestRepairRows(t *testing.T) {
	inBubble(t, false, func(s *store) {
		s.fill()
		p := s.noise(300_000)
		owner := storage.Owner{Bucket: 1, Key: "degraded", Write: storage.WriteID{7}}
		refs, err := s.Chunks.Write(s.Context(), chunkio.WriteRequest{
			Owner: owner, Class: storage.Standard, Size: int64(len(p)), Body: bytes.NewReader(p),
			BirthMS: func() int64 { return time.Now().UnixMilli() },
		})
		if err != nil {
			s.Fatal(err)
		}
		refs[0].Missing = 1 << 3
		drives := s.Controller.Drives()
		d := drives[slices.IndexFunc(drives, func(d *drive.Drive) bool {
			return d.ID() == s.Controller.Topology().PGs[storage.PGID(refs[0].Pg)].Drives[3]
		})]
		for _, f := range s.frames(d) {
			if f.Header.Owner == owner {
				s.rot(d, f, false)
			}
		}
		_, err = s.Meta.Do(s.Context(), 1, "degraded", &metapb.RangeCommand{Op: &metapb.RangeCommand_PutObject{PutObject: &metapb.PutObjectOp{
			Bucket: 1, Key: []byte("degraded"),
			Row: &metapb.ObjectRow{WriteId: owner.Write[:], Size: uint64(len(p)), Etag: "x", Data: &metapb.Data{Chunks: refs}, Attributes: &metapb.Attributes{}},
		}}})
		if err != nil {
			s.Fatal(err)
		}
		s.want["degraded"] = p
		if rep := s.verify(false); rep.Found != 1 || rep.Problems[0].Kind != "awaiting repair" {
			s.Fatalf("%v", rep.Problems)
		}
		s.step(s.Repair.Rows)
		s.wantClean()
		s.wantAll()
		if left, _ := s.Repair.Rows.Left(); left != 0 {
			s.Fatalf("%d rows left", left)
		}
	})
}

// TestLostZone removes a zone's folders while clients write, and gives back empty
// ones: all goes on, they are filled, and everything is proven whole. It runs in
// real time, because what wrote to a lost drive is parked for ever.
func TestLostZone(t *testing.T) {
	onStore(t, true, func(s *store) {
		s.fill()
		for i, dir := range s.zoneDirs("b") {
			if err := s.fs.RemoveTree(dir); err != nil {
				s.Fatal(i, err)
			}
		}
		for i := range 30 {
			s.put(fmt.Sprintf("meanwhile/%d", i), 1+s.rnd.IntN(400_000))
			time.Sleep(30 * time.Millisecond)
		}
		s.wantAll()
		s.del("small/3")
		for _, dir := range s.zoneDirs("b") {
			if err := s.fs.MkdirAll(dir, 0o755); err != nil {
				s.Fatal(err)
			}
		}
		s.eventually("filled again", time.Minute, func() bool {
			dirty := 0
			t := s.Controller.Topology()
			for _, pg := range t.PGs {
				for i, since := range pg.DirtySince {
					if since != 0 || !strings.HasPrefix(string(t.Drives[pg.Drives[i]].State.String()), "active") {
						dirty++
					}
				}
			}
			left, _ := s.Repair.Rows.Left()
			return dirty == 0 && left == 0
		})
		s.eventually("clean", time.Minute, func() bool {
			rep := s.verify(false)
			if rep.Found > 0 {
				s.Logf("%d problems, the first: %v", rep.Found, rep.Problems[0])
			}
			return rep.Found == 0
		})
		s.wantAll()
	})
}

// zoneDirs are the folders of a zone's drives.
func (s *store) zoneDirs(zone string) (out []string) {
	for n := 1; n <= 2; n++ {
		out = append(out, fmt.Sprintf("/data/zone-%s/drive-%d", zone, n))
	}
	return out
}

// TestVerifyBesideClients runs the checker again and again while clients write,
// overwrite and delete and the workers clean up behind them: never a false alarm.
func TestVerifyBesideClients(t *testing.T) {
	inBubble(t, true, func(s *store) {
		start := time.Now()
		ctx, cancel := context.WithCancel(s.Context())
		var wg sync.WaitGroup
		var ops atomic.Int64
		for w := range 4 {
			rnd := rand.New(rand.NewPCG(s.rnd.Uint64(), uint64(w)))
			wg.Go(func() {
				p := make([]byte, 200_000)
				for ctx.Err() == nil {
					key := fmt.Sprintf("%d/%d", w, rnd.IntN(8))
					var err error
					if rnd.IntN(3) == 0 {
						err = s.b.Delete(ctx, key)
					} else {
						err = s.b.Put(ctx, key, p[:rnd.IntN(len(p))])
					}
					if err != nil && ctx.Err() == nil && !errs.Is(err, errs.Busy) {
						s.Errorf("%s: %v", key, err)
					}
					ops.Add(1)
					time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
				}
			})
		}
		for range 8 {
			time.Sleep(700 * time.Millisecond)
			rep := s.verify(false)
			if rep.Found != 0 {
				s.Errorf("%d problems: %v", rep.Found, rep.Problems)
			}
		}
		cancel()
		wg.Wait()
		s.Logf("%d operations in %v", ops.Load(), time.Since(start))
		if ops.Load() < 50 {
			s.Errorf("only %d operations", ops.Load())
		}
		s.wantClean()
	})
}
