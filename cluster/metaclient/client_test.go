package metaclient

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// scripted answers proposals to each group in turn: an error of a kind, or with 0 success, or a refusal by the state machine.
type scripted struct {
	answers map[cluster.GroupID][]answer
	ids     map[string]bool // of the commands
}

type answer struct {
	kind    errs.Kind
	refusal bool // by the state machine
}

func (s *scripted) Propose(_ context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	cmd := &metapb.RangeCommand{}
	if err := cmd.UnmarshalVT(data); err != nil {
		return nil, err
	}
	s.ids[string(cmd.Id)] = true
	a := s.answers[g][0]
	s.answers[g] = s.answers[g][1:]
	if a.kind != 0 && !a.refusal {
		return nil, errs.New(a.kind, "script", "", "")
	}
	res := &metapb.RangeResult{Ok: a.kind == 0, Kind: uint32(a.kind)}
	for range cmd.GetDeleteObjects().GetEntries() {
		res.Entries = append(res.Entries, &metapb.RangeResult{Ok: true})
	}
	return res.MarshalVT()
}

func (s *scripted) Read(context.Context, cluster.GroupID, func(pebble.Reader) error) error {
	panic("no reads")
}

func (s *scripted) ReadSnapshot(context.Context, cluster.GroupID, func(pebble.Reader, <-chan struct{}) error) error {
	panic("no reads")
}

// newScripted has a range for the keys below "m" of bucket 1 and one for the others.
func newScripted(first, second []answer) (*scripted, *Client) {
	s := &scripted{answers: map[cluster.GroupID][]answer{2: first, 3: second}, ids: map[string]bool{}}
	cut := cluster.Pos{Bucket: 1, Key: "m"}
	topo := &cluster.Topology{Groups: map[cluster.GroupID]cluster.Group{
		2: {ID: 2, Bounds: cluster.Bounds{End: cut}}, 3: {ID: 3, Bounds: cluster.Bounds{Start: cut}},
	}}
	return s, New(Config{Groups: s, Topology: func() *cluster.Topology { return topo }, Now: time.Now, Rand: rand.Reader})
}

// Once the fate of a try is unknown, only the state machine can say that the command did not happen.
func TestUnknownOutcomes(t *testing.T) {
	refused := func(k errs.Kind) answer { return answer{k, true} }
	failed := func(k errs.Kind) answer { return answer{kind: k} }
	const unknown, busy = errs.OutcomeUnknown, errs.Busy
	for _, c := range []struct {
		answers []answer
		want    errs.Kind
	}{
		{[]answer{{}}, 0},
		{[]answer{failed(unknown), {}}, 0},
		{[]answer{failed(errs.NotLeader), failed(unknown), failed(errs.NotLeader), {}}, 0},
		{[]answer{failed(busy)}, busy},
		{[]answer{failed(errs.NotLeader), failed(busy)}, busy},
		{[]answer{failed(unknown), failed(busy)}, unknown},
		{[]answer{failed(unknown), failed(errs.NotLeader), failed(errs.Timeout)}, unknown},
		{[]answer{failed(unknown), failed(errs.Closed)}, unknown},
		{[]answer{failed(unknown), failed(errs.DriveFull)}, unknown},
		{[]answer{failed(unknown), failed(errs.Corrupt)}, unknown},
		{[]answer{failed(unknown), refused(errs.TooLate)}, unknown},
		{[]answer{refused(errs.TooLate)}, errs.TooLate},
		{[]answer{failed(unknown), refused(errs.PreconditionFailed)}, errs.PreconditionFailed},
		{[]answer{failed(unknown), refused(errs.NoSuchBucket)}, errs.NoSuchBucket},
	} {
		t.Run(fmt.Sprint(c.answers), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s, client := newScripted(c.answers, nil)
				_, err := client.Do(t.Context(), 1, "key", &metapb.RangeCommand{Op: &metapb.RangeCommand_Tick{Tick: &metapb.TickOp{}}})
				if (err == nil) != (c.want == 0) || err != nil && errs.KindOf(err) != c.want {
					t.Errorf("%v, want kind %q", err, c.want)
				}
				if len(s.answers[2]) > 0 || len(s.ids) != 1 {
					t.Errorf("%d answers are left, %d commands were sent", len(s.answers[2]), len(s.ids))
				}
			})
		})
	}
}

// Of a bulk delete over several ranges the one whose fate is unknown counts.
func TestUnknownDeletes(t *testing.T) {
	for range 20 { // ranges are asked in no order
		bubble.Test(t, func(t *testing.T) {
			_, client := newScripted([]answer{{kind: errs.OutcomeUnknown}, {kind: errs.Busy}}, []answer{{kind: errs.Busy}, {}})
			op := &metapb.DeleteObjectsOp{Bucket: 1}
			for _, key := range []storage.Key{"a", "z"} {
				op.Entries = append(op.Entries, &metapb.DeleteEntry{Key: []byte(key)})
			}
			if _, err := client.Delete(t.Context(), nil, op); !errs.Is(err, errs.OutcomeUnknown) {
				t.Errorf("a delete of which one half may have happened: %v", err)
			}
		})
	}
}
