package rangestate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/errs"
)

const queueARN = "arn:aws:sqs:eu-north-1:1:"

// everything is rules that send every event to target q.
func everything() *metapb.BucketEvents {
	return eventsOf("bucket", false, eventRule("all", queueARN+"q", "", "", "s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:ObjectRestore:*", "s3:LifecycleTransition",
		"s3:LifecycleExpiration:*", "s3:IntelligentTiering", "s3:ObjectTagging:*"))
}

// notified makes a bucket, or changes it, that sends its events so.
func (s *store) notified(id uint64, v metapb.Versioning, on *metapb.BucketEvents) {
	s.t.Helper()
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: id, Generation: s.id(), Versioning: v, Events: on}})
}

// events are all that are in the outbox.
func (s *store) events() []EventItem {
	s.t.Helper()
	return got(s.view().Events(&EventQuery{Limit: math.MaxInt, BytesMax: math.MaxInt})).Items
}

func kinds(items []EventItem) (names []string) {
	for _, e := range items {
		names = append(names, notification.Type(e.Row.Type).String())
	}
	return names
}

// tells runs fn and checks which events it made.
func (s *store) tells(fn func(), want ...string) []EventItem {
	s.t.Helper()
	before := len(s.events())
	fn()
	after := s.events()[before:]
	if !slices.Equal(kinds(after), want) {
		s.t.Errorf("events %q, want %q", kinds(after), want)
	}
	return after
}

func (s *store) targetRow(name string) *metapb.EventTargetRow {
	s.t.Helper()
	for _, t := range got(s.view().EventState()).Targets {
		if t.Name == name {
			return t.Row
		}
	}
	return &metapb.EventTargetRow{}
}

func (s *store) outboxLog() *metapb.EventLogRow {
	s.t.Helper()
	return got(s.view().EventState()).Log
}

func (s *store) eventCounter(bucket storage.BucketID, target string) *metapb.EventCounterRow {
	s.t.Helper()
	out, _, err := s.view().EventCounters(nil, 1000)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range out {
		if c.Bucket == bucket && c.Target == target {
			return c.Row
		}
	}
	return &metapb.EventCounterRow{}
}

// What an event says, field by field, and that a repeat of its command says nothing.
func TestEventOfAPut(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, everything())
	cmd := s.command(s.put(1, "k", 10, 20))
	cmd.Requester = &metapb.Requester{Principal: "AWS:x", SourceIp: "::1", RequestId: "R", HostId: "H"}
	op := cmd.GetPutObject()
	op.Event = uint32(notification.ObjectCreatedCopy)
	etag := op.Row.Etag
	res := s.apply(cmd.CloneVT())
	want := &metapb.EventRow{
		Format: 1, Type: uint32(notification.ObjectCreatedCopy), TimeMs: s.now, Bucket: 1, BucketName: "bucket", Owner: "owner", Region: "eu-north-1", Key: []byte("k"),
		VersionSeq: res.VersionSeq, VersionNonce: res.VersionNonce, Versioned: true, Size: 30, Etag: etag, Requester: cmd.Requester, Target: "q", Rule: "all",
	}
	items := s.events()
	if len(items) != 1 || !items[0].Row.EqualVT(want) || items[0].Seq <= res.VersionSeq || !res.Ok || !res.Events {
		t.Fatalf("%v, %v; want %v", res, items, want)
	}
	before := dump(t, s.db)
	if again := s.apply(cmd); again.VersionSeq != res.VersionSeq {
		t.Fatal(again)
	}
	sameDump(t, "a repeat", dump(t, s.db), before)
	// The type that a command names says only what kind of put it was.
	for event, kind := range map[uint32]string{0: "ObjectCreated:Put", 1: "ObjectCreated:Put", 2: "ObjectCreated:Post", 5: "ObjectCreated:Put", 1 << 31: "ObjectCreated:Put", 259: "ObjectCreated:Put"} {
		op := s.put(1, "k", 1)
		op.Event = event
		s.tells(func() { s.ok(op) }, kind)
	}
}

func TestEventsOfDeletes(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	s.ok(s.put(1, "k", 10))
	e := s.tells(func() { s.ok(s.delete(1, "k")) }, "ObjectRemoved:Delete")[0].Row
	if e.Size != 0 || e.Etag != "" || e.VersionSeq != 0 || e.Versioned {
		t.Error(e)
	}
	s.tells(func() { s.ok(s.delete(1, "k")) }) // nothing was there
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, everything())
	v := versionIn(s.ok(s.put(1, "k", 10)))
	var marker *metapb.RangeResult
	e = s.tells(func() {
		res := s.ok(s.delete(1, "k"))
		if marker = res.Entries[0]; !res.Events || !marker.Events {
			t.Error(res)
		}
	}, "ObjectRemoved:DeleteMarkerCreated")[0].Row
	if e.VersionSeq != marker.VersionSeq || e.VersionNonce != marker.VersionNonce || e.Etag != "" || !e.Versioned {
		t.Error(e, marker)
	}
	e = s.tells(func() { s.ok(s.deleteVersion(1, "k", *v)) }, "ObjectRemoved:Delete")[0].Row
	if e.VersionSeq != uint64(v.Seq) || e.VersionNonce != v.Nonce {
		t.Error(e)
	}
	s.tells(func() {
		if res := s.ok(s.deleteVersion(1, "k", *v)); res.Events {
			t.Error(res)
		}
	})
	s.tells(func() { s.ok(s.deleteVersion(1, "k", *versionIn(marker))) }, "ObjectRemoved:Delete")
}

