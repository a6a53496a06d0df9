package status

import (
	"fmt"
	"io"
	"time"
)

// Simulation is what lifecycle rules would do in a bucket at a time, with what is stored now.
type Simulation struct {
	Bucket  string            `json:"bucket"`
	At      time.Time         `json:"at"`
	Day     string            `json:"day"`     // how long a day is to rules
	Applied bool              `json:"applied"` // the rules are those that the bucket has; else others that were given
	Rows    int64             `json:"rows"`    // versions, delete markers and uploads that were looked at
	Seconds float64           `json:"seconds"` // that took
	Rules   []SimulatedRule   `json:"rules"`   // in their order
	Total   []SimulatedAction `json:"total"`   // by action over all rules
}

// SimulatedRule is a rule and what it would do. An object is only counted for the rule that would act on it.
type SimulatedRule struct {
	Rule     string            `json:"rule"`
	Disabled bool              `json:"disabled,omitempty"`
	Actions  []SimulatedAction `json:"actions"`
}

// SimulatedAction is one way in which a rule would act.
type SimulatedAction struct {
	// Action is "expire" (the object is removed), "expire to marker" (a delete marker goes on top and the bytes stay), "remove noncurrent",
	// "remove marker", "abort upload" or "transition".
	Action        string             `json:"action"`
	Class         string             `json:"class,omitempty"` // of a transition
	Count         int64              `json:"count"`
	Bytes         int64              `json:"bytes"`           // of the versions, or of the parts of uploads
	EarlyByteDays float64            `json:"early_byte_days"` // bytes times the days that they leave their class before its minimum
	DrivesBefore  int64              `json:"drives_before"`   // bytes on drives of what is counted here, estimated
	DrivesAfter   int64              `json:"drives_after"`    // and afterwards
	Examples      []SimulatedExample `json:"examples,omitempty"`
}

// SimulatedExample is a version or upload that would be acted on.
type SimulatedExample struct {
	Key     string    `json:"key"`
	Version string    `json:"version"` // or upload id
	Size    int64     `json:"size"`
	Class   string    `json:"class"`
	Due     time.Time `json:"due"`
}

// SimulationProgress is how far a simulation has come.
type SimulationProgress struct {
	Rows int64 `json:"rows"`
}

// Print writes the simulation for people.
func (s *Simulation) Print(w io.Writer) {
	of := "the rules that it has"
	if !s.Applied {
		of = "rules that are not applied"
	}
	fmt.Fprintf(w, "bucket %s at %s by %s: %s looked at in %s; nothing was changed\n",
		s.Bucket, s.At.UTC().Format(time.RFC3339), of, count(int(s.Rows), "row"), seconds(s.Seconds))
	for _, r := range s.Rules {
		switch {
		case r.Disabled:
			fmt.Fprintf(w, "\nRULE %q (disabled)\n", r.Rule)
			continue
		case len(r.Actions) == 0:
			fmt.Fprintf(w, "\nRULE %q: nothing is due\n", r.Rule)
			continue
		}
		fmt.Fprintf(w, "\nRULE %q\n", r.Rule)
		printActions(w, r.Actions)
		for _, a := range r.Actions {
			for _, e := range a.Examples {
				fmt.Fprintf(w, "    %s %q version %s: %s, %s, due since %s\n", a.name(), e.Key, e.Version, Bytes(e.Size), e.Class, e.Due.UTC().Format(time.RFC3339))
			}
		}
	}
	fmt.Fprintln(w, "\nALL RULES")
	if len(s.Total) == 0 {
		fmt.Fprintln(w, "  nothing is due")
		return
	}
	printActions(w, s.Total)
}

func (a *SimulatedAction) name() string {
	if a.Class != "" {
		return a.Action + " to " + a.Class
	}
	return a.Action
}

func printActions(w io.Writer, all []SimulatedAction) {
	for _, a := range all {
		fmt.Fprintf(w, "  %-32s %10d  %10s  on drives %s -> %s", a.name(), a.Count, Bytes(a.Bytes), Bytes(a.DrivesBefore), Bytes(a.DrivesAfter))
		if a.EarlyByteDays > 0 {
			fmt.Fprintf(w, "  early by %s GB-days", gbDays(a.EarlyByteDays))
		}
		fmt.Fprintln(w)
	}
}
