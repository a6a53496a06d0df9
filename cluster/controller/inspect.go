package controller

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
)

const identityFile = "drive.json" // of package drive, for people

// Kind is what a start is about to do.
type Kind uint8

// Kinds of start.
const (
	NewStore      Kind = 1 // nothing is there: a store is made
	ResumeStore   Kind = 2 // the making of a store was interrupted and goes on
	ExistingStore Kind = 3
)

// Found is what lies in a slot.
type Found struct {
	Slot
	State    drive.State
	Identity drive.Identity // if State is drive.Formatted
	Err      error          // the folder or its identity cannot be read: the drive starts as failed
	Unmount  bool           // the drive was a mount point, and nothing is mounted there now

	name string // as recorded, see Config.slotName
}

// Situation is what a start finds before it writes anything.
type Situation struct {
	Kind    Kind
	StoreID string // of an existing or interrupted store
	Slots   []Found
	// Refusals are why the start is refused, each with what to do; none means it is not.
	Refusals []string

	node     *NodeIdentity // of a node of a cluster that has joined or made its store
	intent   *intent
	stale    bool      // there is an intent, but its store was complete before it could be removed
	registry *registry // nil if there is none
	damaged  error     // there is one, but it cannot be read
}

// Err is the refusals as one error, or nil.
func (s *Situation) Err() error {
	if len(s.Refusals) == 0 {
		return nil
	}
	return errs.New(errs.InvalidArgument, "start", "", strings.Join(s.Refusals, "\n"))
}

// MustExist is Err, and an error for every start that would make a store, finish the
// making of one, or make a drive: of a complete store only recorded drives may be missing.
func (s *Situation) MustExist() error {
	if err := s.Err(); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return errs.Newf(errs.InvalidArgument, "open", "", format, args...)
	}
	switch s.Kind {
	case NewStore:
		var where []string
		for _, f := range s.Slots {
			where = append(where, f.Path)
		}
		return bad("there is no store here: none of the drives exists (%s). Give the data folder and the drives that the server is started with", strings.Join(where, ", "))
	case ResumeStore:
		return bad("the making of store %s was interrupted, nothing is stored yet: start the server to go on with it", s.StoreID)
	}
	for _, f := range s.Slots {
		if f.Err == nil && (f.State == drive.Empty || f.State == drive.Missing && !s.recorded(f.name)) {
			return bad("drive %s: the folder is empty, or none of this store has been there: opening it would make a new drive. Give the drives that the server is started with, or move the empty folder away", f.Path)
		}
	}
	return nil
}

// recorded reports whether the registry is there and has a drive in that slot.
func (s *Situation) recorded(name string) bool {
	return s.registry != nil && slices.ContainsFunc(s.registry.Drives, func(r record) bool {
		return r.Path == name && r.State != cluster.DriveRemoved
	})
}

func (s *Situation) refuse(format string, args ...any) {
	s.Refusals = append(s.Refusals, fmt.Sprintf(format, args...))
}

// Inspect looks at the data folder and all slots and says what a start would
// do. It writes nothing and takes no lock. An error means that cfg makes no
// sense or that the data folder cannot be read.
func Inspect(cfg Config) (*Situation, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return inspect(&cfg)
}

