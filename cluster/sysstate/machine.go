package sysstate

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// CommandVersion is the newest command version this release knows, and the one its leaders propose.
const CommandVersion = 1

// sweepMax is how many expired outcomes one command drops: more than one, so that they never pile up.
const sweepMax = 8

// Machine applies the system group's commands. It holds no state of its own.
type Machine struct{}

// New makes a Machine.
func New() *Machine { return &Machine{} }

// Reset does nothing: the machine caches nothing.
func (m *Machine) Reset() {}

// Spans are the raw keys of the system group's rows.
func (m *Machine) Spans(pebble.Reader) ([]cluster.KeySpan, error) {
	return []cluster.KeySpan{span()}, nil
}

// Apply applies committed commands in order to b, an indexed batch, and returns
// one encoded metapb.SysResult per entry. What a command may not do, malformed
// ones included, is a refusal in its result. An error means that this replica
// must stop: its rows are damaged, or the command is of a version that this
// release does not know.
func (m *Machine) Apply(b *pebble.Batch, entries []cluster.Entry) ([][]byte, error) {
	results := make([][]byte, 0, len(entries))
	for i := range entries {
		res, err := applyOne(b, &entries[i])
		if err != nil {
			return nil, err
		}
		data, err := res.MarshalVT()
		if err != nil {
			return nil, errs.Wrap(errs.Other, "sysstate.apply", "result", err)
		}
		results = append(results, data)
	}
	return results, nil
}

// tx is one command at work.
type tx struct {
	b     *pebble.Batch
	cmd   *metapb.SysCommand
	now   int64            // the group's time, unix ms
	store *metapb.SysStore // nil before the store is born
	res   *metapb.SysResult
	moved bool // the topology changed
	dirty bool // the store row changed otherwise
	conf  bool // what gateways hold under a lease changed
}

// refusal is what a command may not do: it goes into the result.
type refusal struct {
	kind   errs.Kind
	detail string
}

func (r *refusal) Error() string { return r.kind.String() + ": " + r.detail }

func refuse(kind errs.Kind, format string, args ...any) error {
	return &refusal{kind, fmt.Sprintf(format, args...)}
}

func applyOne(b *pebble.Batch, e *cluster.Entry) (*metapb.SysResult, error) {
	t := &tx{b: b, cmd: &metapb.SysCommand{}, res: &metapb.SysResult{}}
	if err := t.begin(e); err != nil {
		return nil, err
	}
	if err := t.cmd.UnmarshalVT(e.Data); err != nil {
		// Nothing of it can be trusted, not even its id.
		return t.finish(refuse(errs.InvalidRequest, "not a command"))
	}
	switch {
	case t.cmd.Version > CommandVersion:
		return nil, errs.Newf(errs.NotImplemented, "sysstate.apply", fmt.Sprintf("entry %d", e.Index),
			"command version %d, this release knows up to %d: run the newer release on this node", t.cmd.Version, CommandVersion)
	case t.cmd.Version == 0 || len(t.cmd.Id) != len(storage.CommandID{}):
		return t.finish(refuse(errs.InvalidRequest, "a command needs a version and an id of 16 bytes"))
	}
	old, err := t.outcome()
	if err != nil || old != nil {
		return old, err
	}
	if t.late() {
		return t.finish(refuse(errs.TooLate, "the command was issued too long ago to know whether it is a repeat, or ahead of the group's time"))
	}
	res, err := t.finish(t.run())
	if err != nil {
		return nil, err
	}
	return res, t.remember()
}

// late reports whether the command must be refused because an outcome of it may have been
// forgotten, or could not be kept for as long as it may be repeated.
func (t *tx) late() bool {
	ms, keep := t.cmd.IssuedMs, storage.OutcomeRetention.Milliseconds()
	return ms != 0 && (ms < t.now-keep || ms > keep && ms-keep > t.now)
}

// begin reads the clock and the store row and moves the clock on.
func (t *tx) begin(e *cluster.Entry) error {
	clock := &metapb.GroupClock{}
	if _, err := get(t.b, key(kindClock), clock); err != nil {
		return err
	}
	t.now = max(clock.TimeMs, e.TimeMS)
	if t.now != clock.TimeMs {
		clock.TimeMs = t.now
		if err := put(t.b, key(kindClock), clock); err != nil {
			return err
		}
	}
	store := &metapb.SysStore{}
	ok, err := get(t.b, key(kindStore), store)
	if ok {
		t.store = store
	}
	return err
}

