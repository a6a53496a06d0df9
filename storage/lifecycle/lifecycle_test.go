package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

func expiring(id, prefix string, days uint32) *metapb.LifecycleRule {
	return &metapb.LifecycleRule{Id: id, Filter: &metapb.LifecycleFilter{Prefix: prefix}, Expiration: &metapb.LifecycleExpiration{Days: days}}
}

func moving(id, prefix string, days uint32) *metapb.LifecycleRule {
	return &metapb.LifecycleRule{
		Id: id, Filter: &metapb.LifecycleFilter{Prefix: prefix, HasSizeGreater: true},
		Transitions: []*metapb.LifecycleTransition{{Days: days, StorageClass: string(storage.StandardIA)}},
	}
}

// inDay runs test in fake time, a while after midnight.
func inDay(t *testing.T, test func(t *testing.T)) {
	bubble.Test(t, func(t *testing.T) {
		time.Sleep(10 * time.Hour)
		test(t)
	})
}

// TestRounds: rows are looked at when something can have become due, and else left alone.
func TestRounds(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		w.put("k", 10)
		w.rules(expiring("r", "", 1000))
		l := w.worker(nil)
		looks := func(why string, want int) {
			t.Helper()
			if w.scans != want {
				t.Fatalf("%s: %d walks, want %d", why, w.scans, want)
			}
		}
		settle(t, l)
		looks("the start", 1)
		pass(t, l, 13*time.Hour)
		looks("nothing happens", 1)
		pass(t, l, 2*time.Hour)
		looks("midnight", 2)
		w.rules(expiring("r", "", 2000))
		pass(t, l, time.Minute)
		looks("other rules", 3)
		w.config++ // something else of some bucket
		pass(t, l, time.Minute)
		looks("another bucket changed", 3)
		w.led = []cluster.GroupID{2, 3}
		pass(t, l, time.Minute)
		looks("one more range", 4)
		w.led = []cluster.GroupID{2}
		pass(t, l, time.Minute)
		looks("one range less", 4)
		date := time.Now().Add(3 * time.Hour)
		w.rules(&metapb.LifecycleRule{Id: "date", Expiration: &metapb.LifecycleExpiration{DateMs: date.UnixMilli()}})
		pass(t, l, 2*time.Hour)
		looks("a rule with a date", 5)
		if done := pass(t, l, 2*time.Hour); done != 1 {
			t.Fatalf("%d done at the date", done)
		}
		if st := l.Status(); st.Expired != 1 || st.Rounds == 0 || st.Running || st.LastErr != "" {
			t.Fatalf("%+v", st)
		}
	})
}

// TestDueOnTime: what is due goes in the minute after midnight, thousands of rows in pages, and nothing else does.
func TestDueOnTime(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		for i := range 700 {
			w.put(storage.Key(fmt.Sprintf("a/%04d", i)), 1)
			w.put(storage.Key(fmt.Sprintf("b/%04d", i)), 1)
		}
		w.rules(expiring("a", "a/", 1))
		l := w.worker(func(c *Config) { c.PageRows = 64 })
		if pass(t, l, aDay+13*time.Hour) != 0 {
			t.Fatal("too early")
		}
		w.seen = 0
		if done := pass(t, l, 2*time.Hour); done != 700 {
			t.Fatalf("%d done", done)
		}
		if keys := w.keys(); len(keys) != 700 || keys[0] != "b/0000" {
			t.Fatalf("%d keys, the first %s", len(keys), keys[0])
		}
		if w.seen > 900 { // once more after the round, without those that are gone
			t.Fatalf("%d rows seen: the walk does not end with the prefix", w.seen)
		}
		if left, ok := l.Left(); left != 0 || !ok {
			t.Fatal(left)
		}
	})
}

// TestRulesChanged: a range that knows other rules refuses, and the bucket is looked at anew by those.
func TestRulesChanged(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		w.put("a", 1)
		w.put("b", 1)
		w.rules(expiring("all", "", 1))
		l := w.worker(nil)
		settle(t, l)
		old := *w.bucket
		pass(t, l, 30*time.Hour)
		// This node hears late of the new rules.
		w.rules(expiring("b", "b", 1))
		w.config--
		w.behind = &old
		if pass(t, l, 9*time.Hour) != 0 || w.expires == 0 {
			t.Fatalf("done by rules that are gone, or never tried: %d", w.expires)
		}
		tried := w.expires
		if tried > 100 {
			t.Fatalf("tried %d times", tried)
		}
		w.behind = nil
		w.config++
		if done := pass(t, l, time.Minute); done != 1 {
			t.Fatalf("%d done", done)
		}
		if got := fmt.Sprint(w.keys()); got != "[a]" {
			t.Fatal(got)
		}
		if st := l.Status(); len(st.Rules) != 1 || st.Rules[0].Rule != "b" || st.Rules[0].Done != 1 {
			t.Fatalf("%+v", st.Rules)
		}
	})
}

