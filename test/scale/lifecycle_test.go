//go:build scale

package scale

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/s3api/objects"
	"cairn/server/config"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/worker"
	"cairn/test/harness"
)

var (
	versionsFlag = flag.Int("versions", 1_000_000, "versions and uploads that lifecycle rules decide about")
	profileFlag  = flag.String("lifecycle-profile", "", "file for a CPU profile of deciding and acting")
)

const (
	plainBucket     = "plain"     // without versions
	versionedBucket = "versioned" // with them
	oldDays         = 40          // how old what is due is
	newDays         = 1           // and what is not
)

// TestLifecycle has four rules decide about many small objects, half of which are due: a prefix, a tag, noncurrent versions
// of a size beyond the newest two, and uploads. In the middle the rule with the most to do is made longer. What is left
// must be what a plain model says.
func TestLifecycle(t *testing.T) {
	dir := filepath.Join(*dirFlag, "lifecycle")
	if *dirFlag == "" {
		dir = t.TempDir()
	}
	var ahead atomic.Int64 // how far the store's clock is ahead
	cfg := config.Default()
	cfg.DataDir, cfg.Reserve = dir, 1
	env := core.Env{
		Now:  func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		Tune: func(t *core.Tuning) { t.Workers = false },
	}
	ctx := t.Context()
	c, err := core.Open(ctx, cfg, env)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l := &lifecycleRun{T: t, c: c, units: *versionsFlag / rowsPerUnit}
	l.buckets()
	began, used := time.Now(), cpu(t)
	l.load(true)
	ahead.Add(int64((oldDays - newDays) * 24 * time.Hour))
	l.load(false)
	ahead.Add(int64(newDays * 24 * time.Hour))
	t.Logf("%d rows written in %v", l.rows(), l.each(time.Since(began), cpu(t)-used, l.rows()))

	if *profileFlag != "" {
		f, err := os.Create(*profileFlag)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			t.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	l.decide()
	l.putRules(30)
	l.act()
	l.check()
}

// lifecycleRun is a store with many versions and four rules.
type lifecycleRun struct {
	*testing.T
	c     *core.Core
	units int
}

// A unit is some rows of all kinds, half of which are due.
const (
	rowsPerUnit = 64
	duePerUnit  = 32
)

func (l *lifecycleRun) rows() int { return l.units * rowsPerUnit }

// unitRow is a row of a unit. The rows of one key come together, the oldest first.
type unitRow struct {
	bucket string
	key    string
	old    bool
	size   int
	tagged bool
	upload bool
	due    bool
}

// unit is what unit u consists of.
func unit(u int) (out []unitRow) {
	key := func(prefix string, n int) string { return fmt.Sprintf("%s%08d/%02d", prefix, u, n) }
	for n := range 36 { // by prefix
		old := n%3 != 0
		out = append(out, unitRow{bucket: plainBucket, key: key("logs/", n), old: old, size: 16, due: old && n < 30})
		if n >= 30 {
			out[n].key = key("data/", n)
		}
	}
	for n := range 12 { // by tag
		out = append(out, unitRow{bucket: plainBucket, key: key("tmp/", n), old: n%2 == 0, size: 20, tagged: n < 8, due: n%2 == 0 && n < 8})
	}
	for n := range 8 { // uploads
		out = append(out, unitRow{bucket: plainBucket, key: key("up/", n), old: n%2 == 0, upload: true, due: n%2 == 0})
	}
	for n := range 8 { // one key; the versions 1 to 4 go, because 5 and 6 are newer noncurrent ones and 0 is too small
		out = append(out, unitRow{bucket: versionedBucket, key: key("v/", 0), old: n < 6, size: 4 + min(n, 1)*20, due: n >= 1 && n <= 4})
	}
	return out
}

func (l *lifecycleRun) buckets() {
	due := 0
	for _, r := range unit(0) {
		if r.due {
			due++
		}
	}
	if n := len(unit(0)); n != rowsPerUnit || due != duePerUnit {
		l.Fatalf("a unit has %d rows, %d due", n, due)
	}
	ctx := l.Context()
	for _, name := range []string{plainBucket, versionedBucket} {
		if _, err := harness.MakeBucket(ctx, l.c, name); err != nil {
			l.Fatal(err)
		}
	}
	if err := l.c.Objects.PutBucketVersioning(ctx, harness.Account, versionedBucket, true); err != nil {
		l.Fatal(err)
	}
}

// load writes the old rows, or the others.
func (l *lifecycleRun) load(old bool) {
	body := []byte(strings.Repeat("0123456789abcdef", 4))
	ctx := l.Context()
	parallel(l.T, l.units, 128, func(u int) error {
		for _, r := range unit(u) {
			if r.old != old {
				continue
			}
			var err error
			if r.upload {
				_, err = l.c.Objects.CreateUpload(ctx, harness.Account, &objects.CreateUploadInput{Bucket: r.bucket, Key: storage.Key(r.key), Attributes: &metapb.Attributes{}})
			} else {
				a := &metapb.Attributes{}
				if r.tagged {
					a.Tags = []*metapb.KV{{Name: "keep", Value: "short"}}
				}
				_, err = l.c.Objects.PutObject(ctx, harness.Account, &objects.PutInput{Bucket: r.bucket, Key: storage.Key(r.key), Body: harness.NewBody(body[:r.size]), Attributes: a})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// configs are the rules of the two buckets; those of the prefix act after so many days.
func configs(logDays uint32) (plain, versioned *metapb.LifecycleConfig) {
	plain = &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{
		{Id: "prefix", Filter: &metapb.LifecycleFilter{Prefix: "logs/"}, Expiration: &metapb.LifecycleExpiration{Days: logDays}},
		{Id: "tag", Filter: &metapb.LifecycleFilter{Tags: []*metapb.KV{{Name: "keep", Value: "short"}}}, Expiration: &metapb.LifecycleExpiration{Days: 30}},
		{Id: "uploads", Filter: &metapb.LifecycleFilter{}, AbortDays: 30},
	}}
	versioned = &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{
		Id: "noncurrent", Filter: &metapb.LifecycleFilter{HasSizeGreater: true, SizeGreater: 10},
		NoncurrentExpiration: &metapb.LifecycleNoncurrentExpiration{Days: 30, NewerNoncurrent: 2},
	}}}
	return plain, versioned
}

func (l *lifecycleRun) putRules(logDays uint32) {
	plain, versioned := configs(logDays)
	for name, cfg := range map[string]*metapb.LifecycleConfig{plainBucket: plain, versionedBucket: versioned} {
		if err := l.c.Objects.PutBucketLifecycle(l.Context(), harness.Account, name, cfg); err != nil {
			l.Fatal(err)
		}
	}
}

// each describes a time and what one of n costs.
func (l *lifecycleRun) each(took, used time.Duration, n int) string {
	n = max(n, 1)
	return fmt.Sprintf("%v: %.0f a second, %.2f us of CPU each", took.Round(time.Millisecond), float64(n)/took.Seconds(), float64(used.Nanoseconds())/1000/float64(n))
}

// decide measures how long it takes to decide about everything, without doing any of it.
func (l *lifecycleRun) decide() {
	plain, versioned := configs(30)
	began, used := time.Now(), cpu(l.T)
	n, due := 0, 0
	for name, cfg := range map[string]*metapb.LifecycleConfig{plainBucket: plain, versionedBucket: versioned} {
		b, err := l.c.Objects.HeadBucket(l.Context(), harness.Account, name)
		if err != nil {
			l.Fatal(err)
		}
		r := rules.Compile(cfg, 24*time.Hour)
		err = l.c.Meta.ReadGroup(l.Context(), cluster.FirstRange, func(v rangestate.Reader) error {
			now := v.TimeMS() + (newDays * 24 * time.Hour).Milliseconds()
			_, err := v.(rangestate.LifecycleReader).Lifecycle(b.ID, nil, 1<<62, func(row *rangestate.LifecycleRow) (bool, error) {
				n++
				if r.Decide(factsOf(row), now).What != rules.Nothing {
					due++
				}
				return true, nil
			})
			return err
		})
		if err != nil {
			l.Fatal(err)
		}
	}
	took := time.Since(began)
	l.Logf("decided about %d rows in %s", n, l.each(took, cpu(l.T)-used, n))
	if n != l.rows() || due != l.units*duePerUnit {
		l.Fatalf("%d rows, %d of them due; want %d, %d", n, due, l.rows(), l.units*duePerUnit)
	}
	if took > 10*time.Second {
		l.Errorf("deciding took %v", took)
	}
}

// act carries out what is due, with the collector beside it, and holds up a rule in the middle.
func (l *lifecycleRun) act() {
	ctx, cancel := context.WithCancel(l.Context())
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for ctx.Err() == nil {
			if _, more, err := l.c.Garbage.Step(ctx); err != nil || !more {
				time.Sleep(50 * time.Millisecond)
			}
		}
	}()
	want := l.units * duePerUnit
	done := 0
	began, used := time.Now(), cpu(l.T)
	run := func(until int) {
		l.Helper()
		for done < until {
			n, more, err := l.c.Lifecycle.Step(l.Context())
			if err != nil {
				l.Fatal(err)
			}
			done += int(n)
			if !more {
				break
			}
		}
	}
	run(want / 4)
	took, cost := time.Since(began), cpu(l.T)-used

	l.putRules(60)
	left := l.keys("logs/")
	began, used = time.Now(), cpu(l.T)
	n := done
	run(want)
	took, cost = took+time.Since(began), cost+cpu(l.T)-used
	if after := l.keys("logs/"); len(after) != len(left) {
		l.Fatalf("%d keys when the rule was made longer, %d afterwards", len(left), len(after))
	}
	if len(left) <= l.units*10 || n == done {
		l.Fatalf("the rule was made longer when there were %d keys left; %d actions followed", len(left), done-n)
	}

	l.putRules(30)
	began, used = time.Now(), cpu(l.T)
	run(want + 1)
	cancel()
	<-collected
	l.finish(l.c.Garbage)
	took, cost = took+time.Since(began), cost+cpu(l.T)-used
	l.Logf("%d actions in %s", done, l.each(took, cost, done))
	if done != want {
		l.Errorf("%d actions, want %d", done, want)
	}
	if rate := float64(done) / took.Seconds(); rate < 20_000 {
		l.Logf("that is below 20,000 a second")
	}
	if st := l.c.Lifecycle.Status(); st.LastErr != "" {
		l.Errorf("%+v", st)
	}
}

// finish runs a worker until it has no more to do.
func (l *lifecycleRun) finish(w worker.Worker) {
	l.Helper()
	for more := true; more; {
		var err error
		if _, more, err = w.Step(l.Context()); err != nil {
			l.Fatal(err)
		}
	}
}

// keys are those of the bucket without versions that begin with a prefix.
func (l *lifecycleRun) keys(prefix string) (out []string) {
	l.Helper()
	for after := ""; ; {
		page, err := l.c.Objects.ListObjects(l.Context(), harness.Account, &objects.ListInput{Bucket: plainBucket, Prefix: prefix, After: after, Max: 1000})
		if err != nil {
			l.Fatal(err)
		}
		for _, o := range page.Objects {
			out = append(out, string(o.Key))
		}
		if after = page.Next; !page.Truncated {
			return out
		}
	}
}

// check compares what is left with the model.
func (l *lifecycleRun) check() {
	objectsWant, uploads, versions := map[string]bool{}, map[string]bool{}, map[string]int{}
	for u := range l.units {
		for _, r := range unit(u) {
			switch {
			case r.due:
			case r.upload:
				uploads[r.key] = true
			case r.bucket == versionedBucket:
				versions[r.key]++
			default:
				objectsWant[r.key] = true
			}
		}
	}
	for _, key := range l.keys("") {
		if !objectsWant[key] {
			l.Fatalf("%s is there", key)
		}
		delete(objectsWant, key)
	}
	for in := (objects.ListUploadsInput{Bucket: plainBucket, Max: 1000}); ; {
		page, err := l.c.Objects.ListUploads(l.Context(), harness.Account, &in)
		if err != nil {
			l.Fatal(err)
		}
		for _, up := range page.Uploads {
			if !uploads[string(up.Key)] {
				l.Fatalf("the upload of %s is there", up.Key)
			}
			delete(uploads, string(up.Key))
		}
		if in.KeyMarker, in.UploadIDMarker = page.NextKey, page.NextUploadID; !page.Truncated {
			break
		}
	}
	for in := (objects.ListVersionsInput{Bucket: versionedBucket, Max: 1000}); ; {
		page, err := l.c.Objects.ListVersions(l.Context(), harness.Account, &in)
		if err != nil {
			l.Fatal(err)
		}
		for _, v := range page.Versions {
			versions[string(v.Key)]--
		}
		if in.KeyMarker, in.VersionMarker = page.NextKey, page.NextVersion; !page.Truncated {
			break
		}
	}
	for key, n := range versions {
		if n != 0 {
			l.Fatalf("%s: %d versions are not there", key, n)
		}
	}
	if len(objectsWant)+len(uploads) > 0 {
		l.Fatalf("%d objects and %d uploads are gone", len(objectsWant), len(uploads))
	}
}

// factsOf is what the rules know of a row.
func factsOf(row *rangestate.LifecycleRow) *rules.Object {
	if up := row.Upload; up != nil {
		return &rules.Object{Kind: rules.Upload, Key: storage.Key(row.Key), ModifiedMS: up.InitiatedMs}
	}
	o := &rules.Object{
		Key: storage.Key(row.Key), Size: row.Object.Size, Tags: row.Object.GetAttributes().GetTags(), Newer: row.NewerNoncurrent, Only: row.Only,
		ModifiedMS: row.Object.ModifiedMs, NoncurrentMS: row.Object.NoncurrentMs, Marker: row.Object.DeleteMarker,
	}
	if !row.Newest {
		o.Kind = rules.Noncurrent
	}
	return o
}
