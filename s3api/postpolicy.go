package s3api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"cairn/s3api/s3err"
)

// postPolicy is a form's policy document: until when it may be used and what the form may hold.
type postPolicy struct {
	expires    time.Time
	conditions []postCondition
	ranged     bool  // a content-length-range was given:
	min, max   int64 // bytes of the file
}

// postCondition is a condition on a field.
type postCondition struct {
	field  string // lower case
	value  string
	prefix bool // starts-with, else equal
}

func invalidPolicy(format string, args ...any) error {
	return s3err.New(s3err.InvalidPolicyDocument, "Invalid Policy: "+fmt.Sprintf(format, args...))
}

// parsePostPolicy reads a policy document, base64 of JSON.
func parsePostPolicy(text string) (*postPolicy, error) {
	doc, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, invalidPolicy("The policy is not base64.")
	}
	// Unlike a struct, a map tells "Expiration" from "expiration", as S3 does.
	var top map[string]json.RawMessage
	if err := json.Unmarshal(plainEscapes(doc), &top); err != nil || top == nil {
		return nil, invalidPolicy("Invalid JSON.")
	}
	for name := range top {
		if name != "expiration" && name != "conditions" {
			return nil, invalidPolicy("Unexpected: '%s'", clip(name))
		}
	}
	p := &postPolicy{}
	var expiration string
	if raw, ok := top["expiration"]; !ok || json.Unmarshal(raw, &expiration) != nil {
		return nil, invalidPolicy("Policy missing expiration.")
	}
	if p.expires, err = time.Parse(time.RFC3339, expiration); err != nil {
		return nil, invalidPolicy("Invalid 'expiration' value: '%s'", clip(expiration))
	}
	var conditions []json.RawMessage
	if raw, ok := top["conditions"]; !ok || json.Unmarshal(raw, &conditions) != nil || conditions == nil {
		return nil, invalidPolicy("Policy missing conditions.")
	}
	for _, raw := range conditions {
		if err := p.condition(raw); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// plainEscapes replaces the escapes that S3 has beside JSON's: \$ and \v.
func plainEscapes(doc []byte) []byte {
	if !bytes.Contains(doc, []byte(`\$`)) && !bytes.Contains(doc, []byte(`\v`)) {
		return doc
	}
	out := make([]byte, 0, len(doc)+8)
	for i := 0; i < len(doc); i++ {
		if doc[i] != '\\' || i+1 == len(doc) {
			out = append(out, doc[i])
			continue
		}
		i++
		switch doc[i] {
		case '$':
			out = append(out, '$')
		case 'v':
			out = append(out, `\u000b`...)
		default:
			out = append(out, '\\', doc[i])
		}
	}
	return out
}

// condition reads one: {"field": "value"}, ["eq", "$field", "value"], ["starts-with", "$field", "value"] or ["content-length-range", min, max].
func (p *postPolicy) condition(raw json.RawMessage) error {
	switch raw = bytes.TrimSpace(raw); {
	case len(raw) > 0 && raw[0] == '{':
		var exact map[string]any
		if json.Unmarshal(raw, &exact) != nil || len(exact) != 1 {
			return invalidPolicy("Invalid Simple-Condition: Simple-Conditions must have exactly one property specified.")
		}
		for field, v := range exact {
			value, ok := v.(string)
			if !ok {
				return invalidPolicy("Invalid Simple-Condition: value must be a string.")
			}
			p.conditions = append(p.conditions, postCondition{field: strings.ToLower(field), value: value})
		}
		return nil
	case len(raw) > 0 && raw[0] == '[':
		return p.listCondition(raw)
	}
	return invalidPolicy("Invalid condition: neither a list nor an object.")
}

func (p *postPolicy) listCondition(raw json.RawMessage) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var list []any
	if d.Decode(&list) != nil || len(list) == 0 {
		return invalidPolicy("Invalid condition: an empty list.")
	}
	name, _ := list[0].(string)
	switch operation := strings.ToLower(name); operation {
	case "eq", "starts-with":
		if len(list) != 3 {
			return invalidPolicy("Invalid %s: wrong number of arguments.", operation)
		}
		field, ok := list[1].(string)
		value, isText := list[2].(string)
		if !ok || !isText || !strings.HasPrefix(field, "$") {
			return invalidPolicy("Invalid %s: a field's name with a $ and a string are expected.", operation)
		}
		p.conditions = append(p.conditions, postCondition{field: strings.ToLower(field[1:]), value: value, prefix: operation == "starts-with"})
		return nil
	case "content-length-range":
		if len(list) != 3 {
			return invalidPolicy("Invalid content-length-range: wrong number of arguments.")
		}
		least, ok1 := bytesOf(list[1])
		most, ok2 := bytesOf(list[2])
		if !ok1 || !ok2 || least > most {
			return invalidPolicy("Invalid content-length-range: two numbers of bytes are expected, the lesser first.")
		}
		if !p.ranged {
			p.ranged, p.min, p.max = true, least, most
		}
		p.min, p.max = max(p.min, least), min(p.max, most) // all conditions hold
		return nil
	}
	return invalidPolicy("Invalid condition: unknown operation '%s'.", clip(name))
}

