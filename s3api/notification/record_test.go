package notification

import (
	"bytes"
	"cmp"
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cairn/test/seed"
)

// put is an event with all that a request says.
func put() *Event {
	return &Event{
		Type: ObjectCreatedPut, TimeMS: 1431000245678, Region: "us-west-2", Bucket: "pictures", Owner: "111122223333", Key: "in/red flower+é.jpg", VersionID: "v7", Size: 1024, ETag: "0123456789abcdef0123456789abcdef",
		Seq: 0xabc, N: 2, Principal: "AWS:alice", SourceIP: "192.0.2.7", RequestID: "C3D13FE58DE4C810", HostID: "FMyUVURIY8",
		StorageClass: "GLACIER", RestoreExpiryMS: 1431043200000, AccessTier: "ARCHIVE_ACCESS",
	}
}

// byItself is an event of something that no request asked for.
func byItself(t Type) *Event {
	e := put()
	e.Type, e.Principal, e.SourceIP = t, "", ""
	return e
}

// want compares JSON: the same fields in the same order, whatever the white space.
func want(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(want)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if b.String() != string(got) {
		t.Errorf("%s:\n%s\nwant\n%s", what, got, b.String())
	}
}

const (
	bucketJSON    = `"bucket":{"name":"pictures","ownerIdentity":{"principalId":"111122223333"},"arn":"arn:aws:s3:::pictures"}`
	responseJSON  = `"responseElements":{"x-amz-request-id":"C3D13FE58DE4C810","x-amz-id-2":"FMyUVURIY8"}`
	byRequestJSON = `"userIdentity":{"principalId":"AWS:alice"},"requestParameters":{"sourceIPAddress":"192.0.2.7"},` + responseJSON
	byItselfJSON  = `"userIdentity":{"principalId":"s3.amazonaws.com"},"requestParameters":{"sourceIPAddress":"s3.amazonaws.com"},` + responseJSON
	keyJSON       = `"key":"in/red+flower%2B%C3%A9.jpg"`
	restJSON      = `"versionId":"v7","sequencer":"0000000000000ABC0002"`
)

// recordJSON is a record with the fields of S3's documentation.
func recordJSON(version, name, by, object, more string) string {
	return `{"eventVersion":"` + version + `","eventSource":"aws:s3","awsRegion":"us-west-2","eventTime":"2015-05-07T12:04:05.678Z","eventName":"` + name + `",` + by +
		`,"s3":{"s3SchemaVersion":"1.0","configurationId":"rule",` + bucketJSON + `,"object":{` + object + `}}` + more + `}`
}

func TestRecords(t *testing.T) {
	full := keyJSON + `,"size":1024,"eTag":"0123456789abcdef0123456789abcdef",` + restJSON
	tagged := keyJSON + `,"eTag":"0123456789abcdef0123456789abcdef",` + restJSON
	gone := keyJSON + `,` + restJSON
	covered := keyJSON + `,"eTag":"d41d8cd98f00b204e9800998ecf8427e",` + restJSON
	restored := `,"glacierEventData":{"restoreEventData":{"lifecycleRestorationExpiryTime":"2015-05-08T00:00:00.000Z","lifecycleRestoreStorageClass":"GLACIER"}}`
	moved := `,"lifecycleEventData":{"transitionEventData":{"destinationStorageClass":"GLACIER"}}`
	tiered := `,"intelligentTieringEventData":{"destinationAccessTier":"ARCHIVE_ACCESS"}`
	cases := []struct {
		typ                         Type
		version, name, object, more string
		itself                      bool
	}{
		{ObjectCreatedPut, "2.1", "ObjectCreated:Put", full, "", false},
		{ObjectCreatedPost, "2.1", "ObjectCreated:Post", full, "", false},
		{ObjectCreatedCopy, "2.1", "ObjectCreated:Copy", full, "", false},
		{ObjectCreatedCompleteMultipartUpload, "2.1", "ObjectCreated:CompleteMultipartUpload", full, "", false},
		{ObjectRemovedDelete, "2.1", "ObjectRemoved:Delete", gone, "", false},
		{ObjectRemovedDeleteMarkerCreated, "2.1", "ObjectRemoved:DeleteMarkerCreated", covered, "", false},
		{ObjectRestorePost, "2.1", "ObjectRestore:Post", full, "", false},
		{ObjectRestoreCompleted, "2.1", "ObjectRestore:Completed", full, restored, true},
		{ObjectRestoreDelete, "2.3", "ObjectRestore:Delete", full, "", true},
		{LifecycleTransition, "2.3", "LifecycleTransition", full, moved, true},
		{LifecycleExpirationDelete, "2.3", "LifecycleExpiration:Delete", gone, "", true},
		{LifecycleExpirationDeleteMarkerCreated, "2.3", "LifecycleExpiration:DeleteMarkerCreated", covered, "", true},
		{IntelligentTiering, "2.3", "IntelligentTiering", full, tiered, true},
		{ObjectTaggingPut, "2.3", "ObjectTagging:Put", tagged, "", false},
		{ObjectTaggingDelete, "2.3", "ObjectTagging:Delete", tagged, "", false},
		{ObjectACLPut, "2.3", "ObjectAcl:Put", tagged, "", false},
	}
	if len(cases) != typesEnd-1 {
		t.Error("a type is missing")
	}
	for _, c := range cases {
		e, by := put(), byRequestJSON
		e.Type = c.typ
		if c.itself {
			e, by = byItself(c.typ), byItselfJSON
		}
		want(t, c.name, e.Records("rule"), `{"Records":[`+recordJSON(c.version, c.name, by, c.object, c.more)+`]}`)
	}
	e := put()
	e.VersionID, e.Size = "", 0
	object := keyJSON + `,"size":0,"eTag":"0123456789abcdef0123456789abcdef","sequencer":"0000000000000ABC0002"`
	want(t, "an empty object without versions", e.Records("rule"), `{"Records":[`+recordJSON("2.1", "ObjectCreated:Put", byRequestJSON, object, "")+`]}`)
}

