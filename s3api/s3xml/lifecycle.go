package s3xml

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// Limits of a LifecycleConfiguration.
const (
	LifecycleRulesMax = 1000
	transitionsMax    = 20 // of one kind in a rule; each storage class can stand there once
)

// TooMany says that a document holds more of an element than S3 takes, which has an answer of its own.
type TooMany struct {
	Element string
	Max     int
}

func (e *TooMany) Error() string { return fmt.Sprintf("more than %d of %s", e.Max, e.Element) }

// LifecycleRule is a rule of a PutBucketLifecycleConfiguration as sent. What was absent is nil; exactly one of Prefix and Filter is there.
type LifecycleRule struct {
	ID                    string // "" if it was absent
	Disabled              bool
	Prefix                *string // the rule's own, as it was written once
	Filter                *LifecycleFilter
	Transitions           []LifecycleTransition
	NoncurrentTransitions []LifecycleTransition
	Expiration            *LifecycleExpiration
	NoncurrentExpiration  *LifecycleNoncurrent
	AbortDays             *int64
}

// LifecycleFilter is a rule's filter. It has at most one predicate, with And at least two.
type LifecycleFilter struct {
	Prefix                *string
	Tags                  []Tag
	SizeGreater, SizeLess *int64 // bytes
	And                   bool
}

// LifecycleTransition is a Transition, with one of Days and Date, or a NoncurrentVersionTransition, with NoncurrentDays as Days.
type LifecycleTransition struct {
	Days            *int64
	Date            *time.Time
	StorageClass    string // never empty; whether there is such a class is not looked at
	NewerNoncurrent *int64
}

// LifecycleExpiration has exactly one of its fields.
type LifecycleExpiration struct {
	Days         *int64
	Date         *time.Time
	DeleteMarker *bool
}

// LifecycleNoncurrent is a NoncurrentVersionExpiration.
type LifecycleNoncurrent struct {
	Days            int64
	NewerNoncurrent *int64
}

// ParseLifecycle reads a LifecycleConfiguration and checks its form; whether the numbers and dates make sense is not
// looked at. Errors: *SyntaxError; *TooMany rules.
func ParseLifecycle(b []byte) (rules []LifecycleRule, err error) {
	r := NewReader(b)
	if err := r.Root("LifecycleConfiguration"); err != nil {
		return nil, err
	}
	err = eachChildOf(r, func(name string) bool { return name == "Rule" }, func(r *Reader, name string) error {
		if name != "Rule" {
			return r.fail("unknown element %q", name)
		}
		if len(rules) == LifecycleRulesMax {
			return &TooMany{name, LifecycleRulesMax}
		}
		rule, err := parseLifecycleRule(r)
		rules = append(rules, rule)
		return err
	})
	if err != nil {
		return nil, err
	}
	return rules, r.End()
}

