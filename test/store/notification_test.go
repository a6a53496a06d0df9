package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/harness"
)

// putTargets makes targets that keep what they are sent.
func putTargets(t *testing.T, c *core.Core, names ...string) {
	t.Helper()
	for _, name := range names {
		_, err := c.Meta.Sys(t.Context(), &metapb.SysCommand{Op: &metapb.SysCommand_PutTarget{PutTarget: &metapb.PutTargetOp{Target: &metapb.SysTarget{Name: name, Kind: "log"}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// telling is a configuration with one rule.
func telling(target, id string) *metapb.NotificationConfig {
	return &metapb.NotificationConfig{Rules: []*metapb.NotificationRule{{
		Id: id, Kind: metapb.NotificationRule_KIND_QUEUE, Arn: "arn:aws:sqs:::" + target, Events: []string{"s3:ObjectCreated:*", "s3:ObjectTagging:*", "s3:ObjectRemoved:*"},
	}}}
}

// Once a configuration was put every range has it, with whatever else is decided of the bucket later; and a gateway that dies on the way leaves this to
// the finisher.
func TestNotificationRows(t *testing.T) {
	c, b := openWith(t, harness.Options{}) // without workers: nobody else finishes anything
	ctx := t.Context()
	putTargets(t, c, "mine")
	head := func() objects.Bucket {
		t.Helper()
		bucket, err := c.Objects.HeadBucket(ctx, acct, b.Name)
		if err != nil {
			t.Fatal(err)
		}
		return bucket
	}
	id := head().ID
	if _, err := c.Splits.Split(ctx, cluster.FirstRange, cluster.Pos{Bucket: id, Key: "m"}); err != nil {
		t.Fatal(err)
	}
	// everywhere checks what the bucket and its ranges have.
	everywhere := func(what string, want *metapb.NotificationConfig) {
		t.Helper()
		bucket := head()
		if !bucket.Notification.EqualVT(want) {
			t.Errorf("%s: the bucket has %v", what, bucket.Notification)
		}
		for _, key := range []storage.Key{"a", "n"} {
			err := c.Meta.Read(ctx, id, key, func(r rangestate.Reader) error {
				row, err := r.Bucket(id)
				if err != nil {
					return err
				}
				if e := row.Events; !e.GetConfig().EqualVT(want) ||
					want != nil && (row.Generation != bucket.Generation || e.Name != b.Name || e.Owner != acct.ID || e.Region != "us-east-1") {
					t.Errorf("%s: the range of %s has %v at generation %d, the bucket is at %d", what, key, e, row.Generation, bucket.Generation)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	everywhere("new", nil)
	f := &failing{Groups: c.Groups}
	for n := range 4 {
		// The decision, the rows of two ranges, and that they are done.
		f.left.Store(int64(n))
		cfg := telling("mine", fmt.Sprint("rule ", n))
		if err := over(c, f).PutBucketNotification(ctx, acct, b.Name, cfg); !errors.Is(err, errDied) {
			t.Fatalf("a configuration with %d commands: %v", n, err)
		}
		finishBuckets(t, c.Objects)
		if n == 0 {
			cfg = nil
		}
		everywhere(fmt.Sprintf("after %d commands", n), cfg)
	}
	cfg := telling("mine", "kept")
	if err := c.Objects.PutBucketNotification(ctx, acct, b.Name, cfg); err != nil {
		t.Fatal(err)
	}
	if err := c.Objects.PutBucketVersioning(ctx, acct, b.Name, true); err != nil {
		t.Fatal(err)
	}
	everywhere("after a change of something else", cfg)
	if err := b.Put(ctx, "n", []byte("body")); err != nil {
		t.Fatal(err)
	}
	if err := c.Objects.DeleteBucket(ctx, acct, b.Name); !errs.Is(err, errs.BucketNotEmpty) {
		t.Fatal(err)
	}
	finishBuckets(t, c.Objects)
	everywhere("after a deletion that was given up", cfg)
	var unknown *errs.Error
	if err := c.Objects.PutBucketNotification(ctx, acct, b.Name, telling("gone", "")); !errs.Is(err, errs.NotFound) || !errors.As(err, &unknown) || unknown.Detail != "arn:aws:sqs:::gone" {
		t.Error(err)
	}
	if err := c.Objects.PutBucketNotification(ctx, objects.Account{ID: "another"}, b.Name, nil); !errs.Is(err, errs.AccessDenied) {
		t.Error(err)
	}
	everywhere("after refusals", cfg)
	if err := c.Objects.PutBucketNotification(ctx, acct, b.Name, nil); err != nil {
		t.Fatal(err)
	}
	everywhere("removed", nil)
}

// noting is a metadata plane that notes commands of ranges.
type noting struct {
	metaclient.Groups
	mu   sync.Mutex
	seen []*metapb.RangeCommand
}

func (n *noting) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	out, err := n.Groups.Propose(ctx, g, data)
	if err != nil || g == cluster.SystemGroup {
		return out, err
	}
	cmd := &metapb.RangeCommand{}
	if err := cmd.UnmarshalVT(data); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, cmd)
	return out, nil
}

// take answers the commands since it was called last.
func (n *noting) take() []*metapb.RangeCommand {
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := n.seen
	n.seen = nil
	return seen
}

// Commands say what they do and who asks.
func TestRequesters(t *testing.T) {
	c, b := openWith(t, harness.Options{})
	ctx := t.Context()
	n := &noting{Groups: c.Groups}
	s := over(c, n)
	who := acct
	who.Request = objects.Request{ID: "request", HostID: "host", SourceIP: "192.0.2.1"}
	requester := &metapb.Requester{Principal: "AWS:" + acct.ID, SourceIp: "192.0.2.1", RequestId: "request", HostId: "host"}
	put := func(key string, form bool) error {
		_, err := s.PutObject(ctx, who, &objects.PutInput{Bucket: b.Name, Key: storage.Key(key), Body: harness.NewBody([]byte("body")), Attributes: &metapb.Attributes{}, Form: form})
		return err
	}
	v := objects.VersionRef{Bucket: b.Name, Key: "key"}
	created := func(want notification.Type) func(*metapb.RangeCommand) bool {
		return func(cmd *metapb.RangeCommand) bool {
			op := cmd.GetPutObject()
			return op != nil && notification.Type(op.Event) == want
		}
	}
	tagged := func(deleted bool) func(*metapb.RangeCommand) bool {
		return func(cmd *metapb.RangeCommand) bool {
			op := cmd.GetUpdateVersion()
			return op != nil && op.TagsDeleted == deleted && op.GetTags() != nil
		}
	}
	all := []struct {
		name string
		do   func() error
		is   func(*metapb.RangeCommand) bool
	}{
		{"PutObject", func() error { return put("key", false) }, created(notification.ObjectCreatedPut)},
		{"PostObject", func() error { return put("form", true) }, created(notification.ObjectCreatedPost)},
		{"CopyObject", func() error {
			_, err := s.CopyObject(ctx, who, &objects.CopyInput{SourceBucket: b.Name, SourceKey: "key", Bucket: b.Name, Key: "copy"})
			return err
		}, created(notification.ObjectCreatedCopy)},
		{"PutObjectTagging", func() error { _, err := s.PutTags(ctx, who, v, []*metapb.KV{{Name: "n", Value: "v"}}); return err }, tagged(false)},
		{"PutObjectTagging of none", func() error { _, err := s.PutTags(ctx, who, v, nil); return err }, tagged(false)},
		{"DeleteObjectTagging", func() error { _, err := s.DeleteTags(ctx, who, v); return err }, tagged(true)},
		{"CompleteMultipartUpload", func() error {
			up, err := s.CreateUpload(ctx, who, &objects.CreateUploadInput{Bucket: b.Name, Key: "parts", Attributes: &metapb.Attributes{}})
			if err != nil {
				return err
			}
			part, err := s.UploadPart(ctx, who, &objects.UploadPartInput{Bucket: b.Name, Key: "parts", UploadID: up.ID, Number: 1, Body: harness.NewBody([]byte("part"))})
			if err != nil {
				return err
			}
			n.take() // they make no events
			_, err = s.CompleteUpload(ctx, who, &objects.CompleteInput{Bucket: b.Name, Key: "parts", UploadID: up.ID, Parts: []objects.CompletePart{{Number: 1, ETag: part.ETag}}})
			return err
		}, func(cmd *metapb.RangeCommand) bool { return cmd.GetCompleteUpload() != nil }},
		{"DeleteObjects", func() error {
			_, err := s.DeleteObjects(ctx, who, b.Name, []objects.DeleteItem{{Key: "key"}, {Key: "copy"}})
			return err
		}, func(cmd *metapb.RangeCommand) bool { return cmd.GetDeleteObjects() != nil }},
	}
	for _, op := range all {
		n.take()
		if err := op.do(); err != nil {
			t.Fatalf("%s: %v", op.name, err)
		}
		seen := n.take()
		if len(seen) != 1 || !op.is(seen[0]) || !seen[0].Requester.EqualVT(requester) {
			t.Errorf("%s: %v", op.name, seen)
		}
	}
}
