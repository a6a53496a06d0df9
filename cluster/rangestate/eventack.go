package rangestate

import (
	"encoding/binary"
	"slices"
	"strings"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// Bounds of the commands on the outbox.
const (
	AckRowsMax   = 5000        // rows of the outbox that one AckEvents looks at, of other targets too
	AckDeadMax   = 1000        // dead letters in one AckEvents, or sequences in one DropDeadEvents
	DeadMax      = 10000       // dead letters that are kept for a target; the oldest go
	TrimRowsMax  = 5 * RowsMax // rows that one TrimEvents looks at
	targetMax    = 256         // bytes of a target's name
	deadErrorMax = 1024        // bytes of the error of a dead letter
	peekMax      = 16          // rows behind an ack that are looked at for the target's next event
)

// checkTarget judges the name of a target that a command brings.
func checkTarget(name string) string {
	if name == "" || len(name) > targetMax || strings.IndexByte(name, 0) >= 0 {
		return "malformed name of a target"
	}
	return ""
}

// glance is what a walk over the outbox needs of an event. What it points to is valid until the next one.
type glance struct {
	seq    uint64
	size   uint64
	timeMS int64
	bucket uint64
	target []byte
	bridge bool
}

// targets are those that the event goes to, as of event.
func (g *glance) targets() (out [2]string) {
	out[0] = string(g.target)
	if g.bridge && out[0] != DefaultBus {
		out[1] = DefaultBus
	}
	return out
}

// isFor reports whether the event goes to a target.
func (g *glance) isFor(target string) bool {
	return string(g.target) == target || g.bridge && target == DefaultBus
}

// glanceAt reads the little that is needed of a row of the outbox.
func glanceAt(raw, value []byte) (g glance, err error) {
	if len(raw) != eventHeadLen+8 {
		return g, corrupt(raw, errMalformed)
	}
	g.seq, g.size = binary.BigEndian.Uint64(raw[eventHeadLen:]), uint64(len(value))
	w := wire{b: value}
	for w.next() {
		switch w.num {
		case 3:
			g.timeMS = int64(w.val)
		case 4:
			g.bucket = w.val
		case 19:
			g.target = w.buf
		case 21:
			g.bridge = w.val != 0
		}
	}
	if w.bad {
		return g, corrupt(raw, errMalformed)
	}
	return g, nil
}

// ---- AckEvents ----

// ackEvents moves the cursor of a target on. It looks at AckRowsMax rows at most: if there are more up to op.to, the cursor stays behind, and
// the result says so (more). version_seq is the cursor afterwards. Conflict if the cursor is not where it was read, if
// nothing is queued, or if op.to lies behind the newest event, so that a repeat changes nothing.
func (m *Machine) ackEvents(op *metapb.AckEventsOp) (*metapb.RangeResult, error) {
	if detail := checkAck(op); detail != "" {
		return refuse(errs.InvalidArgument, detail), nil
	}
	known, err := m.target(op.Target)
	if err != nil {
		return nil, err
	}
	log, err := m.readLog()
	if err != nil {
		return nil, err
	}
	if known.row.Queued == 0 || known.row.Cursor != op.From || op.To > log.Newest {
		return refuse(errs.Conflict, "the target's cursor is elsewhere by now"), nil
	}
	a := ack{m: m, op: op, dead: op.Dead, trimmed: log.Trimmed}
	if a.t, err = m.changeTarget(op.Target); err != nil {
		return nil, err
	}
	if err := a.run(); err != nil {
		return nil, err
	}
	return &metapb.RangeResult{Ok: true, VersionSeq: a.t.Cursor, More: a.t.Cursor < op.To}, nil
}

func checkAck(op *metapb.AckEventsOp) string {
	if detail := checkTarget(op.GetTarget()); detail != "" {
		return detail
	}
	if op.To <= op.From {
		return "an ack moves the cursor on"
	}
	if len(op.Dead) > AckDeadMax {
		return "too many dead letters"
	}
	last := op.From
	for _, d := range op.Dead {
		if d.GetSeq() <= last || d.Seq > op.To {
			return "dead letters lie in what is acknowledged, in order"
		}
		last = d.Seq
	}
	return ""
}

// ack is the work on one AckEvents.
type ack struct {
	m    *Machine
	op   *metapb.AckEventsOp
	t    *metapb.EventTargetRow
	dead []*metapb.DeadEvent // of op, those not come by yet

	trimmed uint64 // up to here nothing is kept that nobody waits for
	rows    int    // looked at, up to op.to
	peeked  int    // looked at behind it
	last    int64  // time of the last row looked at
	over    []toldID
}

func (a *ack) run() error {
	start, end := appendEvent(nil, a.m.group, a.op.From+1), prefixEnd(appendEvents(nil, a.m.group))
	if err := a.m.iterate(start, end, a.row); err != nil {
		return err
	}
	if a.rows <= AckRowsMax {
		a.t.Cursor = a.op.To
	}
	// The time of the target's next event is known if it was near; else it is not before that of the last row looked at.
	if a.t.OldestMs = a.last; a.t.Queued == 0 {
		a.t.OldestMs = 0
	}
	for _, id := range a.over {
		if b, err := a.m.bucketRow(id.bucket); err != nil {
			return err
		} else if b.GetDropped() {
			if err := a.m.handOnTold(id); err != nil {
				return err
			}
		}
	}
	return a.m.buryOldest(a.op.Target, a.t)
}

// row takes the next row behind the cursor into account; false ends the walk.
func (a *ack) row(raw []byte, value func() ([]byte, error)) (bool, error) {
	v, err := value()
	if err != nil {
		return false, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	g, err := glanceAt(raw, v)
	if err != nil {
		return false, err
	}
	if g.seq > a.op.To {
		a.peeked++
		a.last = g.timeMS
		return a.t.Queued > 0 && a.peeked < peekMax && !g.isFor(a.op.Target), nil
	}
	if a.rows++; a.rows > AckRowsMax {
		return false, nil
	}
	a.last = g.timeMS
	if a.rows == AckRowsMax {
		a.t.Cursor = g.seq
	}
	if !g.isFor(a.op.Target) {
		return true, nil
	}
	return true, a.take(&g, raw, v)
}

// take takes an event of the target off its queue, and forgets it if it was only kept for that.
func (a *ack) take(g *glance, raw, value []byte) error {
	id := toldID{g.bucket, a.op.Target}
	c, err := a.m.toldCounter(id)
	if err != nil {
		return err
	}
	a.t.Queued--
	a.t.QueuedBytes -= g.size
	c.Queued--
	if c.QueuedBytes -= int64(g.size); c.Queued == 0 && !slices.Contains(a.over, id) {
		a.over = append(a.over, id)
	}
	for len(a.dead) > 0 && a.dead[0].Seq < g.seq {
		a.dead = a.dead[1:] // there is no such event of the target
	}
	switch {
	case len(a.dead) > 0 && a.dead[0].Seq == g.seq:
		c.Dead++
		if err := a.bury(g.seq, a.dead[0].Error, raw, value); err != nil {
			return err
		}
	case a.op.Dropped:
		c.Dropped++
	default:
		c.Delivered++
	}
	if g.seq > a.trimmed {
		return nil
	}
	if waited, err := a.m.waited(g, a.op.Target); waited || err != nil {
		return err
	}
	return a.m.forget(g, raw)
}

// bury keeps an event as a dead letter.
func (a *ack) bury(seq uint64, why string, raw, value []byte) error {
	row := &metapb.DeadEventRow{Format: 1, Event: &metapb.EventRow{}, Error: cutText(why, deadErrorMax), AtMs: a.m.now()}
	if err := row.Event.UnmarshalVT(value); err != nil {
		return corrupt(raw, err)
	}
	a.t.Dead++
	a.m.key = binary.BigEndian.AppendUint64(appendDead(a.m.key[:0], a.m.group, a.op.Target), seq)
	return a.m.put(a.m.key, row)
}

// cutText is s without what is behind so many bytes, or no UTF-8.
func cutText(s string, bytesMax int) string {
	return strings.ToValidUTF8(s[:min(len(s), bytesMax)], "")
}

// buryOldest forgets the oldest dead letters of a target, if there are more than DeadMax.
func (m *Machine) buryOldest(target string, t *metapb.EventTargetRow) error {
	if t.Dead <= DeadMax {
		return nil
	}
	start := appendDead(nil, m.group, target)
	return m.iterate(start, prefixEnd(slices.Clone(start)), func(raw []byte, _ func() ([]byte, error)) (bool, error) {
		t.Dead--
		return t.Dead > DeadMax, m.del(raw)
	})
}

// ---- the other commands ----

// holdEvents says whether what would make another event for a target is refused.
func (m *Machine) holdEvents(op *metapb.HoldEventsOp) (*metapb.RangeResult, error) {
	if detail := checkTarget(op.GetTarget()); detail != "" {
		return refuse(errs.InvalidArgument, detail), nil
	}
	known, err := m.target(op.Target)
	if err != nil {
		return nil, err
	}
	if known.row.Held != op.Held {
		t, err := m.changeTarget(op.Target)
		if err != nil {
			return nil, err
		}
		t.Held = op.Held
	}
	return &metapb.RangeResult{Ok: true}, nil
}

// trimEvents forgets events up to a sequence, all but those that a target waits for, which go when the last such target is done with them. It looks at
// rows_max rows at most, or TrimRowsMax, from where the last one ended (more).
func (m *Machine) trimEvents(op *metapb.TrimEventsOp) (*metapb.RangeResult, error) {
	left := int(op.GetRowsMax())
	if left == 0 || left > TrimRowsMax {
		left = TrimRowsMax
	}
	log, err := m.readLog()
	if err != nil {
		return nil, err
	}
	to := min(op.GetTo(), log.Newest)
	res := &metapb.RangeResult{Ok: true}
	if to <= log.Trimmed {
		return res, nil
	}
	if log, err = m.eventLog(); err != nil {
		return nil, err
	}
	start, end := appendEvent(nil, m.group, log.Trimmed+1), prefixEnd(appendEvent(nil, m.group, to))
	err = m.iterate(start, end, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		if left == 0 {
			res.More = true
			return false, nil
		}
		left--
		v, err := value()
		if err != nil {
			return false, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
		}
		g, err := glanceAt(raw, v)
		if err != nil {
			return false, err
		}
		log.Trimmed = g.seq
		if waited, err := m.waited(&g, ""); waited || err != nil {
			return true, err
		}
		return true, m.forget(&g, raw)
	})
	if err == nil && !res.More {
		log.Trimmed = to
	}
	return res, err
}

// waited reports whether a target waits for an event. One target does not count (but), if it is named.
func (m *Machine) waited(g *glance, but string) (bool, error) {
	for _, name := range g.targets() {
		if name == "" || name == but {
			continue
		}
		t, err := m.target(name)
		if err != nil {
			return false, err
		}
		if t.row.Queued > 0 && t.row.Cursor < g.seq {
			return true, nil
		}
	}
	return false, nil
}

// forget removes an event from the outbox.
func (m *Machine) forget(g *glance, raw []byte) error {
	log, err := m.eventLog()
	if err != nil {
		return err
	}
	log.Rows--
	log.Bytes -= g.size
	return m.del(raw)
}

// dropDeadEvents forgets dead letters of a target. What is not there is passed over.
func (m *Machine) dropDeadEvents(op *metapb.DropDeadEventsOp) (*metapb.RangeResult, error) {
	if detail := checkTarget(op.GetTarget()); detail != "" {
		return refuse(errs.InvalidArgument, detail), nil
	}
	if len(op.Seqs) > AckDeadMax {
		return refuse(errs.InvalidArgument, "too many dead letters"), nil
	}
	for _, seq := range op.Seqs {
		var row metapb.DeadEventRow
		key := binary.BigEndian.AppendUint64(appendDead(nil, m.group, op.Target), seq)
		ok, err := m.get(key, &row)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		t, err := m.changeTarget(op.Target)
		if err != nil {
			return nil, err
		}
		t.Dead--
		if err := m.del(key); err != nil {
			return nil, err
		}
	}
	return &metapb.RangeResult{Ok: true}, nil
}

// eventsReady ends what a child has waited for since its birth. Conflict: it waits for something else.
func (m *Machine) eventsReady(op *metapb.EventsReadyOp) (*metapb.RangeResult, error) {
	log, err := m.readLog()
	if err != nil {
		return nil, err
	}
	if log.WaitGroup == 0 {
		return &metapb.RangeResult{Ok: true}, nil
	}
	if log.WaitSeq != op.GetWaitSeq() {
		return refuse(errs.Conflict, "the range waits for another sequence of its parent"), nil
	}
	if log, err = m.eventLog(); err != nil {
		return nil, err
	}
	log.WaitGroup, log.WaitSeq = 0, 0
	return &metapb.RangeResult{Ok: true}, nil
}

// waitForParent has a child that is born deliver nothing before its parent has delivered what it had. If that never had anything, and
// waits for nothing itself, there is nothing to wait for.
func (m *Machine) waitForParent(child cluster.GroupID) error {
	log, err := m.readLog()
	if err != nil || log.Newest == 0 && log.WaitGroup == 0 {
		return err
	}
	row := &metapb.EventLogRow{Format: 1, WaitGroup: uint64(m.group), WaitSeq: m.clock.Seq}
	m.key = appendGroup(m.key[:0], child, subLog)
	return m.put(m.key, row)
}
