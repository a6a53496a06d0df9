package multiraft

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/cluster/raftlog"
	"cairn/storage/errs"
)

// group is what this process has of a Raft group.
type group struct {
	id      cluster.GroupID
	leader  atomic.Pointer[replica] // the local replica that leads, or nil
	freed   atomic.Uint64           // newest term whose leader, here, is no more or gave up its lease
	changed broadcast               // leader or replicas changed, or the leader became readable

	mu struct {
		sync.Mutex
		replicas []*replica // running here
	}
	subs struct {
		sync.RWMutex
		m map[*chan struct{}]chan struct{}
	}
}

func (g *group) replicas() []*replica {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]*replica(nil), g.mu.replicas...)
}

func (g *group) add(r *replica) {
	g.mu.Lock()
	g.mu.replicas = append(g.mu.replicas, r)
	g.mu.Unlock()
	g.changed.signal()
}

func (g *group) remove(r *replica) {
	g.mu.Lock()
	for i, o := range g.mu.replicas {
		if o == r {
			g.mu.replicas = append(g.mu.replicas[:i:i], g.mu.replicas[i+1:]...)
			break
		}
	}
	g.mu.Unlock()
	g.leader.CompareAndSwap(r, nil)
	g.changed.signal()
}

// poke tells the subscribers that something was applied.
func (g *group) poke() {
	g.subs.RLock()
	defer g.subs.RUnlock()
	for _, ch := range g.subs.m {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// replica is one running replica. A stopped one is never started again: a new value takes its place.
type replica struct {
	h    *Host
	g    *group
	ds   *driveStore
	id   cluster.ReplicaID
	view *raftlog.View
	sm   StateMachine
	raft *raft.Raft // set before anyone else sees the replica

	consumer  chan raft.RPC
	heartbeat func(raft.RPC)
	holdUntil time.Time // grants no vote before; see Config.VoteHold

	ctx     context.Context // ends when the replica is cut
	cancel  context.CancelFunc
	isCut   atomic.Bool   // nothing of the replica gets out any more
	cutCh   chan struct{} // closed then
	why     error         // of the cut; valid once cutCh is closed
	stopped chan struct{} // raft and all goroutines have ended
	changed broadcast     // raft's state, term or peers changed

	promise   promise
	moved     atomic.Uint64 // the newest term whose leader asked it to stand in the next
	rounds    rounds
	lead      atomic.Pointer[leadership]
	readTerm  atomic.Uint64 // the term in which a barrier was applied; 0 is none
	applied   atomic.Uint64 // index of the last entry in the state
	capture   atomic.Pointer[capture]
	inflight  atomic.Int64 // proposals
	inBytes   atomic.Int64
	asked     atomic.Int64 // other questions that raft owes an answer; see ask
	splitting atomic.Int64 // Splits proposed here and not yet applied
	peers     sync.Map     // cluster.ReplicaID -> *atomic.Uint64: index a peer is known to have, while leading
	copies    sync.Map     // cluster.ReplicaID -> *copying: snapshots that are sent to a peer

	reading sync.RWMutex // held by readers; taken whole while an install replaces the state

	snapPoke   chan struct{}
	snapMu     sync.Mutex // a local snapshot or an install, never both
	installing atomic.Bool
	pending    atomic.Pointer[pendingInstall]

	mu struct {
		sync.Mutex
		closed bool
		wg     sync.WaitGroup
		marker marker
	}

	// Of the goroutine that applies.
	appliedPoint point
	configIndex  uint64 // of the entry that set the configuration, as of appliedPoint
	sinceMarker  int64  // bytes of commands
	broken       error  // the state machine failed
	scratch      []cluster.Entry
	positions    []int
}

// startReplica checks that log and state fit and runs the replica. Corrupt means that it is lost.
func (ds *driveStore) startReplica(gid cluster.GroupID, rec record, newborn bool) error {
	r := &replica{
		h: ds.h, ds: ds, id: rec.Replica,
		g:        ds.h.group(gid, true),
		sm:       ds.h.cfg.NewStateMachine(gid),
		consumer: make(chan raft.RPC, 16),
		cutCh:    make(chan struct{}),
		stopped:  make(chan struct{}),
		snapPoke: make(chan struct{}, 1),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if !newborn {
		r.holdUntil = time.Now().Add(ds.h.cfg.VoteHold)
	}
	var err error
	if err = ds.markBorn(rec); err != nil {
		return err
	}
	if r.view, err = ds.log.View(string(r.id)); err != nil {
		return err
	}
	if err := r.load(rec); err != nil {
		return err
	}
	// From here on the drive's failure finds it.
	ds.mu.Lock()
	ds.mu.replicas[gid] = r
	ds.mu.Unlock()
	select {
	case <-ds.failed:
		r.cut(errs.New(errs.DriveFailed, "multiraft.start", string(r.id), ""))
	default:
	}

	rf, err := raft.NewRaft(r.raftConfig(), r, logs{r.view, r}, r.view, r, &trans{r})
	r.mu.Lock()
	r.raft = rf
	cut := r.isCut.Load()
	r.mu.Unlock()
	if err != nil || cut {
		if err != nil {
			err = errs.Wrap(errs.Corrupt, "multiraft.start", string(r.id), err)
			ds.mu.Lock()
			delete(ds.mu.replicas, gid)
			ds.mu.Unlock()
		}
		r.cut(err)
		r.shutdown()
		return err
	}
	rf.RegisterObserver(raft.NewObserver(nil, false, r.observe))
	r.spawn(r.snapshotLoop)
	ds.h.spawn(r.missing) // not one of its own goroutines: it may wait for whoever stops it
	ds.h.replicas.Store(r.id, r)
	r.g.add(r)
	if r.isCut.Load() {
		// Cut in between: what was just published must not stay.
		ds.h.replicas.CompareAndDelete(r.id, r)
		r.g.remove(r)
	}
	ds.h.peersChanged.signal()
	return nil
}

// logs is a replica's log as raft reads it: it also has the entry that the marker stands at, as far as raft compares it (index
// and term). raft's followers look for the entry before those they are sent in the log alone. A group is born, and a snapshot
// is installed, with nothing at the marker; if then the first entry behind it is disputed (its leader told nobody of it), every
// next leader's entries would be refused for ever, without a pause between the tries. Nobody is ever sent this entry: for that
// a leader would have to have the one before it.
type logs struct {
	*raftlog.View
	r *replica
}

// GetLog implements raft.LogStore. Once the drive's stores are being closed, which is after raft has stopped, it finds nothing: raft
// does not wait for the goroutine of a leader that measures how old the log is.
func (l logs) GetLog(index uint64, out *raft.Log) error {
	if !l.r.ds.users.enter() {
		return raft.ErrLogNotFound
	}
	defer l.r.ds.users.leave()
	err := l.View.GetLog(index, out)
	if err == raft.ErrLogNotFound { // as raft compares it
		if p := l.r.markerPoint(); p.Index == index && index >= birthIndex {
			*out = raft.Log{Index: p.Index, Term: p.Term, Type: raft.LogNoop}
			return nil
		}
	}
	return err
}

func (r *replica) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	hc := r.h.cfg
	c.LocalID = raft.ServerID(r.id)
	c.HeartbeatTimeout = hc.HeartbeatTimeout
	c.ElectionTimeout = hc.ElectionTimeout
	c.LeaderLeaseTimeout = hc.LeaderLease
	c.CommitTimeout = hc.CommitTimeout
	c.MaxAppendEntries = hc.AppendEntriesMax
	c.TrailingLogs = hc.TrailingLogs
	// Snapshots are taken when we say so: raft's own timer would wake an idle process, and could
	// run into an install.
	c.SnapshotInterval = 1 << 61
	c.SnapshotThreshold = 1 << 62
	c.NoSnapshotRestoreOnStart = true
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.Logger = raftLogger{r.h.cfg.Logger.With("replica", string(r.id)), "raft"}
	return c
}

// load reads what the state has of the replica, finishes an install that a crash cut off,
// and checks that log and state permit each other.
func (r *replica) load(rec record) error {
	lost := func(format string, args ...any) error {
		return errs.Newf(errs.Corrupt, "multiraft.start", string(r.id), format, args...)
	}
	db := r.ds.db()
	var in install
	switch ok, err := getJSON(db, rowKey(r.g.id, rowInstall), &in); {
	case err != nil:
		return err
	case ok:
		if err := r.runInstall(in); err != nil {
			if r.ds.state.Err() != nil {
				return err
			}
			return lost("an install was cut off and cannot be repeated: %v", err)
		}
	}
	m, hasMarker, err := readMarker(db, r.g.id)
	if err != nil {
		return err
	}
	ap, err := readApplied(db, r.g.id)
	if err != nil {
		return err
	}
	r.mu.marker = m
	r.appliedPoint = ap
	r.applied.Store(ap.Index)
	var conf configuration
	if _, err := getJSON(db, rowKey(r.g.id, rowConfig), &conf); err != nil {
		return err
	}
	r.configIndex = max(conf.Index, m.Config.Index)

	first, _ := r.view.FirstIndex()
	last, lastTerm := r.view.Last()
	term, err := r.view.GetUint64([]byte("CurrentTerm"))
	if err != nil && err.Error() != "not found" {
		return err
	}
	switch {
	case !hasMarker && !rec.Empty:
		return lost("the state has no marker")
	case !hasMarker && (last != 0 || ap.Index != 0):
		return lost("the state was never filled, but there is a log")
	case ap.Index > max(last, m.Point.Index):
		return lost("the state is at %d, the log ends at %d", ap.Index, last)
	case last > m.Point.Index && first > m.Point.Index+1:
		return lost("the log begins at %d, the state is safe up to %d", first, m.Point.Index)
	case term < max(m.Point.Term, ap.Term, lastTerm):
		return lost("the term %d is older than the log's %d or the state's %d", term, lastTerm, max(m.Point.Term, ap.Term))
	}
	// raft panics on an entry that it misses.
	return r.view.Check(m.Point.Index + 1)
}

// spawn runs fn in a goroutine that stop waits for, unless the replica is already stopping.
func (r *replica) spawn(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closed {
		return
	}
	r.mu.wg.Add(1)
	go func() {
		defer r.mu.wg.Done()
		fn()
	}()
}

// cut isolates the replica for good and begins to shut it down; why is nil for an
// orderly stop. It never waits. Only after nothing can get out does it let the log's calls end.
func (r *replica) cut(why error) {
	r.mu.Lock()
	if r.isCut.Load() {
		r.mu.Unlock()
		return
	}
	r.why = why
	r.isCut.Store(true)
	rf := r.raft
	r.mu.Unlock()
	r.free()
	close(r.cutCh)
	r.cancel()
	r.readTerm.Store(0)
	r.h.replicas.CompareAndDelete(r.id, r)
	r.g.remove(r)
	r.changed.signal()
	r.h.peersChanged.signal()
	r.view.Cut()
	if rf != nil {
		go r.shutdown() // ends with raft; one more of the goroutines a dead drive may keep
	}
}

func (r *replica) shutdown() {
	if r.raft != nil {
		// raft forgets the futures of what is committed and not yet applied when it is shut down. So let it first
		// answer those under way, proposals, barriers and changes: being cut, it steps down within a lease.
		r.drain(2*r.h.cfg.LeaderLease + time.Second)
		_ = r.raft.Shutdown().Error()
	}
	r.mu.Lock()
	r.mu.closed = true
	r.mu.Unlock()
	r.mu.wg.Wait()
	close(r.stopped)
}

// drain waits, for a while at most, until raft owes no answer.
func (r *replica) drain(wait time.Duration) {
	for end := time.Now().Add(wait); r.inflight.Load()+r.asked.Load() > 0 && time.Now().Before(end); {
		time.Sleep(2 * time.Millisecond)
	}
}

// ask has raft do something other than a proposal and waits for its answer, until ctx ends or the replica is cut. raft's
// futures can be neither cancelled nor waited for with a ctx; the goroutine ends with raft's answer, which shutdown waits for.
func (r *replica) ask(ctx context.Context, op string, start func() raft.Future) error {
	r.asked.Add(1)
	if r.isCut.Load() { // only now: shutdown looks at the count after the cut
		r.asked.Add(-1)
		return errGone(op, r.id)
	}
	done := make(chan error, 1)
	go func() {
		err := start().Error()
		r.asked.Add(-1)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.cutCh:
		return errGone(op, r.id)
	}
}

// observe is called by raft, synchronously; it must not block nor call raft's observers.
func (r *replica) observe(o *raft.Observation) bool {
	switch d := o.Data.(type) {
	case raft.RaftState:
		if d == raft.Leader && !r.isCut.Load() {
			r.peers.Clear()
			r.setLead(newLeadership(r.ctx, r.id, r.raft.CurrentTerm()))
			r.g.leader.Store(r)
			r.spawn(r.becomeReadable)
			if r.h.clocks.off.Load() {
				r.spawn(r.moveAway)
			}
		} else {
			r.readTerm.Store(0)
			r.setLead(nil)
			r.g.leader.CompareAndSwap(r, nil)
		}
		r.changed.signal()
		r.g.changed.signal()
	case raft.PeerObservation:
		if l := r.lead.Load(); l != nil && d.Removed {
			l.dropPeer(cluster.ReplicaID(d.Peer.ID))
		}
		r.changed.signal()
	}
	return false
}

// becomeReadable runs a barrier once the replica leads: from then on everything that was ever
// acknowledged is in its state.
func (r *replica) becomeReadable() {
	term := r.raft.CurrentTerm()
	for r.leads(term) {
		if err := r.ask(r.ctx, "multiraft.barrier", func() raft.Future { return r.raft.Barrier(0) }); err == nil {
			// Terms only rise, so the barrier was of this very term.
			if r.leads(term) {
				r.readTerm.Store(term)
			}
			if !r.leads(term) {
				r.readTerm.CompareAndSwap(term, 0)
			}
			r.g.changed.signal()
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.cutCh:
		}
	}
}

// leads reports whether the replica leads in term.
func (r *replica) leads(term uint64) bool {
	return !r.isCut.Load() && r.raft.State() == raft.Leader && r.raft.CurrentTerm() == term
}

// configuration is the latest configuration raft knows, committed or not.
func (r *replica) configuration() raft.Configuration {
	return r.raft.GetConfiguration().Configuration()
}

func (r *replica) memberOf(id cluster.ReplicaID) (member, voter bool) {
	for _, s := range r.configuration().Servers {
		if s.ID == raft.ServerID(id) {
			return true, s.Suffrage == raft.Voter
		}
	}
	return false, false
}

// snapshotLoop takes local snapshots when enough was applied.
func (r *replica) snapshotLoop() {
	for {
		select {
		case <-r.snapPoke:
		case <-r.cutCh:
			return
		}
		r.snapMu.Lock()
		err := r.raft.Snapshot().Error()
		r.snapMu.Unlock()
		if err == nil || r.isCut.Load() {
			continue
		}
		r.h.cfg.Logger.Debug("no snapshot now", "replica", string(r.id), "err", err)
		select {
		case <-time.After(time.Second):
			r.pokeSnapshot()
		case <-r.cutCh:
			return
		}
	}
}

func (r *replica) pokeSnapshot() {
	select {
	case r.snapPoke <- struct{}{}:
	default:
	}
}