func TestEventsOfMoves(t *testing.T) {
	s := newStore(t)
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 1, Events: everything()}})
	id := s.tiered("k")
	for _, c := range []struct {
		to   metapb.Tiering_Tier
		tier string
	}{
		{metapb.Tiering_INFREQUENT, ""}, {metapb.Tiering_ARCHIVE_INSTANT, ""}, {metapb.Tiering_ARCHIVE, "ARCHIVE_ACCESS"}, {metapb.Tiering_ARCHIVE, ""},
		{metapb.Tiering_DEEP_ARCHIVE, "DEEP_ARCHIVE_ACCESS"}, {metapb.Tiering_FREQUENT, ""},
	} {
		var want []string
		if c.tier != "" {
			want = []string{"IntelligentTiering"}
		}
		var res *metapb.RangeResult
		items := s.tells(func() { res = s.ok(s.change("k", id, c.to)) }, want...)
		if res.Events != (c.tier != "") || c.tier != "" && (items[0].Row.AccessTier != c.tier || items[0].Row.VersionSeq != uint64(id.Seq) || items[0].Row.Size != 10 || items[0].Row.Requester != nil) {
			t.Errorf("to %v: %v, %v", c.to, res, items)
		}
	}
	move := func(class string) *metapb.RewriteDataOp {
		op := s.change("k", id, 0)
		op.Tier, op.StorageClass = nil, class
		return op
	}
	s.tells(func() { s.ok(move("INTELLIGENT_TIERING")) })
	e := s.tells(func() { s.ok(move("DEEP_ARCHIVE")) }, "LifecycleTransition")[0].Row
	if e.StorageClass != "DEEP_ARCHIVE" || e.Size != 10 || e.Etag == "" || e.NullVersion != true || e.VersionSeq != uint64(s.objectSeq("k")) {
		t.Error(e)
	}
	s.tells(func() { s.refused(errs.Conflict, func() any { op := move("STANDARD"); op.Generation++; return op }()) })
}

func (s *store) objectSeq(key storage.Key) storage.Seq {
	s.t.Helper()
	return storage.Seq(got(s.view().Object(1, key, nil)).Seq)
}

// Where an event goes: what the rules say, what their ARNs name, and the bus.
func TestEventTargets(t *testing.T) {
	for _, c := range []struct {
		name  string
		on    *metapb.BucketEvents
		key   string
		want  []string // targets, of a put
		rule  string
		alike bool // no event at all
	}{
		{name: "nobody", alike: true},
		{name: "an empty configuration", on: eventsOf("b", false), alike: true},
		{name: "another prefix", on: eventsOf("b", false, eventRule("r", queueARN+"q", "a/", "", "s3:ObjectCreated:*")), key: "b/c", alike: true},
		{name: "another event", on: eventsOf("b", false, eventRule("r", queueARN+"q", "", "", "s3:ObjectRemoved:*")), alike: true},
		{name: "prefix and suffix", on: eventsOf("b", false, eventRule("r", queueARN+"q", "a%3D/", ".jpg", "s3:ObjectCreated:Put")), key: "a=/x.jpg", want: []string{"q"}, rule: "r"},
		{name: "a function of a version", on: eventsOf("b", false, eventRule("r", "arn:aws:lambda:x:1:function:f:3", "", "", "s3:ObjectCreated:*")), want: []string{"f"}, rule: "r"},
		{name: "a topic", on: eventsOf("b", false, eventRule("r", "arn:aws-cn:sns:x:1:t-1_a.fifo", "", "", "s3:ObjectCreated:*")), want: []string{"t-1_a.fifo"}, rule: "r"},
		{name: "no ARN", on: eventsOf("b", false, eventRule("r", "q", "", "", "s3:ObjectCreated:*")), alike: true},
		{name: "the bus", on: eventsOf("b", true), want: []string{"default"}},
		{name: "both", on: eventsOf("b", true, eventRule("r", queueARN+"q", "", "", "s3:ObjectCreated:*")), want: []string{"default", "q"}, rule: "r"},
		{name: "the bus by a rule too", on: eventsOf("b", true, eventRule("r", queueARN+"default", "", "", "s3:ObjectCreated:*")), want: []string{"default"}, rule: "r"},
		{name: "one of two", on: eventsOf("b", false, eventRule("r", queueARN+"q", "a", "", "s3:ObjectCreated:*"), eventRule("s", queueARN+"p", "k", "", "s3:ObjectCreated:*")), want: []string{"p"}, rule: "s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			s.notified(1, metapb.Versioning_VERSIONING_NEVER, c.on)
			key := c.key
			if key == "" {
				key = "k"
			}
			rows := len(dump(t, s.db))
			res := s.ok(s.put(1, key, 1))
			if c.alike {
				if n := len(dump(t, s.db)) - rows; res.Events || n != 3 { // the object, its outcome and a counter
					t.Errorf("%v, %d rows", res, n)
				}
				return
			}
			e := s.events()[0].Row
			var names []string
			for _, target := range got(s.view().EventState()).Targets {
				names = append(names, target.Name)
				if n := len(got(s.view().Events(&EventQuery{Target: target.Name, Limit: 9})).Items); n != 1 || target.Row.Queued != 1 || s.eventCounter(1, target.Name).Queued != 1 {
					t.Errorf("%s: %d, %v", target.Name, n, target.Row)
				}
			}
			if !slices.Equal(names, c.want) || e.Rule != c.rule || e.Bridge != c.on.Config.EventBridge {
				t.Errorf("%v to %q", e, names)
			}
		})
	}
}

