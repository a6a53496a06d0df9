package s3xml

import "math"

// tieringsMax bounds the tiers of one configuration; each can stand there once.
const tieringsMax = 2

// Tiering is the body of PutBucketIntelligentTieringConfiguration as sent.
type Tiering struct {
	ID       string
	Disabled bool
	Filter   *LifecycleFilter // without sizes; nil: absent
	Tiers    []TieringTier    // at least one
}

// TieringTier says after how many days without access objects go to a tier.
type TieringTier struct {
	Tier string // ARCHIVE_ACCESS or DEEP_ARCHIVE_ACCESS
	Days int64
}

// ParseTiering reads an IntelligentTieringConfiguration and checks its form; whether the numbers make sense, and whether a tier stands there
// twice, is not looked at. Errors: *SyntaxError.
func ParseTiering(b []byte) (t Tiering, err error) {
	status := ""
	r := NewReader(b)
	if err := r.Root("IntelligentTieringConfiguration"); err != nil {
		return t, err
	}
	err = eachChildOf(r, func(name string) bool { return name == "Tiering" }, func(r *Reader, name string) (err error) {
		switch name {
		case "Id":
			t.ID, err = word(r)
		case "Status":
			if status, err = word(r); err == nil && status != "Enabled" && status != "Disabled" {
				err = r.fail("Status is %q", status)
			}
		case "Filter":
			if t.Filter, err = parseLifecycleFilter(r); err == nil && (t.Filter.SizeGreater != nil || t.Filter.SizeLess != nil) {
				err = r.fail("a filter by size")
			}
		case "Tiering":
			if len(t.Tiers) == tieringsMax {
				return r.fail("more than %d tiers", tieringsMax)
			}
			var tier TieringTier
			tier, err = parseTieringTier(r)
			t.Tiers = append(t.Tiers, tier)
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	switch {
	case err != nil:
		return t, err
	case t.ID == "" || status == "" || len(t.Tiers) == 0:
		return t, r.fail("a configuration needs Id, Status and Tiering")
	}
	t.Disabled = status == "Disabled"
	return t, r.End()
}

func parseTieringTier(r *Reader) (t TieringTier, err error) {
	var days *int64
	err = eachChild(r, func(r *Reader, name string) (err error) {
		switch name {
		case "AccessTier":
			if t.Tier, err = word(r); err == nil && t.Tier != "ARCHIVE_ACCESS" && t.Tier != "DEEP_ARCHIVE_ACCESS" {
				err = r.fail("AccessTier is %q", t.Tier)
			}
		case "Days":
			days, err = number(r, name, math.MaxInt32)
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	if err == nil && (t.Tier == "" || days == nil) {
		err = r.fail("a Tiering needs AccessTier and Days")
	}
	if err == nil {
		t.Days = *days
	}
	return t, err
}
