package rangestate

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
)

func typicalPut(s *store, key string) *metapb.PutObjectOp {
	op := s.put(1, key, 4096)
	op.Row.Etag = "d41d8cd98f00b204e9800998ecf8427e"
	op.Row.Owner = "b2f0c5d9e1a74a2f8d0c"
	op.Row.Attributes = &metapb.Attributes{ContentType: "application/octet-stream", User: []*metapb.KV{{Name: "mtime", Value: "1700000000"}}}
	op.Row.Checksums = []*metapb.Checksum{{Algorithm: metapb.ChecksumAlgorithm_CRC64NVME, Value: make([]byte, 8)}}
	return op
}

// BenchmarkApplyPut is one PutObject of a small object, batches of 16 as a busy log gives them, commit included.
func BenchmarkApplyPut(b *testing.B) {
	for _, versioning := range []metapb.Versioning{metapb.Versioning_VERSIONING_NEVER, metapb.Versioning_VERSIONING_ENABLED} {
		for _, keys := range []int{1 << 30, 1000} {
			b.Run(fmt.Sprintf("%v/keys%d", versioning, keys), func(b *testing.B) {
				s := newStore(b)
				s.bucket(1, versioning)
				entries := make([]cluster.Entry, b.N)
				for i := range entries {
					data, err := s.command(typicalPut(s, fmt.Sprintf("folder/some-object-%08d", i%keys))).MarshalVT()
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
}

func filled(b *testing.B, n int) *store {
	s := newStore(b)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	var datas [][]byte
	for i := range n {
		data, err := s.command(typicalPut(s, fmt.Sprintf("folder/some-object-%08d", i))).MarshalVT()
		if err != nil {
			b.Fatal(err)
		}
		if datas = append(datas, data); len(datas) == 1000 {
			s.applyRaw(datas...)
			datas = nil
		}
	}
	s.applyRaw(datas...)
	s.log = nil
	return s
}

// BenchmarkObject is NewView and Object as a GET does them.
func BenchmarkObject(b *testing.B) {
	s := filled(b, 20000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		v := s.viewB(b)
		if _, err := v.Object(1, storage.Key(fmt.Sprintf("folder/some-object-%08d", i%20000)), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkList1000 is a page of 1000 keys, from memtable and from tables.
func BenchmarkList1000(b *testing.B) {
	for _, flushed := range []bool{false, true} {
		b.Run(fmt.Sprintf("flushed=%v", flushed), func(b *testing.B) {
			s := filled(b, 20000)
			if flushed {
				if err := s.db.Flush(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				v := s.viewB(b)
				page, err := v.ListCurrent(1, "folder/", "/", "folder/some-object-00007", 1000)
				if err != nil || len(page.Rows) != 1000 {
					b.Fatal(len(page.Rows), err)
				}
			}
		})
	}
}

func (s *store) viewB(b *testing.B) *View {
	v, err := s.views.View(s.db, testGroup)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// BenchmarkManyVersions is a put and a get of a key with 100,000 versions.
func BenchmarkManyVersions(b *testing.B) {
	s := newStore(b)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	for range 100 {
		var datas [][]byte
		for range 1000 {
			data, err := s.command(typicalPut(s, "key")).MarshalVT()
			if err != nil {
				b.Fatal(err)
			}
			datas = append(datas, data)
		}
		s.applyRaw(datas...)
	}
	s.log = nil
	b.Run("put", func(b *testing.B) {
		for b.Loop() {
			s.ok(typicalPut(s, "key"))
		}
	})
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.viewB(b).Object(1, "key", nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("delete newest", func(b *testing.B) {
		for b.Loop() {
			row, err := s.viewB(b).Object(1, "key", nil)
			if err != nil {
				b.Fatal(err)
			}
			s.ok(s.deleteVersion(1, "key", storage.VersionID{Seq: storage.Seq(row.Seq), Nonce: row.Nonce}))
		}
	})
}

// BenchmarkLifecycleScan is the walk that lifecycle rules are decided by, per row: a bucket of plain objects, and one with tags and
// four versions of each key.
func BenchmarkLifecycleScan(b *testing.B) {
	const keys = 20000
	for _, versions := range []int{1, 4} {
		for _, flushed := range []bool{false, true} {
			b.Run(fmt.Sprintf("versions=%d/flushed=%v", versions, flushed), func(b *testing.B) {
				s := newStore(b)
				s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
				var datas [][]byte
				for i := range keys {
					op := typicalPut(s, fmt.Sprintf("folder/some-object-%08d", i/versions))
					if versions > 1 {
						op.Row.Attributes.Tags = []*metapb.KV{{Name: "project", Value: "lighthouse"}, {Name: "keep", Value: fmt.Sprint(i % 2)}}
					}
					data, err := s.command(op).MarshalVT()
					if err != nil {
						b.Fatal(err)
					}
					if datas = append(datas, data); len(datas) == 1000 {
						s.applyRaw(datas...)
						datas = nil
					}
				}
				if flushed {
					if err := s.db.Flush(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportAllocs()
				b.ResetTimer()
				var pos *LifecyclePos
				for n := 0; n < b.N; {
					seen, err := 0, error(nil)
					pos, err = s.viewB(b).Lifecycle(1, pos, min(1000, b.N-n), func(*LifecycleRow) (bool, error) { seen++; return true, nil })
					if err != nil {
						b.Fatal(err)
					}
					n += seen
				}
			})
		}
	}
}
