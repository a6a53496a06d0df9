package controller

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
)

// proposeTimeout bounds one command of the loops, so that one without a leader holds up the others only so long.
const proposeTimeout = 5 * time.Second

// Controller is a running node's hold on its drives and the topology. Its
// methods are safe for concurrent use.
type Controller struct {
	cfg  Config
	log  *slog.Logger
	meta *metaclient.Client
	lock io.Closer // of the data folder

	topology atomic.Pointer[cluster.Topology]
	stores   atomic.Pointer[map[storage.DriveID]*drive.Drive] // open drives; replaced, never changed
	ready    chan struct{}

	// Of a node of a cluster.
	cl    clustered
	peers peerTable
	table sessions

	slots   []*slot
	poked   chan struct{} // wakes the main loop
	regPoke chan struct{} // wakes the registry loop
	cancel  context.CancelFunc
	loops   sync.WaitGroup // slot, main and group loops
	closes  sync.WaitGroup // closings of failed drives, which may hang

	regMu sync.Mutex // held over writing the registry
	// Full while held: mutexes would not do, since others wait for a drive or a leader in them.
	clearing   chan struct{} // over a ClearDirty
	publishing chan struct{} // over pushing epochs and publishing, and over adding a drive to stores

	mu struct { // guards what follows and the shared fields of slots
		sync.Mutex
		reg      registry
		regDirty bool
		notes    map[string]string // what was logged last, by subject
		subs     map[int]chan struct{}
		nextSub  int
		making   bool // a new store, not complete yet
		isReady  bool // ready is closed
		lease    lease
		downs    map[cluster.NodeID]time.Time // nodes that are down, and when that was first seen here
		closed   bool
	}

	planned string                          // the drives that placement groups were planned for last; main loop only
	stopped map[cluster.ReplicaID]time.Time // replicas that stopped on drives that are well; group loop only
	strays  map[cluster.ReplicaID]int       // looks in a row that found a replica here unrecorded; group loop only
	leading map[cluster.GroupID]leading     // groups that are led here; group loop only
	missing map[cluster.ReplicaID]time.Time // recorded here, but not here, since; group loop only
	moving  map[cluster.GroupID]move        // moves under way; group loop only
	moved   chan moved                      // their ends, for the group loop
	aside   map[asideKey]time.Time          // where no replica could be made, since; group loop only
}

// clustered is what a node of a cluster is.
type clustered struct {
	identity    NodeIdentity  // changed by start and main loop only
	incarnation []byte        // 16 bytes drawn for this process
	call        chan struct{} // full while somebody calls for a session (no mutex: fake time stands still on those)
	gone        bool          // a goodbye was said; guarded by call
	grown       time.Time     // when the drives changed last; main loop only
	drives      string        // those; main loop only
}

