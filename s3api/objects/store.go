package objects

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cluster/metaclient"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/checksum"
	"cairn/storage/compress"
	"cairn/storage/errs"
	"cairn/storage/pins"
)

// Config of a Store; all are required but those that say what their zero value means.
type Config struct {
	Meta           *metaclient.Client
	Chunks         *compress.Plane
	Pins           *pins.Registry
	MayRead        func() bool // false: this gateway must not begin reads, since nobody would wait for them; nil: always
	Logger         *slog.Logger
	Region         string
	BucketCacheMax int // buckets remembered by name; 0 is 10,000
	// RestoreTimes is how long the restore of a version of an archive class takes by a tier; nil: as long as S3's.
	// Day is how long each day of a restore lasts; they end at multiples of it since the epoch. Whole milliseconds; 0 is 24 h.
	RestoreTimes func(class storage.StorageClass, tier string) time.Duration
	Day          time.Duration
	// ManyAccesses, if not nil, is called when FlushAccesses should be soon: often, and on the way of a read.
	ManyAccesses func()
}

// Store does S3's operations. It holds no state that it could not lose: a
// cache of bucket names and the registry of reads in progress.
type Store struct {
	cfg       Config
	buckets   bucketCache
	accesses  accesses
	md5s      checksum.MD5s
	retrieved retrieved
	pending   atomic.Pointer[map[pendingBucket]int] // by FinishBuckets: how often it met them
	// lifecycle serialises creation and deletion of one bucket on this gateway, so
	// that the finisher of interrupted ones does not meet a running one.
	lifecycle keyedMutex
}

// New makes a Store.
func New(cfg Config) *Store {
	if cfg.BucketCacheMax == 0 {
		cfg.BucketCacheMax = 10000
	}
	if cfg.RestoreTimes == nil {
		cfg.RestoreTimes = RestoreTime
	}
	if cfg.Day == 0 {
		cfg.Day = 24 * time.Hour
	}
	s := &Store{cfg: cfg, retrieved: newRetrieved()}
	s.buckets.max = cfg.BucketCacheMax
	return s
}

// Close gives up what the Store keeps running. Requests must have ended.
func (s *Store) Close() { s.md5s.Close() }

// bucketCache remembers buckets by name. An entry may be stale: the range's
// bucket row decides, and a refusal there drops the entry (design rule 8). Of its configuration nothing here goes by the entry
// but what is told of the lifecycle rules: see rulesAt.
type bucketCache struct {
	mu  sync.RWMutex
	m   map[string]cachedBucket
	max int
}

type cachedBucket struct {
	Bucket
	read time.Time // when it was looked up, or when somebody began to do so again
}

func (c *bucketCache) get(name string) (Bucket, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	b, ok := c.m[name]
	return b.Bucket, ok
}

// rulesKept is the size in bytes up to which lifecycle rules are remembered with a bucket: they may have 2 MiB.
const rulesKept = 64 << 10

// put remembers the bucket, unless what is remembered of it is newer. With rules above rulesKept it is remembered without
// them and with generation 0, so that reads look them up each time and the memory of the cache is bounded.
func (c *bucketCache) put(b Bucket) {
	if b.Lifecycle != nil && b.Lifecycle.SizeVT() > rulesKept {
		b.Lifecycle, b.Generation = nil, 0
	}
	b.Tiering, b.Notification = nil, nil // may be long, and are never asked of here
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.m[b.Name]; ok && have.ID == b.ID && have.Generation > b.Generation {
		return
	}
	if c.m == nil || len(c.m) >= c.max {
		c.m = make(map[string]cachedBucket) // forgetting all is simple, rare and cheap: an entry costs one read
	}
	c.m[b.Name] = cachedBucket{b, time.Now()}
}

// old reports whether the entry of that name was looked up longer ago than that; only the first who asks learns it.
func (c *bucketCache) old(name string, age time.Duration) bool {
	now := time.Now()
	c.mu.RLock()
	b, ok := c.m[name]
	c.mu.RUnlock()
	if !ok || now.Sub(b.read) < age {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok = c.m[name]; !ok || now.Sub(b.read) < age {
		return false
	}
	b.read = now
	c.m[name] = b
	return true
}

func (c *bucketCache) drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.m, name)
}

// keyedMutex is a mutex per name.
type keyedMutex struct {
	mu sync.Mutex
	m  map[string]*keyedLock
}

type keyedLock struct {
	ch    chan struct{}
	users int
}

