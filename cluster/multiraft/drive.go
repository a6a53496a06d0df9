package multiraft

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/cluster/raftlog"
	"cairn/storage/errs"
)

// closePatience is how long a drive may take to come to rest before it is given up.
const closePatience = 20 * time.Second

// driveStore is the metadata plane's half of a drive: its log, its state and the replicas there.
type driveStore struct {
	h     *Host
	d     Drive
	log   *raftlog.Store
	state *raftlog.Engine
	users *gate // those who read from state

	noteOnce sync.Once
	failOnce sync.Once
	failed   chan struct{}
	closing  chan struct{} // its close has begun
	low      atomic.Int32  // a Space
	closed   chan struct{} // a dropped drive's stores are closed
	installs sync.Mutex    // held over an install, so that no two groups' rows come to lie in one place

	mu struct {
		sync.Mutex
		replicas map[cluster.GroupID]*replica
		lost     map[cluster.GroupID]lostReplica
		held     map[cluster.GroupID]record // children whose parent's state was rolled back behind their split
	}
}

// lostReplica is one that must not act again.
type lostReplica struct {
	id  cluster.ReplicaID
	why error
}

func (ds *driveStore) db() *pebble.DB { return ds.state.DB() }

func (ds *driveStore) path(elem ...string) string {
	return ds.d.FS.PathJoin(append([]string{ds.d.Dir}, elem...)...)
}

// openDrive opens both stores of a drive and starts what is recorded there. A store that is
// corrupt is moved aside and replaced by an empty one, so that its replicas show up as lost.
func (h *Host) openDrive(d Drive) (*driveStore, error) {
	for try := 0; ; try++ {
		ds, err := h.tryDrive(d)
		if err == nil {
			return ds, nil
		}
		if !ds.noteDamage() || try == 2 {
			return nil, err
		}
		// Damage that showed only after it was opened: noted, the next try moves it aside.
	}
}

func (h *Host) tryDrive(d Drive) (*driveStore, error) {
	ds := &driveStore{h: h, d: d, users: newGate(), failed: make(chan struct{}), closing: make(chan struct{}), closed: make(chan struct{})}
	ds.mu.replicas = map[cluster.GroupID]*replica{}
	ds.mu.lost = map[cluster.GroupID]lostReplica{}
	ds.mu.held = map[cluster.GroupID]record{}
	err := ds.openOrReplace("raftlog", func(dir string) (err error) {
		ds.log, err = raftlog.Open(raftlog.Options{
			FS: d.FS, Dir: dir, MemTableBytes: h.cfg.LogMemTableBytes, Cache: h.cfg.Cache, FileCache: h.fileCache,
			Compactions: h.compactions, Logger: h.driveLogger(d), Check: d.Check,
			OnFail: func(err error) { ds.failStore("raftlog", err) },
		})
		return err
	})
	if err == nil {
		err = ds.openOrReplace("state", func(dir string) (err error) {
			ds.state, err = raftlog.OpenEngine(raftlog.EngineOptions{
				FS: d.FS, Dir: dir, DisableWAL: true, MemTableBytes: h.cfg.StateMemTableBytes, BloomBits: 10, TableBounds: h.cfg.TableBounds,
				Cache: h.cfg.Cache, FileCache: h.fileCache,
				Compactions: h.compactions, Logger: h.driveLogger(d),
				OnFail: func(err error) { ds.failStore("state", err) },
			})
			return err
		})
	}
	if err == nil {
		err = ds.pair()
	}
	if err == nil {
		err = ds.startReplicas()
	}
	if err == nil {
		ds.clearSpool()
		select {
		case <-ds.failed:
			err = errs.New(errs.DriveFailed, "multiraft.open", d.Dir, "it failed while it was opened")
		default:
			if d.Space != nil {
				ds.lookAtSpace()
				go ds.watchSpace() // ends with the drive; on one that hangs it may hang with it
			}
			return ds, nil
		}
	}
	return ds, errors.Join(err, ds.close())
}

// damageNote, beside a store, says that it is to be moved aside at the next start.
const damageNote = ".damaged"

