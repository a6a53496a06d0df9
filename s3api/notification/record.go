package notification

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// Event is something that happened to an object. Times are unix milliseconds. Empty strings are of what there is not.
type Event struct {
	Type      Type
	TimeMS    int64
	Region    string
	Bucket    string
	Owner     string // of the bucket: its account
	Key       string
	VersionID string // of buckets that have had versions
	Size      uint64 // bytes
	ETag      string // without quotes
	Seq       uint64 // with N, in the order of the events of a key: see Sequencer
	N         uint16

	// Of the request that did it; of what the store did by itself, empty but for the ids.
	Principal string
	SourceIP  string
	RequestID string
	HostID    string

	StorageClass    string // LifecycleTransition: the new one; ObjectRestore:Post and Completed: the one restored from
	RestoreExpiryMS int64  // ObjectRestore:Completed: when the copy goes
	AccessTier      string // IntelligentTiering: the new one, as ARCHIVE_ACCESS
}

// service stands for the requester where the store does something by itself.
const service = "s3.amazonaws.com"

// markerETag is what S3 says of delete markers: the MD5 of nothing.
const markerETag = "d41d8cd98f00b204e9800998ecf8427e"

// Sequencer says which of two events of one key came first: the one whose sequencer is the lesser string. seq is a number that
// the key's range gives to commands in their order, whatever range that is after splits, and n counts the events of one command. It always has 20
// upper-case hex digits, so comparing strings that were padded with zeros on the right, as S3 asks, gives the same order.
func Sequencer(seq uint64, n uint16) string { return fmt.Sprintf("%016X%04X", seq, n) }

// ID names an event: it is the same whenever the event is sent, and of no other. It has the form of a UUID (of version 8, RFC 9562).
func (e *Event) ID() string {
	h := sha256.New()
	for _, s := range []string{e.Region, e.Owner, e.Bucket, e.Key, e.VersionID} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	rest := binary.BigEndian.AppendUint64([]byte{byte(e.Type)}, e.Seq)
	rest = binary.BigEndian.AppendUint16(rest, e.N)
	h.Write(binary.BigEndian.AppendUint64(rest, uint64(e.TimeMS)))
	u := h.Sum(nil)[:16]
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	s := hex.EncodeToString(u)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

type principal struct {
	ID string `json:"principalId"`
}

// record is S3's record of an event; the order of the fields is S3's too.
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
		EventTime:    milliseconds(e.TimeMS),
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
		r.Glacier.Restore.Expiry, r.Glacier.Restore.StorageClass = milliseconds(e.RestoreExpiryMS), e.StorageClass
	case LifecycleTransition:
		r.Lifecycle = &lifecycleData{}
		r.Lifecycle.Transition.StorageClass = e.StorageClass
	case IntelligentTiering:
		r.Tiering = &tieringData{e.AccessTier}
	}
	return r
}

// object is what is told of the object's content.
func (e *Event) object() (size *uint64, etag string) {
	switch e.Type.kind().object {
	case content:
		return &e.Size, e.ETag
	case tag:
		return nil, e.ETag
	case marker:
		return nil, markerETag
	}
	return nil, ""
}

// Records is the message that S3 sends of an event by a rule: JSON.
func (e *Event) Records(configurationID string) []byte {
	return encode(struct {
		Records []*record
	}{[]*record{e.record(configurationID)}})
}

// TestMessage is what S3 sends to a destination when a configuration that names it is put: JSON.
func TestMessage(bucket, requestID, hostID string, timeMS int64) []byte {
	return encode(struct {
		Service, Event, Time, Bucket string
		RequestID                    string `json:"RequestId"`
		HostID                       string `json:"HostId"`
	}{"Amazon S3", s3Prefix + "TestEvent", milliseconds(timeMS), bucket, requestID, hostID})
}

// bridge is an event as EventBridge has it.
type bridge struct {
	Version    string       `json:"version"`
	ID         string       `json:"id"`
	DetailType string       `json:"detail-type"`
	Source     string       `json:"source"`
	Account    string       `json:"account"`
	Time       string       `json:"time"`
	Region     string       `json:"region"`
	Resources  []string     `json:"resources"`
	Detail     bridgeDetail `json:"detail"`
}

