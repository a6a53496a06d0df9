package s3api

import (
	"bufio"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// modelOperation is a line of testdata/operations.txt.
type modelOperation struct {
	name, method, uri string
	required          []string // ?parameter or header
}

func modelOperations(t *testing.T) []modelOperation {
	f, err := os.Open("testdata/operations.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var ops []modelOperation
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") {
			continue
		}
		w := strings.Fields(s.Text())
		ops = append(ops, modelOperation{w[0], w[1], w[2], w[3:]})
	}
	if len(ops) != 111 {
		t.Fatalf("%d operations in the model", len(ops))
	}
	return ops
}

// Every operation of the model is in the table, and its request finds it.
func TestEveryOperationRoutes(t *testing.T) {
	h := newHarness(t)
	aliases := map[string]string{ // the model has these twice, for one and the same request
		"GetBucketLifecycle": "GetBucketLifecycleConfiguration", "PutBucketLifecycle": "PutBucketLifecycleConfiguration",
		"GetBucketNotification": "GetBucketNotificationConfiguration", "PutBucketNotification": "PutBucketNotificationConfiguration",
	}
	inTable := map[string]bool{}
	for _, op := range operations() {
		if inTable[op.name] && op.name != opPreflight {
			t.Errorf("%s stands twice", op.name)
		}
		inTable[op.name] = true
	}
	for _, m := range modelOperations(t) {
		if !inTable[m.name] {
			t.Errorf("%s is not in the table", m.name)
		}
		delete(inTable, m.name)
		uri := strings.NewReplacer("{Bucket}", "bucket", "{Key+}", "some/key").Replace(m.uri)
		r := httptest.NewRequest(m.method, "/", nil)
		for _, req := range m.required {
			if name, ok := strings.CutPrefix(req, "?"); ok {
				sep := "?"
				if strings.Contains(uri, "?") {
					sep = "&"
				}
				uri += sep + name + "=1"
			} else {
				r.Header.Set(req, "1")
			}
		}
		if m.name == "ListDirectoryBuckets" {
			uri += "?max-directory-buckets=1" // else it is told from ListBuckets by its endpoint only
		}
		r.RequestURI = uri
		q := &request{}
		q.begin(h.handler, nil, r)
		if err := q.parse(); err != nil {
			t.Errorf("%s %s: %v", m.method, uri, err)
			continue
		}
		want := m.name
		if a := aliases[want]; a != "" {
			want = a
		}
		if q.op.name != want {
			t.Errorf("%s %s is taken for %s, not %s", m.method, uri, q.op.name, want)
		}
	}
	delete(inTable, opPostObject)
	delete(inTable, opPreflight)
	if len(inTable) > 0 {
		t.Errorf("not in the model: %v", inTable)
	}
}

// What is not implemented says so by name, with 501.
func TestRefusedOperations(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	n := 0
	for _, op := range operations() {
		if op.handle != nil || op.variant == "old" {
			continue
		}
		target := "/"
		switch op.scope {
		case bucket:
			target = "/bucket"
		case object:
			target = "/bucket/key"
		}
		if op.name == "WriteGetObjectResponse" {
			target = "/WriteGetObjectResponse"
		}
		if op.sub != "" {
			target += "?" + op.sub
		}
		var headers []string
		switch op.variant {
		case "id":
			target += "&id=x"
		case "directory":
			target += "?max-directory-buckets=3"
		case "form":
			headers = []string{"Content-Type", "multipart/form-data; boundary=x"}
		}
		a := h.want(h.do(op.method, target, nil, headers...), 501, "NotImplemented")
		if !strings.Contains(a.element("Message"), op.name) || a.element("Operation") != op.name {
			t.Errorf("%s: message %q", op.name, a.element("Message"))
		}
		n++
	}
	if n < 35 {
		t.Errorf("only %d operations refused", n)
	}
}

// The documentation says of every operation what the table does.
func TestCompatibilityDocument(t *testing.T) {
	b, err := os.ReadFile("../docs/s3-compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	working := 0
	for _, op := range operations() {
		var line string
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(l, "| "+op.name+" |") {
				line = l
			}
		}
		works := op.handle != nil && op.name != opPreflight
		if works {
			working++
		}
		if line == "" || works == strings.HasPrefix(line, "| "+op.name+" | refused") {
			t.Errorf("%s: %q", op.name, line)
		}
		if works && op.name == opPostObject {
			working-- // not in the model
		}
	}
	if want := fmt.Sprintf("of the 111 operations %d work or work partly", working); !strings.Contains(string(b), want) {
		t.Errorf("does not say %q", want)
	}
}

