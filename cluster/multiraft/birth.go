package multiraft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// A split's child is born by the parent's replicas, each of which makes the child's replica on its own drive as it
// applies the split (design rule 2). What follows from that:
//
//   - The child's rows and the parent's narrowed bounds are in one batch of the state, so no crash parts them.
//   - The child's record, with its first term, is durable in the log before that batch is written. A crash may roll the
//     state back to before the split while the log has a child that voted and acknowledged: such a child is held back
//     at start, and goes on with its term, vote and log once the parent has come to the split again.
//   - A parent's replica that passes the split by a snapshot never had the child's rows: the child's replica starts empty.
//   - A child's replica was the business of one parent's replica, and of that one once: "born/group" in the log
//     stays when the child's replica is destroyed, so that no replay or later start makes it again under its id.
//   - A parent's replica that gives birth to none deletes the child's rows in the same batch.
//   - No snapshot is installed over rows of another group: while the parent here is before the split, the child's
//     rows lie in the parent's spans.

// Parent is a StateMachine whose commands give birth to groups.
type Parent interface {
	StateMachine
	// Born are the births of the last Apply; the children's first rows are in its batch.
	Born() []cluster.Birth
	// Births are all births that r's state knows of.
	Births(r pebble.Reader) ([]cluster.Birth, error)
}

const bornPrefix = "born/"

func bornName(g cluster.GroupID) string { return fmt.Sprintf("%s%016x", bornPrefix, uint64(g)) }

// bearPatience bounds how long a newborn group is helped to its first leader.
const bearPatience = 10 * time.Second

// Split is Propose for a command that may give birth to a group. While it is under way no read of the group begins
// here: as soon as it is committed the child's leader, elsewhere, may acknowledge writes that this replica
// does not know of until it has applied the split.
func (h *Host) Split(ctx context.Context, id cluster.GroupID, data []byte) ([]byte, error) {
	return h.propose(ctx, id, data, true)
}