// finish turns what a command's handler answered into the result and writes the
// store row if needed. It passes on only errors that stop the replica.
func (t *tx) finish(err error) (*metapb.SysResult, error) {
	var r *refusal
	switch {
	case err == nil:
		t.res.Ok = true
	case errors.As(err, &r):
		t.res.Kind, t.res.Detail = uint32(r.kind), r.detail
	default:
		return nil, err
	}
	t.res.TimeMs = t.now
	if t.res.Bucket != nil {
		bare(t.res.Bucket) // every outcome is kept for a while, and who asks for a change does not need it
	}
	if t.store != nil {
		if t.moved {
			t.store.Version++
		}
		t.res.Version = t.store.Version
		if t.conf {
			t.store.Config++
			t.res.Config = t.store.Config
		}
		if t.moved || t.dirty || t.conf {
			if err := put(t.b, key(kindStore), t.store); err != nil {
				return nil, err
			}
		}
	}
	return t.res, nil
}

func (t *tx) run() error {
	if t.store == nil {
		if op, ok := t.cmd.Op.(*metapb.SysCommand_InitStore); ok {
			return t.birth(op.InitStore)
		}
		return refuse(errs.Unavailable, "the store is not initialised")
	}
	switch op := t.cmd.Op.(type) {
	case *metapb.SysCommand_InitStore:
		if op.InitStore.GetStoreId() != t.store.Id {
			return refuse(errs.Foreign, "this is store %s", t.store.Id)
		}
		return nil
	case *metapb.SysCommand_PutDrive:
		return t.putDrive(op.PutDrive.GetDrive())
	case *metapb.SysCommand_SetDriveState:
		return t.setDriveState(op.SetDriveState)
	case *metapb.SysCommand_ReplaceDrive:
		return t.replaceDrive(op.ReplaceDrive)
	case *metapb.SysCommand_DriveStarted:
		return t.driveStarted(op.DriveStarted)
	case *metapb.SysCommand_PutPgs:
		return t.putPGs(op.PutPgs.GetPgs())
	case *metapb.SysCommand_UpdatePg:
		return t.updatePG(op.UpdatePg)
	case *metapb.SysCommand_PutGroup:
		return t.putGroup(op.PutGroup.GetGroup())
	case *metapb.SysCommand_NewGroup:
		return t.newGroup()
	case *metapb.SysCommand_PutRanges:
		return t.putRanges(op.PutRanges.GetRanges())
	case *metapb.SysCommand_CreateBucket:
		return t.createBucket(op.CreateBucket.GetBucket())
	case *metapb.SysCommand_SetBucketState:
		return t.setBucketState(op.SetBucketState)
	case *metapb.SysCommand_SetBucketConfig:
		return t.setBucketConfig(op.SetBucketConfig)
	case *metapb.SysCommand_BucketRowsDone:
		return t.bucketRowsDone(op.BucketRowsDone)
	case *metapb.SysCommand_RemoveBucket:
		return t.removeBucket(op.RemoveBucket.GetBucket())
	case *metapb.SysCommand_PutTarget:
		return t.putTarget(op.PutTarget)
	case *metapb.SysCommand_RemoveTarget:
		return t.removeTarget(op.RemoveTarget)
	}
	return t.runNodes()
}

// outcome is the answer to a repeat, or nil for a command seen first.
func (t *tx) outcome() (*metapb.SysResult, error) {
	row := &metapb.OutcomeRow{}
	ok, err := get(t.b, outcomeKey(t.cmd.Id), row)
	if err != nil || !ok || row.AtMs+storage.OutcomeRetention.Milliseconds() < t.now {
		return nil, err
	}
	res := &metapb.SysResult{}
	if err := res.UnmarshalVT(row.Result); err != nil {
		return nil, corrupt(outcomeKey(t.cmd.Id), err)
	}
	if _, create := t.cmd.Op.(*metapb.SysCommand_CreateBucket); create && res.Ok && res.Bucket != nil {
		// The creator wants to know how far it came.
		now := &metapb.SysBucket{}
		if ok, err := get(t.b, bucketKey(res.Bucket.Id), now); err != nil {
			return nil, err
		} else if ok {
			bare(now)
			res.Bucket = now
		}
	}
	return res, nil
}

