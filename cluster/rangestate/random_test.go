package rangestate

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// world runs random commands on a machine and on the model beside it.
type world struct {
	*store
	rnd     *rand.Rand
	model   *model
	history []*metapb.RangeCommand
	seen    map[string]int // answers, by op and kind
}

var worldKeys = []string{"a", "a", "a", "a/", "a/", "a/b", "a/b/c", "a/c", "a//", "b", "b\x00", "b\x00", "b\x00/c", "dir/x", "dir/y", "dir0", "\xff", "\xff/\xff", "//x", "ü"}
var worldClasses = []string{"", "", "STANDARD_IA", "GLACIER", "ONEZONE_IA"}

func (w *world) n(n int) int             { return w.rnd.IntN(n) }
func (w *world) chance(percent int) bool { return w.n(100) < percent }
func pick[T any](w *world, s []T) T      { return s[w.n(len(s))] }

// key is one of few, so that keys get histories.
func (w *world) key() string { return pick(w, worldKeys) }

func (w *world) newBucketRow(id uint64) *metapb.BucketRow {
	row := &metapb.BucketRow{Id: id, Generation: w.id()}
	switch id {
	case 2:
		row.Versioning = metapb.Versioning_VERSIONING_ENABLED
	case 3: // switched to and fro
		row.Versioning = metapb.Versioning(1 + w.n(2))
		if len(w.history) == 0 {
			row.Versioning = metapb.Versioning_VERSIONING_NEVER
		}
	case 4:
		row.Versioning, row.ObjectLock = metapb.Versioning_VERSIONING_ENABLED, true
		if w.chance(50) {
			row.DefaultLockMode, row.DefaultLockDays = "GOVERNANCE", 1
			if w.chance(20) {
				row.DefaultLockDays, row.DefaultLockYears = 0, 1
			}
		}
	}
	if w.chance(70) {
		row.Events = w.someEvents()
	}
	return row
}

// generation is one at which a command on the bucket may have been decided: of the row there is, before it or after it.
func (w *world) generation(id uint64) uint64 {
	now := uint64(1)
	if b := w.model.buckets[id]; b != nil {
		now = b.row.Generation
	}
	return pick(w, []uint64{max(now, 2) - 1, now, now, now + 1, w.id(), w.id()})
}

// bucketID is mostly one of those there are.
func (w *world) bucketID() uint64 {
	return pick(w, []uint64{1, 1, 2, 2, 3, 3, 3, 3, 4, 4, uint64(1 + w.n(5))})
}

func (w *world) someData() (*metapb.Data, uint64) {
	if w.chance(15) {
		d := &metapb.Data{Inline: make([]byte, w.n(4))}
		return d, uint64(len(d.Inline))
	}
	sizes := make([]int, 1+w.n(3))
	for i := range sizes {
		sizes[i] = 1 + w.n(1000)
	}
	d, size := w.data(sizes...)
	for _, c := range d.Chunks {
		if w.chance(20) {
			c.Missing = uint64(1 + w.n(7))
		}
	}
	return d, size
}

func (w *world) someConditions(b uint64, key string) *metapb.Conditions {
	etag := "none"
	if mb := w.model.buckets[b]; mb != nil && mb.current(key) != nil {
		etag = mb.current(key).etag
	}
	switch w.n(12) {
	case 0:
		return &metapb.Conditions{IfNoneMatch: []string{"*"}}
	case 1:
		return &metapb.Conditions{IfMatch: []string{"other", etag}}
	case 2:
		return &metapb.Conditions{IfMatch: []string{"*"}}
	case 3:
		return &metapb.Conditions{IfNoneMatch: []string{"other", etag}}
	}
	return nil
}

func (w *world) someAttributes(bucket uint64) *metapb.Attributes {
	a := &metapb.Attributes{StorageClass: pick(w, worldClasses), Tags: w.someTags()}
	if bucket == 4 || w.chance(2) {
		switch w.n(6) {
		case 0:
			a.LockMode, a.LockUntilMs = "GOVERNANCE", w.now+int64(w.n(100000))
		case 1:
			a.LockMode, a.LockUntilMs = "COMPLIANCE", w.now+int64(w.n(100000))
		case 2:
			a.LegalHold = w.chance(30)
		}
	}
	return a
}

func (w *world) newPut() any {
	op := w.put(w.bucketID(), w.key())
	op.Event = pick(w, []uint32{0, 0, 0, 1, 2, 3})
	op.Row.Data, op.Row.Size = w.someData()
	op.Row.Attributes = w.someAttributes(op.Bucket)
	op.Conditions = w.someConditions(op.Bucket, string(op.Key))
	if len(op.Row.Data.Chunks) > 0 && w.chance(3) {
		id := storage.NewChunkID(w.now-13*3600*1000, w.id())
		op.Row.Data.Chunks[0].Id = id[:]
	}
	return op
}

// versionOf is the id of a version of the key, mostly one that is there.
func (w *world) versionOf(bucket uint64, key string) (v storage.VersionID) {
	if b := w.model.buckets[bucket]; b != nil && len(b.keys[key]) > 0 && !w.chance(10) {
		if mv := pick(w, b.keys[key]); !mv.null {
			v = storage.VersionID{Seq: storage.Seq(mv.seq), Nonce: mv.nonce}
			if w.chance(3) {
				v.Nonce++ // a guess
			}
		}
	} else if w.chance(50) {
		v = storage.VersionID{Seq: storage.Seq(w.n(100)), Nonce: uint64(w.n(2))}
	}
	return v
}