func (ds *driveStore) openOrReplace(name string, open func(dir string) error) error {
	fs, dir := ds.d.FS, ds.path(name)
	damage := errors.New("it was found while the store was in use")
	_, noted := fs.Stat(dir + damageNote)
	if noted != nil {
		if damage = open(dir); !errs.Is(damage, errs.Corrupt) {
			return damage
		}
	}
	bad := dir + ".corrupt"
	ds.h.driveLogger(ds.d).Error("metadata store is corrupt; its replicas are lost and have to be replaced", "store", dir, "kept", bad, "err", damage)
	err := fs.RemoveAll(bad)
	if _, e := fs.Stat(dir); e == nil {
		err = errors.Join(err, fs.Rename(dir, bad))
	}
	if noted == nil {
		err = errors.Join(err, fs.Remove(dir+damageNote))
	}
	if err = errors.Join(err, syncDir(fs, ds.d.Dir)); err != nil {
		return errs.Wrap(errs.DriveFailed, "multiraft.open", dir, err)
	}
	return open(dir)
}

// failStore is told that a store failed. If that is damage, it notes so on the drive, since it may not show when it is opened again.
func (ds *driveStore) failStore(name string, err error) {
	if errs.Is(raftlog.Classify(err), errs.Corrupt) && (ds.d.Check == nil || ds.d.Check() == nil) {
		ds.noteOnce.Do(func() {
			f, e := ds.d.FS.Create(ds.path(name)+damageNote, vfs.WriteCategoryUnspecified)
			if e == nil {
				e = errors.Join(f.Sync(), f.Close(), syncDir(ds.d.FS, ds.d.Dir))
			}
			if e != nil {
				ds.h.driveLogger(ds.d).Warn("damage could not be noted", "store", name, "err", e)
			}
		})
	}
	ds.fail(err)
}

// noteDamage makes sure that damage of a store, if that is why it failed, is noted, and reports whether there is any.
func (ds *driveStore) noteDamage() bool {
	found := false
	note := func(name string, err error) {
		if errs.Is(raftlog.Classify(err), errs.Corrupt) {
			ds.failStore(name, err)
			found = true
		}
	}
	if ds.log != nil {
		note("raftlog", ds.log.Err())
	}
	if ds.state != nil {
		note("state", ds.state.Err())
	}
	return found
}

// pair checks that log and state have always lived together. If not, every replica on the drive is
// lost: their log records are removed, so that they stay lost at every later start.
func (ds *driveStore) pair() error {
	var inLog, inState pairing
	b, err := ds.log.Meta("pair")
	if err == nil && b != nil {
		err = parseRow(b, &inLog)
	}
	if err != nil {
		return err
	}
	if _, err := getJSON(ds.db(), rowKey(0, rowPair), &inState); err != nil {
		return errs.Wrap(errs.DriveFailed, "multiraft.pair", ds.d.Dir, err)
	}
	why := ""
	switch {
	case inLog.ID == "" || inState.ID == "":
		// One of them is new; the replicas' own records say what that means.
	case inLog.ID != inState.ID:
		why = "log and state are not of the same drive"
	case inLog.Starts < inState.Starts:
		why = "the log is older than the state"
	case inLog.Starts > inState.Starts+1:
		why = "the state is older than the log"
	}
	if why != "" {
		ds.h.driveLogger(ds.d).Error("metadata stores do not belong together; all replicas on the drive are lost", "dir", ds.d.Dir, "why", why)
		recs, err := ds.log.MetaPrefix(recordPrefix)
		if err != nil {
			return err
		}
		for name := range recs {
			if err := ds.log.SetMeta(name, nil); err != nil {
				return err
			}
		}
	}
	next := inLog
	if why != "" || next.ID == "" {
		var id [8]byte
		_, _ = rand.Read(id[:])
		next = pairing{Format: rowFormat, ID: hex.EncodeToString(id[:])}
		if why == "" && inState.ID != "" {
			next.ID = inState.ID
		}
		next.Starts = max(inLog.Starts, inState.Starts)
	}
	// The log goes first. A crash before the state follows leaves it one ahead, which
	// the next start catches up with instead of running further ahead.
	if inLog.ID == "" || why != "" || inLog.Starts == inState.Starts {
		next.Starts++
	}
	if err := ds.log.SetMeta("pair", encodeRow(next)); err != nil {
		return err
	}
	return ds.update(func(b *pebble.Batch) error { return b.Set(rowKey(0, rowPair), encodeRow(next), nil) })
}

