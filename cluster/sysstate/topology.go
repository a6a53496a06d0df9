package sysstate

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

const (
	shardsMax   = 32   // as placement.ShardsMax: ChunkRef.missing has a bit per shard, Quorum room for 32
	pgsMax      = 2000 // of one command (design rule 11)
	drivesMax   = 4096 // of a store
	replicasMax = 64   // of a group
)

// Birth writes the first rows of a new store at group time timeMS: the system
// group's replicas start with them. PGs are numbered from 1 in the order given,
// at epoch 1. The same op and time give the same rows.
func Birth(b *pebble.Batch, op *metapb.InitStoreOp, timeMS int64) error {
	t := &tx{b: b, now: timeMS}
	if err := put(b, key(kindClock), &metapb.GroupClock{TimeMs: timeMS}); err != nil {
		return err
	}
	if err := t.birth(op); err != nil {
		var r *refusal
		if errors.As(err, &r) {
			return errs.New(r.kind, "sysstate.birth", op.GetStoreId(), r.detail)
		}
		return err
	}
	t.store.Version++
	return put(b, key(kindStore), t.store)
}

// birth only writes and never reads, because Birth's batch need not be indexed.
func (t *tx) birth(op *metapb.InitStoreOp) error {
	if op.GetStoreId() == "" || len(op.StoreId) > nameBytesMax || len(op.Drives) == 0 || len(op.Drives) > drivesMax || len(op.Pgs) > pgsMax {
		return refuse(errs.InvalidArgument, "a store needs an id and drives")
	}
	if err := checkBirthNodes(op); err != nil {
		return err
	}
	st := &metapb.SysStore{Format: 1, Id: op.StoreId, CreatedMs: t.now, NextBucket: 1, NextGroup: 1, NextPg: 1}
	known := map[storage.DriveID]bool{}
	for _, d := range op.Drives {
		id, err := checkDrive(d)
		if err != nil {
			return err
		}
		if known[id] {
			return refuse(errs.InvalidArgument, "drive %s is named twice", id)
		}
		known[id] = true
	}
	live := func(id storage.DriveID) error {
		if !known[id] {
			return refuse(errs.InvalidArgument, "drive %s is not of this store", id)
		}
		return nil
	}
	pgs := make([]*metapb.SysPG, len(op.Pgs))
	for i, pg := range op.Pgs {
		var err error
		if pgs[i], err = checkPG(pg, live); err != nil {
			return err
		}
		pgs[i].Id, pgs[i].Epoch = st.NextPg, 1
		st.NextPg++
	}
	seen := map[uint64]bool{}
	for _, g := range op.Groups {
		if err := checkGroup(g, live); err != nil {
			return err
		}
		if seen[g.Id] {
			return refuse(errs.InvalidArgument, "group %d is named twice", g.Id)
		}
		seen[g.Id] = true
		st.NextGroup = max(st.NextGroup, g.Id+1)
	}
	t.store, t.moved = st, true
	if err := t.birthNodes(op); err != nil {
		return err
	}
	for _, d := range op.Drives {
		d = d.CloneVT()
		d.State, d.DownSinceMs = uint32(cluster.DriveActive), 0
		if err := put(t.b, driveKey(d.Id), d); err != nil {
			return err
		}
	}
	for _, pg := range pgs {
		if err := put(t.b, pgKey(pg.Id), pg); err != nil {
			return err
		}
	}
	for _, g := range op.Groups {
		if err := put(t.b, groupKey(g.Id), g); err != nil {
			return err
		}
	}
	return nil
}

func checkDrive(d *metapb.SysDrive) (storage.DriveID, error) {
	id, ok := driveID(d.GetId())
	switch {
	case !ok:
		return id, refuse(errs.InvalidArgument, "a drive needs an id of 16 bytes")
	case d.Node == "" || d.Zone == "" || d.Path == "":
		return id, refuse(errs.InvalidArgument, "drive %s needs a node, a zone and a path", id)
	case len(d.Node) > nameBytesMax || len(d.Zone) > nameBytesMax || len(d.Label) > nameBytesMax || len(d.Path) > pathBytesMax:
		return id, refuse(errs.InvalidArgument, "drive %s: a name is too long", id)
	}
	return id, nil
}

