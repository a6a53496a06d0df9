package lifecycle

import (
	"testing"
	"time"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// TestTiersWithoutRules: a bucket is walked over for its versions of INTELLIGENT_TIERING alone, as soon as the ranges tell of them.
func TestTiersWithoutRules(t *testing.T) {
	inDay(t, func(t *testing.T) {
		const day = 10 * time.Minute
		w := newWorld()
		row := w.put("k", 128<<10)
		w.put("plain", 128<<10)
		l := w.worker(func(c *Config) { c.Day = day })
		pass(t, l, 2*day)
		if w.scans != 0 {
			t.Fatal("a bucket without any was walked over")
		}
		row.Attributes.StorageClass = string(storage.IntelligentTiering)
		w.fail = func(call string) error {
			if call == "tiered" {
				return errs.New(errs.Unavailable, "tiered", "", "a range does not tell")
			}
			return nil
		}
		pass(t, l, 40*day)
		if st := l.Status(); w.scans != 0 || st.LastErr == "" {
			t.Fatalf("%d walks, %+v", w.scans, st)
		}
		w.fail = nil
		if done := pass(t, l, 2*day); done != 1 || row.GetTiering().GetTier() != metapb.Tiering_INFREQUENT {
			t.Fatal(done, row.Tiering)
		}
		w.fail = func(call string) error { // what is known goes on
			if call == "tiered" {
				return errs.New(errs.Unavailable, "tiered", "", "a range does not tell")
			}
			return nil
		}
		row.Tiering.AccessedMs = time.Now().UnixMilli()
		if done := pass(t, l, 2*day); done != 1 || row.Tiering.Tier != metapb.Tiering_FREQUENT {
			t.Fatal(done, row.Tiering)
		}
		st := l.Status()
		if st.Retiered != 2 || st.Transitioned != 0 || st.MovedBytes != 2*128<<10 || len(st.Rules) != 1 || st.Rules[0].Rule != "INTELLIGENT_TIERING" || st.Rules[0].Done != 2 || st.Rules[0].Due != 0 {
			t.Fatalf("%+v", st)
		}
	})
}
