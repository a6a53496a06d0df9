package lifecycle

import (
	"strings"

	"cairn/proto/metapb"
	"cairn/storage"
)

// Days without access after which INTELLIGENT_TIERING moves an object; the archive tiers have none of their own.
const (
	infrequentTierDays     = 30
	archiveInstantTierDays = 90
)

// TieringRule names tier changes where a rule is named: INTELLIGENT_TIERING itself asks for them.
const TieringRule = string(storage.IntelligentTiering)

// PlaceOf is the class whose placement groups hold the bytes of a version of a class; those of INTELLIGENT_TIERING lie
// where its tier says.
func PlaceOf(class storage.StorageClass, tier metapb.Tiering_Tier) storage.StorageClass {
	if class != storage.IntelligentTiering {
		return class
	}
	switch tier {
	case metapb.Tiering_INFREQUENT:
		return storage.StandardIA
	case metapb.Tiering_ARCHIVE_INSTANT:
		return storage.GlacierIR
	case metapb.Tiering_ARCHIVE:
		return storage.Glacier
	case metapb.Tiering_DEEP_ARCHIVE:
		return storage.DeepArchive
	}
	return storage.Standard
}

// Tier is the one that a change of the tier leads to: each has a class of its own to lie in.
func (a Action) Tier() metapb.Tiering_Tier {
	for tier := metapb.Tiering_INFREQUENT; tier <= metapb.Tiering_DEEP_ARCHIVE; tier++ {
		if PlaceOf(storage.IntelligentTiering, tier) == a.Class {
			return tier
		}
	}
	return metapb.Tiering_FREQUENT
}

// Tiers adds to r that the bucket has objects of INTELLIGENT_TIERING, whose tiers it decides about from then on, with the bucket's
// configurations, which must not be changed. It answers r, which must not be in use yet.
func (r *Rules) Tiers(configs []*metapb.TieringConfig) *Rules {
	r.tiered = true
	for _, c := range configs {
		if !c.GetDisabled() {
			r.tiering = append(r.tiering, c)
		}
	}
	return r
}

// tier is the change of an object's tier that is due: to the coldest that it was not read long enough for, and back once it was read. From an
// archive tier only a restore leads back. When it is due is a midnight, as of everything.
func (r *Rules) tier(o *Object, nowMS int64) Action {
	if !r.tiered || o.Class != storage.IntelligentTiering || o.Marker || o.Kind == Upload || o.Size < MinimumBytes {
		return Action{}
	}
	to, due := r.coldest(o, nowMS)
	switch archived := o.Tier == metapb.Tiering_ARCHIVE || o.Tier == metapb.Tiering_DEEP_ARCHIVE; {
	case archived && o.RestoredMS != 0:
		to, due = metapb.Tiering_FREQUENT, NextMidnight(o.RestoredMS, r.dayMS)
	case archived && to < o.Tier:
		return Action{}
	case to < o.Tier: // it was read since
		due = NextMidnight(o.AccessedMS, r.dayMS)
	}
	if to == o.Tier || due > nowMS {
		return Action{}
	}
	return Action{What: Retier, Class: PlaceOf(o.Class, to), Rule: TieringRule, DueMS: due}
}

// coldest is the coldest tier that an object is due for by the time it was not read, and since when; FREQUENT if for none.
func (r *Rules) coldest(o *Object, nowMS int64) (to metapb.Tiering_Tier, dueMS int64) {
	add := func(tier metapb.Tiering_Tier, days uint32) {
		if due := after(o.AccessedMS, days, r.dayMS); days > 0 && due <= nowMS && (tier > to || tier == to && due < dueMS) {
			to, dueMS = tier, due
		}
	}
	add(metapb.Tiering_INFREQUENT, infrequentTierDays)
	add(metapb.Tiering_ARCHIVE_INSTANT, archiveInstantTierDays)
	for _, c := range r.tiering {
		if strings.HasPrefix(string(o.Key), c.GetFilter().GetPrefix()) && matches(c.GetFilter(), o) {
			add(metapb.Tiering_ARCHIVE, c.ArchiveDays)
			add(metapb.Tiering_DEEP_ARCHIVE, c.DeepArchiveDays)
		}
	}
	return to, dueMS
}

// mayLeave reports whether a version may go from its tier to a class: from an archive tier only to an archive that is as deep, and not while it
// is on the way back.
func mayLeave(o *Object, to storage.StorageClass, nowMS int64) bool {
	if o.Class != storage.IntelligentTiering || o.RestoredMS != 0 && o.RestoredMS <= nowMS {
		return true
	}
	if o.RestoredMS > nowMS {
		return false
	}
	switch o.Tier {
	case metapb.Tiering_ARCHIVE:
		return to == storage.Glacier || to == storage.DeepArchive
	case metapb.Tiering_DEEP_ARCHIVE:
		return to == storage.DeepArchive
	}
	return true
}
