package s3xml

import (
	"strconv"
	"strings"
)

// tagsMax bounds the tags of one document; S3's own limits are lower and have an error of their own.
const tagsMax = 1000

// document reads a document whose root has this name: child is called in every child of the root and must leave it.
func document(b []byte, root string, child func(r *Reader, name string) error) error {
	r := NewReader(b)
	if err := r.Root(root); err != nil {
		return err
	}
	if err := eachChild(r, child); err != nil {
		return err
	}
	return r.End()
}

// eachChild calls fn in every child of the innermost open element, and leaves that element; fn must leave its own.
func eachChild(r *Reader, fn func(r *Reader, name string) error) error {
	return eachChildOf(r, repeatable, fn)
}

// eachChildOf is eachChild where other elements may follow one of their name.
func eachChildOf(r *Reader, repeatable func(name string) bool, fn func(r *Reader, name string) error) error {
	seen := map[string]bool{}
	for {
		name, ok, err := r.Child()
		if err != nil || !ok {
			return err
		}
		if seen[name] && !repeatable(name) {
			return r.fail("%q stands twice", name)
		}
		seen[name] = true
		if err := fn(r, name); err != nil {
			return err
		}
	}
}

// repeatable reports whether an element of a document may follow one of its name, where nothing else is said.
func repeatable(name string) bool { return name == "Tag" || name == "Grant" }

// word reads the text of the innermost open element without the white space around it.
func word(r *Reader) (string, error) {
	s, err := r.Text()
	return strings.TrimSpace(s), err
}

// Versioning is the body of PutBucketVersioning.
type Versioning struct {
	Status string // Enabled, Suspended or "" if it was absent
}

// ParseVersioning reads a VersioningConfiguration. Errors: *SyntaxError; *Unsupported for MFA delete.
func ParseVersioning(b []byte) (v Versioning, err error) {
	err = document(b, "VersioningConfiguration", func(r *Reader, name string) error {
		s, err := word(r)
		if err != nil {
			return err
		}
		switch {
		case name == "Status" && (s == "Enabled" || s == "Suspended"):
			v.Status = s
		case name == "MfaDelete" && s == "Enabled":
			return &Unsupported{name}
		case name == "MfaDelete" && s == "Disabled":
		default:
			return r.fail("%s is %q", name, s)
		}
		return nil
	})
	return v, err
}

// Tag is a tag as sent.
type Tag struct{ Key, Value string }

// ParseTagging reads the Tagging of an object or bucket, in the order sent; whether the tags are valid is not looked at.
// Errors: *SyntaxError.
func ParseTagging(b []byte) (tags []Tag, err error) {
	has := false
	err = document(b, "Tagging", func(r *Reader, name string) error {
		if name != "TagSet" {
			return r.fail("unknown element %q", name)
		}
		has = true
		return eachChild(r, func(r *Reader, name string) error {
			if name != "Tag" {
				return r.fail("unknown element %q", name)
			}
			if len(tags) == tagsMax {
				return r.fail("more than %d tags", tagsMax)
			}
			t, err := parseTag(r)
			tags = append(tags, t)
			return err
		})
	})
	if err == nil && !has {
		err = &SyntaxError{len(b), "no TagSet"}
	}
	return tags, err
}

func parseTag(r *Reader) (t Tag, err error) {
	key, value := false, false
	err = eachChild(r, func(r *Reader, name string) error {
		s, err := r.Text()
		if err != nil {
			return err
		}
		switch name {
		case "Key":
			t.Key, key = s, true
		case "Value":
			t.Value, value = s, true
		default:
			return r.fail("unknown element %q", name)
		}
		return nil
	})
	if err == nil && !(key && value) {
		err = r.fail("a tag without key or value")
	}
	return t, err
}

// LockConfiguration is the body of PutObjectLockConfiguration.
type LockConfiguration struct {
	Mode        string // GOVERNANCE, COMPLIANCE, or "" if there is no default retention
	Days, Years int64  // exactly one is there with Mode; any number
	InYears     bool   // which
}