type principal struct {
	ID string `json:"principalId"`
}

// record is S3's record of an event as encoding/json writes it, which Records must not differ from.
type record struct {
	EventVersion string    `json:"eventVersion"`
	EventSource  string    `json:"eventSource"`
	AWSRegion    string    `json:"awsRegion"`
	EventTime    string    `json:"eventTime"`
	EventName    string    `json:"eventName"`
	UserIdentity principal `json:"userIdentity"`
	Request      struct {
		SourceIP string `json:"sourceIPAddress"`
	} `json:"requestParameters"`
	Response struct {
		RequestID string `json:"x-amz-request-id"`
		HostID    string `json:"x-amz-id-2"`
	} `json:"responseElements"`
	S3        entity         `json:"s3"`
	Glacier   *glacierData   `json:"glacierEventData,omitempty"`
	Lifecycle *lifecycleData `json:"lifecycleEventData,omitempty"`
	Tiering   *tieringData   `json:"intelligentTieringEventData,omitempty"`
}

type entity struct {
	SchemaVersion   string `json:"s3SchemaVersion"`
	ConfigurationID string `json:"configurationId"`
	Bucket          struct {
		Name  string    `json:"name"`
		Owner principal `json:"ownerIdentity"`
		ARN   string    `json:"arn"`
	} `json:"bucket"`
	Object struct {
		Key       string  `json:"key"`
		Size      *uint64 `json:"size,omitempty"`
		ETag      string  `json:"eTag,omitempty"`
		VersionID string  `json:"versionId,omitempty"`
		Sequencer string  `json:"sequencer"`
	} `json:"object"`
}

type glacierData struct {
	Restore struct {
		Expiry       string `json:"lifecycleRestorationExpiryTime"`
		StorageClass string `json:"lifecycleRestoreStorageClass"`
	} `json:"restoreEventData"`
}

type lifecycleData struct {
	Transition struct {
		StorageClass string `json:"destinationStorageClass"`
	} `json:"transitionEventData"`
}

type tieringData struct {
	AccessTier string `json:"destinationAccessTier"`
}

func (e *Event) record(configurationID string) *record {
	r := &record{
		EventVersion: e.Type.kind().version,
		EventSource:  "aws:s3",
		AWSRegion:    e.Region,
		EventTime:    string(appendMilliseconds(nil, e.TimeMS)),
		EventName:    e.Type.String(),
		UserIdentity: principal{cmp.Or(e.Principal, service)},
	}
	r.Request.SourceIP = cmp.Or(e.SourceIP, service)
	r.Response.RequestID, r.Response.HostID = e.RequestID, e.HostID
	r.S3.SchemaVersion, r.S3.ConfigurationID = "1.0", configurationID
	b := &r.S3.Bucket
	b.Name, b.Owner.ID, b.ARN = e.Bucket, e.Owner, bucketARN(e.Bucket)
	o := &r.S3.Object
	o.Key, o.VersionID, o.Sequencer = string(appendKey(nil, e.Key)), e.VersionID, Sequencer(e.Seq, e.N)
	o.Size, o.ETag = e.object()
	switch e.Type {
	case ObjectRestoreCompleted:
		r.Glacier = &glacierData{}
		r.Glacier.Restore.Expiry, r.Glacier.Restore.StorageClass = string(appendMilliseconds(nil, e.RestoreExpiryMS)), e.StorageClass
	case LifecycleTransition:
		r.Lifecycle = &lifecycleData{}
		r.Lifecycle.Transition.StorageClass = e.StorageClass
	case IntelligentTiering:
		r.Tiering = &tieringData{e.AccessTier}
	}
	return r
}

