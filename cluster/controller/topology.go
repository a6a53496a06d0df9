package controller

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
)

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// readTopology reads what the system group has recorded, linearizably.
func (c *Controller) readTopology(ctx context.Context) (t *cluster.Topology, err error) {
	if c.cfg.Cluster != nil {
		return c.fetchTopology(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	err = c.meta.SysRead(ctx, func(r pebble.Reader) error {
		t, err = sysstate.Topology(r)
		return err
	})
	return t, err
}

// mainLoop publishes the topology and has recorded what the slots see.
func (c *Controller) mainLoop(ctx context.Context) {
	changed, stop := c.cfg.Groups.Subscribe(cluster.SystemGroup)
	defer stop()
	ticker := time.NewTicker(c.cfg.Tick)
	defer ticker.Stop()
	// A command that is refused changes the group, too: what failed is tried again at the next tick, not because of itself.
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			failed = false
		case <-c.poked:
			failed = false
		case <-changed:
		}
		c.dropHung()
		c.refresh(ctx)
		if !failed && (c.cfg.Cluster == nil || c.connected()) {
			failed = !c.reconcile(ctx)
		}
		if c.cfg.Cluster != nil {
			c.saveNode()
		}
	}
}

// dropHung fails drives that do not answer a look.
func (c *Controller) dropHung() {
	now := time.Now().UnixNano()
	for _, s := range c.slots {
		since := s.since.Load()
		if since == 0 || now-since < int64(c.cfg.HangAfter) {
			continue
		}
		c.mu.Lock()
		d := s.drv
		c.mu.Unlock()
		if d != nil {
			c.failSlot(s, d, errs.Newf(errs.Timeout, "watch", s.Path, "the drive does not answer for %s", c.cfg.HangAfter))
		}
	}
}

// refresh publishes the topology if there is a newer one.
func (c *Controller) refresh(ctx context.Context) {
	t := c.Topology()
	err := c.cfg.Groups.ReadLocal(cluster.SystemGroup, func(r pebble.Reader) error {
		st, err := sysstate.Store(r)
		if err == nil && st.Version > t.Version {
			t, err = sysstate.Topology(r)
		}
		return err
	})
	if c.cfg.Cluster != nil {
		t, err = c.catchUp(ctx, t, err)
	}
	if err != nil {
		if ctx.Err() == nil {
			c.note("topology", slog.LevelWarn, fmt.Sprintf("the topology cannot be read: %v", err))
		}
		return
	}
	c.note("topology", slog.LevelInfo, "")
	if t.Version == 0 {
		return // a node that has heard of nobody yet
	}
	c.publish(t) // also what drives did not take the last time
	c.saveRegistry()
}

// publish makes a topology the one that everybody works with, if it is newer. The
// drives are told the epochs first, all at the same time, since they take appends under exactly the
// epoch they were told: in between, writers are refused and look for the new topology. So a drive that takes
// too long is not waited for; it is told again at the next tick, and until it has persisted an epoch, whoever
// moves or compares shards must not count on it.
func (c *Controller) publish(t *cluster.Topology) {
	c.publishing <- struct{}{}
	defer func() { <-c.publishing }()
	wait := c.cfg.EpochWait
	if c.Topology().Version == 0 {
		wait = epochsFirst // nobody writes yet
	}
	c.pushEpochs(t, c.slots, wait)
	if t.Version <= c.Topology().Version {
		return
	}
	c.topology.Store(t)
	c.mu.Lock()
	c.noteDowns(t)
	subs := slices.Collect(maps.Values(c.mu.subs))
	c.mu.Unlock()
	for _, ch := range subs {
		poke(ch)
	}
}

