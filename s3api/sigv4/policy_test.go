package sigv4

import (
	"maps"
	"strings"
	"testing"
)

// Made by botocore 1.29 (generate_presigned_post) with the keys AKIDEXAMPLE and wJalrXUtnFEMI.
func formV4() map[string]string {
	return map[string]string{
		"x-amz-algorithm": "AWS4-HMAC-SHA256", "x-amz-credential": "AKIDEXAMPLE/20261121/us-east-1/s3/aws4_request", "x-amz-date": "20261121T090000Z",
		"policy":          "eyJleHBpcmF0aW9uIjogIjIwMjYtMTEtMjFUMTA6MDA6MDBaIiwgImNvbmRpdGlvbnMiOiBbeyJhY2wiOiAicHJpdmF0ZSJ9LCBbInN0YXJ0cy13aXRoIiwgIiRDb250ZW50LVR5cGUiLCAidGV4dC8iXSwgWyJjb250ZW50LWxlbmd0aC1yYW5nZSIsIDEsIDEwMF0sIHsiYnVja2V0IjogImJ1Y2tldCJ9LCBbInN0YXJ0cy13aXRoIiwgIiRrZXkiLCAidXNlci8iXSwgeyJ4LWFtei1hbGdvcml0aG0iOiAiQVdTNC1ITUFDLVNIQTI1NiJ9LCB7IngtYW16LWNyZWRlbnRpYWwiOiAiQUtJREVYQU1QTEUvMjAyNjExMjEvdXMtZWFzdC0xL3MzL2F3czRfcmVxdWVzdCJ9LCB7IngtYW16LWRhdGUiOiAiMjAyNjExMjFUMDkwMDAwWiJ9XX0=",
		"x-amz-signature": "4c75dd0ff2ffe9a4372628467043d791e449ab6142ae48945552ec1d523f5bd0",
	}
}

func formV2() map[string]string {
	return map[string]string{
		"awsaccesskeyid": "AKIDEXAMPLE",
		"policy":         "eyJleHBpcmF0aW9uIjogIjIwMjYtMTEtMjFUMTA6MDA6MDBaIiwgImNvbmRpdGlvbnMiOiBbeyJhY2wiOiAicHJpdmF0ZSJ9LCBbInN0YXJ0cy13aXRoIiwgIiRDb250ZW50LVR5cGUiLCAidGV4dC8iXSwgWyJjb250ZW50LWxlbmd0aC1yYW5nZSIsIDEsIDEwMF0sIHsiYnVja2V0IjogImJ1Y2tldCJ9LCBbInN0YXJ0cy13aXRoIiwgIiRrZXkiLCAidXNlci8iXV19",
		"signature":      "8UDu0mS9k/94KwvVuusyUD5g2VA=",
	}
}

// checkForm answers the code that a form is refused with.
func checkForm(fields map[string]string, secret string) string {
	p, ok, err := ParsePolicy(func(name string) string { return fields[name] })
	if err == nil && ok {
		err = p.CheckScope("us-east-1")
	}
	if err == nil && ok {
		err = NewVerifier().CheckPolicy(&p, secret)
	}
	switch {
	case err != nil:
		return err.Code
	case !ok:
		return "anonymous"
	case p.AccessKey != "AKIDEXAMPLE":
		return p.AccessKey
	}
	return ""
}

func TestPolicyFromBotocore(t *testing.T) {
	for name, form := range map[string]func() map[string]string{"4": formV4, "2": formV2} {
		if code := checkForm(form(), "wJalrXUtnFEMI"); code != "" {
			t.Errorf("version %s: %s", name, code)
		}
		if code := checkForm(form(), "another"); code != "SignatureDoesNotMatch" {
			t.Errorf("version %s with another secret: %s", name, code)
		}
		changed := form()
		changed["policy"] = "e" + changed["policy"][2:]
		if code := checkForm(changed, "wJalrXUtnFEMI"); code != "SignatureDoesNotMatch" {
			t.Errorf("version %s with another policy: %s", name, code)
		}
		for field := range form() {
			without := form()
			delete(without, field)
			if code := checkForm(without, "wJalrXUtnFEMI"); code != "InvalidArgument" {
				t.Errorf("version %s without %s: %s", name, field, code)
			}
		}
	}
	if code := checkForm(map[string]string{"key": "k"}, ""); code != "anonymous" {
		t.Errorf("no claim: %s", code)
	}
}

