package rangestate

import (
	"testing"

	"cairn/cluster"
	"cairn/proto/metapb"
)

// FuzzApply feeds arbitrary bytes as commands to a range with something in it.
// Nothing may panic or be an error, and two machines must agree.
func FuzzApply(f *testing.F) {
	seed := newStore(f)
	for _, op := range []any{
		&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 1, Versioning: 2}}, seed.put(1, "k", 10), seed.delete(1, "k"),
		&metapb.CreateUploadOp{Bucket: 1, Key: []byte("k"), Row: &metapb.UploadRow{WriteId: seed.id16()}}, seed.part("k", 4, 1, 10),
		&metapb.CompleteUploadOp{Bucket: 1, Key: []byte("k"), UploadSeq: 4, UploadGeneration: 2, Parts: []*metapb.ManifestPart{{Number: 1, Size: 10}}},
		&metapb.AbortUploadOp{Bucket: 1, Key: []byte("k"), UploadSeq: 4}, &metapb.ExpandDoomedOp{Only: []*metapb.DoomedID{{Bucket: 1}}},
		&metapb.RewriteDataOp{Bucket: 1, Key: []byte("k"), VersionSeq: 1, WriteId: seed.id16(), Data: &metapb.Data{Inline: []byte("x")}},
		&metapb.RewriteDataOp{Bucket: 1, Key: []byte("k"), VersionSeq: 1, WriteId: seed.id16(), Data: &metapb.Data{UploadSeq: 4, Parts: 1}, StorageClass: "GLACIER_IR", ConfigGeneration: 1},
		&metapb.ExpireOp{Bucket: 1, ConfigGeneration: 1, Entries: []*metapb.ExpireEntry{
			{What: metapb.ExpireEntry_CURRENT, Key: []byte("k"), VersionSeq: 1}, {What: metapb.ExpireEntry_UPLOAD, Key: []byte("k"), VersionSeq: 4},
			{What: metapb.ExpireEntry_MARKER, Key: []byte("k"), VersionSeq: 2}, {What: metapb.ExpireEntry_NONCURRENT, Key: []byte("k"), VersionSeq: 1},
		}},
		&metapb.DropGarbageOp{Ids: []*metapb.GarbageID{{Seq: 1}}}, &metapb.DropRepairOp{Ids: []*metapb.RepairID{{Bucket: 1, Key: []byte("k")}}},
		&metapb.AckEventsOp{Target: "q", From: 2, To: 3, Dead: []*metapb.DeadEvent{{Seq: 3, Error: "no"}}}, &metapb.HoldEventsOp{Target: "q", Held: true},
		&metapb.TrimEventsOp{To: 3, RowsMax: 1}, &metapb.DropDeadEventsOp{Target: "q", Seqs: []uint64{3}}, &metapb.EventsReadyOp{WaitSeq: 1},
		&metapb.FireTimersOp{Ids: []*metapb.EventTimerID{{Bucket: 1, Key: []byte("g"), VersionSeq: 9}}},
		update("g", nil, &metapb.Restore{ReadyMs: 1, ExpiresMs: 2, Tier: TierBulk}), update("k", nil, []*metapb.KV{{Name: "a"}}),
		&metapb.SweepOp{RowsMax: 1}, &metapb.FenceBucketOp{Bucket: 1, Generation: 2}, &metapb.DropBucketOp{Bucket: 1, Generation: 2}, &metapb.TickOp{},
	} {
		data, err := seed.command(op).MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, int64(0))
		f.Add(data[:len(data)/2], int64(1)<<62)
	}
	f.Fuzz(func(t *testing.T, data []byte, ms int64) {
		a, b := newStore(t), newStore(t)
		var dumps [2][][2]string
		for i, s := range []*store{a, b} {
			s.notified(1, metapb.Versioning_VERSIONING_SUSPENDED, everything())
			s.ok(s.put(1, "k", 10))
			up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("k"), Row: &metapb.UploadRow{WriteId: s.id16()}})
			s.ok(s.part("k", up.VersionSeq, 1, 10))
			s.archive("g", "GLACIER")
			s.ok(update("g", nil, &metapb.Restore{ReadyMs: s.now + 1, ExpiresMs: s.now + 2, Tier: TierBulk}))
			entries := []cluster.Entry{{TimeMS: ms, Data: data}, {TimeMS: ms + 1, Data: data}}
			if i == 0 {
				applyEntries(t, s.db, s.m, entries)
			} else {
				applyEntries(t, s.db, s.m, entries[:1])
				applyEntries(t, s.db, s.m, entries[1:])
			}
			dumps[i] = dump(t, s.db)
		}
		sameDump(t, "the same commands", dumps[0], dumps[1])
		parse(t, a.db)
	})
}
