package core

import (
	"testing"
	"time"

	"cairn/server/config"
	"cairn/storage"
)

// TestRestoreTime: restores take as long as S3's, in the days of the configuration and within its bound.
func TestRestoreTime(t *testing.T) {
	const hour = time.Hour
	for _, c := range []struct {
		day, most time.Duration
		class     storage.StorageClass
		tier      string
		want      time.Duration
	}{
		{0, 0, storage.Glacier, "Standard", 5 * hour},
		{24 * hour, 48 * hour, storage.Glacier, "Expedited", 5 * time.Minute},
		{24 * hour, 48 * hour, storage.DeepArchive, "Bulk", 48 * hour},
		{24 * hour, hour, storage.DeepArchive, "Bulk", hour},
		{24 * hour, hour, storage.Glacier, "Expedited", 5 * time.Minute},
		{12 * hour, 48 * hour, storage.DeepArchive, "Standard", 6 * hour},
		{time.Second, 48 * hour, storage.DeepArchive, "Bulk", 2 * time.Second},
		{24 * hour, time.Nanosecond, storage.Glacier, "Bulk", time.Millisecond},
	} {
		core := &Core{cfg: config.Config{LifecycleDay: c.day, RestoreTimeMax: c.most}}
		if got := core.restoreTime(c.class, c.tier); got != c.want {
			t.Errorf("%s by %s, days of %s, at most %s: %s, want %s", c.class, c.tier, c.day, c.most, got, c.want)
		}
	}
}
