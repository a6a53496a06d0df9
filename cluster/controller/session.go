package controller

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/sysstate"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// lease is what this node holds of its session. Guarded by Controller.mu.
type lease struct {
	until   time.Time // monotonic; the configuration may be read here until then
	granted time.Time // when the last renewal was sent that succeeded; zero is never
	floor   uint64    // the configuration that the copy here must have reached
	want    uint64    // newest topology version heard of
	wantAt  time.Time // since when
	refusal string    // why the session was refused, for people
	end     *time.Timer
}

// InSession reports whether this node has a session. Without one it must not begin reads: nobody may know of them.
func (c *Controller) InSession() bool { return c.cfg.Cluster == nil || c.connected() }

func (c *Controller) sessionOver() {
	if !c.connected() && c.cfg.Cluster.SessionEnded != nil {
		c.cfg.Cluster.SessionEnded()
	}
}

// Readers are the nodes that may be reading objects that were found before the call:
// those that are there, and those whose session may not be over yet although they
// are recorded as down or removed. Errors: Unavailable, ctx's.
func (c *Controller) Readers(ctx context.Context) ([]cluster.NodeID, error) {
	t, err := c.readTopology(ctx)
	if err != nil {
		return nil, err
	}
	c.publish(t)
	var out []cluster.NodeID
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range t.Nodes {
		since, ok := c.mu.downs[n.ID]
		if n.State == cluster.NodeActive || !ok || time.Since(since) < c.cfg.Cluster.SessionTimeout {
			out = append(out, n.ID)
		}
	}
	slices.Sort(out)
	return out, nil
}

// noteDowns keeps since when this process has seen nodes that are not there. The caller holds c.mu.
func (c *Controller) noteDowns(t *cluster.Topology) {
	for id, n := range t.Nodes {
		if n.State == cluster.NodeActive {
			delete(c.mu.downs, id)
		} else if _, ok := c.mu.downs[id]; !ok {
			c.mu.downs[id] = time.Now()
		}
	}
}

// connected reports whether the system group's leader granted a session a short while ago.
func (c *Controller) connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.mu.lease
	return !l.granted.IsZero() && time.Since(l.granted) < c.cfg.Cluster.SessionTimeout
}

// heardOf notes that there is a topology of this version.
func (c *Controller) heardOf(version uint64) {
	if c.cfg.Cluster == nil {
		return
	}
	c.mu.Lock()
	l := &c.mu.lease
	if version <= l.want {
		c.mu.Unlock()
		return
	}
	l.want, l.wantAt = version, time.Now()
	c.mu.Unlock()
	poke(c.poked)
}

// sessionLoop keeps this node's session with the system group's leader, wherever that is.
func (c *Controller) sessionLoop(ctx context.Context) {
	retry := min(c.cfg.Cluster.SessionEvery, 250*time.Millisecond)
	timer := time.NewTimer(0)
	defer timer.Stop()
	announced := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		ok := c.renew(ctx)
		if ok {
			timer.Reset(c.cfg.Cluster.SessionEvery)
			continue
		}
		if !c.connected() && time.Since(announced) >= c.cfg.Cluster.SessionEvery {
			c.announce(ctx)
			announced = time.Now()
		}
		timer.Reset(retry)
	}
}

// renew asks for one more session, at up to two nodes: the leader as known, and the one that this one names.
func (c *Controller) renew(ctx context.Context) bool {
	c.cl.call <- struct{}{}
	defer func() { <-c.cl.call }()
	if c.cl.gone {
		return true // a goodbye is not taken back
	}
	to := c.systemLeader()
	for range 2 {
		if to == "" || ctx.Err() != nil {
			return false
		}
		sent := time.Now()
		req := &nodepb.SessionRequest{Hello: c.hello(), Topology: c.Topology().Version, Config: c.configHere()}
		resp, err := c.askSession(ctx, to, req)
		if err != nil {
			c.sessionFailed(ctx, to, err)
			return false
		}
		if resp.Granted {
			c.sessionGranted(sent, resp)
			return true
		}
		next := cluster.NodeID(resp.SystemLeader)
		c.peers.hint(next)
		if next == to {
			return false
		}
		to = next
	}
	return false
}

func (c *Controller) askSession(ctx context.Context, to cluster.NodeID, req *nodepb.SessionRequest) (*nodepb.SessionResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if to == c.cfg.Node {
		return c.session(ctx, req)
	}
	conn, err := c.cfg.Cluster.Conn(to)
	if err != nil {
		return nil, err
	}
	return nodepb.NewMemberClient(conn).Session(ctx, req)
}

func (c *Controller) sessionGranted(sent time.Time, resp *nodepb.SessionResponse) {
	c.mu.Lock()
	l := &c.mu.lease
	if sent.After(l.granted) && !c.mu.closed {
		l.granted, l.until = sent, sent.Add(time.Duration(resp.LeaseMs)*time.Millisecond)
		if l.end != nil {
			l.end.Stop()
		}
		l.end = time.AfterFunc(time.Until(sent.Add(c.cfg.Cluster.SessionTimeout)), c.sessionOver)
	}
	l.floor = max(l.floor, resp.Config)
	l.refusal = ""
	c.mu.Unlock()
	c.note("session", slog.LevelInfo, "")
	c.heardOf(resp.Topology)
	c.readyOnce()
}

