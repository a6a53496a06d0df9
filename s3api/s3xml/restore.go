package s3xml

import "math"

// RestoreRequest is the body of RestoreObject.
type RestoreRequest struct {
	Days *int64 // nil: absent
	Tier string // "" if it was absent
}

// ParseRestore reads a RestoreRequest and checks its form; whether the number makes sense is not looked at. The description has no
// effect. Errors: *SyntaxError; *Unsupported for queries of archived objects.
func ParseRestore(b []byte) (req RestoreRequest, err error) {
	err = document(b, "RestoreRequest", func(r *Reader, name string) (err error) {
		switch name {
		case "Days":
			req.Days, err = number(r, name, math.MaxInt32)
		case "Tier": // older than GlacierJobParameters
			err = parseTier(r, &req)
		case "GlacierJobParameters":
			found := false
			err = eachChild(r, func(r *Reader, name string) error {
				if name != "Tier" {
					return r.fail("unknown element %q", name)
				}
				found = true
				return parseTier(r, &req)
			})
			if err == nil && !found {
				err = r.fail("no Tier")
			}
		case "Description":
			_, err = r.Text()
		case "Type", "SelectParameters", "OutputLocation":
			err = &Unsupported{name}
		default:
			err = r.fail("unknown element %q", name)
		}
		return err
	})
	return req, err
}

// parseTier reads a tier, which may stand in two places, but be only one.
func parseTier(r *Reader, req *RestoreRequest) error {
	s, err := word(r)
	if err != nil {
		return err
	}
	if s != "Expedited" && s != "Standard" && s != "Bulk" || req.Tier != "" && req.Tier != s {
		return r.fail("Tier is %q", s)
	}
	req.Tier = s
	return nil
}
