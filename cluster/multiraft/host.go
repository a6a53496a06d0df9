package multiraft

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/cluster/raftlog"
	"cairn/storage"
	"cairn/storage/errs"
)

// Host runs the Raft replicas of one process. Its methods are safe for concurrent use.
type Host struct {
	cfg          Config
	fileCache    *pebble.FileCache
	compactions  *raftlog.Compactions
	ownCache     bool
	groups       sync.Map // cluster.GroupID -> *group
	replicas     sync.Map // cluster.ReplicaID -> *replica: those that run
	peersChanged broadcast
	clocks       clocks
	spools       atomic.Uint64
	inBytes      atomic.Int64 // of the proposals in flight
	lowUntil     atomic.Int64 // unix ns: a drive of a voter may be below its reserve
	spaces       sync.Map     // cluster.ReplicaID -> heardSpace: those elsewhere that are
	closed       atomic.Bool

	closing chan struct{} // closed as soon as Close has begun

	admin lock // serializes what changes the set of drives and replicas here; held over waits

	mu struct {
		sync.Mutex
		drives  map[storage.DriveID]*driveStore
		dropped map[string]*driveStore // by directory: being closed
		wg      sync.WaitGroup
	}
}

// New makes a host without drives. Error: InvalidArgument.
func New(cfg Config) (*Host, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	h := &Host{cfg: cfg, closing: make(chan struct{}), admin: make(lock, 1)}
	if h.cfg.Cache == nil {
		h.cfg.Cache = pebble.NewCache(32 << 20)
		h.ownCache = true
	}
	h.fileCache = pebble.NewFileCache(1, 1024)
	h.compactions = raftlog.NewCompactions(cfg.CompactionsMax)
	h.mu.drives = map[storage.DriveID]*driveStore{}
	h.mu.dropped = map[string]*driveStore{}
	return h, nil
}

func (h *Host) driveLogger(d Drive) *slog.Logger {
	return h.cfg.Logger.With("drive", d.ID.Short())
}

// spawn runs fn in a goroutine that Close waits for.
func (h *Host) spawn(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.wg.Add(1)
	go func() {
		defer h.mu.wg.Done()
		fn()
	}()
}

// group is what is here of a group; nil if there is nothing and create is false.
func (h *Host) group(id cluster.GroupID, create bool) *group {
	if g, ok := h.groups.Load(id); ok {
		return g.(*group)
	}
	if !create {
		return nil
	}
	g := &group{id: id}
	g.subs.m = map[*chan struct{}]chan struct{}{}
	a, _ := h.groups.LoadOrStore(id, g)
	return a.(*group)
}

func (h *Host) replica(id cluster.ReplicaID) *replica {
	if r, ok := h.replicas.Load(id); ok {
		return r.(*replica)
	}
	return nil
}

func (h *Host) drive(id storage.DriveID) *driveStore {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.drives[id]
}

// AddDrive opens a drive's log and state and starts the replicas recorded there. A
// store that is corrupt is moved aside (to raftlog.corrupt or state.corrupt) and its
// replicas reported as lost. Errors: Conflict (the drive is open), DriveFailed, Closed.
func (h *Host) AddDrive(d Drive) error {
	h.admin.Lock()
	defer h.admin.Unlock()
	if h.closed.Load() {
		return errs.New(errs.Closed, "multiraft.addDrive", d.Dir, "")
	}
	if h.drive(d.ID) != nil {
		return errs.New(errs.Conflict, "multiraft.addDrive", d.Dir, "the drive is open")
	}
	h.mu.Lock()
	old := h.mu.dropped[d.Dir]
	h.mu.Unlock()
	if old != nil {
		select {
		case <-old.closed:
		case <-old.failed:
		}
	}
	ds, err := h.openDrive(d)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.mu.drives[d.ID] = ds
	h.mu.Unlock()
	ds.mu.Lock()
	var groups []cluster.GroupID
	for g := range ds.mu.replicas {
		groups = append(groups, g)
	}
	ds.mu.Unlock()
	for _, g := range groups {
		h.kick(g, false)
	}
	return nil
}