// Without a notification configuration nothing of all this leaves a trace in the state.
func TestNoEventsNoRows(t *testing.T) {
	f := newFamily(t)
	f.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	id := f.archive("k", "GLACIER")
	f.ok(update("k", id, &metapb.Restore{ReadyMs: f.now, ExpiresMs: f.now + 1, Tier: TierBulk}))
	f.ok(f.delete(1, "k"))
	f.ok(f.deleteVersion(1, "k", *id))
	f.ok(&metapb.FireTimersOp{Ids: []*metapb.EventTimerID{{Bucket: 1, Key: []byte("k"), VersionSeq: uint64(id.Seq)}}})
	f.ok(&metapb.TrimEventsOp{To: 1 << 60})
	f.ok(&metapb.EventsReadyOp{WaitSeq: 4})
	f.ok(&metapb.DropDeadEventsOp{Target: "q", Seqs: []uint64{1}})
	f.ok(&metapb.HoldEventsOp{Target: "q"})
	f.refused(errs.Conflict, &metapb.AckEventsOp{Target: "q", To: 1})
	f.split(testGroup, 1, "m")
	for _, kv := range dump(t, f.db) {
		if kv[0][0] == kindTimer || kv[0][0] == kindEvent || kv[0][0] == kindGroup && strings.IndexByte("pqxl", kv[0][9]) >= 0 {
			t.Errorf("row %q", kv[0])
		}
	}
	if s := got(f.viewOf(3).EventState()); s.Log.WaitGroup != 0 || s.Timers || len(s.Targets) != 0 {
		t.Error(s)
	}
}

// What would make an event for a target without room is refused before it changes anything.
func TestHeldTargets(t *testing.T) {
	s := newStore(t)
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 1, Versioning: metapb.Versioning_VERSIONING_ENABLED, Events: everything()}})
	id, glacier, tiered := versionIn(s.ok(s.put(1, "k", 10))), s.archive("g", "GLACIER"), s.tiered("t")
	up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("u"), Row: &metapb.UploadRow{WriteId: s.id16(), Owner: "me"}})
	s.ok(s.part("u", up.VersionSeq, 1, 10))
	s.ok(&metapb.HoldEventsOp{Target: "q", Held: true})
	move := s.change("k", id, 0)
	moved := s.chunk(10)
	move.Tier, move.StorageClass, move.Release = nil, "GLACIER", move.Data.Chunks
	move.Data = &metapb.Data{Chunks: []*metapb.ChunkRef{moved}}
	move.Kept = nil
	complete := &metapb.CompleteUploadOp{
		Bucket: 1, Key: []byte("u"), UploadSeq: up.VersionSeq, UploadGeneration: 2, Parts: []*metapb.ManifestPart{{Number: 1, Size: 10}}, VersionNonce: 1,
	}
	if u := got(s.view().Upload(1, "u", storage.UploadID{Seq: storage.Seq(up.VersionSeq)})); u.Generation != 2 {
		t.Fatal(u)
	}
	for name, c := range map[string]struct {
		op    any
		freed bool
	}{
		"put":           {s.put(1, "k", 20), true},
		"complete":      {complete, false},
		"delete":        {s.delete(1, "k"), false},
		"deleteVersion": {s.deleteVersion(1, "k", *id), false},
		"expire":        {expiry(1, 1, metapb.ExpireEntry_CURRENT, "k", uint64(id.Seq)), false},
		"tags":          {update("k", id, []*metapb.KV{{Name: "a", Value: "b"}}), false},
		"restore":       {update("g", glacier, &metapb.Restore{ReadyMs: s.now, ExpiresMs: s.now + 1, Tier: TierBulk}), false},
	} {
		if op, ok := c.op.(*metapb.ExpireOp); ok {
			op.Entries[0].VersionNonce = id.Nonce
		}
		lasting := func() (rows [][2]string) {
			for _, kv := range dump(t, s.db) {
				if kv[0][0] == kindOutcome || kv[0][0] == kindGroup && (kv[0][9] == subClock || kv[0][9] == subGarbage) {
					continue
				}
				rows = append(rows, kv)
			}
			return rows
		}
		before := lasting()
		cmd := s.command(c.op)
		res := s.apply(cmd)
		one := res
		if len(res.Entries) > 0 {
			one = res.Entries[0]
		}
		if one.Ok || errs.Kind(one.Kind) != errs.Busy || !strings.Contains(one.Detail, `"q"`) || res.Freed != c.freed || res.Events {
			t.Errorf("%s: %v", name, res)
		}
		sameDump(t, name, lasting(), before)
		if again := s.apply(cmd); !again.EqualVT(res) { // definitely
			t.Errorf("%s: %v, then %v", name, res, again)
		}
	}
	// What makes no event goes on, what moves data does, and a later try does.
	s.tells(func() { s.ok(move) }, "LifecycleTransition")
	s.tells(func() { s.ok(s.change("t", tiered, metapb.Tiering_ARCHIVE)) }, "IntelligentTiering")
	s.refused(errs.PreconditionFailed, func() any {
		op := s.put(1, "k", 1)
		op.Conditions = &metapb.Conditions{IfNoneMatch: []string{"*"}}
		return op
	}())
	s.ok(s.part("u", up.VersionSeq, 2, 10))
	s.ok(&metapb.HoldEventsOp{Target: "q"})
	s.tells(func() { s.ok(s.put(1, "k", 20)) }, "ObjectCreated:Put")
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, eventsOf("b", true))
	s.ok(&metapb.HoldEventsOp{Target: DefaultBus, Held: true})
	s.refused(errs.Busy, s.put(1, "k", 20))
}