func (w *world) someTags() (tags []*metapb.KV) {
	for range w.n(3) {
		tags = append(tags, &metapb.KV{Name: fmt.Sprint(w.n(100)), Value: "v"})
	}
	return tags
}

func (w *world) newUpdate() any {
	op := &metapb.UpdateVersionOp{Bucket: pick(w, []uint64{4, 4, 4, w.bucketID()}), Key: []byte(w.key())}
	if w.chance(70) {
		v := w.versionOf(op.Bucket, string(op.Key))
		op.HasVersion, op.VersionSeq, op.VersionNonce = true, uint64(v.Seq), v.Nonce
	}
	switch w.n(12) {
	case 8, 9, 10, 11:
		w.newRestore(op)
	case 0, 1, 2:
		op.Change = &metapb.UpdateVersionOp_Tags{Tags: &metapb.Tags{Tags: w.someTags()}}
		op.TagsDeleted = w.chance(30)
	case 3:
		op.Change = &metapb.UpdateVersionOp_LegalHold{LegalHold: w.chance(30)}
	default:
		r := &metapb.Retention{Mode: pick(w, []string{"", "GOVERNANCE", "GOVERNANCE", "COMPLIANCE"}), BypassGovernance: w.chance(40)}
		if r.Mode != "" {
			r.UntilMs = w.now + int64(w.n(100000)) - 20000
		}
		op.Change = &metapb.UpdateVersionOp_Retention{Retention: r}
	}
	return op
}

// newRestore makes op a restore, mostly of an archived version: of one that has none, or some time before or after that was ready or expired.
func (w *world) newRestore(op *metapb.UpdateVersionOp) {
	if b := w.model.buckets[op.Bucket]; b != nil && w.chance(80) {
		var of []*metapb.UpdateVersionOp
		for _, key := range sortedKeys(b.keys) {
			for _, v := range b.keys[key] {
				if v.class != "GLACIER" && v.class != "DEEP_ARCHIVE" {
					continue
				}
				o := &metapb.UpdateVersionOp{Bucket: op.Bucket, Key: []byte(key), HasVersion: true}
				if !v.null {
					o.VersionSeq, o.VersionNonce = v.seq, v.nonce
				}
				if of = append(of, o); v.restore != nil { // mostly again
					of = append(of, o, o, o)
				}
			}
		}
		if len(of) > 0 {
			o := pick(w, of)
			op.Key, op.HasVersion, op.VersionSeq, op.VersionNonce = o.Key, true, o.VersionSeq, o.VersionNonce
		}
	}
	ready := max(w.now+int64(w.n(200000))-50000, 1)
	op.Change = &metapb.UpdateVersionOp_Restore{Restore: &metapb.Restore{
		ReadyMs: ready, ExpiresMs: ready + 1 + int64(w.n(400000)), Tier: pick(w, []string{TierExpedited, TierStandard, TierBulk}),
	}}
}

func (w *world) newDelete() any {
	op := &metapb.DeleteObjectsOp{Bucket: w.bucketID(), Owner: "me"}
	for range 1 + w.n(3) {
		key := w.key()
		e := &metapb.DeleteEntry{Key: []byte(key), MarkerNonce: w.id(), BypassGovernance: w.chance(50)}
		if w.chance(60) {
			v := w.versionOf(op.Bucket, key)
			e.HasVersion, e.VersionSeq, e.VersionNonce = true, uint64(v.Seq), v.Nonce
		}
		e.Conditions = w.someConditions(op.Bucket, key)
		if w.chance(5) {
			e.Conditions = &metapb.Conditions{HasMatchSize: true, IfMatchSize: int64(w.n(3))}
		}
		op.Entries = append(op.Entries, e)
	}
	return op
}

// anyUpload is an upload in progress, or one that never was or is gone.
func (w *world) anyUpload() (uint64, *mUpload) {
	for range 4 {
		id := w.bucketID()
		if b := w.model.buckets[id]; b != nil && len(b.uploads) > 0 {
			return id, pick(w, b.uploads)
		}
	}
	return 1, &mUpload{key: w.key(), seq: uint64(w.n(50)), nonce: 1}
}

func (w *world) newUpload() any {
	bucket := w.bucketID()
	return &metapb.CreateUploadOp{Bucket: bucket, Key: []byte(w.key()), Row: &metapb.UploadRow{
		Nonce: w.id(), WriteId: w.id16(), Owner: "me", Attributes: &metapb.Attributes{StorageClass: pick(w, worldClasses)},
	}}
}

func (w *world) newPart() any {
	bucket, u := w.anyUpload()
	op := &metapb.PutPartOp{Bucket: bucket, Key: []byte(u.key), UploadSeq: u.seq, UploadNonce: u.nonce}
	op.Row = &metapb.PartRow{Number: uint32(1 + w.n(6)), WriteId: w.id16(), Etag: fmt.Sprint("p", w.id())}
	op.Row.Data, op.Row.Size = w.someData()
	return op
}

