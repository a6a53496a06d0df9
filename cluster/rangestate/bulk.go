package rangestate

import (
	"slices"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// bulk is a command with entries of several keys of one bucket, each decided by itself.
type bulk struct {
	bucket  uint64
	key     func(i int) []byte
	run     func(i int) (*metapb.RangeResult, error)
	refused *metapb.RangeResult // answers every entry that was not answered before, if it is not nil

	results  []*metapb.RangeResult // of the entries
	conflict bool                  // entries were refused together, now or when the command came first
}

// bulk runs the entries of a command in order. Those of one key share an outcome row, which holds their results in
// order, or what they were refused for together. When every entry was refused for the
// same reason that is not its own (bucket, bounds, time), the whole result carries it too.
func (m *Machine) bulk(cmd *metapb.RangeCommand, bk *bulk) (res *metapb.RangeResult, err error) {
	if len(bk.results) >= seekMin {
		defer func() {
			if eerr := m.seekers.end(); err == nil {
				err = eerr
			}
		}()
		if err := m.seek(bk.bucket); err != nil {
			return nil, err
		}
	}
	for i, same := range groupEntries(len(bk.results), bk.key) {
		if same == nil {
			continue // went with an earlier entry of its key
		}
		if err := m.bulkKey(cmd, bk, bk.key(i), same); err != nil {
			return nil, err
		}
	}
	res = &metapb.RangeResult{Ok: true, Entries: bk.results}
	res.Events = slices.ContainsFunc(bk.results, func(r *metapb.RangeResult) bool { return r.Events })
	if i := slices.IndexFunc(bk.results, func(r *metapb.RangeResult) bool { return errs.Kind(r.Kind) == errs.WrongRange }); i >= 0 {
		// Of one of them; the others are sent on one after the other.
		wrong, err := m.wrongRangeResult(bk.bucket, bk.key(i))
		if err != nil {
			return nil, err
		}
		res.Ranges = wrong.Ranges
	}
	if kind := commonRefusal(bk.results); kind != 0 {
		res.Ok, res.Kind, res.Detail = false, uint32(kind), bk.results[0].Detail
	}
	return res, nil
}

// groupEntries answers, for the first of n entries of each key, the indexes of all entries of that key; nil for the others.
func groupEntries(n int, key func(i int) []byte) [][]int {
	out := make([][]int, n)
	if n == 1 {
		out[0] = []int{0}
		return out
	}
	first := make(map[string]int, n)
	for i := range n {
		f, seen := first[string(key(i))]
		if !seen {
			f = i
			first[string(key(i))] = i
		}
		out[f] = append(out[f], i)
	}
	return out
}

// commonRefusal is the kind all results share if it is one about the command and not about its keys.
func commonRefusal(results []*metapb.RangeResult) errs.Kind {
	kind := errs.Kind(results[0].Kind)
	switch kind {
	case errs.NoSuchBucket, errs.BucketBusy, errs.WrongRange, errs.TooLate:
	default:
		return 0
	}
	for _, r := range results {
		if r.Ok || errs.Kind(r.Kind) != kind {
			return 0
		}
	}
	return kind
}

// bulkKey runs the entries with these indexes, all of one key, and stores their results.
func (m *Machine) bulkKey(cmd *metapb.RangeCommand, bk *bulk, key []byte, same []int) error {
	out, err := m.enter(cmd, bk.bucket, key)
	if err != nil {
		return err
	}
	if out == nil && bk.refused != nil {
		out, err = m.leave(cmd, bk.bucket, key, bk.refused)
		if err != nil {
			return err
		}
	}
	if out != nil {
		return m.bulkAnswered(bk, out, same)
	}
	kept := &metapb.RangeResult{Ok: true}
	for n, i := range same {
		if n == 1 { // what the first one wrote does not show there
			m.seekers.pass(bk.bucket, key)
		}
		res, err := bk.run(i)
		if err != nil {
			return err
		}
		bk.results[i] = res
		kept.Entries = append(kept.Entries, res)
	}
	_, err = m.leave(cmd, bk.bucket, key, kept)
	return err
}

// bulkAnswered answers the entries of a key from a kept result or a refusal of all of them.
func (m *Machine) bulkAnswered(bk *bulk, out []byte, same []int) error {
	var kept metapb.RangeResult
	if err := kept.UnmarshalVT(out); err != nil {
		return corrupt(m.key, err)
	}
	for n, i := range same {
		switch {
		case !kept.Ok:
			bk.results[i] = refuse(errs.Kind(kept.Kind), kept.Detail)
		case n < len(kept.Entries):
			bk.results[i] = kept.Entries[n]
		default:
			bk.results[i] = refuse(errs.InvalidRequest, "the command came before with fewer entries of this key")
		}
	}
	bk.conflict = bk.conflict || errs.Kind(kept.Kind) == errs.Conflict
	return nil
}
