package background

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/config"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/lifecycle"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

var historiesFlag = flag.Int("histories", 4, "random histories of a bucket with lifecycle rules")

// historyDay is longer than aDay, so that operations and rounds stand clear of the midnights.
const historyDay = 10 * time.Minute

// TestLifecycleHistories has random operations and random rules act on a bucket for days, and compares after each midnight what is
// there with a model that was written from S3's documentation.
func TestLifecycleHistories(t *testing.T) {
	first := seed.Of(t)
	var acted lifecycle.Status
	for i := range *historiesFlag {
		bubble.Test(t, func(t *testing.T) {
			h := &history{seed: first + uint64(i)<<32, acted: &acted}
			h.store = &store{T: t, fs: vfsx.NewMem(), rnd: rand.New(rand.NewPCG(h.seed, 0)), want: map[string][]byte{}}
			h.open()
			defer h.close()
			h.run()
			if t.Failed() {
				t.Logf("history %d", i)
			}
		})
	}
	t.Logf("%d versions expired, %d and markers removed, %d uploads aborted, %d transitions", acted.Expired, acted.Removed, acted.Aborted, acted.Transitioned)
	if acted.Expired == 0 || acted.Removed == 0 || acted.Aborted == 0 || acted.Transitioned == 0 {
		t.Error("that is not much of a history")
	}
}

// history is a bucket beside its model.
type history struct {
	*store
	seed   uint64
	m      model
	log    []string          // what happened, for a failure
	reread bool              // the worker will look at everything, because the configuration changed or the store was opened
	acted  *lifecycle.Status // of all histories
}

func (h *history) open() {
	h.Helper()
	var err error
	h.Core, err = harness.Open(h.Context(), harness.Options{FS: h.fs, Dir: "/data", Zones: 1, DrivesPerZone: 1, Config: func(c *config.Config) {
		c.LifecycleDay = historyDay
	}, Tune: func(t *core.Tuning) {
		t.Raft.HeartbeatTimeout, t.Controller.Tick = 5*time.Second, 5*time.Second // mostly nothing happens
	}})
	if err != nil {
		h.Fatal(err)
	}
	h.reread = true
}

func (h *history) failf(format string, args ...any) {
	h.Helper()
	h.Fatalf("seed %d: %s\n%s", h.seed, fmt.Sprintf(format, args...), strings.Join(h.log, "\n"))
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, time.Now().Format("15:04:05 ")+fmt.Sprintf(format, args...))
}

func (h *history) run() {
	lock := h.rnd.IntN(4) == 0
	if err := h.Objects.CreateBucket(h.Context(), harness.Account, "bucket", objects.BucketOptions{Region: "us-east-1", ObjectLock: lock}); err != nil {
		h.failf("%v", err)
	}
	h.m.lock = lock
	if lock {
		h.m.versioning = enabled
	}
	h.settle()
	for range 10 + h.rnd.IntN(8) {
		days := 1
		if h.rnd.IntN(10) == 0 {
			days = 31 // from then on S3 lets things move to the classes of infrequent access
		}
		h.note("midnight, %d days on", days)
		time.Sleep(time.Until(time.UnixMilli((time.Now().UnixMilli()/historyDay.Milliseconds() + int64(days)) * historyDay.Milliseconds())))
		time.Sleep(time.Second)
		h.reread = true
		h.settle()
		if h.rnd.IntN(5) == 0 {
			h.note("power cut")
			fs := h.fs.CrashClone(h.rnd.Uint64())
			h.close()
			h.fs = fs
			h.open()
		}
		if h.rnd.IntN(10) == 0 {
			h.note("split")
			groups := h.Meta.AllRanges()
			if _, err := h.Splits.Split(h.Context(), groups[h.rnd.IntN(len(groups))].ID, cluster.Pos{}); err != nil {
				h.note("%v", err) // too little in it
			}
			time.Sleep(15 * time.Second) // the child is published
			h.newRules()                 // so that the rows of all ranges are looked at
		}
		for range h.rnd.IntN(9) {
			time.Sleep(time.Duration(1+h.rnd.IntN(5000)) * time.Millisecond)
			h.operate()
			if h.reread && h.rnd.IntN(3) == 0 {
				h.settle()
			}
		}
	}
	for key := range h.m.keys {
		h.read(key)
	}
	h.step(h.Garbage)
	h.wantClean()
	h.counters()
}