func (w *world) newComplete() any {
	bucket, u := w.anyUpload()
	op := &metapb.CompleteUploadOp{
		Bucket: bucket, Key: []byte(u.key), UploadSeq: u.seq, UploadNonce: u.nonce, UploadGeneration: u.gen,
		Etag: fmt.Sprint("m", w.id()), VersionNonce: w.id(), PartsDigest: w.id16(), Conditions: w.someConditions(bucket, u.key),
	}
	for n := uint32(1); n <= 6; n++ {
		if p := u.parts[n]; p != nil && w.chance(80) {
			op.Parts = append(op.Parts, &metapb.ManifestPart{Number: n, Size: p.size})
		}
	}
	switch w.n(20) {
	case 0:
		op.UploadGeneration++
	case 1:
		op.Parts = append(op.Parts, &metapb.ManifestPart{Number: 9, Size: 1})
	case 2:
		slices.Reverse(op.Parts)
	case 3:
		if len(op.Parts) > 0 {
			op.Parts[0].Size++
		}
	}
	return op
}

// newCompleteAgain repeats a Complete as a new command, as a client does.
func (w *world) newCompleteAgain() any {
	for range 20 {
		if len(w.history) == 0 {
			break
		}
		if op := pick(w, w.history).GetCompleteUpload(); op != nil {
			op = op.CloneVT()
			if w.chance(20) {
				op.PartsDigest = w.id16()
			}
			return op
		}
	}
	return w.newComplete()
}

func (w *world) newAbort() any {
	bucket, u := w.anyUpload()
	op := &metapb.AbortUploadOp{Bucket: bucket, Key: []byte(u.key), UploadSeq: u.seq, UploadNonce: u.nonce}
	if w.chance(30) {
		op.IfInitiatedMs = u.initiated + int64(w.n(2))
	}
	return op
}

// target is a version or part in use, as a rewrite names it.
type target struct {
	op     *metapb.RewriteDataOp
	chunks []*metapb.ChunkRef
	v      *mVersion // nil: a part
}

func (w *world) targets() (all []target) {
	for _, id := range []uint64{1, 2, 3, 4} {
		b := w.model.buckets[id]
		if b == nil {
			continue
		}
		part := func(key string, upload uint64, p *mPart) {
			all = append(all, target{&metapb.RewriteDataOp{
				Bucket: id, Key: []byte(key), UploadSeq: upload, Part: p.number, WriteId: []byte(p.write), Generation: p.gen}, p.chunks, nil})
		}
		for _, key := range sortedKeys(b.keys) {
			for _, v := range b.keys[key] {
				if !v.marker {
					all = append(all, target{&metapb.RewriteDataOp{
						Bucket: id, Key: []byte(key), VersionSeq: v.seq, WriteId: []byte(v.write), Generation: v.gen}, v.chunks, v})
				}
				for _, p := range v.parts {
					part(key, v.upload, p)
				}
			}
		}
		for _, u := range b.uploads {
			for n := uint32(1); n <= 6; n++ {
				if p := u.parts[n]; p != nil {
					part(u.key, u.seq, p)
				}
			}
		}
	}
	return all
}

// newRewrite makes a rewrite of some data in use: a repair, a move of some of its chunks, or a transition.
func (w *world) newRewrite() any {
	transition := w.chance(50)
	all := slices.DeleteFunc(w.targets(), func(t target) bool { return len(t.chunks) == 0 && (t.v == nil || !transition) })
	if len(all) == 0 {
		return &metapb.TickOp{}
	}
	t := pick(w, all)
	op := t.op
	op.Data = &metapb.Data{}
	for _, c := range t.chunks {
		n := c.CloneVT()
		if w.chance(50) { // repaired
			n.Missing = 0
			n.Epoch++
			op.Kept = append(op.Kept, n.Id)
		} else { // moved
			n = w.chunk(int(c.Length))
			n.Missing = uint64(w.n(2))
			op.Release = append(op.Release, c)
		}
		op.Data.Chunks = append(op.Data.Chunks, n)
	}
	if transition {
		op.ConfigGeneration = w.generation(op.Bucket)
		if w.chance(60) {
			op.ConfigGeneration = w.model.buckets[op.Bucket].row.Generation
		}
	}
	if transition && t.v != nil {
		op.StorageClass = pick(w, []string{"STANDARD", "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"})
		switch {
		case t.v.upload != 0:
			op.Data.UploadSeq, op.Data.Parts = t.v.upload, uint32(len(t.v.parts))
		case len(t.chunks) == 0:
			op.Data.Inline = make([]byte, t.v.size)
		}
	}
	switch w.n(8) {
	case 0:
		op.Generation++
	case 1:
		op.WriteId = w.id16()
	case 2:
		if op.VersionSeq != 0 {
			op.VersionSeq += 1000000
		}
	}
	return op
}