func TestAck(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	s.notified(2, metapb.Versioning_VERSIONING_NEVER, eventsOf("two", true))
	for i := range 6 {
		s.now++
		s.ok(s.put(uint64(1+i%2), fmt.Sprint(i), 1))
	}
	all := s.events()
	seq := func(i int) uint64 { return all[i].Seq } // even ones are of q
	t0 := s.targetRow("q")
	if t0.Queued != 3 || t0.Cursor != seq(0)-1 || t0.OldestMs != all[0].Row.TimeMs {
		t.Fatal(t0)
	}
	long := strings.Repeat("x", 1023) + "ü and more"
	s.refused(errs.Conflict, &metapb.AckEventsOp{Target: "q", From: t0.Cursor + 1, To: seq(0) + 1})
	s.refused(errs.Conflict, &metapb.AckEventsOp{Target: "q", From: t0.Cursor, To: seq(5) + 1})
	s.refused(errs.Conflict, &metapb.AckEventsOp{Target: "nobody", From: 0, To: 1})
	ack := &metapb.AckEventsOp{Target: "q", From: t0.Cursor, To: seq(2), Dead: []*metapb.DeadEvent{{Seq: seq(1)}, {Seq: seq(2), Error: long}}}
	if res := s.ok(ack); res.VersionSeq != seq(2) || res.More {
		t.Fatal(res)
	}
	s.refused(errs.Conflict, ack) // as a repeat is
	row := s.targetRow("q")
	if row.Cursor != seq(2) || row.Queued != 1 || row.QueuedBytes != uint64(all[4].Row.SizeVT()) || row.Dead != 1 || row.OldestMs != all[4].Row.TimeMs {
		t.Error(row)
	}
	if c := s.eventCounter(1, "q"); c.Delivered != 1 || c.Dead != 1 || c.Queued != 1 || c.Dropped != 0 {
		t.Error(c)
	}
	if c := s.eventCounter(2, DefaultBus); c.Queued != 3 || s.targetRow(DefaultBus).Queued != 3 {
		t.Error(c)
	}
	dead := got(s.view().DeadEvents("q", 0, 10))
	if len(dead) != 1 || dead[0].Seq != seq(2) || !dead[0].Row.Event.EqualVT(all[2].Row) || dead[0].Row.AtMs != s.now || dead[0].Row.Error != strings.Repeat("x", 1023) || !utf8.ValidString(dead[0].Row.Error) {
		t.Error(dead)
	}
	if d := got(s.view().DeadEvents("q", seq(2), 10)); len(d) != 0 {
		t.Error(d)
	}
	// Given up, up to the newest; then an event comes that is the first one again.
	s.ok(&metapb.AckEventsOp{Target: "q", From: seq(2), To: seq(5), Dropped: true})
	if row := s.targetRow("q"); row.Queued != 0 || row.QueuedBytes != 0 || row.OldestMs != 0 || s.eventCounter(1, "q").Dropped != 1 {
		t.Error(row)
	}
	s.refused(errs.Conflict, &metapb.AckEventsOp{Target: "q", From: seq(5), To: seq(5) + 1})
	s.now++
	s.ok(s.put(1, "again", 1))
	if row := s.targetRow("q"); row.Queued != 1 || row.Cursor != s.outboxLog().Newest-1 || row.OldestMs != s.now {
		t.Error(row)
	}
	s.ok(&metapb.DropDeadEventsOp{Target: "q", Seqs: []uint64{1, seq(2), seq(2)}})
	if row := s.targetRow("q"); row.Dead != 0 || len(got(s.view().DeadEvents("q", 0, 10))) != 0 {
		t.Error(row)
	}
}

// puts are n commands in few batches.
func (s *store) puts(bucket uint64, n int) {
	s.t.Helper()
	for n > 0 {
		var datas [][]byte
		for ; n > 0 && len(datas) < 500; n-- {
			op := s.put(bucket, fmt.Sprint("key", n%10))
			datas = append(datas, got(s.command(op).MarshalVT()))
		}
		s.applyRaw(datas...)
	}
}

// One ack looks at so many rows and no more; the oldest dead letters go when there are too many.
func TestAckBounds(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	s.notified(2, metapb.Versioning_VERSIONING_NEVER, eventsOf("other", true))
	s.puts(1, 1)
	s.puts(2, AckRowsMax+10)
	s.puts(1, 2)
	from, newest := s.targetRow("q").Cursor, s.outboxLog().Newest
	res := s.ok(&metapb.AckEventsOp{Target: "q", From: from, To: newest})
	page := got(s.view().Events(&EventQuery{After: from, Target: "q", Limit: 10, LookMax: AckRowsMax}))
	if row := s.targetRow("q"); !res.More || row.Queued != 2 || row.Cursor != res.VersionSeq || row.Cursor != page.Next || !page.More || len(page.Items) != 1 {
		t.Fatal(res, row, page)
	}
	res = s.ok(&metapb.AckEventsOp{Target: "q", From: res.VersionSeq, To: newest})
	if row := s.targetRow("q"); res.More || row.Queued != 0 || row.Cursor != newest {
		t.Fatal(res, row)
	}
	s.puts(1, DeadMax+20)
	for {
		row := s.targetRow("q")
		if row.Queued == 0 {
			break
		}
		page := got(s.view().Events(&EventQuery{After: row.Cursor, Target: "q", Limit: AckDeadMax}))
		op := &metapb.AckEventsOp{Target: "q", From: row.Cursor, To: page.Next}
		for _, e := range page.Items {
			op.Dead = append(op.Dead, &metapb.DeadEvent{Seq: e.Seq, Error: "no"})
		}
		s.ok(op)
	}
	dead := got(s.view().DeadEvents("q", 0, math.MaxInt))
	last := s.outboxLog().Newest
	if row := s.targetRow("q"); len(dead) != DeadMax || row.Dead != DeadMax || dead[len(dead)-1].Seq != last || s.eventCounter(1, "q").Dead != DeadMax+20 {
		t.Error(len(dead), row)
	}
}