// counters checks what is counted by class.
func (h *history) counters() {
	h.Helper()
	got, want := map[string][4]int64{}, map[string][4]int64{}
	for _, g := range h.Meta.AllRanges() {
		if err := h.Meta.ReadGroup(h.Context(), g.ID, func(v rangestate.Reader) error {
			all, err := v.Counters()
			for _, c := range all {
				n := got[string(c.Class)]
				n[0], n[1], n[2], n[3] = n[0]+c.Row.Objects, n[1]+c.Row.Versions, n[2]+c.Row.Markers, n[3]+c.Row.Bytes
				got[string(c.Class)] = n
			}
			return err
		}); err != nil {
			h.failf("%v", err)
		}
	}
	for _, all := range h.m.keys {
		for i, v := range all {
			class := string(cmp.Or(v.class, storage.Standard))
			n := want[class]
			switch {
			case v.marker:
				n[2]++
			case i == 0:
				n[0]++
			default:
				n[1]++
			}
			n[3] += v.size
			want[class] = n
		}
	}
	maps.DeleteFunc(got, func(_ string, n [4]int64) bool { return n == [4]int64{} })
	if !maps.Equal(got, want) {
		h.failf("counted are %v, want %v (objects, versions, markers, bytes)", got, want)
	}
}

// settle lets the worker and the model do all that is due now, and compares.
func (h *history) settle() {
	h.Helper()
	for range 20 {
		before := h.Lifecycle.Status()
		h.step(h.Lifecycle)
		after := h.Lifecycle.Status()
		if after.LastErr != "" {
			h.failf("the worker: %s", after.LastErr)
		}
		a := h.acted
		a.Expired, a.Removed = a.Expired+after.Expired-before.Expired, a.Removed+after.Removed-before.Removed
		a.Aborted, a.Transitioned = a.Aborted+after.Aborted-before.Aborted, a.Transitioned+after.Transitioned-before.Transitioned
		if before.Rounds == after.Rounds {
			break
		}
		time.Sleep(historyDay/10 + time.Second) // what was done may make other things due
		if sum(after) == sum(before) {
			break
		}
	}
	if h.reread {
		h.m.settle(time.Now().UnixMilli())
		h.reread = false
	}
	h.compare()
}

// compare checks that the store holds what the model does.
func (h *history) compare() {
	h.Helper()
	page, err := h.Objects.ListVersions(h.Context(), harness.Account, &objects.ListVersionsInput{Bucket: "bucket", Max: 1000})
	if err != nil {
		h.failf("%v", err)
	}
	var got, want []string
	at := map[string]int{}
	for i := range page.Versions {
		v := &page.Versions[i]
		key := string(v.Key)
		got = append(got, describe(key, v.DeleteMarker, v.Latest, v.VersionID == "null", v.Size, v.Attributes.GetStorageClass()))
		if n := at[key]; n < len(h.m.keys[key]) && h.m.keys[key][n].id == "" {
			h.m.keys[key][n].id = v.VersionID // of a marker that a rule made
		}
		at[key]++
	}
	for _, key := range slices.Sorted(maps.Keys(h.m.keys)) {
		for i, v := range h.m.keys[key] {
			want = append(want, describe(key, v.marker, i == 0, v.null, v.size, string(v.class)))
		}
	}
	ups, err := h.Objects.ListUploads(h.Context(), harness.Account, &objects.ListUploadsInput{Bucket: "bucket", Max: 1000})
	if err != nil {
		h.failf("%v", err)
	}
	for _, up := range ups.Uploads {
		got = append(got, "upload "+string(up.Key)+" "+up.ID)
	}
	slices.SortFunc(h.m.uploads, func(a, b *upload) int { return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.began, b.began)) })
	for _, up := range h.m.uploads {
		want = append(want, "upload "+up.key+" "+up.id)
	}
	if !slices.Equal(got, want) {
		h.failf("there is\n  %s\nwant\n  %s\nrules: %+v\n", strings.Join(got, "\n  "), strings.Join(want, "\n  "), h.m.rules)
	}
}

