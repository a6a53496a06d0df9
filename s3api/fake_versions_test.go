package s3api

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/errs"
)

const nullVersion = "null"

// push makes o the newest version of the key, or its null version.
func (f *fake) push(b *fakeBucket, key string, o *fakeObject) {
	o.modified, o.id = f.now, nullVersion
	if b.Versioning == metapb.Versioning_VERSIONING_ENABLED {
		f.seq++
		o.id = storage.VersionID{Seq: storage.Seq(f.seq), Nonce: f.seq * 0x9e3779b97f4a7c15}.String()
	} else {
		b.drop(key, nullVersion)
	}
	b.history[key] = slices.Insert(b.history[key], 0, o)
	b.settle(key)
}

// drop removes a version, if it is there.
func (b *fakeBucket) drop(key, id string) {
	b.history[key] = slices.DeleteFunc(b.history[key], func(o *fakeObject) bool { return o.id == id })
	b.settle(key)
}

// settle makes objects what history says.
func (b *fakeBucket) settle(key string) {
	delete(b.objects, key)
	switch h := b.history[key]; {
	case len(h) == 0:
		delete(b.history, key)
	case !h[0].marker:
		b.objects[key] = h[0]
	}
}

// shown is the version's id as answers show it.
func (b *fakeBucket) shown(o *fakeObject) string {
	if b.Versioning == metapb.Versioning_VERSIONING_NEVER {
		return ""
	}
	return o.id
}

// version finds the version; id "" is the current one.
func (b *fakeBucket) version(key storage.Key, id string) (*fakeObject, error) {
	h := b.history[string(key)]
	i := 0
	if id != "" {
		i = slices.IndexFunc(h, func(o *fakeObject) bool { return o.id == id })
	}
	switch {
	case id != "" && i < 0:
		return nil, errs.New(errs.NoSuchVersion, "fake", id, "")
	case len(h) == 0:
		return nil, errs.New(errs.NoSuchKey, "fake", string(key), "")
	case h[i].marker:
		return nil, &objects.DeleteMarkerError{VersionID: h[i].id, Modified: h[i].modified, Err: errs.New(errs.IsDeleteMarker, "fake", string(key), "")}
	}
	return h[i], nil
}

// mayLock refuses an object with a lock where the bucket has none.
func (b *fakeBucket) mayLock(a *metapb.Attributes) error {
	if !b.Lock.Enabled && (a.GetLockMode() != "" || a.GetLegalHold()) {
		return errs.New(errs.InvalidRequest, "fake", b.Name, "Bucket is missing Object Lock Configuration")
	}
	return nil
}

// locked reports whether the version must stay.
func (f *fake) locked(o *fakeObject, bypass bool) bool {
	a := o.attrs
	return a.GetLegalHold() || a.GetLockMode() != "" && a.LockUntilMs > f.now.UnixMilli() && !(bypass && a.LockMode == "GOVERNANCE")
}

func (f *fake) remove(b *fakeBucket, it objects.DeleteItem) (res objects.DeleteResult, err error) {
	key := string(it.Key)
	if it.VersionID == "" {
		if err := b.writable(it.Key, it.Conditions); err != nil {
			return res, err
		}
		if b.Versioning == metapb.Versioning_VERSIONING_NEVER {
			b.drop(key, nullVersion)
			return res, nil
		}
		o := &fakeObject{marker: true}
		f.push(b, key, o)
		return objects.DeleteResult{DeleteMarker: true, MarkerVersionID: o.id}, nil
	}
	res.VersionID = it.VersionID
	i := slices.IndexFunc(b.history[key], func(o *fakeObject) bool { return o.id == it.VersionID })
	if i < 0 {
		return res, nil
	}
	o := b.history[key][i]
	if clash, err := o.check(it.Conditions); err != nil || clash {
		return res, errs.New(errs.PreconditionFailed, "fake", key, "")
	}
	if f.locked(o, it.Bypass) {
		return res, errs.New(errs.ObjectLocked, "fake", key, "Access Denied because object protected by object lock.")
	}
	if o.marker {
		res.DeleteMarker, res.MarkerVersionID = true, o.id
	}
	b.drop(key, o.id)
	return res, nil
}

func (f *fake) PutBucketVersioning(_ context.Context, acct objects.Account, name string, enabled bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	switch {
	case err != nil:
		return err
	case enabled:
		b.Versioning = metapb.Versioning_VERSIONING_ENABLED
	case b.Lock.Enabled:
		return errs.New(errs.InvalidState, "fake", name, "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.")
	default:
		b.Versioning = metapb.Versioning_VERSIONING_SUSPENDED
	}
	return nil
}

