package s3api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"strings"

	"cairn/s3api/s3err"
)

const (
	formBytesMax  = 20 << 10 // of a form without its file, before and behind it (S3: 20 KB)
	formBufBytes  = 64 << 10 // a form that is no larger is read whole before its file is stored
	boundaryMax   = 70       // RFC 2046
	partHeaderMax = 4 << 10
)

func malformedForm() error { return s3err.New(s3err.MalformedPOSTRequest, "") }

// form reads multipart/form-data as it comes: the fields before the file, then the file as a stream. What comes behind the
// file is ignored, as at S3 (a submit button usually stands there), but it must be small: how long the file is shows only
// when its end is seen.
//
// So of a large form the size of the file is known for certain but for the last formBytesMax bytes; see sure and rest.
type form struct {
	fields   map[string]string // by lower-case name
	filename string            // of the file, without folders

	src   io.Reader
	left  int64  // bytes of the request that were not read yet
	buf   []byte // read and not given out: buf[at:]
	at    int
	delim []byte // CR LF -- boundary

	sureLeft int64 // bytes of the file that come for certain and were not given out
	clean    int   // no delimiter begins in buf[at:clean]
	given    int64 // bytes of the file that were given out
	settled  bool  // the end of the file was seen: buf[end]
	end      int
	limit    func(size int64) error // refuses a file of a size that is not allowed, once it is known; may be nil
}

// readForm reads the fields of a form of length bytes up to its file.
func readForm(src io.Reader, boundary string, length int64) (*form, error) {
	f := &form{fields: make(map[string]string), src: src, left: length, delim: []byte("\r\n--" + boundary)}
	f.buf = append(make([]byte, 0, min(int64(formBufBytes), length)+2), "\r\n"...) // so that the first delimiter looks like the others
	if err := f.skip(f.delim); err != nil {
		return nil, err
	}
	for {
		isFile, err := f.part()
		if err != nil {
			return nil, err
		}
		if isFile {
			f.begin()
			return f, nil
		}
	}
}

