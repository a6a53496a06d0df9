package s3api

import (
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/s3api/sigv4"
	"cairn/storage"
)

// postObject stores the file of an HTML form (POST Object). Nothing in the request's own headers proves who sends it: the
// form carries a policy document that somebody signed, and the policy says what the form may hold. The fields then are
// treated as the headers of a PutObject.
func postObject(q *request) (*response, error) {
	b, f, err := q.openForm()
	if err != nil {
		return nil, err
	}
	fields := f.take()
	if err := expandFilename(fields, f.filename); err != nil {
		return nil, err
	}
	policy, err := q.authenticateForm(fields)
	if err != nil {
		return nil, err
	}
	if fields["key"] == "" {
		return nil, s3err.New(s3err.UserKeyMustBeSpecified, "Bucket POST must contain a field named 'key'.  If it is specified, please check the order of the fields.",
			s3err.Field{Name: "ArgumentName", Value: "key"}, s3err.Field{Name: "ArgumentValue"})
	}
	fields["bucket"] = q.bucket // what counts is where the form goes, not what it says
	if err := policy.check(fields, q.h.cfg.Now()); err != nil {
		return nil, err
	}
	if err := checkKey(fields["key"]); err != nil {
		return nil, err
	}
	q.key = storage.Key(fields["key"])
	if q.r.Header, err = formHeader(fields); err != nil {
		return nil, err
	}
	if err := q.checkHeaders(); err != nil {
		return nil, err
	}
	attrs, err := q.attributes()
	if err != nil {
		return nil, err
	}
	if text := fields["tagging"]; text != "" {
		sent, err := s3xml.ParseTagging([]byte(text))
		if err != nil {
			return nil, xmlError(err)
		}
		if attrs.Tags, err = checkTags(sent, objectTagsMax); err != nil {
			return nil, err
		}
	}
	f.limit = policy.size
	if err := b.openFile(q, f); err != nil {
		return nil, err
	}
	if err := b.lockable(attrs); err != nil {
		return nil, err
	}
	out, err := q.h.backend.PutObject(q.r.Context(), q.acct, &objects.PutInput{Bucket: q.bucket, Key: q.key, Body: &formBody{b, f}, Attributes: attrs, Form: true})
	if err != nil {
		return nil, err
	}
	return q.posted(out, fields), nil
}

// openForm reads the fields of the request's form. The body that it answers has no bytes yet, see openFile.
func (q *request) openForm() (*body, *form, error) {
	kind, params, err := mime.ParseMediaType(q.hdr("Content-Type"))
	boundary := params["boundary"]
	if err != nil || kind != "multipart/form-data" || boundary == "" || len(boundary) > boundaryMax || strings.ContainsAny(boundary, "\r\n") {
		return nil, nil, malformedForm()
	}
	size := q.r.ContentLength
	if size < 0 {
		return nil, nil, s3err.New(s3err.MissingContentLength, "")
	}
	if size > storage.PutBytesMax+2*formBytesMax {
		return nil, nil, s3err.New(s3err.EntityTooLarge, "", s3err.Field{Name: "ProposedSize", Value: itoa(size)}, s3err.Field{Name: "MaxSizeAllowed", Value: itoa(storage.PutBytesMax)})
	}
	b := q.newBody()
	q.body = b
	f, err := readForm(armed{b, b.src}, boundary, size)
	if err != nil {
		return nil, nil, b.translate(err)
	}
	b.disarm()
	return b, f, nil
}

// armed gives the client time for each read, as body.Read does.
type armed struct {
	b   *body
	src io.Reader
}

func (a armed) Read(p []byte) (int, error) {
	a.b.arm()
	return a.src.Read(p)
}

// openFile makes the form's file what the body reads.
func (b *body) openFile(q *request, f *form) error {
	q.payload = sigv4.PayloadUnsigned
	if err := b.promises(q, true); err != nil {
		return err
	}
	b.src, b.form = f, true
	if f.sureLeft == 0 {
		if _, err := f.rest(); err != nil {
			return b.translate(err)
		}
	} else if err := f.limitSure(); err != nil {
		return err
	}
	b.size = f.atMost()
	b.left = b.size
	return nil
}

// formBody is the body of a form's file.
type formBody struct {
	*body
	form *form
}

var _ objects.LateBody = (*formBody)(nil)

// Sure implements objects.LateBody.
func (b *formBody) Sure() int64 { return b.form.sureLeft }