func parseLifecycleRule(r *Reader) (rule LifecycleRule, err error) {
	status := ""
	many := func(name string) bool { return name == "Transition" || name == "NoncurrentVersionTransition" }
	err = eachChildOf(r, many, func(r *Reader, name string) (err error) {
		switch name {
		case "ID":
			rule.ID, err = r.Text()
		case "Status":
			if status, err = word(r); err == nil && status != "Enabled" && status != "Disabled" {
				err = r.fail("Status is %q", status)
			}
		case "Prefix":
			rule.Prefix, err = textOf(r)
		case "Filter":
			rule.Filter, err = parseLifecycleFilter(r)
		case "Transition":
			rule.Transitions, err = parseTransition(r, rule.Transitions, false)
		case "NoncurrentVersionTransition":
			rule.NoncurrentTransitions, err = parseTransition(r, rule.NoncurrentTransitions, true)
		case "Expiration":
			rule.Expiration, err = parseExpiration(r)
		case "NoncurrentVersionExpiration":
			rule.NoncurrentExpiration, err = parseNoncurrentExpiration(r)
		case "AbortIncompleteMultipartUpload":
			rule.AbortDays, err = parseAbort(r)
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	switch {
	case err != nil:
	case status == "":
		err = r.fail("a rule without Status")
	case (rule.Prefix == nil) == (rule.Filter == nil):
		err = r.fail("a rule needs a Filter, or the Prefix that it once was")
	}
	rule.Disabled = status == "Disabled"
	return rule, err
}

func parseLifecycleFilter(r *Reader) (*LifecycleFilter, error) {
	f := &LifecycleFilter{}
	n := 0
	predicate := func(r *Reader, name string) (err error) {
		n++
		switch name {
		case "Prefix":
			f.Prefix, err = textOf(r)
		case "Tag":
			if len(f.Tags) == tagsMax {
				return r.fail("more than %d tags", tagsMax)
			}
			var t Tag
			t, err = parseTag(r)
			f.Tags = append(f.Tags, t)
		case "ObjectSizeGreaterThan":
			f.SizeGreater, err = number(r, name, math.MaxInt64)
		case "ObjectSizeLessThan":
			f.SizeLess, err = number(r, name, math.MaxInt64)
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	}
	err := eachChild(r, func(r *Reader, name string) error {
		if f.And || name == "And" && n > 0 {
			return r.fail("%q beside another element of a filter", name)
		}
		if name != "And" {
			return predicate(r, name)
		}
		f.And = true
		return eachChild(r, predicate)
	})
	switch {
	case err != nil:
	case f.And && n < 2:
		err = r.fail("And needs at least two elements")
	case !f.And && n > 1:
		err = r.fail("a filter of several elements needs And")
	}
	return f, err
}

// parseTransition appends one to those of its kind.
func parseTransition(r *Reader, have []LifecycleTransition, noncurrent bool) ([]LifecycleTransition, error) {
	if len(have) == transitionsMax {
		return nil, r.fail("more than %d transitions", transitionsMax)
	}
	var t LifecycleTransition
	err := eachChild(r, func(r *Reader, name string) (err error) {
		switch {
		case name == "StorageClass":
			t.StorageClass, err = word(r)
		case name == "Days" && !noncurrent, name == "NoncurrentDays" && noncurrent:
			t.Days, err = number(r, name, math.MaxInt32)
		case name == "Date" && !noncurrent:
			t.Date, err = parseDate(r)
		case name == "NewerNoncurrentVersions" && noncurrent:
			t.NewerNoncurrent, err = number(r, name, math.MaxInt32)
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	if err == nil && (t.StorageClass == "" || (t.Days == nil) == (t.Date == nil)) {
		err = r.fail("a transition needs a storage class and one time")
	}
	return append(have, t), err
}

func parseExpiration(r *Reader) (*LifecycleExpiration, error) {
	e := &LifecycleExpiration{}
	n := 0
	err := eachChild(r, func(r *Reader, name string) (err error) {
		n++
		switch name {
		case "Days":
			e.Days, err = number(r, name, math.MaxInt32)
		case "Date":
			e.Date, err = parseDate(r)
		case "ExpiredObjectDeleteMarker":
			var s string
			if s, err = word(r); err != nil {
				return err
			}
			if s != "true" && s != "false" {
				return r.fail("%s is %q", name, s)
			}
			marker := s == "true"
			e.DeleteMarker = &marker
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	if err == nil && n != 1 {
		err = r.fail("an expiration needs one of Days, Date and ExpiredObjectDeleteMarker")
	}
	return e, err
}

func parseNoncurrentExpiration(r *Reader) (*LifecycleNoncurrent, error) {
	e := &LifecycleNoncurrent{}
	var days *int64
	err := eachChild(r, func(r *Reader, name string) (err error) {
		switch name {
		case "NoncurrentDays":
			days, err = number(r, name, math.MaxInt32)
		case "NewerNoncurrentVersions":
			e.NewerNoncurrent, err = number(r, name, math.MaxInt32)
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	if err == nil && days == nil {
		err = r.fail("no NoncurrentDays")
	}
	if err == nil {
		e.Days = *days
	}
	return e, err
}

func parseAbort(r *Reader) (days *int64, err error) {
	err = eachChild(r, func(r *Reader, name string) (err error) {
		if name != "DaysAfterInitiation" {
			return r.fail("unknown element %q", name)
		}
		days, err = number(r, name, math.MaxInt32)
		return err
	})
	if err == nil && days == nil {
		err = r.fail("no DaysAfterInitiation")
	}
	return days, err
}

// textOf reads the text of the innermost open element as it is.
func textOf(r *Reader) (*string, error) {
	s, err := r.Text()
	return &s, err
}

// number reads a number from -limit to limit.
func number(r *Reader, name string, limit int64) (*int64, error) {
	s, err := word(r)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > limit || n < -limit {
		return nil, r.fail("%s is %q", name, s)
	}
	return &n, nil
}

// parseDate reads a date of ISO 8601, with or without the time of the day.
func parseDate(r *Reader) (*time.Time, error) {
	s, err := word(r)
	if err != nil {
		return nil, err
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t, err = time.Parse(time.DateOnly, s)
	}
	if err != nil {
		return nil, r.fail("the date is %q", s)
	}
	t = t.UTC()
	return &t, nil
}
