package multiraft

import (
	"bytes"
	"encoding/binary"
	"encoding/json"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// rowSpace is the first byte of this package's rows in a state store.
const rowSpace = 0x01

// Kinds of rows; see the package doc.
const (
	rowRecord  = 'R'
	rowApplied = 'A'
	rowConfig  = 'C'
	rowMarker  = 'M'
	rowInstall = 'I'
	rowPair    = 'P'
)

// rowFormat is the version of every record below.
const rowFormat = 1

func rowKey(g cluster.GroupID, kind byte) []byte {
	k := make([]byte, 0, 10)
	k = append(k, rowSpace)
	k = binary.BigEndian.AppendUint64(k, uint64(g))
	return append(k, kind)
}

// groupRows spans all rows of this package for a group.
func groupRows(g cluster.GroupID) cluster.KeySpan {
	return cluster.KeySpan{Start: rowKey(g, 0), End: rowKey(g, 0xff)}
}

// point is a place in a log.
type point struct{ Index, Term uint64 }

// record says that a replica of a group lives on the drive. It is kept in the state
// (Phase empty) and, under recordName, in the log (Empty false).
type record struct {
	Format  int               `json:"format"`
	Group   cluster.GroupID   `json:"group"`
	Replica cluster.ReplicaID `json:"replica"`
	// Empty: born without state, to be filled by a snapshot.
	Empty bool `json:"empty,omitempty"`
	// Phase is "creating", "ready" or "removing". Only a ready replica ever acted; the
	// others are cleared away at the next start.
	Phase string `json:"phase,omitempty"`
	// Parent, of group ParentGroup and on the same drive, gave birth to the replica in a split.
	Parent      cluster.ReplicaID `json:"parent,omitempty"`
	ParentGroup cluster.GroupID   `json:"parentGroup,omitempty"`
}

const (
	phaseCreating = "creating"
	phaseReady    = "ready"
	phaseRemoving = "removing"
)

// pairing ties the two stores of a drive together.
type pairing struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	Starts uint64 `json:"starts"`
}

// configuration is a group's membership and the index of the entry that set it.
type configuration struct {
	Format  int      `json:"format"`
	Index   uint64   `json:"index"`
	Servers []server `json:"servers"`
}

type server struct {
	ID    cluster.ReplicaID `json:"id"`
	Voter bool              `json:"voter"`
}

func toConfiguration(index uint64, c raft.Configuration) configuration {
	out := configuration{Format: rowFormat, Index: index}
	for _, s := range c.Servers {
		out.Servers = append(out.Servers, server{cluster.ReplicaID(s.ID), s.Suffrage == raft.Voter})
	}
	return out
}

func (c configuration) raft() raft.Configuration {
	var out raft.Configuration
	for _, s := range c.Servers {
		rs := raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.ID), Suffrage: raft.Nonvoter}
		if s.Voter {
			rs.Suffrage = raft.Voter
		}
		out.Servers = append(out.Servers, rs)
	}
	return out
}

// marker says that the state contains everything up to a point, durably.
type marker struct {
	Format int           `json:"format"`
	Point  point         `json:"point"`
	Config configuration `json:"config"`
}

// install says that the state is being replaced from a spool.
type install struct {
	Format int               `json:"format"`
	Spool  string            `json:"spool"` // file name in the drive's spool directory
	Spans  []cluster.KeySpan `json:"spans"` // everything to be cleared: the rows before and after
}

func encodeApplied(p point) []byte {
	b := make([]byte, 0, 17)
	b = append(b, rowFormat)
	b = binary.BigEndian.AppendUint64(b, p.Index)
	return binary.BigEndian.AppendUint64(b, p.Term)
}

func readApplied(r pebble.Reader, g cluster.GroupID) (p point, err error) {
	b, err := get(r, rowKey(g, rowApplied))
	if err != nil || b == nil {
		return p, err
	}
	if len(b) != 17 || b[0] != rowFormat {
		return p, errs.Newf(errs.Corrupt, "multiraft.applied", "", "group %d: not an applied row", g)
	}
	return point{binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:])}, nil
}

// get reads a row; nil if there is none.
func get(r pebble.Reader, key []byte) ([]byte, error) {
	v, c, err := r.Get(key)
	if err == pebble.ErrNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return bytes.Clone(v), c.Close()
}

// getJSON reads a row into v; ok is false if there is none.
func getJSON(r pebble.Reader, key []byte, v any) (ok bool, err error) {
	b, err := get(r, key)
	if err != nil || b == nil {
		return false, err
	}
	return true, parseRow(b, v)
}

func parseRow(b []byte, v any) error {
	var f struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return errs.Wrap(errs.Corrupt, "multiraft.row", "", err)
	}
	if f.Format != rowFormat {
		return errs.Newf(errs.Corrupt, "multiraft.row", "", "format %d is not known to this release", f.Format)
	}
	return errs.Wrap(errs.Corrupt, "multiraft.row", "", json.Unmarshal(b, v))
}

func encodeRow(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of ours
	}
	return b
}

// readMarker reads a group's marker and whether there is one.
func readMarker(r pebble.Reader, g cluster.GroupID) (m marker, ok bool, err error) {
	ok, err = getJSON(r, rowKey(g, rowMarker), &m)
	return m, ok, err
}