// fill reads more of the request, from what is given out of the buffer on. Errors of the source are answered as they are.
func (f *form) fill() error {
	if f.left == 0 {
		return malformedForm()
	}
	if f.at > 0 && f.fields == nil { // the file: what was given out is done with
		n := copy(f.buf, f.buf[f.at:])
		f.buf, f.clean, f.at = f.buf[:n], f.clean-f.at, 0
	}
	room := f.buf[len(f.buf):cap(f.buf)]
	room = room[:min(int64(len(room)), f.left)]
	if len(room) == 0 {
		return s3err.New(s3err.MaxPostPreDataLengthExceededError, "")
	}
	n, err := f.src.Read(room)
	f.buf, f.left = f.buf[:len(f.buf)+n], f.left-int64(n)
	if n > 0 || err == nil {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// find waits until the text stands in the buffer and answers where, within the bytes that the fields may have.
func (f *form) find(text []byte) (int, error) {
	for from := f.at; ; {
		if i := bytes.Index(f.buf[from:], text); i >= 0 {
			if from+i > formBytesMax {
				return 0, s3err.New(s3err.MaxPostPreDataLengthExceededError, "")
			}
			return from + i, nil
		}
		from = max(f.at, len(f.buf)-len(text)+1)
		if len(f.buf) > formBytesMax+len(text) {
			return 0, s3err.New(s3err.MaxPostPreDataLengthExceededError, "")
		}
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
}

func (f *form) skip(text []byte) error {
	i, err := f.find(text)
	f.at = i + len(text)
	return err
}

// part reads a part, of which the delimiter was read, with the delimiter that ends it; of the file only the head.
func (f *form) part() (isFile bool, err error) {
	for len(f.buf) < f.at+2 {
		if err := f.fill(); err != nil {
			return false, err
		}
	}
	if string(f.buf[f.at:f.at+2]) == "--" { // the form ends here
		return false, s3err.New(s3err.IncorrectNumberOfFilesInPostRequest, "", s3err.Field{Name: "ArgumentName", Value: "file"}, s3err.Field{Name: "ArgumentValue", Value: "0"})
	}
	// From the end of the delimiter's line on, so that a part without headers is seen, too.
	begin, err := f.find([]byte("\r\n"))
	if err != nil {
		return false, err
	}
	if len(bytes.Trim(f.buf[f.at:begin], " \t")) > 0 {
		return false, malformedForm()
	}
	f.at = begin
	if err := f.skip([]byte("\r\n\r\n")); err != nil {
		return false, err
	}
	name, filename, err := partHead(string(f.buf[begin:f.at]))
	if err != nil {
		return false, err
	}
	if name = strings.ToLower(name); name == "file" {
		f.filename = filename[strings.LastIndexAny(filename, `/\`)+1:]
		return true, nil
	}
	value := f.at - 2 // the CR LF of an empty value's delimiter may be that of the empty line
	f.at = value
	if err := f.skip(f.delim); err != nil {
		return false, err
	}
	end := f.at - len(f.delim)
	text := ""
	if end >= value+2 {
		text = string(f.buf[value+2 : end])
	}
	if _, twice := f.fields[name]; twice && !strings.HasPrefix(name, "x-ignore-") {
		return false, s3err.New(s3err.InvalidArgument, "The form has more than one field of the name '"+clip(name)+"'.",
			s3err.Field{Name: "ArgumentName", Value: clip(name)}, s3err.Field{Name: "ArgumentValue", Value: clip(text)})
	}
	f.fields[name] = text
	return false, nil
}

// partHead reads the headers of a part.
func partHead(head string) (name, filename string, err error) {
	if len(head) > partHeaderMax {
		return "", "", malformedForm()
	}
	seen := false
	for line := range strings.SplitSeq(strings.Trim(head, "\r\n"), "\r\n") {
		header, value, ok := strings.Cut(line, ":")
		if !ok {
			return "", "", malformedForm()
		}
		switch strings.ToLower(strings.TrimSpace(header)) {
		case "content-disposition":
			kind, params, err := mime.ParseMediaType(value)
			if err != nil || kind != "form-data" || seen {
				return "", "", malformedForm()
			}
			seen, name, filename = true, params["name"], params["filename"]
		case "content-transfer-encoding":
			switch strings.ToLower(strings.TrimSpace(value)) {
			case "7bit", "8bit", "binary":
			default: // HTML forms have none, and it would be stored encoded
				return "", "", notImplementedHeader("Content-Transfer-Encoding")
			}
		}
	}
	if name == "" {
		return "", "", malformedForm()
	}
	return name, filename, nil
}

// begin goes from the fields to the file.
func (f *form) begin() {
	rest := int64(len(f.buf)-f.at) + f.left
	n := copy(f.buf, f.buf[f.at:])
	f.buf, f.at, f.clean = f.buf[:n], 0, 0
	if rest > int64(cap(f.buf)) {
		f.sureLeft = rest - formBytesMax
	}
}

// take gives the fields out; from now on only the file is read.
func (f *form) take() map[string]string {
	fields := f.fields
	f.fields = nil
	return fields
}

// atMost is no less than the bytes of the file that were not given out.
func (f *form) atMost() int64 {
	if f.settled {
		return int64(f.end - f.at)
	}
	return int64(len(f.buf)-f.at) + f.left
}

// limitSure refuses a file that is too large already by what comes for certain.
func (f *form) limitSure() error {
	if f.limit == nil {
		return nil
	}
	err := f.limit(f.sureLeft)
	if e, ok := errors.AsType[*s3err.Error](err); ok && e.Code == s3err.EntityTooSmall {
		return nil // it may still grow
	}
	return err
}

// rest reads the form to its end and answers how many bytes of the file are still to come.
func (f *form) rest() (int64, error) {
	if f.settled {
		return int64(f.end - f.at), nil
	}
	if f.sureLeft > 0 {
		return 0, errors.New("the file was not read so far yet")
	}
	for f.left > 0 {
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	i := delimiter(f.buf[f.clean:], f.delim)
	if i < 0 {
		return 0, malformedForm()
	}
	f.settled, f.end = true, f.clean+i
	n := int64(f.end - f.at)
	if f.limit != nil {
		if err := f.limit(f.given + n); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// Read reads the file.
func (f *form) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if f.sureLeft == 0 {
		if _, err := f.rest(); err != nil {
			return 0, err
		}
		if f.at == f.end {
			return 0, io.EOF
		}
		n := copy(p, f.buf[f.at:f.end])
		f.at, f.given = f.at+n, f.given+int64(n)
		return n, nil
	}
	for f.clean <= f.at {
		if i := delimiter(f.buf[f.at:], f.delim); i == 0 {
			return 0, malformedForm() // what is behind the file is too much
		} else if i > 0 {
			f.clean = f.at + i
		} else {
			f.clean = max(f.at, len(f.buf)-len(f.delim)-1)
		}
		if f.clean > f.at {
			break
		}
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(int64(len(p)), f.sureLeft)], f.buf[f.at:f.clean])
	f.at, f.given = f.at+n, f.given+int64(n)
	f.sureLeft -= int64(n)
	return n, nil
}

// delimiter finds where the delimiter with the end of its line begins, or -1: a longer text that begins alike is none.
func delimiter(b, delim []byte) int {
	for from := 0; ; {
		i := bytes.Index(b[from:], delim)
		if i < 0 {
			return -1
		}
		if next := b[from+i+len(delim):]; len(next) >= 2 && (string(next[:2]) == "--" || string(next[:2]) == "\r\n" || next[0] == ' ' || next[0] == '\t') {
			return from + i
		}
		from += i + 1
	}
}