// Events are forgotten from the oldest on, but those that somebody waits for only once nobody does.
func TestTrim(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, eventsOf("b", true, eventRule("r", queueARN+"q", "", "", "s3:ObjectCreated:*")))
	s.puts(1, 10)
	all := s.events()
	check := func(trimmed uint64, left int) {
		t.Helper()
		items := s.events()
		bytes := uint64(0)
		for _, e := range items {
			bytes += uint64(e.Row.SizeVT())
		}
		if log := s.outboxLog(); len(items) != left || log.Rows != uint64(left) || log.Bytes != bytes || log.Newest != all[9].Seq || log.Trimmed != trimmed {
			t.Errorf("%d events, %v; want %d, trimmed to %d", len(items), log, left, trimmed)
		}
	}
	trim := func(to uint64, max uint32, more bool, trimmed uint64, left int) {
		t.Helper()
		if res := s.ok(&metapb.TrimEventsOp{To: to, RowsMax: max}); res.More != more {
			t.Error(res)
		}
		check(trimmed, left)
	}
	ack := func(target string, from, to uint64, left int) {
		t.Helper()
		s.ok(&metapb.AckEventsOp{Target: target, From: from, To: to})
		check(s.outboxLog().Trimmed, left)
	}
	ack("q", all[0].Seq-1, all[3].Seq, 10)
	ack(DefaultBus, all[0].Seq-1, all[1].Seq, 10)
	trim(all[3].Seq, 1, true, all[0].Seq, 9)
	trim(all[3].Seq, 2, true, all[2].Seq, 8) // the bus has not had the third
	trim(all[3].Seq, 2, false, all[3].Seq, 8)
	trim(all[1].Seq, 2, false, all[3].Seq, 8)
	ack(DefaultBus, all[1].Seq, all[4].Seq, 6) // the fifth goes when its time has come, and nobody waits for it
	trim(all[7].Seq, math.MaxUint32, false, all[7].Seq, 6)
	ack("q", all[3].Seq, all[7].Seq, 5)
	trim(math.MaxUint64, 0, false, all[9].Seq, 5)
	ack(DefaultBus, all[4].Seq, all[9].Seq, 2) // for q
	ack("q", all[7].Seq, all[9].Seq, 0)
	s.tells(func() { s.puts(1, 1) }, "ObjectCreated:Put")
}

// A target that is away keeps what waits for it and nothing else.
func TestTrimAroundWaiting(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	s.notified(2, metapb.Versioning_VERSIONING_NEVER, eventsOf("other", true))
	rows := func(want uint64) {
		t.Helper()
		if log := s.outboxLog(); log.Rows != want || len(s.events()) != int(want) {
			t.Errorf("%d rows, %v; want %d", len(s.events()), log, want)
		}
	}
	for range 6 {
		s.puts(1, 1)
		s.puts(2, 50)
	}
	s.ok(&metapb.HoldEventsOp{Target: "q", Held: true})
	s.ok(&metapb.AckEventsOp{Target: DefaultBus, From: s.targetRow(DefaultBus).Cursor, To: s.outboxLog().Newest})
	rows(306)
	s.ok(&metapb.TrimEventsOp{To: math.MaxUint64})
	rows(6)
	s.puts(2, 50)
	s.ok(&metapb.AckEventsOp{Target: DefaultBus, From: s.targetRow(DefaultBus).Cursor, To: s.outboxLog().Newest})
	s.ok(&metapb.TrimEventsOp{To: math.MaxUint64})
	rows(6)
	first := s.events()[0].Seq
	s.ok(&metapb.AckEventsOp{Target: "q", From: s.targetRow("q").Cursor, To: first, Dead: []*metapb.DeadEvent{{Seq: first, Error: "no"}}})
	rows(5)
	s.ok(&metapb.AckEventsOp{Target: "q", From: first, To: s.outboxLog().Newest})
	rows(0)
	if dead := got(s.view().DeadEvents("q", 0, 10)); len(dead) != 1 || s.outboxLog().Bytes != 0 {
		t.Error(dead, s.outboxLog())
	}
	s.ok(&metapb.HoldEventsOp{Target: "q"})
	s.puts(1, 1) // with nothing queued the cursor is where the next one begins
	s.ok(&metapb.TrimEventsOp{To: math.MaxUint64})
	rows(1)
	s.ok(&metapb.AckEventsOp{Target: "q", From: s.targetRow("q").Cursor, To: s.outboxLog().Newest})
	rows(0)
}

// In one batch a trim sees the acks before it.
func TestTrimBehindAckInOneBatch(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	s.puts(1, 3)
	row, newest := s.targetRow("q"), s.outboxLog().Newest
	s.applyRaw(got(s.command(s.put(1, "k", 1)).MarshalVT()),
		got(s.command(&metapb.AckEventsOp{Target: "q", From: row.Cursor, To: newest}).MarshalVT()), got(s.command(&metapb.TrimEventsOp{To: math.MaxUint64}).MarshalVT()))
	if n, log := len(s.events()), s.outboxLog(); n != 1 || log.Rows != 1 || log.Trimmed != log.Newest || log.Newest == newest {
		t.Error(n, log)
	}
}

