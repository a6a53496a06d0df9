package notification

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strconv"
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
func Sequencer(seq uint64, n uint16) string { return string(appendSequencer(nil, seq, n)) }

func appendSequencer(b []byte, seq uint64, n uint16) []byte {
	const digits = "0123456789ABCDEF"
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, digits[seq>>shift&15])
	}
	for shift := 12; shift >= 0; shift -= 4 {
		b = append(b, digits[n>>shift&15])
	}
	return b
}

// ID names an event: it is the same whenever the event is sent, and of no other. It has the form of a UUID (of version 8, RFC 9562).
func (e *Event) ID() string {
	b := make([]byte, 0, 512)
	for _, s := range [...]string{e.Region, e.Owner, e.Bucket, e.Key, e.VersionID} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = binary.BigEndian.AppendUint64(append(b, byte(e.Type)), e.Seq)
	b = binary.BigEndian.AppendUint16(b, e.N)
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(e.TimeMS)))
	u := sum[:16]
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	var text [36]byte
	for i, at := 0, 0; i < len(u); i++ {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		hex.Encode(text[at:], u[i:i+1])
		at += 2
	}
	return string(text[:])
}

// appendRecord appends S3's record of an event; the order of the fields is S3's too. It does by hand what encoding/json would do in three times the
// time: there is a record for each event that is delivered.
func (e *Event) appendRecord(b []byte, configurationID string) []byte {
	b = appendField(b, `{"eventVersion":`, e.Type.kind().version)
	b = appendField(b, `,"eventSource":"aws:s3","awsRegion":`, e.Region)
	b = appendMilliseconds(append(b, `,"eventTime":"`...), e.TimeMS)
	b = appendField(b, `","eventName":`, e.Type.String())
	b = appendField(b, `,"userIdentity":{"principalId":`, cmp.Or(e.Principal, service))
	b = appendField(b, `},"requestParameters":{"sourceIPAddress":`, cmp.Or(e.SourceIP, service))
	b = appendField(b, `},"responseElements":{"x-amz-request-id":`, e.RequestID)
	b = appendField(b, `,"x-amz-id-2":`, e.HostID)
	b = appendField(b, `},"s3":{"s3SchemaVersion":"1.0","configurationId":`, configurationID)
	b = appendField(b, `,"bucket":{"name":`, e.Bucket)
	b = appendField(b, `,"ownerIdentity":{"principalId":`, e.Owner)
	b = appendField(b, `},"arn":`, bucketARN(e.Bucket))
	b = append(appendKey(append(b, `},"object":{"key":"`...), e.Key), '"') // none of what a key becomes needs to be escaped
	size, etag := e.object()
	if size != nil {
		b = strconv.AppendUint(append(b, `,"size":`...), *size, 10)
	}
	if etag != "" {
		b = appendField(b, `,"eTag":`, etag)
	}
	if e.VersionID != "" {
		b = appendField(b, `,"versionId":`, e.VersionID)
	}
	b = append(appendSequencer(append(b, `,"sequencer":"`...), e.Seq, e.N), `"}}`...)
	switch e.Type {
	case ObjectRestoreCompleted:
		b = appendMilliseconds(append(b, `,"glacierEventData":{"restoreEventData":{"lifecycleRestorationExpiryTime":"`...), e.RestoreExpiryMS)
		b = append(appendField(b, `","lifecycleRestoreStorageClass":`, e.StorageClass), "}}"...)
	case LifecycleTransition:
		b = append(appendField(b, `,"lifecycleEventData":{"transitionEventData":{"destinationStorageClass":`, e.StorageClass), "}}"...)
	case IntelligentTiering:
		b = append(appendField(b, `,"intelligentTieringEventData":{"destinationAccessTier":`, e.AccessTier), '}')
	}
	return append(b, '}')
}

// appendField appends JSON that leads to a string, and the string.
func appendField(b []byte, lead, s string) []byte {
	b = append(b, lead...)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < ' ', c >= 0x7f, c == '"', c == '\\', c == '<', c == '>', c == '&':
			return append(b, encode(s)...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
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

// recordBytes is what most records have at most.
const recordBytes = 1024

// Records is the message that S3 sends of an event by a rule: JSON.
func (e *Event) Records(configurationID string) []byte {
	b := append(make([]byte, 0, recordBytes), `{"Records":[`...)
	return append(e.appendRecord(b, configurationID), "]}"...)
}

// TestMessage is what S3 sends to a destination when a configuration that names it is put: JSON.
func TestMessage(bucket, requestID, hostID string, timeMS int64) []byte {
	return encode(struct {
		Service, Event, Time, Bucket string
		RequestID                    string `json:"RequestId"`
		HostID                       string `json:"HostId"`
	}{"Amazon S3", s3Prefix + "TestEvent", string(appendMilliseconds(nil, timeMS)), bucket, requestID, hostID})
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
	return encode(struct {
		SpecVersion string          `json:"specversion"`
		ID          string          `json:"id"`
		Source      string          `json:"source"`
		Type        string          `json:"type"`
		Subject     string          `json:"subject"`
		Time        string          `json:"time"`
		ContentType string          `json:"datacontenttype"`
		Data        json.RawMessage `json:"data"`
	}{
		SpecVersion: "1.0",
		ID:          e.ID(),
		Source:      "aws:s3." + e.Region + "." + e.Bucket,
		Type:        "com.amazonaws.s3." + e.Type.String(),
		Subject:     string(appendKey(nil, e.Key)),
		Time:        string(appendMilliseconds(nil, e.TimeMS)),
		ContentType: "application/json",
		Data:        e.appendRecord(nil, configurationID),
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

func appendMilliseconds(b []byte, ms int64) []byte {
	return time.UnixMilli(ms).UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
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