// DropDrive abandons the drive's replicas, at once and without waiting on its I/O. If the
// drive is well, its stores are closed in the background; an AddDrive of it waits for that.
func (h *Host) DropDrive(id storage.DriveID) {
	h.mu.Lock()
	ds := h.mu.drives[id]
	delete(h.mu.drives, id)
	if ds != nil {
		h.mu.dropped[ds.d.Dir] = ds
	}
	h.mu.Unlock()
	if ds == nil {
		return
	}
	groups := ds.cutAll(errs.New(errs.DriveFailed, "multiraft.dropDrive", id.Short(), "the drive was taken out"))
	h.spawn(func() {
		if err := ds.close(); err != nil {
			h.driveLogger(ds.d).Warn("closing a dropped drive", "err", err)
		}
		h.mu.Lock()
		if h.mu.dropped[ds.d.Dir] == ds {
			delete(h.mu.dropped, ds.d.Dir)
		}
		h.mu.Unlock()
		close(ds.closed)
	})
	for _, g := range groups {
		h.kick(g, true)
	}
}

// Groups are born in birthTerm, in which nobody ever leads, from a marker at birthIndex. It is not 1: a leader sends the
// entry 1 without asking what lies before it, so raft could take what stands for the marker (see logs) as an entry to send.
const (
	birthTerm  = 1
	birthIndex = 2
)

// Birth creates the local replicas of a new group, each from a marker at birthIndex and
// birthTerm with g's replicas as its configuration; birth writes the group's first rows, the same on every
// drive. A replica that exists under its id is left as it is, so a birth that was cut off may be
// repeated; but only while the group was never seen to work, since a lost replica must not be
// born again under its id. Errors: Conflict (a drive has another replica of the group, or a lost one), DriveFailed.
func (h *Host) Birth(g cluster.Group, birth func(b *pebble.Batch) error) error {
	h.admin.Lock()
	defer h.admin.Unlock()
	c := configuration{Format: rowFormat, Index: birthIndex}
	for _, r := range g.Replicas {
		c.Servers = append(c.Servers, server{r.ID, r.Voter})
	}
	at := point{birthIndex, birthTerm}
	fill := func(b *pebble.Batch) error {
		return errors.Join(
			b.Set(rowKey(g.ID, rowMarker), encodeRow(marker{rowFormat, at, c}), nil),
			b.Set(rowKey(g.ID, rowApplied), encodeApplied(at), nil),
			b.Set(rowKey(g.ID, rowConfig), encodeRow(c), nil),
			birth(b))
	}
	var born []func() error
	for _, r := range g.Replicas {
		ds := h.drive(r.Drive)
		if ds == nil {
			continue
		}
		rec := record{Format: rowFormat, Group: g.ID, Replica: r.ID}
		exists, err := ds.createOnce(rec, at.Term, fill)
		if err != nil {
			return err
		}
		if !exists {
			born = append(born, func() error { return ds.startReplica(g.ID, rec, true) })
		}
	}
	for _, start := range born {
		if err := start(); err != nil {
			return err
		}
	}
	h.kick(g.ID, false)
	return nil
}

// createOnce is create unless the replica is there already.
func (ds *driveStore) createOnce(rec record, term uint64, fill func(*pebble.Batch) error) (exists bool, err error) {
	ds.mu.Lock()
	r, lost := ds.mu.replicas[rec.Group], ds.mu.lost[rec.Group]
	held, isHeld := ds.mu.held[rec.Group]
	ds.mu.Unlock()
	switch {
	case isHeld && held.Replica == rec.Replica:
		return true, nil
	case isHeld:
		return false, errs.Newf(errs.Conflict, "multiraft.create", string(rec.Replica), "drive %s has %s of the group", ds.d.ID.Short(), held.Replica)
	case r != nil && r.id == rec.Replica:
		return true, nil
	case r != nil:
		return false, errs.Newf(errs.Conflict, "multiraft.create", string(rec.Replica), "drive %s has %s of the group", ds.d.ID.Short(), r.id)
	case lost.why != nil:
		return false, errs.Newf(errs.Conflict, "multiraft.create", string(rec.Replica), "drive %s has %s of the group, which is lost: remove it first", ds.d.ID.Short(), lost.id)
	}
	return false, ds.create(rec, term, fill)
}

