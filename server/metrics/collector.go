package metrics

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cairn/server/status"
)

// statusCollector turns a status into gauges at each scrape, so that metrics and 'cairn status' never disagree.
type statusCollector struct {
	look func(context.Context) (status.Status, error)

	up, ready, info                         *prometheus.Desc
	buckets, objects, objectBytes           *prometheus.Desc
	driveUp, driveBytes, driveShards, full  *prometheus.Desc
	zoneUp                                  *prometheus.Desc
	leader, term, voters, applied           *prometheus.Desc
	pgs, planMet                            *prometheus.Desc
	proof, dirty, repair, repaired, garbage *prometheus.Desc
	garbageAge                              *prometheus.Desc
	lifecycle                               lifecycleDescs
	usage                                   usageDescs
	events                                  eventDescs
}

func newStatusCollector(look func(context.Context) (status.Status, error)) *statusCollector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("cairn_"+name, help, labels, nil)
	}
	return &statusCollector{
		look:        look,
		up:          d("status_up", "1 if this scrape could read the status that the other gauges come from."),
		ready:       d("ready", "1 if reads and writes are served."),
		info:        d("info", "Always 1; the labels say what runs.", "version", "store", "node"),
		buckets:     d("buckets", "Buckets in the store."),
		objects:     d("objects", "Current objects in the store."),
		objectBytes: d("object_bytes", "Bytes of the current objects, as users count them."),
		driveUp:     d("drive_up", "1 if the drive is active.", "drive", "zone", "path"),
		driveBytes:  d("drive_bytes", "Bytes of the drive: total and free of its file system, live and dead of its shards.", "drive", "zone", "path", "kind"),
		driveShards: d("drive_shards", "Shards on the drive.", "drive", "zone", "path"),
		full:        d("drive_below_reserve", "1 if the drive is so full that it takes only removals.", "drive", "zone", "path"),
		zoneUp:      d("zone_drives", "Drives of the zone by state.", "zone", "state"),
		leader:      d("raft_has_leader", "1 if the group has a leader.", "group", "role"),
		term:        d("raft_term", "Term of the group.", "group", "role"),
		voters:      d("raft_voters", "Voters of the group.", "group", "role"),
		applied:     d("raft_applied_index", "Last entry that a replica applied.", "group", "replica", "zone"),
		pgs:         d("placement_groups", "Placement groups by state.", "class", "scheme", "state"),
		planMet:     d("class_target_met", "1 if the storage class survives all it means to with these drives.", "class", "scheme"),
		proof:       d("zone_rule_ok", "1 if the audit of all placement groups proved that no zone holds more shards than the code can lose."),
		dirty:       d("dirty_slots", "Drives in placement groups that lack shards and are being filled."),
		repair:      d("repair_queue", "Chunks known to lack a shard."),
		repaired:    d("repaired_shards_total", "Shards rebuilt since the start."),
		garbage:     d("garbage_queue", "Removed writes whose chunks still take space."),
		garbageAge:  d("garbage_oldest_seconds", "Age of the oldest of them."),
		lifecycle:   newLifecycleDescs(d),
		usage:       newUsageDescs(d),
		events:      newEventDescs(d),
	}
}

// Describe sends nothing: which metrics there are depends on the status.
func (c *statusCollector) Describe(chan<- *prometheus.Desc) {}

func (c *statusCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	s, err := c.look(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.up, yes(err == nil))
	if err != nil {
		return
	}
	gauge(c.ready, yes(s.Ready))
	gauge(c.info, 1, s.Version, s.StoreID, s.Node)
	gauge(c.buckets, float64(s.Usage.Buckets))
	gauge(c.objects, float64(s.Usage.Objects))
	gauge(c.objectBytes, float64(s.Usage.Bytes))
	c.usage.collect(ch, &s)
	c.events.collect(ch, s.Events)
	for _, d := range s.Drives {
		gauge(c.driveUp, yes(d.State == "active"), d.ID, d.Zone, d.Path)
		gauge(c.full, yes(d.BelowReserve), d.ID, d.Zone, d.Path)
		gauge(c.driveShards, float64(d.Shards), d.ID, d.Zone, d.Path)
		for kind, v := range map[string]int64{"total": d.BytesTotal, "free": d.BytesFree, "live": d.BytesLive, "dead": d.BytesDead} {
			gauge(c.driveBytes, float64(v), d.ID, d.Zone, d.Path, kind)
		}
	}
	for _, z := range s.Zones {
		gauge(c.zoneUp, float64(z.Active), z.Name, "active")
		gauge(c.zoneUp, float64(z.Drives-z.Active), z.Name, "down")
	}
	for _, g := range s.Groups {
		id := strconv.FormatUint(g.ID, 10)
		gauge(c.leader, yes(g.Leader != ""), id, g.Role)
		gauge(c.term, float64(g.Term), id, g.Role)
		gauge(c.voters, float64(g.Voters), id, g.Role)
		for _, r := range g.Replicas {
			gauge(c.applied, float64(r.Applied), id, r.ID, r.Zone)
		}
	}
	for _, p := range s.PGs {
		gauge(c.pgs, float64(p.Healthy), p.Class, p.Scheme, "healthy")
		gauge(c.pgs, float64(p.Degraded), p.Class, p.Scheme, "degraded")
		gauge(c.pgs, float64(p.Refused), p.Class, p.Scheme, "refused")
	}
	for _, p := range s.Plans {
		gauge(c.planMet, yes(p.Met), p.Class, p.Scheme)
	}
	gauge(c.proof, yes(s.Proof.OK))
	gauge(c.dirty, float64(s.Redundancy.DirtySlots))
	gauge(c.repair, float64(s.Redundancy.RepairQueue))
	ch <- prometheus.MustNewConstMetric(c.repaired, prometheus.CounterValue, float64(s.Redundancy.Repaired))
	gauge(c.garbage, float64(s.Redundancy.GarbageQueue))
	if t := s.Redundancy.GarbageOldest; t != nil {
		gauge(c.garbageAge, time.Since(*t).Seconds())
	}
	if s.Lifecycle != nil {
		c.lifecycle.collect(ch, s.Lifecycle)
	}
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