// pushEpochs tells the drives in the slots the epochs they have not persisted yet, for as long as wait.
func (c *Controller) pushEpochs(t *cluster.Topology, slots []*slot, wait time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range slots {
		c.mu.Lock()
		d, id, known := s.drv, s.id, s.epochs
		c.mu.Unlock()
		if d == nil {
			continue
		}
		news := map[storage.PGID]storage.Epoch{}
		for _, pg := range t.PGs {
			if (slices.Contains(pg.Drives, id) || slices.Contains(pg.Previous, id)) && known[pg.ID] < pg.Epoch {
				news[pg.ID] = pg.Epoch
			}
		}
		if len(news) == 0 {
			continue
		}
		wg.Go(func() {
			if err := d.SetEpochs(ctx, news); err != nil {
				if d.Failed() == nil {
					c.note("epochs "+s.name, slog.LevelWarn, fmt.Sprintf("the drive %s does not take epochs: %v", s.Path, err))
				}
				return
			}
			c.note("epochs "+s.name, slog.LevelInfo, "")
			c.mu.Lock()
			defer c.mu.Unlock()
			if s.drv == d {
				// A new map: readers may hold the old one.
				s.epochs = maps.Clone(s.epochs)
				maps.Copy(s.epochs, news)
			}
		})
	}
	wg.Wait() // SetEpochs ends with ctx
}

// reconcile has recorded what the slots see and what the system group does not know yet. False: not all of it.
func (c *Controller) reconcile(ctx context.Context) (all bool) {
	all = true
	for _, s := range c.slots {
		if err := c.recordSlot(ctx, s); err != nil {
			all = false
			c.noteRecord(ctx, s, err)
		}
	}
	t := c.Topology()
	self, known := t.Nodes[c.cfg.Node]
	down := known && self.State != cluster.NodeActive // and then its drives are, until its session begins anew
	for _, d := range t.SortedDrives() {
		if d.Node != c.cfg.Node || ctx.Err() != nil {
			continue
		}
		s, open := c.slotOf(d.ID)
		var to cluster.DriveState
		switch {
		case !open && d.State == cluster.DriveActive:
			to = cluster.DriveDown
		case open && d.State == cluster.DriveDown && !down && c.recordedStart(s):
			to = cluster.DriveActive
		default:
			continue
		}
		_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_SetDriveState{SetDriveState: &metapb.SetDriveStateOp{Drive: d.ID[:], State: uint32(to)}}})
		subject := "drive " + d.ID.Short()
		if err != nil {
			all = false
			if ctx.Err() == nil {
				c.note(subject, slog.LevelWarn, fmt.Sprintf("cannot record the drive at %s as %s: %v", c.cfg.slotPath(d.Path), to, err))
			}
			continue
		}
		c.note(subject, slog.LevelWarn, fmt.Sprintf("the drive at %s is recorded as %s", c.cfg.slotPath(d.Path), to))
		c.refresh(ctx)
	}
	return c.growPGs(ctx) && all
}

func (c *Controller) noteRecord(ctx context.Context, s *slot, err error) {
	if ctx.Err() == nil {
		c.note("record "+s.name, slog.LevelWarn, fmt.Sprintf("cannot record the drive at %s yet: %v", s.Path, err))
	}
}

// slotOf is the slot in which a drive is open.
func (c *Controller) slotOf(id storage.DriveID) (*slot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.slots {
		if s.drv != nil && s.id == id {
			return s, true
		}
	}
	return nil, false
}

// recordedStart reports whether the system group knows all about the drive in the slot.
func (c *Controller) recordedStart(s *slot) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.drv != nil && s.start == nil && s.pending == nil
}

// recordSlot proposes what is not recorded yet about the drive in a slot. A drive
// that the system group refuses must not act: it is dropped.
func (c *Controller) recordSlot(ctx context.Context, s *slot) error {
	c.mu.Lock()
	d, pending := s.drv, s.pending
	c.mu.Unlock()
	if d == nil {
		return nil
	}
	if pending != nil {
		_, err := c.sys(ctx, pending)
		if err != nil {
			if refused(err) {
				c.failSlot(s, d, err)
			}
			if errs.Is(err, errs.TooLate) { // done or not: it may be done twice
				c.mu.Lock()
				if s.pending == pending {
					s.pending = &metapb.SysCommand{Op: pending.Op}
				}
				c.mu.Unlock()
			}
			return err
		}
		c.mu.Lock()
		if s.pending == pending {
			s.pending = nil
		}
		c.mu.Unlock()
		c.log.Info("recorded the drive", "drive", s.id.Short(), "path", s.Path)
		c.refresh(ctx)
	}
	return c.recordStart(ctx, s)
}

