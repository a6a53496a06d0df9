package sysstate

import (
	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// rangesMax bounds the ranges that one PutRanges names.
const rangesMax = 1000

// newGroup gives out a group id. A repeat is answered from the command's outcome; an id that is
// not used after all is lost.
func (t *tx) newGroup() error {
	t.res.Group = t.store.NextGroup
	t.store.NextGroup++
	t.dirty = true
	return nil
}

// putRanges records bounds that the ranges themselves have decided. Whoever reads them late does no harm: the bounds of
// a lower generation never replace those of a higher one. A range that is new brings its replicas; those of a
// known one are left as they are.
func (t *tx) putRanges(ranges []*metapb.SysGroup) error {
	if len(ranges) == 0 || len(ranges) > rangesMax {
		return refuse(errs.InvalidArgument, "1 to %d ranges at once", rangesMax)
	}
	known := func(id storage.DriveID) error {
		d, err := t.drive(id[:])
		if err == nil && d == nil {
			err = refuse(errs.NotFound, "drive %s is not of this store", id)
		}
		return err
	}
	seen := map[uint64]bool{}
	for _, g := range ranges { // all are checked before anything is written
		switch {
		case g.GetId() <= uint64(cluster.SystemGroup) || g.Id >= t.store.NextGroup || seen[g.Id]:
			return refuse(errs.InvalidArgument, "group %d is not one that was given out, or is named twice", g.GetId())
		case g.End != nil && pos(g.Start).Compare(pos(g.End)) >= 0:
			return refuse(errs.InvalidArgument, "range %d ends before it begins", g.Id)
		}
		seen[g.Id] = true
		cur := &metapb.SysGroup{}
		ok, err := get(t.b, groupKey(g.Id), cur)
		if err != nil {
			return err
		}
		if !ok {
			if err := checkGroup(g, known); err != nil {
				return err
			}
		}
	}
	for _, g := range ranges {
		cur := &metapb.SysGroup{}
		ok, err := get(t.b, groupKey(g.Id), cur)
		switch {
		case err != nil:
			return err
		case !ok:
			cur = g.CloneVT()
			cur.Members = 0
		case cur.Generation >= g.Generation:
			continue
		default:
			cur.Start, cur.End, cur.Generation = g.Start, g.End, g.Generation
		}
		t.moved = true
		if err := put(t.b, groupKey(g.Id), cur); err != nil {
			return err
		}
	}
	return nil
}

// keepBounds makes a group that is to be recorded keep the bounds there are, unless it brings newer ones.
func keepBounds(cur, g *metapb.SysGroup) *metapb.SysGroup {
	if cur.Id != g.Id || g.Generation > cur.Generation {
		return g
	}
	g = g.CloneVT()
	g.Start, g.End, g.Generation = cur.Start, cur.End, cur.Generation
	return g
}
