package core

import (
	"context"
	"slices"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/garbage"
	"cairn/storage/repair"
)

// ranges is the metadata plane as the collector (garbage.Meta) and the repair
// workers (repair.Meta, repair.Referrer) see it.
type ranges struct {
	meta   *metaclient.Client
	groups *multiraft.Host
}

// Ranges are the ranges whose leaders are here: their background work is done here.
func (m ranges) Ranges() []cluster.GroupID {
	var ids []cluster.GroupID
	for _, g := range m.groups.Status() {
		if g.Local && g.Group != cluster.SystemGroup {
			ids = append(ids, g.Group)
		}
	}
	return ids
}

// all are all ranges, wherever they are led.
func (m ranges) all() []cluster.GroupID {
	var ids []cluster.GroupID
	for _, g := range m.meta.AllRanges() {
		ids = append(ids, g.ID)
	}
	return ids
}

func (m ranges) Garbage(ctx context.Context, g cluster.GroupID, after garbage.ID, rowsMax int) (rows []garbage.Row, err error) {
	err = m.meta.ReadGroup(ctx, g, func(v rangestate.Reader) error {
		items, err := v.Garbage(after.Seq, after.N, rowsMax)
		rows = rows[:0]
		for _, it := range items {
			rows = append(rows, garbage.Row{ID: garbage.ID{Seq: it.Seq, N: it.N}, Row: it.Row})
		}
		return err
	})
	return rows, err
}

func (m ranges) DropGarbage(ctx context.Context, g cluster.GroupID, ids []garbage.ID) error {
	op := &metapb.DropGarbageOp{Ids: make([]*metapb.GarbageID, len(ids))}
	for i, id := range ids {
		op.Ids[i] = &metapb.GarbageID{Seq: uint64(id.Seq), N: id.N}
	}
	_, err := m.meta.DoGroup(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_DropGarbage{DropGarbage: op}})
	return err
}

func (m ranges) Doomed(ctx context.Context, g cluster.GroupID, rowsMax int) (rows []garbage.Doomed, err error) {
	err = m.meta.ReadGroup(ctx, g, func(v rangestate.Reader) error {
		items, err := v.Doomed(nil, rowsMax)
		rows = rows[:0]
		for _, it := range items {
			rows = append(rows, garbage.Doomed{ID: garbage.DoomedID{Bucket: it.Bucket, Key: it.Key, Seq: it.Seq}, Row: it.Row})
		}
		return err
	})
	return rows, err
}

func (m ranges) ExpandDoomed(ctx context.Context, g cluster.GroupID, only []garbage.DoomedID, rowsMax int) (bool, error) {
	op := &metapb.ExpandDoomedOp{RowsMax: uint32(rowsMax)}
	for _, id := range only {
		op.Only = append(op.Only, &metapb.DoomedID{Bucket: uint64(id.Bucket), Key: []byte(id.Key), Seq: uint64(id.Seq)})
	}
	res, err := m.meta.DoGroup(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_ExpandDoomed{ExpandDoomed: op}})
	return res.GetMore(), err
}

func (m ranges) Sweep(ctx context.Context, g cluster.GroupID, rowsMax int) (bool, error) {
	res, err := m.meta.DoGroup(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_Sweep{Sweep: &metapb.SweepOp{RowsMax: uint32(rowsMax)}}})
	return res.GetMore(), err
}

func (m ranges) Repairs(ctx context.Context, g cluster.GroupID, after repair.RowID, rowsMax int) (rows []repair.Row, err error) {
	var from *metapb.RepairID
	if after != (repair.RowID{}) {
		from = &metapb.RepairID{Bucket: uint64(after.Bucket), Key: []byte(after.Key), Seq: uint64(after.Seq)}
	}
	err = m.meta.ReadGroup(ctx, g, func(v rangestate.Reader) error {
		items, err := v.Repairs(from, rowsMax)
		rows = rows[:0]
		for _, it := range items {
			rows = append(rows, repair.Row{ID: repair.RowID{Bucket: it.Bucket, Key: it.Key, Seq: it.Seq}, Row: it.Row})
		}
		return err
	})
	return rows, err
}

