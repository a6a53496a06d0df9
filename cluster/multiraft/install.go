package multiraft

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// spoolDir, in a drive's directory, holds streams that were received and not yet installed.
const spoolDir = "raftspool"

// installBatch is the size of the batches that write an install's rows; small against a memtable.
const installBatch = 1 << 20

// spoolLook is after how many bytes of a stream the free space is looked at again.
const spoolLook = 16 << 20

// pendingInstall is a snapshot that lies in the spool, whole and synced, waiting for raft to restore it.
type pendingInstall struct {
	id     string
	header streamHeader
	spool  string
}

// receive takes a snapshot stream from a leader: it spools it, has raft accept it and installs it. raft gets only a
// token to copy, so its main loop is held up by the replacement of the rows alone.
//
// TrailingLogs is at least ProposalsMax, so what a deposed leader has in its log
// beyond what it shares with the others ends before any snapshot that is sent to it: raft could not cope
// with a log that reaches past a snapshot and contradicts it.
func (r *replica) receive(ctx context.Context, args *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error) {
	if !r.installing.CompareAndSwap(false, true) {
		return nil, errs.New(errs.Busy, "multiraft.install", string(r.id), "another snapshot is being received")
	}
	defer r.installing.Store(false)
	term := r.raft.CurrentTerm()
	if args.Term < term {
		return &raft.InstallSnapshotResponse{Term: term}, nil
	}
	if max(r.applied.Load(), r.markerPoint().Index) >= args.LastLogIndex {
		// Late or twice: the replica has it all.
		return &raft.InstallSnapshotResponse{Term: term, Success: true}, nil
	}
	p, err := r.spool(ctx, args, data)
	if err != nil {
		return nil, err
	}
	release, err := r.admitInstall(p.header)
	if err != nil {
		_ = r.ds.d.FS.Remove(r.ds.path(spoolDir, p.spool))
		return nil, err
	}
	defer release()
	r.snapMu.Lock()
	defer r.snapMu.Unlock()
	r.pending.Store(p)
	defer func() {
		r.pending.Store(nil)
		// Gone already if it was installed. If the replica broke, the next start needs it.
		if !r.isCut.Load() {
			_ = r.ds.d.FS.Remove(r.ds.path(spoolDir, p.spool))
		}
	}()
	req := *args
	req.LastLogIndex, req.LastLogTerm = p.header.Point.Index, p.header.Point.Term
	req.Size = int64(len(p.id))
	resp, err := r.deliver(r.ctx, &req, strings.NewReader(p.id)) // not ctx: raft must not be left with it
	if err != nil {
		return nil, err
	}
	return resp.(*raft.InstallSnapshotResponse), nil
}