// bytesOf reads a number of bytes, which some clients write as a string.
func bytesOf(v any) (int64, bool) {
	text := ""
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = v
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil && n >= 0
}

func policyRefusal(detail string) error {
	return s3err.New(s3err.AccessDenied, "Invalid according to Policy: "+detail)
}

// check refuses a form that the policy does not allow: one that came too late, one that does not meet a condition, one
// with a field that no condition speaks of. fields are by lower-case name, with "bucket" as the request names it.
func (p *postPolicy) check(fields map[string]string, now time.Time) error {
	if now.After(p.expires) {
		return policyRefusal("Policy expired.")
	}
	covered := make(map[string]bool, len(p.conditions))
	for _, c := range p.conditions {
		covered[c.field] = true
		if !c.holds(fields[c.field]) {
			operation := "eq"
			if c.prefix {
				operation = "starts-with"
			}
			return policyRefusal(fmt.Sprintf("Policy Condition failed: [%q, %q, %q]", operation, "$"+clip(c.field), clip(c.value)))
		}
	}
	for name := range fields {
		if !covered[name] && !freeField(name) {
			return policyRefusal("Extra input fields: " + clip(name))
		}
	}
	return nil
}

// holds compares. A starts-with on Content-Type holds for a list if it holds for each of it.
func (c *postCondition) holds(value string) bool {
	if !c.prefix {
		return value == c.value
	}
	if c.field != "content-type" {
		return strings.HasPrefix(value, c.value)
	}
	for v := range strings.SplitSeq(value, ",") {
		if !strings.HasPrefix(strings.TrimSpace(v), c.value) {
			return false
		}
	}
	return true
}

// freeField tells the fields that a policy need not allow: those that carry it, those that mean nothing, and the
// checksum of the file, by which a sender binds nobody but itself.
func freeField(name string) bool {
	switch name {
	case "policy", "signature", "awsaccesskeyid", "x-amz-signature", "file":
		return true
	}
	return strings.HasPrefix(name, "x-ignore-") || strings.HasPrefix(name, "x-amz-checksum-")
}

// size refuses a file whose size the policy does not allow.
func (p *postPolicy) size(n int64) error {
	switch {
	case !p.ranged:
		return nil
	case n > p.max:
		return s3err.New(s3err.EntityTooLarge, "Your proposed upload exceeds the maximum allowed size",
			s3err.Field{Name: "ProposedSize", Value: itoa(n)}, s3err.Field{Name: "MaxSizeAllowed", Value: itoa(p.max)})
	case n < p.min:
		return s3err.New(s3err.EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size",
			s3err.Field{Name: "ProposedSize", Value: itoa(n)}, s3err.Field{Name: "MinSizeAllowed", Value: itoa(p.min)})
	}
	return nil
}