func (m ranges) Data(ctx context.Context, row repair.Row) (data *metapb.Data, err error) {
	err = m.meta.Read(ctx, row.ID.Bucket, row.ID.Key, func(v rangestate.Reader) error {
		var write []byte
		if row.Row.UploadSeq != 0 {
			part, err := v.Part(row.ID.Bucket, row.ID.Key, storage.Seq(row.Row.UploadSeq), int(row.Row.Part))
			if err != nil {
				return err
			}
			data, write = part.Data, part.WriteId
		} else {
			object, err := v.VersionBySeq(row.ID.Bucket, row.ID.Key, storage.Seq(row.Row.VersionSeq))
			if err != nil {
				return err
			}
			data, write = object.Data, object.WriteId
		}
		if string(write) != string(row.Row.WriteId) {
			data = nil
		}
		return nil
	})
	switch errs.KindOf(err) {
	case errs.NoSuchKey, errs.NoSuchVersion, errs.NoSuchUpload, errs.NoSuchBucket, errs.InvalidPart, errs.NotFound:
		if err != nil {
			return nil, nil // the version or part is gone
		}
	}
	return data, err
}

func (m ranges) Rewrite(ctx context.Context, op *metapb.RewriteDataOp) error {
	_, err := m.meta.Do(ctx, storage.BucketID(op.Bucket), storage.Key(op.Key), &metapb.RangeCommand{Op: &metapb.RangeCommand_RewriteData{RewriteData: op}})
	return err
}

func (m ranges) DropRepair(ctx context.Context, ids []repair.RowID) error {
	byGroup := map[cluster.GroupID]*metapb.DropRepairOp{}
	for _, id := range ids {
		g, err := m.meta.GroupOf(id.Bucket, id.Key)
		if err != nil {
			return err
		}
		if byGroup[g] == nil {
			byGroup[g] = &metapb.DropRepairOp{}
		}
		byGroup[g].Ids = append(byGroup[g].Ids, &metapb.RepairID{Bucket: uint64(id.Bucket), Key: []byte(id.Key), Seq: uint64(id.Seq)})
	}
	for g, op := range byGroup {
		if _, err := m.meta.DoGroup(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_DropRepair{DropRepair: op}}); err != nil {
			return err
		}
	}
	return nil
}

func (m ranges) Refers(ctx context.Context, owner storage.Owner, chunk storage.ChunkID) (refers bool, timeMS int64, err error) {
	var parent cluster.GroupID
	err = m.meta.Read(ctx, owner.Bucket, owner.Key, func(v rangestate.Reader) (err error) {
		refers, err = v.Refers(owner, chunk)
		timeMS = v.TimeMS() // after the question: it comes with the answer
		if err == nil && !refers {
			var info rangestate.Info
			info, err = v.Info()
			parent = cluster.GroupID(info.Descriptor.GetParent())
		}
		return err
	})
	// What a range deleted before it was split off is garbage of its parent.
	for err == nil && !refers && parent != 0 {
		parent, refers, err = m.garbageNames(ctx, parent, chunk)
	}
	return refers, timeMS, err
}

// garbageNames reports whether a garbage row of the group names the chunk, and the group's parent.
func (m ranges) garbageNames(ctx context.Context, g cluster.GroupID, chunk storage.ChunkID) (parent cluster.GroupID, names bool, err error) {
	err = m.meta.ReadGroup(ctx, g, func(v rangestate.Reader) error {
		info, err := v.Info()
		if err != nil {
			return err
		}
		parent, names = cluster.GroupID(info.Descriptor.GetParent()), false
		for at := (garbage.ID{}); !names; {
			rows, err := v.Garbage(at.Seq, at.N, garbagePageRows)
			if err != nil || len(rows) == 0 {
				return err
			}
			for _, r := range rows {
				names = names || slices.ContainsFunc(r.Row.GetChunks(), func(c *metapb.ChunkRef) bool { return string(c.GetId()) == string(chunk[:]) })
			}
			last := rows[len(rows)-1]
			at = garbage.ID{Seq: last.Seq, N: last.N}
		}
		return nil
	})
	return parent, names, err
}

const garbagePageRows = 1000

func (m ranges) Ref(ctx context.Context, owner storage.Owner, chunk storage.ChunkID) (ref *metapb.ChunkRef, err error) {
	err = m.meta.Read(ctx, owner.Bucket, owner.Key, func(v rangestate.Reader) (err error) {
		ref, err = v.FindChunk(owner, chunk)
		return err
	})
	return ref, err
}
