package notification

import (
	"strings"

	"cairn/proto/metapb"
)

// Rules are a configuration made ready for many events. They are not changed once made, so they are safe for concurrent use.
type Rules struct {
	wanted [typesEnd][]entry // the rules that want a type
	bridge bool
	empty  bool
}

// entry is what a rule asks of a key, and its place in the configuration.
type entry struct {
	span
	rule int
}

// Compile makes a configuration ready. cfg may be nil, and must have been made by Config: what it says that is not known here, as
// after a return to an older version, matches nothing.
func Compile(cfg *metapb.NotificationConfig) *Rules {
	r := &Rules{bridge: cfg.GetEventBridge(), empty: !cfg.GetEventBridge()}
	for i, rule := range cfg.GetRules() {
		keys, ok := spanOf(rule)
		if !ok {
			continue
		}
		var types set
		for _, event := range rule.GetEvents() {
			found, _ := events(event) // none of what is not known
			types |= found
		}
		for t := range r.wanted {
			if types&(1<<t) != 0 {
				r.wanted[t] = append(r.wanted[t], entry{keys, i})
				r.empty = false
			}
		}
	}
	return r
}

// Empty reports whether nobody wants any event.
func (r *Rules) Empty() bool { return r.empty }

// EventBridge reports whether all events are wanted, of all keys, whatever Match says.
func (r *Rules) EventBridge() bool { return r.bridge }

// Match calls fn with the place in the configuration of each rule that wants an event of a key, in their order. Of what Config made that is
// one at most. It needs no memory.
func (r *Rules) Match(event Type, key string, fn func(rule int)) {
	if event >= typesEnd {
		return
	}
	for i := range r.wanted[event] {
		e := &r.wanted[event][i]
		if strings.HasPrefix(key, e.prefix) && strings.HasSuffix(key, e.suffix) {
			fn(e.rule)
		}
	}
}