func TestOddRequests(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for _, c := range []struct {
		method, target string
		status         int
		code           string
	}{
		{"POST", "/", 405, "MethodNotAllowed"},
		{"PUT", "/", 405, "MethodNotAllowed"},
		{"PATCH", "/bucket/key", 405, "MethodNotAllowed"},
		{"POST", "/bucket", 405, "MethodNotAllowed"},
		{"POST", "/bucket/key", 405, "MethodNotAllowed"},
		{"DELETE", "/bucket?location", 405, "MethodNotAllowed"},
		{"OPTIONS", "/bucket/key", 403, "AccessForbidden"},
		{"GET", "/bucket?acl&policy", 400, "InvalidArgument"},
		{"GET", "/bucket/key?location", 400, "InvalidRequest"},
		{"PUT", "/bucket/key?brand-new-thing", 501, "NotImplemented"},
		{"GET", "/bucket/key?brand-new-thing=", 501, "NotImplemented"},
		{"GET", "/bucket?list-type=3", 400, "InvalidArgument"},
		{"GET", "/bucket?nonsense=1", 200, ""},
		{"PUT", "/bucket/key?partNumber=1", 400, "InvalidRequest"},
		{"PUT", "/bucket/key?versionId=1", 400, "InvalidArgument"},
		{"PUT", "/bucket/key?versionId=null", 400, "InvalidArgument"},
		{"GET", "/bucket/key?versionId=", 400, "InvalidArgument"},
		{"GET", "/bucket/key?uploadId=", 404, "NoSuchUpload"},
		{"GET", "/Bu", 400, "InvalidBucketName"},
		{"GET", "/-bucket/key", 400, "InvalidBucketName"},
		{"GET", "/bucket/" + strings.Repeat("k", 1025), 400, "KeyTooLongError"},
		{"GET", "/bucket/" + strings.Repeat("k", 1024), 404, "NoSuchKey"},
		{"GET", "/bucket/%ff", 400, "InvalidURI"},
		{"GET", "/nobucket", 404, "NoSuchBucket"},
		{"GET", "/bucket?" + strings.Repeat("a=b&", 101), 400, "InvalidRequest"},
	} {
		h.want(h.do(c.method, c.target, nil), c.status, c.code)
	}
	if n := len(h.handler.routes.unknown.name); n == 0 || h.metrics.last() == "" {
		t.Error("not counted")
	}
}

func TestVirtualHosts(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Domains = []string{"s3.example.com", "example.com", "local"} })
	h.bucket("bucket")
	h.bucket("s3.bucket")
	for _, host := range []string{"bucket.s3.example.com", "Bucket.S3.example.com:9000", "bucket.local", "bucket.local.", "bucket.example.com:80"} {
		h.want(h.do("PUT", "/a//b", []byte("x"), "Host", host), 200, "")
		if _, ok := h.fake.buckets["bucket"].objects["a//b"]; !ok {
			t.Errorf("%s: %v", host, h.fake.buckets["bucket"].objects)
		}
		delete(h.fake.buckets["bucket"].objects, "a//b")
	}
	for _, host := range []string{"s3.example.com", "example.com:123", "[::1]:9000", "127.0.0.1", "elsewhere.net", "xlocal"} {
		h.want(h.do("PUT", "/bucket/k", []byte("x"), "Host", host), 200, "")
		if _, ok := h.fake.buckets["bucket"].objects["k"]; !ok {
			t.Errorf("%s: %v", host, h.fake.buckets["bucket"].objects)
		}
		delete(h.fake.buckets["bucket"].objects, "k")
	}
	h.want(h.do("GET", "/", nil, "Host", "s3.bucket.local"), 200, "")
	h.want(h.do("GET", "/", nil, "Host", "nobucket.local"), 404, "NoSuchBucket")
}

// Keys are opaque: whatever the path says, undecoded twice and uncleaned.
func TestKeysAreOpaque(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for path, key := range map[string]string{
		"/bucket/a": "a", "/bucket/a/": "a/", "/bucket//x": "/x", "/bucket///": "//", "/bucket/a/../b": "a/../b", "/bucket/./.": "./.", "/bucket/..": "..",
		"/bucket/a%2Fb": "a/b", "/bucket/a%252Fb": "a%2Fb", "/bucket/a+b": "a+b", "/bucket/a%20b": "a b", "/bucket/https:/%2Fe": "https://e", "/bucket/%E6%BC%A2": "漢",
		"/bucket/%00": "\x00", "/bucket/%01%0A": "\x01\n", "/bucket/a%3Fb": "a?b", "/bucket/%25": "%", "/bucket/a;b=c": "a;b=c", "/bucket/*'()!": "*'()!",
	} {
		h.want(h.do("PUT", path, []byte(key)), 200, "")
		o := h.fake.buckets["bucket"].objects[key]
		if o == nil || string(o.data) != key {
			t.Errorf("%s is not %q", path, key)
		}
		if a := h.want(h.do("GET", path, nil), 200, ""); a.body != key {
			t.Errorf("%s: got %q", path, a.body)
		}
	}
	if len(h.fake.buckets["bucket"].objects) != 19 {
		t.Errorf("%d keys", len(h.fake.buckets["bucket"].objects))
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("/bucket//a%2f%zz+?versionId=x&acl=", "h.local:80")
	f.Add("/", "[::1]")
	hh, err := New(Config{Accounts: testAccounts, Domains: []string{"local"}}, newFake())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, target, host string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RequestURI, r.Host = "/"+target, host
		q := &request{}
		q.begin(hh.(*handler), nil, r)
		err := q.parse()
		if len(q.key)+len(q.bucket) > len(target)+len(host)+1 {
			t.Fatal("grew")
		}
		if err == nil && q.op == nil {
			t.Fatal("no operation")
		}
		hh.ServeHTTP(httptest.NewRecorder(), r)
	})
}

func ExampleNew() {
	_, err := New(Config{Region: "Not A Region", Accounts: testAccounts}, newFake())
	fmt.Println(err)
	// Output: s3api config: Not A Region: a region is 1 to 63 lower-case letters, digits and hyphens
}
