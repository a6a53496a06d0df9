package linear

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

type kind uint8

const (
	get kind = iota
	put
	putNew   // If-None-Match: *
	putMatch // If-Match
	del
	listed // what a listing showed of one key
)

func (k kind) String() string {
	return [...]string{"get", "put", "put-new", "put-match", "delete", "list"}[k]
}

type input struct {
	kind   kind
	key    string
	value  Value // written
	expect Value // of putMatch
}

type outcome uint8

const (
	open    outcome = iota // never answered: may have happened, may still happen
	done                   // success; of a read, output.value is what was seen
	refused                // the condition was not met
)

type output struct {
	outcome outcome
	value   Value
}

// never is the time of an answer that did not come.
const never = math.MaxInt64

// Recorder keeps a history. Safe for concurrent use.
type Recorder struct {
	mu     sync.Mutex
	clock  int64 // counts requests and answers: an order finer than any clock's
	ops    []porcupine.Operation
	values map[string]Value // by ETag, of all puts begun
	last   Value
	broken []error
}

// NewRecorder makes an empty history.
func NewRecorder() *Recorder { return &Recorder{values: map[string]Value{}} }

// newValue is one that was never used.
func (r *Recorder) newValue() Value {
	r.mu.Lock()
	r.last++
	v := r.last
	r.mu.Unlock()
	etag := v.ETag()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.values[etag] = v
	return v
}

func (r *Recorder) begin() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	return r.clock
}

// end records an operation; open writes are kept, open reads are not.
func (r *Recorder) end(client int, began int64, in input, out output) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	r.addLocked(client, began, r.clock, in, out)
}

func (r *Recorder) addLocked(client int, began, ended int64, in input, out output) {
	if out.outcome == open {
		if in.kind == get || in.kind == listed {
			return
		}
		ended = never
	}
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: in, Call: began, Output: out, Return: ended})
}

// endList records what a listing said of each of the keys.
func (r *Recorder) endList(client int, began int64, keys []string, etags map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	for _, key := range keys {
		var v Value
		if etag, ok := etags[key]; ok {
			if v = r.values[etag]; v == 0 {
				r.broken = append(r.broken, fmt.Errorf("key %q is listed with ETag %q, which nobody wrote", key, etag))
				continue
			}
		}
		r.addLocked(client, began, r.clock, input{kind: listed, key: key}, output{outcome: done, value: v})
	}
	for key := range etags {
		if !slices.Contains(keys, key) {
			r.broken = append(r.broken, fmt.Errorf("key %q is listed, which nobody wrote", key))
		}
	}
}

func (r *Recorder) breaks(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = append(r.broken, err)
}

// Counts are the operations kept and, of them, the writes whose outcome is open.
func (r *Recorder) Counts() (all, unanswered int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range r.ops {
		if op.Return == never {
			unanswered++
		}
	}
	return len(r.ops), unanswered
}

// ErrUndecided is that no verdict was found in time: shorter histories or fewer open outcomes help.
var ErrUndecided = errors.New("no verdict on the history in time")

// Check is nil if the history can be explained. Porcupine gets at most bound for
// it, on the real clock: call it outside a synctest bubble. With CAIRN_LINEAR_DIR set, a history
// that is wrong is left there as a web page.
func (r *Recorder) Check(bound time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.broken) > 0 {
		return errors.Join(r.broken...)
	}
	ops := bounded(r.ops)
	m := model()
	verdict, info := porcupine.CheckOperationsVerbose(m, ops, bound)
	switch verdict {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("%w: %d operations, %v", ErrUndecided, len(ops), bound)
	}
	if dir := os.Getenv("CAIRN_LINEAR_DIR"); dir != "" {
		if err := porcupine.VisualizePath(m, info, filepath.Join(dir, "history.html")); err != nil {
			return fmt.Errorf("not linearizable; the picture could not be drawn: %w", err)
		}
	}
	return errors.New("not linearizable:\n" + explain(m, ops))
}