// botocore takes the time of a Date header and leaves an x-amz-date that it was given as it is.
func TestTimeOfHeaders(t *testing.T) {
	const auth = Algorithm + " Credential=AKIDEXAMPLE/20130524/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0000000000000000000000000000000000000000000000000000000000000000"
	const day, next = "Fri, 24 May 2013 00:00:01 GMT", "Fri, 24 May 2013 00:00:02 GMT"
	for _, c := range []struct{ amz, date, want string }{
		{"20130524T000003Z", day, "20130524T000003Z"}, {day, "20130524T000003Z", "20130524T000003Z"}, {next, day, "20130524T000001Z"}, {next, "", "20130524T000002Z"},
		{"", day, "20130524T000001Z"}, {"", "Fri, 24 May 2013 00:00:01 -0000", "20130524T000001Z"}, {"", "Fri, 24 May 2013 02:00:01 +0200", "20130524T000001Z"}, {"yesterday", "", ""}, {"", "", ""}, {"20130524", "now", ""},
	} {
		a, _, err := Parse(request("GET", "/", "", "Authorization", auth, "X-Amz-Date", c.amz, "Date", c.date, "X-Amz-Content-Sha256", emptySHA256))
		if (err == nil) != (c.want != "") || err == nil && a.Timestamp != c.want || err != nil && err.Code != "AccessDenied" {
			t.Errorf("%+v: %q, %v", c, a.Timestamp, err)
		}
	}
}

func TestPolicyRefusals(t *testing.T) {
	for field, values := range map[string]map[string]string{
		"x-amz-algorithm":  {"AWS4-ECDSA-P256-SHA256": "NotImplemented", "AWS4-HMAC-MD5": "InvalidArgument"},
		"x-amz-credential": {"AKIDEXAMPLE": "InvalidArgument", "AKIDEXAMPLE/20261121/eu-west-1/s3/aws4_request": "InvalidArgument", "AKIDEXAMPLE/20261121/us-east-1/iam/aws4_request": "InvalidArgument", "AKIDEXAMPLE/20261120/us-east-1/s3/aws4_request": "InvalidArgument"},
		"x-amz-date":       {"2026-11-21": "InvalidArgument", "20261122T090000Z": "InvalidArgument"},
		"x-amz-signature":  {"bad": "SignatureDoesNotMatch"},
	} {
		for value, want := range values {
			form := maps.Clone(formV4())
			form[field] = value
			if code := checkForm(form, "wJalrXUtnFEMI"); code != want {
				t.Errorf("%s %s: %s, want %s", field, value, code, want)
			}
		}
	}
	form := formV2()
	form["signature"] = "bad"
	if code := checkForm(form, "wJalrXUtnFEMI"); code != "SignatureDoesNotMatch" {
		t.Errorf("a signature that is none: %s", code)
	}
}

// FuzzParsePolicy: a form is anonymous only if it claims nothing, and no other claim than the true one is proven.
func FuzzParsePolicy(f *testing.F) {
	four, two := formV4(), formV2()
	f.Add(four["policy"], four["x-amz-algorithm"], four["x-amz-credential"], four["x-amz-date"], four["x-amz-signature"], "", "")
	f.Add(two["policy"], "", "", "", "", two["awsaccesskeyid"], two["signature"])
	f.Add(two["policy"], "AWS4-HMAC-SHA256", "", "", "", two["awsaccesskeyid"], two["signature"]) // both
	f.Add("", "AWS4-ECDSA-P256-SHA256", "a/20261121/r/s3/aws4_request", "20261121T090000Z", "", "a", "b")
	f.Add("e30=", "AWS4-HMAC-SHA256", "a/b/c/20261121/r/ec2/aws4_request", "20261122T090000Z", strings.Repeat("A", 64), "", "")
	f.Add("e30=", "", "", "", "", strings.Repeat("a", 129), "AAAA====")
	f.Add("", "", "", "", "", "", "")
	v := NewVerifier()
	f.Fuzz(func(t *testing.T, policy, algorithm, credential, date, signature4, access, signature2 string) {
		fields := map[string]string{
			"policy": policy, "x-amz-algorithm": algorithm, "x-amz-credential": credential, "x-amz-date": date, "x-amz-signature": signature4,
			"awsaccesskeyid": access, "signature": signature2,
		}
		p, ok, err := ParsePolicy(func(name string) string { return fields[name] })
		if claims := policy+algorithm+credential+signature4+access+signature2 != ""; ok != claims {
			t.Fatalf("claims %v: %q", claims, fields)
		}
		if err != nil || !ok {
			return
		}
		if p.AccessKey == "" || len(p.AccessKey) > accessKeyMax {
			t.Fatalf("accepted %+v", p)
		}
		if v.CheckPolicy(&p, "wJalrXUtnFEMI") == nil && policy != four["policy"] && policy != two["policy"] {
			t.Fatalf("proven: %q", fields)
		}
	})
}
