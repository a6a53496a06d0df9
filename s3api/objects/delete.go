package objects

import (
	"context"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// DeleteObject deletes one object or version. Deleting what is not there succeeds.
func (s *Store) DeleteObject(ctx context.Context, acct Account, bucket string, item DeleteItem) (DeleteResult, error) {
	res, err := s.DeleteObjects(ctx, acct, bucket, []DeleteItem{item})
	if err != nil {
		return DeleteResult{}, err
	}
	return res[0], res[0].Err
}

// DeleteObjects deletes up to 1000 objects or versions, one command for each
// range; the results stand in the order of the items.
func (s *Store) DeleteObjects(ctx context.Context, acct Account, bucket string, items []DeleteItem) (out []DeleteResult, err error) {
	err = s.withBucket(ctx, acct, bucket, func(b Bucket) error {
		out = make([]DeleteResult, len(items))
		op := &metapb.DeleteObjectsOp{Bucket: uint64(b.ID), Owner: acct.ID}
		var sent []int // indexes of the entries in op
		for i := range items {
			e, err := deleteEntry(items[i], s.cfg.Meta.Random64())
			if err != nil {
				out[i].Err = err
				continue
			}
			op.Entries = append(op.Entries, e)
			sent = append(sent, i)
		}
		if len(sent) == 0 {
			return nil
		}
		results, err := s.cfg.Meta.Delete(ctx, requester(acct), op)
		if err != nil {
			return err
		}
		for n, i := range sent {
			out[i] = deleteResult(items[i], results[n])
		}
		return nil
	})
	return out, err
}

func deleteEntry(it DeleteItem, markerNonce uint64) (*metapb.DeleteEntry, error) {
	e := &metapb.DeleteEntry{Key: []byte(it.Key), Conditions: conditionsPB(it.Conditions), MarkerNonce: markerNonce, BypassGovernance: it.Bypass}
	if it.VersionID != "" {
		id, err := parseVersion(it.VersionID)
		if err != nil {
			return nil, err
		}
		e.HasVersion, e.VersionSeq, e.VersionNonce = true, uint64(id.Seq), id.Nonce
	}
	return e, nil
}

func deleteResult(it DeleteItem, r *metapb.RangeResult) DeleteResult {
	if !r.Ok {
		switch k := errs.Kind(r.Kind); k {
		case errs.NoSuchKey, errs.NoSuchVersion:
			if len(it.Conditions.IfMatch) == 0 {
				return DeleteResult{VersionID: it.VersionID} // nothing to delete is a success
			}
			fallthrough
		default:
			return DeleteResult{Err: errs.New(k, "delete", string(it.Key), r.Detail)}
		}
	}
	d := DeleteResult{VersionID: it.VersionID, DeleteMarker: r.DeleteMarker}
	if r.DeleteMarker {
		d.MarkerVersionID = resultVersion(r)
	}
	return d
}
