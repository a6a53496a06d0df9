package sysstate

import (
	"encoding/binary"

	"cairn/cluster"
	"cairn/storage"
)

const rowByte = 'S' // first byte of all rows of the system group

// Second bytes.
const (
	kindStore   = 's'
	kindClock   = 'c'
	kindNode    = 'm'
	kindToken   = 'k'
	kindCA      = 'a'
	kindDrive   = 'd'
	kindPG      = 'p'
	kindGroup   = 'g'
	kindBucket  = 'b'
	kindName    = 'n'
	kindOwner   = 'o'
	kindPending = 'u'
	kindOutcome = 'r'
	kindAge     = 't'

	kindLifecycle = 'l'
	kindTarget    = 'e'
	kindNamed     = 'f'
)

// nameBytesMax bounds bucket names, owners, regions, zones, nodes and labels;
// pathBytesMax bounds a drive's path.
const (
	nameBytesMax = 255
	pathBytesMax = 4096
)

func key(kind byte) []byte { return []byte{rowByte, kind} }

func key32(kind byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32(key(kind), n)
}

func key64(kind byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64(key(kind), n)
}

func keyBytes(kind byte, b []byte) []byte { return append(key(kind), b...) }

func nodeKey(id string) []byte               { return keyBytes(kindNode, []byte(id)) }
func tokenKey(id []byte) []byte              { return keyBytes(kindToken, id) }
func driveKey(id []byte) []byte              { return keyBytes(kindDrive, id) }
func pgKey(id uint32) []byte                 { return key32(kindPG, id) }
func groupKey(id uint64) []byte              { return key64(kindGroup, id) }
func bucketKey(id uint64) []byte             { return key64(kindBucket, id) }
func pendingKey(id uint64) []byte            { return key64(kindPending, id) }
func lifecycleKey(id uint64) []byte          { return key64(kindLifecycle, id) }
func targetKey(name string) []byte           { return keyBytes(kindTarget, []byte(name)) }
func nameKey(name string) []byte             { return keyBytes(kindName, []byte(name)) }
func outcomeKey(id []byte) []byte            { return keyBytes(kindOutcome, id) }
func ageKey(atMS int64, id []byte) []byte    { return append(key64(kindAge, uint64(atMS)), id...) }
func ownerKey(owner, name string) []byte     { return append(ownerPrefix(owner), name...) }
func kindSpan(kind byte) (start, end []byte) { return key(kind), key(kind + 1) }

// ownerPrefix is the beginning of the rows of one owner's buckets. Owners are at most nameBytesMax bytes.
func ownerPrefix(owner string) []byte {
	k := append(key(kindOwner), byte(len(owner)))
	return append(k, owner...)
}

// namedKey marks that a bucket's notification configuration names a target, whose name is as long as a target's can be.
func namedKey(target string, bucket uint64) []byte {
	return binary.BigEndian.AppendUint64(namedPrefix(target), bucket)
}

// namedPrefix is the beginning of the rows of one target.
func namedPrefix(target string) []byte {
	return append(append(key(kindNamed), byte(len(target))), target...)
}

// prefixEnd is the first key behind all keys that begin with prefix, or nil if there is none.
func prefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

// span holds all rows of the system group.
func span() cluster.KeySpan {
	return cluster.KeySpan{Start: []byte{rowByte}, End: []byte{rowByte + 1}}
}

// driveID is a drive id out of a row or command; ok is false if it has the wrong length or is zero.
func driveID(b []byte) (id storage.DriveID, ok bool) {
	if len(b) != len(id) {
		return id, false
	}
	copy(id[:], b)
	return id, !id.IsZero()
}