// checkPG answers a copy of pg with all lists at full length. live refuses drives that cannot hold shards.
func checkPG(pg *metapb.SysPG, live func(storage.DriveID) error) (*metapb.SysPG, error) {
	n := int(pg.GetK()) + int(pg.GetM())
	switch {
	case pg.GetK() < 1 || pg.K > shardsMax || pg.M > shardsMax || n > shardsMax:
		return nil, refuse(errs.InvalidArgument, "scheme %d+%d is out of bounds", pg.GetK(), pg.GetM())
	case pg.StorageClass == "" || len(pg.StorageClass) > nameBytesMax:
		return nil, refuse(errs.InvalidArgument, "a placement group needs a storage class")
	case len(pg.Drives) != n:
		return nil, refuse(errs.InvalidArgument, "%d drives for scheme %d+%d", len(pg.Drives), pg.K, pg.M)
	case len(pg.Previous) != 0 && len(pg.Previous) != n, len(pg.DirtySince) != 0 && len(pg.DirtySince) != n:
		return nil, refuse(errs.InvalidArgument, "previous and dirty lists need %d entries", n)
	}
	pg = pg.CloneVT()
	if len(pg.Previous) == 0 {
		pg.Previous = make([][]byte, n)
	}
	if len(pg.DirtySince) == 0 {
		pg.DirtySince = make([]uint64, n)
	}
	seen := make(map[storage.DriveID]bool, n)
	for i, d := range pg.Drives {
		id, ok := driveID(d)
		if !ok {
			return nil, refuse(errs.InvalidArgument, "shard %d has no drive", i)
		}
		if seen[id] {
			return nil, refuse(errs.InvalidArgument, "drive %s is named twice", id)
		}
		seen[id] = true
		if err := live(id); err != nil {
			return nil, err
		}
		if _, ok := driveID(pg.Previous[i]); !ok && len(pg.Previous[i]) != 0 {
			return nil, refuse(errs.InvalidArgument, "previous drive of shard %d is malformed", i)
		}
	}
	return pg, nil
}

func checkGroup(g *metapb.SysGroup, live func(storage.DriveID) error) error {
	if g.GetId() == 0 || g.Id >= 1<<62 || len(g.Replicas) == 0 || len(g.Replicas) > replicasMax {
		return refuse(errs.InvalidArgument, "a group needs an id and replicas")
	}
	if len(g.GetStart().GetKey()) > storage.KeyBytesMax || len(g.GetEnd().GetKey()) > storage.KeyBytesMax {
		return refuse(errs.InvalidArgument, "the bounds of group %d are too long", g.Id)
	}
	ids := map[string]bool{}
	for _, r := range g.Replicas {
		d, ok := driveID(r.GetDrive())
		if !ok || r.Id == "" || len(r.Id) > nameBytesMax || ids[r.Id] {
			return refuse(errs.InvalidArgument, "group %d: every replica needs an id of its own and a drive", g.Id)
		}
		ids[r.Id] = true
		if err := live(d); err != nil {
			return err
		}
	}
	return nil
}

// drive reads a drive's row; nil if there is none.
func (t *tx) drive(id []byte) (*metapb.SysDrive, error) {
	d := &metapb.SysDrive{}
	if ok, err := get(t.b, driveKey(id), d); err != nil || !ok {
		return nil, err
	}
	return d, nil
}

// known is drive with a refusal for unknown and removed drives.
func (t *tx) known(id []byte) (*metapb.SysDrive, error) {
	did, ok := driveID(id)
	if !ok {
		return nil, refuse(errs.InvalidArgument, "not a drive id")
	}
	d, err := t.drive(id)
	switch {
	case err != nil:
		return nil, err
	case d == nil:
		return nil, refuse(errs.NotFound, "drive %s is not of this store", did)
	case d.State == uint32(cluster.DriveRemoved):
		return nil, refuse(errs.Foreign, "drive %s was removed from this store and never returns under its id", did)
	}
	return d, nil
}

// live is the check for drives that shards and replicas may be put on.
func (t *tx) live(id storage.DriveID) error {
	_, err := t.known(id[:])
	return err
}

