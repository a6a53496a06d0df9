package core

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	iofs "io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/s3api"
	"cairn/s3api/notification"
	"cairn/server/delivery"
	"cairn/server/status"
	"cairn/server/target"
	"cairn/server/targets"
	"cairn/storage"
	"cairn/storage/errs"
)

// Events is what a store does with events besides writing them: it delivers them, keeps the targets and lets people look and send again.
// All methods may be called concurrently.
type Events struct {
	c      *Core
	meta   eventMeta
	open   func(*metapb.SysTarget) (target.Target, error)
	worker atomic.Pointer[delivery.Worker] // nil without workers
	key    sync.Mutex                      // held while the key is read or made
}

// eventMeta is the metadata plane as delivery and readers of events see it.
type eventMeta struct{ ranges }

var _ delivery.Meta = eventMeta{}

// Led are the ranges whose leaders are here.
func (m eventMeta) Led() []cluster.GroupID { return m.Ranges() }

// AllRanges are all ranges, wherever they are led.
func (m eventMeta) AllRanges() []cluster.GroupID { return m.all() }

func (m eventMeta) Read(ctx context.Context, g cluster.GroupID, fn func(rangestate.Reader) error) error {
	return m.meta.ReadGroup(ctx, g, fn)
}

func (m eventMeta) Propose(ctx context.Context, g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	return m.meta.DoGroup(ctx, g, cmd)
}

func (m eventMeta) Targets(ctx context.Context) (all []*metapb.SysTarget, err error) {
	err = m.meta.System(ctx, func(r sysstate.Reader) error {
		all, err = r.Targets()
		return err
	})
	return all, err
}

func newEvents(c *Core, open func(*metapb.SysTarget) (target.Target, error)) *Events {
	e := &Events{c: c, meta: eventMeta{ranges{c.Meta, c.Groups}}, open: open}
	if open == nil {
		e.open = e.openTarget
	}
	return e
}

// poke says that events were written, perhaps in a range that is led here.
func (e *Events) poke() {
	if w := e.worker.Load(); w != nil {
		w.Poke()
	}
}

// start begins to deliver what the ranges that are led here have.
func (e *Events) start() error {
	w, err := delivery.New(delivery.Config{
		Meta: e.meta, Open: e.open, Logger: e.c.env.Logger, Retention: e.c.cfg.EventsRetention, RetainBytes: int64(e.c.cfg.EventsRetainBytes),
	})
	if err == nil {
		e.worker.Store(w)
	}
	return err
}

// stop ends that, with what is under way.
func (e *Events) stop() {
	if w := e.worker.Swap(nil); w != nil {
		w.Close()
	}
}

// eventKeyName is the file in the data folder of a store of one process that has the key of its targets' secrets.
const eventKeyName = "events.key"

// eventKeyLabel keeps the key apart from others that are made of the same secret.
const eventKeyLabel = "cairn: secrets of event targets, 1"

// sealKey seals the targets' secrets: on all nodes of a cluster it is made of the key that seals the authority. In a cluster without TLS there is no secret that all nodes
// share, as its operator chose, and the key only keeps secrets from being read in passing. A single process draws one, if make is
// set, and keeps it in its data folder. NotFound: there is none yet.
func (e *Events) sealKey(make bool) (targets.SealKey, error) {
	if n := e.c.node; n != nil {
		secret := []byte("store " + n.storeID)
		if id := n.identity.Load(); id != nil {
			secret = id.Seal[:]
		}
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(eventKeyLabel))
		return targets.SealKey(h.Sum(nil)), nil
	}
	e.key.Lock()
	defer e.key.Unlock()
	fs, path := e.c.env.FS, filepath.Join(e.c.cfg.DataDir, eventKeyName)
	var k targets.SealKey
	b, err := readSmall(fs, path)
	switch {
	case err == nil && len(b) == len(k):
		return targets.SealKey(b), nil
	case err == nil:
		return k, errs.New(errs.Corrupt, "events", eventKeyName, "the key of the targets' secrets is damaged: restore the file in the data folder, or remove it and set the targets up anew with --replace")
	case !errors.Is(err, iofs.ErrNotExist):
		return k, errs.Wrap(errs.Other, "events", eventKeyName, err)
	case !make:
		return k, errs.New(errs.NotFound, "events", eventKeyName, "the key of the targets' secrets is not in the data folder: restore the file, or set the targets up anew with --replace")
	}
	rand.Read(k[:]) // never fails
	return k, errs.Wrap(errs.Other, "events", eventKeyName, writeSmall(fs, path, k[:]))
}