// lock waits for the name's lock or ctx; the returned function unlocks.
func (k *keyedMutex) lock(ctx context.Context, name string) (func(), error) {
	k.mu.Lock()
	if k.m == nil {
		k.m = make(map[string]*keyedLock)
	}
	l := k.m[name]
	if l == nil {
		l = &keyedLock{ch: make(chan struct{}, 1)}
		k.m[name] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		if l.users--; l.users == 0 {
			delete(k.m, name)
		}
		k.mu.Unlock()
	}
	select {
	case l.ch <- struct{}{}:
		return func() { <-l.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, errs.Wrap(errs.Busy, "bucket", name, ctx.Err())
	}
}

// withBucket finds the bucket and calls fn. What is remembered of a name may be of a bucket that is no more. So before
// it makes an answer (its owner refuses, or a range answers NoSuchBucket), the name is looked up afresh,
// and fn called once more if another bucket has it now.
func (s *Store) withBucket(ctx context.Context, acct Account, name string, fn func(Bucket) error) error {
	old, cached := s.buckets.get(name)
	var gone error
	if cached && old.Owner == acct.ID {
		if gone = fn(old); !errs.Is(gone, errs.NoSuchBucket) {
			return gone
		}
		s.buckets.drop(name)
	}
	b, err := s.lookupBucket(ctx, name)
	switch {
	case errs.Is(err, errs.NoSuchBucket):
		s.buckets.drop(name)
		return err
	case err != nil:
		return err
	case gone != nil && b.ID == old.ID:
		return gone // it is being deleted
	}
	s.buckets.put(b)
	if b.Owner != acct.ID {
		return errs.New(errs.AccessDenied, "bucket", name, "the bucket belongs to another account")
	}
	if err = fn(b); errs.Is(err, errs.NoSuchBucket) {
		s.buckets.drop(name)
	}
	return err
}

const (
	// rulesWait is how long an answer waits for lifecycle rules, which are at hand but while this node is cut off.
	rulesWait = 250 * time.Millisecond
	// rulesAge is how old rules may be that a write's answer goes by: its range does not tell how many decisions it knows.
	rulesAge = time.Minute
)

// rulesAt answers the lifecycle rules of a bucket whose range knows so many decisions on it; nil if there are none, or if that
// can't be found out just now: they are only told of, and nothing fails for want of them. What withBucket gave
// is right, and costs nothing, unless there was a decision since.
func (s *Store) rulesAt(ctx context.Context, b Bucket, generation uint64) *metapb.LifecycleConfig {
	if b.Generation >= generation {
		return b.Lifecycle
	}
	return s.rulesNow(ctx, b)
}

// rulesOfWrite answers the lifecycle rules of a bucket that was written to, or whose range does not tell its generation, with those of another gateway at most rulesAge late.
func (s *Store) rulesOfWrite(ctx context.Context, b Bucket) *metapb.LifecycleConfig {
	if !s.buckets.old(b.Name, rulesAge) {
		return b.Lifecycle
	}
	return s.rulesNow(ctx, b)
}

// rulesNow looks the bucket up afresh.
func (s *Store) rulesNow(ctx context.Context, b Bucket) *metapb.LifecycleConfig {
	ctx, cancel := context.WithTimeout(ctx, rulesWait)
	defer cancel()
	now, err := s.lookupBucket(ctx, b.Name)
	if err != nil || now.ID != b.ID {
		return nil
	}
	s.buckets.put(now)
	return now.Lifecycle
}

// viewOf reads the range of a key, see metaclient.Client.Read.
func (s *Store) viewOf(ctx context.Context, b Bucket, key storage.Key, fn func(rangestate.Reader) error) error {
	return s.cfg.Meta.Read(ctx, b.ID, key, fn)
}

// requester is who events say has asked for a change. It goes with every command: only the range knows whether somebody wants its events.
func requester(acct Account) *metapb.Requester {
	return &metapb.Requester{Principal: "AWS:" + acct.ID, SourceIp: acct.Request.SourceIP, RequestId: acct.Request.ID, HostId: acct.Request.HostID}
}

// do proposes a command of an account's that changes an object, see metaclient.Client.Do.
func (s *Store) do(ctx context.Context, acct Account, b Bucket, key storage.Key, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	cmd.Requester = requester(acct)
	return s.cfg.Meta.Do(ctx, b.ID, key, cmd)
}

// conditionsPB are the conditions as a command carries them; nil if there are none.
func conditionsPB(c Conditions) *metapb.Conditions {
	if len(c.IfMatch) == 0 && len(c.IfNoneMatch) == 0 && c.IfMatchModified.IsZero() && c.IfMatchSize == nil {
		return nil
	}
	pb := &metapb.Conditions{IfMatch: c.IfMatch, IfNoneMatch: c.IfNoneMatch}
	if !c.IfMatchModified.IsZero() {
		pb.IfMatchModifiedMs = c.IfMatchModified.UnixMilli()
	}
	if c.IfMatchSize != nil {
		pb.IfMatchSize, pb.HasMatchSize = *c.IfMatchSize, true
	}
	return pb
}
