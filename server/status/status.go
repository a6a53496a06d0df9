// Package status is what a running cairn says of itself, in words that people
// and programs read: 'cairn status' prints it, the admin API sends it as JSON,
// metrics are drawn from it. It imports only the standard library.
package status

import "time"

// Status is one look at a node and the cluster as it sees it. Fields may be
// added; none changes its meaning. Lists are in a stable order.
type Status struct {
	Version    string      `json:"version"`
	StoreID    string      `json:"store_id"`
	Node       string      `json:"node"`
	Started    time.Time   `json:"started"`
	S3         string      `json:"s3"`               // address of the S3 API, with scheme
	Ready      bool        `json:"ready"`            // serves reads and writes
	NotReady   string      `json:"why,omitempty"`    // why not, for people
	Topology   uint64      `json:"topology"`         // version; rises with every change
	Usage      Usage       `json:"usage"`            // of the whole store
	Nodes      []Node      `json:"nodes,omitempty"`  // of a cluster, by zone and name
	Zones      []Zone      `json:"zones"`            // by name
	Drives     []Drive     `json:"drives"`           // by zone, node and path
	Groups     []Group     `json:"groups"`           // by id
	PGs        []PGs       `json:"placement_groups"` // per class and scheme
	Plans      []Plan      `json:"plans"`            // what each storage class came down to
	Proof      Proof       `json:"zone_proof"`
	Redundancy Redundancy  `json:"redundancy"`
	Lifecycle  *Lifecycle  `json:"lifecycle,omitempty"` // of this node
	Events     []EventLoad `json:"events,omitempty"`    // what waits in the ranges that are led on this node; the rest of each is in Events
	// Retrieved is how many bytes this node has read since its start of versions in the storage classes where S3 charges for that, by class.
	Retrieved map[string]int64 `json:"retrieved,omitempty"`
	Warnings  []string         `json:"warnings,omitempty"` // what an operator should act on, each with the next step
}

// Usage is what the store holds for its users.
type Usage struct {
	Buckets int64 `json:"buckets"`
	Objects int64 `json:"objects"` // current versions
	Bytes   int64 `json:"bytes"`   // of them, as the users count

	Classes []ClassUsage `json:"classes,omitempty"`
	Partial bool         `json:"partial,omitempty"` // some ranges could not be read: the sums are too low
}

// Node is one process of a cluster.
type Node struct {
	Name      string     `json:"name"`
	Zone      string     `json:"zone"`
	State     string     `json:"state"`             // "active" or "down", as the system group recorded it
	Trouble   string     `json:"trouble,omitempty"` // why it does not answer or does not serve, as seen from here now; what a leaving one still holds
	DownSince *time.Time `json:"down_since,omitempty"`
	Addresses []string   `json:"addresses"`
	Version   string     `json:"version,omitempty"`
}

// Zone is one failure domain.
type Zone struct {
	Name       string `json:"name"`
	State      string `json:"state"` // "up", "degraded" (some drives down) or "down" (all)
	Drives     int    `json:"drives"`
	Active     int    `json:"active"`
	BytesTotal int64  `json:"bytes_total"`
	BytesFree  int64  `json:"bytes_free"`
}

// Drive is one folder on one file system.
type Drive struct {
	ID           string     `json:"id"`
	Node         string     `json:"node"`
	Zone         string     `json:"zone"`
	Path         string     `json:"path"`
	Label        string     `json:"label,omitempty"`
	State        string     `json:"state"`             // "active", "down" or "removed", as the system group recorded it
	Trouble      string     `json:"trouble,omitempty"` // what is wrong and what to do next
	DownSince    *time.Time `json:"down_since,omitempty"`
	BytesTotal   int64      `json:"bytes_total"` // of the file system
	BytesFree    int64      `json:"bytes_free"`
	BytesLive    int64      `json:"bytes_live"` // of shards
	BytesDead    int64      `json:"bytes_dead"` // removed, but not yet given back to the file system
	Shards       int64      `json:"shards"`
	Extents      int64      `json:"extents"`
	BelowReserve bool       `json:"below_reserve"` // takes no more data, only removals
}

// Group is one Raft group.
type Group struct {
	ID       uint64    `json:"id"`
	Role     string    `json:"role"`             // "system" or "range"
	Leader   string    `json:"leader,omitempty"` // replica id; empty while there is none
	Term     uint64    `json:"term"`
	Voters   int       `json:"voters"`
	Survives string    `json:"survives"` // what the metadata survives, for people
	Trouble  string    `json:"trouble,omitempty"`
	Replicas []Replica `json:"replicas"`
}

// Replica is one copy of a group's metadata.
type Replica struct {
	ID      string `json:"id"`
	Drive   string `json:"drive"` // drive id
	Node    string `json:"node,omitempty"`
	Zone    string `json:"zone"`
	Voter   bool   `json:"voter"`
	State   string `json:"state"` // "leader", "follower", "catching up", "stopped", "not reached" (its node does not answer)
	Applied uint64 `json:"applied"`
}

// PGs sums up the placement groups of one class and scheme.
type PGs struct {
	Class    string `json:"class"`
	Scheme   string `json:"scheme"` // "3+3"
	Count    int    `json:"count"`
	Healthy  int    `json:"healthy"`  // every drive active and in sync
	Degraded int    `json:"degraded"` // some are not, but writes go on
	Refused  int    `json:"refused"`  // cannot take a durable write now
}

// Plan is what a storage class came down to with the drives at hand.
type Plan struct {
	Class    string  `json:"class"`
	Target   string  `json:"target"`        // what the class means to survive
	Survives string  `json:"survives"`      // what it does survive here
	Scheme   string  `json:"scheme"`        // of large data
	Small    string  `json:"small"`         // of small data
	Overhead float64 `json:"overhead"`      // bytes on drives for a byte of large data
	Met      bool    `json:"met"`           // Survives is all of Target
	Why      string  `json:"why,omitempty"` // what is missing if not
}

// Proof is the audit of the placement groups: no zone holds more shards than the code can lose.
type Proof struct {
	OK         bool     `json:"ok"`
	Line       string   `json:"line"` // the whole in one line, for people
	Violations []string `json:"violations,omitempty"`
}

// Redundancy is what is still to do until everything has all its shards and nothing else takes space.
type Redundancy struct {
	DirtySlots    int        `json:"dirty_slots"`         // drives in placement groups that lack shards
	RepairQueue   int64      `json:"repair_queue"`        // chunks known to lack a shard
	Repaired      int64      `json:"repaired"`            // shards rebuilt since the start
	Repairing     string     `json:"repairing,omitempty"` // what repair does now, with its estimate, and what it could not do yet
	GarbageQueue  int64      `json:"garbage_queue"`       // removed writes whose chunks still take space
	GarbageOldest *time.Time `json:"garbage_oldest,omitempty"`
}