func (s *store) timers() []EventTimer {
	s.t.Helper()
	return got(s.view().EventTimers(nil, 100))
}

func (s *store) fire() *metapb.RangeResult {
	s.t.Helper()
	op := &metapb.FireTimersOp{Ids: []*metapb.EventTimerID{{Bucket: 1, Key: []byte("not there"), VersionSeq: 7}, {}}}
	for _, t := range s.timers() {
		op.Ids = append(op.Ids, t.ID)
	}
	return s.ok(op)
}

const hourMS = 3600 * 1000

func TestTimersOfARestore(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, everything())
	id := s.archive("k", "DEEP_ARCHIVE")
	ask := func(ready, days int64, tier string) {
		t.Helper()
		s.ok(update("k", id, &metapb.Restore{ReadyMs: s.now + ready*hourMS, ExpiresMs: s.now + days*24*hourMS, Tier: tier}))
	}
	e := s.tells(func() { ask(48, 3, TierBulk) }, "ObjectRestore:Post")[0].Row
	if e.StorageClass != "DEEP_ARCHIVE" || e.Size != 10 || e.RestoreExpiryMs != 0 {
		t.Error(e)
	}
	s.tells(func() { ask(12, 3, TierStandard) }) // faster
	s.tells(func() {
		if res := s.fire(); res.Events {
			t.Error(res)
		}
	})
	seen := map[byte]bool{}
	if err := s.view().Walk(func(i *Item) error { seen[i.Kind] = true; return i.Err }); err != nil || !seen[kindTimer] {
		t.Errorf("a walk: %v, %v", seen, err)
	}
	s.now += 12 * hourMS
	expires := s.now + 60*hourMS
	e = s.tells(func() {
		if res := s.fire(); !res.Events {
			t.Error(res)
		}
	}, "ObjectRestore:Completed")[0].Row
	if e.StorageClass != "DEEP_ARCHIVE" || e.RestoreExpiryMs != expires || e.VersionSeq != uint64(id.Seq) || e.Requester != nil || e.TimeMs != s.now {
		t.Error(e, expires)
	}
	s.tells(func() { s.fire(); s.fire() })
	s.now += hourMS
	s.tells(func() { ask(12, 5, TierStandard) }) // longer, and no new one
	s.now += 4 * 24 * hourMS
	s.tells(func() { s.fire() })
	s.now += 24 * hourMS
	// It is asked for anew before its end was told.
	s.tells(func() { ask(12, 2, TierStandard) }, "ObjectRestore:Delete", "ObjectRestore:Post")
	s.now += 3 * 24 * hourMS
	s.tells(func() { s.fire() }, "ObjectRestore:Completed", "ObjectRestore:Delete")
	if ts := s.timers(); len(ts) != 0 {
		t.Error(ts)
	}
	// With the version its timer goes.
	ask(12, 2, TierStandard)
	s.ok(s.delete(1, "k")) // it moves
	if ts := s.timers(); len(ts) != 1 {
		t.Error(ts)
	}
	s.now += 12 * hourMS
	// Nobody has looked at the timer since the restore was ready: that is told before the version goes.
	s.tells(func() { s.ok(s.deleteVersion(1, "k", *id)) }, "ObjectRestore:Completed", "ObjectRemoved:Delete")
	if ts := s.timers(); len(ts) != 0 {
		t.Error(ts)
	}
	id = s.archive("k", "DEEP_ARCHIVE")
	ask(12, 2, TierStandard)
	s.tells(func() { s.ok(s.deleteVersion(1, "k", *id)) }, "ObjectRemoved:Delete") // it never came to be ready
	if ts := s.timers(); len(ts) != 0 {
		t.Error(ts)
	}
}

func TestTimersOfTiers(t *testing.T) {
	s := newStore(t)
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 1, Events: everything()}})
	id := s.tiered("k")
	archive := func() { s.ok(s.change("k", id, metapb.Tiering_ARCHIVE)) }
	ask := func() {
		s.ok(update("k", &storage.VersionID{}, &metapb.Restore{ReadyMs: s.now + hourMS, Tier: TierStandard}))
	}
	archive()
	s.tells(ask, "ObjectRestore:Post")
	s.now += hourMS
	e := s.tells(func() { s.fire() }, "ObjectRestore:Completed")[0].Row
	if e.StorageClass != "INTELLIGENT_TIERING" || e.RestoreExpiryMs != 0 || len(s.timers()) != 0 {
		t.Error(e, s.timers())
	}
	// The bytes go to FREQUENT before anybody looks at the timer: what is ready is told all the same.
	archive()
	ask()
	s.now += 2 * hourMS
	s.ok(s.change("k", id, metapb.Tiering_FREQUENT))
	s.tells(func() { s.fire() }, "ObjectRestore:Completed")
	if ts := s.timers(); len(ts) != 0 {
		t.Error(ts)
	}
	// They go there before they are ready: there is nothing to tell of.
	archive()
	ask()
	s.ok(s.change("k", id, metapb.Tiering_FREQUENT))
	s.tells(func() { s.fire() })
	if ts := s.timers(); len(ts) != 0 {
		t.Error(ts)
	}
	// Nobody wants events any more.
	archive()
	ask()
	s.now += 2 * hourMS
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, nil)
	s.tells(func() { s.fire() })
	if ts := s.timers(); len(ts) != 0 {
		t.Error(ts)
	}
}

