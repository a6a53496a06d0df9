//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// request is one hand-made request; signed unless said otherwise.
type request struct {
	method  string
	path    string // escaped, with query
	headers map[string]string
	body    string
	hash    string    // x-amz-content-sha256; that of the body if empty
	at      time.Time // signed as of; now if zero
	access  string    // other keys than the right ones
	secret  string
	expires time.Duration       // presigned, valid that long
	change  func(*http.Request) // after signing
}

type answer struct {
	status int
	header http.Header
	body   []byte
	code   string // of the XML error
}

func (e endpoint) make(t *testing.T, r request) *http.Request {
	t.Helper()
	req, err := http.NewRequest(r.method, e.url()+r.path, strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range r.headers {
		req.Header.Set(k, v)
	}
	keys := aws.Credentials{AccessKeyID: e.access, SecretAccessKey: e.secret}
	if r.access != "" {
		keys.AccessKeyID = r.access
	}
	if r.secret != "" {
		keys.SecretAccessKey = r.secret
	}
	if r.at.IsZero() {
		r.at = time.Now()
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	if r.expires > 0 {
		q := req.URL.Query()
		q.Set("X-Amz-Expires", fmt.Sprint(int(r.expires.Seconds())))
		req.URL.RawQuery = q.Encode()
		signed, _, err := signer.PresignHTTP(t.Context(), keys, req, "UNSIGNED-PAYLOAD", "s3", region, r.at)
		if err != nil {
			t.Fatal(err)
		}
		if req.URL, err = url.Parse(signed); err != nil {
			t.Fatal(err)
		}
	} else {
		if r.hash == "" {
			r.hash = sumBytes([]byte(r.body))
		}
		req.Header.Set("x-amz-content-sha256", r.hash)
		if err := signer.SignHTTP(t.Context(), keys, req, r.hash, "s3", region, r.at); err != nil {
			t.Fatal(err)
		}
	}
	if r.change != nil {
		r.change(req)
	}
	return req
}

func (e endpoint) do(t *testing.T, r request) (a answer) {
	t.Helper()
	resp, err := http.DefaultClient.Do(e.make(t, r))
	if err != nil {
		t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	defer resp.Body.Close()
	a.status, a.header = resp.StatusCode, resp.Header
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	var x struct {
		XMLName       xml.Name
		Code, Message string
		RequestID     string `xml:"RequestId"`
	}
	if xml.Unmarshal(a.body, &x) == nil && x.XMLName.Local == "Error" {
		a.code = x.Code
		if x.Message == "" || x.RequestID == "" {
			t.Errorf("%s %s: error without message or request id: %s", r.method, r.path, a.body)
		}
	}
	return a
}

func TestBadInput(t *testing.T) {
	e := anyServer(t, zones()...)
	bucket := newBucket(t, e)
	b := "/" + bucket
	put(t, e.client(), bucket, "there", noiseBytes(1, 1000))
	upload, err := e.client().CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: aws.String("mp")})
	if err != nil {
		t.Fatal(err)
	}
	id := url.QueryEscape(*upload.UploadId)
	var etags []string
	for n := 1; n <= 2; n++ {
		out, err := e.client().UploadPart(t.Context(), &s3.UploadPartInput{Bucket: &bucket, Key: aws.String("mp"), UploadId: upload.UploadId, PartNumber: aws.Int32(int32(n)), Body: strings.NewReader("tiny")})
		if err != nil {
			t.Fatal(err)
		}
		etags = append(etags, *out.ETag)
	}
	complete := func(parts ...string) string {
		return "<CompleteMultipartUpload>" + strings.Join(parts, "") + "</CompleteMultipartUpload>"
	}
	part := func(n int, etag string) string {
		return fmt.Sprintf("<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", n, etag)
	}
	wrongMD5 := md5.Sum([]byte("other"))
	tests := []struct {
		name   string
		status int
		codes  string // any of these, separated by |
		r      request
	}{
		{"anonymous", 403, "AccessDenied", request{method: "GET", path: "/", change: anonymous}},
		{"anonymous on a bucket", 403, "AccessDenied", request{method: "GET", path: b, change: anonymous}},
		{"anonymous put", 403, "AccessDenied", request{method: "PUT", path: b + "/bad", body: "x", change: anonymous}},
		{"unknown access key", 403, "InvalidAccessKeyId", request{method: "GET", path: b, access: "AKNOBODY"}},
		{"wrong secret", 403, "SignatureDoesNotMatch", request{method: "PUT", path: b + "/bad", body: "x", secret: "wrongwrong"}},
		{"changed header", 403, "SignatureDoesNotMatch", request{method: "GET", path: b, headers: map[string]string{"X-Amz-Meta-A": "1"}, change: func(r *http.Request) { r.Header.Set("X-Amz-Meta-A", "2") }}},
		{"changed path", 403, "SignatureDoesNotMatch", request{method: "GET", path: b + "/other", change: func(r *http.Request) { r.URL.Path = b + "/there" }}},
		{"changed query", 403, "SignatureDoesNotMatch", request{method: "GET", path: b + "?list-type=2&prefix=a", change: func(r *http.Request) { r.URL.RawQuery = "list-type=2&prefix=b" }}},
		{"garbled authorization", 400, "AuthorizationHeaderMalformed|InvalidArgument", request{method: "GET", path: b, change: func(r *http.Request) { r.Header.Set("Authorization", "AWS4-HMAC-SHA256 nonsense") }}},
		{"old signature", 400, "InvalidRequest|InvalidArgument|AccessDenied", request{method: "GET", path: b, change: func(r *http.Request) { r.Header.Set("Authorization", "AWS "+e.access+":c2ln") }}},
		{"clock behind", 403, "RequestTimeTooSkewed", request{method: "GET", path: b, at: time.Now().Add(-20 * time.Minute)}},
		{"clock ahead", 403, "RequestTimeTooSkewed", request{method: "GET", path: b, at: time.Now().Add(20 * time.Minute)}},
		{"expired presign", 403, "AccessDenied", request{method: "GET", path: b + "/there", expires: time.Minute, at: time.Now().Add(-2 * time.Minute)}},
		{"presign not yet valid", 403, "AccessDenied|RequestTimeTooSkewed", request{method: "GET", path: b + "/there", expires: time.Minute, at: time.Now().Add(time.Hour)}},
		{"presign for too long", 400, "AuthorizationQueryParametersError", request{method: "GET", path: b + "/there", expires: 8 * 24 * time.Hour}},
		{"presign for another key", 403, "SignatureDoesNotMatch", request{method: "GET", path: b + "/other", expires: time.Minute, change: func(r *http.Request) { r.URL.Path = b + "/there" }}},
		{"presign for another method", 403, "SignatureDoesNotMatch", request{method: "GET", path: b + "/there", expires: time.Minute, change: func(r *http.Request) { r.Method = "DELETE" }}},

		{"no such bucket", 404, "NoSuchBucket", request{method: "GET", path: b + "-no/there"}},
		{"no such key", 404, "NoSuchKey", request{method: "GET", path: b + "/nothing"}},
		{"bad bucket name", 400, "InvalidBucketName", request{method: "PUT", path: "/Bad_Name!"}},
		{"key too long", 400, "KeyTooLongError", request{method: "PUT", path: b + "/" + strings.Repeat("k", 1025), body: "x"}},
		{"range past the end", 416, "InvalidRange", request{method: "GET", path: b + "/there", headers: map[string]string{"Range": "bytes=1000-"}}},
		{"metadata too large", 400, "MetadataTooLarge", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"X-Amz-Meta-A": strings.Repeat("m", 2100)}}},
		{"unknown storage class", 400, "InvalidStorageClass", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"X-Amz-Storage-Class": "GOLD"}}},

		{"wrong Content-MD5", 400, "BadDigest", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"Content-MD5": base64.StdEncoding.EncodeToString(wrongMD5[:])}}},
		{"malformed Content-MD5", 400, "InvalidDigest", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"Content-MD5": "short"}}},
		{"wrong payload hash", 400, "XAmzContentSHA256Mismatch", request{method: "PUT", path: b + "/bad", body: "x", hash: sumBytes([]byte("y"))}},
		{"wrong CRC32", 400, "BadDigest|XAmzContentChecksumMismatch", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"X-Amz-Checksum-Crc32": "AAAAAA=="}}},
		{"malformed CRC32", 400, "InvalidRequest|BadDigest", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"X-Amz-Checksum-Crc32": "AAAA"}}},
		{"no length", 411, "MissingContentLength", request{method: "PUT", path: b + "/bad", hash: "UNSIGNED-PAYLOAD", change: func(r *http.Request) { r.ContentLength = -1; r.Body = io.NopCloser(strings.NewReader("x")) }}},

		{"malformed delete XML", 400, "MalformedXML", withMD5(request{method: "POST", path: b + "?delete=", body: "<Delete><Object>"})},
		{"delete of too many", 400, "MalformedXML", withMD5(request{method: "POST", path: b + "?delete=", body: "<Delete>" + strings.Repeat("<Object><Key>k</Key></Object>", 1001) + "</Delete>"})},
		{"complete with malformed XML", 400, "MalformedXML", request{method: "POST", path: b + "/mp?uploadId=" + id, body: "<Complete"}},
		{"complete without parts", 400, "MalformedXML|InvalidRequest", request{method: "POST", path: b + "/mp?uploadId=" + id, body: complete()}},
		{"bad part order", 400, "InvalidPartOrder", request{method: "POST", path: b + "/mp?uploadId=" + id, body: complete(part(2, etags[1]), part(1, etags[0]))}},
		{"unknown part", 400, "InvalidPart", request{method: "POST", path: b + "/mp?uploadId=" + id, body: complete(part(3, etags[1]))}},
		{"wrong ETag of a part", 400, "InvalidPart", request{method: "POST", path: b + "/mp?uploadId=" + id, body: complete(part(1, `"0123456789abcdef0123456789abcdef"`))}},
		{"part too small", 400, "EntityTooSmall", request{method: "POST", path: b + "/mp?uploadId=" + id, body: complete(part(1, etags[0]), part(2, etags[1]))}},
		{"part number 0", 400, "InvalidArgument", request{method: "PUT", path: b + "/mp?partNumber=0&uploadId=" + id, body: "x"}},
		{"part number 10001", 400, "InvalidArgument", request{method: "PUT", path: b + "/mp?partNumber=10001&uploadId=" + id, body: "x"}},
		{"unknown upload", 404, "NoSuchUpload", request{method: "PUT", path: b + "/mp?partNumber=1&uploadId=0123456789abcdef0123456789abcdef", body: "x"}},
		{"upload of another key", 404, "NoSuchUpload", request{method: "PUT", path: b + "/other?partNumber=1&uploadId=" + id, body: "x"}},
		{"abort of nothing", 404, "NoSuchUpload", request{method: "DELETE", path: b + "/mp?uploadId=nonsense"}},

		{"copy from nothing", 404, "NoSuchKey", request{method: "PUT", path: b + "/bad", headers: map[string]string{"X-Amz-Copy-Source": bucket + "/nothing"}}},
		{"copy from nonsense", 400, "InvalidArgument", request{method: "PUT", path: b + "/bad", headers: map[string]string{"X-Amz-Copy-Source": "nonsense"}}},
		{"copy onto itself", 400, "InvalidRequest", request{method: "PUT", path: b + "/there", headers: map[string]string{"X-Amz-Copy-Source": bucket + "/there"}}},
		{"bad max-keys", 400, "InvalidArgument", request{method: "GET", path: b + "?list-type=2&max-keys=many"}},
		{"bad continuation token", 400, "InvalidArgument", request{method: "GET", path: b + "?list-type=2&continuation-token=%00"}},
		{"bad encoding-type", 400, "InvalidArgument", request{method: "GET", path: b + "?list-type=2&encoding-type=base64"}},
		{"bucket not empty", 409, "BucketNotEmpty", request{method: "DELETE", path: b}},

		{"lifecycle without a digest", 400, "InvalidRequest", request{method: "PUT", path: b + "?lifecycle=", body: "<LifecycleConfiguration/>"}},
		{"unsupported: replication", 501, "NotImplemented", request{method: "PUT", path: b + "?replication=", body: "<ReplicationConfiguration/>"}},
		{"unsupported: policy", 501, "NotImplemented", request{method: "PUT", path: b + "?policy=", body: "{}"}},
		{"restore in no time at all", 400, "MalformedXML", request{method: "POST", path: b + "/there?restore=", body: "<RestoreRequest><Days>1</Days><GlacierJobParameters><Tier>Now</Tier></GlacierJobParameters></RestoreRequest>"}},
		{"restore of what is not archived", 403, "InvalidObjectState", request{method: "POST", path: b + "/there?restore=", body: "<RestoreRequest><Days>1</Days></RestoreRequest>"}},
		{"unsupported: storage class", 501, "NotImplemented", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"X-Amz-Storage-Class": "OUTPOSTS"}}},
		{"retention without a digest", 400, "InvalidRequest", request{method: "PUT", path: b + "/there?retention=", body: "<Retention/>"}},
		{"unsupported: SSE", 501, "NotImplemented", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"X-Amz-Server-Side-Encryption": "AES256"}}},
		{"unsupported: canned ACL", 501, "NotImplemented", request{method: "PUT", path: b + "/bad", body: "x", headers: map[string]string{"X-Amz-Acl": "public-read"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := e.do(t, test.r)
			ok := false
			for _, c := range strings.Split(test.codes, "|") {
				ok = ok || a.code == c
			}
			if a.status != test.status || !ok {
				t.Errorf("got %d %s, want %d %s\n%.500s", a.status, a.code, test.status, test.codes, a.body)
			}
			if a.header.Get("x-amz-request-id") == "" {
				t.Error("no x-amz-request-id")
			}
		})
	}
	keys, _ := listKeys(t, e.client(), &s3.ListObjectsV2Input{Bucket: &bucket})
	if len(keys) != 1 || keys[0] != "there" {
		t.Errorf("refused requests left something: %q", keys)
	}
}

