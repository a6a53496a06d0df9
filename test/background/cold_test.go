package background

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/harness"
)

// prose is text as logs are: about a quarter of it is news.
func prose(rnd *rand.Rand, n int) []byte {
	var p []byte
	for len(p) < n {
		p = fmt.Appendf(p, "2026-11-%02dT%02d:%02d:%02dZ INFO node-%d answered GET /bucket/%08x with 200 in %d us\n",
			1+rnd.IntN(28), rnd.IntN(24), rnd.IntN(60), rnd.IntN(60), rnd.IntN(6), rnd.Uint32(), rnd.IntN(5000))
	}
	return p[:n]
}

// putIn stores an object in a class.
func (s *store) putIn(key string, class storage.StorageClass, p []byte) {
	s.Helper()
	if _, err := s.Objects.PutObject(s.Context(), harness.Account, &objects.PutInput{
		Bucket: "bucket", Key: storage.Key(key), Body: harness.NewBody(p), Attributes: attributes(class),
	}); err != nil {
		s.Fatal(key, err)
	}
	s.want[key] = p
}

// attributes of an object in a class.
func attributes(class storage.StorageClass) *metapb.Attributes {
	if class == storage.Standard {
		return &metapb.Attributes{}
	}
	return &metapb.Attributes{StorageClass: string(class)}
}

// held is how many bytes the drives hold for each key: its frames, with their headers and checksums.
func (s *store) held() map[string]int64 {
	s.Helper()
	out := map[string]int64{}
	for _, d := range s.Controller.Drives() {
		for _, f := range s.frames(d) {
			out[string(f.Header.Owner.Key)] += f.Bytes
		}
	}
	return out
}

// restoreAll makes every archived object readable.
func (s *store) restoreAll() {
	s.Helper()
	for key := range s.want {
		if !rangestate.Archived(s.row(key)) {
			continue
		}
		if _, err := s.b.Get(s.Context(), key); !errs.Is(err, errs.InvalidObjectState) {
			s.Fatalf("%s was read before it is restored: %v", key, err)
		}
		if _, err := s.Objects.RestoreObject(s.Context(), harness.Account, objects.VersionRef{Bucket: "bucket", Key: storage.Key(key)}, objects.RestoreRequest{Days: 100, Tier: "Standard"}); err != nil {
			s.Fatal(key, err)
		}
	}
	time.Sleep(aDay) // twice what DEEP_ARCHIVE takes
}

// wantRanges reads ranges of an object, at random and around the edges of what is compressed and coded together.
func (s *store) wantRanges(key string, n int) {
	s.Helper()
	p := s.want[key]
	edges := []int{0, 1 << 20, 2 << 20, len(p)}
	for i := range n {
		from := s.rnd.IntN(len(p))
		to := from + 1 + s.rnd.IntN(len(p)-from)
		if i%3 == 0 {
			at := edges[s.rnd.IntN(len(edges))]
			from = max(0, min(at, len(p))-1-s.rnd.IntN(3))
			to = min(len(p), from+1+s.rnd.IntN(5))
		}
		o, err := s.Objects.GetObject(s.Context(), harness.Account, &objects.GetInput{
			Bucket: "bucket", Key: storage.Key(key), Range: &objects.Range{First: int64(from), Last: int64(to) - 1},
		})
		if err != nil {
			s.Fatal(key, err)
		}
		var got bytes.Buffer
		err = o.Send(&got)
		o.Close()
		if err != nil || !bytes.Equal(got.Bytes(), p[from:to]) {
			s.Fatalf("%s: bytes %d to %d: %d came, %v", key, from, to, got.Len(), err)
		}
	}
}

// packed is how many of a key's chunks are compressed.
func (s *store) packed(key string) (packed int) {
	s.Helper()
	for _, ref := range s.row(key).GetData().GetChunks() {
		if ref.Compression != metapb.Compression_COMPRESSION_NONE {
			packed++
		}
	}
	return packed
}

// TestColdCosts: an object in a cold class takes fewer bytes on the drives than the same one in STANDARD, put there or moved.
func TestColdCosts(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		classes := []storage.StorageClass{storage.Standard, storage.StandardIA, storage.OnezoneIA, storage.GlacierIR, storage.Glacier, storage.DeepArchive}
		const moved = "moved to GLACIER"
		files := []struct {
			name string
			data []byte
		}{
			{"text", prose(s.rnd, 1_500_000)}, {"random", s.noise(1_500_000)},
			{"small text", prose(s.rnd, 20_000)}, {"small random", s.noise(20_000)},
		}
		for _, f := range files {
			for _, class := range classes {
				s.putIn(f.name+"/"+string(class), class, f.data)
			}
			s.putIn(f.name+"/"+moved, storage.Standard, f.data)
		}
		var rules []*metapb.LifecycleRule
		for _, f := range files {
			r := moving(f.name+"/"+moved, 1, storage.Glacier)
			r.Filter.HasSizeGreater = true // else objects below 128 KiB stay
			rules = append(rules, r)
		}
		s.rules(rules...)
		time.Sleep(3 * aDay)
		table := []string{fmt.Sprintf("%-16s %-12s %9s %9s %6s", "class", "file", "bytes", "on drives", "ratio")}
		held := s.held()
		for _, f := range files {
			standard := held[f.name+"/"+string(storage.Standard)]
			for _, class := range append(slices.Clone(classes), moved) {
				key := f.name + "/" + string(class)
				table = append(table, fmt.Sprintf("%-16s %-12s %9d %9d %6.2f", class, f.name, len(f.data), held[key], float64(held[key])/float64(len(f.data))))
				cold := class == storage.Glacier || class == storage.DeepArchive || class == moved
				if class != storage.Standard && held[key] >= standard {
					s.Errorf("%s takes %d bytes, in STANDARD %d", key, held[key], standard)
				}
				if cold && strings.HasSuffix(f.name, "text") && held[key] > standard/3 {
					s.Errorf("%s is hardly compressed: %d bytes, in STANDARD %d", key, held[key], standard)
				}
				if want := cold && strings.HasSuffix(f.name, "text"); want != (s.packed(key) > 0) {
					s.Errorf("%s has %d compressed chunks", key, s.packed(key))
				}
			}
		}
		s.Log("bytes of an object on six drives in three zones, with all headers and checksums\n" + strings.Join(table, "\n"))
		for _, f := range files {
			s.wantClass(f.name+"/"+moved, storage.Glacier)
		}
		s.wantClean()
		s.restoreAll()
		s.wantAll()
		for key := range s.want {
			s.wantRanges(key, 12)
		}
	})
}

