package metarpc

import (
	"testing"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
)

// BenchmarkElsewhere is what metadata costs a gateway whose leader is on another node, both ends and three replicas in this process.
func BenchmarkElsewhere(b *testing.B) {
	c := newNodes(b, 4, 3)
	defer c.close()
	gateway := c.all[3]
	gateway.makeBucket(metapb.Versioning_VERSIONING_NEVER)
	gateway.must("key", putOp("key", 1, "body"))
	b.Run("object", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			err := gateway.meta.Read(b.Context(), 1, "key", func(r rangestate.Reader) error {
				_, err := r.Object(1, "key", nil)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("put", func(b *testing.B) {
		b.ReportAllocs()
		n := uint64(1)
		for b.Loop() {
			n++
			gateway.must("key", putOp("key", n, "body"))
		}
	})
}
