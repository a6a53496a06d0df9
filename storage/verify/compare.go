package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// chunk is all that the two sides tell of one chunk.
type chunk struct {
	id     storage.ChunkID
	rows   []named
	frames []frame
	owners map[[16]byte]storage.Owner
}

// compare merges what rows and frames tell, chunk by chunk.
func (r *run) compare(ctx context.Context) error {
	var c *chunk
	err := r.scratch.chunks.each(ctx, func(k, v []byte) error {
		if len(k) < 17 {
			return errShort
		}
		if id := storage.ChunkID(k[:16]); c == nil || c.id != id {
			if err := r.chunk(ctx, c); err != nil {
				return err
			}
			c = &chunk{id: id, owners: map[[16]byte]storage.Owner{}}
		}
		switch k[16] {
		case 'm':
			n, err := parseNamed(v)
			if err != nil {
				return err
			}
			c.rows = append(c.rows, n)
		case 'f':
			c.frames = append(c.frames, parseFrame(k, v))
		case 'o':
			c.owners[[16]byte(k[17:33])] = parseOwner(v)
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	return r.chunk(ctx, c)
}

func (r *run) chunk(ctx context.Context, c *chunk) error {
	if c == nil {
		return nil
	}
	var live []named
	garbage := false
	for _, n := range c.rows {
		if n.by == byGarbage {
			garbage = true
		} else {
			live = append(live, n)
		}
	}
	if len(live) == 0 {
		if garbage {
			r.count(func(k *counts) { k.awaiting += int64(len(c.frames)) })
			return nil
		}
		return r.unreferenced(ctx, c)
	}
	n := &live[0]
	if garbage || len(live) > 1 {
		others := len(c.rows) - 1
		r.problem(r.about(KindTwice, n.owner.Bucket, n.owner.Key, n.version, "chunk %v is named by %d other rows as well (by garbage: %v)", c.id, others, garbage))
	}
	r.count(func(k *counts) {
		k.chunks++
		k.shards += int64(layoutOf(n.ref).Stripes() * layoutOf(n.ref).Scheme.Shards())
	})
	pg, ok := r.topo.PGs[storage.PGID(n.ref.Pg)]
	if ok {
		if x := r.examine(c, n, n.ref, &pg); x.fine() {
			r.countFrames(x)
			return nil
		}
	}
	return r.recheck(ctx, c, n)
}

// place names a shard of a chunk.
type place struct{ stripe, index int }

// lack is why a shard is not where it should be.
type lack struct {
	why     string
	corrupt bool // it is there and damaged
}

// exam is what the frames found say about a chunk.
type exam struct {
	good      map[place]bool // on the right drive, whole, and agreeing with the row
	elsewhere map[place]bool // likewise, on the drive that it is being moved from
	missing   map[place]lack // of drives that were read
	unread    map[place]bool // drive was not read
	odd       map[place]bool // something is there; see owner and layout
	strays    []frame        // where they do not belong
	owner     []frame        // right place, wrong owner
	layout    []frame        // right place, wrong layout

	leftover, superseded int64
}

func (x *exam) fine() bool {
	return len(x.missing)+len(x.unread)+len(x.strays)+len(x.owner)+len(x.layout) == 0
}

func (r *run) countFrames(x *exam) {
	if x.leftover+x.superseded > 0 {
		r.count(func(k *counts) { k.leftover += x.leftover; k.superseded += x.superseded })
	}
}

// examine compares the frames with a reference.
func (r *run) examine(c *chunk, n *named, ref *metapb.ChunkRef, pg *cluster.PG) *exam {
	l := layoutOf(ref)
	x := &exam{good: map[place]bool{}, elsewhere: map[place]bool{}, missing: map[place]lack{}, unread: map[place]bool{}, odd: map[place]bool{}}
	want := ownerHash(&n.owner)
	for i := range c.frames {
		x.add(&c.frames[i], r.cfg.Drives[c.frames[i].drive].ID, ref, pg, want)
	}
	for stripe := range l.Stripes() {
		for i := range min(l.Scheme.Shards(), len(pg.Drives)) {
			at := place{stripe, i}
			if _, known := x.missing[at]; known || x.good[at] || x.odd[at] {
				continue
			}
			if _, read := r.drives[pg.Drives[i]]; read {
				x.missing[at] = lack{why: "there is no frame of it"}
			} else {
				x.unread[at] = true
			}
		}
	}
	return x
}

// add sorts a frame found on drive.
func (x *exam) add(f *frame, drive storage.DriveID, ref *metapb.ChunkRef, pg *cluster.PG, owner [16]byte) {
	l := layoutOf(ref)
	at := place{int(f.id.Stripe), int(f.id.Index)}
	if uint32(f.id.PG) != ref.Pg || at.index >= l.Scheme.Shards() || at.index >= len(pg.Drives) {
		x.strays = append(x.strays, *f)
		return
	}
	here := drive == pg.Drives[at.index]
	switch previous := at.index < len(pg.Previous) && drive == pg.Previous[at.index]; {
	case !here && !previous:
		x.strays = append(x.strays, *f)
	case at.stripe >= l.Stripes():
		x.leftover++
	case !here:
		x.elsewhere[at] = x.elsewhere[at] || f.bad == "" && f.owner == owner && agrees(f, ref)
	case f.bad != "":
		if !x.good[at] {
			x.missing[at] = lack{f.where + ": " + f.bad, true}
		}
	case f.owner != owner:
		x.owner, x.odd[at] = append(x.owner, *f), true
	case !agrees(f, ref):
		x.layout, x.odd[at] = append(x.layout, *f), true
	default:
		if _, bad := x.missing[at]; bad || x.good[at] {
			x.superseded++
		}
		x.good[at] = true
		delete(x.missing, at)
	}
}

// agrees reports whether the frame's layout is the reference's. A write that
// moved on to another placement group cut the chunk to whole stripes.
func agrees(f *frame, ref *metapb.ChunkRef) bool {
	l := layoutOf(ref)
	cut := f.layout.Length > l.Length && l.Length%int64(l.StripeBytes) == 0
	return f.layout.Scheme == l.Scheme && f.layout.StripeBytes == l.StripeBytes &&
		(f.layout.Length == l.Length || f.layout.Length == 0 || cut) && f.bytes == l.ShardLen(int(f.id.Stripe))
}

// recheck looks again at a chunk that did not pass, with what is true now.
func (r *run) recheck(ctx context.Context, c *chunk, n *named) error {
	ref, err := r.cfg.Meta.Ref(ctx, n.owner, c.id)
	if err != nil {
		return err
	}
	if ref == nil || refWrong(ref) != "" {
		r.count(func(k *counts) { k.changed++ })
		return nil // deleted or rewritten meanwhile
	}
	pg, ok := r.cfg.Topology().PGs[storage.PGID(ref.Pg)]
	if !ok || len(pg.Drives) != int(ref.K+ref.M) {
		r.problem(r.about(KindRow, n.owner.Bucket, n.owner.Key, n.version, "chunk %v lies in placement group %d, which is not known, or has another code", c.id, ref.Pg))
		return nil
	}
	x := r.examine(c, n, ref, &pg)
	r.countFrames(x)
	if err := r.lookAgain(ctx, c, n, ref, &pg, x); err != nil {
		return err
	}
	if x.fine() {
		r.count(func(k *counts) { k.changed++ })
		return nil
	}
	// What is left may be because the chunk was removed just now.
	if ref2, err := r.cfg.Meta.Ref(ctx, n.owner, c.id); err != nil || ref2 == nil {
		r.count(func(k *counts) { k.changed++ })
		return err
	}
	r.reportChunk(c, n, ref, &pg, x)
	return nil
}

// lookAgain reads what is suspicious from the drives and takes from x what proves to be fine.
func (r *run) lookAgain(ctx context.Context, c *chunk, n *named, ref *metapb.ChunkRef, pg *cluster.PG, x *exam) error {
	for at := range x.missing {
		id := storage.ShardID{PG: pg.ID, Chunk: c.id, Stripe: uint16(at.stripe), Index: uint8(at.index)}
		bad, err := r.look(ctx, pg.Drives[at.index], id, n, ref)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil: // cannot be looked at: what the scan found stands
		case bad == nil:
			x.good[at] = true
			delete(x.missing, at)
		default:
			x.missing[at] = *bad
		}
	}
	changed := func(f frame) bool {
		h, err := header(ctx, r.cfg.Drives[f.drive].Store, f.id)
		return errs.Is(err, errs.Gone) || errs.Is(err, errs.NotFound) || // removed meanwhile
			err == nil && h.Owner == n.owner && ownerHash(&n.owner) != f.owner // written again by its owner
	}
	for _, list := range []*[]frame{&x.strays, &x.owner, &x.layout} {
		*list = slices.DeleteFunc(*list, changed)
	}
	return ctx.Err()
}

var errNoLook = errors.New("verify: nothing to look at")

func header(ctx context.Context, s storage.ShardStore, id storage.ShardID) (storage.ShardHeader, error) {
	if hr, ok := s.(storage.HeaderReader); ok && s != nil {
		return hr.Header(ctx, id)
	}
	return storage.ShardHeader{}, errNoLook
}

// look reads a whole shard from its drive, as it is now: bad says what is wrong
// with it, err that nothing could be found out.
func (r *run) look(ctx context.Context, drive storage.DriveID, id storage.ShardID, n *named, ref *metapb.ChunkRef) (bad *lack, err error) {
	i, ok := r.drives[drive]
	if !ok || r.cfg.Drives[i].Store == nil {
		return nil, errNoLook
	}
	s := r.cfg.Drives[i].Store
	h, err := header(ctx, s, id)
	switch {
	case err == errNoLook:
	case err != nil:
		return wrong(err)
	case h.Owner != n.owner:
		return &lack{fmt.Sprintf("its frame says that it belongs to bucket %d key %q", h.Owner.Bucket, string(h.Owner.Key)), false}, nil
	}
	left := layoutOf(ref).ShardLen(int(id.Stripe))
	buf := make([]byte, min(left, 1<<20))
	for off := 0; off < left; off += len(buf) {
		if err := s.ReadAt(ctx, id, off, buf[:min(len(buf), left-off)]); err != nil {
			return wrong(err)
		}
	}
	return nil, nil
}

// wrong tells a shard that is bad from a drive that does not answer.
func wrong(err error) (*lack, error) {
	switch k := errs.KindOf(err); k {
	case errs.NotFound, errs.Gone, errs.Corrupt, errs.InvalidArgument:
		return &lack{err.Error(), k == errs.Corrupt}, nil
	}
	return nil, err
}

// unreferenced judges a chunk that frames tell of and no row names.
func (r *run) unreferenced(ctx context.Context, c *chunk) error {
	// The range's time ages chunks; a range nobody writes to has an old one, so the later of it and ours counts.
	age := max(r.timeMS, r.cfg.Now().UnixMilli()) - c.id.BirthMS()
	if age < r.cfg.Grace.Milliseconds() {
		r.count(func(k *counts) { k.young += int64(len(c.frames)) })
		return nil
	}
	for _, o := range c.owners {
		refers, _, err := r.cfg.Meta.Refers(ctx, o, c.id)
		if err != nil {
			return err
		}
		if refers {
			r.count(func(k *counts) { k.changed++ })
			return nil
		}
	}
	perDrive := map[int]int{}
	var owner storage.Owner
	for _, f := range c.frames {
		_, err := header(ctx, r.cfg.Drives[f.drive].Store, f.id)
		if errs.Is(err, errs.Gone) || errs.Is(err, errs.NotFound) {
			continue // removed meanwhile
		}
		owner = c.owners[f.owner]
		perDrive[f.drive]++
	}
	for d, n := range perDrive {
		p := r.about(KindUnreferenced, owner.Bucket, owner.Key, "", "%d shards of chunk %v in placement group %d, born %d s ago, are named by no row; scrub removes orphans that are older than a day when it comes by",
			n, c.id, c.frames[0].id.PG, age/1000)
		r.problem(r.on(p, r.cfg.Drives[d].ID))
	}
	return ctx.Err()
}