// What changed while nobody wanted events, the timer follows.
func TestTimerFollows(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, everything())
	id := s.archive("k", "GLACIER")
	ask := func(ready, expires int64) {
		t.Helper()
		s.ok(update("k", id, &metapb.Restore{ReadyMs: s.now + ready*hourMS, ExpiresMs: s.now + expires*hourMS, Tier: TierStandard}))
	}
	ask(1, 10)
	s.now += 2 * hourMS
	s.fire()
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, nil)
	ask(1, 20)
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, everything())
	s.now += 9 * hourMS
	s.tells(func() { s.fire() })
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, nil)
	s.now += 20 * hourMS
	ask(5, 10)
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, everything())
	s.tells(func() { s.fire() })
	s.now += 5 * hourMS
	s.tells(func() { s.fire() }, "ObjectRestore:Completed")
	s.now += 5 * hourMS
	s.tells(func() { s.fire() }, "ObjectRestore:Delete")
	// One that nobody wanted to know of when it began: only its end is told, if it is asked for again.
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, nil)
	ask(0, 10)
	s.notified(1, metapb.Versioning_VERSIONING_ENABLED, everything())
	s.tells(func() { ask(0, 1) })
	s.now += hourMS
	s.tells(func() { s.fire() }, "ObjectRestore:Delete")
}

// Events of one key have rising sequences whatever range wrote them, a child waits for what its parent had, and timers move with their keys.
func TestEventsOverSplits(t *testing.T) {
	f := newFamily(t)
	f.notified(1, metapb.Versioning_VERSIONING_ENABLED, everything())
	early := f.split(testGroup, 1, "z")
	if log := got(f.viewOf(early).EventState()).Log; log.WaitGroup != 0 {
		t.Errorf("a child waits for nothing: %v", log)
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	want := map[string][]uint64{} // sequences of versions that events of a key tell of
	var splits []string
	for i := range 400 {
		key := string(rune('a' + rnd.IntN(26)))
		g := f.route(cluster.Pos{Bucket: 1, Key: storage.Key(key)})
		res := f.in(g, f.command(f.put(1, key, 1)))
		if !res.Ok || !res.Events {
			t.Fatal(res)
		}
		want[key] = append(want[key], res.VersionSeq)
		if at := string(rune('b' + rnd.IntN(25))); i%60 == 59 && at != "z" && !slices.Contains(splits, at) {
			parent := f.route(cluster.Pos{Bucket: 1, Key: storage.Key(at)})
			seq := uint64(f.viewOf(parent).Seq())
			child := f.split(parent, 1, at)
			splits = append(splits, at)
			s := got(f.viewOf(child).EventState())
			if s.Log.WaitGroup != uint64(parent) || s.Log.WaitSeq != seq || s.Log.Newest != 0 || s.Log.Rows != 0 || len(s.Targets) != 0 {
				t.Errorf("the child begins with %v %v", s.Log, s.Targets)
			}
		}
	}
	if len(splits) < 4 {
		t.Fatalf("only %d splits", len(splits))
	}
	type told struct{ seq, version uint64 }
	all := map[string][]told{}
	for g := range f.machines {
		for _, e := range got(f.viewOf(g).Events(&EventQuery{Limit: math.MaxInt, BytesMax: math.MaxInt})).Items {
			all[string(e.Row.Key)] = append(all[string(e.Row.Key)], told{e.Seq, e.Row.VersionSeq})
		}
	}
	for key, versions := range want {
		slices.SortFunc(all[key], func(a, b told) int { return int(int64(a.seq) - int64(b.seq)) })
		if !slices.EqualFunc(all[key], versions, func(a told, v uint64) bool { return a.version == v }) {
			t.Errorf("%s: told of %v, want %v", key, all[key], versions)
		}
	}
	child := f.route(cluster.Pos{Bucket: 1, Key: storage.Key(splits[0])})
	wait := got(f.viewOf(child).EventState()).Log
	if res := f.in(child, f.command(&metapb.EventsReadyOp{WaitSeq: wait.WaitSeq + 1})); errs.Kind(res.Kind) != errs.Conflict {
		t.Error(res)
	}
	grandchild := func(at string) *metapb.EventLogRow {
		return got(f.viewOf(f.split(f.route(cluster.Pos{Bucket: 1, Key: storage.Key(at)}), 1, at)).EventState()).Log
	}
	for range 2 {
		if res := f.in(child, f.command(&metapb.EventsReadyOp{WaitSeq: wait.WaitSeq})); !res.Ok {
			t.Error(res)
		}
		if log := got(f.viewOf(child).EventState()).Log; log.WaitGroup != 0 || log.WaitSeq != 0 || log.Newest != wait.Newest {
			t.Error(log)
		}
	}
	// Even where the parent itself has had nothing, it may wait for its own.
	if log := grandchild(splits[1] + "m"); log.WaitGroup == 0 {
		t.Error(log)
	}
	if log := grandchild(splits[1] + "n"); log.WaitGroup == 0 {
		t.Error(log)
	}
}

func TestTimersMoveWithTheirKeys(t *testing.T) {
	f := newFamily(t)
	f.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	for _, key := range []string{"a", "z"} {
		f.archive(key, "GLACIER")
		f.ok(update(key, nil, &metapb.Restore{ReadyMs: f.now, ExpiresMs: f.now + 10, Tier: TierStandard}))
	}
	ids := &metapb.FireTimersOp{}
	for _, timer := range f.timers() {
		ids.Ids = append(ids.Ids, timer.ID)
	}
	child := f.split(testGroup, 1, "m")
	f.now += 100
	for g, key := range map[cluster.GroupID]string{testGroup: "a", child: "z"} {
		before := len(got(f.viewOf(g).Events(&EventQuery{Limit: 100})).Items)
		if res := f.in(g, f.command(ids)); !res.Ok || !res.Events {
			t.Error(res)
		}
		items := got(f.viewOf(g).Events(&EventQuery{Limit: 100})).Items[before:]
		if !slices.Equal(kinds(items), []string{"ObjectRestore:Completed", "ObjectRestore:Delete"}) || string(items[0].Row.Key) != key {
			t.Errorf("%d: %v", g, items)
		}
		if s := got(f.viewOf(g).EventState()); s.Timers {
			t.Errorf("%d has timers", g)
		}
	}
}

// A new configuration counts from the next command on, in the same batch too, and also one that came by other ways than a command.
func TestNewRulesCountAtOnce(t *testing.T) {
	s := newStore(t)
	to := func(target string) *metapb.BucketEvents {
		return eventsOf("b", false, eventRule("r", queueARN+target, "", "", "s3:ObjectCreated:*"))
	}
	row := func(on *metapb.BucketEvents) []byte {
		return got(s.command(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: s.id(), Events: on}}).MarshalVT())
	}
	put := func() []byte { return got(s.command(s.put(1, "k", 1)).MarshalVT()) }
	s.applyRaw(row(to("q1")), put(), row(to("q2")), put(), row(nil), put(), row(to("q3")), put())
	var targets []string
	for _, e := range s.events() {
		targets = append(targets, e.Row.Target)
	}
	if !slices.Equal(targets, []string{"q1", "q2", "q3"}) {
		t.Errorf("told %q", targets)
	}
	// As if a snapshot had been installed.
	other := &metapb.BucketRow{Format: 1, Id: 1, Generation: s.id(), Events: to("q4")}
	must(t, s.db.Set(appendRaw(nil, kindBucket, 1, ""), got(other.MarshalVT()), pebble.NoSync))
	must(t, s.db.Set(appendTarget(nil, testGroup, "q4"), got((&metapb.EventTargetRow{Format: 1, Queued: 5, Cursor: 2}).MarshalVT()), pebble.NoSync))
	must(t, s.db.Set(appendGroup(nil, testGroup, subLog), got((&metapb.EventLogRow{Format: 1, Rows: 50}).MarshalVT()), pebble.NoSync))
	s.m.Reset()
	s.applyRaw(put())
	if e := s.events(); e[len(e)-1].Row.Target != "q4" || s.targetRow("q4").Queued != 6 || s.targetRow("q4").Cursor != 2 || s.outboxLog().Rows != 51 {
		t.Error(e, s.targetRow("q4"), s.outboxLog())
	}
}

