package controller

import (
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/placement"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
)

// NewStateMachine makes the state machine of a group, for multiraft.Config.
func NewStateMachine(g cluster.GroupID) multiraft.StateMachine {
	if g == cluster.SystemGroup {
		return sysstate.New()
	}
	return rangestate.New(g)
}

func (c *Controller) intentPath() string { return filepath.Join(c.cfg.DataDir, intentName) }

// makeDrives draws the ids of a new store, or takes those drawn before a crash, and
// formats the drives. In three steps, each of which a restart finds done or not
// done: the intent, the drives, the word that all drives are formatted. Only then
// are groups born, so that a drive found empty after that has lost something.
func (c *Controller) makeDrives(sit *Situation) error {
	in := sit.intent
	if in == nil {
		var err error
		if in, err = c.draw(); err != nil {
			return err
		}
		for _, s := range c.slots { // before the first byte of a store is written
			if err := c.prepareFolder(s.Path); err != nil {
				return err
			}
		}
		if err := writeJSON(c.cfg.FS, c.intentPath(), in); err != nil {
			return errs.Wrap(errs.DriveFailed, "start", c.intentPath(), err)
		}
		sit.intent, sit.StoreID = in, in.StoreID
	}
	for i, s := range c.slots {
		f := &sit.Slots[i]
		d, err := in.drive(s.name)
		if err != nil {
			return err
		}
		if f.State == drive.Formatted {
			continue
		}
		f.Identity = drive.Identity{Format: 1, StoreID: in.StoreID, DriveID: d, Node: string(c.cfg.Node), Zone: string(s.Zone), Path: s.name}
		if err := c.prepareFolder(s.Path); err != nil {
			return err
		}
		if err := drive.Format(c.cfg.FS, s.Path, f.Identity); err != nil {
			return errs.Wrap(errs.KindOf(err), "start", s.Path, err)
		}
		f.State = drive.Formatted
	}
	if in.Formatted {
		return nil
	}
	in.Formatted = true
	return errs.Wrap(errs.DriveFailed, "start", c.intentPath(), writeJSON(c.cfg.FS, c.intentPath(), in))
}

// prepareFolder makes a drive's folder if it is missing and finds out whether it can be written.
func (c *Controller) prepareFolder(dir string) error {
	err := mkdir(c.cfg.FS, dir)
	if err == nil {
		err = probe(c.cfg.FS, dir)
	}
	if isPermission(err) {
		return errs.Newf(errs.AccessDenied, "start", dir, "no permission to write there: check owner and mode, and the user that cairn runs as (%v)", err)
	}
	return errs.Wrap(errs.DriveFailed, "start", dir, err)
}

// drive is the id drawn for a slot.
func (in *intent) drive(name string) (storage.DriveID, error) {
	for _, d := range in.Drives {
		if d.Path == name {
			return storage.ParseDriveID(d.ID)
		}
	}
	return storage.DriveID{}, errs.Newf(errs.Corrupt, "start", intentName, "no drive for slot %s", name)
}

// draw draws all ids of a new store.
func (c *Controller) draw() (*intent, error) {
	store, err := c.newID()
	if err != nil {
		return nil, err
	}
	in := &intent{Format: 1, StoreID: hex16(store), Node: c.cfg.Node, CreatedMS: c.cfg.Now().UnixMilli()}
	if cl := c.cfg.Cluster; cl != nil && cl.StoreID != "" {
		in.StoreID = cl.StoreID
	}
	var drives []cluster.Drive
	for _, s := range c.slots {
		id, err := c.newID()
		if err != nil {
			return nil, err
		}
		drives = append(drives, c.newDrive(s, id))
		in.Drives = append(in.Drives, intentDrive{ID: hex16(id), Path: s.name, Zone: s.Zone, Label: s.Label})
	}
	voters, _ := placement.Voters(drives, c.cfg.Voters)
	for _, g := range []cluster.GroupID{cluster.SystemGroup, cluster.FirstRange} {
		for _, d := range voters {
			id, err := c.newReplicaID(g)
			if err != nil {
				return nil, err
			}
			in.Replicas = append(in.Replicas, intentReplica{Group: g, ID: id, Drive: d.String()})
		}
	}
	return in, nil
}

