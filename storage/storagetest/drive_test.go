package storagetest

import (
	"testing"

	"cairn/storage"
)

func TestConformance(t *testing.T) {
	ShardStore(t, func(*testing.T) storage.ShardStore { return NewDrive(1) })
}
