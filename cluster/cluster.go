// Package cluster is the vocabulary of cairn's topology: nodes, zones, drives,
// Raft groups, ranges and placement groups. It imports only the standard
// library and package storage.
package cluster

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"cairn/storage"
)

// NodeID is a node's name, unique in the cluster.
type NodeID string

// Zone is a failure domain's name.
type Zone string

// GroupID names a Raft group.
type GroupID uint64

// Well-known groups.
const (
	SystemGroup GroupID = 1 // everything that is not per object
	FirstRange  GroupID = 2 // the range a store starts with; later ones are given out by the system group
)

// ReplicaID names one replica of one group on one drive incarnation; it is also
// the replica's Raft server id and address (design rules 1 and 4). Never used again
// once the replica lost any of its term, vote, log or state.
type ReplicaID string

// MakeReplicaID makes an id from 8 random bytes.
func MakeReplicaID(g GroupID, random uint64) ReplicaID {
	return ReplicaID(fmt.Sprintf("g%d-%016x", g, random))
}

// DriveState is what the system group has recorded about a drive.
type DriveState uint8

// Drive states.
const (
	DriveActive  DriveState = 1 // reads and writes
	DriveDown    DriveState = 2 // recorded as failed, missing or unreachable; its shards count as lost until it returns
	DriveRemoved DriveState = 3 // gone for good (replaced or retired); its id never returns
)

func (s DriveState) String() string {
	switch s {
	case DriveActive:
		return "active"
	case DriveDown:
		return "down"
	case DriveRemoved:
		return "removed"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// NodeState is what the system group has recorded about a node.
type NodeState uint8

// Node states.
const (
	NodeActive  NodeState = 1
	NodeDown    NodeState = 2 // silent for longer than its session lasts; it returns by itself
	NodeRemoved NodeState = 3 // left for good; its name is free for a new node
)

func (s NodeState) String() string {
	switch s {
	case NodeActive:
		return "active"
	case NodeDown:
		return "down"
	case NodeRemoved:
		return "removed"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Node is one process of the cluster.
type Node struct {
	ID          NodeID
	Zone        Zone
	Addresses   []string // host:port where other nodes reach it, best first; empty in a store of one process
	State       NodeState
	DownSinceMS int64  // group time of the system group, unix ms; 0 unless down
	Version     string // of its software, for people
	Leaving     bool   // gets nothing new; removed once nothing lies there
}

// Drive is one directory on one file system, the unit that fails.
type Drive struct {
	ID          storage.DriveID
	Node        NodeID
	Zone        Zone
	Path        string // the directory on its node, the slot a replacement drive takes over
	State       DriveState
	DownSinceMS int64  // range time of the system group, unix ms; 0 unless down
	Label       string // ssd, hdd, cold or empty
}

// PG is a placement group: shard i of every chunk in it lies on Drives[i].
type PG struct {
	ID     storage.PGID
	Scheme storage.Scheme
	Class  storage.StorageClass // the target it was planned for
	Epoch  storage.Epoch
	Drives []storage.DriveID // len = Scheme.Shards()
	// Previous[i] is the drive that held shard i before the current move, or zero.
	// Readers try it until the move is done (design rule 16).
	Previous []storage.DriveID
	// DirtySince[i] is the epoch since which Drives[i] lacks shards and must be
	// resynchronised from the others; 0 is in sync.
	DirtySince []storage.Epoch
}

// Topology is an immutable snapshot of what the system group has recorded. Share it freely; never change it.
type Topology struct {
	Version uint64 // rises with every change
	StoreID string
	Nodes   map[NodeID]Node // empty in a store that one process made and no node ever joined
	Drives  map[storage.DriveID]Drive
	PGs     map[storage.PGID]PG
	Groups  map[GroupID]Group
}

// Zones are the names of the zones with at least one drive that is not removed, sorted.
func (t *Topology) Zones() []Zone {
	var zs []Zone
	for _, d := range t.Drives {
		if d.State != DriveRemoved && !slices.Contains(zs, d.Zone) {
			zs = append(zs, d.Zone)
		}
	}
	slices.Sort(zs)
	return zs
}

// ZoneDown reports whether every drive of the zone that is not removed is recorded as down.
func (t *Topology) ZoneDown(z Zone) bool {
	any := false
	for _, d := range t.Drives {
		if d.Zone != z || d.State == DriveRemoved {
			continue
		}
		if d.State == DriveActive {
			return false
		}
		any = true
	}
	return any
}

// SortedNodes are the nodes that are not removed, by name.
func (t *Topology) SortedNodes() []Node {
	var ns []Node
	for _, n := range t.Nodes {
		if n.State != NodeRemoved {
			ns = append(ns, n)
		}
	}
	sort.Slice(ns, func(i, j int) bool { return ns[i].ID < ns[j].ID })
	return ns
}

// SortedDrives are the drives that are not removed, by zone, node and path.
func (t *Topology) SortedDrives() []Drive {
	var ds []Drive
	for _, d := range t.Drives {
		if d.State != DriveRemoved {
			ds = append(ds, d)
		}
	}
	sort.Slice(ds, func(i, j int) bool {
		a, b := ds[i], ds[j]
		if a.Zone != b.Zone {
			return a.Zone < b.Zone
		}
		if a.Node != b.Node {
			return a.Node < b.Node
		}
		return a.Path < b.Path
	})
	return ds
}

// Pos is a place in the ordered object key space: (bucket, key).
type Pos struct {
	Bucket storage.BucketID
	Key    storage.Key
}

// Compare orders positions by bucket, then by the key's bytes.
func (p Pos) Compare(o Pos) int {
	if p.Bucket != o.Bucket {
		if p.Bucket < o.Bucket {
			return -1
		}
		return 1
	}
	return strings.Compare(string(p.Key), string(o.Key))
}

// Bounds is the half-open interval [Start, End); a zero End is the end of the key space.
type Bounds struct{ Start, End Pos }

// Contains reports whether p lies in the bounds.
func (b Bounds) Contains(p Pos) bool {
	return p.Compare(b.Start) >= 0 && (b.End == Pos{} || p.Compare(b.End) < 0)
}

// Group is what the system group has recorded about a Raft group.
type Group struct {
	ID       GroupID
	Bounds   Bounds // of a range; zero for the system group
	Replicas []Replica
	// Generation counts the changes of a range's bounds: those of a lower one never replace those of a higher.
	Generation uint64
	Members    uint64 // counts the changes of Replicas
}

// Replica is one member of a group.
type Replica struct {
	ID    ReplicaID
	Drive storage.DriveID
	Voter bool
	Lost  bool // its node says that it never acts again under its id (design rule 1)
}
