package metarpc

import (
	"context"
	"errors"
	"io"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// rangeReader asks a range's leader.
type rangeReader struct {
	ctx    context.Context // of the one use that it is made for
	long   context.Context // likewise, for answers without a bound
	r      *Router
	g      cluster.GroupID
	timeMS int64
	bucket *metapb.BucketRow // that came with the last object
}

var _ rangestate.Reader = (*rangeReader)(nil)

func (v *rangeReader) ask(factor int, req *nodepb.QueryRequest) (ans *nodepb.QueryAnswer, err error) {
	req.Group = uint64(v.g)
	err = v.r.atLeader(v.ctx, v.g, factor, func(ctx context.Context, m nodepb.MetaClient) (err error) {
		ans, err = m.Query(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	v.timeMS = max(v.timeMS, ans.TimeMs)
	return ans, nil
}

func (v *rangeReader) TimeMS() int64 { return v.timeMS }

func (v *rangeReader) Info() (rangestate.Info, error) {
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Info{Info: &nodepb.InfoQuery{}}})
	if err != nil {
		return rangestate.Info{}, err
	}
	return rangestate.Info{TimeMS: ans.TimeMs, Seq: storage.Seq(ans.Seq), Bounds: boundsFromPB(ans.Range), Descriptor: orEmpty(ans.Range)}, nil
}

func (v *rangeReader) Check(p cluster.Pos) error {
	_, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Check{Check: &nodepb.SeqQuery{Bucket: uint64(p.Bucket), Key: []byte(p.Key)}}})
	return err
}

func (v *rangeReader) Bucket(id storage.BucketID) (*metapb.BucketRow, error) {
	if v.bucket != nil && v.bucket.Id == uint64(id) {
		return v.bucket, nil
	}
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Bucket{Bucket: &nodepb.BucketQuery{Bucket: uint64(id)}}})
	if err != nil {
		return nil, err
	}
	return orEmpty(ans.Bucket), nil
}

func (v *rangeReader) Object(bucket storage.BucketID, key storage.Key, version *storage.VersionID) (*metapb.ObjectRow, error) {
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Object{Object: &nodepb.ObjectQuery{
		Bucket: uint64(bucket), Key: []byte(key), Version: versionToPB(version),
	}}})
	if err != nil {
		return nil, err
	}
	v.bucket = orEmpty(ans.Bucket)
	row := orEmpty(ans.Object)
	if row.DeleteMarker {
		return row, errs.New(errs.IsDeleteMarker, "metarpc.object", "", "")
	}
	return row, nil
}

func (v *rangeReader) Segments(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, off, n int64, bytesMax int) ([]rangestate.Segment, error) {
	segs, ok, err := rangestate.InRow(row, off, n)
	if err != nil || ok {
		return segs, err
	}
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Segments{Segments: &nodepb.SegmentsQuery{
		Bucket: uint64(bucket), Key: []byte(key), Row: bare(row), Offset: off, Length: n, BytesMax: int64(bytesMax),
	}}})
	if err != nil {
		return nil, err
	}
	for _, pb := range ans.Segments {
		segs = append(segs, segmentFromPB(pb))
		n -= pb.Length
	}
	if n < 0 || len(segs) == 0 {
		return nil, errs.New(errs.Corrupt, "metarpc.segments", "", "the leader's answer does not fit the question")
	}
	return segs, nil
}

func (v *rangeReader) PartExtent(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, number int) (off, n int64, err error) {
	if n, ok, err := rangestate.WholePart(row, number); err != nil || ok {
		return 0, n, err
	}
	if number < 1 || number > storage.PartNumberMax {
		number = 0 // there is none, which the leader says
	}
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_PartExtent{PartExtent: &nodepb.PartExtentQuery{
		Bucket: uint64(bucket), Key: []byte(key), Row: bare(row), Number: uint32(number),
	}}})
	if err != nil {
		return 0, 0, err
	}
	return ans.Offset, ans.Length, nil
}

func listQuery(bucket storage.BucketID, prefix, delimiter, after string, id *nodepb.IDPair, limit int) *nodepb.ListQuery {
	return &nodepb.ListQuery{
		Bucket: uint64(bucket), Prefix: []byte(prefix), Delimiter: []byte(delimiter), After: []byte(after), AfterId: id, Limit: limitOf(limit),
	}
}

func limitOf(limit int) uint32 { return uint32(min(max(limit, 0), answerRowsMax)) }

