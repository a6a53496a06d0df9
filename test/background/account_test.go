package background

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/server/status"
	"cairn/storage"
	"cairn/test/harness"
)

// putNoise stores an object in a storage class.
func (s *store) putNoise(key string, class storage.StorageClass, n int) {
	s.Helper()
	_, err := s.Objects.PutObject(s.Context(), harness.Account, &objects.PutInput{
		Bucket: "bucket", Key: storage.Key(key), Body: harness.NewBody(s.noise(n)), Attributes: &metapb.Attributes{StorageClass: string(class)},
	})
	if err != nil {
		s.Fatal(err)
	}
}

// inventory are the rows of an inventory, by the names of the columns.
func (s *store) inventory(q core.InventoryQuery) (out []map[string]string) {
	s.Helper()
	var buf bytes.Buffer
	q.Bucket, q.Header = "bucket", true
	rows, err := s.Core.Inventory(s.Context(), q, &buf, func() {})
	if err != nil {
		s.Fatal(err)
	}
	all, err := csv.NewReader(&buf).ReadAll()
	if err != nil || int64(len(all)) != rows+1 {
		s.Fatal(len(all), rows, err)
	}
	for _, line := range all[1:] {
		row := map[string]string{}
		for i, name := range all[0] {
			row[name] = line[i]
		}
		out = append(out, row)
	}
	return out
}