// remember writes the command's outcome and drops a few that expired.
func (t *tx) remember() error {
	old := &metapb.OutcomeRow{}
	if ok, err := get(t.b, outcomeKey(t.cmd.Id), old); err != nil {
		return err
	} else if ok { // expired, not yet swept
		if err := t.b.Delete(ageKey(old.AtMs, t.cmd.Id), nil); err != nil {
			return err
		}
	}
	data, err := t.res.MarshalVT()
	if err != nil {
		return err
	}
	at := max(t.now, t.cmd.IssuedMs) // it outlives the time in which a repeat is let in
	if err := put(t.b, outcomeKey(t.cmd.Id), &metapb.OutcomeRow{AtMs: at, Result: data}); err != nil {
		return err
	}
	if err := t.b.Set(ageKey(at, t.cmd.Id), nil, nil); err != nil {
		return err
	}
	return t.sweep()
}

func (t *tx) sweep() error {
	horizon := t.now - storage.OutcomeRetention.Milliseconds()
	if horizon <= 0 {
		return nil
	}
	var expired [][]byte
	err := scan(t.b, key(kindAge), ageKey(horizon, nil), func(k, _ []byte) (bool, error) {
		if len(k) != 2+8+len(storage.CommandID{}) {
			return false, corrupt(k, errors.New("wrong length"))
		}
		expired = append(expired, slices.Clone(k))
		return len(expired) < sweepMax, nil
	})
	if err != nil {
		return err
	}
	for _, k := range expired {
		if err := t.b.Delete(k, nil); err != nil {
			return err
		}
		if err := t.b.Delete(outcomeKey(k[10:]), nil); err != nil {
			return err
		}
	}
	return nil
}

// message is a generated record.
type message interface {
	MarshalVT() ([]byte, error)
	UnmarshalVT([]byte) error
}

func corrupt(k []byte, err error) error {
	return errs.Wrap(errs.Corrupt, "sysstate", fmt.Sprintf("row %q", k), err)
}

// get reads the row under k into m and reports whether there is one.
func get(r pebble.Reader, k []byte, m message) (bool, error) {
	v, closer, err := r.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, errs.Wrap(errs.DriveFailed, "sysstate", fmt.Sprintf("row %q", k), err)
	}
	defer closer.Close()
	// UnmarshalVT copies what it keeps.
	if err := m.UnmarshalVT(v); err != nil {
		return false, corrupt(k, err)
	}
	return true, nil
}

// has reports whether there is a row under k.
func has(r pebble.Reader, k []byte) (bool, error) {
	_, closer, err := r.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, errs.Wrap(errs.DriveFailed, "sysstate", fmt.Sprintf("row %q", k), err)
	}
	return true, closer.Close()
}

func put(b *pebble.Batch, k []byte, m message) error {
	v, err := m.MarshalVT()
	if err != nil {
		return err
	}
	return b.Set(k, v, nil)
}

// scan calls fn for the rows in [start, end) in order until it answers false. fn must not keep k and v nor write to r.
func scan(r pebble.Reader, start, end []byte, fn func(k, v []byte) (bool, error)) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return errs.Wrap(errs.DriveFailed, "sysstate", "scan", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return errs.Wrap(errs.DriveFailed, "sysstate", "scan", err)
		}
		if more, err := fn(it.Key(), v); err != nil || !more {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return errs.Wrap(errs.DriveFailed, "sysstate", "scan", err)
	}
	return nil
}

// rows calls fn for every row of a kind, decoded anew into what mk returns.
func rows[M message](r pebble.Reader, kind byte, mk func() M, fn func(M) error) error {
	start, end := kindSpan(kind)
	return scan(r, start, end, func(k, v []byte) (bool, error) {
		m := mk()
		if err := m.UnmarshalVT(v); err != nil {
			return false, corrupt(k, err)
		}
		return true, fn(m)
	})
}

// sameDrive reports whether two encoded drive ids are equal; both nil and empty are none.
func sameDrive(a, b []byte) bool { return bytes.Equal(a, b) }