// kick makes the most up to date local voter stand for election at once instead of after a timeout, if the
// group has no leader here, or one whose log hangs. Without other processes: after a start (lost is false) if there is no leader, after
// the loss of a leader (lost) whenever a majority is here. With them only after the loss of a leader that was here:
// nobody can tell otherwise whether another one holds a lease.
func (h *Host) kick(id cluster.GroupID, lost bool) {
	g := h.group(id, false)
	if g == nil || h.closed.Load() {
		return
	}
	var best *replica
	var bestIndex, bestTerm uint64
	for _, r := range g.replicas() {
		if r.view.Stalled() > h.cfg.StallTimeout {
			r.free()
			continue
		}
		if r.raft.State() == raft.Leader {
			return
		}
		if leader, _ := r.raft.LeaderWithID(); leader != "" && !lost {
			return
		}
		if _, voter := r.memberOf(r.id); !voter {
			continue
		}
		index, term := r.view.Last()
		if m := r.markerPoint(); m.Index > index {
			index, term = m.Index, m.Term
		}
		if best == nil || term > bestTerm || term == bestTerm && index > bestIndex {
			best, bestIndex, bestTerm = r, index, term
		}
	}
	if best == nil {
		return
	}
	term := best.raft.CurrentTerm()
	switch here, voters := best.votersHere(); {
	case h.cfg.Remote == nil && here <= voters/2:
		return
	case h.cfg.Remote != nil && g.freed.Load() != term && (term > birthTerm || here < voters):
		return
	}
	best.spawn(func() { _ = best.stand(best.ctx, term) })
}

// Campaign makes a local voter of a group stand for election at once, if the group was just born and never had a leader:
// the first would be found only after HeartbeatTimeout otherwise. To be called in one process only.
func (h *Host) Campaign(id cluster.GroupID) {
	g := h.group(id, false)
	if g == nil || h.closed.Load() {
		return
	}
	for _, r := range g.replicas() {
		if _, voter := r.memberOf(r.id); voter && r.raft.CurrentTerm() == birthTerm {
			r.spawn(func() { _ = r.stand(r.ctx, birthTerm) })
			return
		}
	}
}

// votersHere counts the voters of the latest configuration known here.
func (r *replica) votersHere() (here, all int) {
	for _, s := range r.configuration().Servers {
		if s.Suffrage == raft.Voter {
			all++
			if r.h.replica(cluster.ReplicaID(s.ID)) != nil {
				here++
			}
		}
	}
	return here, all
}

// WaitLeader waits until the group has a leader: one here that can serve reads, or a known one elsewhere.
// Error: Unavailable, when ctx ends.
func (h *Host) WaitLeader(ctx context.Context, id cluster.GroupID) error {
	g := h.group(id, true)
	for {
		changed := g.changed.wait()
		if r := g.leader.Load(); r != nil && r.readTerm.Load() != 0 {
			return nil
		}
		poll := time.NewTimer(50 * time.Millisecond) // a leader elsewhere shows without a signal
		if h.cfg.Remote != nil {
			for _, r := range g.replicas() {
				if _, l := r.raft.LeaderWithID(); l != "" && h.replica(cluster.ReplicaID(l)) == nil {
					poll.Stop()
					return nil
				}
			}
		} else {
			poll.Stop()
		}
		select {
		case <-changed:
			poll.Stop()
		case <-poll.C:
		case <-ctx.Done():
			poll.Stop()
			return &errs.Error{Kind: errs.Unavailable, Op: "multiraft.waitLeader", Detail: "no leader yet", Err: ctx.Err()}
		}
	}
}

