package lifecycle

import (
	"context"
	"slices"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/storage"
	"cairn/storage/errs"
)

// missesMax is how many rows in a row that no rule can match are passed before a walk jumps to the next that one can.
const missesMax = 64

// page is some rows of a scan and what is due among them.
type page struct {
	w      *Worker
	scan   *scan
	bucket *bucket
	next   *rangestate.LifecyclePos // where to go on; nil at the end
	nowMS  int64
	key    storage.Key // of the latest row
	rows   int64
	misses int
	jump   *rangestate.LifecyclePos // where the rules go on
	over   bool                     // no rule matches any further key
	object rules.Object
	due    []dueEnd
	moves  []*move
	first  *rangestate.LifecyclePos // before the first row that is to be moved
}

// dueEnd is an end that is due.
type dueEnd struct {
	entry  *metapb.ExpireEntry
	action rules.Action
	done   bool
}

// what the commands call the actions.
func whatOf(a rules.What) metapb.ExpireEntry_What {
	switch a {
	case rules.Expire:
		return metapb.ExpireEntry_CURRENT
	case rules.RemoveNoncurrent:
		return metapb.ExpireEntry_NONCURRENT
	case rules.RemoveMarker:
		return metapb.ExpireEntry_MARKER
	case rules.Abort:
		return metapb.ExpireEntry_UPLOAD
	}
	return metapb.ExpireEntry_NOTHING
}

// read walks over the page's rows.
func (p *page) read(ctx context.Context) error {
	after := p.scan.after
	if after == nil {
		from, ok := p.bucket.rules.From("")
		if !ok {
			return nil
		}
		after = &rangestate.LifecyclePos{Key: from}
	}
	next, err := p.w.cfg.Meta.Scan(ctx, p.scan.group, p.bucket.ID, after, p.w.cfg.PageRows, p.begin, p.visit)
	if err != nil {
		return err
	}
	switch {
	case p.over:
		p.next = nil
	case p.jump != nil:
		p.next = p.jump
	default:
		p.next = next
	}
	return nil
}

// begin forgets what a walk that is begun anew has found.
func (p *page) begin(timeMS int64) {
	*p = page{w: p.w, scan: p.scan, bucket: p.bucket}
	// The range's time never falls behind what it has promised; a quiet range's stands still.
	p.nowMS = max(timeMS, p.w.cfg.Now().UnixMilli())
}

// visit looks at a row and reports whether to go on.
func (p *page) visit(row *rangestate.LifecycleRow) (more bool) {
	p.rows++
	if string(p.key) != string(row.Key) {
		p.key = storage.Key(row.Key)
		if from, ok := p.bucket.rules.From(p.key); !ok {
			p.over = true
			return false
		} else if from == p.key {
			p.misses = 0
		} else if p.misses++; p.misses >= missesMax {
			p.jump = &rangestate.LifecyclePos{Key: from}
			return false
		}
	}
	if p.misses > 0 {
		return true
	}
	p.facts(row)
	a := p.bucket.rules.Decide(&p.object, p.nowMS)
	if a.What == rules.Transition && p.w.isBlocked(a.Class) && p.object.Versioned {
		// It cannot be moved now: that must not keep a delete marker from coming on top.
		plain := p.object
		plain.Versioned, plain.Locked = false, false
		if b := p.bucket.rules.Decide(&plain, p.nowMS); b.What == rules.Expire {
			a = b
		}
	}
	switch a.What {
	case rules.Nothing:
	case rules.Transition, rules.Retier:
		return p.moveLater(row, a)
	default:
		p.endSoon(row, a)
	}
	return true
}

// facts are what is decided by.
func (p *page) facts(row *rangestate.LifecycleRow) {
	if up := row.Upload; up != nil {
		p.object = rules.Object{Kind: rules.Upload, Key: p.key, ModifiedMS: up.InitiatedMs}
		return
	}
	p.object = factsOf(p.bucket, p.key, row.Object, row.Newest, p.nowMS)
	p.object.Only, p.object.Newer = row.Only, row.NewerNoncurrent
}

