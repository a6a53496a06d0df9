package sysstate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Store is the store's own row. NotFound before the store is born.
func Store(r pebble.Reader) (*metapb.SysStore, error) {
	st := &metapb.SysStore{}
	ok, err := get(r, key(kindStore), st)
	if err == nil && !ok {
		err = errs.New(errs.NotFound, "sysstate", "store", "the store is not initialised")
	}
	return st, err
}

// TimeMS is the group's time, unix ms.
func TimeMS(r pebble.Reader) (int64, error) {
	c := &metapb.GroupClock{}
	_, err := get(r, key(kindClock), c)
	return c.TimeMs, err
}

func emptyTopology(version uint64, store string) *cluster.Topology {
	return &cluster.Topology{
		Version: version,
		StoreID: store,
		Nodes:   map[cluster.NodeID]cluster.Node{},
		Drives:  map[storage.DriveID]cluster.Drive{},
		PGs:     map[storage.PGID]cluster.PG{},
		Groups:  map[cluster.GroupID]cluster.Group{},
	}
}

// frozen is r as of one moment, and what to call when done with it: over a store
// that changes meanwhile a row could name another that has just gone.
func frozen(r pebble.Reader) (pebble.Reader, func()) {
	db, ok := r.(*pebble.DB)
	if !ok {
		return r, func() {}
	}
	s := db.NewSnapshot()
	return s, func() { _ = s.Close() } // fails only if closed twice
}

