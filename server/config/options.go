package config

import (
	"strconv"

	"github.com/alecthomas/kong"
)

// Options give a kong parser what the tags of Config refer to: defaults and the titles of groups.
func Options() []kong.Option {
	d := Default()
	return []kong.Option{
		kong.Vars{
			"data_dir": d.DataDir, "listen": d.Listen, "admin_listen": d.AdminListen,
			"zones": strconv.Itoa(d.Zones), "drives_per_zone": strconv.Itoa(d.DrivesPerZone),
			"region": d.Region, "meta_voters": strconv.Itoa(d.MetaVoters), "reserve": d.Reserve.String(),
			"max_requests": strconv.Itoa(d.MaxRequests), "metrics_buckets": strconv.Itoa(d.BucketGauges), "buffer_bytes": d.BufferBytes.String(),
			"cache_bytes": d.CacheBytes.String(), "memory_limit": d.MemoryLimit.String(),
			"shutdown_timeout": d.ShutdownBound.String(), "lifecycle_day": d.LifecycleDay.String(), "restore_time_max": d.RestoreTimeMax.String(),
			"events_retention": d.EventsRetention.String(), "events_retain_bytes": d.EventsRetainBytes.String(), "log_level": d.LogLevel, "log_format": d.LogFormat,
		},
		kong.ExplicitGroups([]kong.Group{
			{Key: "start", Title: "Where:"},
			{Key: "drives", Title: "Drives and zones:", Description: "A zone is what fails together: a room, a rack, a power line. With three zones or more, losing any one loses nothing."},
			{Key: "cluster", Title: "Cluster:", Description: "Nodes in zones that are one store. --node and --zone say which node this is, --cluster-init or --join how it begins."},
			{Key: "s3", Title: "S3:"},
			{Key: "safety", Title: "Safety:"},
			{Key: "limits", Title: "Limits:", Description: "Sizes are written like 64MiB or 2GiB."},
			{Key: "log", Title: "Log:"},
		}),
	}
}
