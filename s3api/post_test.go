package s3api

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"cairn/s3api/s3err"
	"cairn/storage"
	"cairn/test/seed"
)

// field is a form field; one with the name file is the file.
type formField struct{ name, value string }

const testBoundary = "----cairn"

// encodeForm writes multipart/form-data as browsers do.
func encodeForm(filename string, fields ...formField) []byte {
	var b bytes.Buffer
	for _, f := range fields {
		fmt.Fprintf(&b, "--%s\r\nContent-Disposition: form-data; name=%q", testBoundary, f.name)
		if f.name == "file" {
			fmt.Fprintf(&b, "; filename=\"%s\"\r\nContent-Type: application/x-part", filename)
		}
		fmt.Fprintf(&b, "\r\n\r\n%s\r\n", f.value)
	}
	b.WriteString("--" + testBoundary + "--\r\n")
	return b.Bytes()
}

func (h *harness) post(target string, body []byte) answer {
	h.t.Helper()
	req, err := http.NewRequest("POST", h.srv.URL+target, bytes.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "multipart/form-data; boundary="+testBoundary)
	return h.send(req)
}

const (
	plainConditions = `{"bucket":"bucket"},["starts-with","$key","user/"],{"acl":"private"},["starts-with","$Content-Type","text/"],["content-length-range",1,1000]`
	later           = `"2999-01-01T00:00:00Z"`
)

// signedV2 are the fields of a form of ALICE under version 2.
func signedV2(conditions string, fields ...formField) []formField {
	return signDocument(`{"expiration":`+later+`,"conditions":[`+conditions+`]}`, fields...)
}

func signDocument(doc string, fields ...formField) []formField {
	policy := base64.StdEncoding.EncodeToString([]byte(doc))
	mac := hmac.New(sha1.New, []byte("alice-secret"))
	mac.Write([]byte(policy))
	return append([]formField{{"AWSAccessKeyId", "ALICE"}, {"policy", policy}, {"signature", base64.StdEncoding.EncodeToString(mac.Sum(nil))}}, fields...)
}

func signedV4(conditions string, fields ...formField) []formField {
	const date, scope = "20261121", "20261121/us-east-1/s3/aws4_request"
	own := []formField{{"x-amz-algorithm", "AWS4-HMAC-SHA256"}, {"x-amz-credential", "ALICE/" + scope}, {"x-amz-date", date + "T090000Z"}}
	for _, f := range own {
		conditions += fmt.Sprintf(`,{%q:%q}`, f.name, f.value)
	}
	policy := base64.StdEncoding.EncodeToString([]byte(`{"expiration":` + later + `,"conditions":[` + conditions + `]}`))
	key := []byte("AWS4alice-secret")
	for _, s := range []string{date, "us-east-1", "s3", "aws4_request", policy} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(s))
		key = mac.Sum(nil)
	}
	return append(append(own, formField{"policy", policy}, formField{"x-amz-signature", hex.EncodeToString(key)}), fields...)
}

func plainFields(more ...formField) []formField {
	return append([]formField{{"key", "user/a.txt"}, {"acl", "private"}, {"Content-Type", "text/plain"}}, more...)
}