// Rest implements objects.LateBody.
func (b *formBody) Rest() (int64, error) {
	n, err := b.form.rest()
	if err != nil {
		return 0, b.stop(b.translate(err))
	}
	return n, nil
}

// expandFilename puts the file's name in place of ${filename}, which the conditions of the policy then see.
func expandFilename(fields map[string]string, filename string) error {
	const variable = "${filename}"
	for name, value := range fields {
		if name == "policy" {
			continue
		}
		n := strings.Count(value, variable)
		if n == 0 {
			continue
		}
		if len(value)+n*len(filename) > formBytesMax {
			return s3err.New(s3err.MaxPostPreDataLengthExceededError, "")
		}
		fields[name] = strings.ReplaceAll(value, variable, filename)
	}
	return nil
}

// authenticateForm proves who signed the form's policy, and reads it. There is nothing that could allow an anonymous form.
func (q *request) authenticateForm(fields map[string]string) (*postPolicy, error) {
	p, claimed, refusal := sigv4.ParsePolicy(func(name string) string { return fields[name] })
	if refusal != nil {
		return nil, signatureError(refusal)
	}
	if !claimed {
		return nil, s3err.New(s3err.AccessDenied, "")
	}
	if refusal := p.CheckScope(q.h.cfg.Region); refusal != nil {
		return nil, signatureError(refusal)
	}
	secret, acct, ok := q.h.cfg.Accounts(p.AccessKey)
	if !ok {
		return nil, s3err.New(s3err.InvalidAccessKeyId, "", s3err.Field{Name: "AWSAccessKeyId", Value: p.AccessKey})
	}
	if fields["x-amz-security-token"] != "" {
		return nil, s3err.New(s3err.InvalidToken, "Temporary credentials (x-amz-security-token) are not implemented.")
	}
	if refusal := q.h.verifier.CheckPolicy(&p, secret); refusal != nil {
		return nil, signatureError(refusal)
	}
	q.identify(acct)
	return parsePostPolicy(fields["policy"])
}

// formHeader gives the fields that PutObject takes as headers.
func formHeader(fields map[string]string) (http.Header, error) {
	h := make(http.Header, len(fields))
	for name, value := range fields {
		switch name {
		case "content-type", "cache-control", "content-disposition", "content-encoding", "content-language", "content-md5", "expires":
		case "acl":
			name = "x-amz-acl"
		case "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature":
			continue
		default:
			if !strings.HasPrefix(name, "x-amz-") {
				continue // the form's own, or one that means nothing to us and the policy allows
			}
		}
		if !headerName(name) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return nil, s3err.New(s3err.InvalidArgument, "A form field that stands for a header must have the name and value of one.",
				s3err.Field{Name: "ArgumentName", Value: clip(name)}, s3err.Field{Name: "ArgumentValue", Value: clip(value)})
		}
		h.Set(name, value)
	}
	return h, nil
}

// headerName reports whether a lower-case name is one that HTTP allows.
func headerName(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// posted answers a form: a redirection if it asks for one, else the status that it asks for, else 204.
func (q *request) posted(out *objects.PutOutput, fields map[string]string) *response {
	target := fields["success_action_redirect"]
	if target == "" {
		target = fields["redirect"] // what it was called once
	}
	q.putHeaders(out, true)
	q.setWriteExpiration(out)
	if u, ok := redirection(target); ok {
		query := "bucket=" + escapeQuery(q.bucket) + "&key=" + escapeQuery(string(q.key)) + "&etag=" + escapeQuery(`"`+out.ETag+`"`)
		if u.RawQuery != "" {
			query = u.RawQuery + "&" + query
		}
		u.RawQuery = query
		q.set("Location", u.String())
		return q.withStatus(http.StatusSeeOther)
	}
	location := q.location()
	q.set("Location", location)
	switch fields["success_action_status"] {
	case "200":
		return q.withStatus(http.StatusOK)
	case "201":
		q.resp.xml = true
		w := &q.out
		w.B = w.B[:0]
		w.Start("PostResponse", false)
		w.Text("Location", location)
		w.Raw("Bucket", q.bucket)
		w.Text("Key", string(q.key))
		w.ETag(out.ETag)
		w.Close("PostResponse")
		return q.withStatus(http.StatusCreated)
	}
	return q.withStatus(http.StatusNoContent)
}

// redirection reads success_action_redirect. What is no URL counts as absent, as at S3.
func redirection(s string) (*url.URL, bool) {
	u, err := url.Parse(s)
	return u, err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

func escapeQuery(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