// newExpire makes an expiry of things that are there, mostly of what they are.
func (w *world) newExpire() any {
	op := &metapb.ExpireOp{Bucket: w.bucketID()}
	op.ConfigGeneration = w.generation(op.Bucket)
	b := w.model.buckets[op.Bucket]
	if b != nil && w.chance(80) {
		op.ConfigGeneration = b.row.Generation
	}
	add := func(what metapb.ExpireEntry_What, key string, seq, nonce uint64) {
		if w.chance(10) {
			what = metapb.ExpireEntry_What(1 + w.n(4))
		}
		if w.chance(3) {
			nonce++
		}
		op.Entries = append(op.Entries, &metapb.ExpireEntry{
			What: what, Key: []byte(key), VersionSeq: seq, VersionNonce: nonce, MarkerNonce: w.id(), MarkerOwner: "rules",
		})
	}
	for range 1 + w.n(3) {
		key := w.key()
		if b == nil {
			add(metapb.ExpireEntry_CURRENT, key, 1+w.id(), 1)
			continue
		}
		for i, v := range b.keys[key] {
			what := metapb.ExpireEntry_NONCURRENT
			switch {
			case i == 0 && v.marker:
				what = metapb.ExpireEntry_MARKER
			case i == 0:
				what = metapb.ExpireEntry_CURRENT
			}
			if w.chance(60) {
				add(what, key, v.seq, v.nonce)
			}
		}
		for _, u := range b.uploads {
			if u.key == key && w.chance(30) {
				add(metapb.ExpireEntry_UPLOAD, key, u.seq, u.nonce)
			}
		}
	}
	if len(op.Entries) == 0 {
		add(metapb.ExpireEntry_NONCURRENT, w.key(), 1+w.id(), 1)
	}
	w.rnd.Shuffle(len(op.Entries), func(i, j int) { op.Entries[i], op.Entries[j] = op.Entries[j], op.Entries[i] })
	return op
}

func (w *world) newDropGarbage() any {
	items, err := w.view().Garbage(0, 0, 100)
	if err != nil {
		w.t.Fatal(err)
	}
	op := &metapb.DropGarbageOp{}
	for _, g := range items {
		if !w.chance(50) {
			continue
		}
		op.Ids = append(op.Ids, &metapb.GarbageID{Seq: uint64(g.Seq), N: g.N})
		for _, c := range g.Row.Chunks {
			w.model.dropped[string(c.Id)] = true
		}
	}
	return op
}

// newDropRepair drops repair rows of what is whole or gone.
func (w *world) newDropRepair() any {
	items, err := w.view().Repairs(nil, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	needed := map[string]bool{}
	w.model.eachData(func(where, write string, _ uint64, chunks []*metapb.ChunkRef) {
		if lacking(chunks) > 0 {
			needed[where+write] = true
		}
	})
	op := &metapb.DropRepairOp{}
	for _, i := range items {
		if !needed[repairWhere(i)+string(i.Row.WriteId)] {
			op.Ids = append(op.Ids, i.ID())
		}
	}
	return op
}

func repairWhere(i RepairItem) string {
	if i.Row.UploadSeq != 0 {
		return fmt.Sprintf("%d/%q/upload %d part %d", i.Bucket, string(i.Key), i.Row.UploadSeq, i.Row.Part)
	}
	return fmt.Sprintf("%d/%q/version %d", i.Bucket, string(i.Key), i.Row.VersionSeq)
}

func (w *world) newExpand() any {
	op := &metapb.ExpandDoomedOp{RowsMax: uint32(w.n(6))}
	if w.chance(50) {
		items, err := w.view().Doomed(nil, 100)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, i := range items {
			if w.chance(50) {
				op.Only = append(op.Only, i.ID())
			}
		}
		op.Only = append(op.Only, &metapb.DoomedID{Bucket: 1, Key: []byte("a"), Seq: 999999})
	}
	return op
}

func (w *world) newOp() any {
	switch n := w.n(125); {
	case n >= 108:
		return w.newEventOp()
	case n >= 100:
		return w.newExpire()
	case n < 25:
		return w.newPut()
	case n < 31:
		return w.newUpdate()
	case n < 47:
		return w.newDelete()
	case n < 52:
		return w.newUpload()
	case n < 66:
		return w.newPart()
	case n < 72:
		return w.newComplete()
	case n < 73:
		return w.newCompleteAgain()
	case n < 75:
		return w.newAbort()
	case n < 82:
		return w.newRewrite()
	case n < 85:
		return w.newExpand()
	case n < 88:
		return w.newDropGarbage()
	case n < 89:
		return w.newDropRepair()
	case n < 91:
		return &metapb.SweepOp{RowsMax: uint32(w.n(20))}
	case n < 92:
		return &metapb.TickOp{}
	case n < 94:
		id := w.bucketID()
		return &metapb.FenceBucketOp{Bucket: id, Generation: w.generation(id)}
	case n < 95:
		id := w.bucketID()
		return &metapb.DropBucketOp{Bucket: id, Generation: w.generation(id)}
	}
	row := w.newBucketRow(pick(w, []uint64{3, 3, w.bucketID()}))
	if w.chance(20) {
		row.Generation = uint64(1 + w.n(int(row.Generation))) // older than what is there, mostly
	}
	return &metapb.PutBucketOp{Row: row}
}

// step applies one command, new or repeated, and checks the answer.
func (w *world) step() {
	w.t.Helper()
	switch w.n(60) {
	case 0:
		w.now += 11 * 60 * 1000
	case 1:
		w.now += int64(w.n(25 * 3600 * 1000))
	default:
		w.now += int64(w.n(3000))
	}
	var cmd *metapb.RangeCommand
	if len(w.history) > 0 && w.chance(20) {
		recent := min(len(w.history), 1+w.n(200))
		cmd = w.history[len(w.history)-1-w.n(recent)]
	} else {
		cmd = w.command(w.newOp())
		cmd.IssuedMs += int64(w.n(4000)) - 2000
		cmd.DayMs = pick(w, []int64{0, 0, 1000, 60000, 86400000, -1, 1 << 60})
		if w.chance(70) {
			cmd.Requester = &metapb.Requester{Principal: "AWS:me", SourceIp: "192.0.2.1", RequestId: fmt.Sprint(w.id()), HostId: "host"}
		}
		if w.chance(2) {
			cmd.IssuedMs += int64(w.n(40)-20) * 60 * 1000
		}
		w.history = append(w.history, cmd.CloneVT())
	}
	stamp := w.now
	if w.chance(10) {
		w.now -= int64(w.n(5000)) // a leader whose clock is behind
	}
	got := w.apply(cmd)
	w.now = stamp
	want := w.model.run(cmd.CloneVT(), w.log[len(w.log)-1].TimeMS, got)
	w.seen[fmt.Sprintf("%T ok=%v kind=%d", cmd.Op, got.Ok, got.Kind)]++
	if diff := sameResult(got, want); diff != "" {
		w.t.Fatalf("%v:\n got %v\nwant %v\n%s", cmd, got, want, diff)
	}
	w.checkTold()
}

func sameResult(got, want *metapb.RangeResult) string {
	g, h := got.CloneVT(), want.CloneVT()
	for _, r := range append([]*metapb.RangeResult{g, h}, append(g.Entries, h.Entries...)...) {
		r.TimeMs, r.Detail, r.Ranges = 0, "", nil
	}
	if !g.EqualVT(h) {
		return "different results"
	}
	return ""
}

const worldSteps = 300

// worldSeeds is how many random histories to run: -worlds 500 for a long search.
var worldSeeds = flag.Uint64("worlds", 6, "random histories to run")

func runWorld(t *testing.T, seed uint64) *world {
	w := &world{store: newStore(t), rnd: rand.New(rand.NewPCG(seed, 1)), model: newModel(), seen: map[string]int{}}
	w.ids = 1000
	for id := uint64(1); id <= 4; id++ {
		cmd := w.command(&metapb.PutBucketOp{Row: w.newBucketRow(id)})
		w.model.run(cmd, w.now, w.apply(cmd))
	}
	for i := range worldSteps {
		w.step()
		w.checkState()
		if t.Failed() {
			t.Fatalf("after step %d: %v", i, w.history[len(w.history)-1])
		}
	}
	return w
}

// TestRandom runs random histories beside the model; a failure names the seed that repeats it.
func TestRandom(t *testing.T) {
	for seed := range *worldSeeds {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			w := runWorld(t, seed)
			w.checkReplay()
		})
	}
}

