package s3api

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

func TestObjectAttributes(t *testing.T) {
	h := newHarness(t)
	h.versioned("bucket")
	version := h.do("PUT", "/bucket/k", []byte("hello")).Header.Get("X-Amz-Version-Id")
	h.do("PUT", "/bucket/k", []byte("other"))
	get := func(target, attributes string, headers ...string) answer {
		return h.do("GET", target, nil, append(headers, "X-Amz-Object-Attributes", attributes)...)
	}
	a := h.want(get("/bucket/k?attributes&versionId="+version, "ETag,Checksum, ObjectParts,StorageClass ,ObjectSize"), 200, "")
	want := "<ETag>5d41402abc4b2a76b9719d911017c592</ETag><Checksum><ChecksumCRC64NVME>M3eFcAZSQlc=</ChecksumCRC64NVME><ChecksumType>FULL_OBJECT</ChecksumType></Checksum><StorageClass>STANDARD</StorageClass><ObjectSize>5</ObjectSize></GetObjectAttributesResponse>"
	if !strings.HasSuffix(a.body, want) || a.Header.Get("X-Amz-Version-Id") != version || a.Header.Get("Last-Modified") != "Tue, 03 Nov 2026 10:20:30 GMT" || a.Header.Get("X-Amz-Delete-Marker") != "" {
		t.Errorf("%v %s", a.Header, a.body)
	}
	if a := h.want(get("/bucket/k?attributes", "ObjectSize"), 200, ""); strings.Contains(a.body, "ETag") || strings.Contains(a.body, "Checksum") || strings.Contains(a.body, "StorageClass") {
		t.Error(a.body)
	}
	// Names may come in several lines of the header.
	if a := h.want(get("/bucket/k?attributes", "ETag", "X-Amz-Object-Attributes", "StorageClass"), 200, ""); !strings.Contains(a.body, "ETag") || !strings.Contains(a.body, "StorageClass") {
		t.Error(a.body)
	}
	for _, bad := range []string{"", " ", "Etag", "ETag,", "ETag,Owner"} {
		h.want(get("/bucket/k?attributes", bad), 400, "InvalidArgument")
	}
	h.want(h.do("GET", "/bucket/k?attributes", nil), 400, "InvalidArgument")
	for _, name := range []string{"X-Amz-Max-Parts", "X-Amz-Part-Number-Marker"} {
		for _, bad := range []string{"-1", "x", "99999999999"} {
			h.want(get("/bucket/k?attributes", "ObjectParts", name, bad), 400, "InvalidArgument")
		}
	}
	h.want(get("/bucket/none?attributes", "ETag"), 404, "NoSuchKey")
	h.want(get("/bucket/k?attributes", "ETag", "If-Match", `"x"`), 412, "PreconditionFailed")
	h.want(get("/bucket/k?attributes", "ObjectParts", "If-None-Match", "*"), 304, "")
}

func TestAttributesOfParts(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	c := h.client(h.srv)
	ctx := context.Background()
	bucket, key := aws.String("bucket"), aws.String("k")
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: bucket, Key: key, ChecksumAlgorithm: types.ChecksumAlgorithmSha256})
	if err != nil {
		t.Fatal(err)
	}
	numbers := []int32{1, 2, 4, 7, 10000} // numbers need not follow one another
	var parts []types.CompletedPart
	for i, n := range numbers {
		p, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: bucket, Key: key, UploadId: up.UploadId, PartNumber: &n, Body: strings.NewReader(strings.Repeat("p", i+1)), ChecksumAlgorithm: types.ChecksumAlgorithmSha256})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{ETag: p.ETag, PartNumber: aws.Int32(n), ChecksumSHA256: p.ChecksumSHA256})
	}
	done, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: bucket, Key: key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
	if err != nil {
		t.Fatal(err)
	}
	all := types.ObjectAttributes("").Values()
	for size := int32(1); size <= 6; size++ {
		in := &s3.GetObjectAttributesInput{Bucket: bucket, Key: key, ObjectAttributes: all, MaxParts: &size}
		seen := 0
		for {
			out, err := c.GetObjectAttributes(ctx, in)
			if err != nil {
				t.Fatal(err)
			}
			op := out.ObjectParts
			if *out.ObjectSize != 15 || *op.TotalPartsCount != 5 || *op.MaxParts != size || *out.Checksum.ChecksumSHA256 != *done.ChecksumSHA256 || out.Checksum.ChecksumType != "COMPOSITE" || `"`+*out.ETag+`"` != *done.ETag || out.StorageClass != "STANDARD" || len(op.Parts) > int(size) ||
				*op.PartNumberMarker != marker(in.PartNumberMarker) {
				t.Fatalf("%+v %+v", out, op)
			}
			for _, p := range op.Parts {
				if *p.PartNumber != numbers[seen] || *p.Size != int64(seen+1) || *p.ChecksumSHA256 != *parts[seen].ChecksumSHA256 || p.ChecksumCRC64NVME != nil {
					t.Errorf("%+v", p)
				}
				seen++
			}
			if *op.NextPartNumberMarker != fmt.Sprint(numbers[seen-1]) {
				t.Errorf("next is %s", *op.NextPartNumberMarker)
			}
			if !*op.IsTruncated {
				break
			}
			in.PartNumberMarker = op.NextPartNumberMarker
		}
		if seen != len(numbers) {
			t.Errorf("pages of %d: %d parts", size, seen)
		}
	}
	a := h.want(h.do("GET", "/bucket/k?attributes", nil, "X-Amz-Object-Attributes", "ObjectParts", "X-Amz-Max-Parts", "0"), 200, "")
	if a.element("PartsCount") != "5" || a.element("IsTruncated") != "false" || strings.Contains(a.body, "<Part>") {
		t.Error(a.body)
	}
	if a := h.want(h.do("GET", "/bucket/k?attributes", nil, "X-Amz-Object-Attributes", "ObjectSize"), 200, ""); strings.Contains(a.body, "Parts") {
		t.Error(a.body)
	}
}

// marker is a part number marker as the answer repeats it.
func marker(sent *string) string {
	if sent == nil {
		return "0"
	}
	return *sent
}