func inspect(cfg *Config) (*Situation, error) {
	s := &Situation{}
	var err error
	if cfg.Cluster != nil {
		if s.node, err = readNode(cfg.FS, cfg.DataDir); err != nil {
			return nil, err
		}
	}
	if s.intent, err = readIntent(cfg.FS, cfg.DataDir); err != nil {
		return nil, errs.Wrap(errs.KindOf(err), "start", cfg.DataDir, err)
	}
	if s.registry, err = readRegistry(cfg.FS, cfg.DataDir); err != nil {
		if !errs.Is(err, errs.Corrupt) {
			return nil, errs.Wrap(errs.KindOf(err), "start", cfg.DataDir, err)
		}
		// It is only a copy. But it proves that there is a store.
		s.registry, s.damaged = nil, err
	}
	if s.registry != nil || s.damaged != nil {
		s.intent, s.stale = nil, s.intent != nil
	}
	for _, slot := range cfg.Slots {
		s.Slots = append(s.Slots, look(cfg, slot, s.registry))
	}
	s.decide(cfg)
	s.checkSlots(cfg)
	switch {
	case len(s.Refusals) > 0:
	case s.Kind == ResumeStore:
		s.checkIntent(cfg)
	case s.Kind == ExistingStore && s.registry != nil:
		s.checkRecords(cfg, s.registry.Drives)
		s.checkQuorum(cfg)
	}
	return s, nil
}

// look reads one slot.
func look(cfg *Config, slot Slot, reg *registry) Found {
	f := Found{Slot: slot, name: cfg.slotName(slot.Path)}
	f.State, f.Identity, f.Err = drive.Inspect(cfg.FS, slot.Path)
	if f.Err == nil && f.State == drive.Empty && reg != nil {
		for _, r := range reg.Drives {
			if r.Mount && r.State != cluster.DriveRemoved && r.Path == cfg.slotName(slot.Path) && !isMount(cfg.FS, slot.Path) {
				f.State, f.Unmount = drive.Missing, true
			}
		}
	}
	return f
}

