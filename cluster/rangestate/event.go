package rangestate

import (
	"fmt"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage/errs"
)

// outbox is what the machine keeps of the rows about events. As with counters, what changed is written at the end of the batch.
type outbox struct {
	log      *metapb.EventLogRow // nil: not read yet
	logDirty bool

	targets      map[string]*targetState
	dirtyTargets []string
	told         map[toldID]*toldCounter
	dirtyTold    []toldID

	row metapb.EventRow // the one that is written: what it points to is not its own
}

type targetState struct {
	row   metapb.EventTargetRow
	found bool // it has a row, or gets one with the batch
	dirty bool
}

type toldID struct {
	bucket uint64
	target string
}

type toldCounter struct {
	row   metapb.EventCounterRow
	dirty bool
}

func newOutbox() outbox {
	return outbox{targets: map[string]*targetState{}, told: map[toldID]*toldCounter{}}
}

// bucketEvents is a bucket's notification configuration, ready for events.
type bucketEvents struct {
	rules   *notification.Rules
	targets []string // of the rules, in their order; empty: its ARN has no meaning here
}

func compileEvents(e *metapb.BucketEvents) *bucketEvents {
	on := &bucketEvents{rules: notification.Compile(e.GetConfig())}
	for _, rule := range e.GetConfig().GetRules() {
		arn, _ := notification.ParseARN(rule.GetArn())
		on.targets = append(on.targets, arn.Target())
	}
	return on
}

// event is one that somebody wants. The zero value is one that nobody does.
type event struct {
	on     *metapb.BucketEvents // nil: nobody
	kind   notification.Type
	target string // that the rule names; empty: no rule wants it
	rule   string // its id
	bridge bool

	class    string // EventRow.storage_class
	tier     string // EventRow.access_tier
	expiryMS int64  // EventRow.restore_expiry_ms
}

// wanted is the event of a kind on a key as the bucket's configuration wants it.
func (m *Machine) wanted(b *metapb.BucketRow, kind notification.Type, bucket uint64, key []byte) event {
	if b.GetEvents() == nil {
		return event{}
	}
	kept := m.buckets[bucket]
	if kept == nil || kept.row != b {
		kept = &keptBucket{row: b} // it can only be slower
	}
	if kept.events == nil {
		kept.events = compileEvents(b.Events)
	}
	on := kept.events
	if on.rules.Empty() {
		return event{}
	}
	at := -1
	on.rules.Match(kind, string(key), func(rule int) {
		if at < 0 && on.targets[rule] != "" {
			at = rule
		}
	})
	e := event{kind: kind, bridge: on.rules.EventBridge()}
	if at >= 0 {
		e.target, e.rule = on.targets[at], b.Events.Config.Rules[at].Id
	}
	if at >= 0 || e.bridge {
		e.on = b.Events
	}
	return e
}

// ask is wanted for a command that may be refused: the result is a refusal if a target has no room. It must come before anything is changed.
func (m *Machine) ask(b *metapb.BucketRow, kind notification.Type, bucket uint64, key []byte) (event, *metapb.RangeResult, error) {
	if b.GetEvents() == nil { // the way most go
		return event{}, nil, nil
	}
	e := m.wanted(b, kind, bucket, key)
	refused, err := m.full(&e)
	return e, refused, err
}

// full refuses what would make an event for a target whose queue is full.
func (m *Machine) full(e *event) (*metapb.RangeResult, error) {
	for _, name := range e.targets() {
		if name == "" {
			continue
		}
		t, err := m.target(name)
		if err != nil {
			return nil, err
		}
		if t.row.Held {
			return refuse(errs.Busy, fmt.Sprintf("the queue of events for target %q is full", name)), nil
		}
	}
	return nil, nil
}

// targets are those that the event goes to; empty names are of none.
func (e *event) targets() (out [2]string) {
	if e.on == nil {
		return out
	}
	out[0] = e.target
	if e.bridge && e.target != DefaultBus {
		out[1] = DefaultBus
	}
	return out
}