// FuzzRecords compares the record that is written by hand with that of encoding/json.
func FuzzRecords(f *testing.F) {
	f.Add(uint8(1), "us-west-2", "key", "v7", "AWS:alice", "rule", uint64(1024), int64(1431000245678))
	f.Add(uint8(8), "", "", "", "", "", uint64(0), int64(0))
	f.Add(uint8(10), "<&>", "a b/c+\x00", "\"\\", "\u2028\xff", "\x7f\t\n", uint64(math.MaxUint64), int64(-1))
	f.Add(uint8(13), "é", "é", "é", "é", "é", uint64(1), int64(math.MaxInt32))
	f.Fuzz(func(t *testing.T, typ uint8, a, b, c, d, rule string, size uint64, ms int64) {
		e := &Event{
			Type: Type(typ % typesEnd), TimeMS: ms, Region: a, Bucket: d, Owner: b, Key: b, VersionID: c, Size: size, ETag: d, Seq: size, N: uint16(ms),
			Principal: d, SourceIP: c, RequestID: a, HostID: b, StorageClass: c, RestoreExpiryMS: ms / 2, AccessTier: a,
		}
		want(t, "record", e.Records(rule), string(encode(struct{ Records []*record }{[]*record{e.record(rule)}})))
	})
}

func TestTestMessage(t *testing.T) {
	want(t, "s3:TestEvent", TestMessage("pictures", "5582815E1AEA5ADF", "8cLeGAmw098", 1413215822089),
		`{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2014-10-13T15:57:02.089Z","Bucket":"pictures","RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw098"}`)
}

func TestEventBridge(t *testing.T) {
	full := `,"size":1024,"etag":"0123456789abcdef0123456789abcdef","version-id":"v7"`
	tagged := `,"etag":"0123456789abcdef0123456789abcdef","version-id":"v7"`
	covered := `,"etag":"d41d8cd98f00b204e9800998ecf8427e","version-id":"v7"`
	for _, c := range []struct {
		typ                  Type
		detail, object, more string
		itself               bool
	}{
		{ObjectCreatedPut, "Object Created", full, `,"reason":"PutObject"`, false},
		{ObjectCreatedPost, "Object Created", full, `,"reason":"POST Object"`, false},
		{ObjectCreatedCopy, "Object Created", full, `,"reason":"CopyObject"`, false},
		{ObjectCreatedCompleteMultipartUpload, "Object Created", full, `,"reason":"CompleteMultipartUpload"`, false},
		{ObjectRemovedDelete, "Object Deleted", `,"version-id":"v7"`, `,"reason":"DeleteObject","deletion-type":"Permanently Deleted"`, false},
		{ObjectRemovedDeleteMarkerCreated, "Object Deleted", covered, `,"reason":"DeleteObject","deletion-type":"Delete Marker Created"`, false},
		{ObjectRestorePost, "Object Restore Initiated", full, `,"source-storage-class":"GLACIER"`, false},
		{ObjectRestoreCompleted, "Object Restore Completed", full, `,"restore-expiry-time":"2015-05-08T00:00:00Z","source-storage-class":"GLACIER"`, true},
		{ObjectRestoreDelete, "Object Restore Expired", full, "", true},
		{LifecycleTransition, "Object Storage Class Changed", full, `,"destination-storage-class":"GLACIER"`, true},
		{LifecycleExpirationDelete, "Object Deleted", `,"version-id":"v7"`, `,"reason":"Lifecycle Expiration","deletion-type":"Permanently Deleted"`, true},
		{LifecycleExpirationDeleteMarkerCreated, "Object Deleted", covered, `,"reason":"Lifecycle Expiration","deletion-type":"Delete Marker Created"`, true},
		{IntelligentTiering, "Object Access Tier Changed", full, `,"destination-access-tier":"ARCHIVE_ACCESS"`, true},
		{ObjectTaggingPut, "Object Tags Added", tagged, "", false},
		{ObjectTaggingDelete, "Object Tags Deleted", tagged, "", false},
		{ObjectACLPut, "Object ACL Updated", tagged, "", false},
	} {
		e, by := put(), `"requester":"AWS:alice","source-ip-address":"192.0.2.7"`
		e.Type = c.typ
		if c.itself {
			e, by = byItself(c.typ), `"requester":"s3.amazonaws.com"`
		}
		want(t, c.typ.String(), e.EventBridge(), `{"version":"0","id":"`+e.ID()+`","detail-type":"`+c.detail+`","source":"aws.s3","account":"111122223333","time":"2015-05-07T12:04:05Z","region":"us-west-2","resources":["arn:aws:s3:::pictures"],
			"detail":{"version":"0","event-version":"1.0","bucket":{"name":"pictures"},"object":{"key":"in/red flower+é.jpg"`+c.object+`,"sequencer":"0000000000000ABC0002"},"request-id":"C3D13FE58DE4C810",`+by+c.more+`}}`)
	}
}