// checkReplay applies the log again in other cuts: all states must be the same to the byte.
func (w *world) checkReplay() {
	want := dump(w.t, w.db)
	for _, cut := range []string{"all at once", "random cuts", "random cuts and restarts"} {
		s := newStore(w.t)
		rest := w.log
		for len(rest) > 0 {
			n := len(rest)
			if cut != "all at once" {
				n = 1 + w.n(min(len(rest), 50))
			}
			applyEntries(w.t, s.db, s.m, rest[:n])
			if cut == "random cuts and restarts" {
				s.m = New(testGroup)
			}
			rest = rest[n:]
		}
		sameDump(w.t, cut, dump(w.t, s.db), want)
	}
}

func (w *world) checkState() {
	w.t.Helper()
	s := parse(w.t, w.db)
	w.checkChunks(s)
	w.checkVersions(s)
	w.checkUploads(s)
	w.checkCounters(s)
	w.checkRepairs(s)
	for range 3 {
		w.checkListing()
	}
	w.checkUploadListing()
	w.checkVersionListing()
	w.checkLifecycle()
	w.checkSurvey()
	w.checkSegments()
	w.checkOutbox()
}

// checkChunks: every chunk is in exactly one place, and what is in use lies where it is used.
func (w *world) checkChunks(s *state) {
	w.t.Helper()
	for id := range w.model.given {
		places := s.chunks[id]
		if w.model.dropped[id] {
			places = append(places, "dropped")
		}
		if len(places) != 1 {
			w.t.Errorf("chunk %x is in %d places: %q", id, len(places), places)
		}
	}
	for id, places := range s.chunks {
		if !w.model.given[id] {
			w.t.Errorf("chunk %x of a command that was turned away is in %q", id, places)
		}
	}
	used := map[string]bool{}
	w.model.eachData(func(where, write string, gen uint64, chunks []*metapb.ChunkRef) {
		d, ok := s.data[where]
		if !ok {
			w.t.Errorf("no data at %s", where)
			return
		}
		if d.write != write || d.data.Generation != gen || len(d.data.Chunks) != len(chunks) {
			w.t.Errorf("at %s: %v, want write %x generation %d and %d chunks", where, d, write, gen, len(chunks))
			return
		}
		for i, c := range chunks {
			used[string(c.Id)] = true
			if !c.EqualVT(d.data.Chunks[i]) {
				w.t.Errorf("at %s chunk %d is %v, want %v", where, i, d.data.Chunks[i], c)
			}
			if p := s.chunks[string(c.Id)]; len(p) != 1 || p[0] != where {
				w.t.Errorf("chunk %x in use at %s is in %q", c.Id, where, p)
			}
		}
	})
	for id, places := range s.chunks {
		if used[id] || strings.HasPrefix(places[0], "garbage") {
			continue
		}
		if !s.doomed[places[0]] {
			w.t.Errorf("chunk %x is not in use, but in %q and not doomed", id, places)
		}
	}
	for where := range s.doomed {
		if d, ok := s.data[where]; ok {
			for _, c := range d.data.GetChunks() {
				if used[string(c.Id)] {
					w.t.Errorf("%s is in use and doomed", where)
				}
			}
		}
	}
	for _, where := range s.stray {
		w.t.Errorf("row without a purpose: %s", where)
	}
}