// update changes rows of the state and returns when they are durable.
func (ds *driveStore) update(fn func(*pebble.Batch) error) error {
	err := ds.state.Do("multiraft.update", func(db *pebble.DB) error {
		b := db.NewBatch()
		defer b.Close()
		if err := fn(b); err != nil {
			return err
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			return err
		}
		return db.Flush()
	})
	if err != nil {
		return err
	}
	return ds.check()
}

// check asks whether the drive is still there and fails it if not.
func (ds *driveStore) check() error {
	if ds.d.Check == nil {
		return nil
	}
	if err := ds.d.Check(); err != nil {
		ds.fail(err)
		return errs.Wrap(errs.DriveFailed, "multiraft.check", ds.d.Dir, err)
	}
	return nil
}

// fail ends the drive's part in everything; the first call counts. It waits for no I/O.
func (ds *driveStore) fail(err error) {
	ds.failOnce.Do(func() {
		close(ds.failed)
		err = raftlog.Classify(err)
		ds.h.driveLogger(ds.d).Error("drive failed under the metadata", "dir", ds.d.Dir, "err", err)
		if ds.log != nil {
			ds.log.Fail(err)
		}
		if ds.state != nil {
			ds.state.Fail(err)
		}
		groups := ds.cutAll(err)
		if ds.d.Fail != nil {
			go ds.d.Fail(err) // it may call the host, even while that is being closed
		}
		for _, g := range groups {
			ds.h.kick(g, true)
		}
	})
}

// cutAll cuts every replica and returns the groups that had one.
func (ds *driveStore) cutAll(why error) []cluster.GroupID {
	ds.mu.Lock()
	reps := make([]*replica, 0, len(ds.mu.replicas))
	for _, r := range ds.mu.replicas {
		reps = append(reps, r)
	}
	ds.mu.Unlock()
	var groups []cluster.GroupID
	for _, r := range reps {
		r.cut(why)
		groups = append(groups, r.g.id)
	}
	return groups
}

// close shuts the replicas down and closes both stores, unless the drive fails on the way.
func (ds *driveStore) close() error {
	close(ds.closing)
	if ds.log == nil {
		return nil
	}
	ds.cutAll(nil)
	ds.mu.Lock()
	reps := make([]*replica, 0, len(ds.mu.replicas))
	for _, r := range ds.mu.replicas {
		reps = append(reps, r)
	}
	ds.mu.Unlock()
	patience := time.NewTimer(closePatience)
	defer patience.Stop()
	wait := func(done <-chan struct{}) bool {
		select {
		case <-done:
			return true
		case <-ds.failed:
		case <-patience.C:
			ds.fail(errors.New("it does not answer while it is being closed"))
		}
		return false
	}
	for _, r := range reps {
		if !wait(r.stopped) {
			return nil
		}
	}
	if !wait(ds.users.shut()) {
		return nil
	}
	// What is flushed now need not be replayed.
	if ds.state == nil {
		return ds.log.Close()
	}
	flush := ds.state.Do("multiraft.close", func(db *pebble.DB) error { return db.Flush() })
	return errors.Join(flush, ds.state.Close(), ds.log.Close())
}

const recordPrefix = "rec/"

func recordName(g cluster.GroupID) string { return fmt.Sprintf("%s%016x", recordPrefix, uint64(g)) }