func (f *fake) PutBucketLock(_ context.Context, acct objects.Account, name string, cfg objects.LockConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err != nil {
		return err
	}
	if b.Versioning != metapb.Versioning_VERSIONING_ENABLED {
		return errs.New(errs.InvalidState, "fake", name, "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration")
	}
	b.Lock, b.Lock.Enabled = cfg, true
	return nil
}

func (f *fake) PutBucketTags(_ context.Context, acct objects.Account, name string, tags []*metapb.KV) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err == nil {
		b.Tags = tags
	}
	return err
}

func (f *fake) PutBucketPublicAccessBlock(_ context.Context, acct objects.Account, name string, p *objects.PublicAccessBlock) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err == nil {
		b.PublicAccessBlock = p
	}
	return err
}

func (f *fake) PutBucketOwnershipControls(_ context.Context, acct objects.Account, name string, there bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err == nil {
		b.OwnershipControls = there
	}
	return err
}

func (f *fake) PutBucketNotification(_ context.Context, acct objects.Account, name string, cfg *metapb.NotificationConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err != nil {
		return err
	}
	for _, r := range cfg.GetRules() {
		if arn, _ := notification.ParseARN(r.Arn); !slices.Contains(f.targets, arn.Target()) {
			return errs.New(errs.NotFound, "fake", "", r.Arn)
		}
	}
	b.Notification = cfg
	b.Generation++
	return nil
}

func (f *fake) PutBucketLifecycle(_ context.Context, acct objects.Account, name string, cfg *metapb.LifecycleConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err == nil {
		b.Lifecycle = cfg
		b.Generation++
	}
	return err
}

func (f *fake) PutBucketTiering(_ context.Context, acct objects.Account, name string, cfg *metapb.TieringConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err != nil {
		return err
	}
	at, found := slices.BinarySearchFunc(b.Tiering, cfg.Id, func(c *metapb.TieringConfig, id string) int { return strings.Compare(c.Id, id) })
	switch {
	case found:
		b.Tiering[at] = cfg
	case len(b.Tiering) == 1000:
		return errs.New(errs.EntityTooLarge, "fake", "", "for the operator")
	default:
		b.Tiering = slices.Insert(b.Tiering, at, cfg)
	}
	return nil
}

func (f *fake) DeleteBucketTiering(_ context.Context, acct objects.Account, name, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, name)
	if err != nil {
		return err
	}
	n := len(b.Tiering)
	if b.Tiering = slices.DeleteFunc(b.Tiering, func(c *metapb.TieringConfig) bool { return c.Id == id }); len(b.Tiering) == n {
		return errs.New(errs.NotFound, "fake", "", "for the operator")
	}
	return nil
}

func (f *fake) ListVersions(_ context.Context, acct objects.Account, in *objects.ListVersionsInput) (*objects.ListVersionsOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, in.Bucket)
	if err != nil {
		return nil, err
	}
	out := &objects.ListVersionsOutput{}
	full := func() bool {
		out.Truncated = len(out.Versions)+len(out.CommonPrefixes) == in.Max
		return out.Truncated
	}
	for _, k := range sortedKeys(b.history) {
		if !strings.HasPrefix(k, in.Prefix) || k < in.KeyMarker || k == in.KeyMarker && in.VersionMarker == "" {
			continue
		}
		if i := strings.Index(k[len(in.Prefix):], in.Delimiter); in.Delimiter != "" && i >= 0 {
			common := k[:len(in.Prefix)+i+len(in.Delimiter)]
			if common <= in.KeyMarker || slices.Contains(out.CommonPrefixes, common) {
				continue
			}
			if full() {
				return out, nil
			}
			out.CommonPrefixes = append(out.CommonPrefixes, common)
			out.NextKey, out.NextVersion = common, ""
			continue
		}
		skip := k == in.KeyMarker
		for i, o := range b.history[k] {
			if skip {
				skip = o.id != in.VersionMarker
				continue
			}
			if full() {
				return out, nil
			}
			v := objects.Version{Object: *b.object(k, o), Latest: i == 0}
			v.VersionID, v.DeleteMarker = o.id, o.marker
			out.Versions = append(out.Versions, v)
			out.NextKey, out.NextVersion = k, o.id
		}
	}
	return out, nil
}

func (f *fake) ObjectParts(ctx context.Context, acct objects.Account, in *objects.GetInput, after, max int) (*objects.Object, []objects.Part, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out, o, err := f.find(acct, in)
	if err != nil || out.NotModified {
		return out, nil, false, err
	}
	from, _ := slices.BinarySearchFunc(o.detail, after+1, func(p objects.Part, n int) int { return cmp.Compare(p.Number, n) })
	parts := o.detail[from:]
	if len(parts) > max {
		return out, parts[:max], true, nil
	}
	return out, parts, false, nil
}

