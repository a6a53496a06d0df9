package s3xml

import "cairn/proto/metapb"

// Limits of a NotificationConfiguration.
const (
	NotificationRulesMax  = 100
	notificationEventsMax = 64 // of a rule; more than S3 has
	filterRulesMax        = 16 // of a rule; one of each name makes sense
)

// Notification is the body of PutBucketNotificationConfiguration as sent. An empty one removes what there is.
type Notification struct {
	Rules       []NotificationRule // in their order
	EventBridge bool
}

// NotificationRule is a TopicConfiguration, QueueConfiguration or CloudFunctionConfiguration as sent: none of what it says is
// looked at but that it is there.
type NotificationRule struct {
	Kind    metapb.NotificationRule_Kind
	ID      string // "" if it was absent
	ARN     string
	Events  []string // at least one
	Filters []*metapb.KV
}

// notificationElements are the names of a rule of a kind: of itself, and of its ARN.
func notificationElements(kind metapb.NotificationRule_Kind) (rule, arn string) {
	switch kind {
	case metapb.NotificationRule_KIND_TOPIC:
		return "TopicConfiguration", "Topic"
	case metapb.NotificationRule_KIND_QUEUE:
		return "QueueConfiguration", "Queue"
	}
	return "CloudFunctionConfiguration", "CloudFunction"
}

// notificationKind is the kind of rule that an element is; KIND_UNKNOWN for all others.
func notificationKind(element string) metapb.NotificationRule_Kind {
	switch element {
	case "TopicConfiguration":
		return metapb.NotificationRule_KIND_TOPIC
	case "QueueConfiguration":
		return metapb.NotificationRule_KIND_QUEUE
	case "CloudFunctionConfiguration":
		return metapb.NotificationRule_KIND_FUNCTION
	}
	return metapb.NotificationRule_KIND_UNKNOWN
}

// ParseNotification reads a NotificationConfiguration and checks its form; whether there are such events, filters and destinations is
// not looked at. Errors: *SyntaxError; *TooMany rules; *Unsupported for the InvocationRole of old.
func ParseNotification(b []byte) (n Notification, err error) {
	r := NewReader(b)
	if err := r.Root("NotificationConfiguration"); err != nil {
		return Notification{}, err
	}
	many := func(name string) bool { return notificationKind(name) != metapb.NotificationRule_KIND_UNKNOWN }
	err = eachChildOf(r, many, func(r *Reader, name string) error {
		if name == "EventBridgeConfiguration" {
			n.EventBridge = true
			return eachChild(r, func(r *Reader, name string) error { return r.fail("unknown element %q", name) })
		}
		kind := notificationKind(name)
		if kind == metapb.NotificationRule_KIND_UNKNOWN {
			return r.fail("unknown element %q", name)
		}
		if len(n.Rules) == NotificationRulesMax {
			return &TooMany{"configuration", NotificationRulesMax}
		}
		rule, err := parseNotificationRule(r, kind)
		n.Rules = append(n.Rules, rule)
		return err
	})
	if err == nil {
		err = r.End()
	}
	if err != nil {
		return Notification{}, err
	}
	return n, nil
}

func parseNotificationRule(r *Reader, kind metapb.NotificationRule_Kind) (rule NotificationRule, err error) {
	rule.Kind = kind
	_, arn := notificationElements(kind)
	err = eachChildOf(r, func(name string) bool { return name == "Event" }, func(r *Reader, name string) (err error) {
		switch {
		case name == "Id":
			rule.ID, err = r.Text()
		case name == arn:
			rule.ARN, err = word(r)
		case name == "Event":
			if len(rule.Events) == notificationEventsMax {
				return r.fail("more than %d events", notificationEventsMax)
			}
			var event string
			event, err = word(r)
			rule.Events = append(rule.Events, event)
		case name == "Filter":
			rule.Filters, err = parseNotificationFilter(r)
		case name == "InvocationRole" && kind == metapb.NotificationRule_KIND_FUNCTION:
			err = &Unsupported{name}
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	if err == nil && (rule.ARN == "" || len(rule.Events) == 0) {
		err = r.fail("a configuration needs %s and Event", arn)
	}
	return rule, err
}

func parseNotificationFilter(r *Reader) (filters []*metapb.KV, err error) {
	err = eachChild(r, func(r *Reader, name string) error {
		if name != "S3Key" {
			return r.fail("unknown element %q", name)
		}
		return eachChildOf(r, func(name string) bool { return name == "FilterRule" }, func(r *Reader, name string) error {
			if name != "FilterRule" {
				return r.fail("unknown element %q", name)
			}
			if len(filters) == filterRulesMax {
				return r.fail("more than %d filter rules", filterRulesMax)
			}
			f, err := parseFilterRule(r)
			filters = append(filters, f)
			return err
		})
	})
	return filters, err
}

func parseFilterRule(r *Reader) (*metapb.KV, error) {
	f := &metapb.KV{}
	value := false
	err := eachChild(r, func(r *Reader, name string) (err error) {
		switch name {
		case "Name":
			f.Name, err = word(r)
		case "Value":
			value = true
			f.Value, err = r.Text()
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	if err == nil && (f.Name == "" || !value) {
		err = r.fail("a FilterRule needs Name and Value")
	}
	return f, err
}

// Notification writes what is inside a NotificationConfiguration. cfg may be nil.
func (w *Writer) Notification(cfg *metapb.NotificationConfig) {
	for _, rule := range cfg.GetRules() {
		element, arn := notificationElements(rule.Kind)
		w.Open(element)
		w.Text("Id", rule.Id)
		w.Text(arn, rule.Arn)
		for _, event := range rule.Events {
			w.Text("Event", event)
		}
		if rule.Prefix != "" || rule.Suffix != "" {
			w.Open("Filter")
			w.Open("S3Key")
			w.filterRule("Prefix", rule.Prefix)
			w.filterRule("Suffix", rule.Suffix)
			w.Close("S3Key")
			w.Close("Filter")
		}
		w.Close(element)
	}
	if cfg.GetEventBridge() {
		w.Open("EventBridgeConfiguration")
		w.Close("EventBridgeConfiguration")
	}
}

// filterRule writes a FilterRule, its name as S3 answers it, unless there is no value.
func (w *Writer) filterRule(name, value string) {
	if value == "" {
		return
	}
	w.Open("FilterRule")
	w.Raw("Name", name)
	w.Text("Value", value)
	w.Close("FilterRule")
}
