package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
)

// slot is a configured place and what is going on there. The fields below the
// line are guarded by Controller.mu, but drv and trouble before the loops start.
type slot struct {
	Slot
	index int
	name  string        // as recorded
	poke  chan struct{} // wakes the slot's loop

	empty   int          // looks in a row that found the folder empty; slot loop only
	retryAt time.Time    // not to be opened before; slot loop only
	backoff int          // opens that failed in a row; slot loop only
	since   atomic.Int64 // unix ns of the start of a check that has not ended; 0 is none

	drv     *drive.Drive    // open; nil if not
	id      storage.DriveID // of drv, or of the drive that was open here last
	ident   drive.Identity
	lock    io.Closer
	raft    bool                           // drv was handed to the metadata plane
	start   *metapb.SysCommand             // DriveStarted that is not recorded yet
	late    bool                           // a start was answered TooLate: nobody knows whether it was recorded
	pending *metapb.SysCommand             // PutDrive or ReplaceDrive that is not recorded yet
	epochs  map[storage.PGID]storage.Epoch // that drv has persisted
	closing chan struct{}                  // closed when the drive that was open here last is closed
	fail    error                          // why that one failed
	gone    bool                           // since then the folder was seen without it, so opening it again is fine
	trouble string                         // why there is no drive, for people; empty if all is well
}