// tell writes an event to the outbox, if somebody wants it, and says so in res, which names the version as the client is told of it. row is
// the version whose size and ETag are told, or nil.
func (m *Machine) tell(e *event, bucket uint64, key []byte, row *metapb.ObjectRow, res *metapb.RangeResult) error {
	if e.on == nil {
		return nil
	}
	log, err := m.eventLog()
	if err != nil {
		return err
	}
	seq := m.nextSeq()
	r := &m.outbox.row
	r.Reset()
	r.Format, r.Type, r.TimeMs, r.Bucket, r.Key = 1, uint32(e.kind), m.now(), bucket, key
	r.BucketName, r.Owner, r.Region = e.on.Name, e.on.Owner, e.on.Region
	r.VersionSeq, r.VersionNonce, r.NullVersion, r.Versioned = res.VersionSeq, res.VersionNonce, res.NullVersion, res.Versioned
	r.Size, r.Etag = row.GetSize(), row.GetEtag()
	r.Requester = m.requester
	r.StorageClass, r.AccessTier, r.RestoreExpiryMs = e.class, e.tier, e.expiryMS
	r.Target, r.Rule, r.Bridge = e.target, e.rule, e.bridge
	size := uint64(r.SizeVT())
	m.key = appendEvent(m.key[:0], m.group, seq)
	if err := m.put(m.key, r); err != nil {
		return err
	}
	res.Events = true
	log.Newest = seq
	log.Rows++
	log.Bytes += size
	for _, name := range e.targets() {
		if name == "" {
			continue
		}
		if err := m.enqueue(name, bucket, seq, size); err != nil {
			return err
		}
	}
	return nil
}

// enqueue counts an event that was written for a target.
func (m *Machine) enqueue(name string, bucket, seq, size uint64) error {
	t, err := m.changeTarget(name)
	if err != nil {
		return err
	}
	if t.Queued == 0 {
		t.Cursor, t.OldestMs = seq-1, m.now()
	}
	t.Queued++
	t.QueuedBytes += size
	c, err := m.toldCounter(toldID{bucket, name})
	if err != nil {
		return err
	}
	c.Queued++
	c.QueuedBytes += int64(size)
	return nil
}

// tellVersion is tell for a command that does not answer the version: res only gets to know that there was an event.
func (m *Machine) tellVersion(e *event, b *metapb.BucketRow, bucket uint64, key []byte, row *metapb.ObjectRow, res *metapb.RangeResult) error {
	if e.on == nil {
		return nil
	}
	var named metapb.RangeResult
	nameVersion(&named, b, row)
	res.Events = true
	return m.tell(e, bucket, key, row, &named)
}

// wantedRewrite is wanted for a rewrite, which tells of a version's new storage class, or that it was moved to an archive tier. It is not refused for
// a target without room: whoever moves data takes a refusal for a store without room, and would move nothing of other buckets either.
func (m *Machine) wantedRewrite(op *metapb.RewriteDataOp, h *holder) (b *metapb.BucketRow, e event, err error) {
	var kind notification.Type
	switch {
	case h.object == nil:
		return nil, event{}, nil
	case op.StorageClass != "" && className(op.StorageClass) != h.class:
		kind = notification.LifecycleTransition
	case op.Tier != nil && archiveTier(op.Tier.To) && op.Tier.To != h.object.GetTiering().GetTier():
		kind = notification.IntelligentTiering
	default:
		return nil, event{}, nil
	}
	// Without a configuration's generation nobody has looked at the bucket, and it may be gone.
	if b, err = m.bucketRow(op.Bucket); err != nil || b == nil {
		return nil, event{}, err
	}
	e = m.wanted(b, kind, op.Bucket, op.Key)
	if kind == notification.LifecycleTransition {
		e.class = op.StorageClass
	} else {
		e.tier = tierName(op.Tier.To)
	}
	return b, e, nil
}

// tierName is S3's name of an archive tier.
func tierName(t metapb.Tiering_Tier) string {
	if t == metapb.Tiering_DEEP_ARCHIVE {
		return "DEEP_ARCHIVE_ACCESS"
	}
	return "ARCHIVE_ACCESS"
}

// ---- rows about the outbox ----

// eventLog is the row about the outbox, to change: it is written with the batch.
func (m *Machine) eventLog() (*metapb.EventLogRow, error) {
	log, err := m.readLog()
	m.outbox.logDirty = err == nil
	return log, err
}

