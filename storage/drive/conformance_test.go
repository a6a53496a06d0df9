package drive

import (
	"testing"

	"cairn/storage"
	"cairn/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.ShardStore(t, func(t *testing.T) storage.ShardStore { return open(t, small(newMem(t))) })
}