// openSlot opens the formatted drive in the slot and hands it to the planes. The
// data plane sees it once the topology names it. Errors: Busy and AccessDenied
// (the lock), else what drive.Open and AddDrive answer.
func (c *Controller) openSlot(s *slot, ident drive.Identity) (err error) {
	lock, err := lockDir(c.cfg.FS, s.Path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	ident.Starts++
	if err := drive.WriteIdentity(c.cfg.FS, s.Path, ident); err != nil {
		return err
	}
	c.recordLocally(s, ident)
	cfg := drive.Config{FS: c.cfg.FS, Dir: s.Path, Identity: ident, Logger: c.log}
	if c.cfg.Drive != nil {
		c.cfg.Drive(&cfg)
	}
	cfg.OnFail = func(error) { poke(s.poke) }
	d, err := drive.Open(cfg)
	if err != nil {
		return err
	}
	if err := c.addToGroups(s, ident, d); err != nil {
		d.Close()
		return err
	}
	c.mu.Lock()
	if c.mu.closed { // Close gave up waiting for us
		c.mu.Unlock()
		c.cfg.Groups.DropDrive(ident.DriveID)
		d.Close()
		return errs.New(errs.Closed, "open", s.Path, "")
	}
	s.drv, s.id, s.ident, s.lock, s.raft = d, ident.DriveID, ident, lock, true
	s.epochs = map[storage.PGID]storage.Epoch{}
	s.fail, s.gone, s.trouble = nil, false, ""
	s.start, s.late, s.pending = startCommand(ident), false, nil
	c.mu.Unlock()
	c.note("slot "+s.name, slog.LevelInfo, "")
	// A drive takes appends only to groups whose epoch it was told since its start.
	// Nobody writes to it yet, so there is time; what changes meanwhile follows under the lock.
	c.pushEpochs(c.Topology(), []*slot{s}, epochsFirst)
	c.publishing <- struct{}{}
	defer func() { <-c.publishing }()
	c.pushEpochs(c.Topology(), []*slot{s}, c.cfg.EpochWait)
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.drv != d {
		return nil // failed already
	}
	c.changeStores(func(open map[storage.DriveID]*drive.Drive) { open[ident.DriveID] = d })
	return nil
}

// startCommand is what records a drive's start.
func startCommand(ident drive.Identity) *metapb.SysCommand {
	return &metapb.SysCommand{Op: &metapb.SysCommand_DriveStarted{DriveStarted: &metapb.DriveStartedOp{Drive: ident.DriveID[:], Starts: ident.Starts}}}
}

// changeStores replaces the map of open drives by a changed copy. The caller holds c.mu.
func (c *Controller) changeStores(change func(map[storage.DriveID]*drive.Drive)) {
	open := maps.Clone(*c.stores.Load())
	change(open)
	c.stores.Store(&open)
}

// epochsFirst is how long a drive that was just opened has to persist epochs.
const epochsFirst = 5 * time.Second

// addToGroups hands the drive to the metadata plane, which puts damaged stores
// aside by itself: the group loop replaces the replicas that were in them.
func (c *Controller) addToGroups(s *slot, ident drive.Identity, d *drive.Drive) error {
	return c.cfg.Groups.AddDrive(multiraft.Drive{
		ID: ident.DriveID, Zone: s.Zone, FS: c.cfg.FS, Dir: s.Path,
		Check: d.Check, Space: d.Space,
		Fail: func(err error) {
			d.Fail(err)
			poke(s.poke)
		},
	})
}

// recordLocally writes a drive's start counter into the registry, before the
// drive acts. While a new store is made there is no registry: its existence means that the store is complete.
func (c *Controller) recordLocally(s *slot, ident drive.Identity) {
	mount := isMount(c.cfg.FS, s.Path)
	c.mu.Lock()
	reg := registry{Drives: slices.Clone(c.mu.reg.Drives)}
	r := reg.find(ident.DriveID)
	if r == nil {
		reg.Drives = append(reg.Drives, record{ID: ident.DriveID, IDText: ident.DriveID.String(), Zone: s.Zone, State: cluster.DriveActive, Unrecorded: true})
		r = &reg.Drives[len(reg.Drives)-1]
	}
	r.Starts, r.Mount, r.Path = max(r.Starts, ident.Starts), mount, s.name
	c.mu.reg.Drives = reg.Drives
	making := c.mu.making
	c.mu.Unlock()
	if !making {
		c.writeRegistry()
	}
}

// failSlot drops the slot's drive because of err. It does not block.
func (c *Controller) failSlot(s *slot, d *drive.Drive, err error) {
	c.mu.Lock()
	if s.drv != d || d == nil {
		c.mu.Unlock()
		return
	}
	id, lock, done := s.id, s.lock, make(chan struct{})
	s.drv, s.lock, s.raft, s.start, s.pending, s.epochs = nil, nil, false, nil, nil, nil
	// A drive whose files were not found was taken away; one that only took too long had no error.
	s.fail, s.gone, s.closing = err, errors.Is(err, fs.ErrNotExist) || errs.Is(err, errs.Timeout), done
	s.trouble = fmt.Sprintf("failed: %v", err)
	line := s.trouble
	c.changeStores(func(open map[storage.DriveID]*drive.Drive) {
		if open[id] == d {
			delete(open, id)
		}
	})
	c.mu.Unlock()
	d.Fail(err)
	c.cfg.Groups.DropDrive(id)
	c.closes.Go(func() {
		d.Close()
		lock.Close()
		close(done)
		poke(s.poke)
	})
	c.note("slot "+s.name, slog.LevelError, line)
	poke(c.poked)
}

func (c *Controller) setTrouble(s *slot, err error, format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	c.mu.Lock()
	s.trouble = line
	if err != nil {
		s.fail = err
	}
	c.mu.Unlock()
	c.note("slot "+s.name, slog.LevelError, line)
}

// watchSlot is a slot's loop: all input and output on the folder happens here.
func (c *Controller) watchSlot(ctx context.Context, s *slot) {
	timer := time.NewTimer(c.cfg.Tick)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.poke:
		}
		c.step(ctx, s)
		timer.Reset(c.cfg.Tick)
	}
}

// step looks at the slot once.
func (c *Controller) step(ctx context.Context, s *slot) {
	c.mu.Lock()
	d, closing := s.drv, s.closing
	c.mu.Unlock()
	if d != nil {
		err := d.Failed()
		if err == nil {
			s.since.Store(time.Now().UnixNano())
			err = d.Check()
			s.since.Store(0)
		}
		if err != nil {
			c.failSlot(s, d, err)
		}
		return
	}
	if closing != nil {
		select {
		case <-closing:
		default:
			return // the old one still holds its files
		}
	}
	c.mu.Lock()
	reg := registry{Drives: slices.Clone(c.mu.reg.Drives)}
	c.mu.Unlock()
	f := look(&c.cfg, s.Slot, &reg)
	if f.Err != nil || f.State != drive.Empty {
		s.empty = 0
	}
	if f.Err != nil || f.State != drive.Formatted {
		c.mu.Lock()
		s.gone = true
		c.mu.Unlock()
	}
	switch {
	case f.Err != nil:
		c.setTrouble(s, nil, "cannot be read: %v. Repair the disk, or put an empty one there to have a new drive filled", f.Err)
	case f.Unmount:
		c.setTrouble(s, nil, "nothing is mounted there: mount the disk")
	case f.State == drive.Missing:
		c.stepMissing(s)
	case f.State == drive.ForeignFiles:
		c.setTrouble(s, nil, "the folder holds files but no drive.json: bring the drive back, or empty the folder to have a new drive filled there")
	case f.State == drive.Empty:
		if s.empty++; s.empty < 2 {
			return
		}
		c.stepEmpty(ctx, s)
	default:
		c.stepFormatted(ctx, s, f.Identity)
	}
}

