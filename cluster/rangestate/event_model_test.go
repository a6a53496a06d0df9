package rangestate

import (
	"math"
	"slices"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/errs"
)

// mOutbox is the model of a range's outbox: the list of all events that are kept, and of each target those that wait.
type mOutbox struct {
	told    []*metapb.EventRow // by the last command; the machine chooses their sequences
	kept    []*mEvent
	newest  uint64
	trimmed uint64
	targets map[string]*mTarget
	counts  map[toldID]*metapb.EventCounterRow
	timers  map[uint64]*mTimer // by sequence of the version
}

type mEvent struct {
	seq uint64
	row *metapb.EventRow
}

type mTarget struct {
	cursor uint64
	queue  []*mEvent
	held   bool
	dead   []uint64
}

type mTimer struct {
	bucket         uint64
	key            string
	ready, expires int64
}

func newMOutbox() mOutbox {
	return mOutbox{targets: map[string]*mTarget{}, counts: map[toldID]*metapb.EventCounterRow{}, timers: map[uint64]*mTimer{}}
}

func (o *mOutbox) count(bucket uint64, target string) *metapb.EventCounterRow {
	id := toldID{bucket, target}
	if o.counts[id] == nil {
		o.counts[id] = &metapb.EventCounterRow{}
	}
	return o.counts[id]
}

func mTargets(e *metapb.EventRow) (names []string) {
	if e.Target != "" {
		names = append(names, e.Target)
	}
	if e.Bridge && e.Target != "default" {
		names = append(names, "default")
	}
	return names
}

// event is what a bucket's configuration wants of an event; nil: nothing.
func (b *mBucket) event(kind notification.Type, key string) *metapb.EventRow {
	on := b.row.Events
	if on == nil {
		return nil
	}
	e := &metapb.EventRow{Format: 1, Type: uint32(kind), Bucket: b.row.Id, BucketName: on.Name, Owner: on.Owner, Region: on.Region, Key: []byte(key), Bridge: on.Config.EventBridge}
	for _, r := range on.Config.Rules {
		if !strings.HasPrefix(key, r.Prefix) || !strings.HasSuffix(key, r.Suffix) {
			continue
		}
		for _, name := range r.Events {
			if family, all := strings.CutSuffix(name, "*"); name == "s3:"+kind.String() || all && strings.HasPrefix("s3:"+kind.String(), family) {
				e.Rule, e.Target = r.Id, r.Arn[strings.LastIndex(strings.TrimSuffix(r.Arn, ":3"), ":")+1:]
				e.Target = strings.TrimSuffix(e.Target, ":3")
			}
		}
	}
	if e.Rule == "" && !e.Bridge {
		return nil
	}
	return e
}

// busy reports whether what would make an event must be refused.
func (m *model) busy(b *mBucket, kind notification.Type, key string) bool {
	e := b.event(kind, key)
	return e != nil && slices.ContainsFunc(mTargets(e), func(t string) bool { return m.outbox.targets[t] != nil && m.outbox.targets[t].held })
}

// tell expects an event of the version that res names. fill may add to it.
func (m *model) tell(b *mBucket, kind notification.Type, key string, res *metapb.RangeResult, fill func(e *metapb.EventRow)) {
	e := b.event(kind, key)
	if e == nil {
		return
	}
	e.TimeMs, e.Requester = m.now, m.requester
	e.VersionSeq, e.VersionNonce, e.NullVersion, e.Versioned = res.VersionSeq, res.VersionNonce, res.NullVersion, res.Versioned
	if fill != nil {
		fill(e)
	}
	m.outbox.told = append(m.outbox.told, e)
	res.Events = true
}

func (v *mVersion) content(e *metapb.EventRow) { e.Size, e.Etag = v.size, v.etag }

func (v *mVersion) archived(expiry int64) func(e *metapb.EventRow) {
	return func(e *metapb.EventRow) {
		v.content(e)
		if e.StorageClass = v.class; v.class == "" {
			e.StorageClass = "STANDARD"
		}
		e.RestoreExpiryMs = expiry
	}
}

// written gives the events of the last command the sequences that the machine gave them.
func (o *mOutbox) written(seqs []uint64) {
	for i, row := range o.told {
		e := &mEvent{seqs[i], row}
		o.kept = append(o.kept, e)
		o.newest = e.seq
		for _, name := range mTargets(row) {
			t := o.target(name)
			if len(t.queue) == 0 {
				t.cursor = e.seq - 1
			}
			t.queue = append(t.queue, e)
			c := o.count(row.Bucket, name)
			c.Queued++
			c.QueuedBytes += int64(row.SizeVT())
		}
	}
	o.told = nil
}