// TestFailures: what fails is tried again, and how late it is shows.
func TestFailures(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		w.put("a", 1)
		w.put("locked", 1).Owner = "locked"
		w.rules(expiring("r", "", 1))
		l := w.worker(nil)
		pass(t, l, 37*time.Hour) // an hour before
		w.fail = func(call string) error {
			if call == "expire" {
				return errs.New(errs.Unavailable, "test", "", "no quorum")
			}
			return nil
		}
		time.Sleep(3 * time.Hour)
		if _, _, err := l.Step(t.Context()); !errs.Is(err, errs.Unavailable) {
			t.Fatal(err)
		}
		st := l.Status()
		if len(st.Rules) != 1 || st.Rules[0].Due != 2 || st.Rules[0].Lag(time.Now()) < time.Hour || !strings.Contains(st.LastErr, "no quorum") {
			t.Fatalf("%+v", st)
		}
		// The answer of the next one gets lost: the command took effect.
		w.fail, w.late = nil, func(call string) error {
			if call == "expire" {
				return errs.New(errs.OutcomeUnknown, "test", "", "")
			}
			return nil
		}
		if _, _, err := l.Step(t.Context()); err == nil {
			t.Fatal("no error")
		}
		w.late = nil
		pass(t, l, time.Minute)
		if got := fmt.Sprint(w.keys()); got != "[locked]" {
			t.Fatal(got)
		}
		if st = l.Status(); st.Rules[0].Due != 0 || st.LastErr != "" || st.Rules[0].Lag(time.Now()) != 0 {
			t.Fatalf("%+v", st)
		}
	})
}

// TestEntryConflict: what changed between look and command is left, shows as due, and is looked at again soon.
func TestEntryConflict(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		w.put("a", 1)
		w.rules(expiring("r", "", 1))
		l := w.worker(nil)
		pass(t, l, aDay)
		time.Sleep(aDay)
		w.fail = func(call string) error {
			if call == "expire" {
				w.rows[0].object.Seq++ // overwritten just now
				w.fail = nil
			}
			return nil
		}
		if settle(t, l) != 0 {
			t.Fatal("done")
		}
		if left, _ := l.Left(); left != 1 {
			t.Fatal(left)
		}
		if done := pass(t, l, 2*time.Minute); done != 1 {
			t.Fatal(done)
		}
	})
}

func (w *world) class(t *testing.T, i int) string {
	t.Helper()
	return w.rows[i].object.Attributes.StorageClass
}

func TestMove(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		row := w.put("a", 5000)
		old := slices.Clone(row.Data.Chunks[0].Id)
		w.missing = 0b1
		w.rules(moving("r", "", 30))
		l := w.worker(nil)
		if pass(t, l, 30*aDay) != 0 {
			t.Fatal("too early")
		}
		if pass(t, l, aDay) != 1 || w.class(t, 0) != "STANDARD_IA" {
			t.Fatalf("not moved: %v", l.Status())
		}
		ref := row.Data.Chunks[0]
		if ref.Pg != infraPG || ref.Missing != 0 || w.chunks[storage.ChunkID(old)] != nil || len(w.chunks) != 1 || row.Size != 5000 {
			t.Fatalf("%v, %d chunks", ref, len(w.chunks))
		}
		if fmt.Sprint(w.rebuilt) != "[0 2 3]" {
			t.Fatalf("rebuilt %v: what was missing, then all parity is to be proven", w.rebuilt)
		}
		if st := l.Status(); st.Transitioned != 1 || st.MovedBytes != 5000 || st.Rules[0].Due != 0 {
			t.Fatalf("%+v", st)
		}
		if pass(t, l, 3*aDay) != 0 {
			t.Fatal("moved again")
		}
		// On to a class of the same target: only the row changes.
		w.bucket.Rules.Rules[0].Transitions[0].StorageClass = string(storage.GlacierIR)
		w.rules(w.bucket.Rules.Rules...)
		if pass(t, l, time.Minute) != 1 || w.class(t, 0) != "GLACIER_IR" || row.Data.Chunks[0] != ref && string(row.Data.Chunks[0].Id) != string(ref.Id) || len(w.chunks) != 1 {
			t.Fatalf("%v", row)
		}
	})
}