// openTarget makes a target ready as it is configured; nil: it is of kind log.
func (e *Events) openTarget(t *metapb.SysTarget) (target.Target, error) {
	var secrets map[string]string
	if len(t.Secrets) > 0 {
		key, err := e.sealKey(false)
		if err != nil {
			return nil, err
		}
		if secrets, err = targets.Unseal(key, t); err != nil {
			return nil, err
		}
	}
	return targets.Open(t, secrets)
}

// AddTarget sets a target up: its settings are checked, nobody is asked. Its secrets, by the names of settings, are kept sealed. With
// replace it takes the place of one of its name, secrets included; events that wait go to it. Errors: InvalidArgument,
// Conflict (there is one of that name).
func (e *Events) AddTarget(ctx context.Context, t *metapb.SysTarget, secrets map[string]string, replace bool) error {
	t = t.CloneVT()
	t.Format, t.Secrets = 1, nil
	if err := targets.Validate(t, secrets); err != nil {
		return err
	}
	if len(secrets) > 0 {
		key, err := e.sealKey(true)
		if err != nil {
			return err
		}
		for name, secret := range secrets {
			sealed, err := targets.Seal(key, t.Name, name, secret)
			if err != nil {
				return err
			}
			t.Secrets = append(t.Secrets, &metapb.SealedKV{Name: name, Sealed: sealed})
		}
	}
	slices.SortFunc(t.Settings, func(a, b *metapb.KV) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(t.Secrets, func(a, b *metapb.SealedKV) int { return strings.Compare(a.Name, b.Name) })
	_, err := e.meta.meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_PutTarget{PutTarget: &metapb.PutTargetOp{Target: t, Replace: replace}}})
	if errs.Is(err, errs.Conflict) {
		return errs.New(errs.Conflict, "events", t.Name, "there is a target of that name: replace it with --replace, or choose another name")
	}
	e.poke()
	return err
}

// RemoveTarget forgets a target. Without force it is refused with Conflict while events wait for it, dead letters are kept for it or a bucket's
// configuration sends to it; with force those events and dead letters are dropped, and so are events that rules which name it still make. Of a
// target that is gone already force drops the dead letters that are left. NotFound: there is none, and nothing of it.
func (e *Events) RemoveTarget(ctx context.Context, name string, force bool) error {
	_, err := e.target(ctx, name)
	gone := errs.Is(err, errs.NotFound)
	switch {
	case err != nil && !gone:
		return err
	case gone && !force:
		return e.leftOf(ctx, name, err)
	case gone:
		return e.dropDead(ctx, name, err)
	case !force:
		if err := e.unused(ctx, name); err != nil {
			return err
		}
	}
	_, err = e.meta.meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_RemoveTarget{RemoveTarget: &metapb.RemoveTargetOp{Name: name, Force: force}}})
	e.poke()
	if err != nil || !force {
		return err
	}
	return e.dropDead(ctx, name, nil)
}

// leftOf is the NotFound of a target that is gone, which tells of dead letters that are left of it.
func (e *Events) leftOf(ctx context.Context, name string, none error) error {
	_, dead, err := e.waiting(ctx, name)
	switch {
	case err != nil:
		return err
	case dead == 0:
		return none
	}
	return errs.Newf(errs.NotFound, "events", name, "there is no target of that name any more, but %d dead letters are kept for it: --force drops them", dead)
}

// dropDead drops a target's dead letters in all ranges. If there are none it answers none. An error says that the rest is still there.
func (e *Events) dropDead(ctx context.Context, name string, none error) error {
	dropped := 0
	for _, g := range e.meta.AllRanges() {
		n, err := e.dropDeadIn(ctx, g, name)
		if dropped += n; err != nil {
			return fmt.Errorf("range %d still has dead letters of target %s, or may have some: repeat target remove --force: %w", g, name, err)
		}
	}
	if dropped == 0 {
		return none
	}
	return nil
}

