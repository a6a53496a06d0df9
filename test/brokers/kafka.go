package brokers

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Kafka speaks Kafka's protocol: franz-go's own test broker, in this process.
type Kafka struct {
	Address string // 127.0.0.1:port
	cluster *kfake.Cluster
	topic   string
}

// StartKafka starts a broker with a topic of three partitions.
func StartKafka(t testing.TB, topic string) *Kafka {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &Kafka{Address: c.ListenAddrs()[0], cluster: c, topic: topic}
}

// Taken are the records of all partitions, those of each in order.
func (k *Kafka) Taken(t testing.TB) (all []string) {
	t.Helper()
	want := map[int32]kgo.Offset{}
	left := 0
	for _, p := range k.cluster.PartitionInfos(k.topic) {
		want[p.Partition] = kgo.NewOffset().AtStart()
		left += int(p.HighWatermark)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Address), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{k.topic: want}), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for left > len(all) {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%d of %d records: %v", len(all), left, fetches.Errors())
		}
		for _, r := range fetches.Records() {
			all = append(all, string(r.Value))
		}
	}
	return all
}
