package sigv4

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
)

// Policy is what the fields of an HTML form (POST Object) claim about the policy document among them: who signed it.
// Both versions sign the base64 text of the policy, which in turn says what the form may hold.
type Policy struct {
	AccessKey string

	text      string // base64, as signed
	v4        *Auth  // nil for version 2
	signature []byte // of version 2: 20 bytes
}

// missingField is S3's refusal of a form that lacks a field.
func missingField(name string) *Error {
	return &Error{Code: "InvalidArgument", Message: "Bucket POST must contain a field named '" + name + "'.  If it is specified, please check the order of the fields.",
		Fields: []Field{{"ArgumentName", name}, {"ArgumentValue", ""}}}
}

func badField(name, value, message string) *Error {
	return &Error{Code: "InvalidArgument", Message: message, Fields: []Field{{"ArgumentName", name}, {"ArgumentValue", clip(value)}}}
}

// ParsePolicy reads a form's claim; field answers a field by its lower-case name, "" if there is none. ok is false for an
// anonymous form, which has neither policy nor signature. Only the form of the claim is checked; see CheckPolicy.
func ParsePolicy(field func(name string) string) (p Policy, ok bool, err *Error) {
	p.text = field("policy")
	algorithm, credential, signature := field("x-amz-algorithm"), field("x-amz-credential"), field("x-amz-signature")
	if algorithm != "" || credential != "" || signature != "" {
		return p, true, p.parseV4(field)
	}
	p.AccessKey, signature = field("awsaccesskeyid"), field("signature")
	switch {
	case p.text == "" && p.AccessKey == "" && signature == "":
		return p, false, nil
	case p.text == "":
		return p, true, missingField("policy")
	case p.AccessKey == "":
		return p, true, missingField("AWSAccessKeyId")
	case signature == "":
		return p, true, missingField("signature")
	case len(p.AccessKey) > accessKeyMax:
		return p, true, badField("AWSAccessKeyId", p.AccessKey, "The access key is too long")
	}
	var derr error
	p.signature, derr = base64.StdEncoding.DecodeString(signature)
	if derr != nil || len(p.signature) != sha1.Size {
		return p, true, &Error{Code: "SignatureDoesNotMatch"}
	}
	return p, true, nil
}

func (p *Policy) parseV4(field func(name string) string) *Error {
	for _, name := range [...]string{"policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"} {
		if field(name) == "" {
			return missingField(name)
		}
	}
	switch v := field("x-amz-algorithm"); v {
	case Algorithm:
	case "AWS4-ECDSA-P256-SHA256":
		return &Error{Code: "NotImplemented", Message: "Signature Version 4A (AWS4-ECDSA-P256-SHA256) is not implemented. Please use AWS4-HMAC-SHA256."}
	default:
		return badField("x-amz-algorithm", v, "x-amz-algorithm only supports \"AWS4-HMAC-SHA256\"")
	}
	a := &Auth{Signature: field("x-amz-signature"), Timestamp: field("x-amz-date")}
	if a.credential(field("x-amz-credential")) != "" {
		return badField("x-amz-credential", field("x-amz-credential"), "Error parsing the x-amz-credential field; the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".")
	}
	var ok bool
	if a.Time, ok = parseTime(a.Timestamp); !ok {
		return badField("x-amz-date", a.Timestamp, "x-amz-date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
	}
	if a.Date != a.Timestamp[:8] {
		return badField("x-amz-credential", a.Date, "Invalid credential date. This date is not the same as x-amz-date.")
	}
	p.AccessKey, p.v4 = a.AccessKey, a
	return nil
}

// CheckScope refuses a signature made for another region or service. Those of version 2 name none.
func (p *Policy) CheckScope(region string) *Error {
	if p.v4 == nil {
		return nil
	}
	if err := p.v4.CheckScope(region); err != nil {
		return badField("x-amz-credential", p.v4.Scope, "Error parsing the x-amz-credential field; the scope must be of the region '"+region+"' and the service 's3'")
	}
	return nil
}

// CheckPolicy refuses a policy that was not signed with the secret. When it may be used, the policy says itself.
func (v *Verifier) CheckPolicy(p *Policy, secret string) *Error {
	if p.v4 == nil {
		mac := hmac.New(sha1.New, []byte(secret))
		mac.Write([]byte(p.text))
		if hmac.Equal(mac.Sum(nil), p.signature) {
			return nil
		}
	} else if subtle.ConstantTimeCompare(v.signingKey(secret, p.v4).appendSignature(nil, []byte(p.text)), []byte(p.v4.Signature)) == 1 {
		return nil
	}
	return &Error{Code: "SignatureDoesNotMatch", Fields: []Field{{"AWSAccessKeyId", p.AccessKey}, {"StringToSign", p.text}}}
}