type bridgeDetail struct {
	Version      string `json:"version"`
	EventVersion string `json:"event-version"`
	Bucket       struct {
		Name string `json:"name"`
	} `json:"bucket"`
	Object struct {
		Key       string  `json:"key"`
		Size      *uint64 `json:"size,omitempty"`
		ETag      string  `json:"etag,omitempty"`
		VersionID string  `json:"version-id,omitempty"`
		Sequencer string  `json:"sequencer"`
	} `json:"object"`
	RequestID        string `json:"request-id"`
	Requester        string `json:"requester"`
	SourceIP         string `json:"source-ip-address,omitempty"`
	Reason           string `json:"reason,omitempty"`
	DeletionType     string `json:"deletion-type,omitempty"`
	RestoreExpiry    string `json:"restore-expiry-time,omitempty"`
	SourceClass      string `json:"source-storage-class,omitempty"`
	DestinationClass string `json:"destination-storage-class,omitempty"`
	DestinationTier  string `json:"destination-access-tier,omitempty"`
}

// EventBridge is the event as S3 sends it to EventBridge: JSON. The key is written as it is; what of it is not UTF-8 becomes U+FFFD.
func (e *Event) EventBridge() []byte {
	b := &bridge{
		Version:    "0",
		ID:         e.ID(),
		DetailType: e.Type.kind().bridge,
		Source:     "aws.s3",
		Account:    e.Owner,
		Time:       seconds(e.TimeMS),
		Region:     e.Region,
		Resources:  []string{bucketARN(e.Bucket)},
	}
	d := &b.Detail
	d.Version, d.EventVersion = "0", "1.0"
	d.Bucket.Name = e.Bucket
	o := &d.Object
	o.Key, o.VersionID, o.Sequencer = e.Key, e.VersionID, Sequencer(e.Seq, e.N)
	o.Size, o.ETag = e.object()
	d.RequestID, d.Requester, d.SourceIP = e.RequestID, cmp.Or(e.Principal, service), e.SourceIP
	d.Reason, d.DeletionType = e.why()
	switch e.Type {
	case ObjectRestoreCompleted:
		d.RestoreExpiry, d.SourceClass = seconds(e.RestoreExpiryMS), e.StorageClass
	case ObjectRestorePost:
		d.SourceClass = e.StorageClass
	case LifecycleTransition:
		d.DestinationClass = e.StorageClass
	case IntelligentTiering:
		d.DestinationTier = e.AccessTier
	}
	return encode(b)
}

// why says what made or removed the object, and how it was removed.
func (e *Event) why() (reason, deletion string) {
	const (
		gone    = "Permanently Deleted"
		covered = "Delete Marker Created"
		expired = "Lifecycle Expiration"
	)
	switch e.Type {
	case ObjectCreatedPut:
		return "PutObject", ""
	case ObjectCreatedPost:
		return "POST Object", ""
	case ObjectCreatedCopy:
		return "CopyObject", ""
	case ObjectCreatedCompleteMultipartUpload:
		return "CompleteMultipartUpload", ""
	case ObjectRemovedDelete:
		return "DeleteObject", gone
	case ObjectRemovedDeleteMarkerCreated:
		return "DeleteObject", covered
	case LifecycleExpirationDelete:
		return expired, gone
	case LifecycleExpirationDeleteMarkerCreated:
		return expired, covered
	}
	return "", ""
}

// CloudEvent is the event as CloudEvents 1.0 has it, in structured mode: JSON, of type application/cloudevents+json. Its attributes
// are those of the CloudEvents adapter for S3, but for the id: the request's, which the adapter takes, is of many events if one request
// removed many objects.
func (e *Event) CloudEvent(configurationID string) []byte {
	r := e.record(configurationID)
	return encode(struct {
		SpecVersion string  `json:"specversion"`
		ID          string  `json:"id"`
		Source      string  `json:"source"`
		Type        string  `json:"type"`
		Subject     string  `json:"subject"`
		Time        string  `json:"time"`
		ContentType string  `json:"datacontenttype"`
		Data        *record `json:"data"`
	}{
		SpecVersion: "1.0",
		ID:          e.ID(),
		Source:      r.EventSource + "." + e.Region + "." + e.Bucket,
		Type:        "com.amazonaws.s3." + r.EventName,
		Subject:     r.S3.Object.Key,
		Time:        r.EventTime,
		ContentType: "application/json",
		Data:        r,
	})
}

// appendKey appends a key as records have it: as in a form, but for the slash.
func appendKey(b []byte, key string) []byte {
	const upperHex = "0123456789ABCDEF"
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == '*', c == '/':
			b = append(b, c)
		case c == ' ':
			b = append(b, '+')
		default:
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return b
}

func bucketARN(bucket string) string { return "arn:aws:s3:::" + bucket }

func milliseconds(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

func seconds(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// encode writes JSON. What is written here consists of strings and numbers, which always can be.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