// recordStart proposes DriveStarted for the drive in a slot, unless that was done.
func (c *Controller) recordStart(ctx context.Context, s *slot) error {
	c.mu.Lock()
	d, start := s.drv, s.start
	c.mu.Unlock()
	if d == nil || start == nil {
		return nil
	}
	if _, err := c.sys(ctx, start); err != nil {
		c.mu.Lock()
		if s.start == start && (errs.Is(err, errs.NotFound) || errs.Is(err, errs.TooLate)) {
			s.start = startCommand(s.ident) // this id gets no other answer any more, whatever is recorded meanwhile
			s.late = s.late || errs.Is(err, errs.TooLate)
		}
		late := s.late
		c.mu.Unlock()
		switch {
		case errs.Is(err, errs.NotFound):
			return c.unknownDrive(s)
		case errs.Is(err, errs.Foreign) && late:
			// This very start may be what is recorded: the next one will tell.
			c.failSlot(s, d, errs.Newf(errs.Timeout, "record", s.Path, "its start was not recorded in time: it is opened again (%v)", err))
		case refused(err):
			c.failSlot(s, d, err)
		}
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.start == start {
		s.start = nil
	}
	return nil
}

// unknownDrive has a drive recorded that was formatted before a crash and never recorded.
func (c *Controller) unknownDrive(s *slot) error {
	t := c.Topology()
	if t.Version == 0 {
		return nil // at start: the loops come to it
	}
	old, ok := c.recorded(t, s)
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.drv == nil || s.pending != nil {
		return nil
	}
	poke(c.poked)
	if _, known := t.Drives[s.id]; known {
		return nil // recorded just now: its start comes next
	}
	if ok && old.State != cluster.DriveDown {
		return nil // to be recorded as down first
	}
	row := c.driveRow(s, s.ident)
	s.pending = &metapb.SysCommand{Op: &metapb.SysCommand_PutDrive{PutDrive: &metapb.PutDriveOp{Drive: row}}}
	if ok {
		s.pending.Op = &metapb.SysCommand_ReplaceDrive{ReplaceDrive: &metapb.ReplaceDriveOp{Old: old.ID[:], New: row}}
	}
	return nil
}

// refused reports whether an error is the system group's definite no.
func refused(err error) bool {
	switch errs.KindOf(err) {
	case errs.Foreign, errs.Conflict, errs.InvalidArgument, errs.InvalidRequest, errs.NotFound:
		return true
	}
	return false
}

// growPGs makes placement groups that use drives that joined, and those of classes that have none: the
// store was made by a release that did not know them.
func (c *Controller) growPGs(ctx context.Context) (ok bool) {
	t := c.Topology()
	drives := homes(t)
	if c.cfg.Cluster != nil && !c.mayGrow(drives) {
		return true
	}
	used := map[storage.DriveID]bool{}
	has := map[storage.StorageClass]bool{}
	for _, pg := range t.PGs {
		has[pg.Class] = true
		for _, id := range pg.Drives {
			used[id] = true
		}
	}
	var set strings.Builder
	fresh := slices.ContainsFunc(c.cfg.Classes, func(class storage.StorageClass) bool { return !has[class] })
	for _, d := range drives {
		set.WriteString(d.ID.String())
		fresh = fresh || !used[d.ID]
	}
	if !fresh || set.String() == c.planned || ctx.Err() != nil {
		return true
	}
	for _, s := range c.slots { // all that join, at once
		_, known := c.recorded(t, s)
		c.mu.Lock()
		waits := s.pending != nil || !known && s.trouble == ""
		c.mu.Unlock()
		if waits {
			return true
		}
	}
	pgs, err := c.planPGs(drives)
	if err == nil && len(pgs) > 0 {
		_, err = c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_PutPgs{PutPgs: &metapb.PutPGsOp{Pgs: pgs}}})
	}
	if err != nil {
		if ctx.Err() == nil {
			c.note("placement", slog.LevelWarn, fmt.Sprintf("cannot make placement groups for new drives or classes: %v", err))
		}
		return false
	}
	c.planned = set.String()
	c.log.Info("placement groups for new drives or classes", "drives", len(drives), "classes", c.cfg.Classes)
	c.refresh(ctx)
	return true
}