// spool writes a stream to the drive, checks that it is whole and what args announced, and syncs it.
func (r *replica) spool(ctx context.Context, args *raft.InstallSnapshotRequest, data io.Reader) (*pendingInstall, error) {
	fs := r.ds.d.FS
	if err := r.ds.spare("multiraft.spool", 0); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s-%d-%d", r.id, args.LastLogIndex, r.h.spools.Add(1))
	p := &pendingInstall{id: installPrefix + name, spool: name}
	if err := errors.Join(fs.MkdirAll(r.ds.path(spoolDir), 0o755), syncDir(fs, r.ds.d.Dir)); err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "multiraft.spool", r.ds.d.Dir, err)
	}
	path := r.ds.path(spoolDir, name)
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "multiraft.spool", path, err)
	}
	w := bufio.NewWriterSize(f, 256<<10)
	copied := io.TeeReader(data, w)
	var taken, looked int64
	err = readStream(copied, func(h streamHeader) error {
		p.header = h
		if h.Group != r.g.id || h.Point.Index != args.LastLogIndex || h.Point.Term != args.LastLogTerm {
			return errs.New(errs.Corrupt, "multiraft.spool", path, "the stream is not what was announced")
		}
		return r.checkInstall(h) // it would be refused in the end, after all of it has come
	}, func(block []byte) error {
		if err := p.header.checkRows(block); err != nil {
			return err
		}
		if taken += int64(len(block)); taken-looked >= spoolLook {
			looked = taken
			// The rows will be written once more.
			if err := r.ds.spare("multiraft.spool", taken); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if err == nil {
		err = r.ds.spare("multiraft.spool", taken)
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = syncDir(fs, r.ds.path(spoolDir))
	}
	if err != nil {
		_ = fs.Remove(path)
		return nil, err
	}
	return p, nil
}

// applyInstall replaces the state by what the spool holds; raft has stopped applying meanwhile.
func (r *replica) applyInstall(p *pendingInstall) error {
	r.reading.Lock() // nobody sees half of it
	defer r.reading.Unlock()
	old, err := r.sm.Spans(r.ds.db())
	if err != nil {
		return err
	}
	in := install{Format: rowFormat, Spool: p.spool, Spans: append(old, p.header.Spans...)}
	if err := r.ds.update(func(b *pebble.Batch) error { return b.Set(rowKey(r.g.id, rowInstall), encodeRow(in), nil) }); err != nil {
		return err
	}
	if err := r.runInstall(in); err != nil {
		return err
	}
	r.sm.Reset()
	m := p.header.marker()
	r.mu.Lock()
	r.mu.marker = m
	r.mu.Unlock()
	r.appliedPoint, r.configIndex = m.Point, m.Config.Index
	r.sinceMarker = 0
	r.applied.Store(m.Point.Index)
	r.g.poke()
	r.h.spawn(r.missing)
	return nil
}

// runInstall does, or does again after a crash, what an install's row says. Nothing of the group may
// be applied until it is done, and the row is durable before it begins.
func (r *replica) runInstall(in install) error {
	path := r.ds.path(spoolDir, in.Spool)
	head, err := r.replaceRows(in, path)
	if err != nil {
		return err
	}
	m := head.marker()
	err = r.ds.update(func(b *pebble.Batch) error {
		return errors.Join(
			b.Set(rowKey(r.g.id, rowMarker), encodeRow(m), nil),
			b.Set(rowKey(r.g.id, rowApplied), encodeApplied(m.Point), nil),
			b.Set(rowKey(r.g.id, rowConfig), encodeRow(m.Config), nil))
	})
	if err != nil {
		return err
	}
	// What the log has below the snapshot may contradict it and must not be passed on.
	if first, _ := r.view.FirstIndex(); first != 0 && first <= m.Point.Index {
		if err := r.view.DeleteRange(first, m.Point.Index); err != nil {
			return err
		}
	}
	err = r.ds.update(func(b *pebble.Batch) error { return b.Delete(rowKey(r.g.id, rowInstall), nil) })
	if err != nil {
		return err
	}
	_ = r.ds.d.FS.Remove(path)
	return nil
}

// replaceRows clears the spans and writes the spool's rows; none of it needs to be durable yet.
func (r *replica) replaceRows(in install, path string) (streamHeader, error) {
	f, err := r.ds.d.FS.Open(path)
	if err != nil {
		return streamHeader{}, errs.Wrap(errs.Corrupt, "multiraft.install", path, err)
	}
	head := new(streamHeader) // not touched again if Do leaves early
	err = r.ds.state.Do("multiraft.install", func(db *pebble.DB) error {
		defer f.Close()
		b := db.NewBatch()
		defer func() { _ = b.Close() }()
		for _, s := range in.Spans {
			if err := b.DeleteRange(s.Start, s.End, nil); err != nil {
				return err
			}
		}
		set := func(k, v []byte) error { return b.Set(k, v, nil) }
		err := readStream(f, func(h streamHeader) error {
			*head = h
			return nil
		}, func(block []byte) error {
			if err := eachRow(block[1:], set); err != nil {
				return err
			}
			if b.Len() < installBatch {
				return nil
			}
			if err := b.Commit(pebble.NoSync); err != nil {
				return err
			}
			err := b.Close()
			b = db.NewBatch()
			return err
		})
		if err != nil {
			return err
		}
		return b.Commit(pebble.NoSync)
	})
	if err != nil {
		return streamHeader{}, err
	}
	return *head, nil
}

// clearSpool removes streams that no install names any more.
func (ds *driveStore) clearSpool() {
	names, err := ds.d.FS.List(ds.path(spoolDir))
	if err != nil {
		return
	}
	keep := map[string]bool{}
	it, err := ds.db().NewIter(&pebble.IterOptions{LowerBound: []byte{rowSpace}, UpperBound: []byte{rowSpace + 1}})
	if err != nil {
		return
	}
	for ok := it.First(); ok; ok = it.Next() {
		if k := it.Key(); len(k) == 10 && k[9] == rowInstall {
			var in install
			if parseRow(it.Value(), &in) != nil {
				_ = it.Close()
				return
			}
			keep[in.Spool] = true
		}
	}
	if it.Close() != nil {
		return
	}
	for _, n := range names {
		if !keep[n] {
			_ = ds.d.FS.Remove(ds.path(spoolDir, n))
		}
	}
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// notePeer remembers that a peer has everything up to index; only meaningful while leading.
func (r *replica) notePeer(id cluster.ReplicaID, index uint64) {
	v, ok := r.peers.Load(id)
	if !ok {
		v, _ = r.peers.LoadOrStore(id, new(atomic.Uint64))
	}
	a := v.(*atomic.Uint64)
	for {
		old := a.Load()
		if index <= old || a.CompareAndSwap(old, index) {
			return
		}
	}
}

// peerHas is up to where a peer is known to have the log; 0 if that is not known.
func (r *replica) peerHas(id cluster.ReplicaID) uint64 {
	if v, ok := r.peers.Load(id); ok {
		return v.(*atomic.Uint64).Load()
	}
	return 0
}
