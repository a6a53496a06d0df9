// Package storagetest has a drive and a data plane that live in memory, for the
// tests of what works on them. They keep the contracts of storage.ShardStore and
// of the plane's users, do nothing in the background, and fail on demand.
package storagetest

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"

	"cairn/storage"
	"cairn/storage/errs"
)

// Drive is a storage.ShardStore and storage.HeaderReader in memory. Safe for
// concurrent use; fields are to be set before.
type Drive struct {
	ID storage.DriveID
	// Fail is asked before each call takes effect, with the method's name; nil never fails.
	Fail func(method string) error

	mu     sync.Mutex
	shards map[storage.ShardID]*Shard
	gone   map[storage.ChunkRemoval]bool
	epochs map[storage.PGID]storage.Epoch
}

// Shard is a stored shard.
type Shard struct {
	Header  storage.ShardHeader
	Payload []byte
	Corrupt bool // its checksums don't match
}

// NewDrive makes an empty drive that accepts appends of every epoch.
func NewDrive(n byte) *Drive {
	d := &Drive{ID: storage.DriveID{n, 0xd}}
	d.Reset()
	return d
}

// Reset empties the drive.
func (d *Drive) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shards = make(map[storage.ShardID]*Shard)
	d.gone = make(map[storage.ChunkRemoval]bool)
	d.epochs = make(map[storage.PGID]storage.Epoch)
}

func (d *Drive) enter(ctx context.Context, method string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if d.Fail != nil {
		return d.Fail(method)
	}
	return nil
}

// Append is storage.ShardStore's.
func (d *Drive) Append(ctx context.Context, h storage.ShardHeader, payload []byte, done func()) error {
	if done != nil {
		defer done()
	}
	if err := d.enter(ctx, "append"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.shards[h.ID]
	switch {
	case d.gone[storage.ChunkRemoval{PG: h.ID.PG, Chunk: h.ID.Chunk}]:
		return errs.New(errs.Gone, "append", h.ID.String(), "")
	case h.Epoch < d.epochs[h.ID.PG]:
		return errs.New(errs.StaleEpoch, "append", h.ID.String(), "")
	case old == nil || old.Corrupt:
		d.shards[h.ID] = &Shard{Header: h, Payload: bytes.Clone(payload)}
	case !bytes.Equal(old.Payload, payload) || old.Header.Owner != h.Owner:
		return errs.New(errs.Conflict, "append", h.ID.String(), "")
	}
	return nil
}

// get answers a live shard.
func (d *Drive) get(id storage.ShardID) (*Shard, error) {
	if d.gone[storage.ChunkRemoval{PG: id.PG, Chunk: id.Chunk}] {
		return nil, errs.New(errs.Gone, "read", id.String(), "")
	}
	s := d.shards[id]
	if s == nil {
		return nil, errs.New(errs.NotFound, "read", id.String(), "")
	}
	return s, nil
}

// ReadAt is storage.ShardStore's.
func (d *Drive) ReadAt(ctx context.Context, id storage.ShardID, off int, p []byte) error {
	if err := d.enter(ctx, "read"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := d.get(id)
	switch {
	case err != nil:
		return err
	case s.Corrupt:
		return errs.New(errs.Corrupt, "read", id.String(), "")
	case off+len(p) > len(s.Payload):
		return errs.New(errs.InvalidArgument, "read", id.String(), "past the end")
	}
	copy(p, s.Payload[off:])
	return nil
}

// Header is storage.HeaderReader's. The header of a shard with corrupt payload can be read.
func (d *Drive) Header(ctx context.Context, id storage.ShardID) (storage.ShardHeader, error) {
	if err := d.enter(ctx, "header"); err != nil {
		return storage.ShardHeader{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := d.get(id)
	if err != nil {
		return storage.ShardHeader{}, err
	}
	return s.Header, nil
}

// Remove is storage.ShardStore's.
func (d *Drive) Remove(ctx context.Context, chunks []storage.ChunkRemoval) error {
	if err := d.enter(ctx, "remove"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range chunks {
		d.gone[c] = true
		for id := range d.shards {
			if id.PG == c.PG && id.Chunk == c.Chunk {
				delete(d.shards, id)
			}
		}
	}
	return nil
}

// List is storage.ShardStore's.
func (d *Drive) List(ctx context.Context, pg storage.PGID, from storage.ChunkID, fn func(storage.ShardInfo) bool) error {
	if err := d.enter(ctx, "list"); err != nil {
		return err
	}
	for _, s := range d.sorted(func(id storage.ShardID) bool { return id.PG == pg && bytes.Compare(id.Chunk[:], from[:]) >= 0 }) {
		if !fn(storage.ShardInfo{ID: s.Header.ID, Bytes: len(s.Payload)}) {
			break
		}
	}
	return nil
}

// SetEpochs is storage.ShardStore's.
func (d *Drive) SetEpochs(ctx context.Context, epochs map[storage.PGID]storage.Epoch) error {
	if err := d.enter(ctx, "epochs"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for pg, e := range epochs {
		d.epochs[pg] = max(d.epochs[pg], e)
	}
	return nil
}

// Epoch is the one known of a placement group.
func (d *Drive) Epoch(pg storage.PGID) storage.Epoch {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.epochs[pg]
}

// Shards are copies of all live shards, in order.
func (d *Drive) Shards() []Shard { return d.sorted(func(storage.ShardID) bool { return true }) }

func (d *Drive) sorted(match func(storage.ShardID) bool) []Shard {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Shard
	for id, s := range d.shards {
		if match(id) {
			out = append(out, *s)
		}
	}
	slices.SortFunc(out, func(a, b Shard) int {
		x, y := a.Header.ID, b.Header.ID
		return cmp.Or(cmp.Compare(x.PG, y.PG), bytes.Compare(x.Chunk[:], y.Chunk[:]), cmp.Compare(x.Stripe, y.Stripe), cmp.Compare(x.Index, y.Index))
	})
	return out
}

// Change lets fn change the shard where it lies; it reports whether there is one.
func (d *Drive) Change(id storage.ShardID, fn func(*Shard)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.shards[id]
	if s != nil {
		fn(s)
	}
	return s != nil
}

// Drop loses a shard without a trace.
func (d *Drive) Drop(id storage.ShardID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.shards, id)
}

// Put stores a shard as it is, past all rules.
func (d *Drive) Put(s Shard) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shards[s.Header.ID] = &s
}