func describe(key string, marker, latest, null bool, size int64, class string) string {
	out := fmt.Sprintf("%s %d %s", key, size, cmp.Or(class, "STANDARD"))
	if marker {
		out = key + " marker"
	}
	if latest {
		out += " latest"
	}
	if null {
		out += " null"
	}
	return out
}

// operate does one random thing.
func (h *history) operate() {
	key := []string{"a/1", "a/2", "b/1", "c"}[h.rnd.IntN(4)]
	vs := h.m.keys[key]
	ctx := h.Context()
	switch n := h.rnd.IntN(20); {
	case n < 6:
		h.putVersion(key)
	case n < 8:
		h.note("delete %s", key)
		res, err := h.Objects.DeleteObject(ctx, harness.Account, "bucket", objects.DeleteItem{Key: storage.Key(key)})
		h.wantErr(err, h.m.delete(key, res.MarkerVersionID, time.Now().UnixMilli()))
	case n < 10 && len(vs) > 0:
		v := vs[h.rnd.IntN(len(vs))]
		h.note("delete %s %s", key, v.id)
		_, err := h.Objects.DeleteObject(ctx, harness.Account, "bucket", objects.DeleteItem{Key: storage.Key(key), VersionID: v.id})
		h.wantErr(err, h.m.deleteVersion(key, v, time.Now().UnixMilli()))
	case n < 11 && len(vs) > 0 && !vs[0].marker:
		v := vs[h.rnd.IntN(len(vs))]
		if v.marker {
			v = vs[0]
		}
		tag := h.tag()
		h.note("tag %s %s %q", key, v.id, tag)
		if _, err := h.Objects.PutTags(ctx, harness.Account, objects.VersionRef{Bucket: "bucket", Key: storage.Key(key), VersionID: v.id}, tagsOf(tag)); err != nil {
			h.failf("%v", err)
		}
		v.tag = tag
	case n < 12 && len(vs) > 0 && h.m.lock:
		v := vs[h.rnd.IntN(len(vs))]
		if v.marker {
			return
		}
		h.note("hold %s %s %v", key, v.id, !v.hold)
		if _, err := h.Objects.PutLegalHold(ctx, harness.Account, objects.VersionRef{Bucket: "bucket", Key: storage.Key(key), VersionID: v.id}, !v.hold); err != nil {
			h.failf("%v", err)
		}
		v.hold = !v.hold
	case n < 13 && len(vs) > 0:
		h.restoreSome(key, vs[h.rnd.IntN(len(vs))])
	case n < 15:
		h.uploads(key)
	case n < 16 && !h.m.lock:
		on := h.m.versioning != enabled
		h.note("versioning %v", on)
		h.versioning(on)
		h.m.versioning = suspended
		if on {
			h.m.versioning = enabled
		}
		h.reread = true
	case n < 19:
		h.newRules()
	}
}

func (h *history) wantErr(got, want error) {
	h.Helper()
	if errs.KindOf(got) != errs.KindOf(want) || (got == nil) != (want == nil) {
		h.failf("%v, want %v", got, want)
	}
}

func (h *history) tag() string { return []string{"", "", "x", "y"}[h.rnd.IntN(4)] }

func tagsOf(tag string) []*metapb.KV {
	if tag == "" {
		return nil
	}
	return []*metapb.KV{{Name: "t", Value: tag}}
}

func (h *history) attributes(v *version) *metapb.Attributes {
	v.tag = h.tag()
	if h.rnd.IntN(3) == 0 {
		v.class = []storage.StorageClass{storage.StandardIA, storage.GlacierIR, storage.Glacier, storage.OnezoneIA, storage.DeepArchive}[h.rnd.IntN(5)]
	}
	a := &metapb.Attributes{Tags: tagsOf(v.tag), StorageClass: string(v.class)}
	if h.m.lock && h.rnd.IntN(3) == 0 {
		day := historyDay.Milliseconds() // it ends late on a day, when all that is due on that day is done
		v.until = (time.Now().UnixMilli()/day+int64(h.rnd.IntN(5)))*day + day*19/20
		a.LockMode, a.LockUntilMs = "GOVERNANCE", v.until
	}
	return a
}

