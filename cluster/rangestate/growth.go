package rangestate

import (
	"slices"

	"cairn/cluster"
	"cairn/proto/metapb"
)

// Growth tells how a command grows the state. Clients' writes do, tags too; a delete or an expiry does if it may leave a marker, by little, and so does a lock. Background
// commands and those on buckets don't: what they add is needed so that something else can go. May be called concurrently.
func (m *Machine) Growth(command []byte) cluster.Growth {
	var cmd metapb.RangeCommand
	if cmd.UnmarshalVT(command) != nil {
		return cluster.GrowthNone // it is refused
	}
	switch op := cmd.Op.(type) {
	case *metapb.RangeCommand_PutObject, *metapb.RangeCommand_CreateUpload, *metapb.RangeCommand_PutPart, *metapb.RangeCommand_CompleteUpload:
		return cluster.GrowthLarge
	case *metapb.RangeCommand_UpdateVersion:
		if op.UpdateVersion.GetTags() != nil {
			return cluster.GrowthLarge
		}
		return cluster.GrowthSmall
	case *metapb.RangeCommand_DeleteObjects:
		if slices.ContainsFunc(op.DeleteObjects.Entries, func(e *metapb.DeleteEntry) bool { return !e.HasVersion }) {
			return cluster.GrowthSmall
		}
	case *metapb.RangeCommand_Expire:
		if slices.ContainsFunc(op.Expire.Entries, func(e *metapb.ExpireEntry) bool { return e.What == metapb.ExpireEntry_CURRENT }) {
			return cluster.GrowthSmall
		}
	}
	return cluster.GrowthNone
}