func TestMoveMultipart(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		row := w.put("a", 30)
		row.Data = &metapb.Data{Generation: 1, UploadSeq: 77, Parts: 3}
		clear(w.chunks)
		for i := range 3 {
			write := make([]byte, 16)
			write[0] = byte(i + 1)
			w.rows[0].parts = append(w.rows[0].parts, &metapb.PartRow{
				Number: uint32(2*i + 1), WriteId: write, Size: 10, Data: &metapb.Data{Generation: 1, Chunks: []*metapb.ChunkRef{w.chunk(standardPG, []byte("0123456789"))}},
			})
		}
		w.rules(moving("r", "", 1))
		l := w.worker(nil)
		time.Sleep(40 * aDay)
		// It is cut off after a part: the others are moved by who comes after.
		for w.rows[0].parts[0].Data.Chunks[0].Pg == standardPG {
			if _, _, err := l.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if w.class(t, 0) != "" {
			t.Fatal("the version comes last")
		}
		first := w.rows[0].parts[0].Data.Chunks[0]
		l = w.worker(nil)
		if settle(t, l) != 1 || w.class(t, 0) != "STANDARD_IA" || len(w.chunks) != 3 {
			t.Fatalf("%v, %d chunks", l.Status(), len(w.chunks))
		}
		for _, p := range w.rows[0].parts {
			if p.Data.Chunks[0].Pg != infraPG {
				t.Fatalf("part %d lies in %d", p.Number, p.Data.Chunks[0].Pg)
			}
		}
		if w.rows[0].parts[0].Data.Chunks[0] != first {
			t.Fatal("the first part was moved twice")
		}
	})
}

// TestMoveFails: a copy that is not whole is never used, the old one stays, and what ends goes on.
func TestMoveFails(t *testing.T) {
	failing := func(what string, nth int) func(w *world) {
		return func(w *world) {
			n := 0
			w.fail = func(call string) error {
				if call == what {
					if n++; n == nth {
						return errs.New(errs.Unavailable, "test", "", what+" fails")
					}
				}
				return nil
			}
		}
	}
	for name, c := range map[string]struct {
		break_ func(w *world)
		freed  int // the copy becomes garbage at once
		orphan int // or is left to scrub
		done   int64
	}{
		"the old bytes are not read":  {failing("read", 1), 0, 0, 0},
		"the copy is not written":     {failing("write", 1), 0, 0, 0},
		"a shard can't be rebuilt":    {failing("rebuild", 1), 1, 0, 0},
		"the copy is not read":        {failing("read", 2), 1, 0, 0},
		"the copy reads differently":  {func(w *world) { w.flip = true }, 1, 0, 0},
		"the command is not heard of": {failing("rewrite", 1), 0, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inDay(t, func(t *testing.T) {
				w := newWorld()
				row := w.put("a", 500)
				old := row.Data.Chunks[0]
				w.rules(moving("r", "", 30))
				l := w.worker(nil)
				time.Sleep(40 * aDay)
				c.break_(w)
				if done := settle(t, l); done != c.done {
					t.Fatalf("%d done", done)
				}
				if row.Data.Chunks[0] != old || w.chunks[storage.ChunkID(old.Id)] == nil || w.class(t, 0) != "" {
					t.Fatal("the old copy is gone")
				}
				if w.freed != c.freed || len(w.chunks) != 1+c.orphan {
					t.Fatalf("%d freed, %d chunks", w.freed, len(w.chunks))
				}
				st := l.Status()
				if len(st.Rules) != 1 || st.Rules[0].Due != 1 || st.Rules[0].Waiting == "" || st.LastErr == "" {
					t.Fatalf("%+v", st)
				}
				w.fail, w.flip = nil, false
				if pass(t, l, 15*time.Minute) != 1 || w.class(t, 0) != "STANDARD_IA" {
					t.Fatalf("never moved: %+v", l.Status())
				}
				if st = l.Status(); st.Rules[0].Due != 0 || st.Rules[0].Waiting != "" || st.LastErr != "" {
					t.Fatalf("%+v", st)
				}
			})
		})
	}
}