func withMD5(r request) request {
	digest := md5.Sum([]byte(r.body))
	r.headers = map[string]string{"Content-MD5": base64.StdEncoding.EncodeToString(digest[:])}
	return r
}

func anonymous(r *http.Request) { r.Header.Del("Authorization") }

// TestBodiesOfTheWrongLength speaks HTTP by hand: a body that ends early, one that goes on too long, and a good request after a refused one on the same connection.
func TestBodiesOfTheWrongLength(t *testing.T) {
	e := anyServer(t, zones()...)
	bucket := newBucket(t, e)
	send := func(text string, half bool) (*http.Response, net.Conn) {
		conn, err := net.Dial("tcp", e.host)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		if half {
			conn.(*net.TCPConn).CloseWrite()
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return nil, conn // closed without an answer: fine for a client that broke its promise
		}
		return resp, conn
	}
	text := func(r request, length int, body string) string {
		req := e.make(t, r)
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", req.Method, req.URL.RequestURI(), e.host, length)
		req.Header.Write(&b)
		return b.String() + "\r\n" + body
	}
	payload := string(noiseBytes(9, 300000))
	hash := sumBytes([]byte(payload))
	// The length is signed: sign for what is announced.
	announce := func(n int) request {
		return request{method: "PUT", path: "/" + bucket + "/short", body: payload[:n], hash: hash}
	}
	resp, conn := send(text(announce(300000), 300000, payload[:200000]), true)
	if resp != nil && resp.StatusCode < 400 {
		t.Errorf("a body that ended early was answered %s", resp.Status)
	}
	conn.Close()
	for _, h := range []string{"UNSIGNED-PAYLOAD", ""} {
		resp, conn = send(text(request{method: "PUT", path: "/" + bucket + "/short", body: payload, hash: h}, 300000, payload[:299999]), true)
		if resp != nil && resp.StatusCode < 400 {
			t.Errorf("a body one byte short (hash %q) was answered %s", h, resp.Status)
		}
		conn.Close()
	}
	if _, err := get(t.Context(), e.client(), bucket, "short"); code(err) != "NoSuchKey" {
		t.Errorf("a body that ended early is stored: %v", err)
	}

	// What follows the announced length is the next request on the connection: here a good one after a refused one.
	bad := text(request{method: "PUT", path: "/" + bucket + "/no", body: "12345", secret: "wrongwrong"}, 5, "12345")
	good := text(request{method: "PUT", path: "/" + bucket + "/yes", body: "67890"}, 5, "67890")
	conn, err := net.Dial("tcp", e.host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, bad+good); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	first, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, first.Body)
	if first.StatusCode != 403 {
		t.Errorf("first: %s", first.Status)
	}
	if first.Close {
		t.Log("the server closed the connection after the refused request")
	} else {
		second, err := http.ReadResponse(r, nil)
		if err != nil || second.StatusCode != 200 {
			t.Errorf("second request on the connection: %v %v", second, err)
		}
		wantObject(t, e.client(), bucket, "yes", []byte("67890"))
	}

	// Expect: 100-continue: refused before the body is sent.
	req := e.make(t, request{method: "PUT", path: "/" + bucket + "/expect", body: payload, secret: "wrongwrong"})
	var head bytes.Buffer
	fmt.Fprintf(&head, "PUT /%s/expect HTTP/1.1\r\nHost: %s\r\nContent-Length: 300000\r\nExpect: 100-continue\r\n", bucket, e.host)
	req.Header.Write(&head)
	resp, conn = send(head.String()+"\r\n", false)
	if resp == nil || resp.StatusCode != 403 {
		t.Errorf("Expect: 100-continue with a wrong signature: %v", resp)
	}
	conn.Close()
}
