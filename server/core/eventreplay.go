package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/delivery"
	"cairn/server/status"
	"cairn/server/target"
	"cairn/storage"
	"cairn/storage/errs"
)

// ReplayQuery says what is sent again.
type ReplayQuery struct {
	Target string
	From   string // as TailQuery's; empty is "begin"
	Bucket string // empty: all
	Dead   bool   // the dead letters, instead of what is kept; each goes once it is taken
}

// How a replay sends.
const (
	replayBatch = 100
	replayTries = 6 // of one batch of which nothing is taken
	replayPause = time.Second
	deadPage    = 200
)

// Replay sends kept events to a target again, straight from this process and in order, up to what there is when it begins; what is delivered
// meanwhile goes its own way between them. It calls progress, if not nil, after each batch, and answers how far it came, also with an
// error. Errors: NotFound (no such target), NoSuchBucket, InvalidArgument, InvalidRequest (the target fails, and why).
func (e *Events) Replay(ctx context.Context, q ReplayQuery, progress func(status.ReplayProgress)) (p status.ReplayProgress, err error) {
	t, err := e.target(ctx, q.Target)
	if err != nil {
		return p, err
	}
	m := &eventMerge{meta: e.meta, limit: replayBatch, query: rangestate.EventQuery{Target: t.Name}}
	if q.Bucket != "" {
		b, err := e.c.bucketNamed(ctx, q.Bucket)
		if err != nil {
			return p, err
		}
		m.query.Bucket = storage.BucketID(b.Id)
	}
	open, err := e.open(t)
	if err != nil {
		return p, err
	}
	if open == nil {
		return p, errs.New(errs.InvalidArgument, "events", t.Name, "a target of this kind is sent nothing: read its events with cairn events tail")
	}
	defer open.Close()
	r := &replay{e: e, row: t, to: open, progress: progress}
	if q.Dead {
		err = r.dead(ctx, m.query.Bucket)
	} else {
		if q.From == "" {
			q.From = "begin"
		}
		if err = e.from(ctx, m, q.From); err == nil {
			err = r.kept(ctx, m)
		}
	}
	return r.p, err
}

// replay is one under way.
type replay struct {
	e        *Events
	row      *metapb.SysTarget
	to       target.Target
	progress func(status.ReplayProgress)
	p        status.ReplayProgress
}

// kept sends what the outboxes keep.
func (r *replay) kept(ctx context.Context, m *eventMerge) (err error) {
	if m.ends, err = m.now(ctx); err != nil {
		return err
	}
	var batch []target.Message
	var at Position // behind the batch
	send := func() error {
		_, err := r.send(ctx, batch)
		if err != nil {
			return err
		}
		batch = batch[:0]
		r.tell(at, m.lost)
		return nil
	}
	for {
		n, err := m.round(ctx, func(g cluster.GroupID, it *rangestate.EventItem) error {
			batch = append(batch, delivery.Message(*it, r.row.Name, r.row.CloudEvents))
			if len(batch) < replayBatch {
				return nil
			}
			at = m.behind(g, it)
			return send()
		})
		if err != nil {
			return err
		}
		if n == 0 {
			at = m.at
			return send()
		}
	}
}

// tell says how far it is.
func (r *replay) tell(at Position, lost bool) {
	if at != nil {
		r.p.Position = at.String()
	}
	r.p.Lost = r.p.Lost || lost
	if r.progress != nil {
		r.progress(r.p)
	}
}

// send sends messages in order until each is taken or refused for good, and answers which were refused. A target that fails is tried again for half a minute.
func (r *replay) send(ctx context.Context, batch []target.Message) (refused map[int]string, err error) {
	for at, tries := 0, 1; at < len(batch); tries++ {
		acked, err := r.to.Send(ctx, batch[at:])
		if acked = min(max(acked, 0), len(batch)-at); acked > 0 {
			tries = 0
		}
		at += acked
		r.p.Sent += int64(acked)
		var no *target.Rejected
		switch {
		case err == nil && acked > 0:
			continue
		case errors.As(err, &no) && at < len(batch):
			if refused == nil {
				refused = map[int]string{}
			}
			refused[at] = no.Error()
			at, tries = at+1, 0
			r.p.Refused++
			continue
		case err == nil:
			err = errors.New("it takes nothing and does not say why")
		case at == len(batch):
			return refused, nil
		}
		if tries >= replayTries {
			return refused, errs.New(errs.InvalidRequest, "replay", r.row.Name, fmt.Sprintf("the target fails: %v; go on from the last position once it is well again", err))
		}
		select {
		case <-time.After(replayPause << max(tries-1, 0)):
		case <-ctx.Done():
			return refused, context.Cause(ctx)
		}
	}
	return refused, nil
}