// usage is what is told of the bucket, by storage class.
func (s *store) usage(name string) (classes map[string]status.ClassUsage, deleted bool, total status.UsageTotal) {
	s.Helper()
	classes = map[string]status.ClassUsage{}
	total, err := s.Core.Usage(s.Context(), name, func(b *status.BucketUsage) error {
		if deleted = b.Deleted; b.Bucket == "bucket" {
			for _, c := range b.Classes {
				classes[c.Class] = c
			}
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
	return classes, deleted, total
}

// TestInventoryAndUsageAgree: over ranges, what is listed is what is there, and what is counted is the sum of it.
func TestInventoryAndUsageAgree(t *testing.T) {
	inBubble(t, false, func(s *store) {
		s.versioning(true)
		classes := []storage.StorageClass{storage.Standard, storage.StandardIA, storage.Glacier}
		for i := range 60 {
			for v := range 1 + i%3 {
				s.putNoise(fmt.Sprintf("d%d/k %02d", i%2, i), classes[(i+v)%3], 10+i)
			}
			if i%7 == 0 {
				s.del(fmt.Sprintf("d%d/k %02d", i%2, i))
			}
		}
		if _, err := s.Splits.Split(s.Context(), cluster.FirstRange, cluster.Pos{}); err != nil {
			s.Fatal(err)
		}
		s.upload("d1/parts", 5<<20, 1000) // stays in progress
		want := s.versions()
		var got []string
		sums := map[string]status.ClassUsage{}
		for _, r := range s.inventory(core.InventoryQuery{All: true}) {
			text, err := url.PathUnescape(r["Key"])
			if err != nil || text == r["Key"] {
				s.Fatal(r["Key"], err)
			}
			class := r["StorageClass"]
			if r["IsDeleteMarker"] == "true" {
				text, class = text+" (marker)", "STANDARD"
			}
			got = append(got, text)
			c := sums[class]
			size, _ := strconv.ParseInt(r["Size"], 10, 64)
			switch c.Bytes += size; {
			case r["IsDeleteMarker"] == "true":
				c.Markers++
			case r["IsLatest"] == "true":
				c.Objects++
			default:
				c.Versions++
			}
			sums[class] = c
		}
		if !slices.Equal(got, want) {
			s.Fatalf("listed %q\n there %q", got, want)
		}
		for _, name := range []string{"", "bucket"} {
			counted, _, total := s.usage(name)
			if len(counted) != 3 || total.Buckets != 1 || len(total.Classes) != 3 || (total.Drives != nil) != (name == "") {
				s.Fatalf("%+v %+v", counted, total)
			}
			for class, c := range counted {
				w := sums[class]
				if c.Objects != w.Objects || c.Versions != w.Versions || c.Markers != w.Markers || c.Bytes != w.Bytes {
					s.Errorf("%s: counted %+v, listed %+v", class, c, w)
				}
			}
			if c := counted["STANDARD"]; c.Uploads != 1 || c.UploadBytes != 5<<20+1000 || c.DriveBytes != 2*(c.Bytes+c.UploadBytes) {
				s.Errorf("%+v", c)
			}
		}
		if _, err := s.Core.Usage(s.Context(), "none", nil); err == nil {
			s.Error("a bucket that is not there")
		}
		// Current versions, below a prefix, of some columns.
		current := s.inventory(core.InventoryQuery{Prefix: "d0/k 3", Fields: []string{"ETag"}})
		if len(current) != 5 || len(current[0]) != 3 || current[0]["Bucket"] != "bucket" || len(current[0]["ETag"]) != 32 {
			s.Errorf("%d rows, the first %v", len(current), current)
		}
		if rows := s.inventory(core.InventoryQuery{Prefix: "e"}); len(rows) != 0 {
			s.Error(rows)
		}
	})
}

// TestSimulationsHoldTrue: what is simulated for some day, with rules that are not put yet, is what is there then once they are, in whatever range.
func TestSimulationsHoldTrue(t *testing.T) {
	lifecycleStore(t, func(s *store) {
		for i := range 12 {
			s.putNoise(fmt.Sprintf("gone/%d", i), storage.GlacierIR, 2000)
			s.putNoise(fmt.Sprintf("move/%d", i), storage.Standard, 200_000)
			s.putNoise(fmt.Sprintf("stay/%d", i), storage.Standard, 2000)
		}
		if _, err := s.Splits.Split(s.Context(), cluster.FirstRange, cluster.Pos{}); err != nil {
			s.Fatal(err)
		}
		all := []*metapb.LifecycleRule{expiring("gone/", 3), moving("move/", 2, storage.Glacier), expiring("stay/", 50)}
		simulate := func(others []*metapb.LifecycleRule, at time.Time) status.Simulation {
			s.Helper()
			var cfg *metapb.LifecycleConfig
			if others != nil {
				cfg = &metapb.LifecycleConfig{Rules: others}
			}
			out, err := s.Core.Simulate(s.Context(), "bucket", cfg, at, 100, func(status.SimulationProgress) {})
			if err != nil {
				s.Fatal(err)
			}
			return out
		}
		if _, err := s.Core.Simulate(s.Context(), "bucket", nil, time.Now(), 1, func(status.SimulationProgress) {}); err == nil {
			s.Fatal("a bucket without rules")
		}
		if out := simulate(all, time.Now()); len(out.Total) != 0 || len(out.Rules) != 3 || out.Rows != 36 {
			s.Fatalf("%+v", out)
		}
		at := time.Now().Add(4 * aDay)
		out := simulate(all, at)
		early := 12 * 2000 * 86.0 // 90 days less the four, about
		if a := out.Total; len(a) != 2 || a[0].Count != 12 || a[0].DrivesAfter != 0 || a[0].EarlyByteDays < early-24_000 || a[0].EarlyByteDays > early+24_000 ||
			a[1].Class != "GLACIER" || a[1].Bytes != 12*200_000 || a[1].DrivesBefore != 2*12*200_000 || a[1].DrivesAfter != 3*12*200_000/2 || out.Applied {
			s.Fatalf("%+v", out)
		}
		s.rules(all...)
		time.Sleep(time.Until(at))
		s.eventually("everything is done", aDay, func() bool { return len(simulate(nil, at).Total) == 0 })
		named := 0
		for _, r := range out.Rules {
			for _, a := range r.Actions {
				for _, e := range a.Examples {
					named++
					if a.Class != "" {
						s.wantClass(e.Key, storage.StorageClass(a.Class))
					} else if s.is(e.Key) {
						s.Errorf("%s is still there", e.Key)
					}
				}
			}
		}
		if named != 24 || !s.is("stay/3") {
			s.Fatal(named)
		}
		// What it has cost is what was told, but for the time between the midnight and the doing.
		counted, _, _ := s.usage("")
		if got := counted["GLACIER_IR"].EarlyByteDays; got < out.Total[0].EarlyByteDays || got > out.Total[0].EarlyByteDays+12*2000*1.1 {
			s.Errorf("counted %v, simulated %v", got, out.Total[0].EarlyByteDays)
		}
		// Reading what moved is counted where it was read, and nothing else.
		if _, err := s.b.Get(s.Context(), "stay/3"); err != nil {
			s.Fatal(err)
		}
		s.putNoise("ia", storage.StandardIA, 3000)
		if _, err := s.b.Get(s.Context(), "ia"); err != nil {
			s.Fatal(err)
		}
		for class, n := range s.Objects.Retrieved() {
			if want := map[storage.StorageClass]int64{storage.StandardIA: 3000}[class]; n != want {
				s.Errorf("%s: %d bytes retrieved, want %d", class, n, want)
			}
		}
	})
}