// Topology reads the whole topology as of one moment. NotFound before the store is born.
func Topology(r pebble.Reader) (*cluster.Topology, error) {
	r, done := frozen(r)
	defer done()
	st, err := Store(r)
	if err != nil {
		return nil, err
	}
	t := emptyTopology(st.Version, st.Id)
	err = rows(r, kindNode, func() *metapb.SysNode { return &metapb.SysNode{} }, func(n *metapb.SysNode) error {
		c := NodeFromRow(n)
		t.Nodes[c.ID] = c
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = rows(r, kindDrive, func() *metapb.SysDrive { return &metapb.SysDrive{} }, func(d *metapb.SysDrive) error {
		c, err := driveFromRow(d)
		t.Drives[c.ID] = c
		return err
	})
	if err != nil {
		return nil, err
	}
	err = rows(r, kindPG, func() *metapb.SysPG { return &metapb.SysPG{} }, func(pg *metapb.SysPG) error {
		p, err := PGFromRow(pg)
		t.PGs[p.ID] = p
		return err
	})
	if err != nil {
		return nil, err
	}
	err = rows(r, kindGroup, func() *metapb.SysGroup { return &metapb.SysGroup{} }, func(g *metapb.SysGroup) error {
		c, err := GroupFromRow(g)
		t.Groups[c.ID] = c
		return err
	})
	return t, err
}

// driveFromRow decodes a drive.
func driveFromRow(d *metapb.SysDrive) (cluster.Drive, error) {
	id, ok := driveID(d.Id)
	if !ok {
		return cluster.Drive{}, corrupt(driveKey(d.Id), errors.New("bad drive id"))
	}
	return cluster.Drive{
		ID: id, Node: cluster.NodeID(d.Node), Zone: cluster.Zone(d.Zone), Path: d.Path,
		State: cluster.DriveState(d.State), DownSinceMS: d.DownSinceMs, Label: d.Label,
	}, nil
}

// PGFromRow decodes a placement group.
func PGFromRow(pg *metapb.SysPG) (cluster.PG, error) {
	p := cluster.PG{
		ID: storage.PGID(pg.Id), Scheme: storage.Scheme{K: uint8(pg.K), M: uint8(pg.M)},
		Class: storage.StorageClass(pg.StorageClass), Epoch: storage.Epoch(pg.Epoch),
	}
	if len(pg.Drives) != p.Scheme.Shards() || len(pg.Previous) != len(pg.Drives) || len(pg.DirtySince) != len(pg.Drives) {
		return p, corrupt(pgKey(pg.Id), errors.New("lists of different lengths"))
	}
	for i := range pg.Drives {
		id, ok := driveID(pg.Drives[i])
		if !ok {
			return p, corrupt(pgKey(pg.Id), fmt.Errorf("bad drive of shard %d", i))
		}
		prev, _ := driveID(pg.Previous[i]) // empty is none
		p.Drives = append(p.Drives, id)
		p.Previous = append(p.Previous, prev)
		p.DirtySince = append(p.DirtySince, storage.Epoch(pg.DirtySince[i]))
	}
	return p, nil
}

// PGToRow encodes a placement group for PutPGs and UpdatePG. Missing lists stay missing.
func PGToRow(p *cluster.PG) *metapb.SysPG {
	pg := &metapb.SysPG{
		Id: uint32(p.ID), K: uint32(p.Scheme.K), M: uint32(p.Scheme.M), StorageClass: string(p.Class), Epoch: uint64(p.Epoch),
	}
	for _, d := range p.Drives {
		pg.Drives = append(pg.Drives, slices.Clone(d[:]))
	}
	for _, d := range p.Previous {
		var b []byte
		if !d.IsZero() {
			b = slices.Clone(d[:])
		}
		pg.Previous = append(pg.Previous, b)
	}
	for _, e := range p.DirtySince {
		pg.DirtySince = append(pg.DirtySince, uint64(e))
	}
	return pg
}

// GroupFromRow decodes a Raft group.
func GroupFromRow(g *metapb.SysGroup) (cluster.Group, error) {
	c := cluster.Group{ID: cluster.GroupID(g.Id), Bounds: cluster.Bounds{Start: pos(g.Start), End: pos(g.End)}, Generation: g.Generation, Members: g.Members}
	for _, r := range g.Replicas {
		id, ok := driveID(r.Drive)
		if !ok {
			return c, corrupt(groupKey(g.Id), fmt.Errorf("bad drive of replica %s", r.Id))
		}
		c.Replicas = append(c.Replicas, cluster.Replica{ID: cluster.ReplicaID(r.Id), Drive: id, Voter: r.Voter, Lost: r.Lost})
	}
	return c, nil
}

// GroupToRow encodes a Raft group for PutGroup and InitStore; the system group counts Members itself.
func GroupToRow(c *cluster.Group) *metapb.SysGroup {
	g := &metapb.SysGroup{Id: uint64(c.ID), Start: posPB(c.Bounds.Start), End: posPB(c.Bounds.End), Generation: c.Generation}
	g.Replicas = ReplicasToRow(c.Replicas)
	return g
}

// ReplicasToRow encodes replicas for SetReplicas.
func ReplicasToRow(rs []cluster.Replica) (rows []*metapb.SysReplica) {
	for _, r := range rs {
		rows = append(rows, &metapb.SysReplica{Id: string(r.ID), Drive: slices.Clone(r.Drive[:]), Voter: r.Voter, Lost: r.Lost})
	}
	return rows
}

// DriveToRow encodes a drive with its start counter.
func DriveToRow(d *cluster.Drive, starts uint64) *metapb.SysDrive {
	return &metapb.SysDrive{
		Id: slices.Clone(d.ID[:]), Node: string(d.Node), Zone: string(d.Zone), Path: d.Path,
		State: uint32(d.State), DownSinceMs: d.DownSinceMS, Label: d.Label, Starts: starts,
	}
}

func pos(p *metapb.PosPB) cluster.Pos {
	return cluster.Pos{Bucket: storage.BucketID(p.GetBucket()), Key: storage.Key(p.GetKey())}
}

func posPB(p cluster.Pos) *metapb.PosPB {
	if p == (cluster.Pos{}) {
		return nil
	}
	return &metapb.PosPB{Bucket: uint64(p.Bucket), Key: []byte(p.Key)}
}

// DriveStarts is the highest start counter recorded of a drive, removed ones included. NotFound if the drive is unknown.
func DriveStarts(r pebble.Reader, id storage.DriveID) (uint64, error) {
	d := &metapb.SysDrive{}
	ok, err := get(r, driveKey(id[:]), d)
	if err == nil && !ok {
		err = errs.New(errs.NotFound, "sysstate", "drive "+id.String(), "not of this store")
	}
	return d.Starts, err
}

func bucketByName(r pebble.Reader, name string) (*metapb.SysBucket, error) {
	r, done := frozen(r)
	defer done()
	v, closer, err := r.Get(nameKey(name))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "sysstate", "bucket "+name, err)
	}
	defer closer.Close()
	if len(v) != 8 {
		return nil, corrupt(nameKey(name), errors.New("not a bucket id"))
	}
	return indexed(r, nameKey(name), v)
}

// indexed reads the bucket that the index row under k names. r must be of the moment at which that row was read.
func indexed(r pebble.Reader, k, v []byte) (*metapb.SysBucket, error) {
	if len(v) != 8 {
		return nil, corrupt(k, errors.New("not a bucket id"))
	}
	bk := &metapb.SysBucket{}
	ok, err := get(r, bucketKey(binary.BigEndian.Uint64(v)), bk)
	if err == nil && !ok {
		err = corrupt(k, errors.New("names a bucket that does not exist"))
	}
	return bk, err
}

// BucketByName is the bucket under a name, in whatever state. NoSuchBucket if there is none.
func BucketByName(r pebble.Reader, name string) (*metapb.SysBucket, error) {
	bk, err := bucketByName(r, name)
	if err == nil && bk == nil {
		err = errs.New(errs.NoSuchBucket, "bucket", name, "")
	}
	return bk, err
}