func (o *mOutbox) target(name string) *mTarget {
	if o.targets[name] == nil {
		o.targets[name] = &mTarget{}
	}
	return o.targets[name]
}

func (m *model) runEvents(cmd *metapb.RangeCommand) *metapb.RangeResult {
	o := &m.outbox
	switch op := cmd.Op.(type) {
	case *metapb.RangeCommand_AckEvents:
		return m.ack(op.AckEvents)
	case *metapb.RangeCommand_HoldEvents:
		if op.HoldEvents.Held || o.targets[op.HoldEvents.Target] != nil {
			o.target(op.HoldEvents.Target).held = op.HoldEvents.Held
		}
	case *metapb.RangeCommand_TrimEvents:
		return m.trim(op.TrimEvents)
	case *metapb.RangeCommand_FireTimers:
		res := &metapb.RangeResult{Ok: true}
		for _, id := range op.FireTimers.Ids {
			m.fire(id, res)
		}
		return res
	case *metapb.RangeCommand_DropDeadEvents:
		if t := o.targets[op.DropDeadEvents.Target]; t != nil {
			t.dead = slices.DeleteFunc(t.dead, func(seq uint64) bool { return slices.Contains(op.DropDeadEvents.Seqs, seq) })
		}
	default:
		return nil
	}
	return &metapb.RangeResult{Ok: true}
}

func (m *model) ack(op *metapb.AckEventsOp) *metapb.RangeResult {
	t := m.outbox.targets[op.Target]
	if op.To <= op.From {
		return fail(errs.InvalidArgument)
	}
	if t == nil || len(t.queue) == 0 || t.cursor != op.From || op.To > m.outbox.newest {
		return fail(errs.Conflict)
	}
	buckets := map[uint64]bool{}
	for len(t.queue) > 0 && t.queue[0].seq <= op.To {
		e := t.queue[0]
		t.queue = t.queue[1:]
		c := m.outbox.count(e.row.Bucket, op.Target)
		c.Queued--
		c.QueuedBytes -= int64(e.row.SizeVT())
		buckets[e.row.Bucket] = true
		switch {
		case slices.ContainsFunc(op.Dead, func(d *metapb.DeadEvent) bool { return d.Seq == e.seq }):
			c.Dead++
			t.dead = append(t.dead, e.seq)
		case op.Dropped:
			c.Dropped++
		default:
			c.Delivered++
		}
		if e.seq <= m.outbox.trimmed && !m.outbox.waited(e) {
			m.outbox.kept = slices.DeleteFunc(m.outbox.kept, func(k *mEvent) bool { return k == e })
		}
	}
	t.cursor = op.To
	for b := range buckets {
		if m.gone[b] {
			m.handOn(b, op.Target)
		}
	}
	return &metapb.RangeResult{Ok: true, VersionSeq: op.To}
}

// handOn adds what was counted of a dropped bucket to bucket 0, if nothing of it waits.
func (m *model) handOn(bucket uint64, target string) {
	c := m.outbox.count(bucket, target)
	if c.Queued != 0 {
		return
	}
	to := m.outbox.count(0, target)
	to.Delivered, to.Dead, to.Dropped = to.Delivered+c.Delivered, to.Dead+c.Dead, to.Dropped+c.Dropped
	c.Reset()
}

// waited reports whether an event is in the queue of a target.
func (o *mOutbox) waited(e *mEvent) bool {
	for _, t := range o.targets {
		if slices.Contains(t.queue, e) {
			return true
		}
	}
	return false
}

func (m *model) trim(op *metapb.TrimEventsOp) *metapb.RangeResult {
	o := &m.outbox
	to := min(op.To, o.newest)
	res := &metapb.RangeResult{Ok: true}
	if to <= o.trimmed {
		return res
	}
	var kept []*mEvent
	n, was := uint32(0), o.trimmed
	for _, e := range o.kept {
		switch {
		case res.More || e.seq <= was || e.seq > to:
			kept = append(kept, e)
			continue
		case op.RowsMax > 0 && n == op.RowsMax:
			res.More = true
			kept = append(kept, e)
			continue
		case o.waited(e):
			kept = append(kept, e)
		}
		n++
		o.trimmed = e.seq
	}
	if o.kept = kept; !res.More {
		o.trimmed = to
	}
	return res
}

