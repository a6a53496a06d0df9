package controller

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

// Slot is a configured place for one drive.
type Slot struct {
	Path  string // absolute
	Zone  cluster.Zone
	Label string // ssd, hdd, cold or empty
}

// Groups is the metadata plane: *multiraft.Host.
type Groups interface {
	AddDrive(d multiraft.Drive) error
	DropDrive(id storage.DriveID)
	Birth(g cluster.Group, birth func(b *pebble.Batch) error) error
	AddReplica(ctx context.Context, g cluster.GroupID, r cluster.Replica) error
	RemoveReplica(ctx context.Context, g cluster.GroupID, id cluster.ReplicaID) error
	Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error)
	Read(ctx context.Context, g cluster.GroupID, fn func(r pebble.Reader) error) error
	ReadSnapshot(ctx context.Context, g cluster.GroupID, fn func(r pebble.Reader, cut <-chan struct{}) error) error
	ReadLocal(g cluster.GroupID, fn func(r pebble.Reader) error) error
	WaitLeader(ctx context.Context, g cluster.GroupID) error
	Subscribe(g cluster.GroupID) (<-chan struct{}, func())
	DestroyReplica(g cluster.GroupID, id cluster.ReplicaID) error
	TransferLeader(ctx context.Context, g cluster.GroupID, to cluster.ReplicaID) error
	LeaderOf(g cluster.GroupID) (cluster.ReplicaID, bool)
	Status() []multiraft.GroupStatus
	Members(g cluster.GroupID) ([]cluster.Replica, error)
	Close() error
}

// Config of a Controller. DataDir, Slots, FS, Now, Rand and Groups are required.
type Config struct {
	DataDir string // absolute; made if missing
	Slots   []Slot
	Node    cluster.NodeID // "" is "node-1"
	Cluster *Cluster       // nil: this process is the whole store
	FS      vfsx.FS
	Now     func() time.Time
	Rand    io.Reader    // of ids; must not fail (crypto/rand.Reader)
	Logger  *slog.Logger // nil discards
	Groups  Groups       // the controller closes it, also when Open fails
	Voters  int          // voters of every group: 1, 3 or 5; 0 is as many as the drives can carry
	// Classes are the storage classes that placement groups are made for; nil is STANDARD.
	Classes []storage.StorageClass
	PGsMax  int // placement groups per class and scheme; 0 is 64
	// Drive completes how a drive is opened: caches, reserve, sizes. The controller has set file
	// system, folder, identity and OnFail. May be nil.
	Drive func(*drive.Config)

	Tick         time.Duration // between looks at a drive; 0 is 1 s
	HangAfter    time.Duration // a drive that does not answer a look for so long has failed; 0 is 10 s
	VoterGrace   time.Duration // a voter on a drive down for so long is re-placed; 0 is 10 min
	StartTimeout time.Duration // for the groups to find leaders at start; 0 is 1 min
	EpochWait    time.Duration // how long a publication waits for drives to persist epochs; 0 is 150 ms
}

// complete fills in defaults and checks what can be checked without looking at any disk.
func (c *Config) complete() error {
	if c.Cluster != nil {
		if err := c.completeCluster(); err != nil {
			return err
		}
	}
	if c.Node == "" {
		c.Node = "node-1"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Classes == nil {
		c.Classes = []storage.StorageClass{storage.Standard}
	}
	setDefault(&c.PGsMax, 64)
	setDefault(&c.Tick, time.Second)
	setDefault(&c.HangAfter, 10*time.Second)
	setDefault(&c.VoterGrace, 10*time.Minute)
	setDefault(&c.StartTimeout, time.Minute)
	setDefault(&c.EpochWait, 150*time.Millisecond)
	bad := func(format string, args ...any) error {
		return errs.Newf(errs.InvalidArgument, "start", "", format, args...)
	}
	if !filepath.IsAbs(c.DataDir) {
		return bad("the data folder %q is not an absolute path", c.DataDir)
	}
	c.DataDir = filepath.Clean(c.DataDir)
	if len(c.Slots) == 0 {
		return bad("no drive is configured")
	}
	c.Slots = append([]Slot(nil), c.Slots...)
	for i := range c.Slots {
		s := &c.Slots[i]
		if !filepath.IsAbs(s.Path) {
			return bad("drive %q: not an absolute path", s.Path)
		}
		if s.Zone == "" {
			return bad("drive %s: no zone", s.Path)
		}
		s.Path = filepath.Clean(s.Path)
		for _, o := range c.Slots[:i] {
			if s.Path == o.Path {
				return bad("the folder %s is configured twice: every drive needs a folder of its own", s.Path)
			}
			if within(s.Path, o.Path) || within(o.Path, s.Path) {
				return bad("the folders %s and %s lie within each other: every drive needs a folder of its own", o.Path, s.Path)
			}
		}
		if s.Path == c.DataDir || within(c.DataDir, s.Path) {
			return bad("the data folder %s cannot be a drive or lie in one: choose a folder below it, as in %s", c.DataDir, filepath.Join(c.DataDir, "drive-1"))
		}
	}
	return nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// within reports whether clean path p lies below dir.
func within(p, dir string) bool {
	return strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// slotName is how a slot's path is recorded: relative to the data folder if it lies below.
func (c *Config) slotName(path string) string {
	if within(path, c.DataDir) {
		return strings.TrimPrefix(path[len(c.DataDir):], "/")
	}
	return path
}

// slotPath is the folder that a recorded name stands for.
func (c *Config) slotPath(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.DataDir, name)
}

func (c *Config) random(p []byte) error {
	if _, err := io.ReadFull(c.Rand, p); err != nil {
		return fmt.Errorf("no random numbers: %w", err)
	}
	return nil
}
