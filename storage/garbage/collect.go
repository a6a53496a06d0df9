package garbage

import (
	"context"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
)

// collect removes the chunks of a page of rows and drops the rows of which all
// drives acknowledged. The range's cursor moves past the page only if every
// command went through.
func (c *Collector) collect(ctx context.Context, g cluster.GroupID, rs *rangeState, rows []Row, held func(storage.WriteID) bool) (int64, error) {
	if len(rows) == 0 {
		return 0, nil
	}
	var k kept
	b := batch{}
	var gone []ID
	var chunks int64
	flush := func() error {
		n := len(b.rows)
		ids, removed, err := c.remove(ctx, b.rows, rs.frontier)
		gone, chunks = append(gone, ids...), chunks+removed
		k.blocked += n - len(ids)
		b = batch{}
		return err
	}
	for _, r := range rows {
		if w, ok := writeID(r.Row.GetPinWrite()); ok && held(w) {
			k.held++
			continue
		}
		if !sound(r.Row) {
			// Never dropped: what it meant to free would be leaked without a trace.
			k.bad++
			c.cfg.Logger.Error("garbage row cannot be read; it stays", "group", g, "seq", r.ID.Seq, "n", r.ID.N)
			continue
		}
		b.rows, b.chunks = append(b.rows, r), b.chunks+len(r.Row.Chunks)
		if b.chunks >= c.cfg.RemoveChunks {
			if err := flush(); err != nil {
				return 0, err
			}
		}
	}
	if err := flush(); err != nil {
		return 0, err
	}
	// A page holds no more rows than one command may name.
	if len(gone) > 0 {
		if err := c.cfg.Meta.DropGarbage(ctx, g, gone); err != nil {
			return 0, err
		}
	}
	last := rows[len(rows)-1].ID
	rs.cursor = last
	if rs.frontier.Compare(last) < 0 {
		rs.frontier = last
	}
	rs.kept.held += k.held
	rs.kept.blocked += k.blocked
	rs.kept.bad += k.bad
	c.mu.Lock()
	c.mu.stats.RowsDropped += int64(len(gone))
	c.mu.stats.ChunksRemoved += chunks
	c.mu.Unlock()
	return int64(len(gone)), nil
}

// batch is the rows of one removal.
type batch struct {
	rows   []Row
	chunks int
}

// sound reports whether every chunk named can be removed.
func sound(r *metapb.GarbageRow) bool {
	if r == nil {
		return false
	}
	for _, ref := range r.Chunks {
		if len(ref.GetId()) != len(storage.ChunkID{}) || ref.Pg == 0 {
			return false
		}
	}
	return true
}

// remove sends the rows' chunks to the drives and answers the rows of which every
// drive acknowledged, with the number of their chunks. Its error is ctx's only:
// what a drive answers decides about its placement group.
func (c *Collector) remove(ctx context.Context, rows []Row, frontier ID) (ids []ID, chunks int64, err error) {
	var open, blocked []Row
	for _, r := range rows {
		switch {
		case !c.blocks.anyOf(r.Row.Chunks):
			open = append(open, r)
		case r.ID.Compare(frontier) > 0:
			blocked = append(blocked, r) // new: those drives that answer give the space back now
		}
	}
	acked := func(rs []Row) {
		for _, r := range rs {
			for _, ref := range r.Row.Chunks {
				c.blocks.clear(storage.PGID(ref.Pg))
			}
		}
	}
	take := func(rs []Row) {
		for _, r := range rs {
			ids = append(ids, r.ID)
			chunks += int64(len(r.Row.Chunks))
		}
	}
	if done, _ := c.try(ctx, refsOf(open)); done {
		acked(open)
		take(open)
	} else {
		take(c.removeByPG(ctx, open))
	}
	if done, _ := c.try(ctx, refsOf(blocked)); done {
		acked(blocked)
		take(blocked)
	}
	return ids, chunks, ctx.Err()
}

// removeByPG finds out which placement groups did not acknowledge, and answers the rows that have chunks in others only.
func (c *Collector) removeByPG(ctx context.Context, rows []Row) (done []Row) {
	byPG := make(map[storage.PGID][]*metapb.ChunkRef)
	for _, r := range rows {
		for _, ref := range r.Row.Chunks {
			byPG[storage.PGID(ref.Pg)] = append(byPG[storage.PGID(ref.Pg)], ref)
		}
	}
	acked := make(map[storage.PGID]bool, len(byPG))
	for pg, refs := range byPG {
		ok, err := c.try(ctx, refs)
		if ctx.Err() != nil {
			return nil
		}
		acked[pg] = ok
		if ok {
			c.blocks.clear(pg)
		} else if c.blocks.block(pg, err) {
			c.cfg.Logger.Warn("removed chunks keep their space on drives that do not answer", "pg", pg, "err", err)
		}
	}
	for _, r := range rows {
		all := true
		for _, ref := range r.Row.Chunks {
			all = all && acked[storage.PGID(ref.Pg)]
		}
		if all {
			done = append(done, r)
		}
	}
	return done
}

func (c *Collector) try(ctx context.Context, refs []*metapb.ChunkRef) (bool, error) {
	if len(refs) == 0 {
		return true, nil
	}
	done, err := c.cfg.Plane.Remove(ctx, refs)
	return done && err == nil, err
}

func refsOf(rows []Row) (refs []*metapb.ChunkRef) {
	for _, r := range rows {
		refs = append(refs, r.Row.Chunks...)
	}
	return refs
}
