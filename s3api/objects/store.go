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
	"cairn/storage/chunkio"
	"cairn/storage/errs"
	"cairn/storage/pins"
)

// Config of a Store; all are required but those that say what their zero value means.
type Config struct {
	Meta           *metaclient.Client
	Chunks         *chunkio.Plane
	Pins           *pins.Registry
	MayRead        func() bool // false: this gateway must not begin reads, since nobody would wait for them; nil: always
	Logger         *slog.Logger
	Region         string
	BucketCacheMax int // buckets remembered by name; 0 is 10,000
	// RestoreTimes is how long the restore of a version of an archive class takes by a tier; nil: as long as S3's.
	// Day is how long each day of a restore lasts; they end at multiples of it since the epoch. Whole milliseconds; 0 is 24 h.
	RestoreTimes func(class storage.StorageClass, tier string) time.Duration
	Day          time.Duration
}

// Store does S3's operations. It holds no state that it could not lose: a
// cache of bucket names and the registry of reads in progress.
type Store struct {
	cfg     Config
	buckets bucketCache
	md5s    checksum.MD5s
	pending atomic.Pointer[map[pendingBucket]int] // by FinishBuckets: how often it met them
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
		cfg.RestoreTimes = restoreTime
	}
	if cfg.Day == 0 {
		cfg.Day = 24 * time.Hour
	}
	s := &Store{cfg: cfg}
	s.buckets.max = cfg.BucketCacheMax
	return s
}

// Close gives up what the Store keeps running. Requests must have ended.
func (s *Store) Close() { s.md5s.Close() }

// bucketCache remembers buckets by name. An entry may be stale: the range's
// bucket row decides, and a refusal there drops the entry (design rule 8). Of its configuration nothing here goes by the entry.
type bucketCache struct {
	mu  sync.RWMutex
	m   map[string]Bucket
	max int
}

func (c *bucketCache) get(name string) (Bucket, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	b, ok := c.m[name]
	return b, ok
}

func (c *bucketCache) put(b Bucket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= c.max {
		c.m = make(map[string]Bucket) // forgetting all is simple, rare and cheap: an entry costs one read
	}
	c.m[b.Name] = b
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

// viewOf reads the range of a key, see metaclient.Client.Read.
func (s *Store) viewOf(ctx context.Context, b Bucket, key storage.Key, fn func(rangestate.Reader) error) error {
	return s.cfg.Meta.Read(ctx, b.ID, key, fn)
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
