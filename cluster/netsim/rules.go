package netsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"cairn/cluster"
)

// RulesMax is how many rules there may be at once.
const RulesMax = 1000

// Place is where an end of a connection stands.
type Place struct {
	Node cluster.NodeID
	Zone cluster.Zone
}

// Rule says what happens to traffic between two sets of nodes. Traffic of a node
// with itself is never touched.
type Rule struct {
	// From and To are "*", "node:NAME", "zone:NAME", or one of these with "!"
	// in front for everything else. Empty is "*".
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// OneWay restricts the rule to bytes that go from From to To; else it holds for both directions.
	// A partition is always of both.
	OneWay bool `json:"one_way,omitempty"`

	Latency   Duration `json:"latency,omitempty"`               // added to each direction: half of what a round trip gets
	Jitter    Duration `json:"jitter,omitempty"`                // a random part of it is added too; order is kept
	Loss      float64  `json:"loss,omitempty"`                  // chance of each packet to be lost, 0 to 1
	Bandwidth int64    `json:"bandwidth_bytes_per_s,omitempty"` // of all connections from one node to another together; 0 is no limit
	Partition bool     `json:"partition,omitempty"`             // refused and reset
	BlackHole bool     `json:"black_hole,omitempty"`            // dropped without a word
}

// Rules are all rules at a time. Where several hold for the same traffic, latencies,
// jitters and chances of loss add up, the least bandwidth counts, and any cut cuts.
type Rules struct {
	Rules []Rule `json:"rules"`
}

// Duration is a time.Duration that is written like "1ms" in JSON.
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Parse reads rules from JSON; unknown fields are an error, no text at all is no rules.
func Parse(text []byte) (Rules, error) {
	var r Rules
	if len(bytes.TrimSpace(text)) == 0 {
		return r, nil
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Rules{}, fmt.Errorf("network rules: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Rules{}, errors.New("network rules: something follows the closing brace")
	}
	return r, r.Validate()
}

// Validate finds what is wrong with the rules.
func (r Rules) Validate() error {
	if len(r.Rules) > RulesMax {
		return fmt.Errorf("network rules: %d of them, %d at most", len(r.Rules), RulesMax)
	}
	var all []error
	for i, rule := range r.Rules {
		bad := func(format string, args ...any) {
			all = append(all, fmt.Errorf("network rule %d: %s", i+1, fmt.Sprintf(format, args...)))
		}
		for _, where := range []string{rule.From, rule.To} {
			if !validWhere(where) {
				bad("%q: want *, node:NAME or zone:NAME, with ! in front for all others", where)
			}
		}
		if rule.Latency < 0 || rule.Jitter < 0 || rule.Bandwidth < 0 {
			bad("latency, jitter and bandwidth cannot be negative")
		}
		if !(rule.Loss >= 0 && rule.Loss <= 1) {
			bad("loss is %v: want 0 to 1", rule.Loss)
		}
		if rule.Partition && rule.BlackHole {
			bad("partition and black_hole are two kinds of cut: choose one")
		}
	}
	return errors.Join(all...)
}

func validWhere(where string) bool {
	where = strings.TrimPrefix(where, "!")
	kind, name, ok := strings.Cut(where, ":")
	return where == "*" || where == "" || ok && name != "" && (kind == "node" || kind == "zone")
}

func matches(where string, p Place) bool {
	rest, negated := strings.CutPrefix(where, "!")
	kind, name, _ := strings.Cut(rest, ":")
	var is bool
	switch kind {
	case "node":
		is = string(p.Node) == name
	case "zone":
		is = string(p.Zone) == name
	default:
		is = true
	}
	return is != negated
}

// conditions are what rules come to for bytes from one node to another.
type conditions struct {
	latency, jitter time.Duration
	loss            float64
	bandwidth       int64 // bytes per second; 0 is no limit
	partition       bool
	blackHole       bool
}

// between is what holds for bytes from one place to another.
func (r Rules) between(from, to Place) (c conditions) {
	if from.Node == to.Node {
		return c
	}
	for _, rule := range r.Rules {
		ahead := matches(rule.From, from) && matches(rule.To, to)
		back := matches(rule.From, to) && matches(rule.To, from)
		if rule.Partition && (ahead || back) {
			c.partition = true
		}
		if !ahead && (rule.OneWay || !back) {
			continue
		}
		c.latency += time.Duration(rule.Latency)
		c.jitter += time.Duration(rule.Jitter)
		c.loss = min(1, c.loss+rule.Loss)
		if rule.Bandwidth > 0 && (c.bandwidth == 0 || rule.Bandwidth < c.bandwidth) {
			c.bandwidth = rule.Bandwidth
		}
		c.blackHole = c.blackHole || rule.BlackHole
	}
	return c
}