func (h *history) putVersion(key string) {
	v := &version{data: h.noise([]int{10, 3000, 140_000}[h.rnd.IntN(3)])}
	v.size = int64(len(v.data))
	a := h.attributes(v)
	h.note("put %s: %d bytes, tag %q, class %q, locked until %d", key, v.size, v.tag, v.class, v.until)
	out, err := h.Objects.PutObject(h.Context(), harness.Account, &objects.PutInput{Bucket: "bucket", Key: storage.Key(key), Body: harness.NewBody(v.data), Attributes: a})
	if err != nil {
		h.failf("%v", err)
	}
	v.id = cmp.Or(out.VersionID, "null")
	h.m.put(key, v, time.Now().UnixMilli())
}

// uploads begins an upload, or aborts or completes one.
func (h *history) uploads(key string) {
	ctx := h.Context()
	if n := len(h.m.uploads); n > 0 && h.rnd.IntN(2) == 0 {
		up := h.m.uploads[h.rnd.IntN(n)]
		h.m.uploads = slices.DeleteFunc(h.m.uploads, func(o *upload) bool { return o == up })
		if h.rnd.IntN(2) == 0 {
			h.note("abort %s", up.key)
			if err := h.Objects.AbortUpload(ctx, harness.Account, "bucket", storage.Key(up.key), up.id); err != nil {
				h.failf("%v", err)
			}
			return
		}
		h.note("complete %s", up.key)
		data := h.noise([]int{100, 150_000}[h.rnd.IntN(2)])
		part, err := h.Objects.UploadPart(ctx, harness.Account, &objects.UploadPartInput{
			Bucket: "bucket", Key: storage.Key(up.key), UploadID: up.id, Number: 1, Body: harness.NewBody(data),
		})
		if err != nil {
			h.failf("%v", err)
		}
		out, err := h.Objects.CompleteUpload(ctx, harness.Account, &objects.CompleteInput{
			Bucket: "bucket", Key: storage.Key(up.key), UploadID: up.id, Parts: []objects.CompletePart{{Number: 1, ETag: part.ETag}},
		})
		if err != nil {
			h.failf("%v", err)
		}
		up.v.data, up.v.size, up.v.id = data, int64(len(data)), cmp.Or(out.VersionID, "null")
		h.m.put(up.key, up.v, time.Now().UnixMilli())
		return
	}
	up := &upload{key: key, v: &version{}}
	a := h.attributes(up.v)
	h.note("upload %s: tag %q, class %q, locked until %d", key, up.v.tag, up.v.class, up.v.until)
	got, err := h.Objects.CreateUpload(ctx, harness.Account, &objects.CreateUploadInput{Bucket: "bucket", Key: storage.Key(key), Attributes: a})
	if err != nil {
		h.failf("%v", err)
	}
	up.id, up.began = got.ID, time.Now().UnixMilli()
	h.m.uploads = append(h.m.uploads, up)
}

// restoreSome asks for a restore of a version, which is refused if it is not archived.
func (h *history) restoreSome(key string, v *version) {
	if v.marker {
		return
	}
	h.note("restore %s %s", key, v.id)
	archived := v.class == storage.Glacier || v.class == storage.DeepArchive
	_, err := h.Objects.RestoreObject(h.Context(), harness.Account, objects.VersionRef{Bucket: "bucket", Key: storage.Key(key), VersionID: v.id}, objects.RestoreRequest{Days: 2, Tier: "Standard"})
	var no *objects.ArchivedError
	switch {
	case errors.As(err, &no) == archived:
		h.failf("class %q: %v", v.class, err)
	case archived && err != nil && !errs.Is(err, errs.RestoreInProgress):
		h.failf("%v", err)
	}
	v.restored = archived
}

// read checks the bytes of a key's versions.
func (h *history) read(key string) {
	for _, v := range h.m.keys[key] {
		if v.marker {
			continue
		}
		o, err := h.Objects.GetObject(h.Context(), harness.Account, &objects.GetInput{Bucket: "bucket", Key: storage.Key(key), VersionID: v.id})
		if v.class == storage.Glacier || v.class == storage.DeepArchive {
			var no *objects.ArchivedError
			if err == nil {
				o.Close()
			}
			if !errors.As(err, &no) && !v.restored {
				h.failf("%s %s is archived, and reading it gives %v", key, v.id, err)
			}
			continue
		}
		if err != nil {
			h.failf("%s %s: %v", key, v.id, err)
		}
		var got strings.Builder
		err = o.Send(&got)
		o.Close()
		if err != nil || got.String() != string(v.data) {
			h.failf("%s %s: %d bytes of %d, %v", key, v.id, got.Len(), len(v.data), err)
		}
	}
}

