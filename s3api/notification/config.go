package notification

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf16"

	"cairn/proto/metapb"
)

// Limits of a configuration, S3's.
const (
	RulesMax  = 100
	idMax     = 255  // UTF-16 code units
	filterMax = 1024 // bytes of a prefix or suffix
)

// Invalid is what S3 answers InvalidArgument to, with the name and the value of the argument.
type Invalid struct{ Message, Name, Value string }

func (e *Invalid) Error() string { return fmt.Sprintf("%s (%s %q)", e.Message, e.Name, e.Value) }

// Unsupported names an event that S3 has and that cairn can never send: NotImplemented.
type Unsupported struct{ Event string }

func (e *Unsupported) Error() string { return "events of type " + e.Event + " are not implemented" }

// Asked is a rule as somebody asks for it.
type Asked struct {
	Kind    metapb.NotificationRule_Kind
	ID      string // "": it gets one
	ARN     string
	Events  []string
	Filters []*metapb.KV // the names of any case
}

// Config checks what is asked for and makes the configuration that is kept; nil if that is nothing. newID answers another id of at most 255
// characters at each call. Whether the destinations exist is not looked at. Errors: *Invalid, *Unsupported.
func Config(asked []Asked, eventBridge bool, newID func() string) (*metapb.NotificationConfig, error) {
	if len(asked) > RulesMax {
		return nil, &Invalid{fmt.Sprintf("A bucket has at most %d notification configurations.", RulesMax), "NotificationConfiguration", fmt.Sprint(len(asked))}
	}
	if len(asked) == 0 && !eventBridge {
		return nil, nil
	}
	cfg := &metapb.NotificationConfig{EventBridge: eventBridge}
	wanted := make([]set, len(asked))
	ids := make(map[string]bool, len(asked))
	for i := range asked {
		rule, types, err := check(&asked[i])
		if err != nil {
			return nil, err
		}
		if rule.Id == "" {
			rule.Id = newID()
		}
		if ids[rule.Id] {
			return nil, &Invalid{"The ids of notification configurations must differ.", "Id", rule.Id}
		}
		ids[rule.Id] = true
		wanted[i] = types
		cfg.Rules = append(cfg.Rules, rule)
	}
	if err := overlap(cfg.Rules, wanted); err != nil {
		return nil, err
	}
	return cfg, nil
}

// check checks one rule by itself. types is what its events name.
func check(a *Asked) (rule *metapb.NotificationRule, types set, err error) {
	rule = &metapb.NotificationRule{Id: a.ID, Kind: a.Kind, Arn: a.ARN, Events: slices.Clone(a.Events)}
	if len(utf16.Encode([]rune(a.ID))) > idMax {
		return nil, 0, &Invalid{fmt.Sprintf("An id has at most %d characters.", idMax), "Id", a.ID}
	}
	arn, ok := ParseARN(a.ARN)
	if !ok {
		return nil, 0, &Invalid{"The ARN is not one of an SNS topic, an SQS queue or a Lambda function.", "ARN", a.ARN}
	}
	if arn.Kind != a.Kind {
		return nil, 0, &Invalid{"The ARN is of another kind than the configuration that it stands in.", "ARN", a.ARN}
	}
	if len(a.Events) == 0 {
		return nil, 0, &Invalid{"A notification configuration needs an event.", "Event", ""}
	}
	for _, event := range a.Events {
		found, err := events(event)
		if err != nil {
			return nil, 0, err
		}
		if types&found != 0 {
			return nil, 0, &Invalid{"Configurations overlap: an event stands twice in one of them.", "Event", event}
		}
		types |= found
	}
	return rule, types, filter(rule, a.Filters)
}

// filter gives a rule its prefix and suffix.
func filter(rule *metapb.NotificationRule, filters []*metapb.KV) error {
	for _, f := range filters {
		var into *string
		switch strings.ToLower(f.GetName()) {
		case "prefix":
			into = &rule.Prefix
		case "suffix":
			into = &rule.Suffix
		default:
			return &Invalid{"The name of a filter rule is prefix or suffix.", "FilterRule.Name", f.GetName()}
		}
		switch value := f.GetValue(); {
		case *into != "":
			return &Invalid{"A filter has at most one rule of each name.", "FilterRule.Name", f.GetName()}
		case value == "":
			return &Invalid{"The value of a filter rule is empty.", "FilterRule.Value", value}
		case len(value) > filterMax:
			return &Invalid{fmt.Sprintf("The value of a filter rule has at most %d bytes.", filterMax), "FilterRule.Value", value}
		default:
			*into = value
		}
		if _, ok := literal(*into); !ok {
			return &Invalid{"A percent sign in the value of a filter rule begins no character.", "FilterRule.Value", *into}
		}
	}
	return nil
}

