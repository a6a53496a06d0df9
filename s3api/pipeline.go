package s3api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/sigv4"
	"cairn/storage/errs"
)

// ServeHTTP takes a request through the pipeline.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := h.requests.Get().(*request)
	q.begin(h, w, r)
	// Deferred: a response that broke after its first byte leaves by http.ErrAbortHandler.
	defer q.finish()
	if h.running.Add(1) > int64(h.cfg.RequestsMax) {
		q.fail(s3err.New(s3err.SlowDown, ""))
		return
	}
	resp, err := q.serve()
	if err == nil {
		err = q.send(resp)
	}
	if err != nil {
		q.fail(err)
	}
}

// finish counts the request and gives back what it held.
func (q *request) finish() {
	h := q.h
	h.running.Add(-1)
	if q.body != nil {
		q.bytesIn = q.body.size - q.body.left
		q.body.close()
	}
	if m := h.cfg.Metrics; m != nil {
		m.Request(q.op.name, q.status, q.bytesIn, q.bytesOut, time.Since(q.started))
	}
	q.end()
	h.requests.Put(q)
}

// serve parses, authenticates, checks and handles.
func (q *request) serve() (*response, error) {
	parseErr := q.parse()
	if parseErr != nil || !q.op.open {
		if err := q.authenticate(); err != nil {
			return nil, err
		}
	}
	if parseErr != nil {
		return nil, parseErr
	}
	if q.op.handle == nil {
		return nil, s3err.New(s3err.NotImplemented, "The operation "+q.op.name+" is not implemented.", s3err.Field{Name: "Operation", Value: q.op.name})
	}
	if err := q.checkName(); err != nil {
		return nil, err
	}
	if err := q.checkHeaders(); err != nil {
		return nil, err
	}
	return q.op.handle(q)
}

// authenticate finds and proves who asks. Nobody is let in anonymously: there are no policies yet that could allow it.
func (q *request) authenticate() error {
	sr := sigv4.Request{Method: q.r.Method, Path: q.path, Query: q.query, Header: q.r.Header, Host: q.r.Host, ContentLength: q.r.ContentLength}
	if claimed, err := q.authenticateV2(&sr); claimed {
		return err
	}
	a, claimed, refusal := sigv4.Parse(&sr)
	if refusal != nil {
		return signatureError(refusal)
	}
	if !claimed {
		return s3err.New(s3err.AccessDenied, "")
	}
	if refusal := a.CheckTime(q.h.cfg.Now()); refusal != nil {
		return signatureError(refusal)
	}
	// Clients that don't know the region yet ask for it as of us-east-1.
	if anyRegion := q.op.name == "GetBucketLocation" || q.op.name == "ListBuckets"; !anyRegion || a.Region != DefaultRegion {
		if refusal := a.CheckScope(q.h.cfg.Region); refusal != nil {
			return signatureError(refusal)
		}
	}
	secret, acct, ok := q.h.cfg.Accounts(a.AccessKey)
	if !ok {
		return s3err.New(s3err.InvalidAccessKeyId, "", s3err.Field{Name: "AWSAccessKeyId", Value: a.AccessKey})
	}
	if q.hasToken() {
		return s3err.New(s3err.InvalidToken, "Temporary credentials (x-amz-security-token) are not implemented.")
	}
	seed, refusal := q.h.verifier.Check(&sr, &a, secret)
	if refusal != nil {
		return signatureError(refusal)
	}
	q.identify(acct)
	q.seed, q.payload, q.sha256 = seed, a.Payload, a.ContentSHA256
	if a.Presigned {
		q.hoist()
	}
	return nil
}

// identify says who asks, and by which request.
func (q *request) identify(acct objects.Account) {
	q.acct = acct
	ip, _, err := net.SplitHostPort(q.r.RemoteAddr)
	if err != nil {
		ip = "" // not every connection has an address
	}
	q.acct.Request = objects.Request{ID: q.id, HostID: q.h.cfg.HostID, SourceIP: ip}
}

func (q *request) hasToken() bool {
	if q.hdr("X-Amz-Security-Token") != "" {
		return true
	}
	v, _ := q.param("X-Amz-Security-Token")
	return v != ""
}