// ParseLockConfiguration reads an ObjectLockConfiguration. Errors: *SyntaxError.
func ParseLockConfiguration(b []byte) (c LockConfiguration, err error) {
	enabled := false
	err = document(b, "ObjectLockConfiguration", func(r *Reader, name string) error {
		switch name {
		case "ObjectLockEnabled":
			s, err := word(r)
			if err == nil && s != "Enabled" {
				err = r.fail("ObjectLockEnabled is %q", s)
			}
			enabled = true
			return err
		case "Rule":
			has := false
			err := eachChild(r, func(r *Reader, name string) (err error) {
				if name != "DefaultRetention" {
					return r.fail("unknown element %q", name)
				}
				has = true
				c, err = parseDefaultRetention(r)
				return err
			})
			if err == nil && !has {
				err = r.fail("a rule without DefaultRetention")
			}
			return err
		}
		return r.fail("unknown element %q", name)
	})
	if err == nil && !enabled {
		err = &SyntaxError{len(b), "no ObjectLockEnabled"}
	}
	return c, err
}

func parseDefaultRetention(r *Reader) (c LockConfiguration, err error) {
	periods := 0
	err = eachChild(r, func(r *Reader, name string) error {
		s, err := word(r)
		if err != nil {
			return err
		}
		switch name {
		case "Mode":
			if !lockMode(s) {
				return r.fail("Mode is %q", s)
			}
			c.Mode = s
			return nil
		case "Days", "Years":
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return r.fail("%s is %q", name, s)
			}
			if periods++; name == "Days" {
				c.Days = n
			} else {
				c.Years, c.InYears = n, true
			}
			return nil
		}
		return r.fail("unknown element %q", name)
	})
	if err == nil && (c.Mode == "" || periods != 1) {
		err = r.fail("a default retention needs a mode and either days or years")
	}
	return c, err
}

func lockMode(s string) bool { return s == "GOVERNANCE" || s == "COMPLIANCE" }

// Retention is the body of PutObjectRetention.
type Retention struct {
	Mode  string // GOVERNANCE, COMPLIANCE, or "" for none
	Until string // as sent; there with Mode only
}

// ParseRetention reads a Retention; an empty one takes the retention away. Errors: *SyntaxError.
func ParseRetention(b []byte) (ret Retention, err error) {
	err = document(b, "Retention", func(r *Reader, name string) error {
		s, err := word(r)
		if err != nil {
			return err
		}
		switch {
		case name == "Mode" && lockMode(s):
			ret.Mode = s
		case name == "RetainUntilDate" && s != "":
			ret.Until = s
		default:
			return r.fail("%s is %q", name, s)
		}
		return nil
	})
	if err == nil && (ret.Mode == "") != (ret.Until == "") {
		err = &SyntaxError{len(b), "mode and date need each other"}
	}
	return ret, err
}

// ParseLegalHold reads a LegalHold and answers whether it is on. Errors: *SyntaxError.
func ParseLegalHold(b []byte) (on bool, err error) {
	has := false
	err = document(b, "LegalHold", func(r *Reader, name string) error {
		s, err := word(r)
		if err == nil && (name != "Status" || s != "ON" && s != "OFF") {
			err = r.fail("%s is %q", name, s)
		}
		on, has = s == "ON", true
		return err
	})
	if err == nil && !has {
		err = &SyntaxError{len(b), "no Status"}
	}
	return on, err
}

// PublicAccessBlock is the body of PutPublicAccessBlock. What was absent is false.
type PublicAccessBlock struct {
	BlockPublicAcls, IgnorePublicAcls, BlockPublicPolicy, RestrictPublicBuckets bool
}