// literal is what of a key a filter's value stands for: a plus is a space, and a percent sign begins the two hex digits of a byte. ok is false
// where it does not.
func literal(value string) (s string, ok bool) {
	s, err := url.QueryUnescape(value)
	return s, err == nil
}

// span is the keys that a rule's filter lets through, those with its prefix and suffix.
type span struct{ prefix, suffix string }

// spanOf is the span of a rule; ok is false if its filter has no meaning.
func spanOf(rule *metapb.NotificationRule) (s span, ok bool) {
	prefix, ok := literal(rule.GetPrefix())
	suffix, also := literal(rule.GetSuffix())
	return span{prefix, suffix}, ok && also
}

// meets reports whether there is a key that two spans have in common: the longer prefix followed by the longer suffix is one if there is any.
func (a span) meets(b span) bool {
	prefix := strings.HasPrefix(a.prefix, b.prefix) || strings.HasPrefix(b.prefix, a.prefix)
	suffix := strings.HasSuffix(a.suffix, b.suffix) || strings.HasSuffix(b.suffix, a.suffix)
	return prefix && suffix
}

// overlap refuses rules that want one event of one key. wanted is what the events of each name.
func overlap(rules []*metapb.NotificationRule, wanted []set) error {
	spans := make([]span, len(rules))
	for i, a := range rules {
		spans[i], _ = spanOf(a) // filters were checked
		for j, b := range rules[:i] {
			if wanted[i]&wanted[j] != 0 && spans[i].meets(spans[j]) {
				return &Invalid{"Configurations overlap: two of them name an event in common, and both their prefixes and their suffixes can belong to one key.",
					"Event", strings.Join(b.Events, ",") + "; " + strings.Join(a.Events, ",")}
			}
		}
	}
	return nil
}

// ARN is the name of a destination.
type ARN struct {
	Kind            metapb.NotificationRule_Kind
	Region, Account string // may be empty
	Name            string // of the topic, queue or function; of a function perhaps with : and a version
}

// Target is the name of what is meant, without a function's version.
func (a ARN) Target() string {
	if a.Kind == metapb.NotificationRule_KIND_FUNCTION {
		name, _, _ := strings.Cut(a.Name, ":")
		return name
	}
	return a.Name
}

// Lengths of the parts of an ARN, bytes.
const (
	arnPartMax = 64
	arnNameMax = 256
)

// ParseARN reads arn:aws:sns|sqs:REGION:ACCOUNT:NAME or arn:aws:lambda:REGION:ACCOUNT:function:NAME[:VERSION], of any of AWS's
// partitions; ok is false for anything else.
func ParseARN(s string) (arn ARN, ok bool) {
	parts := strings.SplitN(s, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[1] != "aws" && !strings.HasPrefix(parts[1], "aws-") {
		return ARN{}, false
	}
	arn = ARN{Region: parts[3], Account: parts[4], Name: parts[5]}
	switch parts[2] {
	case "sns":
		arn.Kind = metapb.NotificationRule_KIND_TOPIC
	case "sqs":
		arn.Kind = metapb.NotificationRule_KIND_QUEUE
	case "lambda":
		arn.Kind = metapb.NotificationRule_KIND_FUNCTION
		if arn.Name, ok = strings.CutPrefix(arn.Name, "function:"); !ok {
			return ARN{}, false
		}
	default:
		return ARN{}, false
	}
	name, version, has := arn.Name, "", false
	if arn.Kind == metapb.NotificationRule_KIND_FUNCTION {
		if name, version, has = strings.Cut(arn.Name, ":"); has && !word(version, "-_$", arnNameMax) {
			return ARN{}, false
		}
	}
	if name == "" || version == "" && has || !word(name, "-_.", arnNameMax) || !word(parts[1], "-", arnPartMax) || !word(arn.Region, "-", arnPartMax) || !word(arn.Account, "-_", arnPartMax) {
		return ARN{}, false
	}
	return arn, true
}

// word reports whether s has no more bytes than that, all of them ASCII letters, digits or of others.
func word(s, others string, bytesMax int) bool {
	return len(s) <= bytesMax && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(others, r))
	})
}