func (v *rangeReader) ListCurrent(bucket storage.BucketID, prefix, delimiter, after string, limit int) (rangestate.Page, error) {
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_ListCurrent{ListCurrent: listQuery(bucket, prefix, delimiter, after, nil, limit)}})
	if err != nil {
		return rangestate.Page{}, err
	}
	return rangestate.Page{
		Rows: listedFromPB(ans.Listed), CommonPrefixes: stringsOf(ans.CommonPrefixes), Truncated: ans.More, Next: string(ans.Next), Bounds: boundsFromPB(ans.Range),
	}, nil
}

func (v *rangeReader) ListVersions(bucket storage.BucketID, prefix, delimiter, keyAfter string, versionAfter *storage.VersionID, limit int) (rangestate.VersionPage, error) {
	q := listQuery(bucket, prefix, delimiter, keyAfter, versionToPB(versionAfter), limit)
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_ListVersions{ListVersions: q}})
	if err != nil {
		return rangestate.VersionPage{}, err
	}
	return rangestate.VersionPage{
		Rows: listedFromPB(ans.Listed), CommonPrefixes: stringsOf(ans.CommonPrefixes), Truncated: ans.More,
		NextKey: string(ans.Next), NextVersion: versionFromPB(ans.NextId), Bounds: boundsFromPB(ans.Range),
	}, nil
}

func (v *rangeReader) ListUploads(bucket storage.BucketID, prefix, delimiter, keyAfter string, seqAfter storage.Seq, limit int) (rangestate.UploadPage, error) {
	q := listQuery(bucket, prefix, delimiter, keyAfter, &nodepb.IDPair{Seq: uint64(seqAfter)}, limit)
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_ListUploads{ListUploads: q}})
	if err != nil {
		return rangestate.UploadPage{}, err
	}
	page := rangestate.UploadPage{
		CommonPrefixes: stringsOf(ans.CommonPrefixes), Truncated: ans.More,
		NextKey: string(ans.Next), NextSeq: storage.Seq(ans.NextId.GetSeq()), Bounds: boundsFromPB(ans.Range),
	}
	for _, l := range ans.Listed {
		page.Uploads = append(page.Uploads, rangestate.UploadItem{Key: storage.Key(l.Key), Row: orEmpty(l.Upload)})
	}
	return page, nil
}

func (v *rangeReader) Upload(bucket storage.BucketID, key storage.Key, id storage.UploadID) (*metapb.UploadRow, error) {
	q := &nodepb.UploadQuery{Bucket: uint64(bucket), Key: []byte(key), Id: uploadToPB(id)}
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Upload{Upload: q}})
	if err != nil {
		return nil, err
	}
	return orEmpty(ans.Upload), nil
}

func (v *rangeReader) Parts(bucket storage.BucketID, key storage.Key, id storage.UploadID, after, limit int) (rows []*metapb.PartRow, more bool, err error) {
	return v.parts(after, limit, func(after, limit uint32) *nodepb.QueryRequest {
		return &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Parts{Parts: &nodepb.PartsQuery{
			Bucket: uint64(bucket), Key: []byte(key), Id: uploadToPB(id), After: after, Limit: limit,
		}}}
	})
}

func (v *rangeReader) ObjectParts(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, after, limit int) (rows []*metapb.PartRow, more bool, err error) {
	named := bare(row)
	named.Seq = row.Seq
	return v.parts(after, limit, func(after, limit uint32) *nodepb.QueryRequest {
		return &nodepb.QueryRequest{Of: &nodepb.QueryRequest_ObjectParts{ObjectParts: &nodepb.ObjectPartsQuery{
			Bucket: uint64(bucket), Key: []byte(key), Row: named, After: after, Limit: limit,
		}}}
	})
}

// parts asks for parts until there are limit or no more. next makes the question for those above after.
func (v *rangeReader) parts(after, limit int, next func(after, limit uint32) *nodepb.QueryRequest) (rows []*metapb.PartRow, more bool, err error) {
	for {
		ans, err := v.ask(1, next(uint32(min(max(after, 0), storage.PartNumberMax)), limitOf(limit-len(rows))))
		if err != nil {
			return nil, false, err
		}
		rows = append(rows, ans.Parts...)
		if !ans.More || len(rows) >= limit || len(ans.Parts) == 0 {
			return rows, ans.More, nil
		}
		after = int(rows[len(rows)-1].Number)
	}
}

func (v *rangeReader) Part(bucket storage.BucketID, key storage.Key, upload storage.Seq, number int) (*metapb.PartRow, error) {
	q := &nodepb.SeqQuery{Bucket: uint64(bucket), Key: []byte(key), Seq: uint64(upload), Number: uint32(number)}
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Part{Part: q}})
	if err != nil {
		return nil, err
	}
	if len(ans.Parts) != 1 {
		return &metapb.PartRow{}, nil
	}
	return ans.Parts[0], nil
}

