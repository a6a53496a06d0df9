package status

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// EventTarget is a destination of events as it is set up. Of its secrets only the names are told.
type EventTarget struct {
	Name        string            `json:"name"`
	Kind        string            `json:"kind"`
	Settings    map[string]string `json:"settings,omitempty"`
	Secrets     []string          `json:"secrets,omitempty"`
	WhenFull    string            `json:"when_full"`             // drop or hold
	QueueMax    uint64            `json:"queue_max,omitempty"`   // events that may wait in one range; 0: the default
	MaxAge      string            `json:"max_age,omitempty"`     // empty: the default
	CloudEvents bool              `json:"cloudevents,omitempty"` // CloudEvents instead of S3's records
	Created     time.Time         `json:"created"`
	Generation  uint64            `json:"generation"` // counts its changes
}

// Events is how far the events of the store have come. Sums are as of about now.
type Events struct {
	Targets []EventLoad   `json:"targets"`           // those that are set up, and those that events are there for
	Buckets []BucketLoad  `json:"buckets,omitempty"` // by bucket and target
	More    bool          `json:"more,omitempty"`    // there are more buckets than are told of
	Kept    int64         `json:"kept"`              // events in all ranges, those that are delivered too
	Bytes   int64         `json:"bytes"`             // of them
	Workers []EventWorker `json:"workers,omitempty"` // what each node did since its start
	Partial string        `json:"partial,omitempty"` // why the sums lack something
}

// EventLoad is what waits for a target, and what became of what does not wait any more.
type EventLoad struct {
	Target        string  `json:"target"`
	Kind          string  `json:"kind,omitempty"` // empty: there is no target of that name
	Queued        int64   `json:"queued"`
	QueuedBytes   int64   `json:"queued_bytes"`
	OldestSeconds float64 `json:"oldest_seconds"` // how long the oldest of them waits
	Delivered     int64   `json:"delivered"`      // ever
	Dead          int64   `json:"dead"`           // refused by the target for good, ever
	DeadKept      int64   `json:"dead_kept"`      // of those, how many can be sent again
	Dropped       int64   `json:"dropped"`        // given up undelivered, ever
	Held          bool    `json:"held,omitempty"` // its queue is full somewhere: writes that would make another event are refused
}

// BucketLoad is EventLoad for the events of one bucket.
type BucketLoad struct {
	Bucket      string `json:"bucket"` // its number in brackets, if it is deleted
	Target      string `json:"target"`
	Queued      int64  `json:"queued"`
	QueuedBytes int64  `json:"queued_bytes"`
	Delivered   int64  `json:"delivered"`
	Dead        int64  `json:"dead"`
	Dropped     int64  `json:"dropped"`
}

// EventWorker is what one node did for a target since the start of its process.
type EventWorker struct {
	Node      string     `json:"node"`
	Target    string     `json:"target,omitempty"` // empty: the node says nothing, and Error why
	Delivered int64      `json:"delivered"`
	Failed    int64      `json:"failed"`          // calls
	Error     string     `json:"error,omitempty"` // of the latest failure; empty once it went well again
	At        *time.Time `json:"at,omitempty"`    // of that failure
	Retry     *time.Time `json:"retry,omitempty"` // when it is tried again
}

// EventLine is an event in a stream: it has either an event, or says that something was lost, or has a position alone.
type EventLine struct {
	Position string          `json:"position,omitempty"` // to go on from, behind the event
	Target   string          `json:"target,omitempty"`   // that a rule names
	Bridge   bool            `json:"bridge,omitempty"`   // it goes to EventBridge
	Event    json.RawMessage `json:"event,omitempty"`    // S3's record
	Lost     bool            `json:"lost,omitempty"`     // events from about here on are not kept any more; said once
}

// DeadEvent is an event that its target refused for good.
type DeadEvent struct {
	Target string          `json:"target"`
	At     time.Time       `json:"at"` // when it was refused
	Error  string          `json:"error"`
	Event  json.RawMessage `json:"event"` // S3's record
}

// ReplayProgress is how far a replay is.
type ReplayProgress struct {
	Sent     int64  `json:"sent"`               // events that the target took
	Refused  int64  `json:"refused"`            // by the target, for good
	Position string `json:"position,omitempty"` // to go on from; not of dead letters
	Lost     bool   `json:"lost,omitempty"`     // some of what was asked for is not kept any more
}

// Sort puts everything in order of names.
func (e *Events) Sort() {
	slices.SortFunc(e.Targets, func(a, b EventLoad) int { return cmp.Compare(a.Target, b.Target) })
	slices.SortFunc(e.Buckets, func(a, b BucketLoad) int {
		return cmp.Or(cmp.Compare(a.Bucket, b.Bucket), cmp.Compare(a.Target, b.Target))
	})
	slices.SortFunc(e.Workers, func(a, b EventWorker) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Node, b.Node))
	})
}

