package compress

import (
	"encoding/binary"

	"cairn/storage/errs"
)

// Shapes of the seek table.
const (
	skippableMagic = 0x184D2A5E
	seekableMagic  = 0x8F92EAB1
	tableHead      = 8
	tableEntry     = 8
	tableFoot      = 9
	reservedBits   = 0xfc // of the flags: the checksum flag and those that must be 0
)

// framesOf is how many frames of frame bytes raw bytes of an object take.
func framesOf(raw, frame int64) int { return int((raw + frame - 1) / frame) }

// storedMost is more than what a frame of so many bytes takes.
func storedMost(frame int64) int64 { return frame + frame/8 + 1<<10 }

// tableLen is the length of the table of so many frames.
func tableLen(frames int) int64 { return tableHead + tableEntry*int64(frames) + tableFoot }

// rawLen is the bytes of the object in frame i of a chunk of raw bytes.
func rawLen(raw, frame int64, i int) int { return int(min(raw-int64(i)*frame, frame)) }

// appendTable appends the table of frames with these stored lengths.
func appendTable(b []byte, raw, frame int64, stored []int) []byte {
	b = binary.LittleEndian.AppendUint32(b, skippableMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(tableLen(len(stored))-tableHead))
	for i, n := range stored {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
		b = binary.LittleEndian.AppendUint32(b, uint32(rawLen(raw, frame, i)))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(stored)))
	b = append(b, 0)
	return binary.LittleEndian.AppendUint32(b, seekableMagic)
}

// parseTable reads the table of a chunk that stores so many bytes of an object in stored ones, and answers where each frame
// begins, and behind them where the table does. Corrupt if it is not exactly what appendTable makes of frames of so many bytes.
func parseTable(b []byte, raw, stored, frame int64) ([]int64, error) {
	n := framesOf(raw, frame)
	le := binary.LittleEndian
	foot := len(b) - tableFoot
	switch {
	case int64(len(b)) != tableLen(n):
		return nil, errs.Newf(errs.Corrupt, "compress.table", "", "%d bytes for %d frames", len(b), n)
	case le.Uint32(b) != skippableMagic || int(le.Uint32(b[4:])) != len(b)-tableHead || le.Uint32(b[foot+5:]) != seekableMagic:
		return nil, errs.New(errs.Corrupt, "compress.table", "", "no seek table")
	case int64(le.Uint32(b[foot:])) != int64(n) || b[foot+4]&reservedBits != 0:
		return nil, errs.Newf(errs.Corrupt, "compress.table", "", "%d frames, flags %x", le.Uint32(b[foot:]), b[foot+4])
	}
	at := make([]int64, 1, n+1)
	for i := range n {
		e := b[tableHead+i*tableEntry:]
		size, holds := int64(le.Uint32(e)), int64(le.Uint32(e[4:]))
		if size == 0 || size > storedMost(frame) || holds != int64(rawLen(raw, frame, i)) {
			return nil, errs.Newf(errs.Corrupt, "compress.table", "", "frame %d: %d bytes for %d", i, size, holds)
		}
		at = append(at, at[i]+size)
	}
	if at[n]+int64(len(b)) != stored {
		return nil, errs.Newf(errs.Corrupt, "compress.table", "", "frames of %d bytes in a chunk of %d", at[n], stored)
	}
	return at, nil
}