// change changes a copy of the version's attributes, which become its own unless fn refuses.
func (f *fake) change(acct objects.Account, v objects.VersionRef, lock bool, fn func(a *metapb.Attributes) error) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, v.Bucket)
	if err != nil {
		return "", err
	}
	if lock && !b.Lock.Enabled {
		return "", errs.New(errs.InvalidRequest, "fake", b.Name, "Bucket is missing Object Lock Configuration")
	}
	o, err := b.version(v.Key, v.VersionID)
	if err != nil {
		return "", err
	}
	a := o.attrs.CloneVT()
	if err := fn(a); err != nil {
		return "", err
	}
	o.attrs = a
	return b.shown(o), nil
}

func (f *fake) PutTags(_ context.Context, acct objects.Account, v objects.VersionRef, tags []*metapb.KV) (string, error) {
	return f.change(acct, v, false, func(a *metapb.Attributes) error { a.Tags = tags; return nil })
}

func (f *fake) DeleteTags(_ context.Context, acct objects.Account, v objects.VersionRef) (string, error) {
	return f.change(acct, v, false, func(a *metapb.Attributes) error { a.Tags, f.untagged = nil, append(f.untagged, v); return nil })
}

func (f *fake) PutRetention(_ context.Context, acct objects.Account, v objects.VersionRef, r objects.Retention, bypass bool) (string, error) {
	return f.change(acct, v, true, func(a *metapb.Attributes) error {
		until := int64(0)
		if r.Mode != "" {
			until = r.Until.UnixMilli()
		}
		weaker := r.Mode != a.LockMode || until < a.LockUntilMs
		if f.locked(&fakeObject{attrs: &metapb.Attributes{LockMode: a.LockMode, LockUntilMs: a.LockUntilMs}}, bypass) && weaker {
			return errs.New(errs.ObjectLocked, "fake", string(v.Key), "")
		}
		a.LockMode, a.LockUntilMs = r.Mode, until
		return nil
	})
}

func (f *fake) PutLegalHold(_ context.Context, acct objects.Account, v objects.VersionRef, on bool) (string, error) {
	return f.change(acct, v, true, func(a *metapb.Attributes) error { a.LegalHold = on; return nil })
}

func (o *fakeObject) archived() bool {
	c := o.attrs.GetStorageClass()
	return c == "GLACIER" || c == "DEEP_ARCHIVE" || o.tiering.GetTier() >= metapb.Tiering_ARCHIVE
}

func (o *fakeObject) readable(now time.Time) bool {
	return o.restore != nil && now.UnixMilli() >= o.restore.ReadyMs && (now.UnixMilli() < o.restore.ExpiresMs || o.tiering != nil)
}

func (o *fakeObject) refuse() error {
	return &objects.ArchivedError{Class: storage.StorageClass(o.attrs.GetStorageClass()), Tier: o.tiering.GetTier(), Err: errs.New(errs.InvalidObjectState, "fake", "", "")}
}

// RestoreObject makes a version readable in an hour of the fake's time.
func (f *fake) RestoreObject(_ context.Context, acct objects.Account, v objects.VersionRef, r objects.RestoreRequest) (res objects.RestoreResult, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := f.bucket(acct, v.Bucket)
	if err != nil {
		return res, err
	}
	o, err := b.version(v.Key, v.VersionID)
	switch {
	case err != nil:
		return res, err
	case !o.archived():
		return res, o.refuse()
	case (r.Days == 0) != (o.tiering != nil):
		return res, &objects.DaysError{Err: errs.New(errs.InvalidArgument, "fake", "", "'Days' is not as it should be")}
	case o.attrs.StorageClass == "DEEP_ARCHIVE" && r.Tier == "Expedited":
		return res, errs.New(errs.InvalidArgument, "fake", "", "Retrieval option is not supported by this storage class")
	case o.restore != nil && o.restore.ReadyMs > f.now.UnixMilli() && (r.Tier != "Expedited" || o.restore.Tier == r.Tier):
		return res, errs.New(errs.RestoreInProgress, "fake", "", "for the operator")
	}
	res.VersionID = b.shown(o)
	ready := f.now.Add(time.Hour).UnixMilli()
	if res.AlreadyRestored = o.readable(f.now); res.AlreadyRestored {
		ready = o.restore.ReadyMs
	}
	o.restore = &metapb.Restore{RequestedMs: f.now.UnixMilli(), ReadyMs: ready, ExpiresMs: f.now.AddDate(0, 0, r.Days+1).Truncate(24 * time.Hour).UnixMilli(), Tier: r.Tier}
	return res, nil
}