// slotTaken refuses a new drive where another one is recorded.
func (t *tx) slotTaken(d *metapb.SysDrive, but []byte) error {
	n := 0
	err := rows(t.b, kindDrive, func() *metapb.SysDrive { return &metapb.SysDrive{} }, func(o *metapb.SysDrive) error {
		n++
		if o.State != uint32(cluster.DriveRemoved) && o.Node == d.Node && o.Path == d.Path && !sameDrive(o.Id, but) {
			return refuse(errs.Conflict, "drive %x is recorded at %s: replace it instead", o.Id, d.Path)
		}
		return nil
	})
	if err == nil && n >= drivesMax {
		err = refuse(errs.InvalidArgument, "a store has at most %d drives, removed ones included", drivesMax)
	}
	return err
}

func (t *tx) putDrive(d *metapb.SysDrive) error {
	id, err := checkDrive(d)
	if err != nil {
		return err
	}
	old, err := t.drive(d.Id)
	if err != nil {
		return err
	}
	if err := t.hostable(d, old == nil); err != nil {
		return err
	}
	if old == nil {
		if err := t.slotTaken(d, nil); err != nil {
			return err
		}
		d = d.CloneVT()
		d.State, d.DownSinceMs = uint32(cluster.DriveActive), 0
		t.moved = true
		return put(t.b, driveKey(d.Id), d)
	}
	if old.State == uint32(cluster.DriveRemoved) {
		return refuse(errs.Foreign, "drive %s was removed from this store and never returns under its id", id)
	}
	if old.Zone != d.Zone {
		return refuse(errs.Conflict, "drive %s belongs to zone %s: its shards were placed there", id, old.Zone)
	}
	if old.Node == d.Node && old.Path == d.Path && old.Label == d.Label {
		return nil
	}
	old.Node, old.Path, old.Label = d.Node, d.Path, d.Label
	t.moved = true
	return put(t.b, driveKey(d.Id), old)
}

func (t *tx) setDriveState(op *metapb.SetDriveStateOp) error {
	d, err := t.known(op.GetDrive())
	if err != nil {
		return err
	}
	to := cluster.DriveState(op.State)
	if op.State > 255 || to != cluster.DriveActive && to != cluster.DriveDown {
		return refuse(errs.InvalidArgument, "a drive is set active or down; ReplaceDrive removes it")
	}
	if d.State == op.State {
		return nil
	}
	if to == cluster.DriveActive {
		if n, err := t.node(d.Node); err != nil {
			return err
		} else if n != nil && n.State != uint32(cluster.NodeActive) {
			return refuse(errs.Conflict, "node %s is down, so its drives are", d.Node)
		}
	}
	t.moved = true
	return t.setDrives([]*metapb.SysDrive{d}, to)
}

// setDrives gives drives a state and their placement groups new epochs.
func (t *tx) setDrives(ds []*metapb.SysDrive, to cluster.DriveState) error {
	hits := map[string]bool{}
	for _, d := range ds {
		d.State, d.DownSinceMs = uint32(to), 0
		if to == cluster.DriveDown {
			d.DownSinceMs = t.now
		}
		hits[string(d.Id)] = true
		if err := put(t.b, driveKey(d.Id), d); err != nil {
			return err
		}
	}
	// A new epoch in both directions. Down: a resync that was under way no longer
	// counts, because it names the old epoch. Back: writers who still leave the
	// drive out are refused, so that a shard list read after every drive has this
	// epoch names all that the drive lacks.
	return t.eachPG(func(pg *metapb.SysPG) bool {
		hit := false
		for i, id := range pg.Drives {
			if hits[string(id)] {
				hit = true
				if to == cluster.DriveDown && pg.DirtySince[i] == 0 {
					pg.DirtySince[i] = pg.Epoch + 1
				}
			}
		}
		if hit {
			pg.Epoch++
		}
		return hit
	})
}