// TestSmallColdCosts: small archived objects are coded, too, where that costs less than copies.
func TestSmallColdCosts(t *testing.T) {
	onStore(t, false, func(s *store) {
		sizes := []int{1100, 2048, 4096, storage.CopyArchivesBelow - 1, storage.CopyArchivesBelow, 16384, 65536, storage.ReplicateBelow - 1}
		for _, n := range sizes {
			for _, class := range []storage.StorageClass{storage.Standard, storage.Glacier} {
				s.putIn(fmt.Sprint(class, n), class, s.noise(n))
			}
		}
		held := s.held()
		for _, n := range sizes {
			key := fmt.Sprint(storage.Glacier, n)
			ref, cold, standard := s.row(key).GetData().GetChunks()[0], held[key], held[fmt.Sprint(storage.Standard, n)]
			s.Logf("%6d bytes: %d+%d takes %6d (%.2f), STANDARD %6d (%.2f)", n, ref.K, ref.M, cold, float64(cold)/float64(n), standard, float64(standard)/float64(n))
			if cold >= standard || (ref.K > 1) != (n >= storage.CopyArchivesBelow) || ref.K > 1 && float64(cold) > 1.65*float64(n) {
				s.Errorf("%s takes %d bytes as %d+%d, in STANDARD %d", key, cold, ref.K, ref.M, standard)
			}
		}
		s.wantClean()
	})
}

// TestColdMultipart: the parts of an upload are compressed one by one, when they come or when they are moved.
func TestColdMultipart(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		for _, class := range []storage.StorageClass{storage.DeepArchive, storage.Standard} {
			key := storage.Key("multi " + class)
			up, err := s.Objects.CreateUpload(s.Context(), harness.Account, &objects.CreateUploadInput{Bucket: "bucket", Key: key, Attributes: attributes(class)})
			if err != nil {
				s.Fatal(err)
			}
			var all []byte
			var parts []objects.CompletePart
			for i, p := range [][]byte{prose(s.rnd, storage.PartBytesMin+77), s.noise(storage.PartBytesMin), prose(s.rnd, 900)} {
				out, err := s.Objects.UploadPart(s.Context(), harness.Account, &objects.UploadPartInput{Bucket: "bucket", Key: key, UploadID: up.ID, Number: i + 1, Body: harness.NewBody(p)})
				if err != nil {
					s.Fatal(err)
				}
				all, parts = append(all, p...), append(parts, objects.CompletePart{Number: i + 1, ETag: out.ETag})
			}
			if _, err := s.Objects.CompleteUpload(s.Context(), harness.Account, &objects.CompleteInput{Bucket: "bucket", Key: key, UploadID: up.ID, Parts: parts}); err != nil {
				s.Fatal(err)
			}
			s.want[string(key)] = all
		}
		standard := s.held()["multi STANDARD"]
		s.rules(moving("multi STANDARD", 1, storage.DeepArchive))
		time.Sleep(4 * aDay)
		held := s.held()
		for key, p := range s.want {
			s.wantClass(key, storage.DeepArchive)
			if held[key] >= standard*3/5 || held[key] < storage.PartBytesMin*3/2 {
				s.Errorf("%s takes %d bytes of %d, in STANDARD %d", key, held[key], len(p), standard)
			}
		}
		s.wantClean()
		s.restoreAll()
		s.wantAll()
		for key := range s.want {
			s.wantRanges(key, 15)
		}
	})
}

// TestColdRot: what rots of a compressed chunk comes from parity as ever.
func TestColdRot(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		s.putIn("cold", storage.Glacier, prose(s.rnd, 6_000_000))
		s.restoreAll()
		if s.packed("cold") != 1 {
			s.Fatal("not compressed")
		}
		for _, d := range s.Controller.Drives()[:2] { // as many as the code can lose
			for _, f := range s.frames(d) {
				s.rot(d, f, false)
			}
		}
		if rep := s.verify(false); rep.Found == 0 || slices.ContainsFunc(rep.Problems, func(p status.Problem) bool { return p.Key != "cold" }) {
			s.Fatalf("%v", rep.Problems)
		}
		s.wantAll()
		s.wantRanges("cold", 10)
		s.verify(true)
		s.eventually("healed", 10*time.Minute, func() bool { return s.verify(false).Found == 0 })
		s.wantAll()
	})
}
