package s3api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"cairn/proto/metapb"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
)

// Limits of S3's tags. Lengths are in UTF-16 code units, as S3 counts.
const (
	objectTagsMax = 10
	bucketTagsMax = 50
	tagKeyMax     = 128
	tagValueMax   = 256
)

func badTag(message, key string) error {
	return s3err.New(s3err.InvalidTag, message, s3err.Field{Name: "TagKey", Value: clip(key)})
}

// checkTags makes tags of what a client sent, in the order of their keys.
func checkTags(sent []s3xml.Tag, limit int) ([]*metapb.KV, error) {
	if len(sent) > limit {
		what := "Object"
		if limit == bucketTagsMax {
			what = "Bucket"
		}
		return nil, s3err.New(s3err.InvalidTag, what+" tags cannot be greater than "+itoa(int64(limit)))
	}
	tags := make([]*metapb.KV, 0, len(sent))
	for _, t := range sent {
		switch {
		case t.Key == "" || !tagText(t.Key, tagKeyMax):
			return nil, badTag("The TagKey you have provided is invalid", t.Key)
		case !tagText(t.Value, tagValueMax):
			return nil, badTag("The TagValue you have provided is invalid", t.Key)
		case hasPrefixFold(t.Key, "aws:"):
			return nil, badTag("System tags cannot be added/updated by requester", t.Key)
		}
		tags = append(tags, &metapb.KV{Name: t.Key, Value: t.Value})
	}
	slices.SortFunc(tags, func(a, b *metapb.KV) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(tags); i++ {
		if tags[i].Name == tags[i-1].Name {
			return nil, badTag("Cannot provide multiple Tags with the same key", tags[i].Name)
		}
	}
	return tags, nil
}

// tagText reports whether s may be a tag's key or value.
func tagText(s string, limit int) bool {
	n := 0
	for _, r := range s {
		n += utf16.RuneLen(r)
		if !unicode.IsLetter(r) && !unicode.IsNumber(r) && !unicode.Is(unicode.Z, r) && !strings.ContainsRune("+-=._:/@", r) {
			return false
		}
	}
	return n <= limit && utf8.ValidString(s)
}

// tags are those of x-amz-tagging: key=value&key=value, each percent-encoded.
func (q *request) tags() ([]*metapb.KV, error) {
	header := strings.Join(q.r.Header["X-Amz-Tagging"], "&")
	if header == "" {
		return nil, nil
	}
	bad := s3err.New(s3err.InvalidArgument, "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.",
		s3err.Field{Name: "ArgumentName", Value: "x-amz-tagging"}, s3err.Field{Name: "ArgumentValue", Value: clip(header)})
	var sent []s3xml.Tag
	for pair := range strings.SplitSeq(header, "&") {
		if pair == "" {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		key, err1 := url.QueryUnescape(k)
		value, err2 := url.QueryUnescape(v)
		if err1 != nil || err2 != nil || !utf8.ValidString(key) || !utf8.ValidString(value) || slices.ContainsFunc(sent, func(t s3xml.Tag) bool { return t.Key == key }) {
			return nil, bad
		}
		if sent = append(sent, s3xml.Tag{Key: key, Value: value}); len(sent) > objectTagsMax {
			break
		}
	}
	return checkTags(sent, objectTagsMax)
}

// readTags reads a Tagging document.
func (q *request) readTags(limit int) ([]*metapb.KV, error) {
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	sent, err := s3xml.ParseTagging(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	return checkTags(sent, limit)
}

func (q *request) tagging(tags []*metapb.KV) *response {
	q.document("Tagging")
	w := &q.out
	w.Open("TagSet")
	for _, t := range tags {
		w.Open("Tag")
		w.Text("Key", t.Name)
		w.Text("Value", t.Value)
		w.Close("Tag")
	}
	w.Close("TagSet")
	w.Close("Tagging")
	return q.ok()
}

func getObjectTagging(q *request) (*response, error) {
	o, err := q.target()
	if err != nil {
		return nil, err
	}
	return q.tagging(o.Attributes.GetTags()), nil
}

func putObjectTagging(q *request) (*response, error) {
	v, err := q.versionRef()
	if err != nil {
		return nil, err
	}
	tags, err := q.readTags(objectTagsMax)
	if err != nil {
		return nil, err
	}
	id, err := q.h.backend.PutTags(q.r.Context(), q.acct, v, tags)
	if err != nil {
		return nil, err
	}
	q.setVersion(id)
	return q.ok(), nil
}

func deleteObjectTagging(q *request) (*response, error) {
	v, err := q.versionRef()
	if err != nil {
		return nil, err
	}
	id, err := q.h.backend.DeleteTags(q.r.Context(), q.acct, v)
	if err != nil {
		return nil, err
	}
	q.setVersion(id)
	return q.withStatus(http.StatusNoContent), nil
}

func getBucketTagging(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	if len(b.Tags) == 0 {
		return nil, s3err.New(s3err.NoSuchTagSet, "", s3err.Field{Name: "BucketName", Value: q.bucket})
	}
	return q.tagging(b.Tags), nil
}

func putBucketTagging(q *request) (*response, error) {
	tags, err := q.readTags(bucketTagsMax)
	if err != nil {
		return nil, err
	}
	return q.noContent(q.h.backend.PutBucketTags(q.r.Context(), q.acct, q.bucket, tags))
}

func deleteBucketTagging(q *request) (*response, error) {
	return q.noContent(q.h.backend.PutBucketTags(q.r.Context(), q.acct, q.bucket, nil))
}
