package objects

import (
	"context"
	"strings"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/storage"
)

// ListObjects answers a page of the bucket's current objects. Each range is read
// linearizably, the ranges one after another.
func (s *Store) ListObjects(ctx context.Context, acct Account, in *ListInput) (out *ListOutput, err error) {
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		out = &ListOutput{}
		after := in.After
		var page rangestate.Page
		full := false
		return s.eachRange(ctx, b, in.Prefix, in.Delimiter, after, func(v rangestate.Reader) (_ cluster.Bounds, err error) {
			left := in.Max - len(out.Objects) - len(out.CommonPrefixes)
			full = left == 0 && in.Max > 0 // the page filled up just at the last range's end: is there any more?
			page, err = v.ListCurrent(b.ID, in.Prefix, in.Delimiter, after, max(left, btoi(full)))
			return page.Bounds, err
		}, func() (string, bool) {
			if full {
				out.Truncated = len(page.Rows)+len(page.CommonPrefixes) > 0
				return after, !out.Truncated
			}
			for i := range page.Rows {
				out.Objects = append(out.Objects, objectFromRow(page.Rows[i].Key, page.Rows[i].Row, false))
			}
			out.CommonPrefixes = append(out.CommonPrefixes, page.CommonPrefixes...)
			if page.Next != "" {
				out.Next, after = page.Next, page.Next
			}
			out.Truncated = page.Truncated
			return after, !page.Truncated && in.Max > 0
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// eachRange reads the ranges that can hold what a listing of the bucket shows behind after, one after the other: read
// reads a page of a range, perhaps more than once, and answers the range's bounds; took then takes
// the page, and says behind what to go on and whether to. Ranges may split meanwhile: the bounds that
// came with a page say where the next one begins.
func (s *Store) eachRange(ctx context.Context, b Bucket, prefix, delimiter, after string, read func(rangestate.Reader) (cluster.Bounds, error), took func() (after string, more bool)) error {
	at := cluster.Pos{Bucket: b.ID, Key: storage.Key(max(prefix, after))}
	for {
		bounds, err := s.cfg.Meta.ReadFrom(ctx, at, read)
		if err != nil {
			return err
		}
		after, more := took()
		end := bounds.End
		if !more || end.Bucket != b.ID {
			return nil
		}
		// A common prefix may span many ranges, of which all but the first need not be asked.
		start, ok := rangestate.ListStart(prefix, delimiter, after)
		at.Key = max(end.Key, storage.Key(start))
		if !ok || string(at.Key) > prefix && !strings.HasPrefix(string(at.Key), prefix) {
			return nil
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
