package rangestate

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// BenchmarkOutboxOrder is why the outbox lies in the order of sequences: a page of 1000 events beside a million others, read on from a
// sequence, and found among rows that lie with their keys.
func BenchmarkOutboxOrder(b *testing.B) {
	const rows, page = 1_000_000, 1000
	db, err := pebble.Open(b.TempDir(), &pebble.Options{DisableWAL: true})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, 220)
	batch := db.NewBatch()
	for i := range uint64(rows) {
		key := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'k'}, rng.Uint64()), i)
		if err := batch.Set(key, value, nil); err != nil {
			b.Fatal(err)
		}
		if err := batch.Set(binary.BigEndian.AppendUint64([]byte{'s'}, i), value, nil); err != nil {
			b.Fatal(err)
		}
		if i%10_000 == 9_999 {
			if err := batch.Commit(pebble.NoSync); err != nil {
				b.Fatal(err)
			}
			batch = db.NewBatch()
		}
	}
	if err := db.Flush(); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		start, end []byte
		want       int
	}{
		{"sequence", binary.BigEndian.AppendUint64([]byte{'s'}, rows-page), []byte{'t'}, page},
		{"key", []byte{'k'}, []byte{'l'}, rows},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				n := 0
				err := iterate(db, c.start, c.end, func(_ []byte, value func() ([]byte, error)) (bool, error) {
					n++
					_, err := value()
					return true, err
				})
				if err != nil || n != c.want {
					b.Fatal(n, err)
				}
			}
		})
	}
}