func (w *world) checkVersions(s *state) {
	w.t.Helper()
	n := 0
	for id, b := range w.model.buckets {
		for key, vs := range b.keys {
			for i, v := range vs {
				n++
				where := fmt.Sprintf("%d/%q/version %d", id, key, v.seq)
				got := s.versions[where]
				if got == nil {
					w.t.Errorf("%s is not there", where)
					continue
				}
				if got.current != (i == 0 && !v.marker) {
					w.t.Errorf("%s: in 'c' is %v", where, got.current)
				}
				r := got.row
				if r.Nonce != v.nonce || r.NullVersion != v.null || r.DeleteMarker != v.marker || r.Size != v.size || r.Etag != v.etag ||
					r.ModifiedMs != v.modified || r.NoncurrentMs != v.noncurrent || r.ClassSinceMs != v.classSince || r.GetAttributes().GetStorageClass() != v.class ||
					r.GetAttributes().GetLegalHold() != v.hold || tagNames(r.GetAttributes().GetTags()) != v.tags ||
					!r.Restore.EqualVT(v.restore) || r.GetAttributes().GetLockMode() != v.lockMode || r.GetAttributes().GetLockUntilMs() != v.lockUntil ||
					r.GetData().GetUploadSeq() != v.upload || int(r.GetData().GetParts()) != len(v.parts) {
					w.t.Errorf("%s is %v, want %+v", where, r, v)
				}
				if null := s.nulls[fmt.Sprintf("%d/%q", id, key)]; v.null && (v.marker || i > 0) != (null == v.seq) {
					w.t.Errorf("%s: the pointer to the null version says %d", where, null)
				}
			}
		}
	}
	if n != len(s.versions) {
		w.t.Errorf("%d versions, want %d", len(s.versions), n)
	}
	nulls := 0
	for _, b := range w.model.buckets {
		for _, vs := range b.keys {
			for i, v := range vs {
				if v.null && (v.marker || i > 0) {
					nulls++
				}
			}
		}
	}
	if nulls != len(s.nulls) {
		w.t.Errorf("%d pointers to null versions, want %d", len(s.nulls), nulls)
	}
}

func (w *world) checkUploads(s *state) {
	w.t.Helper()
	n := 0
	for id, b := range w.model.buckets {
		for _, u := range b.uploads {
			n++
			row := s.uploads[fmt.Sprintf("%d/%q/upload %d", id, u.key, u.seq)]
			bytes := uint64(0)
			for _, p := range u.parts {
				bytes += p.size
			}
			if row == nil || row.Generation != u.gen || row.Bytes != bytes || int(row.Parts) != len(u.parts) || row.InitiatedMs != u.initiated {
				w.t.Errorf("upload %d is %v, want %+v", u.seq, row, u)
			}
			rows, more, err := w.view().Parts(storage.BucketID(id), storage.Key(u.key), storage.UploadID{Seq: storage.Seq(u.seq), Nonce: u.nonce}, 0, 10000)
			if err != nil || more || len(rows) != len(u.parts) {
				w.t.Errorf("parts of upload %d: %d, %v, %v; want %d", u.seq, len(rows), more, err, len(u.parts))
			}
		}
	}
	if n != len(s.uploads) {
		w.t.Errorf("%d uploads, want %d", len(s.uploads), n)
	}
}

func (w *world) checkCounters(s *state) {
	w.t.Helper()
	want := w.model.counters()
	counters, err := w.view().Counters()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range counters {
		k := fmt.Sprint(uint64(c.Bucket), "/", string(c.Class))
		if want[k] == nil || !want[k].EqualVT(c.Row) {
			w.t.Errorf("counter %s is %v, want %v", k, c.Row, want[k])
		}
		delete(want, k)
	}
	for k, c := range want {
		t := w.t
		t.Errorf("no counter %s, want %v", k, c)
	}
}

// checkRepairs: data in use that lacks shards is on the queue.
func (w *world) checkRepairs(s *state) {
	w.t.Helper()
	queued := map[string]uint32{}
	items, err := w.view().Repairs(nil, 10000)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range items {
		queued[repairWhere(i)+string(i.Row.WriteId)] = i.Row.Lost
	}
	w.model.eachData(func(where, write string, _ uint64, chunks []*metapb.ChunkRef) {
		if n := lacking(chunks); n > 0 && queued[where+write] == 0 {
			w.t.Errorf("%s lacks %d shards and is not on the repair queue", where, n)
		}
	})
}