func (v *rangeReader) VersionBySeq(bucket storage.BucketID, key storage.Key, seq storage.Seq) (*metapb.ObjectRow, error) {
	q := &nodepb.SeqQuery{Bucket: uint64(bucket), Key: []byte(key), Seq: uint64(seq)}
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_VersionBySeq{VersionBySeq: q}})
	if err != nil {
		return nil, err
	}
	return orEmpty(ans.Object), nil
}

func (v *rangeReader) Completed(bucket storage.BucketID, key storage.Key, id storage.UploadID) (*metapb.CompletedUploadRow, error) {
	q := &nodepb.UploadQuery{Bucket: uint64(bucket), Key: []byte(key), Id: uploadToPB(id)}
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Completed{Completed: q}})
	if err != nil {
		return nil, err
	}
	return orEmpty(ans.Completed), nil
}

// items asks for rows of background work until there are limit or no more. next makes the
// question for rows behind the last one (nil: from the beginning).
func (v *rangeReader) items(limit int, next func(last *nodepb.Listed, limit uint32) *nodepb.QueryRequest) ([]*nodepb.Listed, error) {
	var all []*nodepb.Listed
	var last *nodepb.Listed
	for {
		ans, err := v.ask(1, next(last, limitOf(limit-len(all))))
		if err != nil {
			return nil, err
		}
		all = append(all, ans.Items...)
		if !ans.More || len(all) >= limit || len(ans.Items) == 0 {
			return all, nil
		}
		last = all[len(all)-1]
	}
}

func (v *rangeReader) Garbage(seq storage.Seq, n uint32, limit int) ([]rangestate.GarbageItem, error) {
	items, err := v.items(limit, func(last *nodepb.Listed, limit uint32) *nodepb.QueryRequest {
		q := &nodepb.GarbageQuery{Seq: uint64(seq), N: n, Limit: limit}
		if last != nil {
			q.Seq, q.N = last.Seq, last.N
		}
		return &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Garbage{Garbage: q}}
	})
	var out []rangestate.GarbageItem
	for _, it := range items {
		out = append(out, rangestate.GarbageItem{Seq: storage.Seq(it.Seq), N: it.N, Row: orEmpty(it.Garbage)})
	}
	return out, err
}

func (v *rangeReader) Doomed(after *metapb.DoomedID, limit int) ([]rangestate.DoomedItem, error) {
	items, err := v.items(limit, func(last *nodepb.Listed, limit uint32) *nodepb.QueryRequest {
		q := &nodepb.DoomedQuery{After: after, Limit: limit}
		if last != nil {
			q.After = &metapb.DoomedID{Bucket: last.Bucket, Key: last.Key, Seq: last.Seq}
		}
		return &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Doomed{Doomed: q}}
	})
	var out []rangestate.DoomedItem
	for _, it := range items {
		out = append(out, rangestate.DoomedItem{Bucket: storage.BucketID(it.Bucket), Key: storage.Key(it.Key), Seq: storage.Seq(it.Seq), Row: orEmpty(it.Doomed)})
	}
	return out, err
}

func (v *rangeReader) Repairs(after *metapb.RepairID, limit int) ([]rangestate.RepairItem, error) {
	items, err := v.items(limit, func(last *nodepb.Listed, limit uint32) *nodepb.QueryRequest {
		q := &nodepb.RepairsQuery{After: after, Limit: limit}
		if last != nil {
			q.After = &metapb.RepairID{Bucket: last.Bucket, Key: last.Key, Seq: last.Seq}
		}
		return &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Repairs{Repairs: q}}
	})
	var out []rangestate.RepairItem
	for _, it := range items {
		out = append(out, rangestate.RepairItem{Bucket: storage.BucketID(it.Bucket), Key: storage.Key(it.Key), Seq: storage.Seq(it.Seq), Row: orEmpty(it.Repair)})
	}
	return out, err
}

func (v *rangeReader) Refers(owner storage.Owner, chunk storage.ChunkID) (bool, error) {
	ans, err := v.ask(heavyFactor, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Refers{Refers: chunkToPB(owner, chunk)}})
	if err != nil {
		return false, err
	}
	return ans.Found, nil
}

