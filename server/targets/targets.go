// Package targets knows which kinds of targets there are, what each can be told, and opens them.
//
// # Settings
//
// All that a target can be told is text, under names in lower case with dashes. The same thing has the same name wherever there is it: timeout is
// always a duration as 10s, and what begins a TLS connection is tls, ca-file and so on for every kind. An empty value counts as none.
//
// # Secrets
//
// Settings that are secrets are given apart from the others. They are kept sealed with AES-256-GCM under a key of the store, bound to
// the names of the target and of the setting, so that nobody can move a sealed value to where it would be sent to somebody else. Errors
// of this package name secrets and never say what they are.
package targets

import (
	"errors"
	"fmt"
	"strings"

	"cairn/proto/metapb"
	"cairn/server/target"
	"cairn/storage/errs"
)

// Limits of a target.
const (
	NameMax    = 80       // characters of its name
	SettingMax = 64 << 10 // bytes of one setting or secret
)

// Setting is something that a kind of target can be told.
type Setting struct {
	Name     string // lower case with dashes, as in --set NAME=VALUE
	Help     string
	Secret   bool // never shown, and kept sealed
	Required bool
	Default  string
}

// Kind is a kind of target.
type Kind struct {
	Name     string
	Help     string
	Settings []Setting // in the order in which people should read them
}

// LogKind is the kind of targets whose events are kept and never sent.
const LogKind = "log"

// Kinds are all kinds, by name.
func Kinds() []Kind {
	known := kinds()
	all := make([]Kind, len(known))
	for i, k := range known {
		all[i] = k.Kind
	}
	return all
}

// Validate reports what is wrong with a target's name, kind, settings or secrets, in words that say what to do. It dials nothing. Errors are InvalidArgument.
func Validate(t *metapb.SysTarget, secrets map[string]string) error {
	_, err := check(t, secrets)
	if err != nil {
		return errs.New(errs.InvalidArgument, "target", t.GetName(), err.Error())
	}
	return nil
}

// Open makes a target ready; it dials nothing, or tolerates that nobody is there. A target of kind log is nil.
func Open(t *metapb.SysTarget, secrets map[string]string) (target.Target, error) {
	a, err := check(t, secrets)
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "target", t.GetName(), err.Error())
	}
	if a == nil {
		return nil, nil
	}
	to, err := a.open()
	if err != nil {
		return nil, errs.New(errs.InvalidArgument, "target", t.GetName(), err.Error())
	}
	return to, nil
}

// check answers the adapter that the target is for, checked; nil for log.
func check(t *metapb.SysTarget, secrets map[string]string) (*adapter, error) {
	if !word(t.GetName()) {
		return nil, fmt.Errorf("give the name as 1 to %d letters, digits, dots, underscores and hyphens, and not as . or ..: ARNs end with it", NameMax)
	}
	if t.AgeMaxMs < 0 {
		return nil, errors.New("the time that an event may wait is negative")
	}
	if _, ok := metapb.WhenFull_name[int32(t.WhenFull)]; !ok {
		return nil, errors.New("what happens when the queue is full is either drop or hold")
	}
	k, err := kindOf(t.Kind)
	if err != nil {
		return nil, err
	}
	v, err := read(k, t, secrets)
	if err != nil || k.adapter == nil {
		return nil, err
	}
	a := k.adapter(v)
	if v.err != nil {
		return nil, v.err
	}
	return a, a.validate()
}

func kindOf(name string) (*kind, error) {
	var names []string
	for _, k := range kinds() {
		if k.Name == name {
			return &k, nil
		}
		names = append(names, k.Name)
	}
	return nil, fmt.Errorf("there is no kind %.40q%s; kinds are %s", name, meant(name, names), strings.Join(names, ", "))
}

// word tells whether a text can be a target's name. URLs with "." or ".." would lead elsewhere.
func word(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > NameMax {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// read collects what a target of a kind is told, and refuses what the kind does not know.
func read(k *kind, t *metapb.SysTarget, secrets map[string]string) (*values, error) {
	v := &values{kind: k, given: make(map[string]string, len(t.Settings)+len(secrets))}
	seen := make(map[string]bool, len(t.Settings))
	for _, kv := range t.Settings {
		if seen[kv.Name] {
			return nil, fmt.Errorf("the setting %.40q is there twice: remove one", kv.Name)
		}
		seen[kv.Name] = true
		s, err := k.setting(kv.Name)
		switch {
		case err != nil:
			return nil, err
		case s.Secret:
			return nil, fmt.Errorf("%s is a secret: give it as one, and not among the settings, which are shown", s.Name)
		case len(kv.Value) > SettingMax:
			return nil, fmt.Errorf("%s is longer than %d bytes", s.Name, SettingMax)
		}
		v.given[s.Name] = kv.Value
	}
	for name, value := range secrets {
		s, err := k.setting(name)
		switch {
		case err != nil:
			return nil, err
		case !s.Secret:
			return nil, fmt.Errorf("%s is no secret: give it among the settings", s.Name)
		case len(value) > SettingMax:
			return nil, fmt.Errorf("%s is longer than %d bytes", s.Name, SettingMax)
		}
		v.given[s.Name] = value
	}
	for _, s := range k.Settings {
		if s.Required && v.given[s.Name] == "" {
			how := "setting"
			if s.Secret {
				how = "secret"
			}
			return nil, fmt.Errorf("the %s %s is missing: %s", how, s.Name, s.Help)
		}
	}
	return v, nil
}

// setting finds a setting by its name.
func (k *kind) setting(name string) (Setting, error) {
	names := make([]string, len(k.Settings))
	for i, s := range k.Settings {
		if s.Name == name {
			return s, nil
		}
		names[i] = s.Name
	}
	if len(names) == 0 {
		return Setting{}, fmt.Errorf("a target of kind %s has no settings: remove %.40q", k.Name, name)
	}
	return Setting{}, fmt.Errorf("a target of kind %s has no setting %.40q%s; it has %s", k.Name, name, meant(name, names), strings.Join(names, ", "))
}

// meant asks whether the names nearest to a wrong one were meant; empty if none is near.
func meant(wrong string, names []string) string {
	wrong = strings.ToLower(strings.ReplaceAll(wrong, "_", "-"))
	if len(wrong) > 40 {
		return ""
	}
	best := max(2, len(wrong)/3) + 1
	var near []string
	for _, n := range names {
		switch d := distance(wrong, n); {
		case d < best:
			best, near = d, []string{n}
		case d == best && len(near) > 0:
			near = append(near, n)
		}
	}
	if len(near) == 0 {
		return ""
	}
	return ": is " + strings.Join(near, " or ") + " meant?"
}

// distance is Levenshtein's: how many characters must be changed, put in or taken out.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner = row[j+1]
			row[j+1] = min(cost, row[j]+1, corner+1)
		}
	}
	return row[len(b)]
}