// DirtySlot is a shard position of a placement group whose drive lacks shards.
type DirtySlot struct {
	PG    storage.PGID
	Index int
	Drive storage.DriveID
	Since storage.Epoch // shards written at this epoch or later may be missing
	Epoch storage.Epoch // of the placement group now; to be handed to ClearDirty
}

// Dirty are the slots that can be worked on: their drive is active, and every
// active drive of the placement group that is on this node has persisted its epoch, so what they list is complete.
// In order of placement group and index.
func (c *Controller) Dirty() []DirtySlot {
	t := c.Topology()
	epochs := map[storage.DriveID]map[storage.PGID]storage.Epoch{}
	c.mu.Lock()
	for _, s := range c.slots {
		if s.drv != nil {
			epochs[s.id] = s.epochs
		}
	}
	c.mu.Unlock()
	var out []DirtySlot
	for _, pg := range t.PGs {
		known := true
		for _, id := range pg.Drives {
			if d := t.Drives[id]; d.State == cluster.DriveActive && d.Node == c.cfg.Node && epochs[id][pg.ID] < pg.Epoch {
				known = false
			}
		}
		for i, since := range pg.DirtySince {
			if since != 0 && known && t.Drives[pg.Drives[i]].State == cluster.DriveActive {
				out = append(out, DirtySlot{PG: pg.ID, Index: i, Drive: pg.Drives[i], Since: since, Epoch: pg.Epoch})
			}
		}
	}
	slices.SortFunc(out, func(a, b DirtySlot) int {
		if a.PG != b.PG {
			return int(int64(a.PG) - int64(b.PG))
		}
		return a.Index - b.Index
	})
	return out
}

// ClearDirty records that the drive of a slot holds all its shards: it clears
// DirtySince[index] and Previous[index] if the placement group is still at
// epoch. Conflict if it is not, or if the drive is down: begin again.
func (c *Controller) ClearDirty(ctx context.Context, pg storage.PGID, index int, epoch storage.Epoch) error {
	// Clearing keeps the epoch, so clears of one group must not overtake each other
	// between reading and writing its row.
	select {
	case c.clearing <- struct{}{}:
	case <-ctx.Done():
		return errs.Wrap(errs.Unavailable, "controller.clear", "", ctx.Err())
	}
	defer func() { <-c.clearing }()
	t, err := c.readTopology(ctx)
	if err != nil {
		return err
	}
	cur, ok := t.PGs[pg]
	if !ok || index < 0 || index >= len(cur.Drives) {
		return errs.Newf(errs.InvalidArgument, "controller.clear", "", "placement group %d has no shard %d", pg, index)
	}
	row := sysstate.PGToRow(&cur)
	row.DirtySince[index], row.Previous[index] = 0, nil
	_, err = c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_UpdatePg{UpdatePg: &metapb.UpdatePGOp{Pg: row, IfEpoch: uint64(epoch)}}})
	return err
}

// recordsOf are a topology's drives of this node.
func (c *Controller) recordsOf(t *cluster.Topology) []record {
	var recs []record
	for _, d := range t.Drives {
		if d.Node == c.cfg.Node {
			recs = append(recs, record{ID: d.ID, IDText: d.ID.String(), Zone: d.Zone, Path: d.Path, Label: d.Label, State: d.State})
		}
	}
	slices.SortFunc(recs, func(a, b record) int { return strings.Compare(a.IDText, b.IDText) })
	return recs
}