func TestPostObject(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	file := formField{"file", "the bytes\r\n--" + testBoundary + "x\r\nof the file"} // with what is almost a boundary
	for name, sign := range map[string]func(string, ...formField) []formField{"2": signedV2, "4": signedV4} {
		more := `,["starts-with","$x-amz-meta-a",""],{"cache-control":"no-store"},{"Content-Disposition":"inline"}`
		fields := sign(plainConditions+more, plainFields(formField{"X-Amz-Meta-A", "für ${filename}"}, formField{"Cache-Control", "no-store"}, formField{"Content-Disposition", "inline"}, formField{"x-ignore-me", "x"}, file, formField{"submit", "Upload"}, formField{"file", "another"})...)
		a := h.want(h.post("/bucket", encodeForm(`some\dir\b.txt`, fields...)), 204, "")
		o := h.fake.buckets["bucket"].objects["user/a.txt"]
		if o == nil || string(o.data) != file.value {
			t.Fatalf("version %s: stored %v", name, o)
		}
		if a.body != "" || a.Header.Get("ETag") != `"`+o.etag+`"` || a.Header.Get("Location") != h.srv.URL+"/bucket/user/a.txt" || a.Header.Get("X-Amz-Checksum-Crc64nvme") == "" {
			t.Errorf("version %s: %v %s", name, a.Header, a.body)
		}
		g := h.do("GET", "/bucket/user/a.txt", nil)
		for header, want := range map[string]string{"Content-Type": "text/plain", "X-Amz-Meta-A": "für b.txt", "Cache-Control": "no-store", "Content-Disposition": "inline"} {
			if got := g.Header.Get(header); got != want {
				t.Errorf("version %s: %s is %q, want %q", name, header, got, want)
			}
		}
		delete(h.fake.buckets["bucket"].objects, "user/a.txt")
	}
	// The form's file names the key, by the part behind the last slash, before conditions are looked at.
	h.want(h.post("/bucket/", encodeForm("/x/y/c d.txt", signedV2(plainConditions, formField{"KEY", "user/${filename}"}, formField{"Acl", "private"}, formField{"content-type", "text/a, text/b"}, file)...)), 204, "")
	if h.fake.buckets["bucket"].objects["user/c d.txt"] == nil {
		t.Error("not stored under the file's name")
	}
	// No object is made of what fails.
	h.fake.puts = nil
	h.want(h.post("/nobucket", encodeForm("f", signedV2(strings.Replace(plainConditions, `:"bucket"`, `:"nobucket"`, 1), plainFields(file)...)...)), 404, "NoSuchBucket")
	if len(h.fake.puts) > 0 {
		t.Error("stored")
	}
}

func TestPostObjectAnswers(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	post := func(conditions string, fields ...formField) answer {
		t.Helper()
		fields = append([]formField{{"key", "a b/ü&<"}}, fields...)
		return h.post("/bucket", encodeForm("f", append(signedV2(`{"bucket":"bucket"},["starts-with","$key",""],`+conditions, fields...), formField{"file", "x"})...))
	}
	const etag = "9dd4e461268c8034f5c8564e155c67a6"
	location := h.srv.URL + "/bucket/a%20b/%C3%BC%26%3C"
	for _, s := range []string{"200", "201", "204", "404"} {
		a := post(`{"success_action_status":"`+s+`"}`, formField{"success_action_status", s})
		want := map[string]int{"200": 200, "201": 201}[s]
		if want == 0 {
			want = 204
		}
		if a.StatusCode != want || a.Header.Get("ETag") != `"`+etag+`"` || a.Header.Get("Location") != location {
			t.Errorf("%s: %d %v", s, a.StatusCode, a.Header)
		}
		xml := `<?xml version="1.0" encoding="UTF-8"?>` + "\n<PostResponse><Location>" + location + "</Location><Bucket>bucket</Bucket><Key>a b/ü&amp;&lt;</Key><ETag>&quot;" + etag + "&quot;</ETag></PostResponse>"
		if s == "201" && a.body != xml || s != "201" && a.body != "" {
			t.Errorf("%s: %s", s, a.body)
		}
	}
	h.srv.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for target, want := range map[string]string{
		"https://x.test/done":     "https://x.test/done?bucket=bucket&key=a%20b%2F%C3%BC%26%3C&etag=%22" + etag + "%22",
		"http://x.test/done?id=1": "http://x.test/done?id=1&bucket=bucket&key=a%20b%2F%C3%BC%26%3C&etag=%22" + etag + "%22",
	} {
		for _, name := range []string{"success_action_redirect", "redirect"} {
			if a := post(`["starts-with","$`+name+`",""]`, formField{name, target}); a.StatusCode != 303 || a.Header.Get("Location") != want {
				t.Errorf("%s %s: %d %s", name, target, a.StatusCode, a.Header.Get("Location"))
			}
		}
	}
	for _, target := range []string{"nowhere", "javascript:alert(1)", "//x.test/", "http://%zz"} {
		if a := post(`["starts-with","$success_action_redirect",""]`, formField{"success_action_redirect", target}); a.StatusCode != 204 || a.Header.Get("Location") != location {
			t.Errorf("%s: %d %s", target, a.StatusCode, a.Header.Get("Location"))
		}
	}
}

