package multiraft

import (
	"encoding/binary"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// entryFormat is the first byte of an entry's data on the Raft log.
const entryFormat = 1

// birthFormat is that of a command which may give birth to a group; see Host.Split.
const birthFormat = 2

const entryHeader = 9

func encodeEntry(timeMS int64, command []byte) []byte {
	b := make([]byte, entryHeader+len(command))
	b[0] = entryFormat
	binary.BigEndian.PutUint64(b[1:], uint64(timeMS))
	copy(b[entryHeader:], command)
	return b
}

func decodeEntry(l *raft.Log) (cluster.Entry, error) {
	if len(l.Data) < entryHeader || l.Data[0] != entryFormat && l.Data[0] != birthFormat {
		return cluster.Entry{}, errs.Newf(errs.Corrupt, "multiraft.apply", "", "entry %d is not one of ours", l.Index)
	}
	return cluster.Entry{
		Index:  l.Index,
		Term:   l.Term,
		TimeMS: int64(binary.BigEndian.Uint64(l.Data[1:])),
		Data:   l.Data[entryHeader:],
		Birth:  l.Data[0] == birthFormat,
	}, nil
}