// Print writes the whole for people.
func (e *Events) Print(w io.Writer, now time.Time) {
	if len(e.Targets) == 0 {
		fmt.Fprintln(w, "no targets, and no events for any: see cairn events target add --help")
	} else {
		PrintEventLoads(w, e.Targets)
	}
	if len(e.Buckets) > 0 {
		table(w, "BUCKETS", func(w io.Writer) {
			fmt.Fprintln(w, "  bucket\ttarget\tqueued\tdelivered\tdead\tdropped")
			for _, b := range e.Buckets {
				fmt.Fprintf(w, "  %s\t%s\t%s\t%d\t%d\t%d\n", b.Bucket, b.Target, queuedText(b.Queued, b.QueuedBytes), b.Delivered, b.Dead, b.Dropped)
			}
			if e.More {
				fmt.Fprintln(w, "  (and more buckets)")
			}
		})
	}
	fmt.Fprintf(w, "\nkept for tail and replay: %s, %s\n", count(int(e.Kept), "event"), Bytes(e.Bytes))
	for _, r := range e.Workers {
		if r.Error == "" {
			continue
		}
		fmt.Fprintf(w, "  ! node %s", r.Node)
		if r.Target != "" {
			fmt.Fprintf(w, ", target %s", r.Target)
		}
		if r.At != nil {
			fmt.Fprintf(w, ", %s ago", ago(now.Sub(*r.At)))
		}
		fmt.Fprintf(w, ": %s", r.Error)
		if r.Retry != nil {
			fmt.Fprintf(w, "; tried again in %s", ago(r.Retry.Sub(now)))
		}
		fmt.Fprintln(w)
	}
	if e.Partial != "" {
		fmt.Fprintf(w, "  ! the figures lack something: %s\n", e.Partial)
	}
}

// defaultBus is the target of what buckets send to EventBridge, which need not be there.
const defaultBus = "default"

// PrintEventLoads writes a table of targets.
func PrintEventLoads(w io.Writer, loads []EventLoad) {
	table(w, "EVENTS", func(w io.Writer) {
		fmt.Fprintln(w, "  target\tkind\tqueued\toldest\tdelivered\tdead\tdropped\t")
		for _, t := range loads {
			oldest, note := "-", ""
			if t.Queued > 0 {
				oldest = time.Duration(t.OldestSeconds * float64(time.Second)).Round(time.Second).String()
			}
			if t.Held {
				note = "HOLDS WRITES: its queue is full"
			}
			kind := cmp.Or(t.Kind, "NO SUCH TARGET")
			if t.Kind == "" && t.Target == defaultBus {
				kind = "(not set up)"
			}
			dead := strconv.FormatInt(t.Dead, 10)
			if t.DeadKept > 0 {
				dead += fmt.Sprintf(" (%d kept)", t.DeadKept)
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\n", t.Target, kind, queuedText(t.Queued, t.QueuedBytes), oldest, t.Delivered, dead, t.Dropped, note)
		}
	})
}

func queuedText(n, bytes int64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", n, Bytes(bytes))
}

// oneLine is a setting as a row of a table can have it: of more than one line the first, and nothing of what is long and for machines.
func oneLine(value string) string {
	value = strings.TrimSpace(value)
	if strings.HasPrefix(value, "-----BEGIN ") {
		return "(PEM)"
	}
	line, _, more := strings.Cut(value, "\n")
	line = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) { // a tab would begin another column
			return ' '
		}
		return r
	}, line))
	if more {
		line += "..."
	}
	return line
}

// PrintTargets writes how targets are set up.
func PrintTargets(w io.Writer, all []EventTarget) {
	if len(all) == 0 {
		fmt.Fprintln(w, "no targets: see cairn events target add --help")
		return
	}
	table(w, "TARGETS", func(w io.Writer) {
		fmt.Fprintln(w, "  name\tkind\twhen full\tsettings")
		for _, t := range all {
			var parts []string
			for name, value := range t.Settings {
				parts = append(parts, name+"="+oneLine(value))
			}
			for _, name := range t.Secrets {
				parts = append(parts, name+"=(secret)")
			}
			sort.Strings(parts)
			if t.QueueMax > 0 {
				parts = append(parts, fmt.Sprintf("at most %d waiting in a range", t.QueueMax))
			}
			if t.MaxAge != "" {
				parts = append(parts, "given up after "+t.MaxAge)
			}
			if t.CloudEvents {
				parts = append(parts, "CloudEvents")
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", t.Name, t.Kind, t.WhenFull, strings.Join(parts, " "))
		}
	})
}
