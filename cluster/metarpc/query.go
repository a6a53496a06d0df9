package metarpc

import (
	"context"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// answerRowsMax bounds the rows of one answer, besides ServerConfig.AnswerBytesMax.
const answerRowsMax = 20000

// asked is a view that is asked for bounded answers.
type asked struct {
	*rangestate.View
	bytesMax int
}

// Query answers one question from the state of a range that is led here.
func (s *Server) Query(ctx context.Context, req *nodepb.QueryRequest) (ans *nodepb.QueryAnswer, err error) {
	done, err := s.admit(ctx, s.calls)
	if err != nil {
		return nil, err
	}
	defer done()
	g := cluster.GroupID(req.Group)
	err = s.cfg.Host.Read(ctx, g, func(r pebble.Reader) error {
		v, err := s.views.View(r, g)
		if err != nil {
			return err
		}
		if ans, err = (asked{v, s.cfg.AnswerBytesMax}).answer(req); err != nil {
			return err
		}
		ans.TimeMs = v.TimeMS()
		return nil
	})
	if errs.Is(err, errs.NotLeader) {
		s.views.Drop(g)
	}
	if err != nil {
		return nil, err
	}
	return ans, nil
}

// answer answers a question.
func (v asked) answer(req *nodepb.QueryRequest) (*nodepb.QueryAnswer, error) {
	switch q := req.Of.(type) {
	case *nodepb.QueryRequest_Info:
		return &nodepb.QueryAnswer{Seq: uint64(v.Seq()), Range: v.Descriptor()}, nil
	case *nodepb.QueryRequest_Bucket:
		row, err := v.Bucket(storage.BucketID(q.Bucket.GetBucket()))
		return &nodepb.QueryAnswer{Bucket: row}, err
	case *nodepb.QueryRequest_Object:
		return v.answerObject(q.Object)
	case *nodepb.QueryRequest_Segments:
		return v.answerSegments(q.Segments)
	case *nodepb.QueryRequest_PartExtent:
		return v.answerExtent(q.PartExtent)
	case *nodepb.QueryRequest_ListCurrent:
		return v.fit(q.ListCurrent.GetLimit(), func(limit int) (*nodepb.QueryAnswer, error) { return v.answerCurrent(q.ListCurrent, limit) })
	case *nodepb.QueryRequest_ListVersions:
		return v.fit(q.ListVersions.GetLimit(), func(limit int) (*nodepb.QueryAnswer, error) { return v.answerVersions(q.ListVersions, limit) })
	case *nodepb.QueryRequest_ListUploads:
		return v.fit(q.ListUploads.GetLimit(), func(limit int) (*nodepb.QueryAnswer, error) { return v.answerUploads(q.ListUploads, limit) })
	case *nodepb.QueryRequest_Upload:
		row, err := v.Upload(storage.BucketID(q.Upload.GetBucket()), storage.Key(q.Upload.GetKey()), uploadFromPB(q.Upload.GetId()))
		return &nodepb.QueryAnswer{Upload: row}, err
	case *nodepb.QueryRequest_Completed:
		row, err := v.Completed(storage.BucketID(q.Completed.GetBucket()), storage.Key(q.Completed.GetKey()), uploadFromPB(q.Completed.GetId()))
		return &nodepb.QueryAnswer{Completed: row}, err
	case *nodepb.QueryRequest_Parts:
		return v.fit(q.Parts.GetLimit(), func(limit int) (*nodepb.QueryAnswer, error) {
			q := q.Parts
			rows, more, err := v.Parts(storage.BucketID(q.GetBucket()), storage.Key(q.GetKey()), uploadFromPB(q.GetId()), int(q.GetAfter()), limit)
			return &nodepb.QueryAnswer{Parts: rows, More: more}, err
		})
	case *nodepb.QueryRequest_ObjectParts:
		if q.ObjectParts.GetRow() == nil {
			return nil, errs.New(errs.InvalidArgument, "metarpc", "", "no row")
		}
		return v.fit(q.ObjectParts.GetLimit(), func(limit int) (*nodepb.QueryAnswer, error) {
			q := q.ObjectParts
			rows, more, err := v.ObjectParts(storage.BucketID(q.GetBucket()), storage.Key(q.GetKey()), q.Row, int(q.GetAfter()), limit)
			return &nodepb.QueryAnswer{Parts: rows, More: more}, err
		})
	case *nodepb.QueryRequest_Part:
		row, err := v.Part(storage.BucketID(q.Part.GetBucket()), storage.Key(q.Part.GetKey()), storage.Seq(q.Part.GetSeq()), int(q.Part.GetNumber()))
		return &nodepb.QueryAnswer{Parts: []*metapb.PartRow{row}}, err
	case *nodepb.QueryRequest_VersionBySeq:
		row, err := v.VersionBySeq(storage.BucketID(q.VersionBySeq.GetBucket()), storage.Key(q.VersionBySeq.GetKey()), storage.Seq(q.VersionBySeq.GetSeq()))
		return &nodepb.QueryAnswer{Object: row}, err
	case *nodepb.QueryRequest_Survey:
		return v.fit(max(q.Survey.GetLimit(), 1), func(limit int) (*nodepb.QueryAnswer, error) { return v.answerSurvey(q.Survey, limit) })
	case *nodepb.QueryRequest_CountersPage:
		counters, err := v.CountersOf(storage.BucketID(q.CountersPage.GetFirst()), storage.BucketID(q.CountersPage.GetLast()))
		return &nodepb.QueryAnswer{Counters: countersToPB(counters)}, err
	case *nodepb.QueryRequest_Check:
		return &nodepb.QueryAnswer{}, v.Check(cluster.Pos{Bucket: storage.BucketID(q.Check.GetBucket()), Key: storage.Key(q.Check.GetKey())})
	}
	return v.answerBackground(req)
}

func (v asked) answerSurvey(q *nodepb.SurveyQuery, limit int) (*nodepb.QueryAnswer, error) {
	page, err := v.Survey(&rangestate.SurveyQuery{
		Bucket: storage.BucketID(q.GetBucket()), Prefix: string(q.GetPrefix()), Current: q.GetCurrent(), Uploads: q.GetUploads(),
		After: surveyPosFromPB(q.GetAfter()), Limit: limit,
	})
	ans := &nodepb.QueryAnswer{Range: boundsToPB(page.Bounds), SurveyNext: surveyPosToPB(page.Next)}
	for i := range page.Rows {
		r := &page.Rows[i]
		ans.Survey = append(ans.Survey, &nodepb.SurveyRow{
			Key: r.Key, Object: r.Object, Upload: r.Upload, Inline: r.Inline, Newest: r.Newest, Only: r.Only, NewerNoncurrent: uint32(r.NewerNoncurrent),
		})
	}
	return ans, err
}

// answerBackground answers what background work asks.
func (v asked) answerBackground(req *nodepb.QueryRequest) (*nodepb.QueryAnswer, error) {
	switch q := req.Of.(type) {
	case *nodepb.QueryRequest_Garbage:
		return v.fit(q.Garbage.GetLimit(), func(limit int) (*nodepb.QueryAnswer, error) {
			items, err := v.Garbage(storage.Seq(q.Garbage.GetSeq()), q.Garbage.GetN(), limit)
			ans := &nodepb.QueryAnswer{More: len(items) == limit}
			for _, it := range items {
				ans.Items = append(ans.Items, &nodepb.Listed{Seq: uint64(it.Seq), N: it.N, Garbage: it.Row})
			}
			return ans, err
		})
	case *nodepb.QueryRequest_Doomed:
		return v.fit(q.Doomed.GetLimit(), func(limit int) (*nodepb.QueryAnswer, error) {
			items, err := v.Doomed(q.Doomed.GetAfter(), limit)
			ans := &nodepb.QueryAnswer{More: len(items) == limit}
			for _, it := range items {
				ans.Items = append(ans.Items, &nodepb.Listed{Bucket: uint64(it.Bucket), Key: []byte(it.Key), Seq: uint64(it.Seq), Doomed: it.Row})
			}
			return ans, err
		})
	case *nodepb.QueryRequest_Repairs:
		return v.fit(q.Repairs.GetLimit(), func(limit int) (*nodepb.QueryAnswer, error) {
			items, err := v.Repairs(q.Repairs.GetAfter(), limit)
			ans := &nodepb.QueryAnswer{More: len(items) == limit}
			for _, it := range items {
				ans.Items = append(ans.Items, &nodepb.Listed{Bucket: uint64(it.Bucket), Key: []byte(it.Key), Seq: uint64(it.Seq), Repair: it.Row})
			}
			return ans, err
		})
	case *nodepb.QueryRequest_Refers:
		owner, chunk, err := chunkFromPB(q.Refers)
		if err != nil {
			return nil, err
		}
		found, err := v.Refers(owner, chunk)
		return &nodepb.QueryAnswer{Found: found}, err
	case *nodepb.QueryRequest_FindChunk:
		owner, chunk, err := chunkFromPB(q.FindChunk)
		if err != nil {
			return nil, err
		}
		ref, err := v.FindChunk(owner, chunk)
		return &nodepb.QueryAnswer{Chunk: ref, Found: ref != nil}, err
	}
	return v.answerEvents(req)
}

// fit asks for fewer rows until the answer is not too long. What is left out shows as More.
func (v asked) fit(limit uint32, page func(limit int) (*nodepb.QueryAnswer, error)) (*nodepb.QueryAnswer, error) {
	for n := int(min(limit, answerRowsMax)); ; n /= 2 {
		ans, err := page(n)
		if err != nil || n <= 1 || ans.SizeVT() <= v.bytesMax {
			return ans, err
		}
	}
}

// answerObject also answers the bucket's row. That the version is a delete marker shows in the row.
func (v asked) answerObject(q *nodepb.ObjectQuery) (*nodepb.QueryAnswer, error) {
	bucket := storage.BucketID(q.GetBucket())
	row, err := v.Object(bucket, storage.Key(q.GetKey()), versionFromPB(q.GetVersion()))
	if err != nil && !errs.Is(err, errs.IsDeleteMarker) {
		return nil, err
	}
	b, err := v.Bucket(bucket)
	return &nodepb.QueryAnswer{Bucket: b, Object: row}, err
}

func (v asked) answerSegments(q *nodepb.SegmentsQuery) (*nodepb.QueryAnswer, error) {
	if q.GetRow() == nil {
		return nil, errs.New(errs.InvalidArgument, "metarpc", "", "no row")
	}
	segs, err := v.Segments(storage.BucketID(q.GetBucket()), storage.Key(q.GetKey()), q.Row, q.GetOffset(), q.GetLength(), int(min(q.GetBytesMax(), int64(v.bytesMax))))
	ans := &nodepb.QueryAnswer{}
	for i := range segs {
		ans.Segments = append(ans.Segments, segmentToPB(&segs[i]))
	}
	return ans, err
}

func (v asked) answerExtent(q *nodepb.PartExtentQuery) (*nodepb.QueryAnswer, error) {
	if q.GetRow() == nil {
		return nil, errs.New(errs.InvalidArgument, "metarpc", "", "no row")
	}
	off, n, err := v.PartExtent(storage.BucketID(q.GetBucket()), storage.Key(q.GetKey()), q.Row, int(q.GetNumber()))
	return &nodepb.QueryAnswer{Offset: off, Length: n}, err
}

func (v asked) answerCurrent(q *nodepb.ListQuery, limit int) (*nodepb.QueryAnswer, error) {
	page, err := v.ListCurrent(storage.BucketID(q.GetBucket()), string(q.GetPrefix()), string(q.GetDelimiter()), string(q.GetAfter()), limit)
	return &nodepb.QueryAnswer{
		Range: boundsToPB(page.Bounds), Listed: listedToPB(page.Rows), CommonPrefixes: bytesOf(page.CommonPrefixes),
		More: page.Truncated, Next: []byte(page.Next),
	}, err
}

func (v asked) answerVersions(q *nodepb.ListQuery, limit int) (*nodepb.QueryAnswer, error) {
	page, err := v.ListVersions(storage.BucketID(q.GetBucket()), string(q.GetPrefix()), string(q.GetDelimiter()), string(q.GetAfter()), versionFromPB(q.GetAfterId()), limit)
	ans := &nodepb.QueryAnswer{
		Range: boundsToPB(page.Bounds), Listed: listedToPB(page.Rows), CommonPrefixes: bytesOf(page.CommonPrefixes),
		More: page.Truncated, Next: []byte(page.NextKey), NextId: versionToPB(page.NextVersion),
	}
	return ans, err
}

func (v asked) answerUploads(q *nodepb.ListQuery, limit int) (*nodepb.QueryAnswer, error) {
	page, err := v.ListUploads(storage.BucketID(q.GetBucket()), string(q.GetPrefix()), string(q.GetDelimiter()), string(q.GetAfter()), storage.Seq(q.GetAfterId().GetSeq()), limit)
	ans := &nodepb.QueryAnswer{
		Range: boundsToPB(page.Bounds), CommonPrefixes: bytesOf(page.CommonPrefixes),
		More: page.Truncated, Next: []byte(page.NextKey), NextId: &nodepb.IDPair{Seq: uint64(page.NextSeq)},
	}
	for _, u := range page.Uploads {
		ans.Listed = append(ans.Listed, &nodepb.ListedRow{Key: []byte(u.Key), Upload: u.Row})
	}
	return ans, err
}

// SysQuery answers one question from the system group, if it is led here.
func (s *Server) SysQuery(ctx context.Context, req *nodepb.SysQueryRequest) (ans *nodepb.SysQueryAnswer, err error) {
	done, err := s.admit(ctx, s.calls)
	if err != nil {
		return nil, err
	}
	defer done()
	err = s.cfg.Host.Read(ctx, cluster.SystemGroup, func(r pebble.Reader) error {
		ans, err = answerSys(sysstate.NewView(r), req, s.cfg.AnswerBytesMax)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ans, nil
}

func answerSys(v sysstate.View, req *nodepb.SysQueryRequest, bytesMax int) (ans *nodepb.SysQueryAnswer, err error) {
	ans = &nodepb.SysQueryAnswer{}
	switch q := req.Of.(type) {
	case *nodepb.SysQueryRequest_Store:
		ans.Store, err = v.Store()
	case *nodepb.SysQueryRequest_Time:
		ans.Value, err = v.TimeMS()
	case *nodepb.SysQueryRequest_DriveStarts:
		id, derr := driveOf(q.DriveStarts)
		if derr != nil {
			return nil, derr
		}
		starts, serr := v.DriveStarts(id)
		ans.Value, err = int64(starts), serr
	case *nodepb.SysQueryRequest_BucketByName:
		row, berr := v.BucketByName(q.BucketByName)
		ans.Buckets, err = []*metapb.SysBucket{row}, berr
	case *nodepb.SysQueryRequest_BucketById:
		row, berr := v.BucketByID(storage.BucketID(q.BucketById))
		ans.Buckets, err = []*metapb.SysBucket{row}, berr
	case *nodepb.SysQueryRequest_ListBuckets:
		l := q.ListBuckets
		ans.Buckets, ans.More, err = v.ListBuckets(l.GetOwner(), l.GetPrefix(), l.GetAfter(), int(min(l.GetLimit(), answerRowsMax)))
	case *nodepb.SysQueryRequest_PendingBuckets:
		ans.Buckets, err = v.PendingBuckets(storage.BucketID(q.PendingBuckets.GetAfterId()), int(min(q.PendingBuckets.GetLimit(), answerRowsMax)))
	case *nodepb.SysQueryRequest_CountBuckets:
		ans.Value, err = v.CountBuckets()
	case *nodepb.SysQueryRequest_Targets:
		ans.Targets, ans.More, err = v.TargetsPage(q.Targets.GetAfter(), int(min(q.Targets.GetLimit(), answerRowsMax)), bytesMax)
	case *nodepb.SysQueryRequest_Target:
		row, terr := v.Target(q.Target)
		ans.Targets, err = []*metapb.SysTarget{row}, terr
	default:
		err = unknown("question")
	}
	return ans, err
}