var worldPrefixes = []string{"", "", "", "a", "a/", "a/b", "b", "b\x00", "d", "dir/", "\xff", "x", "ü"}
var worldDelimiters = []string{"", "/", "/", "/", "b", "//", "\x00", "r/"}

func (w *world) someAfter() string {
	switch w.n(4) {
	case 0:
		return ""
	case 1:
		return pick(w, worldPrefixes)
	case 2:
		return w.key() + pick(w, []string{"/", "\x00", "0"})
	}
	return w.key()
}

func (w *world) checkListing() {
	w.t.Helper()
	id := uint64(1 + w.n(4))
	b := w.model.buckets[id]
	prefix, delimiter, after, limit := pick(w, worldPrefixes), pick(w, worldDelimiters), w.someAfter(), w.n(8)
	what := fmt.Sprintf("list bucket %d prefix %q delimiter %q after %q limit %d", id, prefix, delimiter, after, limit)
	page, err := w.view().ListCurrent(storage.BucketID(id), prefix, delimiter, after, limit)
	if b == nil {
		if !errs.Is(err, errs.NoSuchBucket) {
			w.t.Errorf("%s: %v", what, err)
		}
		return
	}
	if err != nil {
		w.t.Errorf("%s: %v", what, err)
		return
	}
	want, truncated := list(b.currentKeys(), prefix, delimiter, after, limit)
	var keys, prefixes []string
	next := ""
	for _, e := range want {
		if next = e.key; e.prefix {
			prefixes = append(prefixes, e.key)
		} else {
			keys = append(keys, e.key)
		}
	}
	var got []string
	for _, r := range page.Rows {
		got = append(got, string(r.Key))
		if v := b.current(string(r.Key)); v != nil && (r.Row.Seq != v.seq || r.Row.Etag != v.etag || r.Row.Size != v.size ||
			r.Row.ModifiedMs != v.modified || r.Row.GetAttributes().GetStorageClass() != v.class || int(r.Row.GetData().GetParts()) != len(v.parts)) {
			w.t.Errorf("%s: %q is %v, want %+v", what, r.Key, r.Row, v)
		}
	}
	if !slices.Equal(got, keys) || !slices.Equal(page.CommonPrefixes, prefixes) || page.Truncated != truncated || page.Next != next {
		w.t.Errorf("%s:\n got %q %q %v %q\nwant %q %q %v %q", what, got, page.CommonPrefixes, page.Truncated, page.Next, keys, prefixes, truncated, next)
	}
}

// checkUploadListing pages through the uploads.
func (w *world) checkUploadListing() {
	w.t.Helper()
	id := uint64(1 + w.n(4))
	b := w.model.buckets[id]
	if b == nil {
		return
	}
	prefix, delimiter, limit := pick(w, worldPrefixes), pick(w, worldDelimiters), 1+w.n(3)
	var want, got []string
	for _, u := range b.uploads {
		if !strings.HasPrefix(u.key, prefix) {
			continue
		}
		e := fmt.Sprintf("%s %d", u.key, u.seq)
		if i := strings.Index(u.key[len(prefix):], delimiter); delimiter != "" && i >= 0 {
			if e = u.key[:len(prefix)+i+len(delimiter)] + " 0"; len(want) > 0 && want[len(want)-1] == e {
				continue
			}
		}
		want = append(want, e)
	}
	key, seq := "", storage.Seq(0)
	for more := true; more; {
		page, err := w.view().ListUploads(storage.BucketID(id), prefix, delimiter, key, seq, limit)
		if err != nil {
			w.t.Error(err)
			return
		}
		if n := len(page.Uploads) + len(page.CommonPrefixes); n > limit || page.Truncated && n != limit {
			w.t.Errorf("a page of %d has %d uploads and prefixes", limit, n)
		}
		var merged []string
		for _, u := range page.Uploads {
			merged = append(merged, fmt.Sprintf("%s %d", u.Key, u.Row.Seq))
		}
		for _, p := range page.CommonPrefixes {
			merged = append(merged, p+" 0")
		}
		slices.SortStableFunc(merged, func(a, b string) int {
			return strings.Compare(a[:strings.LastIndex(a, " ")], b[:strings.LastIndex(b, " ")])
		})
		got = append(got, merged...)
		more, key, seq = page.Truncated, page.NextKey, page.NextSeq
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("uploads of bucket %d prefix %q delimiter %q by %d: %q, want %q", id, prefix, delimiter, limit, got, want)
	}
	// A key marker alone passes all uploads of its key.
	after := w.someAfter()
	page, err := w.view().ListUploads(storage.BucketID(id), "", "", after, 0, 1000)
	n := 0
	for _, u := range b.uploads {
		if u.key > after {
			n++
		}
	}
	if err != nil || len(page.Uploads) != n {
		w.t.Errorf("uploads after %q: %d, %v; want %d", after, len(page.Uploads), err, n)
	}
}

