package status

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"
)

// Lifecycle is what one node's lifecycle worker did and has to do, in the ranges that are led there. Fields may be added; none changes its meaning.
type Lifecycle struct {
	Node         string          `json:"node"`
	Day          string          `json:"day,omitempty"` // how long a day is to rules
	Running      bool            `json:"running"`       // a round is under way
	Rounds       int64           `json:"rounds"`        // that are over, since the start
	Ended        *time.Time      `json:"ended,omitempty"`
	Rows         int64           `json:"rows"`          // seen in the latest round that is over
	Seconds      float64         `json:"round_seconds"` // that it took
	Expired      int64           `json:"expired"`       // current versions, since the start
	Removed      int64           `json:"removed"`       // noncurrent versions and delete markers, since the start
	Aborted      int64           `json:"aborted"`       // uploads, since the start
	Transitioned int64           `json:"transitioned"`  // versions, since the start
	Retiered     int64           `json:"retiered"`      // versions of INTELLIGENT_TIERING, since the start
	MovedBytes   int64           `json:"moved_bytes"`   // written in another class for both
	Due          int64           `json:"due"`           // actions known to be due and not done
	LagSeconds   float64         `json:"lag_seconds"`   // since when the first of them is due
	Rules        []LifecycleRule `json:"rules,omitempty"`
	Error        string          `json:"error,omitempty"` // of the latest failure; empty once a round ended without one
}

// LifecycleRule is one rule that did something or has something to do.
type LifecycleRule struct {
	Bucket     string  `json:"bucket"` // empty: rules beyond those that are told of one by one
	Rule       string  `json:"rule"`
	Done       int64   `json:"done"` // actions since the start
	Due        int64   `json:"due"`
	LagSeconds float64 `json:"lag_seconds"`
	Waiting    string  `json:"waiting,omitempty"` // why its transitions wait
}

// SortLifecycle sorts by node.
func SortLifecycle(all []Lifecycle) {
	slices.SortFunc(all, func(a, b Lifecycle) int { return cmp.Compare(a.Node, b.Node) })
}

// PrintLifecycle writes what all nodes said for people.
func PrintLifecycle(w io.Writer, all []Lifecycle, now time.Time) {
	table(w, "LIFECYCLE", func(w io.Writer) {
		fmt.Fprintln(w, "  node\texpired\tremoved\taborted\tmoved\tretiered\tdue\tlag\tlatest round")
		for _, l := range all {
			latest := "none yet"
			if l.Ended != nil {
				latest = fmt.Sprintf("%s ago: %s in %s", ago(now.Sub(*l.Ended)), count(int(l.Rows), "row"), seconds(l.Seconds))
			}
			if l.Running {
				latest += ", one under way"
			}
			fmt.Fprintf(w, "  %s\t%d\t%d\t%d\t%d (%s)\t%d\t%d\t%s\t%s\n",
				l.Node, l.Expired, l.Removed, l.Aborted, l.Transitioned, Bytes(l.MovedBytes), l.Retiered, l.Due, lag(l.Due, l.LagSeconds), latest)
		}
	})
	if slices.ContainsFunc(all, func(l Lifecycle) bool { return len(l.Rules) > 0 }) {
		table(w, "RULES", func(w io.Writer) {
			fmt.Fprintln(w, "  bucket\trule\tnode\tdone\tdue\tlag\twaiting")
			for _, l := range all {
				for _, r := range l.Rules {
					fmt.Fprintf(w, "  %s\t%s\t%s\t%d\t%d\t%s\t%s\n", cmp.Or(r.Bucket, "(others)"), r.Rule, l.Node, r.Done, r.Due, lag(r.Due, r.LagSeconds), r.Waiting)
				}
			}
		})
	}
	for _, l := range all {
		if l.Error != "" {
			fmt.Fprintf(w, "  ! %s: %s\n", l.Node, l.Error)
		}
	}
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}

func ago(d time.Duration) string { return max(0, d).Round(time.Second).String() }

func lag(due int64, s float64) string {
	if due == 0 {
		return "-"
	}
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