// Configuration is the configuration that a group's leader here has applied last, and the index of its entry. Drives are
// zero where they are not here. Errors: NotLeader, Unavailable.
func (h *Host) Configuration(id cluster.GroupID) (index uint64, members []cluster.Replica, err error) {
	r, err := h.leader("multiraft.configuration", id)
	if err != nil {
		return 0, nil, err
	}
	var c configuration
	err = r.withState("multiraft.configuration", func(db pebble.Reader) error { // raft does not tell the index
		_, err := getJSON(db, rowKey(id, rowConfig), &c)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	for _, s := range c.Servers {
		m := cluster.Replica{ID: s.ID, Voter: s.Voter}
		if o := h.replica(m.ID); o != nil {
			m.Drive = o.ds.d.ID
		}
		members = append(members, m)
	}
	return c.Index, members, nil
}

// EachReplica calls fn with the state of each replica of a group that runs here and is not empty, whatever it has applied. fn's
// first error ends it.
func (h *Host) EachReplica(id cluster.GroupID, fn func(cluster.ReplicaID, pebble.Reader) error) error {
	g := h.group(id, false)
	if g == nil {
		return nil
	}
	for _, r := range g.replicas() {
		if r.markerPoint().Index == 0 {
			continue
		}
		if err := r.withState("multiraft.replica", func(db pebble.Reader) error { return fn(r.id, db) }); err != nil {
			return err
		}
	}
	return nil
}

// awaitBirths waits until no split that was proposed here is between proposal and application. A leader that steps down
// forgets what it proposed, though it may be committed: then it answers NotLeader.
func (r *replica) awaitBirths(ctx context.Context, term uint64) error {
	for r.splitting.Load() > 0 {
		changed := r.g.changed.wait()
		if r.splitting.Load() == 0 {
			break
		}
		select {
		case <-changed:
		case <-r.cutCh:
			return errs.New(errs.Unavailable, "multiraft.read", string(r.id), "the replica stopped")
		case <-ctx.Done():
			return &errs.Error{Kind: errs.Unavailable, Op: "multiraft.read", Subject: string(r.id), Detail: "the range is being split", Err: ctx.Err()}
		}
	}
	if !r.leads(term) {
		return r.g.notLeader("multiraft.read")
	}
	return nil
}

// newborn is a child's replica whose rows are in the state and that is to be started.
type newborn struct {
	group cluster.GroupID
	rec   record
	fresh bool // it never ran
}

// bear adds to b what the births of the last Apply mean for this replica's drive, and answers the
// replicas to be started once b is committed. It runs where entries are applied.
func (r *replica) bear(b *pebble.Batch) (out []newborn, err error) {
	p, ok := r.sm.(Parent)
	if !ok {
		return nil, nil
	}
	for _, birth := range p.Born() {
		n, here, err := r.bearOne(birth, b)
		if err != nil {
			return nil, err
		}
		if here {
			out = append(out, n)
			continue
		}
		spans, err := r.h.cfg.NewStateMachine(birth.Child).Spans(b)
		if err != nil {
			return nil, err
		}
		for _, s := range spans {
			if err := b.DeleteRange(s.Start, s.End, nil); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (r *replica) bearOne(birth cluster.Birth, b *pebble.Batch) (n newborn, here bool, err error) {
	child, ok := birth.Of(r.id)
	if !ok {
		return n, false, nil
	}
	ds := r.ds
	rec := record{Format: rowFormat, Group: birth.Child, Replica: child.Child, Parent: r.id, ParentGroup: r.g.id}
	logged, err := ds.log.Meta(recordName(birth.Child))
	if err != nil {
		return n, false, err
	}
	born, err := ds.log.Meta(bornName(birth.Child))
	if err != nil {
		return n, false, err
	}
	at := point{birthIndex, birthTerm}
	switch {
	case logged != nil:
		var in record
		if err := parseRow(logged, &in); err != nil {
			return n, false, err
		}
		if in.Replica != child.Child || in.Phase != phaseReady {
			return n, false, nil // another replica of the group was put here meanwhile
		}
	case born != nil:
		return n, false, nil // it was here, and is gone
	default:
		view, err := ds.log.View(string(child.Child))
		if err != nil {
			return n, false, err
		}
		in := rec
		in.Phase = phaseReady
		if err := view.Init(at.Term, recordName(birth.Child), encodeRow(in)); err != nil {
			return n, false, err
		}
	}
	c := configuration{Format: rowFormat, Index: at.Index}
	for _, m := range birth.Replicas {
		c.Servers = append(c.Servers, server{m.Child, m.Voter})
	}
	return newborn{birth.Child, rec, logged == nil && born == nil}, true, errors.Join(
		b.Set(rowKey(birth.Child, rowRecord), encodeRow(rec), nil),
		b.Set(rowKey(birth.Child, rowMarker), encodeRow(marker{rowFormat, at, c}), nil),
		b.Set(rowKey(birth.Child, rowApplied), encodeApplied(at), nil),
		b.Set(rowKey(birth.Child, rowConfig), encodeRow(c), nil))
}

// markBorn makes durable, before a child's replica acts for the first time, that it is born.
func (ds *driveStore) markBorn(rec record) error {
	if rec.Parent == "" {
		return nil
	}
	was, err := ds.log.Meta(bornName(rec.Group))
	if err != nil || was != nil {
		return err
	}
	return ds.log.SetMeta(bornName(rec.Group), []byte(rec.Replica))
}

// deliverChildren starts the newborn replicas. It does not wait: the caller is the parent's
// replica, for which whoever holds the host's lock may be waiting.
func (r *replica) deliverChildren(children []newborn) {
	for _, n := range children {
		r.h.spawn(func() {
			if !r.h.lockAdmin(r.ds) {
				return
			}
			err := r.ds.startChild(n)
			r.h.admin.Unlock()
			if err != nil {
				r.h.cfg.Logger.Error("a split's replica does not start", "replica", n.rec.Replica, "drive", r.ds.d.ID.Short(), "err", err)
				return
			}
			r.pokeSnapshot() // so that no crash rolls back behind the split for long
			r.raise(n)
		})
	}
}

// lockAdmin takes the host's lock unless the host or the drive is on its way out.
func (h *Host) lockAdmin(ds *driveStore) bool {
	select {
	case h.admin <- struct{}{}:
	case <-h.closing:
		return false // whoever holds the lock may be waiting for the caller
	}
	if h.closed.Load() || h.drive(ds.d.ID) != ds {
		h.admin.Unlock()
		return false
	}
	return true
}

// startChild starts a replica whose rows and record are there. The host's lock is held.
func (ds *driveStore) startChild(n newborn) error {
	if !ds.users.enter() {
		return errs.New(errs.Closed, "multiraft.birth", string(n.rec.Replica), "the drive is closing")
	}
	defer ds.users.leave()
	ds.mu.Lock()
	delete(ds.mu.held, n.group)
	have := ds.mu.replicas[n.group]
	ds.mu.Unlock()
	if have != nil {
		return nil
	}
	err := ds.startReplica(n.group, n.rec, n.fresh)
	switch {
	case errs.Is(err, errs.Corrupt):
		ds.setLost(n.group, n.rec.Replica, err)
	case err == nil && !n.fresh:
		ds.h.kick(n.group, false)
	}
	if ds.h.drive(ds.d.ID) != ds {
		// Dropped meanwhile, perhaps before it could be seen that there was one more to stop.
		ds.mu.Lock()
		r := ds.mu.replicas[n.group]
		ds.mu.Unlock()
		if r != nil {
			r.cut(nil)
			<-r.stopped
		}
	}
	return err
}

// raise helps a newborn group to its first leader: where the parent's leader is, the child's replica stands as soon as
// most voters are born. Otherwise nobody would stand before an election timeout has passed.
func (r *replica) raise(n newborn) {
	ctx, cancel := context.WithTimeout(r.ctx, bearPatience)
	defer cancel()
	child := r.h.replica(n.rec.Replica)
	if child == nil || r.lead.Load() == nil {
		return
	}
	t := &trans{child}
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if _, l := child.raft.LeaderWithID(); l != "" {
			return
		}
		voters, alive := 0, 0
		for _, s := range child.configuration().Servers {
			if s.Suffrage != raft.Voter {
				continue
			}
			voters++
			if to, e := t.route(s.ID); to != nil {
				if _, err := to.ConfirmTerm(ctx, e); err == nil {
					alive++
				}
			}
		}
		if _, voter := child.memberOf(child.id); voter && alive > voters/2 {
			if child.raft.CurrentTerm() == birthTerm { // in which nobody ever led, so there is no lease to outlive
				_ = child.stand(ctx, birthTerm)
			}
			return
		}
		select {
		case <-time.After(pause):
		case <-child.cutCh:
			return
		case <-ctx.Done():
			return
		}
	}
}

// ---- children that are there and those that are missing ----

// hold keeps a replica back that the log knows and the state does not, if it is a child whose parent is here and may
// come to the split again, or is itself such a child.
func (ds *driveStore) hold(l record, inLog, inState map[cluster.GroupID]record) bool {
	for c := l; inState[c.Group].Replica != c.Replica; c = inLog[c.ParentGroup] {
		if p := inLog[c.ParentGroup]; c.Parent == "" || p.Replica != c.Parent || p.Phase != phaseReady {
			return false
		}
	}
	ds.mu.Lock()
	ds.mu.held[l.Group] = l
	ds.mu.Unlock()
	ds.h.group(l.Group, true)
	return true
}

// orphan gives up the held children of a replica that is lost or was destroyed: what they had in the state will not come back.
func (ds *driveStore) orphan(parent cluster.ReplicaID) {
	ds.mu.Lock()
	var gone []record
	for g, l := range ds.mu.held {
		if l.Parent == parent {
			gone = append(gone, l)
			delete(ds.mu.held, g)
		}
	}
	ds.mu.Unlock()
	for _, l := range gone {
		ds.setLost(l.Group, l.Replica, errs.New(errs.Corrupt, "multiraft.birth", string(l.Replica), "its parent's replica is gone, and with it its rows"))
	}
}

// missing makes the children that this replica should have given birth to and did not, because it passed their splits by a
// snapshot. They start empty. It runs after an install and after a start.
func (r *replica) missing() {
	p, ok := r.sm.(Parent)
	if !ok {
		return
	}
	var births []cluster.Birth
	err := r.withState("multiraft.birth", func(db pebble.Reader) (err error) {
		births, err = p.Births(db)
		return err
	})
	for _, b := range births {
		if child, ok := b.Of(r.id); ok && err == nil && r.h.lockAdmin(r.ds) {
			err = r.makeMissing(b.Child, child)
			r.h.admin.Unlock()
		}
	}
	if err != nil && !r.isCut.Load() {
		r.h.cfg.Logger.Error("a split's replica cannot be made", "parent", r.id, "err", err)
	}
}

func (r *replica) makeMissing(g cluster.GroupID, child cluster.ChildReplica) error {
	ds := r.ds
	ds.mu.Lock()
	held, isHeld := ds.mu.held[g]
	ds.mu.Unlock()
	rec := record{Format: rowFormat, Group: g, Replica: child.Child, Empty: true, Parent: r.id, ParentGroup: r.g.id}
	if isHeld && held.Replica == child.Child {
		return ds.refill(held, rec)
	}
	born, err := ds.log.Meta(bornName(g))
	if err != nil || born != nil {
		return err
	}
	if logged, err := ds.log.Meta(recordName(g)); err != nil || logged != nil {
		return err // born in the ordinary way, or another replica of the group is here
	}
	exists, err := ds.createOnce(rec, 0, func(*pebble.Batch) error { return nil })
	if err != nil || exists {
		return err
	}
	return ds.startChild(newborn{g, rec, true})
}

// refill starts a held child empty, with its term and vote, if it has acknowledged nothing; else it is lost, since what
// it acknowledged cannot be applied here any more.
func (ds *driveStore) refill(held, rec record) error {
	view, err := ds.log.View(string(held.Replica))
	if err != nil {
		return err
	}
	if last, err := view.LastIndex(); err != nil || last != 0 {
		ds.mu.Lock()
		delete(ds.mu.held, held.Group)
		ds.mu.Unlock()
		ds.setLost(held.Group, held.Replica, errs.New(errs.Corrupt, "multiraft.birth", string(held.Replica), "its parent was replaced from a snapshot behind the split, which has not its rows"))
		return err
	}
	err = ds.update(func(b *pebble.Batch) error { return b.Set(rowKey(rec.Group, rowRecord), encodeRow(rec), nil) })
	if err != nil {
		return err
	}
	return ds.startChild(newborn{held.Group, rec, false})
}

// admitInstall holds up other installs on the drive and refuses one whose rows lie where another group has its own.
// The caller must call release when the install is over.
func (r *replica) admitInstall(h streamHeader) (release func(), err error) {
	r.ds.installs.Lock()
	if err := r.checkInstall(h); err != nil {
		r.ds.installs.Unlock()
		return nil, err
	}
	return r.ds.installs.Unlock, nil
}

// checkInstall refuses a snapshot that comes late (Conflict), or whose rows lie where another group has its own (Busy).
func (r *replica) checkInstall(h streamHeader) error {
	ds := r.ds
	if have := max(r.applied.Load(), r.markerPoint().Index); have >= h.Point.Index {
		return errs.Newf(errs.Conflict, "multiraft.install", string(r.id), "a snapshot at %d comes late: the state is at %d", h.Point.Index, have)
	}
	ds.mu.Lock()
	others := map[cluster.GroupID]bool{}
	for g := range ds.mu.replicas {
		others[g] = true
	}
	for g := range ds.mu.lost {
		others[g] = true
	}
	ds.mu.Unlock()
	delete(others, r.g.id)
	for g := range others {
		spans, err := ds.h.cfg.NewStateMachine(g).Spans(ds.db())
		if err != nil {
			return err
		}
		for _, s := range spans {
			for _, mine := range h.Spans {
				if string(s.Start) < string(mine.End) && string(mine.Start) < string(s.End) {
					return errs.Newf(errs.Busy, "multiraft.install", string(r.id), "group %d has its rows there still", g)
				}
			}
		}
	}
	return nil
}