// Subscribe returns a channel that is poked (it holds one poke) after something of the group
// was applied here, and a function that ends it.
func (h *Host) Subscribe(id cluster.GroupID) (<-chan struct{}, func()) {
	g := h.group(id, true)
	ch := make(chan struct{}, 1)
	key := &ch
	g.subs.Lock()
	g.subs.m[key] = ch
	g.subs.Unlock()
	return ch, func() {
		g.subs.Lock()
		delete(g.subs.m, key)
		g.subs.Unlock()
	}
}

// ReplicaState is how a replica fares.
type ReplicaState string

// States of a replica.
const (
	ReplicaRunning ReplicaState = "running"
	ReplicaEmpty   ReplicaState = "empty"  // running, waits for its first snapshot
	ReplicaFailed  ReplicaState = "failed" // stopped; Err says why. It may run again after a restart, if its drive is well
	ReplicaLost    ReplicaState = "lost"   // its log or state is gone or corrupt: replace it under a new id
	ReplicaAway    ReplicaState = "away"   // a member that is not here
	// ReplicaWaiting is a split's replica that goes on as soon as its parent's here has come to the split again.
	ReplicaWaiting ReplicaState = "waiting"
)

// ReplicaStatus tells of one replica.
type ReplicaStatus struct {
	ID      cluster.ReplicaID
	Drive   storage.DriveID // zero if away
	Member  bool            // of the latest configuration known here
	Voter   bool
	Applied uint64 // index; 0 if away
	State   ReplicaState
	Err     error
}

// GroupStatus tells of one group as seen from this process.
type GroupStatus struct {
	Group    cluster.GroupID
	Leader   cluster.ReplicaID // empty if none is known
	Local    bool              // the leader is here and can serve reads
	Term     uint64
	Replicas []ReplicaStatus // by id
}

// Status tells of all groups that have, or had, a replica here, by id. It waits for no I/O.
func (h *Host) Status() []GroupStatus {
	h.mu.Lock()
	drives := make([]*driveStore, 0, len(h.mu.drives))
	for _, ds := range h.mu.drives {
		drives = append(drives, ds)
	}
	h.mu.Unlock()
	var out []GroupStatus
	h.groups.Range(func(_, v any) bool {
		if s := v.(*group).status(drives); len(s.Replicas) > 0 {
			out = append(out, s)
		}
		return true
	})
	sort.Slice(out, func(i, j int) bool { return out[i].Group < out[j].Group })
	return out
}