// removed is for a version that goes.
func (m *model) removed(bucket uint64, v *mVersion) {
	m.leaves(bucket, v)
	if t := m.outbox.timers[v.seq]; t != nil {
		m.fire(&metapb.EventTimerID{Bucket: bucket, Key: []byte(t.key), VersionSeq: v.seq}, &metapb.RangeResult{})
		delete(m.outbox.timers, v.seq)
	}
}

// restored has the restore of a version tell what comes with time.
func (m *model) restored(b *mBucket, key string, v *mVersion, was *metapb.Restore, begun bool, res *metapb.RangeResult) {
	if b.row.Events == nil {
		return
	}
	t := m.outbox.timers[v.seq]
	if t != nil && begun {
		m.due(b, v, t, was, res)
		t = nil
	}
	if t == nil {
		t = &mTimer{bucket: b.row.Id, key: key}
		m.outbox.timers[v.seq] = t
		if begun {
			t.ready = v.restore.ReadyMs
		}
	}
	t.follow(v.restore, m.now)
}

func (t *mTimer) follow(r *metapb.Restore, now int64) {
	if t.ready != 0 || r.ReadyMs > now {
		t.ready = r.ReadyMs
	}
	t.expires = r.ExpiresMs
}

func (m *model) due(b *mBucket, v *mVersion, t *mTimer, r *metapb.Restore, res *metapb.RangeResult) {
	id := named(b, v)
	if t.ready != 0 && t.ready <= m.now {
		t.ready = 0
		m.tell(b, notification.ObjectRestoreCompleted, t.key, id, v.archived(r.ExpiresMs))
	}
	if t.expires != 0 && t.expires <= m.now {
		t.expires = 0
		m.tell(b, notification.ObjectRestoreDelete, t.key, id, v.archived(0))
	}
	res.Events = res.Events || id.Events
}

func (m *model) fire(id *metapb.EventTimerID, res *metapb.RangeResult) {
	t := m.outbox.timers[id.VersionSeq]
	if t == nil || t.bucket != id.Bucket || t.key != string(id.Key) {
		return
	}
	b := m.buckets[id.Bucket]
	var v *mVersion
	if b != nil && b.row.Events != nil {
		if i := slices.IndexFunc(b.keys[t.key], func(v *mVersion) bool { return v.seq == id.VersionSeq }); i >= 0 {
			v = b.keys[t.key][i]
		}
	}
	if v == nil {
		delete(m.outbox.timers, id.VersionSeq)
		return
	}
	t.follow(v.restore, m.now)
	if m.due(b, v, t, v.restore, res); t.ready == 0 && t.expires == 0 {
		delete(m.outbox.timers, id.VersionSeq)
	}
}

// ---- random commands ----

func eventRule(id, arn, prefix, suffix string, events ...string) *metapb.NotificationRule {
	kind := metapb.NotificationRule_KIND_QUEUE
	if strings.Contains(arn, ":lambda:") {
		kind = metapb.NotificationRule_KIND_FUNCTION
	}
	return &metapb.NotificationRule{Id: id, Kind: kind, Arn: arn, Events: events, Prefix: prefix, Suffix: suffix}
}

func eventsOf(name string, bridge bool, rules ...*metapb.NotificationRule) *metapb.BucketEvents {
	return &metapb.BucketEvents{Name: name, Owner: "owner", Region: "eu-north-1", Config: &metapb.NotificationConfig{Rules: rules, EventBridge: bridge}}
}

func (w *world) someEvents() *metapb.BucketEvents {
	const sqs = "arn:aws:sqs:eu-north-1:1:"
	switch w.n(6) {
	case 0:
		return nil
	case 1:
		return eventsOf("bridged", true)
	case 2:
		return eventsOf("both", true, eventRule("to the bus", sqs+"default", "", "", "s3:ObjectCreated:*"), eventRule("gone", sqs+"q2", "a", "", "s3:ObjectRemoved:*"))
	}
	return eventsOf("ruled", false,
		eventRule("new a", sqs+"q1", "a", "", "s3:ObjectCreated:Put", "s3:ObjectCreated:CompleteMultipartUpload", "s3:LifecycleTransition"),
		eventRule("new b", sqs+"q2", "b", "", "s3:ObjectCreated:*", "s3:ObjectRemoved:Delete"),
		eventRule("copies", sqs+"q1", "a", "b", "s3:ObjectCreated:Copy"),
		eventRule("marked", sqs+"q1", "", "", "s3:ObjectRemoved:DeleteMarkerCreated", "s3:LifecycleExpiration:*"),
		eventRule("other", "arn:aws:lambda::1:function:f:3", "", "", "s3:ObjectTagging:*", "s3:ObjectRestore:*"),
	)
}