// Open makes or opens the store that cfg describes and starts to watch over it.
// It returns when the store is ready: both first groups have leaders and the topology is
// published. A refusal (see Situation) is InvalidArgument; a second process is
// Busy; a store without a majority is Unavailable. Nothing runs after an error.
// ctx is only for the start.
//
// A node of a cluster waits for nobody: it is open once its own drives are, and ready (Ready, NotReady) when the others are there.
func Open(ctx context.Context, cfg Config) (*Controller, error) {
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

// New makes a controller that knows nothing yet and does nothing, so that what needs
// it can be put together before Start. Start or Close must follow. After an error cfg.Groups is closed.
func New(cfg Config) (*Controller, error) {
	if err := cfg.complete(); err != nil {
		if cfg.Groups != nil {
			cfg.Groups.Close()
		}
		return nil, err
	}
	c := &Controller{cfg: cfg, log: cfg.Logger, ready: make(chan struct{}), poked: make(chan struct{}, 1), regPoke: make(chan struct{}, 1), cancel: func() {}}
	c.stopped, c.strays, c.leading = map[cluster.ReplicaID]time.Time{}, map[cluster.ReplicaID]int{}, map[cluster.GroupID]leading{}
	c.missing, c.aside = map[cluster.ReplicaID]time.Time{}, map[asideKey]time.Time{}
	c.moving, c.moved = map[cluster.GroupID]move{}, make(chan moved, movesMax)
	c.peers.nodes, c.peers.replicas = map[cluster.NodeID]*peer{}, map[cluster.ReplicaID]cluster.NodeID{}
	c.mu.notes = map[string]string{}
	c.mu.downs = map[cluster.NodeID]time.Time{}
	c.mu.subs = map[int]chan struct{}{}
	c.stores.Store(&map[storage.DriveID]*drive.Drive{})
	c.topology.Store(&cluster.Topology{})
	c.clearing, c.publishing, c.cl.call = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	var propose metaclient.Groups = cfg.Groups
	if cfg.Cluster != nil {
		id, err := c.newID()
		if err != nil {
			cfg.Groups.Close()
			return nil, err
		}
		c.cl.incarnation = id[:]
		propose = proposals{cfg.Groups, cfg.Cluster.Proposer}
	}
	c.meta = metaclient.New(metaclient.Config{
		Groups: propose, Topology: c.Topology, Now: cfg.Now, Rand: cfg.Rand, Timeout: proposeTimeout,
	})
	for i, s := range cfg.Slots {
		c.slots = append(c.slots, &slot{Slot: s, index: i, name: cfg.slotName(s.Path), poke: make(chan struct{}, 1)})
	}
	return c, nil
}

// Start is the second half of Open. After an error the controller is closed.
func (c *Controller) Start(ctx context.Context) error {
	if err := c.start(ctx); err != nil {
		if cerr := c.Close(); cerr != nil {
			c.log.Warn("giving up the start", "err", cerr)
		}
		return err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	for _, s := range c.slots {
		c.loops.Go(func() { c.watchSlot(run, s) })
	}
	c.loops.Go(func() { c.mainLoop(run) })
	c.loops.Go(func() { c.groupLoop(run) })
	c.loops.Go(func() { c.registryLoop(run) })
	if c.cfg.Cluster == nil {
		c.readyOnce()
		return nil
	}
	c.loops.Go(func() { c.sessionLoop(run) })
	c.loops.Go(func() { c.leadLoop(run) })
	c.loops.Go(func() { c.leaveLoop(run) })
	return nil
}

// proposals goes to the group's leader wherever it is; reads are those of this process.
type proposals struct {
	Groups
	to Proposer
}

func (p proposals) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	return p.to.Propose(ctx, g, data)
}

func (c *Controller) readyOnce() {
	if c.cfg.Cluster != nil && c.Topology().Version == 0 {
		return // it comes, and then the next session
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.isReady {
		c.mu.isReady = true
		close(c.ready)
	}
}

// start brings the store up without any loop running.
func (c *Controller) start(ctx context.Context) error {
	if err := mkdir(c.cfg.FS, c.cfg.DataDir); err != nil {
		return errs.Wrap(errs.AccessDenied, "start", c.cfg.DataDir, err)
	}
	var err error
	if c.lock, err = lockDir(c.cfg.FS, c.cfg.DataDir); err != nil {
		return err
	}
	if c.cfg.Cluster != nil {
		return c.startNode(ctx)
	}
	if _, err := inspectNode(&c.cfg); err != nil {
		return err
	}
	return c.startStore(ctx)
}

// startStore makes or opens a store all of which is in this process.
func (c *Controller) startStore(ctx context.Context) error {
	sit, err := inspect(&c.cfg)
	if err != nil {
		return err
	}
	if err := sit.Err(); err != nil {
		return err
	}
	if sit.Kind != ExistingStore {
		if err := c.makeDrives(sit); err != nil {
			return err
		}
	}
	if err := c.openFound(sit); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.StartTimeout)
	defer cancel()
	if sit.intent != nil {
		if err := c.birth(sit.intent); err != nil {
			return err
		}
	}
	if err := c.waitLeaders(ctx); err != nil {
		return err
	}
	t, err := c.readTopology(ctx)
	if err != nil {
		return err
	}
	if sit.Kind == ExistingStore {
		// The registry may have been lost or be older than the last changes.
		sit.checkRecords(&c.cfg, c.recordsOf(t))
		if err := sit.Err(); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.mu.making = false
	c.mu.Unlock()
	for _, s := range c.slots {
		if err := c.recordStart(ctx, s); refused(err) {
			return err
		} else if err != nil {
			c.noteRecord(ctx, s, err) // the main loop goes on with it
		}
		if rec, ok := t.Drives[s.id]; ok && s.drv != nil && (rec.Path != s.name || rec.Label != s.Label) {
			c.log.Info("a drive has moved", "drive", s.id.Short(), "from", rec.Path, "to", s.name)
			c.setPending(s, &metapb.SysCommand{Op: &metapb.SysCommand_PutDrive{PutDrive: &metapb.PutDriveOp{Drive: c.driveRow(s, s.ident)}}})
		}
	}
	c.refresh(ctx)
	c.flushRegistry() // before the intent goes
	if c.Topology().Version == 0 {
		return errs.New(errs.Unavailable, "start", "", "the topology cannot be read")
	}
	if c.cfg.Cluster != nil {
		if err := c.putCA(ctx); err != nil {
			return err
		}
		if err := c.nodeMade(t.StoreID); err != nil {
			return err
		}
	}
	if sit.intent != nil {
		c.log.Info("new store", "store", sit.intent.StoreID, "drives", len(sit.intent.Drives))
		return errs.Wrap(errs.DriveFailed, "start", c.cfg.DataDir, removeFile(c.cfg.FS, c.intentPath()))
	}
	c.dropIntent(sit)
	return nil
}

// dropIntent removes an intent that outlived the making of its store: without drives.json
// beside it a later start would give birth anew to replicas that a drive has lost (design rule 1).
func (c *Controller) dropIntent(sit *Situation) {
	if !sit.stale {
		return
	}
	if err := removeFile(c.cfg.FS, c.intentPath()); err != nil {
		c.noteErr("intent", fmt.Sprintf("%s in the data folder is left over and cannot be removed: remove it (%v)", intentName, err))
	}
}

// openFound opens the formatted drives, side by side. One that fails to open is
// left to its loop, if the metadata plane can do without.
func (c *Controller) openFound(sit *Situation) error {
	c.mu.Lock() // other nodes may ask already
	c.mu.reg.Format, c.mu.reg.StoreID, c.mu.making = 1, sit.StoreID, sit.intent != nil
	if sit.registry != nil {
		c.mu.reg = *sit.registry
	}
	c.mu.Unlock()
	var wg sync.WaitGroup
	failed := make([]error, len(c.slots))
	for i, s := range c.slots {
		f := sit.Slots[i]
		if f.Err != nil {
			s.fail = f.Err
			s.trouble = fmt.Sprintf("cannot be read: %v. Repair the disk, or put an empty one there to have a new drive filled", f.Err)
			continue
		}
		if f.State != drive.Formatted {
			continue
		}
		wg.Go(func() {
			if failed[i] = c.openSlot(s, f.Identity); failed[i] != nil {
				c.setTrouble(s, failed[i], "does not open: %v", failed[i])
			}
		})
	}
	wg.Wait()
	for i, s := range c.slots {
		if err := failed[i]; err != nil {
			if errs.Is(err, errs.Busy) || errs.Is(err, errs.AccessDenied) || sit.intent != nil {
				return err // somebody else's, or no store yet
			}
			c.note("slot "+s.name, slog.LevelError, s.trouble)
		}
	}
	return nil
}

func (c *Controller) waitLeaders(ctx context.Context) error {
	for _, g := range []cluster.GroupID{cluster.SystemGroup, cluster.FirstRange} {
		if err := c.cfg.Groups.WaitLeader(ctx, g); err != nil {
			var bad []string
			for _, s := range c.slots {
				if s.drv == nil {
					bad = append(bad, s.Path)
				}
			}
			what := "all configured drives are there"
			if len(bad) > 0 {
				what = "these drives are not there: " + strings.Join(bad, ", ")
			}
			return &errs.Error{Kind: errs.Unavailable, Op: "start", Err: err,
				Detail: fmt.Sprintf("group %d of the metadata finds no leader, because too few of its copies can be reached; %s", g, what)}
		}
	}
	return nil
}

// Close stops watching, then the metadata plane, then the drives. It waits for
// a drive that hangs for a bounded time only.
func (c *Controller) Close() error {
	c.mu.Lock()
	if c.mu.closed {
		c.mu.Unlock()
		return nil
	}
	c.mu.closed = true
	if c.mu.lease.end != nil {
		c.mu.lease.end.Stop()
	}
	c.mu.Unlock()
	if c.cfg.Cluster != nil {
		c.goodbye()
	}
	c.cancel()
	done := make(chan struct{})
	go func() { c.loops.Wait(); close(done) }() // ends with the loops; a hung drive may keep one
	c.waitBounded(done, "loops")
	err := c.cfg.Groups.Close()
	c.mu.Lock()
	c.stores.Store(&map[storage.DriveID]*drive.Drive{})
	for _, s := range c.slots {
		if d := s.drv; d != nil {
			s.drv = nil
			lock := s.lock
			c.closes.Go(func() {
				if cerr := d.Close(); cerr != nil && d.Failed() == nil {
					c.log.Error("closing a drive", "drive", s.Path, "err", cerr)
				}
				lock.Close()
			})
		}
	}
	c.mu.Unlock()
	done = make(chan struct{})
	go func() { c.closes.Wait(); close(done) }() // likewise
	c.waitBounded(done, "drives")
	if c.lock != nil {
		err = errors.Join(err, c.lock.Close())
	}
	return err
}

// waitBounded waits for done, but not for ever on a hung drive.
func (c *Controller) waitBounded(done <-chan struct{}, what string) {
	timer := time.NewTimer(c.cfg.HangAfter)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		c.log.Error("a drive hangs: not waiting for it any longer", "what", what)
	}
}

// Ready is closed once the store is ready.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// NotReady says for people why the store does not serve reads and writes now; empty if it does.
func (c *Controller) NotReady() string {
	if c.cfg.Cluster != nil {
		return c.notReadyNode()
	}
	select {
	case <-c.ready:
	default:
		return "the store is starting"
	}
	leads := map[cluster.GroupID]bool{}
	for _, g := range c.cfg.Groups.Status() {
		leads[g.Group] = g.Leader != ""
	}
	for id := range c.Topology().Groups {
		if !leads[id] {
			return fmt.Sprintf("group %d of the metadata has no leader: too few of its copies can be reached", id)
		}
	}
	return ""
}

// Topology is the newest topology published; never nil. It is immutable.
func (c *Controller) Topology() *cluster.Topology { return c.topology.Load() }

// Store is a drive of this node as the data plane sees it, or nil if it is failed,
// missing or another node's.
func (c *Controller) Store(id storage.DriveID) storage.ShardStore {
	if d := (*c.stores.Load())[id]; d != nil {
		return d
	}
	return nil
}

// Drives are the drives of this node that are open now.
func (c *Controller) Drives() []*drive.Drive {
	return slices.Collect(maps.Values(*c.stores.Load()))
}

// Local reports whether a drive is recorded as this node's.
func (c *Controller) Local(id storage.DriveID) bool {
	return c.Topology().Drives[id].Node == c.cfg.Node
}

// StoreID is the store's id.
func (c *Controller) StoreID() string {
	if id := c.Topology().StoreID; id != "" {
		return id
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.reg.StoreID // of a node that has not heard of the others yet
}

// Subscribe answers a channel that is poked after every publication of a topology, and
// a function that ends it. The channel holds one poke; look at Topology after each.
func (c *Controller) Subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.mu.nextSub
	c.mu.nextSub++
	c.mu.subs[id] = ch
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.mu.subs, id)
	}
}

// poke wakes a loop that waits on ch.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// note logs a line about a subject unless it was the last one logged about it; an empty line forgets the subject.
func (c *Controller) note(subject string, level slog.Level, line string) {
	c.mu.Lock()
	same := c.mu.notes[subject] == line
	if line == "" {
		delete(c.mu.notes, subject)
	} else {
		c.mu.notes[subject] = line
	}
	c.mu.Unlock()
	if !same && line != "" {
		c.log.Log(context.Background(), level, line, "subject", subject)
	}
}

// sys proposes a command of the system group. cmd keeps its id, so that it may be handed in again after OutcomeUnknown.
func (c *Controller) sys(ctx context.Context, cmd *metapb.SysCommand) (*metapb.SysResult, error) {
	res, err := c.meta.Sys(ctx, cmd)
	if err == nil {
		c.heardOf(res.Version)
	}
	return res, err
}

// newID draws 16 random bytes that are not all zero.
func (c *Controller) newID() (id [16]byte, err error) {
	for id == ([16]byte{}) {
		if err := c.cfg.random(id[:]); err != nil {
			return id, err
		}
	}
	return id, nil
}

func hex16(b [16]byte) string { return hex.EncodeToString(b[:]) }
