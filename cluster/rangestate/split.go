package rangestate

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// childReplicasMax bounds the replicas that one split makes.
const childReplicasMax = 64

// Born are the births of the last Apply, in order: their rows are in its batch. After a Reset there are none.
func (m *Machine) Born() []cluster.Birth { return m.born }

// Births are all births that the state of r knows of, those of long ago too.
func (m *Machine) Births(r pebble.Reader) (out []cluster.Birth, err error) {
	start := appendGroup(nil, m.group, subChild)
	err = iterate(r, start, prefixEnd(slices.Clone(start)), func(raw []byte, value func() ([]byte, error)) (bool, error) {
		row := &metapb.ChildRow{}
		err := decode(raw, value, row)
		out = append(out, birthOf(row.Group, row.Replicas))
		return true, err
	})
	return out, err
}

func birthOf(child uint64, replicas []*metapb.ChildReplica) cluster.Birth {
	b := cluster.Birth{Child: cluster.GroupID(child)}
	for _, r := range replicas {
		c := cluster.ChildReplica{Parent: cluster.ReplicaID(r.GetParent()), Child: cluster.ReplicaID(r.GetChild()), Voter: r.GetVoter()}
		copy(c.Drive[:], r.GetDrive())
		b.Replicas = append(b.Replicas, c)
	}
	return b
}

// childKey is the raw key of the ChildRow of a split at a place.
func childKey[K bytestring](group cluster.GroupID, bucket uint64, key K) []byte {
	k := appendGroup(nil, group, subChild)
	return append(appendBE64(k, bucket), key...)
}

