package s3api

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/storage/errs"
)

// Destinations are the targets of events as PutBucketNotificationConfiguration needs them.
type Destinations interface {
	// Announce asks targets whether they would take events (target.Target.Check), and sends each that would the message body, S3's test event of
	// a bucket, as event "TestEvent" without a key. Names come once each; 1 to 100 of them. It ends after 10 s at the latest, what
	// has not answered by then has failed. All are asked, whatever the others say, and none is sent anything unless all
	// would take it. A *DestinationError names those that do not exist, that would not take it, or that did not; any other
	// error is of the machinery. Called concurrently.
	Announce(ctx context.Context, bucket string, targets []string, body []byte) error
}

// DestinationError says which targets cannot be sent events.
type DestinationError struct {
	Failed []FailedDestination // at least one
}

// FailedDestination is a target that cannot be sent events, and why, for who runs the store: a few words without secrets. They may have
// addresses that are nobody else's business, so no answer of S3 has them.
type FailedDestination struct {
	Target, Reason string
	Unknown        bool // there is no target of that name
}

func (e *DestinationError) Error() string {
	var b strings.Builder
	for i, f := range e.Failed {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(f.Target + ": " + f.Reason)
	}
	return b.String()
}

// skipValidationHeader asks not to ask the destinations.
const skipValidationHeader = "X-Amz-Skip-Destination-Validation"

// skipsValidation reads that header.
func (q *request) skipsValidation() (bool, error) {
	switch v := q.hdr(skipValidationHeader); {
	case v == "", strings.EqualFold(v, "false"):
		return false, nil
	case strings.EqualFold(v, "true"):
		return true, nil
	default:
		return false, badNotification(strings.ToLower(skipValidationHeader), v, "The value of this header is true or false.")
	}
}

func badNotification(name, value, message string) error {
	return s3err.New(s3err.InvalidArgument, message, s3err.Field{Name: "ArgumentName", Value: name}, s3err.Field{Name: "ArgumentValue", Value: clip(value)})
}

func putBucketNotification(q *request) (*response, error) {
	skip, err := q.skipsValidation()
	if err != nil {
		return nil, err
	}
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	cfg, err := notificationConfig(doc)
	if err != nil {
		return nil, err
	}
	if !skip {
		if err := q.announce(cfg); err != nil {
			return nil, err
		}
	}
	err = q.h.backend.PutBucketNotification(q.r.Context(), q.acct, q.bucket, cfg)
	var unknown *errs.Error
	if errs.Is(err, errs.NotFound) && errors.As(err, &unknown) {
		err = unreachable([]invalidDestination{{unknown.Detail, unknownDestination(unknown.Detail)}})
	}
	if err != nil {
		return nil, err
	}
	return q.ok(), nil
}

// notificationConfig reads a NotificationConfiguration and makes the one that is kept; nil if it is empty.
func notificationConfig(doc []byte) (*metapb.NotificationConfig, error) {
	sent, err := s3xml.ParseNotification(doc)
	var many *s3xml.TooMany
	switch {
	case errors.As(err, &many):
		return nil, badNotification("NotificationConfiguration", strconv.Itoa(many.Max+1), "A bucket has at most "+strconv.Itoa(many.Max)+" notification configurations.")
	case err != nil:
		return nil, xmlError(err)
	}
	asked := make([]notification.Asked, len(sent.Rules))
	for i, r := range sent.Rules {
		asked[i] = notification.Asked{Kind: r.Kind, ID: r.ID, ARN: r.ARN, Events: r.Events, Filters: r.Filters}
	}
	cfg, err := notification.Config(asked, sent.EventBridge, newRuleID)
	var invalid *notification.Invalid
	var unsupported *notification.Unsupported
	switch {
	case errors.As(err, &invalid):
		return nil, badNotification(invalid.Name, invalid.Value, invalid.Message)
	case errors.As(err, &unsupported):
		return nil, s3err.New(s3err.NotImplemented, "The event "+clip(unsupported.Event)+" implies functionality that is not implemented.", s3err.Field{Name: "Event", Value: clip(unsupported.Event)})
	}
	return cfg, err
}

// announce asks the destinations of a configuration and sends them the test event, once it is certain that who asks may put it. As in S3 that is
// all of them, whichever the bucket had already.
func (q *request) announce(cfg *metapb.NotificationConfig) error {
	names := targetsOf(cfg)
	if q.h.cfg.Destinations == nil || len(names) == 0 {
		return nil
	}
	if _, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket); err != nil {
		return err
	}
	body := notification.TestMessage(q.bucket, q.id, q.h.cfg.HostID, q.h.cfg.Now().UnixMilli())
	err := q.h.cfg.Destinations.Announce(q.r.Context(), q.bucket, names, body)
	var failed *DestinationError
	if !errors.As(err, &failed) {
		return err
	}
	for _, f := range failed.Failed {
		q.h.cfg.Logger.Warn("a destination of events fails", "bucket", q.bucket, "target", f.Target, "request", q.id, "error", f.Reason)
	}
	var arns []invalidDestination
	for _, rule := range cfg.Rules {
		arn, _ := notification.ParseARN(rule.Arn)
		i := slices.IndexFunc(failed.Failed, func(f FailedDestination) bool { return f.Target == arn.Target() })
		if i < 0 || slices.ContainsFunc(arns, func(d invalidDestination) bool { return d.arn == rule.Arn }) {
			continue
		}
		why := "The destination does not answer, or refuses: run cairn events target test " + arn.Target()
		if failed.Failed[i].Unknown {
			why = unknownDestination(rule.Arn)
		}
		arns = append(arns, invalidDestination{rule.Arn, why})
	}
	return unreachable(arns)
}

// targetsOf are the names of the targets that the rules of a configuration name, once each in order of the rules.
func targetsOf(cfg *metapb.NotificationConfig) (names []string) {
	for _, rule := range cfg.GetRules() {
		arn, _ := notification.ParseARN(rule.Arn) // it was checked
		if name := arn.Target(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// unknownDestination says that what an ARN names does not exist.
func unknownDestination(arn string) string {
	what := "destination"
	switch parsed, _ := notification.ParseARN(arn); parsed.Kind {
	case metapb.NotificationRule_KIND_TOPIC:
		what = "destination topic"
	case metapb.NotificationRule_KIND_QUEUE:
		what = "destination queue"
	case metapb.NotificationRule_KIND_FUNCTION:
		what = "destination Lambda function"
	}
	return "The " + what + " does not exist"
}

// invalidDestination is a destination that cannot be sent events, and what who put the configuration is told of it.
type invalidDestination struct{ arn, why string }

// unreachable is S3's answer to destinations that cannot be sent events. It numbers them, and its "null" stands for nothing.
func unreachable(failed []invalidDestination) error {
	e := s3err.New(s3err.InvalidArgument, "Unable to validate the following destination configurations")
	for i, f := range failed {
		n := strconv.Itoa(i + 1)
		e.Fields = append(e.Fields, s3err.Field{Name: "ArgumentName" + n, Value: f.arn + ", null"}, s3err.Field{Name: "ArgumentValue" + n, Value: clip(f.why)})
	}
	return e
}

func getBucketNotification(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	q.document("NotificationConfiguration")
	q.out.Notification(b.Notification)
	q.out.Close("NotificationConfiguration")
	return q.ok(), nil
}