// dead sends the dead letters of all ranges again, and drops those that are taken.
func (r *replay) dead(ctx context.Context, bucket storage.BucketID) error {
	for _, g := range r.e.meta.AllRanges() {
		for after := uint64(0); ; {
			page, err := r.e.deadPage(ctx, g, r.row.Name, after, deadPage)
			if err != nil {
				return err
			}
			if len(page) == 0 {
				break
			}
			after = page[len(page)-1].Seq
			if err := r.deadSome(ctx, g, page, bucket); err != nil {
				return err
			}
		}
	}
	return nil
}

// deadSome sends dead letters of one range.
func (r *replay) deadSome(ctx context.Context, g cluster.GroupID, page []rangestate.DeadEvent, bucket storage.BucketID) error {
	var seqs []uint64
	var batch []target.Message
	for _, d := range page {
		if row := d.Row.GetEvent(); row != nil && (bucket == 0 || row.Bucket == uint64(bucket)) {
			seqs = append(seqs, d.Seq)
			batch = append(batch, delivery.Message(rangestate.EventItem{Seq: d.Seq, Row: row}, r.row.Name, r.row.CloudEvents))
		}
	}
	before := r.p.Sent + r.p.Refused
	refused, err := r.send(ctx, batch)
	done := int(r.p.Sent + r.p.Refused - before) // also with an error: what was taken must not come again
	op := &metapb.DropDeadEventsOp{Target: r.row.Name}
	for i := range done {
		if _, ok := refused[i]; !ok {
			op.Seqs = append(op.Seqs, seqs[i])
		}
	}
	if len(op.Seqs) > 0 {
		_, derr := r.e.meta.Propose(context.WithoutCancel(ctx), g, &metapb.RangeCommand{Op: &metapb.RangeCommand_DropDeadEvents{DropDeadEvents: op}})
		err = errors.Join(err, derr)
	}
	r.tell(nil, false)
	return err
}

// deadPage are dead letters of a range behind a sequence.
func (e *Events) deadPage(ctx context.Context, g cluster.GroupID, name string, after uint64, limit int) (page []rangestate.DeadEvent, err error) {
	err = e.meta.Read(ctx, g, func(v rangestate.Reader) (err error) {
		page, err = v.DeadEvents(name, after, limit)
		return err
	})
	return page, err
}

// DeadEvents calls fn with the dead letters of a target, or of all, up to max, also of targets that are gone. An error of fn ends it. NotFound:
// no such target, and no dead letters of one.
func (e *Events) DeadEvents(ctx context.Context, name string, max int, fn func(*status.DeadEvent) error) error {
	names, err := e.withDead(ctx)
	if err != nil {
		return err
	}
	if name != "" {
		if !slices.Contains(names, name) {
			_, err := e.target(ctx, name) // it has none, or is not there
			return err
		}
		names = []string{name}
	}
	for _, name := range names {
		for _, g := range e.meta.AllRanges() {
			for after := uint64(0); max > 0; {
				page, err := e.deadPage(ctx, g, name, after, min(max, deadPage))
				if err != nil {
					return err
				}
				for _, d := range page {
					line := &status.DeadEvent{
						Target: name, At: time.UnixMilli(d.Row.AtMs).UTC(), Error: d.Row.Error, Event: recordOf(&rangestate.EventItem{Seq: d.Seq, Row: orNone(d.Row.Event)}),
					}
					if err := fn(line); err != nil {
						return err
					}
					after = d.Seq
				}
				if max -= len(page); len(page) == 0 {
					break
				}
			}
		}
	}
	return nil
}

// withDead are the names of targets, also of such that are gone, for which dead letters are kept. Unavailable: a range cannot be read.
func (e *Events) withDead(ctx context.Context) (names []string, err error) {
	s, partial := e.sums(ctx, false, 0)
	if partial != "" {
		return nil, errs.New(errs.Unavailable, "events", "", partial)
	}
	for name, l := range s.loads {
		if l.DeadKept > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func orNone(row *metapb.EventRow) *metapb.EventRow {
	if row == nil {
		return &metapb.EventRow{}
	}
	return row
}