// hoist treats x-amz-* parameters of a presigned URL as the headers they stand
// for. Checksums are left out, as S3 does: SDKs put the checksum of the empty
// body they had when they signed into the URL.
func (q *request) hoist() {
	for _, p := range q.params {
		if !hasPrefixFold(p.name, "x-amz-") {
			continue
		}
		name := http.CanonicalHeaderKey(p.name)
		switch name {
		case "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Signedheaders", "X-Amz-Signature",
			"X-Amz-Content-Sha256", "X-Amz-Security-Token", "X-Amz-Sdk-Checksum-Algorithm":
			continue
		}
		if strings.HasPrefix(name, "X-Amz-Checksum-") && checksumOfHeader(name) != 0 {
			continue
		}
		if _, there := q.r.Header[name]; !there {
			q.r.Header[name] = []string{p.value}
		}
	}
}

// signatureError turns a refusal of package sigv4 into an answer.
func signatureError(e *sigv4.Error) *s3err.Error {
	c, ok := s3err.Lookup(e.Code)
	if !ok {
		return &s3err.Error{Code: s3err.AccessDenied, Err: e}
	}
	out := s3err.New(c, e.Message)
	for _, f := range e.Fields {
		out.Fields = append(out.Fields, s3err.Field{Name: f.Name, Value: f.Value})
	}
	return out
}

// response is what an operation answers besides its headers (request.set).
type response struct {
	status int // 0 is 200
	xml    bool
	stream *stream
}

func (q *request) ok() *response { return &q.resp }

func (q *request) withStatus(status int) *response {
	q.resp.status = status
	return &q.resp
}

// document begins an XML answer.
func (q *request) document(root string) {
	q.resp.xml = true
	q.out.B = q.out.B[:0]
	q.out.Start(root, true)
}

// writeHeader sends status and headers. Nothing can be taken back afterwards.
func (q *request) writeHeader(status int, length int64) {
	q.status = status
	h := q.w.Header()
	q.values = append(q.values[:0], q.id, q.h.cfg.HostID, "cairn", "")
	for i := range q.headers {
		q.values = append(q.values, q.headers[i].value)
	}
	v := q.values
	h["x-amz-request-id"], h["x-amz-id-2"], h["Server"] = v[0:1:1], v[1:2:2], v[2:3:3]
	if length >= 0 && status != http.StatusNotModified && status != http.StatusNoContent {
		v[3] = strconv.FormatInt(length, 10)
		h["Content-Length"] = v[3:4:4]
	}
	for i := range q.headers {
		h[q.headers[i].name] = v[4+i : 5+i : 5+i]
	}
	q.boundDrain()
	q.armWrite() // also for what has no body
	q.w.WriteHeader(status)
}

// drainMax is how long a client may take to send what is left of a body that nobody wants.
const drainMax = 5 * time.Second

// boundDrain limits how long net/http may wait for the rest of an unread body
// (it takes up to 256 KiB before it answers, to keep the connection). The
// deadline ends with this request: net/http sets its own for the next.
func (q *request) boundDrain() {
	if q.r.ContentLength == 0 || q.body != nil && q.body.ended {
		return
	}
	http.NewResponseController(q.w).SetReadDeadline(time.Now().Add(min(drainMax, q.h.cfg.IdleTimeout)))
}

// pieceBytes is how much of an answer a client has IdleTimeout to take.
const pieceBytes = 64 << 10

// write sends bytes of the answer's body, piece by piece. A client that takes none for IdleTimeout is given up.
func (q *request) write(p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		var m int
		q.armWrite()
		m, err = q.w.Write(p[n:min(n+pieceBytes, len(p))])
		n += m
	}
	q.bytesOut += int64(n)
	return n, err
}

// armWrite gives the client IdleTimeout from now to take what is written next. Moving the deadline at every piece
// would cost more than it is worth. It is left as it is at the end: net/http still has to send what it has
// gathered, and takes the deadline away itself before the next request.
func (q *request) armWrite() {
	if now := time.Now(); now.Sub(q.armed) > q.h.cfg.IdleTimeout/4 {
		q.armed = now
		http.NewResponseController(q.w).SetWriteDeadline(now.Add(q.h.cfg.IdleTimeout)) // not every ResponseWriter has one
	}
}