// startReplicas starts what is recorded on the drive, and sorts out what must not run.
func (ds *driveStore) startReplicas() error {
	inLog := map[cluster.GroupID]record{}
	rows, err := ds.log.MetaPrefix(recordPrefix)
	if err != nil {
		return err
	}
	for _, b := range rows {
		var r record
		if err := parseRow(b, &r); err != nil {
			return err
		}
		inLog[r.Group] = r
	}
	inState, err := ds.stateRecords()
	if err != nil {
		return err
	}
	groups := map[cluster.GroupID]bool{}
	for g := range inLog {
		groups[g] = true
	}
	for g := range inState {
		groups[g] = true
	}
	for g := range groups {
		l, okL := inLog[g]
		s, okS := inState[g]
		var why string
		switch {
		case okL && l.Phase != phaseReady:
			// It never acted, or was taken out of its group: clear what is left.
			if err := ds.destroy(g, l.Replica); err != nil {
				return err
			}
			continue
		case !okS && ds.hold(l, inLog, inState):
			continue
		case !okS:
			why = "its state is gone"
		case !okL:
			why, l = "its log is gone", s
		case l.Replica != s.Replica:
			why = fmt.Sprintf("the state is of %s", s.Replica)
		}
		if why == "" {
			err = ds.startReplica(g, s, false)
		} else {
			err = errs.New(errs.Corrupt, "multiraft.start", string(l.Replica), why)
		}
		if ds.state.Err() != nil || ds.log.Err() != nil {
			return errors.Join(err, errs.New(errs.DriveFailed, "multiraft.start", ds.d.Dir, "a store failed"))
		}
		if errs.Is(err, errs.Corrupt) {
			ds.setLost(g, l.Replica, err)
		} else if err != nil {
			return err
		}
	}
	ds.mu.Lock()
	lost := slices.Collect(maps.Values(ds.mu.lost))
	ds.mu.Unlock()
	for _, l := range lost {
		ds.orphan(l.id) // those that were held back after it
	}
	return nil
}

func (ds *driveStore) setLost(g cluster.GroupID, id cluster.ReplicaID, why error) {
	ds.h.cfg.Logger.Error("replica is lost and has to be replaced", "replica", id, "drive", ds.d.ID.Short(), "err", why)
	ds.mu.Lock()
	ds.mu.lost[g] = lostReplica{id, why}
	ds.mu.Unlock()
	ds.h.group(g, true)
	ds.orphan(id)
}

func (ds *driveStore) stateRecords() (map[cluster.GroupID]record, error) {
	out := map[cluster.GroupID]record{}
	it, err := ds.db().NewIter(&pebble.IterOptions{LowerBound: []byte{rowSpace}, UpperBound: []byte{rowSpace + 1}})
	if err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "multiraft.start", ds.d.Dir, err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		if k := it.Key(); len(k) == 10 && k[9] == rowRecord {
			var r record
			if err := parseRow(it.Value(), &r); err != nil {
				return nil, errors.Join(err, it.Close())
			}
			out[r.Group] = r
		}
	}
	return out, errs.Wrap(errs.DriveFailed, "multiraft.start", ds.d.Dir, it.Close())
}

// create records a new replica, which is then ready to be started. A crash on the way
// leaves nothing but what the next start clears away.
func (ds *driveStore) create(rec record, term uint64, fill func(*pebble.Batch) error) error {
	view, err := ds.log.View(string(rec.Replica))
	if err != nil {
		return err
	}
	inLog := record{Format: rowFormat, Group: rec.Group, Replica: rec.Replica, Phase: phaseCreating}
	if err := ds.log.SetMeta(recordName(rec.Group), encodeRow(inLog)); err != nil {
		return err
	}
	err = ds.update(func(b *pebble.Batch) error {
		if err := b.Set(rowKey(rec.Group, rowRecord), encodeRow(rec), nil); err != nil {
			return err
		}
		return fill(b)
	})
	if err != nil {
		return err
	}
	inLog.Phase = phaseReady
	return view.Init(term, recordName(rec.Group), encodeRow(inLog))
}

// destroy removes all rows of a replica, which does not run.
func (ds *driveStore) destroy(g cluster.GroupID, id cluster.ReplicaID) error {
	view, err := ds.log.View(string(id))
	if err != nil {
		return err
	}
	rec := record{Format: rowFormat, Group: g, Replica: id, Phase: phaseRemoving}
	if err := ds.log.SetMeta(recordName(g), encodeRow(rec)); err != nil {
		return err
	}
	spans, err := ds.h.cfg.NewStateMachine(g).Spans(ds.db())
	if err != nil {
		// Of a state that is damaged; a replica to come clears the spans it needs.
		ds.h.cfg.Logger.Warn("rows of a removed replica stay", "replica", id, "err", err)
	}
	var in install
	if ok, err := getJSON(ds.db(), rowKey(g, rowInstall), &in); ok && err == nil {
		spans = append(spans, in.Spans...)
		_ = ds.d.FS.Remove(ds.path(spoolDir, in.Spool))
	}
	err = ds.update(func(b *pebble.Batch) error {
		for _, s := range append(spans, groupRows(g)) {
			if err := b.DeleteRange(s.Start, s.End, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return view.Destroy(recordName(g))
}
