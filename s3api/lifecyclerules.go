package s3api

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf16"

	"cairn/proto/metapb"
	"cairn/s3api/lifecycle"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/storage"
)

// Limits of S3's lifecycle rules.
const (
	ruleIDMax          = 255        // UTF-16 code units
	ruleSizeMax        = 1000 << 40 // bytes
	newerNoncurrentMax = 100
	infrequentDaysMin  = 30 // before an object may move to an infrequent access class, and before it may move on from there
)

const day = 24 * time.Hour

func badRule(format string, args ...any) error {
	return s3err.New(s3err.InvalidRequest, fmt.Sprintf(format, args...))
}

func badRuleArgument(format string, args ...any) error {
	return s3err.New(s3err.InvalidArgument, fmt.Sprintf(format, args...))
}

// lifecycleRules reads a LifecycleConfiguration and makes the rules of it that are kept. They are what the client wrote, in its
// order; those without an ID get one.
func lifecycleRules(doc []byte) ([]*metapb.LifecycleRule, error) {
	sent, err := s3xml.ParseLifecycle(doc)
	var many *s3xml.TooMany
	switch {
	case errors.As(err, &many):
		return nil, badRule("The number of lifecycle rules must not exceed the allowed limit of %d rules.", many.Max)
	case err != nil:
		return nil, xmlError(err)
	case len(sent) == 0:
		return nil, badRule("At least one lifecycle rule must be specified.")
	}
	rules := make([]*metapb.LifecycleRule, 0, len(sent))
	ids := make(map[string]bool, len(sent))
	for i := range sent {
		rule, err := lifecycleRule(&sent[i], sent[0].Filter != nil)
		if err != nil {
			return nil, err
		}
		if ids[rule.Id] {
			return nil, badRuleArgument("Rule ID must be unique. Found same ID for more than one rule")
		}
		ids[rule.Id] = true
		rules = append(rules, rule)
	}
	return rules, nil
}

// lifecycleRule checks one rule. filters tells whether the configuration's rules have filters, or all the Prefix of old.
func lifecycleRule(sent *s3xml.LifecycleRule, filters bool) (*metapb.LifecycleRule, error) {
	switch {
	case len(utf16.Encode([]rune(sent.ID))) > ruleIDMax:
		return nil, badRuleArgument("ID length should not exceed allowed limit of %d", ruleIDMax)
	case filters && sent.Filter == nil:
		return nil, badRule("Base level prefix cannot be used in Lifecycle V2, prefixes are only supported in the Filter.")
	case !filters && sent.Filter != nil:
		return nil, badRule("Filter element can only be used in Lifecycle V2.")
	}
	rule := &metapb.LifecycleRule{Id: sent.ID, Disabled: sent.Disabled}
	if rule.Id == "" {
		rule.Id = newRuleID()
	}
	var err error
	if rule.Filter, err = lifecycleFilter(sent); err != nil {
		return nil, err
	}
	if rule.Transitions, err = lifecycleTransitions(sent.Transitions, rule.Filter, "Transition", "Days"); err != nil {
		return nil, err
	}
	if rule.NoncurrentTransitions, err = lifecycleTransitions(sent.NoncurrentTransitions, rule.Filter, "NoncurrentVersionTransition", "NoncurrentDays"); err != nil {
		return nil, err
	}
	if rule.Expiration, err = lifecycleExpiration(sent.Expiration, rule); err != nil {
		return nil, err
	}
	if rule.NoncurrentExpiration, err = noncurrentExpiration(sent.NoncurrentExpiration, rule); err != nil {
		return nil, err
	}
	if sent.AbortDays != nil {
		if *sent.AbortDays < 1 {
			return nil, badRuleArgument("'DaysAfterInitiation' for AbortIncompleteMultipartUpload action must be a positive integer")
		}
		if err := plainFilter(rule.Filter, "AbortIncompleteMultipartUpload"); err != nil {
			return nil, err
		}
		rule.AbortDays = uint32(*sent.AbortDays)
	}
	if len(rule.Transitions)+len(rule.NoncurrentTransitions) == 0 && rule.Expiration == nil && rule.NoncurrentExpiration == nil && rule.AbortDays == 0 {
		return nil, badRule("At least one action needs to be specified in a rule")
	}
	return rule, nil
}

