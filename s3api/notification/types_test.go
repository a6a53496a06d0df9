package notification

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestTypes(t *testing.T) {
	seen := map[string]bool{}
	for i := Type(1); i < typesEnd; i++ {
		k := i.kind()
		if k.name == "" || k.bridge == "" || k.version == "" || seen[k.name] {
			t.Errorf("%d: %+v", i, k)
		}
		seen[k.name] = true
		if found, err := events("s3:" + k.name); err != nil || found != 1<<i {
			t.Errorf("%s: %b, %v", k.name, found, err)
		}
	}
	for _, no := range []Type{0, typesEnd, 255} {
		if no.String() != "" {
			t.Errorf("%d is %s", no, no)
		}
	}
	// Numbers are in rows.
	if ObjectCreatedPut != 1 || ObjectRemovedDeleteMarkerCreated != 6 || LifecycleExpirationDeleteMarkerCreated != 12 || ObjectACLPut != 16 {
		t.Error("a type has another number")
	}
}

func TestEvents(t *testing.T) {
	for event, want := range map[string][]Type{
		"s3:ObjectCreated:*":            {ObjectCreatedPut, ObjectCreatedPost, ObjectCreatedCopy, ObjectCreatedCompleteMultipartUpload},
		"s3:ObjectRemoved:*":            {ObjectRemovedDelete, ObjectRemovedDeleteMarkerCreated},
		"s3:ObjectRestore:*":            {ObjectRestorePost, ObjectRestoreCompleted, ObjectRestoreDelete},
		"s3:LifecycleExpiration:*":      {LifecycleExpirationDelete, LifecycleExpirationDeleteMarkerCreated},
		"s3:ObjectTagging:*":            {ObjectTaggingPut, ObjectTaggingDelete},
		"s3:LifecycleTransition":        {LifecycleTransition},
		"s3:IntelligentTiering":         {IntelligentTiering},
		"s3:ObjectAcl:Put":              {ObjectACLPut},
		"s3:ObjectRestore:Delete":       {ObjectRestoreDelete},
		"s3:ObjectCreated:Post":         {ObjectCreatedPost},
		"s3:LifecycleExpiration:Delete": {LifecycleExpirationDelete},
	} {
		found, err := events(event)
		var got []Type
		for i := Type(0); i < typesEnd; i++ {
			if found&(1<<i) != 0 {
				got = append(got, i)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", event, got, err)
		}
	}
	for _, event := range []string{"", "s3:", "*", "s3:*", "s3::*", "ObjectCreated:Put", "s3:ObjectCreated", "s3:ObjectCreated:", "s3:ObjectCreated:put", "S3:ObjectCreated:Put", "s3:ObjectCreated:P*", "s3:Object*",
		"s3:ObjectAcl:*", "s3:LifecycleTransition:*", "s3:IntelligentTiering:*", "s3:TestEvent", "s3:Replication:Other", "s3:ObjectCreated:**", " s3:ObjectCreated:Put"} {
		var invalid *Invalid
		if found, err := events(event); !errors.As(err, &invalid) || found != 0 || invalid.Name != "Event" || invalid.Value != event {
			t.Errorf("%q: %b, %v", event, found, err)
		}
	}
	for _, name := range strings.Fields("ReducedRedundancyLostObject Replication:* Replication:OperationFailedReplication Replication:OperationNotTracked Replication:OperationMissedThreshold Replication:OperationReplicatedAfterThreshold") {
		var unsupported *Unsupported
		if found, err := events("s3:" + name); !errors.As(err, &unsupported) || found != 0 || unsupported.Event != "s3:"+name {
			t.Errorf("%s: %b, %v", name, found, err)
		}
	}
}