func appendBE64(b []byte, v uint64) []byte {
	return append(b, byte(v>>56), byte(v>>48), byte(v>>40), byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// split hands everything from op.At on to a new range (see the package's comment). A
// repeat is known by the ChildRow. Conflict (the range or its group's configuration changed; read again).
func (m *Machine) split(e *cluster.Entry, op *metapb.SplitOp) (*metapb.RangeResult, error) {
	at := op.GetAt()
	if detail := checkSplit(op); detail != "" {
		return refuse(errs.InvalidArgument, detail), nil
	}
	rowKey := childKey(m.group, at.Bucket, at.Key)
	var old metapb.ChildRow
	if ok, err := m.get(rowKey, &old); err != nil {
		return nil, err
	} else if ok && old.Group == op.Child {
		return m.splitResult(&old), nil
	}
	switch {
	case !e.Birth:
		return refuse(errs.InvalidRequest, "a split must be proposed as one"), nil
	case op.Child == uint64(m.group):
		return refuse(errs.InvalidArgument, "a range cannot be its own child"), nil
	case m.desc.Generation != op.Generation:
		return refuse(errs.Conflict, fmt.Sprintf("the range is at generation %d, not %d", m.desc.Generation, op.Generation)), nil
	case e.Config != op.ConfigIndex:
		return refuse(errs.Conflict, fmt.Sprintf("the group's configuration is that of entry %d, not %d", e.Config, op.ConfigIndex)), nil
	case !contains(&m.bounds, at.Bucket, at.Key) || at.Bucket == m.bounds.startBucket && string(at.Key) == string(m.bounds.startKey):
		return refuse(errs.InvalidArgument, "the range does not hold keys on both sides of the place"), nil
	}
	if err := m.cutBucket(at); err != nil {
		return nil, err
	}
	child := &metapb.RangeDescriptor{Format: 1, Group: op.Child, Start: at, End: m.desc.End, Generation: 1, Parent: uint64(m.group)}
	row := &metapb.ChildRow{Format: 1, Group: op.Child, Start: at, End: m.desc.End, Replicas: op.Replicas}
	m.desc.End = at
	m.desc.Generation++
	m.bounds = boundsOf(m.desc)
	clear(m.buckets) // some are the child's now
	m.configChanged()
	clock := &metapb.GroupClock{Seq: m.clock.Seq, TimeMs: m.clock.TimeMs, Config: 1}
	for _, w := range []struct {
		key []byte
		row encoder
	}{
		{rowKey, row},
		{appendGroup(nil, m.group, subDescriptor), m.desc},
		{appendGroup(nil, cluster.GroupID(op.Child), subDescriptor), child},
		{appendGroup(nil, cluster.GroupID(op.Child), subClock), clock},
	} {
		if err := m.put(w.key, w.row); err != nil {
			return nil, err
		}
	}
	if err := m.waitForParent(cluster.GroupID(op.Child)); err != nil {
		return nil, err
	}
	m.born = append(m.born, birthOf(op.Child, op.Replicas))
	return m.splitResult(row), nil
}

func checkSplit(op *metapb.SplitOp) string {
	at := op.GetAt()
	switch {
	case op.GetChild() <= uint64(cluster.SystemGroup):
		return "a split names the group of the child"
	case at.GetBucket() == 0 || len(at.Key) > storage.KeyBytesMax:
		return "a split names a place"
	case len(op.Replicas) == 0 || len(op.Replicas) > childReplicasMax:
		return "a split names the replicas to be born"
	}
	voters := 0
	seen := map[string]bool{}
	for _, r := range op.Replicas {
		if r.GetParent() == "" || r.Child == "" || seen[r.Parent] || seen[r.Child] {
			return "malformed replicas"
		}
		seen[r.Parent], seen[r.Child] = true, true
		if r.Voter {
			voters++
		}
	}
	if voters == 0 {
		return "a range needs a voter"
	}
	return ""
}

// cutBucket gives the child a row of the bucket that the split cuts in two.
func (m *Machine) cutBucket(at *metapb.PosPB) error {
	if len(at.Key) == 0 {
		return nil // between two buckets
	}
	row, err := m.bucketRow(at.Bucket)
	if err != nil || row == nil {
		return err
	}
	m.key = appendRaw(m.key[:0], kindBucket, at.Bucket, at.Key)
	return m.put(m.key, row)
}

func (m *Machine) splitResult(row *metapb.ChildRow) *metapb.RangeResult {
	return &metapb.RangeResult{Ok: true, Ranges: []*metapb.SysGroup{rangeOf(m.desc), childRange(row)}}
}

// rangeOf is a range as a result names it, without replicas.
func rangeOf(d *metapb.RangeDescriptor) *metapb.SysGroup {
	return &metapb.SysGroup{Id: d.Group, Start: d.Start, End: d.End, Generation: d.Generation}
}

func childRange(row *metapb.ChildRow) *metapb.SysGroup {
	g := &metapb.SysGroup{Id: row.Group, Start: row.Start, End: row.End, Generation: 1}
	for _, r := range row.Replicas {
		g.Replicas = append(g.Replicas, &metapb.SysReplica{Id: r.GetChild(), Drive: r.GetDrive(), Voter: r.GetVoter()})
	}
	return g
}

// elsewhere is the range itself and, if the key was split off from it, the child that was born with it.
func elsewhere[K bytestring](r pebble.Reader, group cluster.GroupID, desc *metapb.RangeDescriptor, bucket uint64, key K) ([]*metapb.SysGroup, error) {
	out := []*metapb.SysGroup{rangeOf(desc)}
	it, err := r.NewIter(&pebble.IterOptions{
		LowerBound: appendGroup(nil, group, subChild), UpperBound: append(childKey(group, bucket, key), 0),
	})
	if err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	if it.Last() {
		row := &metapb.ChildRow{}
		if err := decode(it.Key(), it.ValueAndErr, row); err != nil {
			return nil, errors.Join(err, it.Close())
		}
		b := boundsOf(&metapb.RangeDescriptor{Start: row.Start, End: row.End})
		if contains(&b, bucket, key) {
			out = append(out, childRange(row))
		}
	}
	if err := it.Close(); err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	return out, nil
}

// wrongRange is the refusal of a command on a key outside the bounds: it says where to go.
func (m *Machine) wrongRange(bucket uint64, key []byte) ([]byte, error) {
	res, err := m.wrongRangeResult(bucket, key)
	if err != nil {
		return nil, err
	}
	return m.encode(res)
}

func (m *Machine) wrongRangeResult(bucket uint64, key []byte) (res *metapb.RangeResult, err error) {
	res = refuse(errs.WrongRange, "")
	res.Ranges, err = elsewhere(m.b, m.group, m.desc, bucket, key)
	return res, err
}

// movedPrefix begins the detail of a reader's WrongRange; what follows is a RangeResult in base64. It lies in
// the detail because that is what travels with an error from node to node.
const movedPrefix = "the key lies in another range: "

// wrongRange is a reader's error for a key outside the bounds.
func (v *View) wrongRange(op string, bucket uint64, key storage.Key) error {
	ranges, err := elsewhere(v.r, v.group, v.config.desc, bucket, key)
	if err != nil {
		return err
	}
	// Keys may be long and errors are short: who asked knows where the range begins, and needs no end of the child.
	ranges[0].Start = nil
	for _, child := range ranges[1:] {
		child.End = nil
	}
	b, err := (&metapb.RangeResult{Ranges: ranges}).MarshalVT()
	if err != nil {
		return errs.Wrap(errs.Other, op, "", err)
	}
	return errs.New(errs.WrongRange, op, "", movedPrefix+base64.RawStdEncoding.EncodeToString(b))
}

func notBase64(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/')
}

// Check answers WrongRange unless the place lies in the range.
func (v *View) Check(p cluster.Pos) error {
	if contains(&v.config.bounds, uint64(p.Bucket), p.Key) {
		return nil
	}
	return v.wrongRange("rangestate.check", uint64(p.Bucket), p.Key)
}

// Elsewhere is what a reader's WrongRange says of the ranges: first the one that was asked, without its start, then
// the child, without its end. Nil for other errors.
func Elsewhere(err error) []*metapb.SysGroup {
	var e *errs.Error
	for errors.As(err, &e) {
		// Others may have put words around it on the way.
		if _, b64, ok := strings.Cut(e.Detail, movedPrefix); ok && e.Kind == errs.WrongRange {
			if i := strings.IndexFunc(b64, notBase64); i >= 0 {
				b64 = b64[:i]
			}
			var res metapb.RangeResult
			if b, derr := base64.RawStdEncoding.DecodeString(b64); derr == nil && res.UnmarshalVT(b) == nil {
				return res.Ranges
			}
			return nil
		}
		err = e.Err
	}
	return nil
}

// ---- comparing bounds ----

// checkBounds writes down the hash of everything that decides where keys belong. All replicas write
// the same one, unless one of them has gone wrong.
func (m *Machine) checkBounds(cmd *metapb.RangeCommand, op *metapb.CheckBoundsOp) (*metapb.RangeResult, error) {
	if n := len(op.GetVoters()); n == 0 || n > childReplicasMax {
		return refuse(errs.InvalidArgument, "a check names the voters"), nil
	}
	h := sha256.New()
	for _, row := range []interface{ MarshalVT() ([]byte, error) }{m.desc, &m.clock} {
		b, err := row.MarshalVT()
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
	}
	start := appendGroup(nil, m.group, subChild)
	err := m.iterate(start, prefixEnd(slices.Clone(start)), func(raw []byte, value func() ([]byte, error)) (bool, error) {
		v, err := value()
		fmt.Fprintf(h, "%d:%s%d:%s", len(raw), raw, len(v), v)
		return true, err
	})
	if err != nil {
		return nil, err
	}
	row := &metapb.CheckRow{Format: 1, Check: cmd.Id, Hash: h.Sum(nil), Voters: op.Voters}
	return &metapb.RangeResult{Ok: true}, m.put(appendGroup(nil, m.group, subCheck), row)
}

// judgeBounds notes what a voter found, and stops this replica for good if most voters found something else than it did.
func (m *Machine) judgeBounds(op *metapb.JudgeBoundsOp) (*metapb.RangeResult, error) {
	var row metapb.CheckRow
	key := appendGroup(nil, m.group, subCheck)
	if _, err := m.get(key, &row); err != nil {
		return nil, err
	}
	switch {
	case string(row.Check) != string(op.GetCheck()):
		return refuse(errs.Conflict, "another check came in between"), nil
	case !slices.Contains(row.Voters, op.Replica) || slices.ContainsFunc(row.Found, func(f *metapb.JudgeBoundsOp) bool { return f.GetReplica() == op.Replica }):
		return &metapb.RangeResult{Ok: true}, nil
	}
	row.Found = append(row.Found, op)
	same := 0
	for _, f := range row.Found {
		if string(f.GetHash()) == string(op.Hash) {
			same++
		}
	}
	if same > len(row.Voters)/2 && string(row.Hash) != string(op.Hash) {
		return nil, errs.Newf(errs.Corrupt, "rangestate.apply", fmt.Sprintf("group %d", m.group), "the range's bounds are not those of most other replicas")
	}
	return &metapb.RangeResult{Ok: true}, m.put(key, &row)
}

// LastCheck is the last CheckBounds of the group as r sees it; an empty row if there was none.
func LastCheck(r pebble.Reader, group cluster.GroupID) (*metapb.CheckRow, error) {
	row := &metapb.CheckRow{}
	_, err := getRow(r, appendGroup(nil, group, subCheck), row)
	return row, err
}