// stepMissing makes the folder of a slot that never had a drive.
func (c *Controller) stepMissing(s *slot) {
	if _, ok := c.recorded(c.Topology(), s); ok {
		c.setTrouble(s, nil, "the folder is missing: bring the drive back, or make an empty folder there to have a new drive filled")
		return
	}
	if _, err := c.cfg.FS.Stat(filepath.Dir(s.Path)); err != nil && !within(s.Path, c.cfg.DataDir) {
		c.setTrouble(s, nil, "neither the folder nor its parent exists: is the disk mounted?")
		return
	}
	if err := c.prepareFolder(s.Path); err != nil {
		c.setTrouble(s, nil, "the folder cannot be made: %v", err)
		return
	}
	poke(s.poke)
}

// recorded is the drive that the topology has in the slot, and that is not open in another one.
func (c *Controller) recorded(t *cluster.Topology, s *slot) (cluster.Drive, bool) {
	for _, d := range t.SortedDrives() {
		if d.Node == c.cfg.Node && d.Path == s.name && !c.openElsewhere(d.ID, s) {
			return d, true
		}
	}
	return cluster.Drive{}, false
}

func (c *Controller) openElsewhere(id storage.DriveID, s *slot) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.slots {
		if o != s && o.drv != nil && o.id == id {
			return true
		}
	}
	return false
}

// stepEmpty makes a new drive in an empty folder: one more, or in place of the one recorded there.
func (c *Controller) stepEmpty(ctx context.Context, s *slot) {
	if time.Now().Before(s.retryAt) {
		return
	}
	t, err := c.readTopology(ctx)
	if err != nil {
		return // no leader now; the folder waits
	}
	old, replaces := c.recorded(t, s)
	if replaces && old.State != cluster.DriveDown {
		poke(c.poked) // recorded first, replaced then
		return
	}
	if replaces && old.Zone != s.Zone {
		c.setTrouble(s, nil, "the drive recorded here stands in zone %q, not %q: correct the configuration", old.Zone, s.Zone)
		return
	}
	id, err := c.newID()
	if err != nil {
		c.setTrouble(s, nil, "%v", err)
		return
	}
	ident := drive.Identity{Format: 1, StoreID: t.StoreID, DriveID: id, Node: string(c.cfg.Node), Zone: string(s.Zone), Path: s.name}
	if err := drive.Format(c.cfg.FS, s.Path, ident); err != nil {
		c.failOpen(s, "an empty folder, but it cannot be made a drive", err)
		return
	}
	c.log.Info("made a new drive in an empty folder", "drive", storage.DriveID(id).Short(), "path", s.Path)
	c.adopt(s, t, ident)
}