// eachPG writes back every PG that change answers true for.
func (t *tx) eachPG(change func(*metapb.SysPG) bool) error {
	var changed []*metapb.SysPG // written after the scan: its iterator does not see a moving batch
	err := rows(t.b, kindPG, func() *metapb.SysPG { return &metapb.SysPG{} }, func(pg *metapb.SysPG) error {
		if len(pg.Previous) != len(pg.Drives) || len(pg.DirtySince) != len(pg.Drives) {
			return corrupt(pgKey(pg.Id), errors.New("lists of different lengths"))
		}
		if change(pg) {
			changed = append(changed, pg)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, pg := range changed {
		if err := put(t.b, pgKey(pg.Id), pg); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) replaceDrive(op *metapb.ReplaceDriveOp) error {
	newID, err := checkDrive(op.GetNew())
	if err != nil {
		return err
	}
	oldID, ok := driveID(op.Old)
	if !ok || oldID == newID {
		return refuse(errs.InvalidArgument, "a drive is replaced by another one")
	}
	old, err := t.drive(op.Old)
	if err != nil {
		return err
	}
	if old == nil {
		return refuse(errs.NotFound, "drive %s is not of this store", oldID)
	}
	if cur, err := t.drive(op.New.Id); err != nil {
		return err
	} else if cur != nil {
		if old.State == uint32(cluster.DriveRemoved) && cur.State != uint32(cluster.DriveRemoved) && cur.Path == op.New.Path && cur.Node == op.New.Node {
			return nil // done before, by a controller that did not live to see the answer
		}
		return refuse(errs.Conflict, "drive %s is known already", newID)
	}
	if old.State == uint32(cluster.DriveRemoved) {
		return refuse(errs.Foreign, "drive %s was replaced before", oldID)
	}
	if old.Zone != op.New.Zone {
		return refuse(errs.InvalidArgument, "drive %s stands in zone %s: its replacement must, too", oldID, old.Zone)
	}
	if err := t.hostable(op.New, true); err != nil {
		return err
	}
	if err := t.slotTaken(op.New, op.Old); err != nil {
		return err
	}
	t.moved = true
	old.State, old.DownSinceMs = uint32(cluster.DriveRemoved), 0
	if err := put(t.b, driveKey(old.Id), old); err != nil {
		return err
	}
	fresh := op.New.CloneVT()
	fresh.State, fresh.DownSinceMs = uint32(cluster.DriveActive), 0
	if err := put(t.b, driveKey(fresh.Id), fresh); err != nil {
		return err
	}
	return t.eachPG(func(pg *metapb.SysPG) bool {
		hit := false
		for i := range pg.Drives {
			if sameDrive(pg.Drives[i], old.Id) {
				hit = true
				pg.Drives[i] = fresh.Id
				pg.DirtySince[i] = 1 // it has nothing
			}
			if sameDrive(pg.Previous[i], old.Id) {
				hit = true
				pg.Previous[i] = nil // nobody to ask there any more
			}
		}
		if hit {
			pg.Epoch++
		}
		return hit
	})
}

func (t *tx) driveStarted(op *metapb.DriveStartedOp) error {
	d, err := t.known(op.GetDrive())
	if err != nil {
		return err
	}
	if op.Starts <= d.Starts {
		return refuse(errs.Foreign, "drive %x says start %d, but start %d is recorded: it is an old image or a copy and must not act; empty its folder to use it as a new drive", d.Id, op.Starts, d.Starts)
	}
	d.Starts = op.Starts
	return put(t.b, driveKey(d.Id), d)
}

// pgShape is what makes two PGs the same to PutPGs.
func pgShape(pg *metapb.SysPG) string {
	return fmt.Sprintf("%q %d+%d %x", pg.StorageClass, pg.K, pg.M, pg.Drives)
}

func (t *tx) putPGs(pgs []*metapb.SysPG) error {
	if len(pgs) > pgsMax {
		return refuse(errs.InvalidArgument, "at most %d placement groups at once", pgsMax)
	}
	for i, pg := range pgs {
		if pg.GetId() != 0 {
			return refuse(errs.InvalidArgument, "placement group ids are given out, not chosen")
		}
		var err error
		if pgs[i], err = checkPG(pg, t.live); err != nil {
			return err
		}
	}
	have := map[string]uint32{}
	err := rows(t.b, kindPG, func() *metapb.SysPG { return &metapb.SysPG{} }, func(pg *metapb.SysPG) error {
		if s := pgShape(pg); have[s] == 0 {
			have[s] = pg.Id
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, pg := range pgs {
		s := pgShape(pg)
		if have[s] == 0 {
			pg.Id, pg.Epoch = t.store.NextPg, 1
			pg.Previous, pg.DirtySince = make([][]byte, len(pg.Drives)), make([]uint64, len(pg.Drives))
			if err := t.downSlots(pg); err != nil {
				return err
			}
			t.store.NextPg++
			t.moved = true
			have[s] = pg.Id
			if err := put(t.b, pgKey(pg.Id), pg); err != nil {
				return err
			}
		}
		t.res.PgIds = append(t.res.PgIds, have[s])
	}
	return nil
}

// downSlots marks the slots of drives that are down as lacking everything written from now on.
func (t *tx) downSlots(pg *metapb.SysPG) error {
	for i, id := range pg.Drives {
		d, err := t.drive(id)
		if err != nil {
			return err
		}
		if d.State == uint32(cluster.DriveDown) && pg.DirtySince[i] == 0 {
			pg.DirtySince[i] = pg.Epoch
		}
	}
	return nil
}

func (t *tx) updatePG(op *metapb.UpdatePGOp) error {
	cur := &metapb.SysPG{}
	if ok, err := get(t.b, pgKey(op.GetPg().GetId()), cur); err != nil {
		return err
	} else if !ok {
		return refuse(errs.NotFound, "placement group %d does not exist", op.GetPg().GetId())
	}
	pg, err := checkPG(op.Pg, t.live)
	switch {
	case err != nil:
		return err
	case cur.Epoch != op.IfEpoch:
		return refuse(errs.Conflict, "placement group %d is at epoch %d, not %d", cur.Id, cur.Epoch, op.IfEpoch)
	case pg.K != cur.K || pg.M != cur.M || pg.StorageClass != cur.StorageClass:
		return refuse(errs.InvalidArgument, "scheme and class of a placement group never change")
	}
	same, cleared := true, true
	for i := range pg.Drives {
		drive, prev, dirty := sameDrive(pg.Drives[i], cur.Drives[i]), sameDrive(pg.Previous[i], cur.Previous[i]), pg.DirtySince[i] == cur.DirtySince[i]
		same = same && drive && prev && dirty
		cleared = cleared && drive && (prev || len(pg.Previous[i]) == 0) && (dirty || pg.DirtySince[i] == 0)
		if !drive && pg.DirtySince[i] == 0 {
			return refuse(errs.InvalidArgument, "shard %d moves to another drive and must be marked dirty", i)
		}
		if pg.DirtySince[i] > cur.Epoch+1 {
			return refuse(errs.InvalidArgument, "shard %d is dirty since an epoch to come", i)
		}
		if drive && !dirty && pg.DirtySince[i] == 0 {
			if d, err := t.drive(pg.Drives[i]); err != nil {
				return err
			} else if d.State != uint32(cluster.DriveActive) {
				return refuse(errs.Conflict, "shard %d lies on a drive that is down: it cannot be in sync", i)
			}
		}
	}
	if same {
		return nil
	}
	pg.Epoch = cur.Epoch
	if !cleared {
		pg.Epoch++
	}
	t.moved = true
	return put(t.b, pgKey(pg.Id), pg)
}

func (t *tx) putGroup(g *metapb.SysGroup) error {
	// Replicas on removed drives may stay listed until the group has dropped them,
	// and raft's own configuration may name them: only unknown drives are refused.
	known := func(id storage.DriveID) error {
		d, err := t.drive(id[:])
		if err == nil && d == nil {
			err = refuse(errs.NotFound, "drive %s is not of this store", id)
		}
		return err
	}
	if err := checkGroup(g, known); err != nil {
		return err
	}
	cur := &metapb.SysGroup{}
	ok, err := get(t.b, groupKey(g.Id), cur)
	g = keepBounds(cur, g.CloneVT())
	g.Members = cur.Members
	if err != nil || ok && cur.EqualVT(g) {
		return err
	}
	g.Members++
	t.moved = true
	t.store.NextGroup = max(t.store.NextGroup, g.Id+1)
	return put(t.b, groupKey(g.Id), g)
}
