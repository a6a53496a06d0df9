package s3api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage"
)

// discard is a ResponseWriter that costs nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

func benchHandler(b *testing.B) (*harness, *httptest.Server) {
	f := newFake()
	hh, err := New(Config{Accounts: testAccounts}, f)
	if err != nil {
		b.Fatal(err)
	}
	h := &harness{t: &testing.T{}, fake: f, handler: hh.(*handler), key: "ALICE", secret: "alice-secret"}
	h.srv = httptest.NewServer(hh)
	h.bucket("bucket")
	f.PutObject(nil, alice(), putInput("bucket", "key", "content"))
	return h, h.srv
}

// The protocol's share of a HEAD: everything but net/http and the store.
func BenchmarkHead(b *testing.B) {
	h, srv := benchHandler(b)
	defer srv.Close()
	req := h.request("HEAD", "/bucket/key", nil)
	req.RequestURI = "/bucket/key"
	req.Host = srv.Listener.Addr().String()
	w := &discard{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		h.handler.ServeHTTP(w, req)
	}
}

func BenchmarkPut4K(b *testing.B) {
	h, srv := benchHandler(b)
	defer srv.Close()
	h.handler.backend = &sink{Backend: h.fake, buf: make([]byte, 1<<20)}
	data := make([]byte, 4096)
	req := h.request("PUT", "/bucket/key", data)
	req.RequestURI = "/bucket/key"
	req.Host = srv.Listener.Addr().String()
	w := &discard{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		req.Body = io.NopCloser(bytes.NewReader(data))
		h.handler.ServeHTTP(w, req)
	}
}

// sink reads bodies and stores nothing; lister answers one page.
type sink struct {
	Backend
	buf []byte
}

func (s *sink) PutObject(_ context.Context, _ objects.Account, in *objects.PutInput) (*objects.PutOutput, error) {
	for {
		if _, err := in.Body.Read(s.buf); err == io.EOF {
			return &objects.PutOutput{ETag: "d41d8cd98f00b204e9800998ecf8427e", Checksums: in.Body.Checksums()}, nil
		} else if err != nil {
			return nil, err
		}
	}
}

type lister struct {
	Backend
	out *objects.ListOutput
}

func (l *lister) ListObjects(context.Context, objects.Account, *objects.ListInput) (*objects.ListOutput, error) {
	return l.out, nil
}

func BenchmarkList1000(b *testing.B) {
	h, srv := benchHandler(b)
	defer srv.Close()
	out := &objects.ListOutput{}
	for i := range 1000 {
		out.Objects = append(out.Objects, &objects.Object{Key: storage.Key("some/prefix/object-" + "0123456789"[:i%10] + "x"), Size: 12345, ETag: "d41d8cd98f00b204e9800998ecf8427e", Modified: h.fake.now, Owner: "alice-id",
			Checksums: []*metapb.Checksum{{Algorithm: metapb.ChecksumAlgorithm_CRC64NVME, Value: make([]byte, 8)}}})
	}
	h.handler.backend = &lister{Backend: h.fake, out: out}
	req := h.request("GET", "/bucket?list-type=2", nil)
	req.RequestURI = "/bucket?list-type=2"
	req.Host = srv.Listener.Addr().String()
	w := &discard{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		h.handler.ServeHTTP(w, req)
	}
	if len(w.h) == 0 {
		b.Fatal(fmt.Sprint("nothing written"))
	}
}