// TestLostAnswer: a move whose answer got lost took effect; nothing of it is thrown away.
func TestLostAnswer(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		row := w.put("a", 500)
		w.rules(moving("r", "", 30))
		l := w.worker(nil)
		time.Sleep(40 * aDay)
		w.late = func(call string) error {
			if call == "rewrite" {
				w.late = nil
				return errs.New(errs.OutcomeUnknown, "test", "", "")
			}
			return nil
		}
		pass(t, l, 15*time.Minute)
		if w.class(t, 0) != "STANDARD_IA" || len(w.chunks) != 1 || w.chunks[storage.ChunkID(row.Data.Chunks[0].Id)] == nil {
			t.Fatalf("%d chunks", len(w.chunks))
		}
		if left, _ := l.Left(); left != 0 {
			t.Fatal(left)
		}
	})
}

// TestMovesHoldNothingUp: while a class cannot be written other things end, and one failure stands for all.
func TestMovesHoldNothingUp(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		for i := range 300 {
			w.put(storage.Key(fmt.Sprintf("a/%03d", i)), 500)
		}
		w.put("z", 1)
		w.rules(moving("r", "a/", 30), expiring("end", "z", 30))
		l := w.worker(func(c *Config) { c.PageRows, c.QueueMax = 50, 20 })
		time.Sleep(40 * aDay)
		writes := 0
		w.fail = func(call string) error {
			if call == "write" {
				writes++
				return errs.New(errs.DriveFull, "test", "", "all drives are full")
			}
			return nil
		}
		first := int64(0)
		for first == 0 {
			n, _, err := l.Step(t.Context())
			if first = n; err != nil {
				t.Fatal(err)
			}
		}
		if writes != 0 || len(w.keys()) != 300 {
			t.Fatalf("%d writes before what ends", writes)
		}
		settle(t, l)
		if writes > 4 {
			t.Fatalf("%d versions tried in vain", writes)
		}
		st := l.Status()
		if st.Expired != 1 || len(st.Rules) != 2 || st.Rules[1].Due != 300 || !strings.Contains(st.Rules[1].Waiting, "full") {
			t.Fatalf("%+v", st)
		}
		w.fail = nil
		if done := pass(t, l, 30*time.Minute); done != 300 {
			t.Fatalf("%d moved, %+v", done, l.Status())
		}
	})
}

// TestRuleGone: a rule that goes while versions are on their way stops them; what was written for them goes.
func TestRuleGone(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		w.put("a", 500)
		w.rules(moving("r", "", 30))
		l := w.worker(nil)
		time.Sleep(40 * aDay)
		w.fail = func(call string) error {
			if call == "rebuild" {
				w.bucket.Generation++ // the rules changed, and this node has not heard of it
				w.fail = nil
			}
			return nil
		}
		if settle(t, l) != 0 || w.class(t, 0) != "" || w.freed != 1 || len(w.chunks) != 1 {
			t.Fatalf("%d freed, class %q", w.freed, w.class(t, 0))
		}
	})
}

// TestRulesNotRead: a node that leads nothing needs no rules; one that does says that it cannot read them, until it can.
func TestRulesNotRead(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		w.put("a", 1)
		w.rules(expiring("r", "", 1))
		w.led, w.unread = nil, errs.New(errs.Unavailable, "test", "", "cut off")
		l := w.worker(nil)
		settle(t, l)
		if st := l.Status(); st.LastErr != "" {
			t.Fatalf("%+v", st)
		}
		w.led = []cluster.GroupID{2}
		if _, _, err := l.Step(t.Context()); !errs.Is(err, errs.Unavailable) || !strings.Contains(l.Status().LastErr, "cut off") {
			t.Fatal(err, l.Status())
		}
		w.unread = nil
		settle(t, l)
		if st := l.Status(); st.LastErr != "" || st.Rounds != 1 {
			t.Fatalf("%+v", st)
		}
	})
}

func TestStops(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		w.put("a", 500)
		w.rules(moving("r", "", 30))
		time.Sleep(40 * aDay)
		ctx, cancel := context.WithCancel(t.Context())
		w.fail = func(call string) error {
			if call == "rebuild" {
				cancel()
				return context.Canceled
			}
			return nil
		}
		l := w.worker(nil)
		err := error(nil)
		for more := true; more && err == nil; {
			_, more, err = l.Step(ctx)
		}
		if err == nil {
			t.Fatal("went on")
		}
		w.fail = nil
		if settle(t, l) != 1 {
			t.Fatal("not gone on with")
		}
	})
}