func TestCloudEvent(t *testing.T) {
	e := put()
	object := keyJSON + `,"size":1024,"eTag":"0123456789abcdef0123456789abcdef",` + restJSON
	want(t, "CloudEvents", e.CloudEvent("rule"), `{"specversion":"1.0","id":"`+e.ID()+`","source":"aws:s3.us-west-2.pictures","type":"com.amazonaws.s3.ObjectCreated:Put","subject":"in/red+flower%2B%C3%A9.jpg",
		"time":"2015-05-07T12:04:05.678Z","datacontenttype":"application/json","data":`+recordJSON("2.1", "ObjectCreated:Put", byRequestJSON, object, "")+`}`)
}

// TestID changes each thing that makes an event another one, and what does not.
func TestID(t *testing.T) {
	id := put().ID()
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Error(id)
	}
	seen := map[string]int{id: -1}
	for i, change := range []func(e *Event){
		func(e *Event) { e.Type++ }, func(e *Event) { e.TimeMS++ }, func(e *Event) { e.Region = "" }, func(e *Event) { e.Bucket = "b" }, func(e *Event) { e.Owner = "o" }, func(e *Event) { e.Key = "k" },
		func(e *Event) { e.VersionID = "" }, func(e *Event) { e.Seq++ }, func(e *Event) { e.N++ }, func(e *Event) { e.Bucket, e.Key = "picturesi", "n/red flower+é.jpg" },
	} {
		e := put()
		change(e)
		if was, has := seen[e.ID()]; has {
			t.Errorf("changes %d and %d: one id", was, i)
		}
		seen[e.ID()] = i
	}
	e := put()
	e.RequestID, e.Principal = "", ""
	if e.ID() != id || put().ID() != id {
		t.Error("another id for one event")
	}
}

func TestSequencer(t *testing.T) {
	if s := Sequencer(0, 0); s != "00000000000000000000" {
		t.Error(s)
	}
	if s := Sequencer(math.MaxUint64, math.MaxUint16); s != strings.Repeat("F", 20) {
		t.Error(s)
	}
	r := rand.New(rand.NewPCG(seed.Of(t), 1))
	type place struct {
		seq uint64
		n   uint16
	}
	places := []place{{0, 0}, {0, 1}, {0, math.MaxUint16}, {1, 0}, {9, 0}, {10, 0}, {15, 0}, {16, 0}}
	for range 1000 {
		places = append(places, place{r.Uint64() >> r.IntN(64), uint16(r.Uint32() >> r.IntN(32))})
	}
	compare := func(a, b place) int {
		switch {
		case a.seq < b.seq || a.seq == b.seq && a.n < b.n:
			return -1
		case a == b:
			return 0
		}
		return 1
	}
	slices.SortFunc(places, compare)
	for i := 1; i < len(places); i++ {
		a, b := places[i-1], places[i]
		if got := strings.Compare(Sequencer(a.seq, a.n), Sequencer(b.seq, b.n)); got != compare(a, b) {
			t.Errorf("%v and %v: %d", a, b, got)
		}
	}
}

func TestKeyIsReadBack(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	got := string(appendKey(nil, string(all)))
	if back, err := url.QueryUnescape(got); err != nil || back != string(all) {
		t.Errorf("%q, %v", got, err)
	}
	if got := string(appendKey(nil, "a/B-9_.*~ (é)")); got != "a/B-9_.*%7E+%28%C3%A9%29" {
		t.Error(got)
	}
	// Of a key that is no text all messages are JSON.
	e := put()
	e.Key = string(all)
	for _, b := range [][]byte{e.Records("<&>\xff"), e.EventBridge(), e.CloudEvent("\x00"), TestMessage("\xff", "", "", 0)} {
		if !json.Valid(b) {
			t.Errorf("%q", b)
		}
	}
}