// decide finds the kind of start and the store.
func (s *Situation) decide(cfg *Config) {
	stores := map[string][]string{}
	for _, f := range s.Slots {
		if f.Err == nil && f.State == drive.Formatted {
			stores[f.Identity.StoreID] = append(stores[f.Identity.StoreID], f.Path)
		}
	}
	switch {
	case s.intent != nil:
		s.Kind, s.StoreID = ResumeStore, s.intent.StoreID
	case s.registry != nil:
		s.Kind, s.StoreID = ExistingStore, s.registry.StoreID
		if len(stores) == 0 && s.node == nil {
			var where []string
			for _, r := range s.registry.Drives {
				if r.State != cluster.DriveRemoved && !r.Unrecorded {
					where = append(where, cfg.slotPath(r.Path))
				}
			}
			s.refuse("none of the drives of store %s can be read; they were at %s: mount or restore them. To give the store up and begin a new one, remove %s",
				s.StoreID, strings.Join(where, ", "), filepath.Join(cfg.DataDir, registryName))
		}
	case len(stores) == 0 && s.damaged != nil && s.node == nil:
		s.Kind = ExistingStore
		s.refuse("there was a store here (%v), but none of its drives can be read: mount or restore them. To give the store up and begin a new one, remove %s",
			s.damaged, filepath.Join(cfg.DataDir, registryName))
	case s.node != nil:
		s.Kind, s.StoreID = ExistingStore, s.node.StoreID // its drives are made, or known, by the others
	case len(stores) == 0:
		s.Kind = NewStore
		for _, f := range s.Slots {
			if f.Err != nil {
				s.refuse("drive %s: cannot be read: %v", f.Path, f.Err)
			}
		}
	default:
		s.Kind = ExistingStore
		ids := make([]string, 0, len(stores))
		for id := range stores {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		s.StoreID = ids[0]
		if len(ids) > 1 {
			var lines []string
			for _, id := range ids {
				lines = append(lines, fmt.Sprintf("store %s: %s", id, strings.Join(stores[id], ", ")))
			}
			s.refuse("the drives belong to different stores; configure those of one store only:\n  %s", strings.Join(lines, "\n  "))
		}
	}
}

// checkSlots refuses what is wrong whatever the store has recorded.
func (s *Situation) checkSlots(cfg *Config) {
	where := map[storage.DriveID]string{}
	for i := range s.Slots {
		f := &s.Slots[i]
		if isPermission(f.Err) {
			s.refuse("drive %s: no permission to read it: check owner and mode, and the user that cairn runs as (%v)", f.Path, f.Err)
			continue
		}
		if f.Err != nil {
			continue
		}
		switch f.State {
		case drive.Missing:
			if s.Kind == NewStore {
				s.checkParent(cfg, f)
			}
		case drive.ForeignFiles:
			s.refuse("drive %s: the folder holds files that are not cairn's: choose an empty folder. If it was a drive of this store and its %s is lost, empty it, and it is filled again from the other drives", f.Path, identityFile)
		case drive.Formatted:
			id := f.Identity
			if first, ok := where[id.DriveID]; ok {
				s.refuse("drives %s and %s are copies of one drive (%s): a drive may exist once only; empty the folder of the copy", first, f.Path, id.DriveID.Short())
				continue
			}
			where[id.DriveID] = f.Path
			if why := driveNode(cfg, id); why != "" {
				s.refuse("drive %s %s", f.Path, why)
			}
			if id.StoreID != s.StoreID && (s.registry != nil || s.intent != nil || s.node != nil) {
				s.refuse("drive %s belongs to another store (%s, this one is %s): configure the right folder, or empty this one to use it here", f.Path, id.StoreID, s.StoreID)
			}
			if cluster.Zone(id.Zone) != f.Zone {
				s.refuse("drive %s stands in zone %q by the configuration, but it was made for zone %q (slot %s), where its data was placed: put it back, or configure it with zone=%s", f.Path, f.Zone, id.Zone, cfg.slotPath(id.Path), id.Zone)
			}
		}
	}
}

// checkParent refuses a missing folder that may not be made.
func (s *Situation) checkParent(cfg *Config, f *Found) {
	if f.Unmount || within(f.Path, cfg.DataDir) {
		return
	}
	if _, err := cfg.FS.Stat(filepath.Dir(f.Path)); errors.Is(err, fs.ErrNotExist) {
		s.refuse("drive %s: neither the folder nor its parent exists: is the disk mounted? Make the folder, or correct the path", f.Path)
	}
}

// checkIntent refuses to go on with the making of a store under another configuration.
func (s *Situation) checkIntent(cfg *Config) {
	giveUp := fmt.Sprintf("Nothing was stored yet: to begin anew, remove %s and empty the drives", filepath.Join(cfg.DataDir, intentName))
	byPath := map[string]intentDrive{}
	for _, d := range s.intent.Drives {
		byPath[cfg.slotPath(d.Path)] = d
	}
	for _, f := range s.Slots {
		d, ok := byPath[f.Path]
		delete(byPath, f.Path)
		switch {
		case !ok:
			s.refuse("drive %s: the making of store %s was interrupted, and this drive was not configured then: start with the same drives. %s", f.Path, s.StoreID, giveUp)
		case d.Zone != f.Zone:
			s.refuse("drive %s: the making of store %s was interrupted, and the drive was in zone %q then, not %q. %s", f.Path, s.StoreID, d.Zone, f.Zone, giveUp)
		case f.Err != nil:
			s.refuse("drive %s: cannot be read: %v", f.Path, f.Err)
		case f.State == drive.Formatted && f.Identity.DriveID.String() != d.ID:
			s.refuse("drive %s: holds another drive than the one that was being made there. %s", f.Path, giveUp)
		case f.State != drive.Formatted && s.intent.Formatted:
			s.refuse("drive %s: has lost its data while the store was being made. %s", f.Path, giveUp)
		}
	}
	for path := range byPath {
		s.refuse("drive %s: the making of store %s was interrupted and needs this drive: configure it. %s", path, s.StoreID, giveUp)
	}
	slices.Sort(s.Refusals)
}

// checkRecords compares the drives found with those that the store has recorded.
func (s *Situation) checkRecords(cfg *Config, recs []record) {
	byID := map[storage.DriveID]*record{}
	for i := range recs {
		byID[recs[i].ID] = &recs[i]
	}
	found, paths := map[storage.DriveID]bool{}, map[string]*Found{}
	for i := range s.Slots {
		f := &s.Slots[i]
		paths[cfg.slotName(f.Path)] = f
		if f.Err != nil || f.State != drive.Formatted {
			continue
		}
		id := f.Identity
		found[id.DriveID] = true
		r := byID[id.DriveID]
		switch {
		case r == nil: // new, or a replacement that was not recorded any more
		case r.Unrecorded && id.Starts >= r.Starts:
			delete(byID, id.DriveID) // nothing else is known of it
		case r.State == cluster.DriveRemoved:
			s.refuse("drive %s: holds drive %s, which was replaced by another one and never returns: empty the folder to use it as a new drive", f.Path, id.DriveID.Short())
		case r.Zone != f.Zone:
			s.refuse("drive %s stands in zone %q by the configuration, but drive %s belongs to zone %q (slot %s): put it back, or configure it with zone=%s", f.Path, f.Zone, id.DriveID.Short(), r.Zone, cfg.slotPath(r.Path), r.Zone)
		case id.Starts < r.Starts:
			s.refuse("drive %s: is an old image or a copy of drive %s (it counts %d starts, the store knows of %d), so what it says cannot be trusted: empty the folder, and it is filled again from the other drives", f.Path, id.DriveID.Short(), id.Starts, r.Starts)
		}
	}
	for _, r := range recs {
		if r.State == cluster.DriveRemoved || r.Unrecorded {
			continue
		}
		f := paths[r.Path]
		if f != nil {
			delete(paths, r.Path) // what remains are slots that never had a drive
		}
		if found[r.ID] {
			continue
		}
		switch {
		case f == nil:
			s.refuse("drive %s of this store (zone %q, slot %s) is not configured: configure it again, even if the drive is lost, for a drive cannot be retired yet; an empty folder there makes a new one take its place", r.ID.Short(), r.Zone, cfg.slotPath(r.Path))
		case f.Zone != r.Zone:
			s.refuse("drive %s stands in zone %q by the configuration, but the store has a drive of zone %q there: correct the zone", f.Path, f.Zone, r.Zone)
		case f.Err != nil || f.State != drive.Formatted:
		case byID[f.Identity.DriveID] == nil || byID[f.Identity.DriveID].Path == r.Path: // made to take its place
		default:
			s.refuse("drive %s of this store (zone %q) is missing: its slot %s holds drive %s, which belongs at %s: put that one back", r.ID.Short(), r.Zone, f.Path, f.Identity.DriveID.Short(), cfg.slotPath(byID[f.Identity.DriveID].Path))
		}
	}
	for i := range s.Slots {
		if f := &s.Slots[i]; paths[cfg.slotName(f.Path)] == f && f.Err == nil && f.State == drive.Missing {
			s.checkParent(cfg, f)
		}
	}
}

// checkQuorum refuses a start that could not find a leader.
func (s *Situation) checkQuorum(cfg *Config) {
	if cfg.Cluster != nil {
		return // the others may have one
	}
	here := map[string]bool{}
	for _, f := range s.Slots {
		if f.Err == nil && f.State == drive.Formatted {
			here[f.Identity.DriveID.String()] = true
		}
	}
	for _, g := range s.registry.Groups {
		var missing []string
		for _, v := range g.Voters {
			if here[v] {
				continue
			}
			name := v
			if id, err := storage.ParseDriveID(v); err == nil {
				if r := s.registry.find(id); r != nil {
					name = fmt.Sprintf("%s (zone %q)", cfg.slotPath(r.Path), r.Zone)
				}
			}
			missing = append(missing, name)
		}
		if len(missing) > 0 && len(missing) >= len(g.Voters)-len(g.Voters)/2 {
			s.refuse("%d of %d copies of the metadata (group %d) are missing, no majority is left; bring back: %s", len(missing), len(g.Voters), g.ID, strings.Join(missing, ", "))
			return // the other groups say the same
		}
	}
}