// newDrive is a slot's drive as it is recorded first.
func (c *Controller) newDrive(s *slot, id storage.DriveID) cluster.Drive {
	return cluster.Drive{ID: id, Node: c.cfg.Node, Zone: s.Zone, Path: s.name, State: cluster.DriveActive, Label: s.Label}
}

func (c *Controller) newReplicaID(g cluster.GroupID) (cluster.ReplicaID, error) {
	var b [8]byte
	if err := c.cfg.random(b[:]); err != nil {
		return "", err
	}
	return cluster.MakeReplicaID(g, be64(b[:])), nil
}

// birth gives birth to the first groups on the drives, which are open. It may
// run again after a crash: replicas that exist stay as they are, the others have never acted.
func (c *Controller) birth(in *intent) error {
	op, groups, err := c.birthOp(in)
	if err != nil {
		return err
	}
	for _, g := range groups {
		err := c.cfg.Groups.Birth(g, func(b *pebble.Batch) error {
			if g.ID == cluster.SystemGroup {
				return sysstate.Birth(b, op, in.CreatedMS)
			}
			return rangestate.Birth(b, &metapb.RangeDescriptor{Format: 1, Group: uint64(g.ID)})
		})
		if err != nil {
			return errs.Wrap(errs.KindOf(err), "start", "first groups", err)
		}
	}
	return nil
}

// birthOp is the first content of the system group. The same intent gives the same op.
func (c *Controller) birthOp(in *intent) (*metapb.InitStoreOp, []cluster.Group, error) {
	op := &metapb.InitStoreOp{StoreId: in.StoreID}
	if cl := c.cfg.Cluster; cl != nil {
		// No more than the intent knows: a birth that is repeated must write the same.
		op.Nodes = []*metapb.SysNode{{Id: string(c.cfg.Node), Zone: string(cl.Zone)}}
	}
	var drives []cluster.Drive
	for _, d := range in.Drives {
		id, err := storage.ParseDriveID(d.ID)
		if err != nil {
			return nil, nil, err
		}
		drives = append(drives, cluster.Drive{ID: id, Node: c.cfg.Node, Zone: d.Zone, Path: d.Path, State: cluster.DriveActive, Label: d.Label})
	}
	for i := range drives {
		op.Drives = append(op.Drives, sysstate.DriveToRow(&drives[i], 0))
	}
	var groups []cluster.Group
	for _, g := range []cluster.GroupID{cluster.SystemGroup, cluster.FirstRange} {
		group := cluster.Group{ID: g}
		for _, r := range in.Replicas {
			if r.Group != g {
				continue
			}
			id, err := storage.ParseDriveID(r.Drive)
			if err != nil {
				return nil, nil, err
			}
			group.Replicas = append(group.Replicas, cluster.Replica{ID: r.ID, Drive: id, Voter: true})
		}
		groups = append(groups, group)
		op.Groups = append(op.Groups, sysstate.GroupToRow(&group))
	}
	pgs, err := c.planPGs(drives)
	op.Pgs = pgs
	return op, groups, err
}

// planPGs are the placement groups worth having for the classes in use on these drives.
func (c *Controller) planPGs(drives []cluster.Drive) ([]*metapb.SysPG, error) {
	var rows []*metapb.SysPG
	for _, class := range c.cfg.Classes {
		for _, small := range []bool{false, true} {
			plan, err := placement.PlanFor(class, drives, small)
			if err != nil {
				return nil, err
			}
			for _, pg := range placement.BuildPGs(plan, drives, c.cfg.PGsMax) {
				rows = append(rows, sysstate.PGToRow(&pg))
			}
		}
	}
	return rows, nil
}
