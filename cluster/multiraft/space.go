package multiraft

import (
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// A full drive would fail under its state, and with it every replica there; and since drives fill alike, most voters of a
// group at once. So a leader refuses commands that grow the state while the drive of any voter that is alive is below its
// reserve (design rule 19), and what removes goes on.

// Space is how much a drive has left.
type Space int32

// Spaces; a voter's leader hears of them with its answers.
const (
	SpaceEnough  Space = iota
	SpaceReserve       // below the reserve
	SpaceLast          // below half of it
)

const (
	spaceEvery = time.Second      // looked at
	spaceFresh = 10 * time.Second // for so long counts what was heard of a voter elsewhere
)

// heardSpace is what was heard of a replica elsewhere.
type heardSpace struct {
	low Space
	at  time.Time
}

// watchSpace looks at the drive's free space until it is closed or failed.
func (ds *driveStore) watchSpace() {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			ds.lookAtSpace()
		case <-ds.closing:
			return
		case <-ds.failed:
			return
		}
	}
}

func (ds *driveStore) lookAtSpace() {
	free, reserve, err := ds.d.Space()
	low := SpaceEnough
	switch {
	case err != nil: // a write will tell
	case free < reserve/2:
		low = SpaceLast
	case free < reserve:
		low = SpaceReserve
	}
	if was := Space(ds.low.Swap(int32(low))); (was == SpaceEnough) != (low == SpaceEnough) {
		if low == SpaceEnough {
			ds.h.driveLogger(ds.d).Info("the drive is above its reserve again")
		} else {
			ds.h.driveLogger(ds.d).Warn("the drive is below its reserve: metadata there may only shrink", "free", free, "reserve", reserve)
		}
	}
	if low != SpaceEnough {
		ds.h.noteLow()
	}
}

// noteLow keeps proposals from looking at each voter as long as all drives have space.
func (h *Host) noteLow() { h.lowUntil.Store(time.Now().Add(spaceFresh).UnixNano()) }

// SpaceOf is how much the drive of a replica here has left; SpaceEnough if it is not here.
func (h *Host) SpaceOf(id cluster.ReplicaID) Space {
	if r := h.replica(id); r != nil {
		return Space(r.ds.low.Load())
	}
	return SpaceEnough
}

// NoteSpace is told what a replica elsewhere said of its drive. What is not repeated is forgotten after ten seconds.
func (h *Host) NoteSpace(id cluster.ReplicaID, low Space) {
	if low == SpaceEnough {
		if _, ok := h.spaces.Load(id); ok {
			h.spaces.Delete(id)
		}
		return
	}
	h.spaces.Store(id, heardSpace{low, time.Now()})
	h.noteLow()
}

// spare is DriveFull if need more bytes would come out of the drive's reserve. It asks the file system.
func (ds *driveStore) spare(op string, need int64) error {
	if ds.d.Space == nil {
		return nil
	}
	free, reserve, err := ds.d.Space()
	if err == nil && free-need < reserve {
		return errs.Newf(errs.DriveFull, op, ds.d.Dir, "%d bytes are free, %d of them in reserve, %d needed", free, reserve, need)
	}
	return nil
}

// room is DriveFull if a command grows the state more than the drives of the group's voters permit.
func (r *replica) room(command []byte) error {
	now := time.Now()
	if r.h.lowUntil.Load() < now.UnixNano() {
		return nil
	}
	low, at := SpaceEnough, cluster.ReplicaID("")
	for _, s := range r.configuration().Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		id := cluster.ReplicaID(s.ID)
		n := r.h.SpaceOf(id)
		if v, ok := r.h.spaces.Load(id); ok && r.h.replica(id) == nil {
			if heard := v.(heardSpace); now.Sub(heard.at) < spaceFresh {
				n = heard.low
			} else {
				r.h.spaces.Delete(id)
			}
		}
		if n > low {
			low, at = n, id
		}
	}
	if low == SpaceEnough {
		return nil
	}
	g, ok := r.sm.(Grower)
	if !ok {
		return nil
	}
	if growth := g.Growth(command); growth == cluster.GrowthLarge || growth == cluster.GrowthSmall && low == SpaceLast {
		return errs.New(errs.DriveFull, "multiraft.propose", string(at), "free space is below the reserve")
	}
	return nil
}