var worldTargets = []string{"q1", "q1", "q2", "f", "default", "nobody"}

func (w *world) newAck() any {
	op := &metapb.AckEventsOp{Target: pick(w, worldTargets), Dropped: w.chance(20)}
	t := w.model.outbox.targets[op.Target]
	if t == nil || len(t.queue) == 0 {
		op.From = w.model.outbox.newest
		op.To = op.From + uint64(w.n(3))
		return op
	}
	last := t.queue[w.n(len(t.queue))].seq
	op.From, op.To = t.cursor, last+uint64(w.n(2))
	for _, e := range t.queue {
		if e.seq <= last && w.chance(20) {
			op.Dead = append(op.Dead, &metapb.DeadEvent{Seq: e.seq, Error: "no"})
		}
	}
	if w.chance(10) {
		op.From++
	}
	if len(op.Dead) > 0 && op.Dead[0].Seq <= op.From {
		op.Dead = nil
	}
	return op
}

func (w *world) newEventOp() any {
	o := &w.model.outbox
	switch w.n(10) {
	case 0:
		return &metapb.HoldEventsOp{Target: pick(w, worldTargets), Held: w.chance(30)}
	case 1, 2:
		return &metapb.TrimEventsOp{To: uint64(w.n(int(o.newest) + 10)), RowsMax: uint32(w.n(10))}
	case 3:
		op := &metapb.DropDeadEventsOp{Target: pick(w, worldTargets), Seqs: []uint64{w.id()}}
		if t := o.targets[op.Target]; t != nil {
			op.Seqs = append(op.Seqs, t.dead[:w.n(len(t.dead)+1)]...)
		}
		return op
	case 4, 5, 6:
		op := &metapb.FireTimersOp{Ids: []*metapb.EventTimerID{{Bucket: 1, Key: []byte("a"), VersionSeq: 1 << 40}, {}}}
		for _, seq := range sortedSeqs(o.timers) {
			t := o.timers[seq]
			op.Ids = append(op.Ids, &metapb.EventTimerID{Bucket: t.bucket, Key: []byte(t.key), VersionSeq: seq})
		}
		return op
	}
	return w.newAck()
}

