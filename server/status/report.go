package status

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// ProblemsMax is how many problems a Report lists; more are only counted.
const ProblemsMax = 10000

// Progress is how far a verification has come.
type Progress struct {
	Phase   string `json:"phase"` // what is looked at, for people
	Objects int64  `json:"objects"`
	Chunks  int64  `json:"chunks"`
	Shards  int64  `json:"shards"`
	Bytes   int64  `json:"bytes"` // read and checked on drives
	Found   int64  `json:"found"` // problems so far
}

// Report is what a verification found. It is clean if Found is 0.
type Report struct {
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Counts   []Count   `json:"counts"`             // what was checked, in order of printing
	Found    int64     `json:"found"`              // all problems, also those not listed
	Problems []Problem `json:"problems,omitempty"` // at most ProblemsMax
	Notes    []string  `json:"notes,omitempty"`    // what is no problem but good to know
}

// Count is how many of something were checked.
type Count struct {
	What string `json:"what"` // "objects", "bytes on drives"
	N    int64  `json:"n"`
}

// Problem is one thing that is not as it should be.
type Problem struct {
	Kind    string `json:"kind"` // "shard missing", "shard corrupt", "wrong zone", "unreferenced", "metadata", ...
	Bucket  string `json:"bucket,omitempty"`
	Key     string `json:"key,omitempty"`
	Version string `json:"version,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Drive   string `json:"drive,omitempty"` // path or id
	Detail  string `json:"detail"`          // what exactly, and what to do next
}

// String is the problem in one line. Keys are quoted, for they may hold anything.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Kind)
	if p.Bucket != "" || p.Key != "" {
		fmt.Fprintf(&b, ": %s/%q", p.Bucket, p.Key)
	}
	if p.Version != "" {
		fmt.Fprintf(&b, " version %s", p.Version)
	}
	if p.Drive != "" {
		fmt.Fprintf(&b, " on drive %s", p.Drive)
	}
	if p.Zone != "" {
		fmt.Fprintf(&b, " in zone %s", p.Zone)
	}
	if p.Detail != "" {
		b.WriteString(": " + p.Detail)
	}
	return b.String()
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) {
	for _, p := range r.Problems {
		fmt.Fprintf(w, "PROBLEM  %s\n", p)
	}
	if more := r.Found - int64(len(r.Problems)); more > 0 {
		fmt.Fprintf(w, "PROBLEM  and %d more\n", more)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note     %s\n", n)
	}
	counts := make([]string, len(r.Counts))
	for i, c := range r.Counts {
		counts[i] = fmt.Sprintf("%d %s", c.N, c.What)
	}
	if len(counts) > 0 {
		fmt.Fprintf(w, "checked  %s in %s\n", strings.Join(counts, ", "), r.Finished.Sub(r.Started).Round(time.Millisecond))
	}
	if r.Found == 0 {
		fmt.Fprintln(w, "verify   clean: everything has all its shards, in the right zones, with the right checksums")
	} else {
		fmt.Fprintf(w, "verify   %d problems\n", r.Found)
	}
}
