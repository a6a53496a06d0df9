package objects

import (
	"strings"
	"testing"

	"cairn/proto/metapb"
)

func TestBucketCacheKeepsSmallRules(t *testing.T) {
	c := bucketCache{max: 2}
	rules := func(n int) *metapb.LifecycleConfig {
		return &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{Id: strings.Repeat("x", n)}}}
	}
	c.put(Bucket{Name: "small", ID: 1, Generation: 3, Lifecycle: rules(1000)})
	if b, ok := c.get("small"); !ok || b.Lifecycle == nil || b.Generation != 3 {
		t.Errorf("small rules are kept as %v", b)
	}
	c.put(Bucket{Name: "small", ID: 1, Generation: 2})
	if b, _ := c.get("small"); b.Generation != 3 {
		t.Errorf("an older state replaced a newer one: %v", b)
	}
	c.put(Bucket{Name: "large", ID: 2, Generation: 3, Lifecycle: rules(rulesKept)})
	if b, ok := c.get("large"); !ok || b.ID != 2 || b.Lifecycle != nil || b.Generation != 0 {
		t.Errorf("large rules are kept, or taken for none: generation %d, %d bytes", b.Generation, b.Lifecycle.SizeVT())
	}
}