// factsOf are the facts that a version's row tells of itself.
func factsOf(b *bucket, key storage.Key, row *metapb.ObjectRow, newest bool, nowMS int64) rules.Object {
	a := row.GetAttributes()
	o := rules.Object{
		Kind: rules.Current, Key: key, Size: row.Size, Tags: a.GetTags(), ModifiedMS: row.ModifiedMs, NoncurrentMS: row.NoncurrentMs,
		Class: storage.StorageClass(a.GetStorageClass()), Marker: row.DeleteMarker,
		Versioned: b.Versioning == metapb.Versioning_VERSIONING_ENABLED || b.Versioning == metapb.Versioning_VERSIONING_SUSPENDED && !row.NullVersion,
		Locked:    a.GetLegalHold() || a.GetLockMode() != "" && a.GetLockUntilMs() > nowMS,
	}
	if o.Class == storage.IntelligentTiering {
		o.Tier, o.AccessedMS, o.RestoredMS = row.GetTiering().GetTier(), rangestate.LastAccess(row), row.GetRestore().GetReadyMs()
	}
	if !newest {
		o.Kind = rules.Noncurrent
	}
	return o
}

// endSoon notes an end for the commands that end the page.
func (p *page) endSoon(row *rangestate.LifecycleRow, a rules.Action) {
	if p.scan.moving {
		return
	}
	e := &metapb.ExpireEntry{What: whatOf(a.What), Key: []byte(p.key)}
	if up := row.Upload; up != nil {
		e.VersionSeq, e.VersionNonce = up.Seq, up.Nonce
	} else {
		e.VersionSeq, e.VersionNonce, e.TagsHash = row.Object.Seq, row.Object.Nonce, rangestate.TagsHash(p.object.Tags)
	}
	if e.What == metapb.ExpireEntry_CURRENT {
		e.MarkerNonce, e.MarkerOwner = p.w.cfg.Rand(), p.bucket.Owner
	}
	p.due = append(p.due, dueEnd{entry: e, action: a})
}

// moveLater notes a version that is to be moved: in a round only where it is, behind it the version itself.
func (p *page) moveLater(row *rangestate.LifecycleRow, a rules.Action) (more bool) {
	if a.What == rules.Transition && !movable(a.Class) { // no such rule is accepted
		p.w.status.trouble(p.bucket.Name, errs.Newf(errs.NotImplemented, "lifecycle", a.Rule, "no way into %s", a.Class))
		return true
	}
	if p.first == nil {
		p.first = &rangestate.LifecyclePos{Key: p.key}
	}
	m := &move{
		scan: p.scan, key: p.key, seq: storage.Seq(row.Object.Seq), noncurrent: !row.Newest, newer: row.NewerNoncurrent, action: a,
	}
	copy(m.write[:], row.Object.WriteId)
	p.moves = append(p.moves, m)
	return !p.scan.moving || len(p.w.queue)+len(p.moves) < p.w.cfg.QueueMax
}

// movable reports whether the worker moves versions into a class.
func movable(class storage.StorageClass) bool {
	switch class {
	case storage.StandardIA, storage.OnezoneIA, storage.IntelligentTiering, storage.GlacierIR, storage.Glacier, storage.DeepArchive:
		return true
	}
	return false
}

// end carries out the ends of the page. An error says that the page is to be seen again; what was done is counted.
func (p *page) end(ctx context.Context) (done int64, err error) {
	for batch := range slices.Chunk(p.due, rangestate.ExpireEntriesMax) {
		op := &metapb.ExpireOp{Bucket: uint64(p.bucket.ID), ConfigGeneration: p.bucket.Generation}
		for _, d := range batch {
			op.Entries = append(op.Entries, d.entry)
		}
		results, err := p.w.cfg.Meta.Expire(ctx, p.scan.group, op)
		if err == nil && len(results) != len(batch) {
			err = errs.Newf(errs.Corrupt, "lifecycle", p.bucket.Name, "%d results for %d entries", len(results), len(batch))
		}
		if err != nil {
			return done, err
		}
		for i, r := range results {
			kind := errs.Kind(r.Kind)
			batch[i].done = r.Ok
			switch {
			case r.Ok:
				done++
				p.w.status.did(p.bucket, batch[i].action, 0)
			case kind == errs.ObjectLocked:
				batch[i].done = true // it is not due any more: a lock wins
			default:
				p.w.round.failed = true
			}
		}
	}
	return done, nil
}

// note keeps what is to be moved: in a round the place where to begin, behind it the versions.
func (p *page) note() {
	switch {
	case p.first == nil:
	case p.scan.moving:
		p.w.queue = append(p.w.queue, p.moves...)
		p.w.moving.active = true
	default:
		known := slices.ContainsFunc(p.w.moves, p.scan.same)
		if !known {
			p.w.moves = append(p.w.moves, &scan{group: p.scan.group, bucket: p.scan.bucket, after: p.first, moving: true})
		}
	}
}