// bounded gives open writes the earliest end that can be told: a value that was
// seen has been written before its first sight ended. It spares porcupine much.
func bounded(history []porcupine.Operation) []porcupine.Operation {
	seen := map[Value]int64{}
	saw := func(v Value, at int64) {
		if old, ok := seen[v]; v != 0 && at != never && (!ok || at < old) {
			seen[v] = at
		}
	}
	for _, op := range history {
		in, out := op.Input.(input), op.Output.(output)
		switch {
		case in.kind == get || in.kind == listed:
			saw(out.value, op.Return)
		case in.kind == putMatch && out.outcome == done:
			saw(in.expect, op.Return)
		}
	}
	ops := slices.Clone(history)
	for i := range ops {
		in := ops[i].Input.(input)
		if at, ok := seen[in.value]; ok && ops[i].Return == never && in.value != 0 {
			ops[i].Return = at
		}
	}
	return ops
}

// explain prints the operations on the first key that cannot be explained, up to
// the first answer that makes it so.
func explain(m porcupine.Model, ops []porcupine.Operation) string {
	for _, part := range m.Partition(ops) {
		if porcupine.CheckOperationsTimeout(m, part, 5*time.Second) != porcupine.Illegal {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(min(a.Return, never-1) - min(b.Return, never-1)) })
		n, lo := len(part), 0
		for lo < n { // the least prefix, by time of answer, that is wrong; what was under way then counts as open
			mid := (lo + n) / 2
			if porcupine.CheckOperationsTimeout(m, prefix(part, mid+1), time.Second) == porcupine.Illegal {
				n = mid
			} else {
				lo = mid + 1
			}
		}
		var b strings.Builder
		for _, op := range part[max(0, n-30):min(len(part), n+1)] {
			fmt.Fprintf(&b, "  %6d to %6d  client %d  %s\n", op.Call, op.Return, op.ClientId, m.DescribeOperation(op.Input, op.Output))
		}
		return b.String()
	}
	return "  (no single key is at fault within the time for it)"
}

func prefix(part []porcupine.Operation, n int) []porcupine.Operation {
	out := slices.Clone(part[:min(n, len(part))])
	if len(out) == 0 {
		return out
	}
	until := out[len(out)-1].Return
	for _, op := range part[len(out):] {
		if in := op.Input.(input); op.Call < until && in.kind != get && in.kind != listed {
			op.Output, op.Return = output{}, never
			out = append(out, op)
		}
	}
	return out
}

// model is one key: its state is the value it has.
func model() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, op := range history {
				key := op.Input.(input).key
				byKey[key] = append(byKey[key], op)
			}
			var parts [][]porcupine.Operation
			for _, p := range byKey {
				parts = append(parts, p)
			}
			return parts
		},
		Init:  func() any { return Value(0) },
		Equal: func(a, b any) bool { return a == b },
		Hash:  func(s any) uint64 { return uint64(s.(Value)) },
		Step: func(state, in, out any) (bool, any) {
			ok, next := step(state.(Value), in.(input), out.(output))
			return ok, next
		},
		DescribeOperation: describe,
		DescribeState:     func(s any) string { return fmt.Sprintf("value %d", s) },
	}
}

// step is what S3 means.
func step(state Value, in input, out output) (ok bool, next Value) {
	holds, next := true, in.value // of the condition; next is 0 for a delete
	switch in.kind {
	case get, listed:
		return out.value == state, state
	case putNew:
		holds = state == 0
	case putMatch:
		holds = state == in.expect
	}
	switch {
	case out.outcome == done:
		return holds, next
	case out.outcome == refused:
		return !holds, state
	case holds: // open: it happens now; one that never happens is put at the end
		return true, next
	}
	return true, state
}

func describe(in, out any) string {
	i, o := in.(input), out.(output)
	s := fmt.Sprintf("%s %s", i.kind, i.key)
	if i.kind == putMatch {
		s += fmt.Sprintf(" if %d", i.expect)
	}
	if i.value != 0 {
		s += fmt.Sprintf(" = %d", i.value)
	}
	switch {
	case o.outcome == open:
		return s + ": no answer"
	case o.outcome == refused:
		return s + ": refused"
	case i.kind == get || i.kind == listed:
		if o.value == 0 {
			return s + ": nothing"
		}
		return fmt.Sprintf("%s: %d", s, o.value)
	}
	return s + ": done"
}