// newRules puts rules, or removes them.
func (h *history) newRules() {
	cfg := &metapb.LifecycleConfig{VariesByStorageClass: h.rnd.IntN(4) == 0}
	h.m.rules, h.m.varies = nil, cfg.VariesByStorageClass
	for i := range h.rnd.IntN(5) {
		r := h.rule(fmt.Sprintf("rule-%d", i))
		cfg.Rules, h.m.rules = append(cfg.Rules, r), append(h.m.rules, r)
	}
	if len(cfg.Rules) == 0 {
		cfg = nil
	}
	h.note("rules %v", cfg)
	if err := h.Objects.PutBucketLifecycle(h.Context(), harness.Account, "bucket", cfg); err != nil {
		h.failf("%v", err)
	}
	h.reread = true
}

// rule is a rule that S3 accepts.
func (h *history) rule(id string) *metapb.LifecycleRule {
	rnd := h.rnd
	f := &metapb.LifecycleFilter{Prefix: []string{"", "", "a/", "b/", "a/1", "c"}[rnd.IntN(6)]}
	plain := true
	if rnd.IntN(4) == 0 {
		f.Tags, plain = tagsOf("x"), false
	}
	if rnd.IntN(4) == 0 {
		f.HasSizeGreater, f.SizeGreater, plain = true, []uint64{5, 2000}[rnd.IntN(2)], false
	}
	if rnd.IntN(5) == 0 {
		f.HasSizeLess, f.SizeLess, plain = true, []uint64{2500, 1 << 20}[rnd.IntN(2)], false
	}
	r := &metapb.LifecycleRule{Id: id, Filter: f, Disabled: rnd.IntN(8) == 0}
	date := func() int64 {
		return (time.Now().UnixMilli()/historyDay.Milliseconds() + int64(rnd.IntN(5)) - 1) * historyDay.Milliseconds()
	}
	switch n := rnd.IntN(8); {
	case n < 3:
		r.Expiration = &metapb.LifecycleExpiration{Days: uint32(1 + rnd.IntN(5))}
	case n == 3:
		r.Expiration = &metapb.LifecycleExpiration{DateMs: date()}
	case n == 4 && plain:
		r.Expiration = &metapb.LifecycleExpiration{ExpiredDeleteMarker: true}
	}
	to := func() (string, uint32) {
		class := []storage.StorageClass{storage.GlacierIR, storage.Glacier, storage.DeepArchive, storage.StandardIA, storage.OnezoneIA}[rnd.IntN(5)]
		if class == storage.StandardIA || class == storage.OnezoneIA {
			return string(class), uint32(30 + rnd.IntN(3))
		}
		return string(class), uint32(rnd.IntN(5))
	}
	for range rnd.IntN(3) {
		class, days := to()
		tr := &metapb.LifecycleTransition{Days: days, StorageClass: class}
		if rnd.IntN(4) == 0 {
			tr.Days, tr.DateMs = 0, date()
		}
		r.Transitions = append(r.Transitions, tr)
	}
	if rnd.IntN(2) == 0 {
		r.NoncurrentExpiration = &metapb.LifecycleNoncurrentExpiration{Days: uint32(1 + rnd.IntN(4)), NewerNoncurrent: uint32(rnd.IntN(3))}
	}
	if rnd.IntN(3) == 0 {
		class, days := to()
		r.NoncurrentTransitions = append(r.NoncurrentTransitions, &metapb.LifecycleTransition{
			Days: days, NewerNoncurrent: uint32(rnd.IntN(3)), StorageClass: class,
		})
	}
	if len(f.Tags) == 0 && !f.HasSizeGreater && !f.HasSizeLess && rnd.IntN(3) == 0 {
		r.AbortDays = uint32(1 + rnd.IntN(4))
	}
	return r
}
