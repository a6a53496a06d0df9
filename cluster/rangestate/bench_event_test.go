package rangestate

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
)

// BenchmarkApplyPutEvents is one PutObject as of BenchmarkApplyPut, in buckets with and without notifications.
func BenchmarkApplyPutEvents(b *testing.B) {
	rule := &metapb.NotificationRule{Id: "uploads", Kind: metapb.NotificationRule_KIND_QUEUE, Arn: "arn:aws:sqs:us-east-1:1:uploads", Events: []string{"s3:ObjectCreated:*"}}
	for _, c := range []struct {
		name   string
		prefix string
		events bool
	}{{"none", "", false}, {"no match", "other/", true}, {"match", "folder/", true}} {
		b.Run(c.name, func(b *testing.B) {
			s := newStore(b)
			row := &metapb.BucketRow{Id: 1, Generation: 1}
			if c.events {
				r := rule.CloneVT()
				r.Prefix = c.prefix
				row.Events = &metapb.BucketEvents{Name: "bucket", Owner: "b2f0c5d9e1a74a2f8d0c", Region: "us-east-1", Config: &metapb.NotificationConfig{Rules: []*metapb.NotificationRule{r}}}
			}
			s.ok(&metapb.PutBucketOp{Row: row})
			entries := make([]cluster.Entry, b.N)
			for i := range entries {
				cmd := s.command(typicalPut(s, fmt.Sprintf("folder/some-object-with-a-longer-name-%08d", i)))
				if c.events {
					cmd.Requester = &metapb.Requester{Principal: "AWS:b2f0c5d9e1a74a2f8d0c", SourceIp: "192.0.2.17", RequestId: "79104EXAMPLEB723", HostId: "node-1"}
				}
				data, err := cmd.MarshalVT()
				if err != nil {
					b.Fatal(err)
				}
				entries[i] = cluster.Entry{TimeMS: s.now, Data: data}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < len(entries); i += 16 {
				batch := s.db.NewIndexedBatch()
				if _, err := s.m.Apply(batch, entries[i:min(i+16, len(entries))]); err != nil {
					b.Fatal(err)
				}
				if err := batch.Commit(pebble.NoSync); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