func sortedSeqs[V any](m map[uint64]V) (seqs []uint64) {
	for seq := range m {
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	return seqs
}

// ---- checks ----

// checkTold compares what the last command wrote to the outbox with what it should have.
func (w *world) checkTold() {
	w.t.Helper()
	o := &w.model.outbox
	page, err := w.view().Events(&EventQuery{After: o.newest, Limit: math.MaxInt})
	if err != nil {
		w.t.Fatal(err)
	}
	var seqs []uint64
	for i, e := range page.Items {
		if i >= len(o.told) || !e.Row.EqualVT(o.told[i]) {
			w.t.Fatalf("event %d is %v, want %v", i, e.Row, o.told)
		}
		seqs = append(seqs, e.Seq)
	}
	if len(seqs) != len(o.told) {
		w.t.Fatalf("%d events, want %v", len(seqs), o.told)
	}
	for _, e := range o.told {
		w.seen["event "+notification.Type(e.Type).String()]++
	}
	o.written(seqs)
}

// checkOutbox compares all of the outbox.
func (w *world) checkOutbox() {
	w.t.Helper()
	o := &w.model.outbox
	v := w.view()
	target, bucket, limit := pick(w, append([]string{""}, worldTargets...)), storage.BucketID(w.n(4)), 1+w.n(7)
	if w.chance(50) {
		target, bucket = "", 0
	}
	var want []*mEvent
	for _, e := range o.kept {
		if (target == "" || slices.Contains(mTargets(e.row), target)) && (bucket == 0 || uint64(bucket) == e.row.Bucket) {
			want = append(want, e)
		}
	}
	q := EventQuery{Target: target, Bucket: bucket, Limit: limit, LookMax: w.n(9), BytesMax: w.n(600)}
	for more := true; more; {
		page, err := v.Events(&q)
		if err != nil {
			w.t.Fatal(err)
		}
		if q.After == page.Next && page.More || len(page.Items) > limit {
			w.t.Fatalf("%+v gets nowhere, or has too many: %+v", q, page)
		}
		bytes := 0
		for _, e := range page.Items {
			if len(want) == 0 || e.Seq != want[0].seq || !e.Row.EqualVT(want[0].row) || e.Seq > page.Next {
				w.t.Fatalf("%+v: event %d is %v, want %v", q, e.Seq, e.Row, want)
			}
			want = want[1:]
			bytes += e.Row.SizeVT()
		}
		if q.BytesMax > 0 && bytes > q.BytesMax && len(page.Items) > 1 {
			w.t.Errorf("%+v: %d bytes", q, bytes)
		}
		q.After, more = page.Next, page.More
	}
	if len(want) > 0 {
		w.t.Fatalf("events missing for %+v: %v", q, want)
	}
	s, err := v.EventState()
	if err != nil {
		w.t.Fatal(err)
	}
	bytes := 0
	for _, e := range o.kept {
		bytes += e.row.SizeVT()
	}
	if s.Log.Newest != o.newest || s.Log.Trimmed != o.trimmed || s.Log.Rows != uint64(len(o.kept)) || s.Log.Bytes != uint64(bytes) || s.Timers != (len(o.timers) > 0) {
		w.t.Errorf("the log is %v %v, want %d rows of %d bytes up to %d without those up to %d, timers %d", s.Log, s.Timers, len(o.kept), bytes, o.newest, o.trimmed, len(o.timers))
	}
	w.checkTargets(v, s)
	w.checkEventCounters(v)
	w.checkTimers(v)
}

func (w *world) checkTargets(v *View, s EventState) {
	w.t.Helper()
	names := sortedKeys(w.model.outbox.targets)
	if len(names) != len(s.Targets) {
		w.t.Fatalf("targets %v, want %v", s.Targets, names)
	}
	for i, name := range names {
		t, row := w.model.outbox.targets[name], s.Targets[i].Row
		bytes := 0
		for _, e := range t.queue {
			bytes += e.row.SizeVT()
		}
		if s.Targets[i].Name != name || row.Queued != uint64(len(t.queue)) || row.QueuedBytes != uint64(bytes) || row.Held != t.held || row.Dead != uint64(len(t.dead)) {
			w.t.Errorf("target %s is %v, want %+v", name, row, t)
		}
		if len(t.queue) == 0 && row.OldestMs != 0 || len(t.queue) > 0 && (row.Cursor != t.cursor || row.OldestMs > t.queue[0].row.TimeMs || row.OldestMs == 0) {
			w.t.Errorf("target %s is %v, want %+v", name, row, t)
		}
		dead, err := v.DeadEvents(name, 0, 1000)
		if err != nil || !slices.EqualFunc(dead, t.dead, func(d DeadEvent, seq uint64) bool {
			return d.Seq == seq && d.Row.Error == "no" && d.Row.Event.Type != 0
		}) {
			w.t.Errorf("dead letters of %s: %v, %v; want %v", name, dead, err, t.dead)
		}
	}
}

func (w *world) checkEventCounters(v *View) {
	w.t.Helper()
	want := map[toldID]*metapb.EventCounterRow{}
	for id, c := range w.model.outbox.counts {
		if c.SizeVT() > 0 {
			want[id] = c
		}
	}
	var after *EventCounter
	for {
		out, next, err := v.EventCounters(after, 1+w.n(3))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, c := range out {
			id := toldID{uint64(c.Bucket), c.Target}
			if want[id] == nil || !want[id].EqualVT(c.Row) {
				w.t.Errorf("counter %v is %v, want %v", id, c.Row, want[id])
			}
			delete(want, id)
		}
		if after = next; next == nil {
			break
		}
	}
	if len(want) > 0 {
		w.t.Errorf("no counters %v", want)
	}
}

func (w *world) checkTimers(v *View) {
	w.t.Helper()
	var after *metapb.EventTimerID
	n := 0
	for {
		out, err := v.EventTimers(after, 2)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, t := range out {
			want := w.model.outbox.timers[t.ID.VersionSeq]
			if want == nil || want.bucket != t.ID.Bucket || want.key != string(t.ID.Key) || want.ready != t.Row.ReadyMs || want.expires != t.Row.ExpiresMs || t.Row.VersionSeq != t.ID.VersionSeq {
				w.t.Errorf("timer %v is %v, want %+v", t.ID, t.Row, want)
			}
			after = t.ID
			n++
		}
		if len(out) < 2 {
			break
		}
	}
	if n != len(w.model.outbox.timers) {
		w.t.Errorf("%d timers, want %d", n, len(w.model.outbox.timers))
	}
}