func (v *rangeReader) FindChunk(owner storage.Owner, chunk storage.ChunkID) (*metapb.ChunkRef, error) {
	ans, err := v.ask(heavyFactor, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_FindChunk{FindChunk: chunkToPB(owner, chunk)}})
	if err != nil || !ans.Found {
		return nil, err
	}
	return orEmpty(ans.Chunk), nil
}

func (v *rangeReader) Counters() ([]rangestate.Counter, error) {
	var out []rangestate.Counter
	_, err := v.all(&nodepb.QueryRequest{Of: &nodepb.QueryRequest_Counters{Counters: &nodepb.InfoQuery{}}}, func(ans *nodepb.QueryAnswer) error {
		for _, pb := range ans.Counters {
			out = append(out, counterFromPB(pb))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (v *rangeReader) CountersOf(first, last storage.BucketID) ([]rangestate.Counter, error) {
	q := &nodepb.CountersQuery{First: uint64(first), Last: uint64(last)}
	ans, err := v.ask(heavyFactor, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_CountersPage{CountersPage: q}})
	if err != nil {
		return nil, err
	}
	var out []rangestate.Counter
	for _, pb := range ans.Counters {
		out = append(out, counterFromPB(pb))
	}
	return out, nil
}

func (v *rangeReader) Survey(q *rangestate.SurveyQuery) (rangestate.SurveyPage, error) {
	ans, err := v.ask(heavyFactor, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Survey{Survey: &nodepb.SurveyQuery{
		Bucket: uint64(q.Bucket), Prefix: []byte(q.Prefix), Current: q.Current, Uploads: q.Uploads, After: surveyPosToPB(q.After), Limit: limitOf(q.Limit),
	}}})
	if err != nil {
		return rangestate.SurveyPage{}, err
	}
	page := rangestate.SurveyPage{Next: surveyPosFromPB(ans.SurveyNext), Bounds: boundsFromPB(ans.Range)}
	for _, pb := range ans.Survey {
		page.Rows = append(page.Rows, rangestate.LifecycleRow{
			Key: pb.Key, Object: pb.Object, Upload: pb.Upload, Inline: pb.Inline, Newest: pb.Newest, Only: pb.Only, NewerNoncurrent: int(pb.NewerNoncurrent),
		})
	}
	return page, nil
}

func surveyPosToPB(p *rangestate.LifecyclePos) *nodepb.SurveyPos {
	if p == nil {
		return nil
	}
	return &nodepb.SurveyPos{Key: []byte(p.Key), Seq: uint64(p.Seq), Upload: p.Upload}
}

func surveyPosFromPB(p *nodepb.SurveyPos) *rangestate.LifecyclePos {
	if p == nil {
		return nil
	}
	return &rangestate.LifecyclePos{Key: storage.Key(p.Key), Seq: storage.Seq(p.Seq), Upload: p.Upload}
}

func (v *rangeReader) Walk(fn func(*rangestate.Item) error) error {
	var ferr error
	begun, err := v.all(&nodepb.QueryRequest{Of: &nodepb.QueryRequest_Walk{Walk: &nodepb.InfoQuery{}}}, func(ans *nodepb.QueryAnswer) error {
		for _, pb := range ans.Walk {
			if ferr = fn(itemFromPB(pb)); ferr != nil {
				return ferr
			}
		}
		return nil
	})
	if err != nil && ferr == nil && begun {
		// Not a kind that is repeated: fn has seen a part.
		return errs.Wrap(errs.Timeout, "metarpc.walk", "", err)
	}
	return err
}

// pageTimeout is how long one page of a stream may take.
const pageTimeout = 30 * time.Second

// all calls fn with the pages of an answer; begun tells that it has been called. Once it has, the
// answer is not asked for again elsewhere.
func (v *rangeReader) all(req *nodepb.QueryRequest, fn func(*nodepb.QueryAnswer) error) (begun bool, err error) {
	req.Group = uint64(v.g)
	var final error
	err = v.r.atLeader(v.long, v.g, 0, func(ctx context.Context, m nodepb.MetaClient) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		late := time.AfterFunc(pageTimeout, cancel)
		defer late.Stop()
		s, err := m.QueryAll(ctx, req)
		if err != nil {
			return err
		}
		for {
			ans, err := s.Recv()
			late.Stop()
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil && !begun:
				return err
			case err != nil:
				final = retriable(err)
				return nil
			}
			begun = true
			v.timeMS = max(v.timeMS, ans.TimeMs)
			if final = fn(ans); final != nil {
				return nil
			}
			late.Reset(pageTimeout)
		}
	})
	if final != nil {
		err = final
	}
	v.ctx = v.long // it may have taken longer than any one question should
	return begun, err
}