// send encodes a response. An error means that nothing was sent yet.
func (q *request) send(resp *response) error {
	if resp.stream != nil {
		return resp.stream.send()
	}
	status := resp.status
	if status == 0 {
		status = http.StatusOK
	}
	if !resp.xml {
		if q.r.Method == http.MethodHead {
			q.writeHeader(status, -1)
		} else {
			q.writeHeader(status, 0)
		}
		return nil
	}
	q.set("Content-Type", "application/xml")
	q.writeHeader(status, int64(len(q.out.B)))
	q.write(q.out.B) // an error is the client's: it is gone
	return nil
}

// fail encodes an error. HEAD answers have no body.
func (q *request) fail(err error) {
	e := q.describe(err)
	q.headers = q.headers[:0]
	for _, f := range e.Header {
		q.set(f.Name, f.Value)
	}
	status := e.Code.Status()
	if status == http.StatusServiceUnavailable {
		q.set("Retry-After", "1")
	}
	q.log(e, status)
	if q.r.Method == http.MethodHead {
		q.writeHeader(status, -1)
		return
	}
	w := &q.out
	w.B = w.B[:0]
	w.Start("Error", false)
	w.Raw("Code", e.Code.String())
	w.Text("Message", e.Text())
	for _, f := range e.Fields {
		w.Text(f.Name, f.Value)
	}
	w.Text("Resource", unescape(q.path, false))
	w.Raw("RequestId", q.id)
	w.Text("HostId", q.h.cfg.HostID)
	w.Close("Error")
	q.set("Content-Type", "application/xml")
	q.writeHeader(status, int64(len(w.B)))
	q.write(w.B)
}

// describe turns any error into an answer with the elements S3 gives with its code.
func (q *request) describe(err error) *s3err.Error {
	// A body's own error says more than what the store made of it.
	if q.body != nil && q.body.failed != nil {
		err = q.body.failed
	}
	e := *s3err.From(err) // a copy: the original may be shared
	switch {
	case errs.Is(err, errs.IsDeleteMarker):
		q.describeMarker(&e, err)
	case e.Code == s3err.NoSuchKey && (q.op.name == "GetObject" || q.op.name == "HeadObject"):
		// Not in S3's documentation, but what clients that were written for it look for.
		e.Header = append(e.Header, s3err.Field{Name: "x-amz-delete-marker", Value: "false"})
	}
	if len(e.Fields) > 0 {
		return &e
	}
	add := func(name, value string) {
		if value != "" {
			e.Fields = append(e.Fields, s3err.Field{Name: name, Value: clip(value)})
		}
	}
	switch e.Code {
	case s3err.NoSuchBucket, s3err.BucketNotEmpty, s3err.BucketAlreadyExists, s3err.BucketAlreadyOwnedByYou:
		add("BucketName", q.bucket)
	case s3err.NoSuchKey:
		e.Fields = append(e.Fields, s3err.Field{Name: "Key", Value: string(q.key)})
	case s3err.NoSuchVersion:
		e.Fields = append(e.Fields, s3err.Field{Name: "Key", Value: string(q.key)})
		v, _ := q.param("versionId")
		add("VersionId", v)
	case s3err.NoSuchUpload:
		v, _ := q.param("uploadId")
		add("UploadId", v)
	case s3err.InvalidRange:
		add("RangeRequested", q.hdr("Range"))
	case s3err.MethodNotAllowed:
		add("Method", q.r.Method)
	case s3err.InvalidObjectState:
		var a *objects.ArchivedError
		if errors.As(err, &a) {
			add("StorageClass", classOf(string(a.Class)))
			add("AccessTier", archiveTier(a.Tier))
		}
	}
	return &e
}

// log notes what the operator must know: answers about the machinery. Refusals are counted, not logged.
func (q *request) log(e *s3err.Error, status int) {
	if status < 500 || status == http.StatusNotImplemented || e.Err == nil || errors.Is(e.Err, context.Canceled) {
		return
	}
	level := slog.LevelWarn
	switch e.Code {
	case s3err.InternalError:
		level = slog.LevelError
	case s3err.SlowDown:
		level = slog.LevelDebug // one line per refused request would make a burst worse
	}
	q.h.cfg.Logger.Log(q.r.Context(), level, "request failed", "operation", q.op.name, "bucket", q.bucket, "request", q.id, "code", e.Code.String(), "error", e.Err.Error())
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
