//go:build e2e && long

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// TestEventCost prints what a matching rule adds to the processor time of a PUT, delivery to a webhook included: the
// same requests go in turns to a bucket without a rule and to one with one.
func TestEventCost(t *testing.T) {
	const rounds, each, clients = 12, 3000, 8
	for _, size := range []int{1 << 10} {
		n := each
		if size > 64<<10 {
			n /= 6
		}
		t.Run(strconv.Itoa(size), func(t *testing.T) { eventCost(t, size, rounds, n, clients) })
	}
}

func eventCost(t *testing.T, size, rounds, each, clients int) {
	p := start(t)
	hook := newReceiver(t)
	p.addTarget("hook", destination{kind: "webhook", settings: []string{"url=http://" + hook.addr + "/", "batch=500"}})
	plain, told := newBucket(t, p.endpoint), newBucket(t, p.endpoint)
	_, err := p.client().PutBucketNotificationConfiguration(t.Context(), &s3.PutBucketNotificationConfigurationInput{Bucket: &told, NotificationConfiguration: &types.NotificationConfiguration{
		QueueConfigurations: []types.QueueConfiguration{{QueueArn: queueARN("hook"), Events: []types.Event{"s3:ObjectCreated:*"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	body := noiseBytes(1, int64(size))
	put := func(bucket string, n int) {
		var wg sync.WaitGroup
		for w := range clients {
			wg.Go(func() {
				c := p.client()
				for i := range n / clients {
					if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(fmt.Sprintf("%d/%d", w, i%500)), Body: bytes.NewReader(body)}, unsignedPayload); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	arrived := func(n int) {
		for end := time.Now().Add(time.Minute); len(hook.taken()) < n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d of %d events came", len(hook.taken()), n)
			}
		}
	}
	names := [...]string{plain, told, newBucket(t, p.endpoint)} // the last without a rule either: what differs between two that are alike is noise
	if os.Getenv("WHICH") == "told" { names = [3]string{told, told, told} }
	if os.Getenv("WHICH") == "plain" { names = [3]string{plain, plain, plain} }
	var used [len(names)]time.Duration
	events := 1 // s3:TestEvent
	for round := range rounds + 1 {
		for i := range names {
			which := (i + round) % len(names) // the order counts: what one leaves to compact another pays
			at := p.cpu()
			put(names[which], each)
			if names[which] == told {
				events += each / clients * clients
				arrived(events)
			}
			time.Sleep(300 * time.Millisecond)
			if round > 0 {
				used[which] += p.cpu() - at
			}
		}
	}
	without, with, control := used[0], used[1], used[2]
	ms := func(d time.Duration) float64 {
		return float64(d.Microseconds()) / 1000 / float64(rounds*(each/clients*clients))
	}
	t.Logf("%d bytes: %.3f and %.3f ms of CPU for a PUT without a rule, %.3f ms with one: %.3f", size, ms(without), ms(control), ms(with), 2*ms(with)/(ms(without)+ms(control)))
}
