package s3api

import (
	"encoding/base64"
	"strings"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage/checksum"
)

// Each algorithm by its own names all the way through a multipart upload: header, elements, listings.
func TestChecksumNames(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for a := metapb.ChecksumAlgorithm(1); int(a) < len(algorithms); a++ {
		name := checksum.Name(a)
		header, element := "x-amz-checksum-"+strings.ToLower(name), "Checksum"+name
		digest := checksum.New(a)
		digest.Write([]byte("part"))
		part := base64.StdEncoding.EncodeToString(digest.Sum(nil))
		up := h.want(h.do("POST", "/bucket/"+name+"?uploads", nil, "x-amz-checksum-algorithm", name), 200, "")
		id := up.element("UploadId")
		if got := up.Header.Get("X-Amz-Checksum-Algorithm"); got != name {
			t.Errorf("%s: created with %q", name, got)
		}
		etag := h.want(h.do("PUT", "/bucket/"+name+"?partNumber=1&uploadId="+id, []byte("part"), header, part, "x-amz-sdk-checksum-algorithm", name), 200, "").Header.Get("ETag")
		h.want(h.do("PUT", "/bucket/"+name+"?partNumber=2&uploadId="+id, []byte("Part"), header, part), 400, "BadDigest")
		list := h.want(h.do("GET", "/bucket/"+name+"?uploadId="+id, nil), 200, "")
		if list.element(element) != part || list.element("ChecksumAlgorithm") != name {
			t.Errorf("%s: %s", name, list.body)
		}
		if list = h.do("GET", "/bucket?uploads&prefix="+name, nil); !strings.Contains(list.body, "<ChecksumAlgorithm>"+name+"</ChecksumAlgorithm>") {
			t.Errorf("%s: %s", name, list.body)
		}
		doc := "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>" + etag + "</ETag><" + element + ">" + part + "</" + element + "></Part></CompleteMultipartUpload>"
		whole, kind := digest, "FULL_OBJECT"
		suffix := ""
		if a != metapb.ChecksumAlgorithm_CRC64NVME {
			first := digest.Sum(nil)
			whole, kind, suffix = checksum.New(a), "COMPOSITE", "-1"
			whole.Write(first)
		}
		want := base64.StdEncoding.EncodeToString(whole.Sum(nil)) + suffix
		done := h.want(h.do("POST", "/bucket/"+name+"?uploadId="+id, []byte(doc), header, want, "x-amz-checksum-type", kind), 200, "")
		if done.element(element) != want || done.element("ChecksumType") != kind {
			t.Errorf("%s: %s", name, done.body)
		}
		head := h.do("HEAD", "/bucket/"+name, nil, "x-amz-checksum-mode", "ENABLED")
		if head.Header.Get(header) != want || head.Header.Get("X-Amz-Checksum-Type") != kind {
			t.Errorf("%s: %v", name, head.Header)
		}
		// A part shows its own checksum, which is what its bytes are verified with.
		for _, method := range []string{"GET", "HEAD"} {
			a := h.do(method, "/bucket/"+name+"?partNumber=1", nil, "x-amz-checksum-mode", "ENABLED")
			if a.StatusCode != 206 || a.Header.Get(header) != part || a.Header.Get("X-Amz-Checksum-Type") != kind {
				t.Errorf("%s: %s of the part: %v", name, method, a.Header)
			}
		}
		if list = h.do("GET", "/bucket?prefix="+name, nil); !strings.Contains(list.body, "<ChecksumAlgorithm>"+name+"</ChecksumAlgorithm><ChecksumType>"+kind) {
			t.Errorf("%s: %s", name, list.body)
		}
		dup := h.want(h.do("PUT", "/bucket/copy", nil, "x-amz-copy-source", "bucket/"+name, "x-amz-checksum-algorithm", name), 200, "")
		if dup.element(element) != part {
			t.Errorf("a copy with %s: %s", name, dup.body)
		}
	}
}
