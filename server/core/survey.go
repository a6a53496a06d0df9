package core

import (
	"context"
	"strings"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/storage"
	"cairn/storage/errs"
)

// surveyRows is how many rows of a bucket are asked for at once.
const surveyRows = 1000

// surveyTries is how often in a row a page is asked for: a long walk outlives an election, and a leader that is busy.
const surveyTries = 6

// survey is a page of a bucket's rows, wherever their range is led, and where to go on; nil at the end.
func (c *Core) survey(ctx context.Context, q rangestate.SurveyQuery) (rows []rangestate.LifecycleRow, next *rangestate.LifecyclePos, err error) {
	for try := range surveyTries {
		rows, next, err = c.surveyOnce(ctx, q)
		if k := errs.KindOf(err); err == nil || k != errs.Busy && k != errs.Unavailable && k != errs.NotLeader {
			break
		}
		select {
		case <-time.After(time.Second << try):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	if q.Current && next != nil && next.Seq != 0 {
		// A key has one current version. If that goes meanwhile, an older one must not be listed behind it.
		next = &rangestate.LifecyclePos{Key: next.Key + "\x00"}
	}
	return rows, next, err
}

func (c *Core) surveyOnce(ctx context.Context, q rangestate.SurveyQuery) ([]rangestate.LifecycleRow, *rangestate.LifecyclePos, error) {
	at := cluster.Pos{Bucket: q.Bucket, Key: storage.Key(q.Prefix)}
	if q.After != nil {
		at.Key = max(at.Key, q.After.Key)
	}
	q.Limit = surveyRows
	var page rangestate.SurveyPage
	bounds, err := c.Meta.ReadFrom(ctx, at, func(v rangestate.Reader) (_ cluster.Bounds, err error) {
		page, err = v.Survey(&q)
		return page.Bounds, err
	})
	if err != nil || page.Next != nil {
		return page.Rows, page.Next, err
	}
	end := bounds.End
	if end == (cluster.Pos{}) || end.Bucket != q.Bucket || !strings.HasPrefix(string(end.Key), q.Prefix) && string(end.Key) > q.Prefix {
		return page.Rows, nil, nil
	}
	return page.Rows, &rangestate.LifecyclePos{Key: end.Key}, nil
}