func TestPostObjectRefusals(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	file := formField{"file", "hello"}
	all := plainFields(file)
	replaced := func(fields []formField, name, value string) []formField {
		out := slices.Clone(fields)
		for i := range out {
			if out[i].name == name {
				out[i].value = value
			}
		}
		return out
	}
	without := func(fields []formField, name string) []formField {
		return slices.DeleteFunc(slices.Clone(fields), func(f formField) bool { return f.name == name })
	}
	doc := func(s string) []formField { return signDocument(s, all...) }
	good := signedV2(plainConditions, all...)
	for name, c := range map[string]struct {
		fields []formField
		status int
		code   string
		text   string
	}{
		"anonymous":             {all, 403, "AccessDenied", ""},
		"no policy":             {without(good, "policy"), 400, "InvalidArgument", "'policy'"},
		"no signature":          {without(good, "signature"), 400, "InvalidArgument", "'signature'"},
		"no access key":         {without(good, "AWSAccessKeyId"), 400, "InvalidArgument", "'AWSAccessKeyId'"},
		"wrong signature":       {replaced(good, "signature", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="), 403, "SignatureDoesNotMatch", ""},
		"unknown key":           {replaced(good, "AWSAccessKeyId", "NOBODY"), 403, "InvalidAccessKeyId", ""},
		"somebody else's":       {replaced(good, "AWSAccessKeyId", "BOB"), 403, "SignatureDoesNotMatch", ""},
		"temporary":             {append([]formField{{"x-amz-security-token", "x"}}, good...), 400, "InvalidToken", ""},
		"version 4, changed":    {replaced(signedV4(plainConditions, all...), "x-amz-date", "20261121T090001Z"), 403, "AccessDenied", "Policy Condition failed"},
		"no key":                {without(good, "key"), 400, "UserKeyMustBeSpecified", "'key'"},
		"no file":               {without(good, "file"), 400, "IncorrectNumberOfFilesInPostRequest", ""},
		"fields behind file":    {append(slices.Clone(signedV2(plainConditions, file)), plainFields()...), 400, "UserKeyMustBeSpecified", ""},
		"field twice":           {append(plainFields(formField{"KEY", "user/b"}), signedV2(plainConditions, file)...), 400, "InvalidArgument", "more than one"},
		"long key":              {replaced(good, "key", "user/"+strings.Repeat("x", 1024)), 400, "KeyTooLongError", ""},
		"key not UTF-8":         {replaced(good, "key", "user/\xff"), 400, "InvalidURI", ""},
		"condition not met":     {replaced(good, "key", "other/a"), 403, "AccessDenied", "Policy Condition failed"},
		"type not met":          {replaced(good, "Content-Type", "text/a, image/png"), 403, "AccessDenied", "Policy Condition failed"},
		"case matters":          {replaced(good, "acl", "Private"), 403, "AccessDenied", "Policy Condition failed"},
		"extra field":           {append([]formField{{"x-amz-meta-a", "b"}}, good...), 403, "AccessDenied", "Extra input fields: x-amz-meta-a"},
		"field not given":       {signedV2(plainConditions+`,["starts-with","$x-amz-meta-a","b"]`, all...), 403, "AccessDenied", "Policy Condition failed"},
		"bucket not in policy":  {signedV2(strings.TrimPrefix(plainConditions, `{"bucket":"bucket"},`), all...), 403, "AccessDenied", "Extra input fields: bucket"},
		"another bucket":        {append([]formField{{"bucket", "other"}}, signedV2(strings.Replace(plainConditions, `:"bucket"`, `:"other"`, 1), all...)...), 403, "AccessDenied", "Policy Condition failed"},
		"too large":             {replaced(good, "file", strings.Repeat("x", 1001)), 400, "EntityTooLarge", ""},
		"too small":             {replaced(good, "file", ""), 400, "EntityTooSmall", ""},
		"two ranges":            {signedV2(plainConditions+`,["content-length-range",0,4]`, all...), 400, "EntityTooLarge", ""},
		"bad digest":            {append([]formField{{"x-amz-checksum-crc32", "AAAAAA=="}}, good...), 400, "BadDigest", ""},
		"no digest":             {append([]formField{{"x-amz-checksum-sha256", "sailor"}}, good...), 400, "BadDigest", ""},
		"bad MD5":               {signedV2(plainConditions+`,["starts-with","$content-md5",""]`, append([]formField{{"Content-MD5", "1B2M2Y8AsgTpgAmY7PhCfg=="}}, all...)...), 400, "BadDigest", ""},
		"public":                {signedV2(strings.Replace(plainConditions, "private", "public-read", 1), replaced(all, "acl", "public-read")...), 501, "NotImplemented", ""},
		"unknown header":        {signedV2(plainConditions+`,["eq","$x-amz-new","1"]`, append([]formField{{"x-amz-new", "1"}}, all...)...), 501, "NotImplemented", "x-amz-new"},
		"line break":            {signedV2(plainConditions+`,["starts-with","$Cache-Control",""]`, append([]formField{{"Cache-Control", "a\r\nSet-Cookie: b"}}, all...)...), 400, "InvalidArgument", ""},
		"no header's name":      {signedV2(plainConditions+`,["starts-with","$x-amz-meta-a b",""]`, append([]formField{{"x-amz-meta-a b", "c"}}, all...)...), 400, "InvalidArgument", ""},
		"large metadata":        {signedV2(plainConditions+`,["starts-with","$x-amz-meta-a",""]`, append([]formField{{"x-amz-meta-a", strings.Repeat("x", 3000)}}, all...)...), 400, "MetadataTooLarge", ""},
		"too many fields":       {append([]formField{{"x-ignore-a", strings.Repeat("x", formBytesMax)}}, good...), 400, "MaxPostPreDataLengthExceededError", ""},
		"tags that are none":    {signedV2(plainConditions+`,["starts-with","$tagging",""]`, append([]formField{{"tagging", "a=b"}}, all...)...), 400, "MalformedXML", ""},
		"expired":               {doc(`{"expiration":"2007-12-01T12:00:00.000Z","conditions":[` + plainConditions + `]}`), 403, "AccessDenied", "Policy expired"},
		"not JSON":              {doc(`{"expiration"`), 400, "InvalidPolicyDocument", "JSON"},
		"not an object":         {doc(`null`), 400, "InvalidPolicyDocument", ""},
		"no expiration":         {doc(`{"conditions":[` + plainConditions + `]}`), 400, "InvalidPolicyDocument", "expiration"},
		"EXPIRATION":            {doc(`{"EXPIRATION":` + later + `,"conditions":[` + plainConditions + `]}`), 400, "InvalidPolicyDocument", "Unexpected"},
		"no conditions":         {doc(`{"expiration":` + later + `}`), 400, "InvalidPolicyDocument", "conditions"},
		"CONDITIONS":            {doc(`{"expiration":` + later + `,"CONDITIONS":[` + plainConditions + `]}`), 400, "InvalidPolicyDocument", "Unexpected"},
		"expiration not a time": {doc(`{"expiration":"2999-01-01 00:00:00+00:00","conditions":[` + plainConditions + `]}`), 400, "InvalidPolicyDocument", "expiration"},
		"empty condition":       {signedV2(`{}`, all...), 400, "InvalidPolicyDocument", "exactly one property"},
		"two in one":            {signedV2(plainConditions+`,{"a":"b","c":"d"}`, all...), 400, "InvalidPolicyDocument", "exactly one property"},
		"number for a value":    {signedV2(plainConditions+`,{"a":1}`, all...), 400, "InvalidPolicyDocument", "string"},
		"no operation":          {signedV2(plainConditions+`,[]`, all...), 400, "InvalidPolicyDocument", "empty"},
		"unknown operation":     {signedV2(plainConditions+`,["in","$key","a"]`, all...), 400, "InvalidPolicyDocument", "'in'"},
		"field without $":       {signedV2(plainConditions+`,["eq","key","user/a.txt"]`, all...), 400, "InvalidPolicyDocument", "$"},
		"eq with two":           {signedV2(plainConditions+`,["eq","$key"]`, all...), 400, "InvalidPolicyDocument", "arguments"},
		"a word":                {signedV2(plainConditions+`,"key"`, all...), 400, "InvalidPolicyDocument", ""},
		"range of one":          {signedV2(plainConditions+`,["content-length-range",0]`, all...), 400, "InvalidPolicyDocument", "content-length-range"},
		"negative range":        {signedV2(plainConditions+`,["content-length-range",-1,0]`, all...), 400, "InvalidPolicyDocument", "content-length-range"},
		"range upside down":     {signedV2(plainConditions+`,["content-length-range",5,4]`, all...), 400, "InvalidPolicyDocument", "content-length-range"},
		"fraction":              {signedV2(plainConditions+`,["content-length-range",0,1.5]`, all...), 400, "InvalidPolicyDocument", "content-length-range"},
	} {
		a := h.post("/bucket", encodeForm("f.txt", c.fields...))
		if a.StatusCode != c.status || a.code() != c.code || !strings.Contains(a.body, strings.ReplaceAll(c.text, "'", "&#39;")) {
			t.Errorf("%s: %d %s, want %d %s %s", name, a.StatusCode, a.body, c.status, c.code, c.text)
		}
	}
	if n := len(h.fake.buckets["bucket"].objects); n > 0 || len(h.fake.puts) > 0 {
		t.Error("a refused form was stored")
	}
	h.want(h.post("/bucket", encodeForm("f.txt", good...)), 204, "")
	// S3's own escapes in a policy, and numbers as strings.
	h.want(h.post("/bucket", encodeForm("f", signedV2(plainConditions+`,["starts-with","$key","user/\$"],["content-length-range","1","9"]`, replaced(all, "key", "user/$a")...)...)), 204, "")
}

func TestPostObjectForms(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	good := string(encodeForm("f", signedV2(strings.TrimSuffix(plainConditions, `,["content-length-range",1,1000]`), plainFields(formField{"file", "hello"})...)...))
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the form", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	const mark = "--" + testBoundary
	for name, c := range map[string]struct {
		form string
		code string
	}{
		"as it is":             {good, ""},
		"text before":          {"preamble\r\n" + good, ""},
		"blanks at boundary":   {edit(mark+"\r\n", mark+" \t\r\n"), ""},
		"no line at the end":   {strings.TrimSuffix(good, "\r\n"), ""},
		"text behind":          {good + "epilogue", ""},
		"file without a name":  {edit(`; filename="f"`, ""), ""},
		"names without quotes": {edit(`name="acl"`, `name=acl`), ""},
		"8bit":                 {edit("Content-Type: application/x-part", "Content-Transfer-Encoding: 8bit"), ""},
		"encoded":              {edit("Content-Type: application/x-part", "Content-Transfer-Encoding: base64"), "NotImplemented"},
		"nothing":              {"", "MalformedPOSTRequest"},
		"no boundary":          {strings.ReplaceAll(good, mark, "--other"), "MalformedPOSTRequest"},
		"no end":               {strings.TrimSuffix(good, mark+"--\r\n"), "MalformedPOSTRequest"},
		"ends in a field":      {good[:200], "MalformedPOSTRequest"},
		"text at boundary":     {edit(mark+"\r\n", mark+"x\r\n"), "MalformedPOSTRequest"},
		"no headers":           {edit("Content-Disposition: form-data; name=\"acl\"\r\n", ""), "MalformedPOSTRequest"},
		"no name":              {edit(` name="acl"`, ""), "MalformedPOSTRequest"},
		"not form-data":        {edit(`form-data; name="acl"`, `attachment; name="acl"`), "MalformedPOSTRequest"},
		"header without colon": {edit("Content-Type: application/x-part", "nonsense"), "MalformedPOSTRequest"},
		"two dispositions":     {edit("Content-Type: application/x-part", `Content-Disposition: form-data; name="file"`), "MalformedPOSTRequest"},
		"long headers":         {edit("Content-Type: application/x-part", "X: "+strings.Repeat("x", partHeaderMax)), "MalformedPOSTRequest"},
		"too much behind":      {strings.Replace(good, "hello", "hello\r\n"+mark+"\r\n"+strings.Repeat("x", formBufBytes+formBytesMax), 1), "MalformedPOSTRequest"},
	} {
		delete(h.fake.buckets["bucket"].objects, "user/a.txt")
		a := h.post("/bucket", []byte(c.form))
		if a.code() != c.code || c.code == "" && a.StatusCode != 204 {
			t.Errorf("%s: %d %s, want %q", name, a.StatusCode, a.body, c.code)
		}
		if o := h.fake.buckets["bucket"].objects["user/a.txt"]; (o != nil) != (c.code == "") || o != nil && string(o.data) != "hello" {
			t.Errorf("%s: stored %v", name, o)
		}
	}
	for _, kind := range []string{"multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + strings.Repeat("x", 71)} {
		req, _ := http.NewRequest("POST", h.srv.URL+"/bucket", strings.NewReader(good))
		req.Header.Set("Content-Type", kind)
		h.want(h.send(req), 400, "MalformedPOSTRequest")
	}
	req, _ := http.NewRequest("POST", h.srv.URL+"/bucket", io.MultiReader(strings.NewReader(good)))
	req.Header.Set("Content-Type", "multipart/form-data; boundary="+testBoundary)
	h.want(h.send(req), 411, "MissingContentLength")
}

// A file of any size passes unchanged, whatever stands behind it and in whatever pieces it comes; its size is judged
// whether or not it is known from the start.
func TestPostObjectSizes(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	rng := rand.New(rand.NewPCG(seed.Of(t), 1))
	for _, size := range []int{0, 1, 1024, formBufBytes - 2*formBytesMax, formBufBytes - 1000, formBufBytes, formBufBytes + formBytesMax, 3 * formBufBytes, 1 << 20} {
		data := make([]byte, size)
		for i := range data {
			data[i] = "\r\n-cairnx"[rng.IntN(9)] // much that could begin a boundary
		}
		for _, behind := range []int{0, 10, formBytesMax - 1000} {
			fields := func(conditions string) []formField {
				return signedV2(`{"bucket":"bucket"},{"key":"k"},`+conditions, formField{"key", "k"}, formField{"file", string(data)}, formField{"submit", strings.Repeat("y", behind)})
			}
			exact := fmt.Sprintf(`["content-length-range",%d,%d]`, size, size)
			h.want(h.post("/bucket", encodeForm("f", fields(exact)...)), 204, "")
			if o := h.fake.buckets["bucket"].objects["k"]; o == nil || !bytes.Equal(o.data, data) {
				t.Fatalf("%d bytes, %d behind: not stored as they came", size, behind)
			}
			delete(h.fake.buckets["bucket"].objects, "k")
			h.want(h.post("/bucket", encodeForm("f", fields(fmt.Sprintf(`["content-length-range",%d,%d]`, size+1, size+10))...)), 400, "EntityTooSmall")
			if size > 0 {
				h.want(h.post("/bucket", encodeForm("f", fields(fmt.Sprintf(`["content-length-range",0,%d]`, size-1))...)), 400, "EntityTooLarge")
			}
			if h.fake.buckets["bucket"].objects["k"] != nil {
				t.Fatalf("%d bytes: a file of the wrong size was stored", size)
			}
		}
	}
}

// An upload that breaks off stores nothing and is answered as other uploads are.
func TestPostObjectBreaksOff(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for _, size := range []int{10, 200_000} {
		form := encodeForm("f", signedV2(`{"bucket":"bucket"},{"key":"k"}`, formField{"key", "k"}, formField{"file", strings.Repeat("x", size)})...)
		for _, cut := range []int{1, 30, 100, len(form) - 300} {
			c := h.dial()
			fmt.Fprintf(c, "POST /bucket HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=%s\r\nContent-Length: %d\r\n\r\n%s", testBoundary, len(form), form[:len(form)-cut])
			c.Conn.(interface{ CloseWrite() error }).CloseWrite()
			h.want(c.read(t, "POST"), 400, "IncompleteBody")
		}
	}
	h.settled(t)
	if len(h.fake.puts) > 0 {
		t.Error("stored")
	}
}

// FuzzForm reads forms in pieces of all sizes: what is read must not depend on them, and a file must be found in the form.
func FuzzForm(f *testing.F) {
	f.Add(encodeForm("f", plainFields(formField{"file", "hello"}, formField{"submit", "x"})...), int64(3))
	f.Add([]byte("--"+testBoundary+"\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n\r\n--"+testBoundary+"--"), int64(1))
	f.Add([]byte("--"+testBoundary+"--\r\n"), int64(2))
	f.Fuzz(func(t *testing.T, data []byte, pieces int64) {
		read := func(src io.Reader) (fields map[string]string, file []byte, err error) {
			form, err := readForm(src, testBoundary, int64(len(data)))
			if err != nil {
				return nil, nil, err
			}
			fields = form.take()
			most, sure := form.atMost(), form.sureLeft
			if sure > most {
				t.Fatalf("%d bytes for certain of at most %d", sure, most)
			}
			file = make([]byte, sure)
			if _, err := io.ReadFull(form, file); err != nil {
				return nil, nil, err
			}
			n, err := form.rest()
			if err != nil {
				return nil, nil, err
			}
			rest, err := io.ReadAll(form)
			if err != nil || int64(len(rest)) != n || sure+n > most {
				t.Fatalf("%d bytes more instead of %d, at most %d: %v", len(rest), n, most, err)
			}
			return fields, append(file, rest...), nil
		}
		fields, file, err := read(bytes.NewReader(data))
		again, fileAgain, errAgain := read(iotest.OneByteReader(bytes.NewReader(data)))
		if (err == nil) != (errAgain == nil) || !maps.Equal(fields, again) || !bytes.Equal(file, fileAgain) {
			t.Fatalf("read differently in pieces: %v, %v", err, errAgain)
		}
		if e, ok := errors.AsType[*s3err.Error](err); err != nil && (!ok || e.Code.Status() >= 500 && e.Code != s3err.NotImplemented) {
			t.Fatalf("not a refusal: %v", err)
		}
		if err == nil && !bytes.Contains(data, append(slices.Clone(file), "\r\n--"+testBoundary...)) {
			t.Fatal("the file is not in the form")
		}
	})
}

// FuzzPostPolicy: whatever a document says, a form that it allows has nothing that it does not speak of.
func FuzzPostPolicy(f *testing.F) {
	f.Add(`{"expiration":`+later+`,"conditions":[`+plainConditions+`]}`, "key", "user/x")
	f.Add(`{"expiration":`+later+`,"conditions":[["eq","$key","\$a\v"],{"b":"c"}]}`, "b", "c")
	f.Add(`{"conditions":[]}`, "", "")
	f.Fuzz(func(t *testing.T, doc, name, value string) {
		p, err := parsePostPolicy(base64.StdEncoding.EncodeToString([]byte(doc)))
		if err != nil {
			if e, ok := errors.AsType[*s3err.Error](err); !ok || e.Code != s3err.InvalidPolicyDocument {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		if p.ranged && (p.min < 0 || p.max < 0) {
			t.Fatalf("a range of %d to %d", p.min, p.max)
		}
		name = strings.ToLower(name)
		if p.check(map[string]string{name: value}, time.Time{}) != nil || freeField(name) {
			return
		}
		if !slices.ContainsFunc(p.conditions, func(c postCondition) bool { return c.field == name }) {
			t.Fatalf("%q passed", name)
		}
	})
}

// Tags come as XML and, like the lock, where PutObject has headers.
func TestPostObjectTagsAndLock(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	post := func(conditions string, fields ...formField) answer {
		t.Helper()
		fields = append([]formField{{"key", "k"}}, fields...)
		return h.post("/bucket", encodeForm("f", append(signedV2(`{"bucket":"bucket"},{"key":"k"},`+conditions, fields...), formField{"file", "hello"})...))
	}
	tagging := func(tags string) formField {
		return formField{"tagging", "<Tagging><TagSet>" + tags + "</TagSet></Tagging>"}
	}
	const anyTags = `["starts-with","$tagging",""]`
	h.want(post(anyTags, tagging("<Tag><Key>a+b @c=</Key><Value>1=2</Value></Tag>\n<Tag><Key>d</Key><Value></Value></Tag>")), 204, "")
	tags := h.fake.buckets["bucket"].objects["k"].attrs.GetTags()
	if len(tags) != 2 || tags[0].Name != "a+b @c=" || tags[0].Value != "1=2" || tags[1].Name != "d" || tags[1].Value != "" {
		t.Errorf("tags: %v", tags)
	}
	h.want(post(anyTags, tagging("<Tag><Key>a</Key><Value>1</Value></Tag><Tag><Key>a</Key><Value>2</Value></Tag>")), 400, "InvalidTag")
	h.want(post(anyTags, tagging("<Tag>")), 400, "MalformedXML")

	const hold = `{"x-amz-object-lock-legal-hold":"ON"}`
	on := formField{"x-amz-object-lock-legal-hold", "ON"}
	h.want(post(hold, on), 400, "InvalidRequest")                                                // nothing proves the file unchanged
	h.want(post(hold, on, formField{"x-amz-checksum-crc32", "NhCmhg=="}), 400, "InvalidRequest") // the bucket has no object lock
}

// A form may not be longer than the largest file and its fields.
func TestPostObjectTooLong(t *testing.T) {
	h := newHarness(t)
	c := h.dial()
	fmt.Fprintf(c, "POST /bucket HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n", int64(storage.PutBytesMax)+3*formBytesMax)
	h.want(c.read(t, "POST"), 400, "EntityTooLarge")
}
