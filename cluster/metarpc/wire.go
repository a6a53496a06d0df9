package metarpc

import (
	"slices"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

func versionToPB(v *storage.VersionID) *nodepb.IDPair {
	if v == nil {
		return nil
	}
	return &nodepb.IDPair{Seq: uint64(v.Seq), Nonce: v.Nonce}
}

func versionFromPB(p *nodepb.IDPair) *storage.VersionID {
	if p == nil {
		return nil
	}
	return &storage.VersionID{Seq: storage.Seq(p.Seq), Nonce: p.Nonce}
}

func uploadToPB(id storage.UploadID) *nodepb.IDPair {
	return &nodepb.IDPair{Seq: uint64(id.Seq), Nonce: id.Nonce}
}

func uploadFromPB(p *nodepb.IDPair) storage.UploadID {
	return storage.UploadID{Seq: storage.Seq(p.GetSeq()), Nonce: p.GetNonce()}
}

func chunkToPB(o storage.Owner, chunk storage.ChunkID) *nodepb.ChunkQuery {
	return &nodepb.ChunkQuery{Bucket: uint64(o.Bucket), Key: []byte(o.Key), WriteId: o.Write[:], Chunk: chunk[:]}
}

func chunkFromPB(q *nodepb.ChunkQuery) (o storage.Owner, chunk storage.ChunkID, err error) {
	o = storage.Owner{Bucket: storage.BucketID(q.GetBucket()), Key: storage.Key(q.GetKey())}
	if len(q.GetChunk()) != len(chunk) || len(q.GetWriteId()) != len(o.Write) {
		return o, chunk, errs.New(errs.InvalidArgument, "metarpc", "", "not a chunk and its owner")
	}
	copy(o.Write[:], q.WriteId)
	copy(chunk[:], q.Chunk)
	return o, chunk, nil
}

func segmentToPB(s *rangestate.Segment) *nodepb.Segment {
	return &nodepb.Segment{
		Part: s.Part, WriteId: slices.Clone(s.Write[:]), Size: s.Size, Inline: s.Inline, Chunks: s.Chunks,
		Offset: s.Offset, Length: s.Length, StorageClass: string(s.Class),
	}
}

func segmentFromPB(pb *nodepb.Segment) rangestate.Segment {
	s := rangestate.Segment{
		Part: pb.Part, Size: pb.Size, Inline: pb.Inline, Chunks: pb.Chunks, Offset: pb.Offset, Length: pb.Length,
		Class: storage.StorageClass(pb.StorageClass),
	}
	copy(s.Write[:], pb.WriteId)
	return s
}

// bare is what the range needs to know of a row to find its pieces.
func bare(row *metapb.ObjectRow) *metapb.ObjectRow {
	return &metapb.ObjectRow{
		Size: row.Size, Attributes: &metapb.Attributes{StorageClass: row.GetAttributes().GetStorageClass()},
		Data: &metapb.Data{UploadSeq: row.GetData().GetUploadSeq(), Parts: row.GetData().GetParts()},
	}
}

// boundsToPB carries bounds; a descriptor without an end reaches to the end of the key space.
func boundsToPB(b cluster.Bounds) *metapb.RangeDescriptor {
	pos := func(p cluster.Pos) *metapb.PosPB {
		if p == (cluster.Pos{}) {
			return nil
		}
		return &metapb.PosPB{Bucket: uint64(p.Bucket), Key: []byte(p.Key)}
	}
	return &metapb.RangeDescriptor{Start: pos(b.Start), End: pos(b.End)}
}

func boundsFromPB(d *metapb.RangeDescriptor) cluster.Bounds {
	pos := func(p *metapb.PosPB) cluster.Pos {
		return cluster.Pos{Bucket: storage.BucketID(p.GetBucket()), Key: storage.Key(p.GetKey())}
	}
	return cluster.Bounds{Start: pos(d.GetStart()), End: pos(d.GetEnd())}
}

func listedToPB(rows []rangestate.ListRow) []*nodepb.ListedRow {
	all := make([]nodepb.ListedRow, len(rows))
	out := make([]*nodepb.ListedRow, len(rows))
	for i := range rows {
		all[i].Key, all[i].Object = []byte(rows[i].Key), rows[i].Row
		out[i] = &all[i]
	}
	return out
}

func listedFromPB(pb []*nodepb.ListedRow) []rangestate.ListRow {
	if len(pb) == 0 {
		return nil
	}
	rows := make([]rangestate.ListRow, len(pb))
	for i, r := range pb {
		rows[i] = rangestate.ListRow{Key: storage.Key(r.Key), Row: orEmpty(r.Object)}
	}
	return rows
}

func bytesOf(in []string) [][]byte {
	var out [][]byte
	for _, s := range in {
		out = append(out, []byte(s))
	}
	return out
}

func stringsOf(in [][]byte) []string {
	var out []string
	for _, b := range in {
		out = append(out, string(b))
	}
	return out
}

// orEmpty is m, or an empty message: a missing one and an empty one are the same on the wire's far side.
func orEmpty[T any](m *T) *T {
	if m == nil {
		return new(T)
	}
	return m
}
