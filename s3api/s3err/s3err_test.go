package s3err

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"cairn/storage/errs"
)

func TestTableIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Codes() {
		if c.String() == "" || c.Status() < 300 || c.Status() > 599 || c.Message() == "" {
			t.Errorf("code %d has no full entry: %+v", c, table[c])
		}
		if seen[c.String()] {
			t.Errorf("%s stands twice", c)
		}
		seen[c.String()] = true
		if got, ok := Lookup(c.String()); !ok || got != c {
			t.Errorf("Lookup(%s) = %v, %v", c, got, ok)
		}
	}
	if c, ok := Lookup("NoSuchThing"); ok || c != InternalError {
		t.Error("unknown name found")
	}
	if Code(60000).Status() != 500 {
		t.Error("unknown code")
	}
}

// Every kind has its place: what a client can see of each is fixed here.
func TestKinds(t *testing.T) {
	want := map[errs.Kind]string{
		errs.Other: "InternalError 500", errs.NoSuchBucket: "NoSuchBucket 404", errs.NoSuchKey: "NoSuchKey 404",
		errs.NoSuchVersion: "NoSuchVersion 404", errs.NoSuchUpload: "NoSuchUpload 404", errs.BucketAlreadyExists: "BucketAlreadyExists 409",
		errs.BucketAlreadyOwned: "BucketAlreadyOwnedByYou 409", errs.BucketNotEmpty: "BucketNotEmpty 409", errs.BucketBusy: "OperationAborted 409",
		errs.PreconditionFailed: "PreconditionFailed 412", errs.ConditionalConflict: "ConditionalRequestConflict 409",
		errs.IsDeleteMarker: "MethodNotAllowed 405", errs.ObjectLocked: "AccessDenied 403", errs.InvalidPart: "InvalidPart 400",
		errs.InvalidPartOrder: "InvalidPartOrder 400", errs.EntityTooSmall: "EntityTooSmall 400", errs.EntityTooLarge: "EntityTooLarge 400",
		errs.InvalidRange: "InvalidRange 416", errs.InvalidArgument: "InvalidArgument 400", errs.InvalidRequest: "InvalidRequest 400",
		errs.InvalidStorageClass: "InvalidStorageClass 400", errs.InvalidObjectState: "InvalidObjectState 403", errs.NotImplemented: "NotImplemented 501",
		errs.AccessDenied: "AccessDenied 403", errs.BadDigest: "BadDigest 400", errs.IncompleteBody: "IncompleteBody 400",
		errs.TooManyBuckets: "TooManyBuckets 400", errs.NotLeader: "ServiceUnavailable 503", errs.WrongRange: "ServiceUnavailable 503",
		errs.OutcomeUnknown: "ServiceUnavailable 503", errs.TooLate: "ServiceUnavailable 503", errs.Conflict: "ServiceUnavailable 503",
		errs.StaleEpoch: "ServiceUnavailable 503", errs.Busy: "SlowDown 503", errs.Unavailable: "ServiceUnavailable 503",
		errs.DriveFailed: "ServiceUnavailable 503", errs.DriveFull: "ServiceUnavailable 503", errs.NotFound: "InternalError 500",
		errs.Gone: "InternalError 500", errs.Corrupt: "InternalError 500", errs.Foreign: "InternalError 500",
		errs.Closed: "ServiceUnavailable 503", errs.Timeout: "ServiceUnavailable 503", errs.InvalidState: "InvalidBucketState 409", errs.RestoreInProgress: "RestoreAlreadyInProgress 409",
	}
	last := errs.RestoreInProgress
	for k := errs.Kind(0); k <= last; k++ {
		e := From(fmt.Errorf("outer: %w", errs.New(k, "op", "subject", "")))
		if got := fmt.Sprintf("%s %d", e.Code, e.Code.Status()); got != want[k] {
			t.Errorf("%v: %s, want %q", k, got, want[k])
		}
	}
}

func TestFrom(t *testing.T) {
	secret := From(errs.New(errs.Unavailable, "write", "pg 3", "drive /mnt/7 on node b is down"))
	if secret.Text() != ServiceUnavailable.Message() || secret.Err == nil {
		t.Errorf("machinery detail shown: %q", secret.Text())
	}
	if e := From(errs.New(errs.InvalidPart, "complete", "", "part 3 is missing")); e.Text() != "part 3 is missing" {
		t.Errorf("detail lost: %q", e.Text())
	}
	typed := New(XAmzContentSHA256Mismatch, "", Field{"ClientComputedContentSHA256", "x"})
	wrapped := Wrap("body", typed)
	if errs.KindOf(wrapped) != errs.BadDigest {
		t.Errorf("kind %v", errs.KindOf(wrapped))
	}
	if From(fmt.Errorf("store: %w", wrapped)) != typed {
		t.Error("typed error lost on the way")
	}
	if From(context.DeadlineExceeded).Code != ServiceUnavailable || From(errors.New("x")).Code != InternalError {
		t.Error("plain errors")
	}
	for c, k := range map[Code]errs.Kind{IncompleteBody: errs.IncompleteBody, EntityTooLarge: errs.EntityTooLarge, MalformedTrailerError: errs.InvalidRequest} {
		if errs.KindOf(Wrap("", New(c, ""))) != k {
			t.Errorf("%v", c)
		}
	}
}
