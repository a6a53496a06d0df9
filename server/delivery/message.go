package delivery

import (
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/server/target"
	"cairn/storage"
)

// Event is an event of an outbox as notification knows it.
func Event(it rangestate.EventItem) *notification.Event {
	r := it.Row
	e := &notification.Event{
		Type: notification.Type(r.Type), TimeMS: r.TimeMs, Region: r.Region, Bucket: r.BucketName, Owner: r.Owner, Key: string(r.Key), Size: r.Size, ETag: r.Etag, Seq: it.Seq,
		Principal: r.GetRequester().GetPrincipal(), SourceIP: r.GetRequester().GetSourceIp(), RequestID: r.GetRequester().GetRequestId(), HostID: r.GetRequester().GetHostId(),
		StorageClass: r.StorageClass, RestoreExpiryMS: r.RestoreExpiryMs, AccessTier: r.AccessTier,
	}
	if r.Versioned {
		e.VersionID = version(r).String()
	}
	return e
}

func version(r *metapb.EventRow) storage.VersionID {
	if r.NullVersion {
		return storage.VersionID{}
	}
	return storage.VersionID{Seq: storage.Seq(r.VersionSeq), Nonce: r.VersionNonce}
}

// Message is an event as it goes to the target of a name: as EventBridge has it if no rule but the bucket's EventBridge configuration sends it there, as a
// CloudEvent if the target wants those, and else as S3's record. It is the same every time.
func Message(it rangestate.EventItem, targetName string, cloudEvents bool) target.Message {
	e := Event(it)
	m := target.Message{ID: e.ID(), Bucket: e.Bucket, Key: e.Key, Event: e.Type.String(), Time: time.UnixMilli(e.TimeMS).UTC()}
	switch {
	case it.Row.Target != targetName && it.Row.Bridge:
		m.Body = e.EventBridge()
	case cloudEvents:
		m.Body = e.CloudEvent(it.Row.Rule)
	default:
		m.Body = e.Records(it.Row.Rule)
	}
	return m
}