// A batch that was thrown away leaves nothing in the machine's memory.
func TestThrownAwayBatch(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	b := s.db.NewIndexedBatch()
	if _, err := s.m.Apply(b, []cluster.Entry{{TimeMS: s.now, Data: got(s.command(s.put(1, "k", 1)).MarshalVT())}}); err != nil {
		t.Fatal(err)
	}
	must(t, b.Close())
	s.m.Reset()
	s.ok(s.put(1, "k", 1))
	if row, log := s.targetRow("q"), s.outboxLog(); row.Queued != 1 || log.Rows != 1 || len(s.events()) != 1 || s.eventCounter(1, "q").Queued != 1 {
		t.Error(row, log)
	}
}

// A dropped bucket's events are delivered, and then no rows of it stay.
func TestEventsOutliveTheirBucket(t *testing.T) {
	s := newStore(t)
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	s.ok(s.put(1, "k", 1))
	s.ok(s.delete(1, "k"))
	items := s.events()
	s.ok(&metapb.AckEventsOp{Target: "q", From: items[0].Seq - 1, To: items[0].Seq})
	gen := s.id()
	s.ok(&metapb.FenceBucketOp{Bucket: 1, Generation: gen})
	s.ok(&metapb.DropBucketOp{Bucket: 1, Generation: gen})
	if items := s.events(); !slices.Equal(kinds(items), []string{"ObjectCreated:Put", "ObjectRemoved:Delete"}) || items[1].Row.BucketName != "bucket" {
		t.Fatal(items)
	}
	if c := s.eventCounter(1, "q"); c.Queued != 1 || c.Delivered != 1 {
		t.Error(c)
	}
	s.ok(&metapb.AckEventsOp{Target: "q", From: items[0].Seq, To: items[1].Seq})
	all, _, err := s.view().EventCounters(nil, 10)
	if err != nil || len(all) != 1 || all[0].Bucket != 0 || all[0].Row.Delivered != 2 {
		t.Error(all, err)
	}
}

func TestEventsBeforeTheEnd(t *testing.T) {
	s := newStore(t)
	if page := got(s.view().Events(&EventQuery{After: math.MaxUint64})); page.More || page.Next != math.MaxUint64 {
		t.Error(page)
	}
	s.notified(1, metapb.Versioning_VERSIONING_NEVER, everything())
	s.puts(1, 3)
	first := s.events()[0].Seq
	// A page has at least one event, whatever is asked.
	if page := got(s.view().Events(&EventQuery{Limit: -1, BytesMax: 1})); len(page.Items) != 1 || page.Next != first || !page.More {
		t.Error(page)
	}
	if page := got(s.view().Events(&EventQuery{Target: "nobody", Limit: 5, LookMax: 2})); len(page.Items) != 0 || page.Next <= first || !page.More {
		t.Error(page)
	}
}
