package notification

import (
	"strings"
)

// Type is what happened to an object. The numbers are kept in rows: they never change.
type Type uint8

// What S3 has events for and cairn can do.
const (
	ObjectCreatedPut                       Type = 1
	ObjectCreatedPost                      Type = 2
	ObjectCreatedCopy                      Type = 3
	ObjectCreatedCompleteMultipartUpload   Type = 4
	ObjectRemovedDelete                    Type = 5 // a version, or the object of a bucket without versions
	ObjectRemovedDeleteMarkerCreated       Type = 6
	ObjectRestorePost                      Type = 7 // asked for
	ObjectRestoreCompleted                 Type = 8
	ObjectRestoreDelete                    Type = 9 // the restored copy expired
	LifecycleTransition                    Type = 10
	LifecycleExpirationDelete              Type = 11
	LifecycleExpirationDeleteMarkerCreated Type = 12
	IntelligentTiering                     Type = 13 // to an archive tier
	ObjectTaggingPut                       Type = 14
	ObjectTaggingDelete                    Type = 15
	ObjectACLPut                           Type = 16

	typesEnd = 17
)

// kind is what is known of a type.
type kind struct {
	name    string // S3's, without s3:
	bridge  string // EventBridge's detail-type
	version string // of the record
	object  part   // what a record tells of the object beside its names
}

// part says which facts of an object belong to an event.
type part uint8

const (
	names   part = iota // it is gone
	marker              // the ETag that S3 gives delete markers
	tag                 // the ETag
	content             // size and ETag
)

// Versions of S3's record.
const (
	versionFirst = "2.1"
	versionLater = "2.3" // of what S3 has events for since then
)

// kinds are all types.
var kinds = [typesEnd]kind{
	ObjectCreatedPut:                       {"ObjectCreated:Put", "Object Created", versionFirst, content},
	ObjectCreatedPost:                      {"ObjectCreated:Post", "Object Created", versionFirst, content},
	ObjectCreatedCopy:                      {"ObjectCreated:Copy", "Object Created", versionFirst, content},
	ObjectCreatedCompleteMultipartUpload:   {"ObjectCreated:CompleteMultipartUpload", "Object Created", versionFirst, content},
	ObjectRemovedDelete:                    {"ObjectRemoved:Delete", "Object Deleted", versionFirst, names},
	ObjectRemovedDeleteMarkerCreated:       {"ObjectRemoved:DeleteMarkerCreated", "Object Deleted", versionFirst, marker},
	ObjectRestorePost:                      {"ObjectRestore:Post", "Object Restore Initiated", versionFirst, content},
	ObjectRestoreCompleted:                 {"ObjectRestore:Completed", "Object Restore Completed", versionFirst, content},
	ObjectRestoreDelete:                    {"ObjectRestore:Delete", "Object Restore Expired", versionLater, content},
	LifecycleTransition:                    {"LifecycleTransition", "Object Storage Class Changed", versionLater, content},
	LifecycleExpirationDelete:              {"LifecycleExpiration:Delete", "Object Deleted", versionLater, names},
	LifecycleExpirationDeleteMarkerCreated: {"LifecycleExpiration:DeleteMarkerCreated", "Object Deleted", versionLater, marker},
	IntelligentTiering:                     {"IntelligentTiering", "Object Access Tier Changed", versionLater, content},
	ObjectTaggingPut:                       {"ObjectTagging:Put", "Object Tags Added", versionLater, tag},
	ObjectTaggingDelete:                    {"ObjectTagging:Delete", "Object Tags Deleted", versionLater, tag},
	ObjectACLPut:                           {"ObjectAcl:Put", "Object ACL Updated", versionLater, tag},
}

// String is S3's name without the s3: prefix; "" of what is no type.
func (t Type) String() string { return t.kind().name }

// kind is what is known of a type; the zero value of what is no type.
func (t Type) kind() kind {
	if t < typesEnd {
		return kinds[t]
	}
	return kind{}
}

// s3Prefix begins the events of a configuration.
const s3Prefix = "s3:"

// set is a set of types.
type set uint32

// events are the types that an event of a configuration names. Errors: *Invalid, *Unsupported.
func events(event string) (set, error) {
	if unsupported(event) {
		return 0, &Unsupported{event}
	}
	name, ok := strings.CutPrefix(event, s3Prefix)
	if !ok || name == "" {
		return 0, unknownEvent(event)
	}
	family, all := strings.CutSuffix(name, "*")
	var found set
	n := 0
	for t := Type(1); t < typesEnd; t++ {
		if s := t.String(); s == name || all && strings.HasSuffix(family, ":") && strings.HasPrefix(s, family) {
			found |= 1 << t
			n++
		}
	}
	if n == 0 || all && n == 1 { // there is no s3:ObjectAcl:*
		return 0, unknownEvent(event)
	}
	return found, nil
}

func unknownEvent(event string) error {
	return &Invalid{"There is no such event.", "Event", event}
}

// unsupported reports whether an event is one that S3 knows and that can never come here.
func unsupported(event string) bool {
	switch event {
	case "s3:ReducedRedundancyLostObject", "s3:Replication:*", "s3:Replication:OperationFailedReplication",
		"s3:Replication:OperationNotTracked", "s3:Replication:OperationMissedThreshold", "s3:Replication:OperationReplicatedAfterThreshold":
		return true
	}
	return false
}
