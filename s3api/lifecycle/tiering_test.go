package lifecycle

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/test/seed"
)

const (
	frequent       = metapb.Tiering_FREQUENT
	infrequent     = metapb.Tiering_INFREQUENT
	archiveInstant = metapb.Tiering_ARCHIVE_INSTANT
	archiveTier    = metapb.Tiering_ARCHIVE
	deepArchive    = metapb.Tiering_DEEP_ARCHIVE
)

// tiered is an object of INTELLIGENT_TIERING, read at noon of day 0.
func tiered(tier metapb.Tiering_Tier) *Object {
	return &Object{Key: "a/k", Size: MinimumBytes, Class: storage.IntelligentTiering, Tier: tier, AccessedMS: testDay.Milliseconds() / 2}
}

func TestTier(t *testing.T) {
	both := &metapb.TieringConfig{Id: "both", Filter: &metapb.LifecycleFilter{Prefix: "a/"}, ArchiveDays: 100, DeepArchiveDays: 200}
	for _, c := range []struct {
		name    string
		object  *Object
		change  func(*Object)
		configs []*metapb.TieringConfig
		day     int64 // midnight before it
		want    metapb.Tiering_Tier
		due     int64 // 0: nothing is due
	}{
		{name: "a day too early", object: tiered(frequent), day: 30},
		{name: "30 days", object: tiered(frequent), day: 31, want: infrequent, due: 31},
		{name: "late", object: tiered(frequent), day: 50, want: infrequent, due: 31},
		{name: "90 days", object: tiered(infrequent), day: 91, want: archiveInstant, due: 91},
		{name: "90 days at once", object: tiered(frequent), day: 91, want: archiveInstant, due: 91},
		{name: "no further", object: tiered(archiveInstant), day: 5000},
		{name: "small", object: tiered(frequent), change: func(o *Object) { o.Size-- }, day: 500},
		{name: "a marker", object: tiered(frequent), change: func(o *Object) { o.Marker = true }, day: 500},
		{name: "an upload", object: tiered(frequent), change: func(o *Object) { o.Kind = Upload }, day: 500},
		{name: "noncurrent", object: tiered(frequent), change: func(o *Object) { o.Kind = Noncurrent }, day: 31, want: infrequent, due: 31},
		{name: "another class", object: tiered(frequent), change: func(o *Object) { o.Class = storage.Standard }, day: 500},
		{name: "read since", object: tiered(infrequent), day: 1, want: frequent, due: 1},
		{name: "read since, today", object: tiered(archiveInstant), day: 0},
		{name: "archive", object: tiered(archiveInstant), configs: []*metapb.TieringConfig{both}, day: 101, want: archiveTier, due: 101},
		{name: "deep archive", object: tiered(archiveTier), configs: []*metapb.TieringConfig{both}, day: 201, want: deepArchive, due: 201},
		{name: "another prefix", object: tiered(archiveInstant), change: func(o *Object) { o.Key = "b" }, configs: []*metapb.TieringConfig{both}, day: 500},
		{name: "disabled", object: tiered(archiveInstant), configs: []*metapb.TieringConfig{{ArchiveDays: 90, Disabled: true}}, day: 500},
		{name: "the shortest of two", object: tiered(archiveInstant), configs: []*metapb.TieringConfig{both, {ArchiveDays: 95}}, day: 101, want: archiveTier, due: 96},
		{name: "tags", object: tiered(archiveInstant), configs: []*metapb.TieringConfig{{Filter: &metapb.LifecycleFilter{Tags: []*metapb.KV{{Name: "x", Value: "1"}}}, ArchiveDays: 95}}, day: 101},
		{name: "archived, and read before", object: tiered(archiveTier), day: 10},
		{name: "archived, and no configuration any more", object: tiered(deepArchive), day: 5000},
		{name: "being restored", object: tiered(archiveTier), change: func(o *Object) { o.RestoredMS = 300*testDay.Milliseconds() + 1 }, configs: []*metapb.TieringConfig{both}, day: 300},
		{name: "restored", object: tiered(archiveTier), change: func(o *Object) { o.RestoredMS = 300*testDay.Milliseconds() + 1 }, configs: []*metapb.TieringConfig{both}, day: 301, want: frequent, due: 301},
	} {
		if c.change != nil {
			c.change(c.object)
		}
		a := Compile(nil, testDay).Tiers(c.configs).Decide(c.object, c.day*testDay.Milliseconds())
		if c.due == 0 {
			if a != (Action{}) {
				t.Errorf("%s: %+v", c.name, a)
			}
			continue
		}
		if a.What != Retier || a.Tier() != c.want || a.DueMS != c.due*testDay.Milliseconds() || a.Rule != TieringRule {
			t.Errorf("%s: %+v to %v", c.name, a, a.Tier())
		}
	}
	if a := Compile(nil, testDay).Decide(tiered(frequent), 1<<40); a != (Action{}) {
		t.Errorf("a bucket without such objects: %+v", a)
	}
}