// BucketByID is the bucket with an id, in whatever state. NoSuchBucket if there is none.
func BucketByID(r pebble.Reader, id storage.BucketID) (*metapb.SysBucket, error) {
	bk := &metapb.SysBucket{}
	ok, err := get(r, bucketKey(uint64(id)), bk)
	if err == nil && !ok {
		err = errs.Newf(errs.NoSuchBucket, "bucket", "", "bucket %d does not exist", id)
	}
	if err != nil {
		return nil, err
	}
	return bk, nil
}

// ListBuckets are up to max of an owner's buckets whose names begin with prefix
// and come after after, in order of their names, and whether there are more. It
// reads only that owner's rows. Buckets that are still being created are left
// out: nobody was told that they exist. The rows come without tags, lifecycle rules, tiering and notifications, which might be long.
func ListBuckets(r pebble.Reader, owner, prefix, after string, max int) (page []*metapb.SysBucket, more bool, err error) {
	if owner == "" || len(owner) > nameBytesMax {
		return nil, false, nil
	}
	start, end := ownerSpan(owner, prefix)
	if after != "" {
		if k := append(ownerKey(owner, after), 0); bytes.Compare(k, start) > 0 {
			start = k
		}
	}
	if bytes.Compare(start, end) >= 0 {
		return nil, false, nil
	}
	r, done := frozen(r)
	defer done()
	err = scan(r, start, end, func(k, v []byte) (bool, error) {
		bk, err := indexed(r, k, v)
		if err != nil {
			return false, err
		}
		if bk.State == metapb.BucketState_BUCKET_CREATING {
			return true, nil
		}
		if len(page) >= max {
			more = true
			return false, nil
		}
		bare(bk)
		page = append(page, bk)
		return true, nil
	})
	return page, more, err
}

// bare takes away what may be long.
func bare(bk *metapb.SysBucket) {
	bk.Tags, bk.Lifecycle, bk.Tiering, bk.Notification = nil, nil, nil, nil
}

// ownerSpan are the index rows of an owner's buckets whose names begin with prefix.
func ownerSpan(owner, prefix string) (start, end []byte) {
	start = ownerKey(owner, prefix)
	return start, prefixEnd(start)
}

// PendingBuckets are up to max buckets with ids above after that are being
// created or deleted, or whose configuration is on its way to the ranges, in order of their ids, without tags, lifecycle rules, tiering and notifications: a worker finishes them.
func PendingBuckets(r pebble.Reader, after storage.BucketID, max int) (page []*metapb.SysBucket, err error) {
	r, done := frozen(r)
	defer done()
	_, end := kindSpan(kindPending)
	err = scan(r, pendingKey(uint64(after)+1), end, func(k, _ []byte) (bool, error) {
		if len(page) >= max {
			return false, nil
		}
		bk, err := indexed(r, k, k[2:])
		if err != nil {
			return false, err
		}
		bare(bk)
		page = append(page, bk)
		return true, nil
	})
	return page, err
}

// AllBuckets are up to max buckets with ids above after in whatever state, in order of their ids, without tags, lifecycle rules, tiering and notifications.
func AllBuckets(r pebble.Reader, after storage.BucketID, max int) (page []*metapb.SysBucket, err error) {
	_, end := kindSpan(kindBucket)
	err = scan(r, bucketKey(uint64(after)+1), end, func(k, v []byte) (bool, error) {
		if len(page) >= max {
			return false, nil
		}
		bk := &metapb.SysBucket{}
		if err := bk.UnmarshalVT(v); err != nil {
			return false, corrupt(k, err)
		}
		bare(bk)
		page = append(page, bk)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// LifecycleBuckets are up to max active buckets with ids above after that have lifecycle rules, in order of their ids. Each comes with its
// rules (up to 2 MiB) and the generation that they count as, as the state of r has them: who acts by rules that another copy of the state
// gave names that generation, and is refused if it is not the last.
func LifecycleBuckets(r pebble.Reader, after storage.BucketID, max int) (page []*metapb.SysBucket, err error) {
	r, done := frozen(r)
	defer done()
	_, end := kindSpan(kindLifecycle)
	err = scan(r, lifecycleKey(uint64(after)+1), end, func(k, _ []byte) (bool, error) {
		if len(page) >= max {
			return false, nil
		}
		bk, err := indexed(r, k, k[2:])
		if err == nil && bk.State == metapb.BucketState_BUCKET_ACTIVE {
			page = append(page, bk)
		}
		return true, err
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// CountBuckets is the number of buckets in whatever state. It reads a small row for each.
func CountBuckets(r pebble.Reader) (n int64, err error) {
	start, end := kindSpan(kindName)
	err = scan(r, start, end, func(_, _ []byte) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}
