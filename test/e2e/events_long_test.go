//go:build e2e && long

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// TestEventCost prints what a matching rule adds to the processor time of a PUT, delivery to a webhook included, on one drive
// and on six. Two processes take the same requests at the same time, one of them into a bucket with a rule, in turns, so that whatever else
// makes the machine slow is the same for both.
func TestEventCost(t *testing.T) {
	const rounds, each, clients = 24, 3000, 8
	for name, args := range map[string][]string{"one drive": nil, "six drives": zones()} {
		for _, size := range []int{1 << 10, 4 << 10, 64 << 10, 1 << 20} {
			n := each
			if size > 64<<10 {
				n /= 8
			}
			t.Run(fmt.Sprint(name, "/", size), func(t *testing.T) { eventCost(t, args, size, rounds, n, clients) })
		}
	}
}

// costly is a process with a bucket that has a rule and one that has none.
type costly struct {
	*process
	plain, told string
	sent        int          // events
	got         atomic.Int64 // that came
}

func newCostly(t *testing.T, args []string) *costly {
	p := &costly{process: start(t, args...)}
	// It only counts: what a receiver does beside the server would cost that some of its speed, and only where events are.
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		p.got.Add(int64(bytes.Count(body, []byte(`"Records"`))))
	}))
	t.Cleanup(hook.Close)
	p.addTarget("hook", destination{kind: "webhook", settings: []string{"url=" + hook.URL, "batch=500"}})
	p.plain, p.told = newBucket(t, p.endpoint), newBucket(t, p.endpoint)
	_, err := p.client().PutBucketNotificationConfiguration(t.Context(), &s3.PutBucketNotificationConfigurationInput{Bucket: &p.told, NotificationConfiguration: &types.NotificationConfiguration{
		QueueConfigurations: []types.QueueConfiguration{{QueueArn: queueARN("hook"), Events: []types.Event{"s3:ObjectCreated:*"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// put writes n objects into a bucket, by several clients.
func (p *costly) put(bucket string, body []byte, n, clients int) {
	var wg sync.WaitGroup
	for w := range clients {
		wg.Go(func() {
			c := p.client()
			for i := range n / clients {
				if _, err := c.PutObject(p.t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(fmt.Sprintf("%d/%d", w, i%500)), Body: bytes.NewReader(body)}, unsignedPayload); err != nil {
					p.t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// arrived waits until all events have come.
func (p *costly) arrived() {
	for end := time.Now().Add(time.Minute); int(p.got.Load()) < p.sent; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("%d of %d events came", p.got.Load(), p.sent)
		}
	}
}

func eventCost(t *testing.T, args []string, size, rounds, each, clients int) {
	body := noiseBytes(1, int64(size))
	each = each / clients * clients
	both := [2]*costly{newCostly(t, args), newCostly(t, args)}
	var with, without time.Duration
	for round := range rounds + 2 {
		plain, told := both[round%2], both[1-round%2]
		before, beforeTold := plain.cpu(), told.cpu()
		told.sent += each
		var wg sync.WaitGroup
		wg.Go(func() { plain.put(plain.plain, body, each, clients) })
		wg.Go(func() { told.put(told.told, body, each, clients) })
		wg.Wait()
		told.arrived()
		time.Sleep(300 * time.Millisecond)
		if round >= 2 { // the first turn of each warms up
			without += plain.cpu() - before
			with += told.cpu() - beforeTold
		}
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(rounds*each) }
	t.Logf("%d bytes: %.3f ms of CPU for a PUT without a rule, %.3f ms with one: %.3f", size, ms(without), ms(with), float64(with)/float64(without))
}
