package objects

import (
	"context"

	"cairn/storage/errs"
)

// RestoreObject is not there yet.
func (s *Store) RestoreObject(context.Context, Account, VersionRef, RestoreRequest) (RestoreResult, error) {
	return RestoreResult{}, errs.New(errs.NotImplemented, "restore", "", "")
}