// stepFormatted opens a drive that came back, or says why not.
func (c *Controller) stepFormatted(ctx context.Context, s *slot, ident drive.Identity) {
	if time.Now().Before(s.retryAt) {
		return
	}
	t, err := c.readTopology(ctx)
	if err != nil {
		// Without a leader nothing new is let in, but a known drive may be what a majority needs.
		if t = c.Topology(); t.Drives[ident.DriveID].ID.IsZero() {
			return
		}
	}
	rec, known := t.Drives[ident.DriveID]
	c.mu.Lock()
	failed := s.fail != nil && s.id == ident.DriveID && !s.gone
	known1 := c.mu.reg.find(ident.DriveID)
	var starts uint64
	if known1 != nil {
		starts = known1.Starts
	}
	c.mu.Unlock()
	switch {
	case failed && !c.indexToRebuild(s):
		return // its trouble is told already
	case ident.StoreID != t.StoreID:
		c.setTrouble(s, nil, "belongs to another store (%s): bring back the right drive, or empty the folder", ident.StoreID)
	case cluster.Zone(ident.Zone) != s.Zone || known && rec.Zone != s.Zone:
		c.setTrouble(s, nil, "drive %s was made for zone %q (slot %s): put it back there", ident.DriveID.Short(), ident.Zone, c.cfg.slotPath(ident.Path))
	case driveNode(&c.cfg, ident) != "":
		c.setTrouble(s, nil, "holds drive %s, which %s", ident.DriveID.Short(), driveNode(&c.cfg, ident))
	case c.openElsewhere(ident.DriveID, s):
		c.setTrouble(s, nil, "is a copy of drive %s, which is in use elsewhere: empty the folder", ident.DriveID.Short())
	case known && rec.State == cluster.DriveRemoved:
		c.setTrouble(s, nil, "holds drive %s, which was replaced and never returns: empty the folder to use it as a new drive", ident.DriveID.Short())
	case ident.Starts < starts:
		c.setTrouble(s, nil, "is an old image or a copy of drive %s (it counts %d starts, the store knows of %d): empty the folder", ident.DriveID.Short(), ident.Starts, starts)
	case known && rec.Node != c.cfg.Node:
		c.setTrouble(s, nil, "holds drive %s of node %s", ident.DriveID.Short(), rec.Node)
	case !known:
		if old, ok := c.recorded(t, s); ok && old.State != cluster.DriveDown {
			poke(c.poked)
			return
		}
		c.adopt(s, t, ident)
	default:
		if err := c.openSlot(s, ident); err != nil {
			c.failOpen(s, "came back, but does not open", err)
			return
		}
		s.backoff = 0
		c.log.Info("a drive is back", "drive", ident.DriveID.Short(), "path", s.Path)
		if rec.Path != s.name || rec.Label != s.Label {
			c.setPending(s, &metapb.SysCommand{Op: &metapb.SysCommand_PutDrive{PutDrive: &metapb.PutDriveOp{Drive: c.driveRow(s, ident)}}})
		}
		poke(c.poked)
	}
}

// indexToRebuild reports whether the drive failed only because its index was
// rotten, and has left word to build it anew: that needs no more than opening it again.
func (c *Controller) indexToRebuild(s *slot) bool {
	_, err := c.cfg.FS.Stat(filepath.Join(s.Path, "index.rebuild")) // see package drive
	return err == nil
}

// adopt opens a formatted drive that the system group does not know and has it recorded.
func (c *Controller) adopt(s *slot, t *cluster.Topology, ident drive.Identity) {
	if err := c.openSlot(s, ident); err != nil {
		c.failOpen(s, "a new drive, but it does not open", err)
		return
	}
	s.backoff, s.empty = 0, 0
	c.mu.Lock()
	row := c.driveRow(s, s.ident)
	c.mu.Unlock()
	cmd := &metapb.SysCommand{Op: &metapb.SysCommand_PutDrive{PutDrive: &metapb.PutDriveOp{Drive: row}}}
	if old, ok := c.recorded(t, s); ok {
		cmd.Op = &metapb.SysCommand_ReplaceDrive{ReplaceDrive: &metapb.ReplaceDriveOp{Old: old.ID[:], New: row}}
	}
	c.setPending(s, cmd)
	poke(c.poked)
}

func (c *Controller) setPending(s *slot, cmd *metapb.SysCommand) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.pending = cmd
}

// driveRow is the row of an open drive as of the start before: this one is recorded by itself (startCommand).
func (c *Controller) driveRow(s *slot, ident drive.Identity) *metapb.SysDrive {
	d := c.newDrive(s, ident.DriveID)
	return sysstate.DriveToRow(&d, max(ident.Starts, 1)-1)
}

// failOpen notes an open that failed and waits longer before each next try, up to a minute.
func (c *Controller) failOpen(s *slot, what string, err error) {
	wait := min(time.Minute, c.cfg.Tick<<min(s.backoff, 6))
	s.backoff++
	s.retryAt = time.Now().Add(wait)
	c.setTrouble(s, nil, "%s: %v", what, err)
}
