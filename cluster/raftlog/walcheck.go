package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/storage/errs"
)

// Pebble takes a chunk of its WAL that does not check for the end of the log, unless a later 32 KiB block
// proves by a sync offset that it was synced; those offsets run behind, and the last block has
// none after it. So rot in the tail of a log would make it short without a word, and a replica
// with a short log breaks promises it made. This store has a stronger proof: its commits are strictly serial, one
// WAL record each, and a record is not written before the one before it was synced. A record that begins
// after a damaged place therefore says that what is damaged was synced, and the whole log
// counts as lost. Only rot in the very last record before a power cut looks like a write that
// was cut off; an orderly Close leaves nothing in the WAL.

// The WAL: blocks of 32 KiB with chunks of [masked CRC32C 4][length 2][type 1][log number 4],
// in the sync format 8 bytes of offset, and the payload; the CRC covers all from the type on.
const (
	walBlock         = 32 << 10
	walHeader        = 11
	walSyncHeader    = 19
	walFull          = 5 // and 6 first, 7 middle, 8 last
	walSyncFull      = 9 // and 10, 11, 12
	walChunkTypesEnd = 13
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkWAL looks for damage in the WALs of a store that is not open. Error: Corrupt, DriveFailed.
func checkWAL(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a new store
	}
	if err != nil {
		return errs.Wrap(errs.DriveFailed, "raftlog.checkWAL", dir, err)
	}
	for _, n := range names {
		base, ok := strings.CutSuffix(n, ".log")
		if !ok {
			continue
		}
		num, err := strconv.ParseUint(base, 10, 64)
		if err != nil {
			continue
		}
		path := fs.PathJoin(dir, n)
		b, err := readFile(fs, path)
		if err != nil {
			return errs.Wrap(errs.DriveFailed, "raftlog.checkWAL", path, err)
		}
		if end, next := walDamage(b, uint32(num)); next >= 0 {
			return errs.Wrap(errs.Corrupt, "raftlog.checkWAL", path, fmt.Errorf("damaged at %d: a record that was written later begins at %d", end, next))
		}
	}
	return nil
}

func readFile(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// walDamage finds where the valid chunks of log num end, and where after that a record begins; -1 if none does.
func walDamage(b []byte, num uint32) (end, next int) {
	for end < len(b) {
		n := walChunk(b, end, num)
		if n == 0 {
			if rest := walBlock - end%walBlock; rest < walSyncHeader && allZero(b[end:min(len(b), end+rest)]) {
				n = rest // padding
			} else {
				break
			}
		}
		end += n
	}
	for next = end + 1; next+walHeader <= len(b); next++ {
		switch b[next+6] {
		case walFull, walFull + 1, walSyncFull, walSyncFull + 1:
			if binary.LittleEndian.Uint32(b[next+7:]) == num && walChunk(b, next, num) > 0 {
				return end, next
			}
		}
	}
	return end, -1
}

// walChunk is the length of the valid chunk of log num at off, or 0.
func walChunk(b []byte, off int, num uint32) int {
	if off+walHeader > len(b) {
		return 0
	}
	header := walHeader
	switch t := b[off+6]; {
	case t >= walSyncFull && t < walChunkTypesEnd:
		header = walSyncHeader
	case t < walFull || t >= walChunkTypesEnd:
		return 0
	}
	n := header + int(binary.LittleEndian.Uint16(b[off+4:]))
	if off%walBlock+n > walBlock || off+n > len(b) || binary.LittleEndian.Uint32(b[off+7:]) != num {
		return 0
	}
	c := crc32.Checksum(b[off+6:off+n], castagnoli)
	if (c>>15|c<<17)+0xa282ead8 != binary.LittleEndian.Uint32(b[off:]) {
		return 0
	}
	return n
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
