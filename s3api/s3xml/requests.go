package s3xml

import (
	"strconv"
	"strings"
)

// Limits of S3's request documents.
const (
	DeleteObjectsMax = 1000
	PartsMax         = 10000
)

// Unsupported names an element that S3 knows and cairn does not act on: NotImplemented.
type Unsupported struct{ Element string }

func (e *Unsupported) Error() string { return "the element " + e.Element + " is not implemented" }

// Delete is the body of DeleteObjects.
type Delete struct {
	Quiet   bool
	Objects []DeleteObject
}

// DeleteObject is one object to delete; empty fields were absent, unless said otherwise.
type DeleteObject struct {
	Key          string
	VersionID    string
	HasVersion   bool   // the element was there, perhaps empty
	ETag         string // as sent, with quotes if it had any
	LastModified string
	Size         string
}

// ParseDelete reads a DeleteObjects body. Errors: *SyntaxError.
func ParseDelete(b []byte) (*Delete, error) {
	r := NewReader(b)
	if err := r.Root("Delete"); err != nil {
		return nil, err
	}
	d := &Delete{}
	for {
		name, ok, err := r.Child()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		switch name {
		case "Quiet":
			s, err := r.Text()
			if err != nil {
				return nil, err
			}
			if d.Quiet, err = parseBool(s); err != nil {
				return nil, r.fail("Quiet is %q", s)
			}
		case "Object":
			if len(d.Objects) == DeleteObjectsMax {
				return nil, r.fail("more than %d objects", DeleteObjectsMax)
			}
			o, err := parseDeleteObject(r)
			if err != nil {
				return nil, err
			}
			d.Objects = append(d.Objects, o)
		default:
			return nil, r.fail("unknown element %q", name)
		}
	}
	if len(d.Objects) == 0 {
		return nil, r.fail("no objects")
	}
	return d, r.End()
}

func parseDeleteObject(r *Reader) (o DeleteObject, err error) {
	hasKey := false
	err = eachText(r, func(name, text string) error {
		switch name {
		case "Key":
			o.Key, hasKey = text, true
		case "VersionId":
			o.VersionID, o.HasVersion = text, true
		case "ETag":
			o.ETag = text
		case "LastModifiedTime":
			o.LastModified = text
		case "Size":
			o.Size = text
		default:
			return r.fail("unknown element %q", name)
		}
		return nil
	})
	if err == nil && (!hasKey || o.Key == "") {
		err = r.fail("an object without a key")
	}
	return o, err
}

// eachText calls fn for every child of the innermost open element, all of which hold only text, and leaves it.
func eachText(r *Reader, fn func(name, text string) error) error {
	for {
		name, ok, err := r.Child()
		if err != nil || !ok {
			return err
		}
		text, err := r.Text()
		if err != nil {
			return err
		}
		if err := fn(name, text); err != nil {
			return err
		}
	}
}

func parseBool(s string) (bool, error) {
	switch strings.TrimSpace(s) {
	case "true", "TRUE", "True", "1":
		return true, nil
	case "false", "FALSE", "False", "0", "":
		return false, nil
	}
	return false, strconv.ErrSyntax
}

// CompletePart is a part named by CompleteMultipartUpload.
type CompletePart struct {
	Number    int
	ETag      string // as sent
	Checksums []PartChecksum
}

// PartChecksum is a Checksum* element: Algorithm is the rest of its name.
type PartChecksum struct{ Algorithm, Value string }

// ParseComplete reads a CompleteMultipartUpload body, in the order sent. Errors: *SyntaxError.
func ParseComplete(b []byte) ([]CompletePart, error) {
	r := NewReader(b)
	if err := r.Root("CompleteMultipartUpload"); err != nil {
		return nil, err
	}
	var parts []CompletePart
	for {
		name, ok, err := r.Child()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if name != "Part" {
			return nil, r.fail("unknown element %q", name)
		}
		if len(parts) == PartsMax {
			return nil, r.fail("more than %d parts", PartsMax)
		}
		p, err := parsePart(r)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	if len(parts) == 0 {
		return nil, r.fail("no parts")
	}
	return parts, r.End()
}

func parsePart(r *Reader) (p CompletePart, err error) {
	err = eachText(r, func(name, text string) error {
		switch {
		case name == "PartNumber":
			n, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil {
				return r.fail("part number %q", text)
			}
			p.Number = n
		case name == "ETag":
			p.ETag = strings.TrimSpace(text)
		case strings.HasPrefix(name, "Checksum"):
			p.Checksums = append(p.Checksums, PartChecksum{name[len("Checksum"):], strings.TrimSpace(text)})
		case name == "Size": // some SDKs repeat what ListParts said
		default:
			return r.fail("unknown element %q", name)
		}
		return nil
	})
	if err == nil && (p.Number == 0 || p.ETag == "") {
		err = r.fail("a part without number or ETag")
	}
	return p, err
}

// ParseCreateBucket reads a CreateBucketConfiguration and answers its location
// constraint. Errors: *SyntaxError; *Unsupported for directory buckets and tags.
func ParseCreateBucket(b []byte) (location string, err error) {
	r := NewReader(b)
	if err := r.Root("CreateBucketConfiguration"); err != nil {
		return "", err
	}
	for {
		name, ok, err := r.Child()
		if err != nil {
			return "", err
		}
		if !ok {
			return location, r.End()
		}
		switch name {
		case "LocationConstraint":
			text, err := r.Text()
			if err != nil {
				return "", err
			}
			location = strings.TrimSpace(text)
		case "Location", "Bucket", "Tags":
			return "", &Unsupported{name}
		default:
			return "", r.fail("unknown element %q", name)
		}
	}
}
