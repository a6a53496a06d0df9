package rangestate

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
)

// Views makes views and keeps what they all read first: the range's descriptor and
// the rows of its buckets. The clock counts the changes of these, so a view that
// finds the count it knows needs to read the clock alone. Safe for concurrent use.
// One Views must see states of one store only.
type Views struct {
	mu     sync.RWMutex
	groups map[cluster.GroupID]*config
}

// config is a range's descriptor and bucket rows as of one count. Rows are never changed.
type config struct {
	count  uint64
	desc   *metapb.RangeDescriptor
	bounds bounds

	mu      sync.RWMutex
	buckets map[uint64]*metapb.BucketRow
}

// configBucketsMax bounds the bucket rows kept for a range.
const configBucketsMax = 1024

// NewViews makes a Views that knows nothing yet.
func NewViews() *Views { return &Views{groups: map[cluster.GroupID]*config{}} }

// View is NewView, with what was read before.
func (c *Views) View(r pebble.Reader, group cluster.GroupID) (*View, error) {
	v := &View{r: r, group: group, key: make([]byte, 0, 128)}
	ok, err := getRow(r, appendGroup(v.key, group, subClock), &v.clock)
	if err != nil {
		return nil, err
	}
	c.mu.RLock()
	v.config = c.groups[group]
	c.mu.RUnlock()
	if ok && v.config != nil && v.config.count == v.clock.Config {
		return v, nil
	}
	if err := v.readDescriptor(); err != nil {
		return nil, err
	}
	if !ok {
		return v, nil // not even a first command yet: the count says nothing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.groups[group]; old == nil || old.count < v.config.count {
		c.groups[group] = v.config
	}
	return v, nil
}

// Drop forgets a group that is not read here any more. It costs little if there is nothing to forget.
func (c *Views) Drop(group cluster.GroupID) {
	c.mu.RLock()
	_, ok := c.groups[group]
	c.mu.RUnlock()
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.groups, group)
}

func (c *config) bucket(id uint64) *metapb.BucketRow {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.buckets[id]
}

func (c *config) keep(row *metapb.BucketRow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buckets == nil || len(c.buckets) >= configBucketsMax {
		c.buckets = map[uint64]*metapb.BucketRow{}
	}
	c.buckets[row.Id] = row
}