// Whatever ends an object, or moves it to another class, goes first; and from an archive tier rules lead only on to archives.
func TestTiersAndRules(t *testing.T) {
	rules := func(r *metapb.LifecycleRule) *Rules {
		r.Id = "r"
		return Compile(&metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{r}}, testDay).Tiers(nil)
	}
	if a := rules(&metapb.LifecycleRule{Expiration: &metapb.LifecycleExpiration{Days: 100}}).Decide(tiered(frequent), 1<<40); a.What != Expire {
		t.Errorf("%+v", a)
	}
	for tier, want := range map[metapb.Tiering_Tier]string{frequent: "GLACIER_IR GLACIER DEEP_ARCHIVE", infrequent: "GLACIER_IR GLACIER DEEP_ARCHIVE",
		archiveInstant: "GLACIER_IR GLACIER DEEP_ARCHIVE", archiveTier: "GLACIER DEEP_ARCHIVE", deepArchive: "DEEP_ARCHIVE"} {
		for _, class := range []storage.StorageClass{storage.GlacierIR, storage.Glacier, storage.DeepArchive} {
			r := rules(&metapb.LifecycleRule{Transitions: []*metapb.LifecycleTransition{moveDays(10, class)}})
			a := r.Decide(tiered(tier), 30*testDay.Milliseconds())
			if may := strings.Contains(" "+want+" ", " "+string(class)+" "); (a.What == Transition) != may {
				t.Errorf("%v to %s: %+v", tier, class, a)
			}
			restored := tiered(tier)
			restored.RestoredMS = 1
			if a := r.Decide(restored, 30*testDay.Milliseconds()); a.What != Transition {
				t.Errorf("restored, to %s: %+v", class, a)
			}
		}
	}
	if r := Compile(nil, testDay).Tiers(nil); r.Empty() {
		t.Error("empty")
	} else if from, ok := r.From("k"); !ok || from != "k" {
		t.Error(from, ok)
	}
}

// plainTier is the tier that an object belongs in at the end of its days without access, said in another way.
func plainTier(configs []*metapb.TieringConfig, o *Object, nowMS int64) metapb.Tiering_Tier {
	if o.Size < 128*1024 || o.Marker || o.Kind == Upload || o.Class != "INTELLIGENT_TIERING" {
		return o.Tier
	}
	archived := o.Tier == archiveTier || o.Tier == deepArchive
	idle := func(days uint32) bool { return days > 0 && nowMS >= plainMidnight(o.AccessedMS, int(days)) }
	belongs := frequent
	if idle(30) {
		belongs = infrequent
	}
	if idle(90) {
		belongs = archiveInstant
	}
	for deep := range 2 {
		for _, c := range configs {
			if c.Disabled || !plainMatches(c.Filter, o) {
				continue
			}
			if deep == 0 && idle(c.ArchiveDays) {
				belongs = archiveTier
			}
			if deep == 1 && idle(c.DeepArchiveDays) {
				belongs = deepArchive
			}
		}
	}
	switch {
	case archived && o.RestoredMS > 0:
		if nowMS >= plainMidnight(o.RestoredMS, 0) {
			return frequent
		}
		return o.Tier
	case archived && belongs < o.Tier:
		return o.Tier
	case belongs < o.Tier && nowMS < plainMidnight(o.AccessedMS, 0):
		return o.Tier
	}
	return belongs
}

// TestRandomTiers: the rules agree with the plain second implementation.
func TestRandomTiers(t *testing.T) {
	d := draw{rand.New(rand.NewPCG(seed.Of(t), 2))}
	seen := map[string]int{}
	for range 2000 {
		var configs []*metapb.TieringConfig
		for i := range d.IntN(4) {
			c := &metapb.TieringConfig{Id: fmt.Sprint(i), Disabled: d.one(5), Filter: d.rule(0).Filter}
			if c.Filter != nil {
				c.Filter.HasSizeGreater, c.Filter.HasSizeLess = false, false
			}
			if !d.one(3) {
				c.ArchiveDays = uint32(90 + d.IntN(100))
			}
			if !d.one(3) {
				c.DeepArchiveDays = uint32(180 + d.IntN(100))
			}
			configs = append(configs, c)
		}
		rules := Compile(nil, testDay).Tiers(configs)
		for range 20 {
			o := d.object()
			o.Tier = metapb.Tiering_Tier(d.IntN(5))
			if !d.one(10) {
				o.Class = storage.IntelligentTiering
			}
			o.AccessedMS = d.Int64N(100 * testDay.Milliseconds())
			if d.one(4) {
				o.RestoredMS = 1 + d.Int64N(400*testDay.Milliseconds())
			}
			now := d.Int64N(400 * testDay.Milliseconds())
			a, want := rules.Decide(&o, now), plainTier(configs, &o, now)
			got := o.Tier
			if a.What == Retier {
				got = a.Tier()
			}
			if got != want || a.What != Nothing && (a.What != Retier || a.DueMS > now || a.DueMS%testDay.Milliseconds() != 0) {
				t.Fatalf("%+v\nby %v\nat %d: %+v to %v, want %v", o, configs, now, a, got, want)
			}
			if a.What == Retier {
				if b := rules.Decide(&o, a.DueMS-1); b == a {
					t.Fatalf("%+v: due before it is: %+v", o, b)
				}
			}
			seen[fmt.Sprint(o.Tier, got)]++
		}
	}
	for _, way := range []string{"FREQUENT INFREQUENT", "FREQUENT ARCHIVE_INSTANT", "FREQUENT ARCHIVE", "FREQUENT DEEP_ARCHIVE", "INFREQUENT FREQUENT", "ARCHIVE_INSTANT FREQUENT", "ARCHIVE FREQUENT", "DEEP_ARCHIVE FREQUENT"} {
		if seen[way] < 20 {
			t.Errorf("%s came only %d times", way, seen[way])
		}
	}
}