// readLog is the row about the outbox, not to be changed.
func (m *Machine) readLog() (*metapb.EventLogRow, error) {
	if m.outbox.log != nil {
		return m.outbox.log, nil
	}
	row := &metapb.EventLogRow{Format: 1}
	m.key = appendGroup(m.key[:0], m.group, subLog)
	if _, err := m.get(m.key, row); err != nil {
		return nil, err
	}
	m.outbox.log = row
	return row, nil
}

// target is what is known of a target, not to be changed.
func (m *Machine) target(name string) (*targetState, error) {
	if t := m.outbox.targets[name]; t != nil {
		return t, nil
	}
	t := &targetState{}
	m.key = appendTarget(m.key[:0], m.group, name)
	found, err := m.get(m.key, &t.row)
	if err != nil {
		return nil, err
	}
	t.row.Format, t.found = 1, found
	m.outbox.targets[name] = t
	return t, nil
}

// changeTarget is a target's row to change: it is written with the batch.
func (m *Machine) changeTarget(name string) (*metapb.EventTargetRow, error) {
	t, err := m.target(name)
	if err != nil {
		return nil, err
	}
	if !t.dirty {
		t.dirty, t.found = true, true
		m.outbox.dirtyTargets = append(m.outbox.dirtyTargets, name)
	}
	return &t.row, nil
}

// toldCounter gives the counter of a bucket's events for a target to change: it is written with the batch.
func (m *Machine) toldCounter(id toldID) (*metapb.EventCounterRow, error) {
	c := m.outbox.told[id]
	if c == nil {
		c = &toldCounter{}
		m.key = appendTold(m.key[:0], m.group, id.bucket, id.target)
		if _, err := m.get(m.key, &c.row); err != nil {
			return nil, err
		}
		m.outbox.told[id] = c
	}
	if !c.dirty {
		c.dirty = true
		m.outbox.dirtyTold = append(m.outbox.dirtyTold, id)
	}
	return &c.row, nil
}

// flushOutbox writes what changed of the rows about the outbox.
func (m *Machine) flushOutbox() error {
	o := &m.outbox
	if o.logDirty {
		m.key = appendGroup(m.key[:0], m.group, subLog)
		if err := m.put(m.key, o.log); err != nil {
			return err
		}
		o.logDirty = false
	}
	for _, name := range o.dirtyTargets {
		t := o.targets[name]
		t.dirty = false
		m.key = appendTarget(m.key[:0], m.group, name)
		if err := m.put(m.key, &t.row); err != nil {
			return err
		}
	}
	o.dirtyTargets = o.dirtyTargets[:0]
	for _, id := range o.dirtyTold {
		if err := m.flushTold(id, o.told[id]); err != nil {
			return err
		}
	}
	o.dirtyTold = o.dirtyTold[:0]
	if len(o.targets) > cacheMax {
		clear(o.targets)
	}
	if len(o.told) > cacheMax {
		clear(o.told)
	}
	return nil
}

func (m *Machine) flushTold(id toldID, c *toldCounter) error {
	c.dirty = false
	m.key = appendTold(m.key[:0], m.group, id.bucket, id.target)
	if c.row.SizeVT() == 0 {
		return m.del(m.key)
	}
	return m.put(m.key, &c.row)
}

// keepTold hands on what was counted of events of a bucket that is dropped. Counters of events that wait yet are handed on when those are gone.
func (m *Machine) keepTold(bucket uint64) error {
	if err := m.flushOutbox(); err != nil {
		return err
	}
	var of []toldID
	start := appendTold(nil, m.group, bucket, "")
	err := m.iterate(start, prefixEnd(append([]byte(nil), start...)), func(raw []byte, _ func() ([]byte, error)) (bool, error) {
		of = append(of, toldID{bucket, string(raw[len(start):])})
		return true, nil
	})
	for _, id := range of {
		if err == nil {
			err = m.handOnTold(id)
		}
	}
	return err
}

// handOnTold adds a counter of a dropped bucket to that of bucket 0, if nothing waits that is counted there.
func (m *Machine) handOnTold(id toldID) error {
	from, err := m.toldCounter(id)
	if err != nil || from.Queued != 0 || id.bucket == deletedBuckets {
		return err
	}
	to, err := m.toldCounter(toldID{deletedBuckets, id.target})
	if err != nil {
		return err
	}
	to.Delivered += from.Delivered
	to.Dead += from.Dead
	to.Dropped += from.Dropped
	from.Delivered, from.Dead, from.Dropped = 0, 0, 0
	return nil
}