// ParsePublicAccessBlock reads a PublicAccessBlockConfiguration and answers whether it says anything. Errors: *SyntaxError.
func ParsePublicAccessBlock(b []byte) (p PublicAccessBlock, says bool, err error) {
	err = document(b, "PublicAccessBlockConfiguration", func(r *Reader, name string) error {
		s, err := word(r)
		if err != nil {
			return err
		}
		field := map[string]*bool{
			"BlockPublicAcls": &p.BlockPublicAcls, "IgnorePublicAcls": &p.IgnorePublicAcls,
			"BlockPublicPolicy": &p.BlockPublicPolicy, "RestrictPublicBuckets": &p.RestrictPublicBuckets,
		}[name]
		switch strings.ToLower(s) {
		case "true", "false":
			if field != nil {
				*field, says = strings.EqualFold(s, "true"), true
				return nil
			}
		}
		return r.fail("%s is %q", name, s)
	})
	return p, says, err
}

// ParseOwnershipControls reads OwnershipControls and answers the ObjectOwnership of their one rule: BucketOwnerEnforced,
// BucketOwnerPreferred or ObjectWriter. Errors: *SyntaxError.
func ParseOwnershipControls(b []byte) (ownership string, err error) {
	err = document(b, "OwnershipControls", func(r *Reader, name string) error {
		if name != "Rule" {
			return r.fail("unknown element %q", name)
		}
		return eachChild(r, func(r *Reader, name string) error {
			s, err := word(r)
			if err == nil && (name != "ObjectOwnership" || s != "BucketOwnerEnforced" && s != "BucketOwnerPreferred" && s != "ObjectWriter") {
				err = r.fail("%s is %q", name, s)
			}
			ownership = s
			return err
		})
	})
	if err == nil && ownership == "" {
		err = &SyntaxError{len(b), "no ObjectOwnership"}
	}
	return ownership, err
}

// ACL is the body of PutBucketAcl and PutObjectAcl.
type ACL struct {
	Owner  string // canonical user id, or "" if it was absent
	Grants []Grant
}

// Grant is a grant of an ACL. Fields that were absent are empty.
type Grant struct {
	ID, URI, Email string // who: one of them
	Permission     string
}

// ParseACL reads an AccessControlPolicy. Errors: *SyntaxError.
func ParseACL(b []byte) (a ACL, err error) {
	err = document(b, "AccessControlPolicy", func(r *Reader, name string) error {
		switch name {
		case "Owner":
			g, err := parseGrantee(r)
			a.Owner = g.ID
			return err
		case "AccessControlList":
			return eachChild(r, func(r *Reader, name string) error {
				if name != "Grant" {
					return r.fail("unknown element %q", name)
				}
				if len(a.Grants) == tagsMax {
					return r.fail("more than %d grants", tagsMax)
				}
				g, err := parseGrant(r)
				a.Grants = append(a.Grants, g)
				return err
			})
		}
		return r.fail("unknown element %q", name)
	})
	return a, err
}

func parseGrant(r *Reader) (g Grant, err error) {
	permission := ""
	err = eachChild(r, func(r *Reader, name string) (err error) {
		switch name {
		case "Grantee":
			g, err = parseGrantee(r)
		case "Permission":
			permission, err = word(r)
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	switch permission {
	case "FULL_CONTROL", "READ", "WRITE", "READ_ACP", "WRITE_ACP":
	default:
		if err == nil {
			err = r.fail("Permission is %q", permission)
		}
	}
	g.Permission = permission
	return g, err
}

// parseGrantee reads an Owner or Grantee. The xsi:type of a grantee follows from what it has.
func parseGrantee(r *Reader) (g Grant, err error) {
	err = eachChild(r, func(r *Reader, name string) error {
		s, err := word(r)
		if err != nil {
			return err
		}
		switch name {
		case "ID":
			g.ID = s
		case "URI":
			g.URI = s
		case "EmailAddress":
			g.Email = s
		case "DisplayName", "Type": // without a meaning
		default:
			return r.fail("unknown element %q", name)
		}
		return nil
	})
	return g, err
}
