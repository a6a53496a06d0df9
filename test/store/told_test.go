package store

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster/metaclient"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
	"cairn/test/harness"
)

// lookups counts how often a gateway reads the configuration; err is what it gets then, nil: the configuration.
type lookups struct {
	n   int
	err error
}

func (l *lookups) ConfigRead(func(pebble.Reader) error) error {
	l.n++
	if l.err != nil {
		return l.err
	}
	return errs.New(errs.Unavailable, "test", "", "no lease: ask the system group")
}

func (l *lookups) AwaitConfig(context.Context, uint64) error { return nil }

// told is what a gateway's answers tell of a bucket's lifecycle rules: the first one's id, "" without any.
type told struct {
	*testing.T
	*objects.Store
}

func (g told) id(cfg *metapb.LifecycleConfig, err error) string {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
	if cfg == nil {
		return ""
	}
	return cfg.Rules[0].Id
}

func (g told) put() string {
	g.Helper()
	out, err := g.PutObject(g.Context(), acct, &objects.PutInput{Bucket: "bucket", Key: "key", Body: harness.NewBody([]byte("body")), Attributes: &metapb.Attributes{}})
	return g.id(out.Lifecycle, err)
}

func (g told) copy() string {
	g.Helper()
	out, err := g.CopyObject(g.Context(), acct, &objects.CopyInput{SourceBucket: "bucket", SourceKey: "key", Bucket: "bucket", Key: "copy"})
	return g.id(out.Lifecycle, err)
}

func (g told) multipart() string {
	g.Helper()
	up, err := g.CreateUpload(g.Context(), acct, &objects.CreateUploadInput{Bucket: "bucket", Key: "parts", Attributes: &metapb.Attributes{}})
	if err != nil {
		g.Fatal(err)
	}
	part, err := g.UploadPart(g.Context(), acct, &objects.UploadPartInput{Bucket: "bucket", Key: "parts", UploadID: up.ID, Number: 1, Body: harness.NewBody([]byte("body"))})
	if err != nil {
		g.Fatal(err)
	}
	out, err := g.CompleteUpload(g.Context(), acct, &objects.CompleteInput{Bucket: "bucket", Key: "parts", UploadID: up.ID, Parts: []objects.CompletePart{{Number: 1, ETag: part.ETag}}})
	return g.id(out.Lifecycle, err)
}

func (g told) head(version string) string {
	g.Helper()
	o, err := g.HeadObject(g.Context(), acct, &objects.GetInput{Bucket: "bucket", Key: "key", VersionID: version})
	return g.id(o.Lifecycle, err)
}

func (g told) get() string {
	g.Helper()
	o, err := g.GetObject(g.Context(), acct, &objects.GetInput{Bucket: "bucket", Key: "key"})
	defer o.Close()
	return g.id(o.Lifecycle, err)
}

func (g told) putRules(id string) {
	g.Helper()
	var cfg *metapb.LifecycleConfig
	if id != "" {
		cfg = &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{Id: id, Expiration: &metapb.LifecycleExpiration{Days: 1}}}}
	}
	if err := g.PutBucketLifecycle(g.Context(), acct, "bucket", cfg); err != nil {
		g.Fatal(err)
	}
}

func leased(c *core.Core, l *lookups) *objects.Store {
	meta := metaclient.New(metaclient.Config{Groups: c.Groups, Topology: c.Controller.Topology, Now: time.Now, Rand: rand.Reader, Lease: l})
	return objects.New(objects.Config{Meta: meta, Chunks: c.Bodies, Pins: c.Pins})
}

// A read tells a bucket's rules as its range obeys them, whoever put them, and a write tells them a minute later at most. The
// configuration is not read for it, unless the rules are others.
func TestRulesTold(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, _ := openWith(t, harness.Options{})
		l := &lookups{}
		other, g := told{t, c.Objects}, told{t, leased(c, l)}
		read := 1 // of the bucket's name
		want := func(what, got, want string, lookups int) {
			t.Helper()
			if read += lookups; got != want || l.n != read {
				t.Errorf("%s tells %q, want %q, with %d lookups, want %d", what, got, want, l.n, read)
			}
		}
		all := func(rules string) {
			t.Helper()
			want("PUT", g.put(), rules, 0)
			want("HEAD", g.head(""), rules, 0)
			want("GET", g.get(), rules, 0)
			want("a copy", g.copy(), rules, 0)
			want("multipart", g.multipart(), rules, 0)
			want("a version", g.head("null"), "", 0)
		}
		all("")

		other.putRules("1")
		want("a write", g.put(), "", 0) // as yet
		want("a version", g.head("null"), "", 0)
		want("HEAD", g.head(""), "1", 1)
		all("1")
		other.putRules("2")
		want("GET", g.get(), "2", 1)
		all("2")

		other.putRules("3")
		time.Sleep(61 * time.Second)
		want("a late write", g.put(), "3", 1)
		all("3")
		time.Sleep(61 * time.Second)
		want("HEAD", g.head(""), "3", 0) // goes by the range
		want("a copy", g.copy(), "3", 1)
		all("3")

		g.putRules("4")
		read = l.n
		want("a write", g.put(), "4", 1)
		all("4")
		if err := g.PutBucketVersioning(t.Context(), acct, "bucket", false); err != nil { // another decision, the same rules
			t.Fatal(err)
		}
		read = l.n
		want("HEAD", g.head(""), "4", 1)
		all("4")
		g.putRules("")
		read = l.n
		want("a copy", g.copy(), "", 1)
		all("")

		// For want of an answer nothing fails.
		other.putRules("5")
		l.err = errs.New(errs.Timeout, "test", "", "cut off")
		want("HEAD", g.head(""), "", 1)
		want("GET", g.get(), "", 1)
		time.Sleep(61 * time.Second)
		want("a write", g.put(), "", 1)
		l.err = nil
		want("HEAD", g.head(""), "5", 1)
		all("5")
	})
}

// What is told of a bucket is not that of another one that had its name.
func TestRulesOfAnotherBucket(t *testing.T) {
	c, b := openWith(t, harness.Options{})
	other, g := told{t, c.Objects}, told{t, leased(c, &lookups{})}
	for range 3 {
		g.putRules("old") // the generation that is remembered is higher than that of the new one
	}
	if got := g.put(); got != "old" {
		t.Fatal(got)
	}
	if err := other.DeleteBucket(t.Context(), acct, b.Name); !errs.Is(err, errs.BucketNotEmpty) {
		t.Fatal(err)
	}
	if _, err := other.DeleteObject(t.Context(), acct, b.Name, objects.DeleteItem{Key: storage.Key("key")}); err != nil {
		t.Fatal(err)
	}
	if err := other.DeleteBucket(t.Context(), acct, b.Name); err != nil {
		t.Fatal(err)
	}
	if err := other.CreateBucket(t.Context(), acct, b.Name, objects.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := g.put(); got != "" {
		t.Error("PUT tells", got)
	}
	if got := g.head(""); got != "" {
		t.Error("HEAD tells", got)
	}
}