func (g *group) status(drives []*driveStore) GroupStatus {
	s := GroupStatus{Group: g.id}
	conf := raft.Configuration{}
	newest := uint64(0)
	at := map[cluster.ReplicaID]int{}
	for _, ds := range drives {
		ds.mu.Lock()
		r, lost := ds.mu.replicas[g.id], ds.mu.lost[g.id]
		held, isHeld := ds.mu.held[g.id]
		ds.mu.Unlock()
		rs := ReplicaStatus{Drive: ds.d.ID}
		switch {
		case r != nil:
			rs.ID, rs.State, rs.Applied = r.id, ReplicaRunning, r.applied.Load()
			if r.isCut.Load() {
				rs.State, rs.Err = ReplicaFailed, r.reason()
				break
			}
			if v, ok := ds.h.replicas.Load(r.id); !ok || v.(*replica) != r {
				rs.State = ReplicaEmpty // still starting: it has no raft yet
				break
			}
			if r.markerPoint().Index == 0 {
				rs.State = ReplicaEmpty
			}
			term := r.raft.CurrentTerm()
			if _, l := r.raft.LeaderWithID(); l != "" && term >= s.Term {
				s.Leader = cluster.ReplicaID(l)
			}
			s.Term = max(s.Term, term)
			if c := r.configuration(); len(c.Servers) > 0 && (r == g.leader.Load() || rs.Applied >= newest) {
				conf, newest = c, rs.Applied
				if r == g.leader.Load() {
					newest = ^uint64(0)
				}
			}
		case isHeld:
			rs.ID, rs.State = held.Replica, ReplicaWaiting
		case lost.why != nil:
			rs.ID, rs.State, rs.Err = lost.id, ReplicaLost, lost.why
		default:
			continue
		}
		at[rs.ID] = len(s.Replicas)
		s.Replicas = append(s.Replicas, rs)
	}
	for _, m := range conf.Servers {
		i, ok := at[cluster.ReplicaID(m.ID)]
		if !ok {
			i = len(s.Replicas)
			s.Replicas = append(s.Replicas, ReplicaStatus{ID: cluster.ReplicaID(m.ID), State: ReplicaAway})
		}
		s.Replicas[i].Member, s.Replicas[i].Voter = true, m.Suffrage == raft.Voter
	}
	if r := g.leader.Load(); r != nil {
		s.Leader, s.Local = r.id, r.readTerm.Load() != 0
	}
	slices.SortFunc(s.Replicas, func(a, b ReplicaStatus) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return s
}

func (r *replica) reason() error {
	select {
	case <-r.cutCh:
		return r.why
	default:
		return nil
	}
}

// Close stops all replicas and closes the drives that are well. Leaders with voters in other processes are moved there
// first; each such voter that does not answer costs up to one and a half election timeouts. Afterwards every call answers Closed.
func (h *Host) Close() error {
	h.admin.Lock()
	defer h.admin.Unlock()
	if h.closed.Swap(true) {
		return nil
	}
	close(h.closing)
	h.moveLeaders()
	h.mu.Lock()
	drives := make([]*driveStore, 0, len(h.mu.drives))
	for _, ds := range h.mu.drives {
		drives = append(drives, ds)
	}
	h.mu.drives = map[storage.DriveID]*driveStore{}
	h.mu.Unlock()
	// While all still run, what is under way ends well.
	end := time.Now().Add(time.Second)
	h.replicas.Range(func(_, v any) bool {
		v.(*replica).drain(time.Until(end))
		return true
	})
	// All are cut before any is waited for: they may be waiting for each other.
	for _, ds := range drives {
		ds.cutAll(nil)
	}
	errsAll := make([]error, len(drives))
	var closing sync.WaitGroup
	for i, ds := range drives { // together, so that one that does not come to rest holds up none
		closing.Go(func() { errsAll[i] = ds.close() })
	}
	closing.Wait()
	h.mu.wg.Wait()
	h.fileCache.Unref()
	if h.ownCache {
		h.cfg.Cache.Unref()
	}
	return errors.Join(errsAll...)
}

// moveLeaders hands leadership to voters elsewhere; where all are here it is pointless.
func (h *Host) moveLeaders() {
	if h.cfg.Remote == nil {
		return
	}
	var wg sync.WaitGroup
	h.replicas.Range(func(_, v any) bool {
		if r := v.(*replica); r.raft.State() == raft.Leader {
			wg.Add(1)
			go func() {
				defer wg.Done()
				r.moveAway()
			}()
		}
		return true
	})
	wg.Wait()
}

// moveAway hands leadership to a voter in another process, if there is one that can take it: first to those that have most.
func (r *replica) moveAway() {
	servers := slices.Clone(r.configuration().Servers)
	slices.SortStableFunc(servers, func(a, b raft.Server) int {
		return cmp.Compare(r.peerHas(cluster.ReplicaID(b.ID)), r.peerHas(cluster.ReplicaID(a.ID)))
	})
	for _, s := range servers {
		id := cluster.ReplicaID(s.ID)
		if s.Suffrage == raft.Voter && r.h.replica(id) == nil {
			if r.transfer(r.ctx, id) == nil {
				return
			}
		}
	}
}