// dropDeadIn drops them in one range and answers how many.
func (e *Events) dropDeadIn(ctx context.Context, g cluster.GroupID, name string) (n int, err error) {
	for after := uint64(0); ; {
		page, err := e.deadPage(ctx, g, name, after, deadPage)
		if err != nil || len(page) == 0 {
			return n, err
		}
		op := &metapb.DropDeadEventsOp{Target: name}
		for _, d := range page {
			op.Seqs, after = append(op.Seqs, d.Seq), d.Seq
		}
		if _, err := e.meta.Propose(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_DropDeadEvents{DropDeadEvents: op}}); err != nil {
			return n, err
		}
		n += len(page)
	}
}

// unused is a Conflict that says what needs the target, or nil.
func (e *Events) unused(ctx context.Context, name string) error {
	var why []string
	queued, dead, err := e.waiting(ctx, name)
	if err != nil {
		return err
	}
	if queued > 0 {
		why = append(why, fmt.Sprintf("events that wait for it: %d", queued))
	}
	if dead > 0 {
		why = append(why, fmt.Sprintf("%d dead letters are kept for it", dead))
	}
	buckets, err := e.naming(ctx, name)
	if err != nil {
		return err
	}
	if len(buckets) > 0 {
		how := "name it"
		if name == rangestate.DefaultBus {
			how = "name it or EventBridge"
		}
		why = append(why, "notification configurations "+how+", of "+strings.Join(buckets, ", "))
	}
	if len(why) == 0 {
		return nil
	}
	return errs.Newf(errs.Conflict, "events", name, "%s: take it out of those configurations, wait until all is delivered, and send dead letters again with cairn events replay %s --dead; "+
		"or remove it with --force, which drops what waits and the dead letters", strings.Join(why, "; "), name)
}

// waiting is how many events wait for a target in all ranges, and how many dead letters are kept for it. Unavailable: a range cannot be read.
func (e *Events) waiting(ctx context.Context, name string) (queued, dead int64, err error) {
	s, partial := e.sums(ctx, false, 0)
	if partial != "" {
		return 0, 0, errs.New(errs.Unavailable, "events", name, partial)
	}
	l := s.load(name)
	return l.Queued, l.DeadKept, nil
}

// namingMax is how many buckets that name a target are told of.
const namingMax = 10