// newRuleID draws the ID of a rule that came without one.
func newRuleID() string {
	var b [36]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func lifecycleFilter(sent *s3xml.LifecycleRule) (*metapb.LifecycleFilter, error) {
	prefix, f := sent.Prefix, &metapb.LifecycleFilter{InRule: sent.Filter == nil}
	if in := sent.Filter; in != nil {
		prefix = in.Prefix
		f.InAnd = in.And
		if err := filterTags(f, in.Tags); err != nil {
			return nil, err
		}
		if err := filterSizes(f, in); err != nil {
			return nil, err
		}
	}
	if prefix != nil {
		f.Prefix, f.HasPrefix = *prefix, true
	}
	if len(f.Prefix) > storage.KeyBytesMax {
		return nil, badRule("The maximum size of a prefix is %d", storage.KeyBytesMax)
	}
	return f, nil
}

func filterTags(f *metapb.LifecycleFilter, tags []s3xml.Tag) error {
	seen := make(map[string]bool, len(tags))
	for _, t := range tags {
		switch {
		case t.Key == "" || !tagText(t.Key, tagKeyMax):
			return badTag("The TagKey you have provided is invalid", t.Key)
		case !tagText(t.Value, tagValueMax):
			return badTag("The TagValue you have provided is invalid", t.Key)
		case seen[t.Key]:
			return badRule("Duplicate Tag Keys are not allowed.")
		}
		seen[t.Key] = true
		f.Tags = append(f.Tags, &metapb.KV{Name: t.Key, Value: t.Value})
	}
	return nil
}

func filterSizes(f *metapb.LifecycleFilter, in *s3xml.LifecycleFilter) error {
	if n := in.SizeGreater; n != nil {
		if *n < 0 || *n > ruleSizeMax {
			return badRule("'ObjectSizeGreaterThan' should be between 0 and %d.", int64(ruleSizeMax))
		}
		f.SizeGreater, f.HasSizeGreater = uint64(*n), true
	}
	if n := in.SizeLess; n != nil {
		if *n < 1 || *n > ruleSizeMax {
			return badRule("'ObjectSizeLessThan' should be between 1 and %d.", int64(ruleSizeMax))
		}
		f.SizeLess, f.HasSizeLess = uint64(*n), true
	}
	if f.HasSizeGreater && f.HasSizeLess && f.SizeLess <= f.SizeGreater {
		return badRule("'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'.")
	}
	return nil
}

// plainFilter refuses filters by what delete markers and uploads don't have.
func plainFilter(f *metapb.LifecycleFilter, action string) error {
	switch {
	case len(f.Tags) > 0:
		return badRule("%s cannot be specified with Tags.", action)
	case f.HasSizeGreater || f.HasSizeLess:
		return badRule("%s cannot be specified with Object Size.", action)
	}
	return nil
}

// midnight is a rule's date as it is kept. Dates up to the epoch are refused: there was no object yet, and none is absent.
func midnight(t time.Time) (ms int64, err error) {
	if !t.Equal(t.Truncate(day)) || t.UnixMilli() <= 0 {
		return 0, badRuleArgument("'Date' must be at midnight GMT")
	}
	return t.UnixMilli(), nil
}

// newerNoncurrent checks how many noncurrent versions an action leaves alone; 0: it does not say.
func newerNoncurrent(n *int64, f *metapb.LifecycleFilter, action string) (uint32, error) {
	switch {
	case n == nil:
		return 0, nil
	case f.InRule:
		return 0, badRule("NewerNoncurrentVersions element can only be used in Lifecycle V2.")
	case *n < 1 || *n > newerNoncurrentMax:
		return 0, badRuleArgument("'NewerNoncurrentVersions' for %s action must be between 1 and %d", action, newerNoncurrentMax)
	}
	return uint32(*n), nil
}

// lifecycleTransitions checks the transitions of one kind. field is what holds their days.
func lifecycleTransitions(sent []s3xml.LifecycleTransition, f *metapb.LifecycleFilter, action, field string) ([]*metapb.LifecycleTransition, error) {
	var out []*metapb.LifecycleTransition
	for _, in := range sent {
		t := &metapb.LifecycleTransition{StorageClass: in.StorageClass}
		class := storage.StorageClass(in.StorageClass)
		if !slices.Contains(transitionClasses(), class) {
			return nil, s3err.New(s3err.MalformedXML, "", s3err.Field{Name: "Detail", Value: "no transition leads to the storage class " + clip(in.StorageClass)})
		}
		var err error
		switch {
		case in.Date != nil:
			t.DateMs, err = midnight(*in.Date)
		case *in.Days < 0:
			err = badRuleArgument("'%s' in %s action must be nonnegative", field, action)
		case infrequent(class) && *in.Days < infrequentDaysMin:
			err = badRuleArgument("'%s' in %s action must be greater than or equal to %d for storageClass '%s'", field, action, infrequentDaysMin, class)
		default:
			t.Days = uint32(*in.Days)
		}
		if err != nil {
			return nil, err
		}
		if t.NewerNoncurrent, err = newerNoncurrent(in.NewerNoncurrent, f, action); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, transitionOrder(out, f, action, field)
}

// transitionOrder checks the transitions of a rule against each other: an object passes through their classes one after the other.
func transitionOrder(ts []*metapb.LifecycleTransition, f *metapb.LifecycleFilter, action, field string) error {
	for i, a := range ts {
		for _, b := range ts[i+1:] {
			switch {
			case (a.DateMs == 0) != (b.DateMs == 0):
				return badRule("Found mixed 'Date' and 'Days' based %s actions in lifecycle rule for %s", action, describeFilter(f))
			case a.StorageClass == b.StorageClass:
				return badRule("'StorageClass' must be different for '%s' actions in same 'Rule' with %s", action, describeFilter(f))
			}
			from, to := a, b
			if !lifecycle.MayMove(storage.StorageClass(a.StorageClass), storage.StorageClass(b.StorageClass)) {
				from, to = b, a
			}
			if !lifecycle.MayMove(storage.StorageClass(from.StorageClass), storage.StorageClass(to.StorageClass)) {
				return badRuleArgument("No '%s' leads from StorageClass '%s' to StorageClass '%s' or back: they cannot stand in one rule", action, a.StorageClass, b.StorageClass)
			}
			least, phrase := int64(1), "greater than"
			if infrequent(storage.StorageClass(from.StorageClass)) {
				least, phrase = infrequentDaysMin, fmt.Sprintf("%d days more than", infrequentDaysMin)
			}
			if from.DateMs != 0 {
				field = "Date"
			}
			if dayOf(to)-dayOf(from) < least {
				return badRuleArgument("'%s' in the '%s' action for StorageClass '%s' for %s must be %s '%s' in the '%s' action for StorageClass '%s'",
					field, action, to.StorageClass, describeFilter(f), phrase, field, action, from.StorageClass)
			}
		}
	}
	return nil
}

// dayOf is when a transition is due, in days after an object's beginning or after the epoch.
func dayOf(t *metapb.LifecycleTransition) int64 {
	if t.DateMs != 0 {
		return t.DateMs / day.Milliseconds()
	}
	return int64(t.Days)
}

// describeFilter names a rule's filter in messages as S3 does, by its prefix.
func describeFilter(f *metapb.LifecycleFilter) string {
	if f.InRule {
		return "prefix '" + clip(f.Prefix) + "'"
	}
	return "filter '(prefix=" + clip(f.Prefix) + ")'"
}

// lifecycleExpiration checks the expiration of current versions; the rule has its transitions already.
func lifecycleExpiration(sent *s3xml.LifecycleExpiration, rule *metapb.LifecycleRule) (*metapb.LifecycleExpiration, error) {
	if sent == nil {
		return nil, nil
	}
	e := &metapb.LifecycleExpiration{}
	var err error
	switch {
	case sent.DeleteMarker != nil:
		e.ExpiredDeleteMarker = *sent.DeleteMarker
		return e, plainFilter(rule.Filter, "ExpiredObjectDeleteMarker")
	case sent.Date != nil:
		if e.DateMs, err = midnight(*sent.Date); err != nil {
			return nil, err
		}
	case *sent.Days < 1:
		return nil, badRuleArgument("'Days' for Expiration action must be a positive integer")
	default:
		e.Days = uint32(*sent.Days)
	}
	for _, t := range rule.Transitions {
		switch {
		case (t.DateMs == 0) != (e.DateMs == 0):
			return nil, badRule("Found mixed 'Date' and 'Days' based Expiration and Transition actions in lifecycle rule for %s", describeFilter(rule.Filter))
		case e.DateMs != 0 && e.DateMs <= t.DateMs:
			return nil, badRuleArgument("'Date' in the Expiration action for %s must be later than 'Date' in the Transition action", describeFilter(rule.Filter))
		case e.DateMs == 0 && e.Days <= t.Days:
			return nil, badRuleArgument("'Days' in the Expiration action for %s must be greater than 'Days' in the Transition action", describeFilter(rule.Filter))
		}
	}
	return e, nil
}

// noncurrentExpiration checks that of noncurrent versions; the rule has its transitions already.
func noncurrentExpiration(sent *s3xml.LifecycleNoncurrent, rule *metapb.LifecycleRule) (*metapb.LifecycleNoncurrentExpiration, error) {
	if sent == nil {
		return nil, nil
	}
	if sent.Days < 1 {
		return nil, badRuleArgument("'NoncurrentDays' for NoncurrentVersionExpiration action must be a positive integer")
	}
	e := &metapb.LifecycleNoncurrentExpiration{Days: uint32(sent.Days)}
	for _, t := range rule.NoncurrentTransitions {
		if e.Days <= t.Days {
			return nil, badRuleArgument("'NoncurrentDays' in the NoncurrentVersionExpiration action for %s must be greater than 'NoncurrentDays' in the NoncurrentVersionTransition action", describeFilter(rule.Filter))
		}
	}
	var err error
	e.NewerNoncurrent, err = newerNoncurrent(sent.NewerNoncurrent, rule.Filter, "NoncurrentVersionExpiration")
	return e, err
}

// transitionClasses are those that a lifecycle transition can name, at S3.
func transitionClasses() []storage.StorageClass {
	return []storage.StorageClass{storage.StandardIA, storage.IntelligentTiering, storage.OnezoneIA, storage.GlacierIR, storage.Glacier, storage.DeepArchive}
}

func infrequent(c storage.StorageClass) bool {
	return c == storage.StandardIA || c == storage.OnezoneIA
}
