package lifecycle

import (
	"cmp"
	"context"
	"slices"
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/storage"
)

// Simulation says what a worker would find due in a bucket at a time, with the rows there are now. It decides as the
// worker does, with the same code, and changes nothing. Only one look is simulated: what follows from what is done
// (a delete marker that is left alone, a class further down) is for a look at a later time.
type Simulation struct {
	Bucket   Bucket // with the rules to go by, which need not be those that are put
	AtMS     int64  // unix ms
	Day      time.Duration
	Examples int // kept of each action of a rule
	// ExamplesMax bounds the examples of all together.
	ExamplesMax int
	// Survey answers rows of the bucket behind a place (nil: the first), wherever their range is led, and where to go on; nil at the end.
	Survey func(ctx context.Context, after *rangestate.LifecyclePos) ([]rangestate.LifecycleRow, *rangestate.LifecyclePos, error)
	// Drives estimates the bytes on drives of an object of a class.
	Drives func(class storage.StorageClass, size uint64) int64
	// Progress is told how many rows were seen, after each page; nil: nobody is.
	Progress func(rows int64)

	Rows    int64           // seen, by Run
	actions map[simKey]*Sim // by Run
	order   map[string]int  // of the rules
	kept    int             // examples
}

type simKey struct {
	rule   string
	what   rules.What
	marker bool
	class  storage.StorageClass
}

// Sim is what one rule would do in one way.
type Sim struct {
	Rule     string
	What     rules.What
	Marker   bool                 // Expire: a delete marker on top, and all bytes stay
	Class    storage.StorageClass // of a Transition
	Count    int64
	Bytes    int64              // of the versions, or of an upload's parts
	Early    *metapb.CounterRow // what it would add to the early counters
	Before   int64              // bytes on drives, about
	After    int64              // and afterwards
	Examples []SimExample
}

// SimExample is a version or upload that an action would be done to.
type SimExample struct {
	Key     storage.Key
	Version storage.VersionID
	Upload  bool
	Size    uint64
	Class   storage.StorageClass
	DueMS   int64
}

// Run walks over all rows that the rules can match, and answers what would be done: by rule in their order, then by action.
func (s *Simulation) Run(ctx context.Context) ([]Sim, error) {
	s.actions, s.order = map[simKey]*Sim{}, map[string]int{}
	for i, r := range s.Bucket.Rules.GetRules() {
		s.order[r.Id] = i
	}
	b := &bucket{Bucket: s.Bucket, rules: rules.Compile(s.Bucket.Rules, s.Day)}
	first, ok := b.rules.From("")
	for after := (&rangestate.LifecyclePos{Key: first}); ok && after != nil; {
		rows, next, err := s.Survey(ctx, after)
		if err != nil {
			return nil, err
		}
		after = s.page(b, rows, next)
		if s.Progress != nil {
			s.Progress(s.Rows)
		}
	}
	out := make([]Sim, 0, len(s.actions))
	for _, a := range s.actions {
		out = append(out, *a)
	}
	slices.SortFunc(out, func(a, b Sim) int {
		return cmp.Or(cmp.Compare(s.order[a.Rule], s.order[b.Rule]), cmp.Compare(a.What, b.What), cmp.Compare(a.Class, b.Class), cmp.Compare(boolInt(a.Marker), boolInt(b.Marker)))
	})
	return out, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// page looks at rows and answers where to go on: at next, or further on if no rule matches a key before that.
func (s *Simulation) page(b *bucket, rows []rangestate.LifecycleRow, next *rangestate.LifecyclePos) *rangestate.LifecyclePos {
	p := &page{bucket: b, nowMS: s.AtMS}
	for i := range rows {
		row := &rows[i]
		s.Rows++
		p.key = storage.Key(row.Key)
		from, ok := b.rules.From(p.key)
		if !ok {
			return nil
		}
		if from != p.key {
			continue
		}
		p.facts(row)
		if a := b.rules.Decide(&p.object, s.AtMS); a.What != rules.Nothing && (a.What != rules.Transition || movable(a.Class)) {
			s.add(p, row, a)
		}
	}
	if next != nil {
		if from, ok := b.rules.From(next.Key); !ok {
			return nil
		} else if from != next.Key {
			return &rangestate.LifecyclePos{Key: from}
		}
	}
	return next
}

// add counts an action.
func (s *Simulation) add(p *page, row *rangestate.LifecycleRow, a rules.Action) {
	k := simKey{rule: a.Rule, what: a.What, class: a.Class, marker: a.What == rules.Expire && p.object.Versioned}
	sim := s.actions[k]
	if sim == nil {
		sim = &Sim{Rule: a.Rule, What: a.What, Class: a.Class, Marker: k.marker, Early: &metapb.CounterRow{}}
		s.actions[k] = sim
	}
	e := SimExample{Key: p.key, DueMS: a.DueMS}
	if up := row.Upload; up != nil {
		e.Upload, e.Size, e.Class = true, up.Bytes, storage.StorageClass(up.GetAttributes().GetStorageClass())
		e.Version = storage.VersionID{Seq: storage.Seq(up.Seq), Nonce: up.Nonce}
	} else {
		e.Size, e.Class = row.Object.Size, p.object.Class
		if !row.Object.NullVersion {
			e.Version = storage.VersionID{Seq: storage.Seq(row.Object.Seq), Nonce: row.Object.Nonce}
		}
	}
	if e.Class == "" {
		e.Class = storage.Standard
	}
	sim.Count++
	sim.Bytes += int64(e.Size)
	before := s.Drives(e.Class, e.Size)
	sim.Before += before
	switch {
	case a.What == rules.Transition:
		sim.After += s.Drives(a.Class, e.Size)
	case sim.Marker:
		sim.After += before
	}
	if row.Upload == nil && !sim.Marker {
		rangestate.AddEarly(sim.Early, row.Object.Size, uint64(rangestate.EarlyMS(row.Object, s.AtMS, s.Day.Milliseconds())))
	}
	if len(sim.Examples) < s.Examples && s.kept < s.ExamplesMax {
		s.kept++
		sim.Examples = append(sim.Examples, e)
	}
}
