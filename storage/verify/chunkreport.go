package verify

import (
	"fmt"
	"slices"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// reportChunk turns what is left of an exam into problems: one for each shard
// index, not for each stripe, and one more if data is lost.
func (r *run) reportChunk(c *chunk, n *named, ref *metapb.ChunkRef, pg *cluster.PG, x *exam) {
	what := fmt.Sprintf("chunk %v", c.id)
	if n.by == byPart {
		what = fmt.Sprintf("part %d %s", n.part, what)
	}
	about := func(kind string, format string, args ...any) {
		r.problem(r.about(kind, n.owner.Bucket, n.owner.Key, n.version, "%s: "+format, append([]any{what}, args...)...))
	}
	r.mu.Lock()
	for at := range x.unread {
		r.unread[pg.Drives[at.index]]++
	}
	r.mu.Unlock()
	if s, left := worstStripe(ref, x); left < int(ref.K) {
		about(KindLost, "stripe %d has %d good shards and %d are needed: bring back the drives that are not readable, or restore the object from a backup", s, left, ref.K)
	}
	for _, i := range indexesOf(x.missing) {
		stripes, first := stripesOf(x.missing, i)
		l := x.missing[place{first, i}]
		kind, next := KindMissing, "it is made again when the object is read or scrub comes by"
		switch {
		case i < len(pg.DirtySince) && pg.DirtySince[i] != 0:
			kind, next = KindRepairing, "its drive is being filled again"
		case ref.Missing&(1<<i) != 0:
			kind, next = KindRepairing, "it missed its write and is queued"
		case l.corrupt:
			kind = KindCorrupt
		}
		p := r.about(kind, n.owner.Bucket, n.owner.Key, n.version, "%s shard %d of %s (%s); %s", what, i, stripes, l.why, next)
		r.problem(r.on(p, pg.Drives[i]))
		if r.cfg.OnBad != nil && kind != KindRepairing {
			k := errs.NotFound
			if l.corrupt {
				k = errs.Corrupt
			}
			r.cfg.OnBad(n.owner, ref, first, i, pg.Drives[i], errs.New(k, "verify", what, l.why))
		}
	}
	r.reportFrames(c, n, ref, what, x)
}

// reportFrames reports frames that contradict the row.
func (r *run) reportFrames(c *chunk, n *named, ref *metapb.ChunkRef, what string, x *exam) {
	one := func(fs []frame, kind string, detail func(frame) string) {
		told := map[int]bool{} // one problem a drive
		for _, f := range fs {
			if told[f.drive] {
				continue
			}
			told[f.drive] = true
			p := r.about(kind, n.owner.Bucket, n.owner.Key, n.version, "%s stripe %d shard %d (%s): %s", what, f.id.Stripe, f.id.Index, f.where, detail(f))
			r.problem(r.on(p, r.cfg.Drives[f.drive].ID))
		}
	}
	one(x.strays, KindWrongDrive, func(f frame) string {
		return fmt.Sprintf("it lies in placement group %d on a drive that does not hold shard %d there; the row names group %d", f.id.PG, f.id.Index, ref.Pg)
	})
	one(x.owner, KindOwner, func(f frame) string {
		o := c.owners[f.owner]
		return fmt.Sprintf("its frame says that it belongs to bucket %d key %q write %v, the row's write is %v", o.Bucket, string(o.Key), o.Write, n.owner.Write)
	})
	one(x.layout, KindLayout, func(f frame) string {
		l := layoutOf(ref)
		return fmt.Sprintf("its frame says %v, stripes of %d, chunk of %d, shard of %d bytes; the row says %v, %d, %d, %d",
			f.layout.Scheme, f.layout.StripeBytes, f.layout.Length, f.bytes, l.Scheme, l.StripeBytes, l.Length, l.ShardLen(int(f.id.Stripe)))
	})
}

// worstStripe is the stripe with the fewest good shards.
func worstStripe(ref *metapb.ChunkRef, x *exam) (stripe, good int) {
	l := layoutOf(ref)
	good = l.Scheme.Shards()
	for s := range l.Stripes() {
		n := 0
		for i := range l.Scheme.Shards() {
			if x.good[place{s, i}] || x.elsewhere[place{s, i}] {
				n++
			}
		}
		if n < good {
			stripe, good = s, n
		}
	}
	return stripe, good
}

func indexesOf(m map[place]lack) (out []int) {
	for at := range m {
		if !slices.Contains(out, at.index) {
			out = append(out, at.index)
		}
	}
	slices.Sort(out)
	return out
}

// stripesOf names the stripes that lack the shard, for people, and the first of them.
func stripesOf(m map[place]lack, index int) (stripes string, first int) {
	n := 0
	for at := range m {
		if at.index != index {
			continue
		}
		if n == 0 || at.stripe < first {
			first = at.stripe
		}
		n++
	}
	if n == 1 {
		return fmt.Sprintf("stripe %d", first), first
	}
	return fmt.Sprintf("%d stripes from %d on", n, first), first
}