// checkVersionListing pages through the versions.
func (w *world) checkVersionListing() {
	w.t.Helper()
	id := uint64(1 + w.n(4))
	b := w.model.buckets[id]
	if b == nil {
		return
	}
	prefix, delimiter, limit := pick(w, worldPrefixes), pick(w, worldDelimiters), 1+w.n(4)
	var want, got []string
	for _, key := range sortedKeys(b.keys) {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		if i := strings.Index(key[len(prefix):], delimiter); delimiter != "" && i >= 0 {
			if e := "prefix " + key[:len(prefix)+i+len(delimiter)]; !slices.Contains(want, e) {
				want = append(want, e)
			}
			continue
		}
		for i, v := range b.keys[key] {
			want = append(want, fmt.Sprintf("%s %d latest %v", key, v.seq, i == 0))
		}
	}
	key, version := "", (*storage.VersionID)(nil)
	for more := true; more; {
		page, err := w.view().ListVersions(storage.BucketID(id), prefix, delimiter, key, version, limit)
		if err != nil {
			w.t.Error(err)
			return
		}
		if n := len(page.Rows) + len(page.CommonPrefixes); n > limit || page.Truncated && n != limit {
			w.t.Errorf("a page of %d has %d versions and prefixes", limit, n)
		}
		for _, r := range page.Rows {
			got = append(got, fmt.Sprintf("%s %d latest %v", r.Key, r.Row.Seq, r.Row.NoncurrentMs == 0))
			// What a listing says of restores.
			if i := slices.IndexFunc(b.keys[string(r.Key)], func(v *mVersion) bool { return v.seq == r.Row.Seq }); i >= 0 {
				if v := b.keys[string(r.Key)][i]; !r.Row.Restore.EqualVT(v.restore) || r.Row.GetAttributes().GetStorageClass() != v.class {
					w.t.Errorf("%s is listed as %v, want %+v", r.Key, r.Row, v)
				}
			}
		}
		for _, p := range page.CommonPrefixes {
			got = append(got, "prefix "+p)
		}
		more, key, version = page.Truncated, page.NextKey, page.NextVersion
	}
	slices.Sort(want) // the pages don't tell the order between rows and prefixes
	ordered := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return strings.HasPrefix(s, "prefix ") })
	for i := 1; i < len(ordered); i++ {
		if key := func(s string) string { return s[:strings.LastIndex(s[:strings.Index(s, " latest")], " ")] }; key(ordered[i-1]) > key(ordered[i]) {
			w.t.Errorf("versions out of order: %q", ordered)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		w.t.Errorf("versions of bucket %d prefix %q delimiter %q by %d:\n got %q\nwant %q", id, prefix, delimiter, limit, got, want)
	}
}

// checkSegments reads random bytes of some version.
func (w *world) checkSegments() {
	w.t.Helper()
	id := uint64(1 + w.n(4))
	b := w.model.buckets[id]
	if b == nil || len(b.keys) == 0 {
		return
	}
	key := pick(w, sortedKeys(b.keys))
	v := pick(w, b.keys[key])
	name := storage.VersionID{Seq: storage.Seq(v.seq), Nonce: v.nonce}
	if v.null {
		name = storage.VersionID{}
	}
	view := w.view()
	row, err := view.Object(storage.BucketID(id), storage.Key(key), &name)
	if v.marker {
		if !errs.Is(err, errs.IsDeleteMarker) || row == nil || row.Seq != v.seq {
			w.t.Errorf("marker %v of %q: %v, %v", name, key, row, err)
		}
		return
	}
	if err != nil || row.Seq != v.seq {
		w.t.Errorf("version %v of %q: %v, %v", name, key, row, err)
		return
	}
	off := uint64(w.n(int(v.size) + 1))
	n := uint64(w.n(int(v.size-off) + 1))
	segs, err := view.Segments(storage.BucketID(id), storage.Key(key), row, int64(off), int64(n), math.MaxInt)
	if err != nil {
		w.t.Error(err)
		return
	}
	rows, more, err := view.ObjectParts(storage.BucketID(id), storage.Key(key), row, 0, 1000)
	if err != nil || more || len(rows) != len(v.parts) {
		w.t.Errorf("parts of %q: %v, %v, %v, want %d", key, rows, more, err, len(v.parts))
		return
	}
	for i, p := range v.parts {
		if rows[i].Number != p.number || rows[i].Size != p.size || rows[i].Etag != p.etag {
			w.t.Errorf("part %d of %q is %v, want %+v", i, key, rows[i], p)
		}
	}
	parts := v.parts
	if v.upload == 0 {
		parts = []*mPart{{size: v.size, write: v.write, chunks: v.chunks}}
	}
	at := uint64(0)
	for _, p := range parts {
		from, to := max(at, off), min(at+p.size, off+n)
		if from < to {
			if len(segs) == 0 {
				w.t.Errorf("segments end early at %d", from)
				return
			}
			s := segs[0]
			segs = segs[1:]
			if s.Part != p.number || string(s.Write[:]) != p.write || len(s.Chunks) != len(p.chunks) || s.Offset != int64(from-at) || s.Length != int64(to-from) || s.Size != int64(p.size) {
				w.t.Errorf("segment %+v, want bytes %d to %d of part %+v", s, from-at, to-at, p)
			}
		}
		if v.upload != 0 {
			o, l, err := view.PartExtent(storage.BucketID(id), storage.Key(key), row, int(p.number))
			if err != nil || o != int64(at) || l != int64(p.size) {
				w.t.Errorf("part %d is at %d+%d, %v; want %d+%d", p.number, o, l, err, at, p.size)
			}
		}
		at += p.size
	}
	if len(segs) != 0 {
		w.t.Errorf("%d segments too many", len(segs))
	}
}
