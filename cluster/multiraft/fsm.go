package multiraft

import (
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// A replica is raft's state machine. raft calls these from one goroutine.
var _ raft.BatchingFSM = (*replica)(nil)

// Apply implements raft.FSM; raft only calls ApplyBatch.
func (r *replica) Apply(l *raft.Log) any { return r.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. All of it becomes one batch of the
// state, with the applied index; what is there already (raft replays from the last
// marker after a start) is skipped. A result is a []byte or an error.
func (r *replica) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	apply := r.applyBatch
	if c := r.capture.Load(); c != nil && logs[len(logs)-1].Index >= c.index {
		apply = func(logs []*raft.Log, out []any) error { return r.applyTo(c, logs, out) }
	}
	if err := apply(logs, out); err != nil {
		if r.broken == nil {
			r.broken = err
			go r.cut(err) // it waits for this goroutine, and never runs again
		}
		for i := range out {
			out[i] = err
		}
	}
	return out
}

func (r *replica) applyBatch(logs []*raft.Log, out []any) error {
	if r.broken != nil {
		return r.broken
	}
	if r.isCut.Load() {
		return errs.New(errs.Closed, "multiraft.apply", string(r.id), "the replica is stopped")
	}
	entries, positions := r.scratch[:0], r.positions[:0]
	var conf *configuration
	last, config := r.appliedPoint, r.configIndex
	size := int64(0)
	for i, l := range logs {
		if l.Index <= last.Index {
			continue
		}
		switch l.Type {
		case raft.LogCommand:
			e, err := decodeEntry(l)
			if err != nil {
				return err
			}
			e.Config = config
			entries, positions = append(entries, e), append(positions, i)
			size += int64(len(l.Data))
		case raft.LogConfiguration:
			c := toConfiguration(l.Index, raft.DecodeConfiguration(l.Data))
			conf, config = &c, l.Index
		}
		last = point{l.Index, l.Term}
	}
	r.scratch, r.positions = entries, positions
	if last == r.appliedPoint {
		return nil
	}
	if err := r.commit(entries, positions, conf, last, out); err != nil {
		return err
	}
	clear(entries) // drop the references to the commands
	r.appliedPoint, r.configIndex = last, config
	r.applied.Store(last.Index)
	r.sinceMarker += size
	if m := r.markerPoint(); last.Index-min(m.Index, last.Index) >= r.h.cfg.SnapshotEntries || r.sinceMarker >= r.h.cfg.SnapshotBytes {
		r.sinceMarker = 0
		r.pokeSnapshot()
	}
	r.g.poke()
	return nil
}

func (r *replica) commit(entries []cluster.Entry, positions []int, conf *configuration, last point, out []any) error {
	b := r.ds.db().NewIndexedBatch()
	defer b.Close()
	var children []newborn
	if len(entries) > 0 {
		results, err := r.sm.Apply(b, entries)
		if err != nil {
			return errs.Wrap(errs.Corrupt, "multiraft.apply", string(r.id), err)
		}
		if len(results) != len(entries) {
			return errs.Newf(errs.Corrupt, "multiraft.apply", string(r.id), "%d results for %d entries", len(results), len(entries))
		}
		for i, res := range results {
			out[positions[i]] = res
		}
		if children, err = r.bear(b); err != nil {
			return err
		}
	}
	if conf != nil {
		if err := b.Set(rowKey(r.g.id, rowConfig), encodeRow(conf), nil); err != nil {
			return err
		}
	}
	if err := b.Set(rowKey(r.g.id, rowApplied), encodeApplied(last), nil); err != nil {
		return err
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return err
	}
	r.deliverChildren(children)
	return nil
}

func (r *replica) markerPoint() point {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.marker.Point
}

// Snapshot implements raft.FSM: the state itself is the snapshot.
func (r *replica) Snapshot() (raft.FSMSnapshot, error) {
	if r.broken != nil || r.isCut.Load() {
		return nil, errs.New(errs.Closed, "multiraft.snapshot", string(r.id), "the replica is stopped")
	}
	return localSnapshot{}, nil
}

// localSnapshot stands for what the state holds.
type localSnapshot struct{}

func (localSnapshot) Persist(s raft.SnapshotSink) error {
	s.(*sink).local = true
	return nil // raft closes the sink, which flushes
}
func (localSnapshot) Release() {}

// Restore implements raft.FSM: it puts the pending install in place.
func (r *replica) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	p := r.pending.Load()
	if p == nil {
		return errors.New("nothing to install")
	}
	if err := r.applyInstall(p); err != nil {
		err = errs.Wrap(errs.Corrupt, "multiraft.install", string(r.id), err)
		r.broken = err
		go r.cut(err)
		return err
	}
	return nil
}