func (c *Controller) sessionFailed(ctx context.Context, to cluster.NodeID, err error) {
	if ctx.Err() != nil {
		return
	}
	c.peers.mu.Lock()
	if c.peers.leader == to {
		c.peers.leader = ""
	}
	c.peers.mu.Unlock()
	if refused(err) || errs.Is(err, errs.AccessDenied) {
		c.mu.Lock()
		c.mu.lease.refusal = err.Error()
		c.mu.Unlock()
		c.noteErr("session", "the cluster does not take this node: "+err.Error())
		return
	}
	if !c.connected() {
		c.note("session", slog.LevelWarn, fmt.Sprintf("no session with the system group's leader (node %s)", to))
	}
}

// goodbye has this node recorded as down before it stops, so that nobody tries it in vain.
func (c *Controller) goodbye() {
	c.cl.call <- struct{}{} // no renewal is on its way any more, which would come after it
	defer func() { <-c.cl.call }()
	c.cl.gone = true
	if !c.connected() || len(c.others()) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_, err := c.askSession(ctx, c.systemLeader(), &nodepb.SessionRequest{Hello: c.hello(), Goodbye: true})
	if err != nil {
		c.log.Info("stopping without a goodbye", "err", err)
	}
}

// configHere is the configuration that the copy here has reached; 0 if there is none.
func (c *Controller) configHere() (n uint64) {
	_ = c.cfg.Groups.ReadLocal(cluster.SystemGroup, func(r pebble.Reader) error {
		st, err := sysstate.Store(r)
		if err == nil {
			n = st.Config
		}
		return nil
	})
	return n
}

// ConfigRead calls fn with this node's copy of the system group's state, of one
// moment, if that holds every change of the configuration acknowledged before the
// call (design rule 9). Unavailable if it may not: then read at the leader. What fn
// answered counts only if ConfigRead answers no error.
func (c *Controller) ConfigRead(fn func(r pebble.Reader) error) error {
	may := func() (floor uint64, err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		l := &c.mu.lease
		if !time.Now().Before(l.until) {
			return 0, errs.New(errs.Unavailable, "configuration", "", "this node holds no lease on the configuration now")
		}
		return l.floor, nil
	}
	if c.cfg.Cluster == nil {
		return errs.New(errs.Unavailable, "configuration", "", "read it at the leader, which is in this process")
	}
	floor, err := may()
	if err != nil {
		return err
	}
	var answer error
	err = c.cfg.Groups.ReadLocal(cluster.SystemGroup, func(r pebble.Reader) error {
		view := multiraft.Snapshot(r)
		defer view.Close()
		st, err := sysstate.Store(view)
		if err != nil {
			return err
		}
		if st.Config < floor {
			return errs.New(errs.Unavailable, "configuration", "", "this node's copy of the configuration lags")
		}
		answer = fn(view)
		return nil
	})
	if err != nil {
		return errs.Wrap(errs.Unavailable, "configuration", "", err) // a drive that fails, say: the leader's is another
	}
	if _, over := may(); over != nil {
		return over // the time has passed meanwhile: also "there is none" counts no more
	}
	return answer
}

// AwaitConfig returns once no gateway acts on a configuration before config any
// more: only then may a change be acknowledged. Errors: Unavailable, Timeout, ctx's. It may be repeated.
func (c *Controller) AwaitConfig(ctx context.Context, config uint64) error {
	if c.cfg.Cluster == nil || config == 0 {
		return nil
	}
	for {
		err := c.awaitAt(ctx, c.systemLeader(), config)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, "configuration", "", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *Controller) awaitAt(ctx context.Context, to cluster.NodeID, config uint64) error {
	if to == c.cfg.Node {
		return c.awaitConfig(ctx, config)
	}
	if to == "" {
		return errs.New(errs.Unavailable, "configuration", "", "the system group has no leader now")
	}
	conn, err := c.cfg.Cluster.Conn(to)
	if err != nil {
		return err
	}
	// More than the longest wait there, less than for ever.
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Cluster.SessionTimeout+2*callTimeout)
	defer cancel()
	_, err = nodepb.NewMemberClient(conn).AwaitConfig(ctx, &nodepb.AwaitConfigRequest{Config: config})
	return err
}

// atSystemLeader reads the system group linearizably if its leader is here, else answers NotLeader.
func (c *Controller) atSystemLeader(ctx context.Context, fn func(r pebble.Reader) error) error {
	return c.cfg.Groups.Read(ctx, cluster.SystemGroup, func(r pebble.Reader) error {
		view := multiraft.Snapshot(r)
		defer view.Close()
		return fn(view)
	})
}

// fetchTopology asks the system group's leader for the topology as it is now. Errors: Unavailable, Timeout.
func (c *Controller) fetchTopology(ctx context.Context) (t *cluster.Topology, err error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	for {
		to := c.systemLeader()
		if to == c.cfg.Node {
			err = c.atSystemLeader(ctx, func(r pebble.Reader) (err error) {
				t, err = sysstate.Topology(r)
				return err
			})
		} else {
			t, err = c.askTopology(ctx, to)
		}
		if err == nil {
			return t, nil
		}
		select {
		case <-ctx.Done():
			return nil, errs.Wrap(errs.Unavailable, "topology", "", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *Controller) askTopology(ctx context.Context, to cluster.NodeID) (*cluster.Topology, error) {
	if to == "" {
		return nil, errs.New(errs.Unavailable, "topology", "", "the system group has no leader now")
	}
	conn, err := c.cfg.Cluster.Conn(to)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := nodepb.NewMemberClient(conn).Topology(ctx, &nodepb.TopologyRequest{})
	if err != nil {
		return nil, err
	}
	return sysstate.DecodeTopology(resp.Topology)
}