// naming are the buckets whose notification configurations name a target, or send to EventBridge if that is where it leads, by this node's copy of the configuration: their names, and last how
// many more there are if they are many.
func (e *Events) naming(ctx context.Context, name string) (out []string, err error) {
	m, more := lifecycleMeta{c: e.c}, 0
	for after := storage.BucketID(0); ; {
		var page []*metapb.SysBucket
		err := m.system(ctx, func(r pebble.Reader) (err error) {
			if page, err = sysstate.AllBuckets(r, after, usagePage); err != nil {
				return err
			}
			for i, b := range page {
				if page[i], err = sysstate.BucketByID(r, storage.BucketID(b.Id)); err != nil { // with its configuration
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, b := range page {
			if !sendsTo(b.Notification, name) {
				continue
			}
			if len(out) < namingMax {
				out = append(out, b.Name)
			} else {
				more++
			}
		}
		if len(page) < usagePage {
			break
		}
		after = storage.BucketID(page[len(page)-1].Id)
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return out, nil
}

// sendsTo reports whether a configuration has events sent to a target.
func sendsTo(cfg *metapb.NotificationConfig, name string) bool {
	return cfg.GetEventBridge() && name == rangestate.DefaultBus || slices.ContainsFunc(cfg.GetRules(), func(rule *metapb.NotificationRule) bool {
		arn, ok := notification.ParseARN(rule.Arn)
		return ok && arn.Target() == name
	})
}

// target is a target by its name; NotFound: there is none.
func (e *Events) target(ctx context.Context, name string) (*metapb.SysTarget, error) {
	all, err := e.meta.Targets(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if t.Name == name {
			return t, nil
		}
	}
	return nil, errs.New(errs.NotFound, "events", name, "there is no target of that name: cairn events target list says which there are")
}

// ListTargets are all targets as they are set up, by name.
func (e *Events) ListTargets(ctx context.Context) ([]status.EventTarget, error) {
	all, err := e.meta.Targets(ctx)
	out := make([]status.EventTarget, 0, len(all))
	for _, t := range all {
		row := status.EventTarget{
			Name: t.Name, Kind: t.Kind, WhenFull: "drop", QueueMax: t.QueueMax, CloudEvents: t.CloudEvents,
			Created: time.UnixMilli(t.CreatedMs).UTC(), Generation: t.Generation,
		}
		if t.WhenFull == metapb.WhenFull_HOLD_WRITES {
			row.WhenFull = "hold"
		}
		if t.AgeMaxMs > 0 {
			row.MaxAge = (time.Duration(t.AgeMaxMs) * time.Millisecond).String()
		}
		for _, kv := range t.Settings {
			if row.Settings == nil {
				row.Settings = map[string]string{}
			}
			row.Settings[kv.Name] = kv.Value
		}
		for _, kv := range t.Secrets {
			row.Secrets = append(row.Secrets, kv.Name)
		}
		out = append(out, row)
	}
	return out, err
}

// testTimeout bounds how long targets may take to take a test event.
const testTimeout = 10 * time.Second

// TestTarget asks a target whether it would take events, and sends it a test message. NotFound: there is none; InvalidRequest: the target
// fails, and why.
func (e *Events) TestTarget(ctx context.Context, name string) error {
	err := e.Announce(ctx, "", []string{name}, fmt.Appendf(nil, `{"Service":"cairn","Event":"s3:TestEvent","Time":%q,"Target":%q}`, e.c.env.Now().UTC().Format(time.RFC3339), name))
	var failed *s3api.DestinationError
	if errors.As(err, &failed) {
		if _, err := e.target(ctx, name); err != nil {
			return err
		}
		return errs.New(errs.InvalidRequest, "events", name, failed.Failed[0].Reason)
	}
	return err
}

var _ s3api.Destinations = (*Events)(nil)

// Announce is what s3api.Destinations says.
func (e *Events) Announce(ctx context.Context, bucket string, names []string, body []byte) error {
	all, err := e.meta.Targets(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, testTimeout, fmt.Errorf("no answer within %s", testTimeout))
	defer cancel()
	fails := make([]string, len(names)) // why; empty: it would take it, or did
	unknown := make([]bool, len(names))
	opened := make([]target.Target, len(names))
	each := func(fn func(i int) error) (failed bool) {
		var wg sync.WaitGroup
		for i := range names {
			wg.Go(func() {
				if err := fn(i); err != nil {
					fails[i] = reason(ctx, err)
				}
			})
		}
		wg.Wait()
		return slices.ContainsFunc(fails, func(s string) bool { return s != "" })
	}
	defer func() {
		for _, t := range opened {
			if t != nil {
				t.Close()
			}
		}
	}()
	failed := each(func(i int) (err error) {
		at := slices.IndexFunc(all, func(t *metapb.SysTarget) bool { return t.Name == names[i] })
		if unknown[i] = at < 0; unknown[i] {
			return errors.New("there is no target of that name")
		}
		if opened[i], err = e.open(all[at]); err != nil || opened[i] == nil {
			return err
		}
		return opened[i].Check(ctx)
	})
	if !failed {
		now := e.c.env.Now()
		failed = each(func(i int) error {
			if opened[i] == nil {
				return nil // of kind log
			}
			_, err := opened[i].Send(ctx, []target.Message{{ID: testID(), Bucket: bucket, Event: "TestEvent", Time: now, Body: body}})
			return err
		})
	}
	if !failed {
		return nil
	}
	out := &s3api.DestinationError{}
	for i, why := range fails {
		if why != "" {
			out.Failed = append(out.Failed, s3api.FailedDestination{Target: names[i], Reason: why, Unknown: unknown[i]})
		}
	}
	return out
}

// reason is an error in words, and the end of ctx's time if that was why.
func reason(ctx context.Context, err error) string {
	if ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Sprintf("%v: %v", context.Cause(ctx), err)
	}
	return err.Error()
}

// testID is a new id, in the form that events' ids have.
func testID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
