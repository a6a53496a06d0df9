//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/test/seed"
)

// TestLifecycleKill and TestClusterLifecycleKill: kill -9 in the middle of what rules do, of the only process or of who leads;
// afterwards exactly what the rules want is gone. CAIRN_E2E_OBJECTS is the number of objects.
func TestLifecycleKill(t *testing.T) {
	p := start(t, append(zones(), "--lifecycle-day", ruleDay.String())...)
	k := newRuleKill(t, p.client())
	k.run(func() *process { return p }, p.client)
	p.waitWhole(startTimeout)
	p.wantClean()
}

func TestClusterLifecycleKill(t *testing.T) {
	c := startNodes(t, 3, 1, "--lifecycle-day", ruleDay.String())
	k := newRuleKill(t, c.all[0].client())
	k.run(func() (p *process) {
		for end := time.Now().Add(startTimeout); p == nil && time.Now().Before(end); {
			p = c.leader("range")
		}
		return p
	}, c.all[0].client)
	c.settle(2 * time.Minute)
	c.wantClean()
}

// ruleKill is a bucket of many objects, half of which rules end: by prefix, by tag and by size; of some uploads, all of which end;
// and of some larger objects, which move to another class.
type ruleKill struct {
	t      *testing.T
	rng    *rand.Rand
	bucket string
	want   []string          // keys that stay
	moves  map[string][]byte // and what those hold that move
	due    int
}

func newRuleKill(t *testing.T, c *s3.Client) *ruleKill {
	k := &ruleKill{t: t, rng: rand.New(rand.NewPCG(seed.Of(t), 7)), moves: map[string][]byte{}}
	n := 3000
	if s := os.Getenv("CAIRN_E2E_OBJECTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	k.bucket = fmt.Sprintf("rules-%d", k.rng.Uint32())
	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &k.bucket}); err != nil {
		t.Fatal(err)
	}
	type object struct {
		key, tags string
		size      int
	}
	var all []object
	for i := range n {
		o := object{key: fmt.Sprintf("stays/%06d", i), size: 20 + i%2*3000} // some in their rows, some on drives
		stays := false
		switch i % 6 {
		case 0:
			o.key = fmt.Sprintf("logs/%06d", i)
		case 1:
			o.key, o.tags = fmt.Sprintf("tagged/%06d", i), "keep=short"
		case 2:
			o.key, o.size = fmt.Sprintf("sized/%06d", i), 4000
		case 3:
			o.key, stays = fmt.Sprintf("sized/%06d", i), true
		default:
			stays = true
		}
		all = append(all, o)
		if stays {
			k.want = append(k.want, o.key)
		} else {
			k.due++
		}
	}
	for i := range 10 + n/200 {
		key, data := fmt.Sprintf("moves/%d", i), noiseBytes(uint64(i), 200<<10)
		k.moves[key], k.want = data, append(k.want, key)
		if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &k.bucket, Key: &key, Body: bytes.NewReader(data)}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(k.want)
	parts := make(chan object)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for o := range parts {
				in := &s3.PutObjectInput{Bucket: &k.bucket, Key: &o.key, Body: strings.NewReader(strings.Repeat("x", o.size))}
				if o.tags != "" {
					in.Tagging = &o.tags
				}
				if _, err := c.PutObject(t.Context(), in); err != nil {
					t.Errorf("put %s: %v", o.key, err)
				}
			}
		})
	}
	for _, o := range all {
		parts <- o
	}
	close(parts)
	wg.Wait()
	for i := range n / 50 {
		if _, err := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &k.bucket, Key: aws.String(fmt.Sprintf("stays/up/%d", i))}); err != nil {
			t.Errorf("upload %d: %v", i, err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	return k
}

// run puts the rules, kills who leads a few times while they act, and waits for the end.
func (k *ruleKill) run(leader func() *process, client func() *s3.Client) {
	t := k.t
	victim := leader()
	time.Sleep(2*ruleDay + 100*time.Millisecond) // so that all is due at once
	rule := func(id string, f types.LifecycleRuleFilter) types.LifecycleRule {
		return types.LifecycleRule{ID: &id, Status: types.ExpirationStatusEnabled, Filter: &f, Expiration: &types.LifecycleExpiration{Days: aws.Int32(1)}}
	}
	rules := []types.LifecycleRule{
		rule("prefix", types.LifecycleRuleFilter{Prefix: aws.String("logs/")}),
		rule("tag", types.LifecycleRuleFilter{Tag: &types.Tag{Key: aws.String("keep"), Value: aws.String("short")}}),
		rule("size", types.LifecycleRuleFilter{And: &types.LifecycleRuleAndOperator{Prefix: aws.String("sized/"), ObjectSizeGreaterThan: aws.Int64(3500)}}),
		{ID: aws.String("uploads"), Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("")},
			AbortIncompleteMultipartUpload: &types.AbortIncompleteMultipartUpload{DaysAfterInitiation: aws.Int32(1)}},
		{ID: aws.String("moves"), Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("moves/")},
			Transitions: []types.Transition{{Days: aws.Int32(1), StorageClass: types.TransitionStorageClassGlacierIr}}},
	}
	if _, err := client().PutBucketLifecycleConfiguration(t.Context(), &s3.PutBucketLifecycleConfigurationInput{
		Bucket: &k.bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: rules},
	}); err != nil {
		t.Fatal(err)
	}
	var left []int
	for i := range 4 {
		if i > 0 {
			victim = leader()
		}
		if victim == nil {
			t.Fatal("nobody leads")
		}
		time.Sleep(time.Duration(k.rng.IntN(20+k.due/200)) * time.Millisecond)
		victim.kill()
		victim.start()
		keys, _ := listKeys(t, client(), &s3.ListObjectsV2Input{Bucket: &k.bucket})
		left = append(left, len(keys)-len(k.want))
	}
	t.Logf("%d objects were due; after each kill there were left %v", k.due, left)
	var keys []string
	for end := time.Now().Add(ruleMax); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if keys, _ = listKeys(t, client(), &s3.ListObjectsV2Input{Bucket: &k.bucket}); len(keys) <= len(k.want) {
			break
		}
	}
	if !slices.Equal(keys, k.want) {
		t.Fatalf("%d keys, want %d", len(keys), len(k.want))
	}
	for key, data := range k.moves {
		for end := time.Now().Add(ruleMax); ; time.Sleep(100 * time.Millisecond) {
			out, err := client().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &k.bucket, Key: &key})
			if err != nil {
				t.Fatal(err)
			}
			if out.StorageClass == types.StorageClassGlacierIr {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s is still of class %q", key, out.StorageClass)
			}
		}
		wantObject(t, client(), k.bucket, key, data)
	}
	time.Sleep(3 * ruleDay) // and nothing more goes
	if keys, _ = listKeys(t, client(), &s3.ListObjectsV2Input{Bucket: &k.bucket}); !slices.Equal(keys, k.want) {
		t.Fatalf("%d keys days later, want %d", len(keys), len(k.want))
	}
	if out, err := client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &k.bucket}); err != nil || len(out.Uploads) > 0 {
		t.Fatalf("%d uploads are left, %v", len(out.Uploads), err)
	}
}