// saveRegistry takes over what the topology says, and has drives.json written if that changed anything. It waits for no disk.
func (c *Controller) saveRegistry() {
	t := c.Topology()
	recs := c.recordsOf(t)
	var groups []groupRecord
	for _, id := range slices.Sorted(maps.Keys(t.Groups)) {
		g := groupRecord{ID: id}
		for _, r := range t.Groups[id].Replicas {
			if r.Voter {
				g.Voters = append(g.Voters, r.Drive.String())
			}
		}
		groups = append(groups, g)
	}
	c.mu.Lock()
	old := c.mu.reg
	for i := range recs {
		if r := old.find(recs[i].ID); r != nil {
			recs[i].Starts, recs[i].Mount = r.Starts, r.Mount
		}
	}
	taken := map[string]bool{}
	for _, r := range recs {
		taken[r.Path] = taken[r.Path] || r.State == cluster.DriveActive
	}
	for _, r := range old.Drives { // opened, and not recorded yet
		_, known := t.Drives[r.ID]
		open := slices.ContainsFunc(c.slots, func(s *slot) bool { return s.drv != nil && s.id == r.ID })
		if !known && (open || !taken[r.Path]) { // or never: another drive has its slot
			r.Unrecorded = true
			recs = append(recs, r)
		}
	}
	next := registry{Format: 1, StoreID: t.StoreID, Drives: recs, Groups: groups}
	c.mu.regDirty = c.mu.regDirty || !next.equal(&old)
	dirty := c.mu.regDirty
	c.mu.reg = next
	c.mu.Unlock()
	if dirty {
		poke(c.regPoke)
	}
}

// registryLoop writes drives.json, the newest state only: a data folder that hangs holds up nothing else.
func (c *Controller) registryLoop(ctx context.Context) {
	for {
		select {
		case <-c.regPoke:
			c.flushRegistry()
		case <-ctx.Done():
			c.flushRegistry()
			return
		}
	}
}

// flushRegistry writes drives.json if it is not as it should be.
func (c *Controller) flushRegistry() {
	c.mu.Lock()
	dirty := c.mu.regDirty
	c.mu.Unlock()
	if dirty {
		c.writeRegistry()
	}
}

// writeRegistry writes drives.json. A data folder that cannot be written is
// told, and is no reason to stop a store whose drives are fine.
func (c *Controller) writeRegistry() {
	c.regMu.Lock()
	defer c.regMu.Unlock()
	c.mu.Lock()
	reg := c.mu.reg
	reg.Drives = slices.Clone(reg.Drives)
	c.mu.regDirty = false
	c.mu.Unlock()
	if err := writeJSON(c.cfg.FS, filepath.Join(c.cfg.DataDir, registryName), &reg); err != nil {
		c.mu.Lock()
		c.mu.regDirty = true
		c.mu.Unlock()
		c.note("registry", slog.LevelError, fmt.Sprintf("%s in the data folder cannot be written: %v", registryName, err))
		return
	}
	c.note("registry", slog.LevelInfo, "")
}

func (r *registry) equal(o *registry) bool {
	return r.StoreID == o.StoreID && slices.Equal(r.Drives, o.Drives) &&
		slices.EqualFunc(r.Groups, o.Groups, func(a, b groupRecord) bool { return a.ID == b.ID && slices.Equal(a.Voters, b.Voters) })
}

// DriveStatus is one drive of this node for people.
type DriveStatus struct {
	Drive   cluster.Drive // as recorded; zero ID if nothing is recorded in the slot
	Path    string        // the folder
	Open    bool
	Trouble string      // what is wrong and what to do next; empty if nothing is
	Starts  uint64      // start counter
	Stats   drive.Stats // if Open
}

// DriveStatus tells about every slot, in the order configured.
func (c *Controller) DriveStatus() []DriveStatus {
	t := c.Topology()
	out := make([]DriveStatus, len(c.slots))
	for i, s := range c.slots {
		c.mu.Lock()
		d, id, trouble, starts := s.drv, s.id, s.trouble, s.ident.Starts
		c.mu.Unlock()
		st := DriveStatus{Path: s.Path, Open: d != nil, Trouble: trouble, Starts: starts}
		if d != nil {
			st.Drive, st.Stats = t.Drives[id], d.Stats()
		} else if rec, ok := c.recorded(t, s); ok {
			st.Drive = rec
		}
		out[i] = st
	}
	return out
}
