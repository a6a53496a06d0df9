package sigv4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// The examples of AWS's documentation (Authenticating Requests, AWS Signature Version 4).
const (
	exampleKey    = "AKIAIOSFODNN7EXAMPLE"
	exampleSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	exampleScope  = exampleKey + "/20130524/us-east-1/s3/aws4_request"
	exampleStamp  = "20130524T000000Z"
)

func exampleTime() time.Time { return time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC) }

func authorization(signed, signature string) string {
	return Algorithm + " Credential=" + exampleScope + ",SignedHeaders=" + signed + ",Signature=" + signature
}

func request(method, path, query string, headers ...string) *Request {
	r := &Request{Method: method, Path: path, Query: query, Host: "examplebucket.s3.amazonaws.com", Header: http.Header{}}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func check(r *Request, secret string) (Auth, Seed, error) {
	a, ok, err := Parse(r)
	if err != nil {
		return a, Seed{}, err
	}
	if !ok {
		return a, Seed{}, errors.New("anonymous")
	}
	seed, err := NewVerifier().Check(r, &a, secret)
	if err != nil {
		return a, seed, err
	}
	return a, seed, nil
}

func awsExamples() map[string]*Request {
	return map[string]*Request{
		"get": request("GET", "/test.txt", "", "Range", "bytes=0-9", "x-amz-content-sha256", emptySHA256, "x-amz-date", exampleStamp,
			"Authorization", authorization("host;range;x-amz-content-sha256;x-amz-date", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")),
		"put": request("PUT", "/test%24file.text", "", "Date", "Fri, 24 May 2013 00:00:00 GMT", "x-amz-date", exampleStamp, "x-amz-storage-class", "REDUCED_REDUNDANCY",
			"x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			"Authorization", authorization("date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd")),
		"lifecycle": request("GET", "/", "lifecycle", "x-amz-content-sha256", emptySHA256, "x-amz-date", exampleStamp,
			"Authorization", authorization("host;x-amz-content-sha256;x-amz-date", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543")),
		"list": request("GET", "/", "prefix=J&max-keys=2", "x-amz-content-sha256", emptySHA256, "x-amz-date", exampleStamp,
			"Authorization", authorization("host;x-amz-content-sha256;x-amz-date", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")),
		"presigned": request("GET", "/test.txt", "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"),
	}
}

func TestAWSExamples(t *testing.T) {
	for name, r := range awsExamples() {
		a, _, err := check(r, exampleSecret)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if a.AccessKey != exampleKey || !a.Time.Equal(exampleTime()) || a.Presigned != (name == "presigned") {
			t.Errorf("%s: %+v", name, a)
		}
		if err := a.CheckTime(exampleTime()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := a.CheckScope("us-east-1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := check(r, "other"); code(err) != "SignatureDoesNotMatch" {
			t.Errorf("%s with another secret: %v", name, err)
		}
	}
}

// Anything changed in a signed request must break its signature.
func TestTampering(t *testing.T) {
	for name := range awsExamples() {
		for what, change := range map[string]func(*Request){
			"method": func(r *Request) { r.Method = "DELETE" }, "path": func(r *Request) { r.Path += "x" }, "slash": func(r *Request) { r.Path = "/" + r.Path },
			"query": func(r *Request) { r.Query += "&versionId=1" }, "host": func(r *Request) { r.Host = "other" },
		} {
			r := awsExamples()[name]
			change(r)
			if _, _, err := check(r, exampleSecret); code(err) != "SignatureDoesNotMatch" {
				t.Errorf("%s, %s changed: %v", name, what, err)
			}
		}
		r := awsExamples()[name]
		r.Header.Set("x-amz-acl", "public-read")
		if _, _, err := check(r, exampleSecret); code(err) != "AccessDenied" {
			t.Errorf("%s with an unsigned x-amz header: %v", name, err)
		}
	}
	r := awsExamples()["get"]
	r.Header.Set("Range", "bytes=0-10")
	if _, _, err := check(r, exampleSecret); code(err) != "SignatureDoesNotMatch" {
		t.Error("signed header changed:", err)
	}
}

func code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

// sign makes a signature the way a client does that canonicalises by the book: raw strings in, independent of appendPath and the like.
func sign(r *Request, canonicalPath, canonicalQuery, signed string) {
	r.Header.Set("X-Amz-Date", exampleStamp)
	r.Header.Set("X-Amz-Content-Sha256", UnsignedPayload)
	a := Auth{AccessKey: exampleKey, Date: "20130524", Region: "us-east-1", Service: "s3", Scope: exampleScope[len(exampleKey)+1:], Timestamp: exampleStamp}
	var headers strings.Builder
	for _, name := range strings.Split(signed, ";") {
		v := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			v = r.Host
		}
		headers.WriteString(name + ":" + strings.Join(strings.Fields(v), " ") + "\n")
	}
	canonical := r.Method + "\n" + canonicalPath + "\n" + canonicalQuery + "\n" + headers.String() + "\n" + signed + "\n" + UnsignedPayload
	k := newSigningKey(exampleSecret, &a)
	s := NewVerifier().scratch.Get().(*scratch)
	r.Header.Set("Authorization", authorization(signed, string(k.appendSignature(nil, s.stringToSign(&a, []byte(canonical))))))
}

func TestCanonicalisation(t *testing.T) {
	const signed = "host;x-amz-content-sha256;x-amz-date"
	for _, c := range []struct{ path, canonicalPath, query, canonicalQuery string }{
		{"/b/k", "/b/k", "", ""},
		{"/b//k/../x/./y", "/b//k/../x/./y", "", ""},
		{"/b/a+b", "/b/a%2Bb", "", ""},
		{"/b/a+b", "/b/a+b", "", ""}, // signed as sent
		{"/b/a%20b%2fc", "/b/a%20b/c", "", ""},
		{"/b/a%20b%2fc", "/b/a%20b%2fc", "", ""}, // signed as sent
		{"/b/%e6%bc%a2", "/b/%E6%BC%A2", "", ""},
		{"/b/\xe6\xbc\xa2", "/b/%E6%BC%A2", "", ""},
		{"/b/100%", "/b/100%25", "", ""},
		{"/b/~-._!'()*", "/b/~-._%21%27%28%29%2A", "", ""},
		{"/b", "/b", "uploads", "uploads="},
		{"/b", "/b", "prefix=a+b&delimiter=%2f", "delimiter=%2F&prefix=a%20b"},
		{"/b", "/b", "a-b=1&a=2&a=1&A=3", "A=3&a=1&a=2&a-b=1"},
		{"/b", "/b", "prefix=%E6%BC%A2~&&x=1=2", "prefix=%E6%BC%A2~&x=1%3D2"},
	} {
		r := request("GET", c.path, c.query)
		sign(r, c.canonicalPath, c.canonicalQuery, signed)
		if _, _, err := check(r, exampleSecret); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestSignedHeaders(t *testing.T) {
	r := request("PUT", "/b/k", "", "X-Amz-Meta-A", "one two,three", "Content-Length", "7", "X-Amz-Meta-Empty", "")
	sign(r, "/b/k", "", "content-length;host;x-amz-content-sha256;x-amz-date;x-amz-meta-a;x-amz-meta-empty;x-missing")
	if _, _, err := check(r, exampleSecret); err != nil {
		t.Error(err)
	}
	r.Header["X-Amz-Meta-A"] = []string{" one \t two", "three "}
	if _, _, err := check(r, exampleSecret); err != nil {
		t.Error(err)
	}
	r = request("PUT", "/b/k", "")
	r.Host = "store.example:443"
	sign(r, "/b/k", "", "host;x-amz-content-sha256;x-amz-date")
	r.Host = "store.example" // signed with the port, sent without: cannot be known
	if _, _, err := check(r, exampleSecret); code(err) != "SignatureDoesNotMatch" {
		t.Error(err)
	}
	sign(r, "/b/k", "", "host;x-amz-content-sha256;x-amz-date")
	r.Host = "store.example:443" // signed without it, sent with
	if _, _, err := check(r, exampleSecret); err != nil {
		t.Error(err)
	}
	r = request("PUT", "/b/k", "", "X-Amz-Meta-A", "caf\u00e9")
	sign(r, "/b/k", "", "host;x-amz-content-sha256;x-amz-date;x-amz-meta-a")
	if _, _, err := check(r, exampleSecret); err != nil {
		t.Error(err)
	}
	r.Header.Set("X-Amz-Meta-A", "caf\xe9") // sent as Latin-1, signed as UTF-8
	if _, _, err := check(r, exampleSecret); err != nil {
		t.Error(err)
	}
}

func TestMalformed(t *testing.T) {
	sig := strings.Repeat("a", 64)
	ok := "Credential=" + exampleScope + ",SignedHeaders=host,Signature=" + sig
	for h, want := range map[string]string{
		"Bearer x":                 "InvalidArgument",
		"AWS AKIA:abc":             "InvalidRequest",
		"AWS4-ECDSA-P256-SHA256 x": "NotImplemented",
		Algorithm:                  "AuthorizationHeaderMalformed",
		Algorithm + " x":           "AuthorizationHeaderMalformed",
		Algorithm + " " + strings.Replace(ok, "SignedHeaders=host", "SignedHeaders=Host", 1):         "AuthorizationHeaderMalformed",
		Algorithm + " " + strings.Replace(ok, "SignedHeaders=host", "SignedHeaders=x-amz-date", 1):   "AuthorizationHeaderMalformed",
		Algorithm + " " + strings.Replace(ok, sig, sig[1:], 1):                                       "AuthorizationHeaderMalformed",
		Algorithm + " " + strings.Replace(ok, sig, strings.ToUpper(sig), 1):                          "AuthorizationHeaderMalformed",
		Algorithm + " " + strings.Replace(ok, "aws4_request", "aws3", 1):                             "AuthorizationHeaderMalformed",
		Algorithm + " " + strings.Replace(ok, "20130524", "2013-5-24", 1):                            "AuthorizationHeaderMalformed",
		Algorithm + " " + strings.Replace(ok, "20130524", "20130525", 1):                             "AuthorizationHeaderMalformed",
		Algorithm + " " + strings.Replace(ok, exampleKey, "", 1):                                     "AuthorizationHeaderMalformed",
		Algorithm + " " + ok + ",Signature=" + sig:                                                   "AuthorizationHeaderMalformed",
		Algorithm + " " + ok + ",Credential=" + exampleScope:                                         "AuthorizationHeaderMalformed",
		Algorithm + " " + ok + ",Other=1":                                                            "AuthorizationHeaderMalformed",
		Algorithm + " Credential=" + exampleScope + ",SignedHeaders=host":                            "AuthorizationHeaderMalformed",
		Algorithm + " Credential=" + exampleScope + ",Signature=" + sig:                              "AuthorizationHeaderMalformed",
		Algorithm + " SignedHeaders=host,Signature=" + sig:                                           "AuthorizationHeaderMalformed",
		Algorithm + " Credential=a,SignedHeaders=host,Signature=" + sig:                              "AuthorizationHeaderMalformed",
		Algorithm + " Credential=" + exampleScope + ",SignedHeaders=host:x;host,Signature=" + sig:    "AuthorizationHeaderMalformed",
		Algorithm + " Credential=" + strings.Repeat("A", 500) + exampleScope + ",SignedHeaders=host": "AuthorizationHeaderMalformed",
	} {
		r := request("GET", "/", "", "Authorization", h, "X-Amz-Date", exampleStamp, "X-Amz-Content-Sha256", emptySHA256)
		if _, ok, err := Parse(r); !ok || err == nil || err.Code != want {
			t.Errorf("%q: %v, want %s", h, err, want)
		}
	}
	for header, want := range map[string]string{
		"X-Amz-Date=": "AccessDenied", "X-Amz-Date=yesterday": "AccessDenied", "X-Amz-Date=20130631T000000Z": "AccessDenied", "X-Amz-Date=20130524T250000Z": "AccessDenied",
		"X-Amz-Content-Sha256=": "InvalidArgument", "X-Amz-Content-Sha256=xyz": "InvalidArgument", "X-Amz-Content-Sha256=STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD": "NotImplemented",
	} {
		name, value, _ := strings.Cut(header, "=")
		r := request("GET", "/", "", "Authorization", Algorithm+" "+ok, "X-Amz-Date", exampleStamp, "X-Amz-Content-Sha256", emptySHA256)
		r.Header.Set(name, value)
		if _, _, err := Parse(r); err == nil || err.Code != want {
			t.Errorf("%q: %v, want %s", header, err, want)
		}
	}
	r := request("GET", "/", "", "Authorization", Algorithm+" "+ok, "X-Amz-Date", exampleStamp)
	if _, _, err := Parse(r); err == nil || err.Code != "InvalidRequest" {
		t.Error("no x-amz-content-sha256:", err)
	}
	r = request("GET", "/", "", "Authorization", Algorithm+" "+ok, "Date", "Fri, 24 May 2013 00:00:00 GMT", "X-Amz-Content-Sha256", emptySHA256)
	if a, _, err := Parse(r); err != nil || a.Timestamp != exampleStamp {
		t.Error("Date header:", err)
	}
	r = awsExamples()["get"]
	r.Query = awsExamples()["presigned"].Query
	if _, _, err := Parse(r); err == nil || err.Code != "InvalidArgument" {
		t.Error("two mechanisms:", err)
	}
	for _, anonymous := range []*Request{request("GET", "/", ""), request("GET", "/", "prefix=X-Amz-"), request("GET", "/", "", "Authorization", "")} {
		if _, ok, err := Parse(anonymous); ok || err != nil {
			t.Error("anonymous:", ok, err)
		}
	}
}

func TestPresigned(t *testing.T) {
	good := awsExamples()["presigned"].Query
	for change, want := range map[string]string{
		"X-Amz-Expires=86400>X-Amz-Expires=604801":                "AuthorizationQueryParametersError",
		"X-Amz-Expires=86400>X-Amz-Expires=99999999999999999999":  "AuthorizationQueryParametersError",
		"X-Amz-Expires=86400>X-Amz-Expires=-1":                    "AccessDenied",
		"X-Amz-Expires=86400>X-Amz-Expires=-99999999999999999999": "AccessDenied",
		"X-Amz-Expires=86400>X-Amz-Expires=-1d":                   "AuthorizationQueryParametersError",
		"X-Amz-Expires=86400>X-Amz-Expires=1d":                    "AuthorizationQueryParametersError",
		"X-Amz-Expires=86400>X-Amz-Expires=":                      "AuthorizationQueryParametersError",
		"&X-Amz-SignedHeaders=host>":                              "AuthorizationQueryParametersError",
		"X-Amz-SignedHeaders=host>X-Amz-SignedHeaders=x":          "AuthorizationQueryParametersError",
		"AWS4-HMAC-SHA256>AWS4-HMAC-MD5":                          "AuthorizationQueryParametersError",
		"AWS4-HMAC-SHA256>AWS4-ECDSA-P256-SHA256":                 "NotImplemented",
		"Date=20130524T000000Z>Date=20130525T000000Z":             "AuthorizationQueryParametersError",
		"Date=20130524T000000Z>Date=now":                          "AuthorizationQueryParametersError",
		"%2Faws4_request>":                                        "AuthorizationQueryParametersError",
		"X-Amz-Expires=86400>X-Amz-Expires=86400&X-Amz-Date=x":    "AuthorizationQueryParametersError",
		"X-Amz-Expires=86400>X-Amz-Expires=86399":                 "SignatureDoesNotMatch",
	} {
		from, to, _ := strings.Cut(change, ">")
		r := request("GET", "/test.txt", strings.Replace(good, from, to, 1))
		if _, _, err := check(r, exampleSecret); code(err) != want {
			t.Errorf("%s: %v, want %s", change, err, want)
		}
	}
	if _, ok, err := Parse(request("GET", "/", "AWSAccessKeyId=x&Signature=y&Expires=1")); !ok || err == nil || err.Code != "InvalidRequest" {
		t.Error("SigV2 query:", err)
	}
	a, _, _ := check(awsExamples()["presigned"], exampleSecret)
	for offset, want := range map[time.Duration]string{
		-16 * time.Minute: "AccessDenied", -14 * time.Minute: "", 0: "", 24 * time.Hour: "", 24*time.Hour + time.Second: "AccessDenied",
	} {
		if err := a.CheckTime(exampleTime().Add(offset)); (err == nil) != (want == "") || err != nil && err.Code != want {
			t.Errorf("at %v: %v", offset, err)
		}
	}
	a, _, _ = check(awsExamples()["get"], exampleSecret)
	for offset, want := range map[time.Duration]string{-16 * time.Minute: "RequestTimeTooSkewed", -15 * time.Minute: "", 15 * time.Minute: "", 16 * time.Minute: "RequestTimeTooSkewed"} {
		if err := a.CheckTime(exampleTime().Add(offset)); (err == nil) != (want == "") || err != nil && err.Code != want {
			t.Errorf("at %v: %v", offset, err)
		}
	}
	if err := a.CheckScope("eu-west-1"); err == nil || err.Code != "AuthorizationHeaderMalformed" || err.Fields[0] != (Field{"Region", "eu-west-1"}) {
		t.Error(err)
	}
	a.Service = "ec2"
	if err := a.CheckScope("us-east-1"); err == nil {
		t.Error("service ec2 accepted")
	}
}

func streamingExample(trailer bool) *Request {
	signed, seed := "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class", "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
	sum := StreamingSignedPayload
	r := request("PUT", "/examplebucket/chunkObject.txt", "", "x-amz-date", exampleStamp, "x-amz-storage-class", "REDUCED_REDUNDANCY",
		"Content-Encoding", "aws-chunked", "x-amz-decoded-content-length", "66560", "Content-Length", "66824")
	if trailer {
		signed, seed = "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer", "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
		sum = StreamingSignedPayloadTrailer
		r.Header.Set("x-amz-trailer", "x-amz-checksum-crc32c")
	}
	r.Host = "s3.amazonaws.com"
	r.Header.Set("x-amz-content-sha256", sum)
	r.Header.Set("Authorization", authorization(signed, seed))
	return r
}

func exampleBody(trailer bool) string {
	a64k, a1k := strings.Repeat("a", 65536), strings.Repeat("a", 1024)
	if !trailer {
		return "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" + a64k + "\r\n" +
			"400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + a1k + "\r\n" +
			"0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
	}
	return "10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n" + a64k + "\r\n" +
		"400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n" + a1k + "\r\n" +
		"0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n" +
		"x-amz-checksum-crc32c:sOO8/Q==\r\n" +
		"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
}

func TestStreamingExamples(t *testing.T) {
	want := bytes.Repeat([]byte{'a'}, 66560)
	for _, trailer := range []bool{false, true} {
		a, seed, err := check(streamingExample(trailer), exampleSecret)
		if err != nil {
			t.Fatal(err)
		}
		if !a.Payload.Chunked() || a.Payload.Trailer() != trailer {
			t.Errorf("payload %v", a.Payload)
		}
		body := exampleBody(trailer)
		for name, src := range map[string]io.Reader{
			"whole": strings.NewReader(body), "bytewise": iotest.OneByteReader(strings.NewReader(body)), "with eof": iotest.DataErrReader(strings.NewReader(body)),
		} {
			c := NewChunkReader(src, a.Payload, seed)
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("trailer %v, %s: %d bytes, %v", trailer, name, len(got), err)
			}
			if trailer && fmt.Sprint(c.Trailers()) != "[{x-amz-checksum-crc32c sOO8/Q==}]" {
				t.Errorf("trailers %v", c.Trailers())
			}
		}
		// Where minio-go and others put their line ends.
		if trailer {
			for _, v := range []string{
				strings.Replace(body, "sOO8/Q==\r\n", "sOO8/Q==\n\r\n", 1), strings.Replace(body, "f992\r\n", "f992\r\n\r\n", 1), strings.TrimSuffix(body, "\r\n"),
			} {
				if _, err := io.ReadAll(NewChunkReader(strings.NewReader(v), a.Payload, seed)); err != nil {
					t.Error(err)
				}
			}
		}
		for what, change := range map[string]string{
			"data": "aaaa>aaab", "first signature": "ad80>ad81", "first signature (trailer)": "b474>b475", "last": "b6c6>b6c7", "last (trailer)": "2ca2>2ca3",
			"trailer": "sOO8>sOO9", "trailer signature": "d81f>d82f",
		} {
			from, to, _ := strings.Cut(change, ">")
			bad := strings.Replace(body, from, to, 1)
			if bad == body {
				continue
			}
			if _, err := io.ReadAll(NewChunkReader(strings.NewReader(bad), a.Payload, seed)); code(err) != "SignatureDoesNotMatch" {
				t.Errorf("trailer %v, %s changed: %v", trailer, what, err)
			}
		}
		// Cut anywhere it must not read as complete; only blank lines at the end may go.
		end := len(strings.TrimRight(body, "\r\n"))
		for cut := 0; cut < end; cut += 1 + cut%97 {
			for _, r := range []io.Reader{strings.NewReader(body[:cut]), io.MultiReader(strings.NewReader(body[:cut]), iotest.ErrReader(io.ErrUnexpectedEOF))} {
				if _, err := io.ReadAll(NewChunkReader(r, a.Payload, seed)); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("trailer %v, cut at %d of %d: %v", trailer, cut, end, err)
				}
			}
		}
	}
}

func TestUnsignedChunks(t *testing.T) {
	read := func(body string) (string, []Field, error) {
		c := NewChunkReader(strings.NewReader(body), PayloadUnsignedTrailer, Seed{})
		b, err := io.ReadAll(c)
		return string(b), c.Trailers(), err
	}
	got, trailers, err := read("5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nX-Amz-Checksum-Crc32: AAAA \r\n\r\n")
	if err != nil || got != "hello!" || fmt.Sprint(trailers) != "[{x-amz-checksum-crc32 AAAA}]" {
		t.Errorf("%q %v %v", got, trailers, err)
	}
	for body, want := range map[string]string{
		"": "IncompleteBody", "5": "IncompleteBody", "5\r\n": "IncompleteBody", "5\r\nhell": "IncompleteBody", "5\r\nhello": "IncompleteBody", "5\r\nhello\r\n": "IncompleteBody",
		"5\r\nhelloX\r\n0\r\n\r\n": "IncompleteBody", "5\nhello\r\n0\r\n\r\n": "IncompleteBody", "x\r\n": "IncompleteBody", "\r\n": "IncompleteBody", "-5\r\n": "IncompleteBody",
		"fffffffffffffffff\r\n": "IncompleteBody", "ffffffffffffffff\r\n": "EntityTooLarge", "140000001\r\n": "EntityTooLarge",
		"5;" + strings.Repeat("x", 600) + "\r\nhello\r\n0\r\n\r\n": "IncompleteBody",
		"0\r\nno colon\r\n": "MalformedTrailerError", "0\r\n" + strings.Repeat("a:b\r\n", 1000): "MalformedTrailerError", "0\r\na:b": "IncompleteBody",
	} {
		if _, _, err := read(body); code(err) != want {
			t.Errorf("%.40q: %v, want %s", body, err, want)
		}
	}
}

func TestKeyCacheIsBounded(t *testing.T) {
	v := NewVerifier()
	for i := range keysMax + 100 {
		a := Auth{AccessKey: fmt.Sprint("k", i), Date: "20130524", Region: "r", Service: "s3"}
		v.signingKey("secret", &a)
	}
	if n := len(v.keys.m); n > keysMax {
		t.Errorf("%d keys", n)
	}
	a := Auth{AccessKey: "k", Date: "20130524", Region: "r", Service: "s3"}
	if k := v.signingKey("one", &a); k != v.signingKey("one", &a) || k == v.signingKey("two", &a) {
		t.Error("a changed secret must make another key")
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(authorization("host;x-amz-date", strings.Repeat("a", 64)), "20130524T000000Z", emptySHA256)
	f.Add("AWS x:y", "", "UNSIGNED-PAYLOAD")
	v := NewVerifier()
	f.Fuzz(func(t *testing.T, auth, date, sum string) {
		r := request("GET", "/a", "b=c", "Authorization", auth, "X-Amz-Date", date, "X-Amz-Content-Sha256", sum)
		a, ok, err := Parse(r)
		if err != nil || !ok {
			return
		}
		if a.Scope == "" || len(a.Timestamp) != 16 || a.AccessKey == "" || len(a.Signature) != 64 {
			t.Fatalf("accepted %+v", a)
		}
		if _, err := v.Check(r, &a, "secret"); err == nil {
			t.Fatal("a random signature matched")
		}
	})
}

func FuzzPresign(f *testing.F) {
	f.Add("/test.txt", awsExamples()["presigned"].Query)
	f.Add("/%2f+%", "X-Amz-Algorithm=%41&a=b&a")
	v := NewVerifier()
	f.Fuzz(func(t *testing.T, path, query string) {
		r := request("GET", path, query)
		a, ok, err := Parse(r)
		if err != nil || !ok {
			return
		}
		if a.Expires < 0 || a.Expires > ExpiresMax {
			t.Fatalf("accepted %+v", a)
		}
		v.Check(r, &a, "secret")
	})
}

// Canonical forms must be stable: encoding what is canonical changes nothing.
func FuzzCanonical(f *testing.F) {
	f.Add("/a%2fb+c%", "b=1&a=%20+&c")
	f.Fuzz(func(t *testing.T, path, query string) {
		one := appendPath(nil, path)
		if two := appendPath(nil, string(one)); !bytes.Equal(one, two) {
			t.Fatalf("path %q: %q, then %q", path, one, two)
		}
		s := &scratch{}
		q1 := string(s.appendQuery(nil, query, false))
		if q2 := string(s.appendQuery(nil, q1, false)); q1 != q2 {
			t.Fatalf("query %q: %q, then %q", query, q1, q2)
		}
	})
}

// FuzzChunks: whatever comes, no more is decoded than came, and a signed body is never accepted.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"), uint8(PayloadUnsignedTrailer-PayloadSigned))
	f.Add([]byte("1;chunk-signature="+strings.Repeat("a", 64)+"\r\nx\r\n"), uint8(0))
	a, seed, err := check(streamingExample(true), exampleSecret)
	if err != nil {
		f.Fatal(err, a)
	}
	f.Fuzz(func(t *testing.T, b []byte, p uint8) {
		payload := PayloadSigned + Payload(p%3)
		var out [2][]byte
		var errs [2]error
		for i, src := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b))} {
			out[i], errs[i] = io.ReadAll(NewChunkReader(src, payload, seed))
		}
		if (errs[0] == nil) != (errs[1] == nil) || errs[0] == nil && !bytes.Equal(out[0], out[1]) {
			t.Fatalf("%v and %v", errs[0], errs[1])
		}
		if len(out[0]) > len(b) || errs[0] == nil && payload != PayloadUnsignedTrailer {
			t.Fatalf("accepted %d bytes of %d", len(out[0]), len(b))
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	r := awsExamples()["get"]
	v := NewVerifier()
	b.ReportAllocs()
	for b.Loop() {
		a, _, err := Parse(r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := v.Check(r, &a, exampleSecret); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChunks(b *testing.B) {
	_, seed, err := check(streamingExample(false), exampleSecret)
	if err != nil {
		b.Fatal(err)
	}
	body := []byte(exampleBody(false))
	buf := make([]byte, 1<<20)
	b.SetBytes(66560)
	b.ReportAllocs()
	for b.Loop() {
		c := NewChunkReader(bytes.NewReader(body), PayloadSigned, seed)
		for {
			if _, err := c.Read(buf); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}
