package objects

import (
	"context"
	"sync"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/lifecycle"
	"cairn/storage"
)

// accessesMax bounds the accesses that wait to be written down: with the longest keys some 20 MiB. A day's first access of that many
// objects fits between two times that they are, since they are at the latest when a quarter waits.
const accessesMax = 16384

// accesses are the versions of INTELLIGENT_TIERING that were read here and whose rows do not say so yet. When there are too many the oldest are
// forgotten, and when the process dies all are: such a version is noted again when it is read again. Safe for concurrent use.
type accesses struct {
	mu    sync.Mutex
	known map[access]bool
	queue []*metapb.TouchEntry // in the order in which they came
}

// access is what makes an entry another one.
type access struct {
	bucket, seq uint64
	key         string
}

func accessOf(e *metapb.TouchEntry) access { return access{e.Bucket, e.VersionSeq, string(e.Key)} }

// add notes accesses, unless they are noted already, and reports whether so many wait that they should be written down soon.
func (a *accesses) add(entries ...*metapb.TouchEntry) (many bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range entries {
		k := accessOf(e)
		if a.known[k] {
			continue
		}
		if len(a.queue) >= accessesMax {
			delete(a.known, accessOf(a.queue[0]))
			a.queue = a.queue[1:]
		}
		if a.known == nil {
			a.known = map[access]bool{}
		}
		a.known[k] = true
		a.queue = append(a.queue, e)
	}
	return len(a.queue) >= accessesMax/4
}

// take answers up to n of them and forgets these.
func (a *accesses) take(n int) []*metapb.TouchEntry {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.queue[:min(n, len(a.queue)):min(n, len(a.queue))]
	if a.queue = a.queue[len(out):]; len(a.queue) == 0 {
		a.queue = nil
	}
	for _, e := range out {
		delete(a.known, accessOf(e))
	}
	return out
}

// noteAccess remembers that the bytes of a version were asked for, if that is the first time today as far as its row tells: then
// the row is written, and never on a read's way. What is too small to be moved is not looked after.
func (s *Store) noteAccess(b Bucket, key storage.Key, row *metapb.ObjectRow) {
	if row.GetAttributes().GetStorageClass() != string(storage.IntelligentTiering) || row.Size < lifecycle.MinimumBytes {
		return
	}
	now, day := s.cfg.Meta.NowMS(), s.cfg.Day.Milliseconds()
	if rangestate.LastAccess(row) >= now/day*day {
		return
	}
	e := &metapb.TouchEntry{Bucket: uint64(b.ID), Key: []byte(key), VersionSeq: row.Seq, VersionNonce: row.Nonce, AccessedMs: now}
	if s.accesses.add(e) && s.cfg.ManyAccesses != nil {
		s.cfg.ManyAccesses()
	}
}

// FlushAccesses writes down accesses that wait, one command for each range, and answers how many; more: there are others. After an error
// those it was about wait again.
func (s *Store) FlushAccesses(ctx context.Context) (done int, more bool, err error) {
	entries := s.accesses.take(rangestate.TouchEntriesMax)
	if len(entries) == 0 {
		return 0, false, nil
	}
	if err := s.cfg.Meta.Touch(ctx, entries); err != nil {
		s.accesses.add(entries...)
		return 0, false, err
	}
	return len(entries), len(entries) == rangestate.TouchEntriesMax, nil
}
