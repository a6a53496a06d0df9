package verify

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"fmt"

	"cairn/storage"
)

// upload is what rows tell of one upload: of a multipart version, or in progress.
type upload struct {
	object, progress, doomed, keep bool
	name                           storage.Owner // Write is that of the version
	size                           uint64
	count                          uint32
	etag                           string
	parts                          map[uint32][]byte // value of the part's record
	listed                         []listed          // in order of number
	pages                          []uint64          // offsets, in order of page
	pageNo                         []uint32
}

type listed struct {
	number uint32
	size   uint64
}

// checkParts compares the parts that manifests name with those that are there. All
// rows of a key are of one view, so there is nothing to look at again.
func (r *run) checkParts(ctx context.Context) error {
	var at [16]byte
	var u *upload
	err := r.scratch.uploads.each(ctx, func(k, v []byte) error {
		if u == nil || !bytes.Equal(at[:], k[:16]) {
			r.upload(u)
			at, u = [16]byte(k), &upload{parts: map[uint32][]byte{}}
		}
		u.add(k[16], binary.BigEndian.Uint32(k[17:]), v)
		return ctx.Err()
	})
	r.upload(u)
	return err
}

func (u *upload) add(kind byte, n uint32, v []byte) {
	switch kind {
	case upObject:
		u.object, u.size, u.count = true, binary.BigEndian.Uint64(v), binary.BigEndian.Uint32(v[8:])
		owner := 13 + int(v[12])
		u.etag, u.name = string(v[13:owner]), parseOwner(v[owner:])
	case upPart:
		u.parts[n] = bytes.Clone(v)
	case upListed:
		u.listed = append(u.listed, listed{n, binary.BigEndian.Uint64(v)})
	case upManifest:
		u.pages, u.pageNo = append(u.pages, binary.BigEndian.Uint64(v)), append(u.pageNo, n)
		u.nameFrom(v[8:])
	case upProgress:
		u.progress = true
		u.nameFrom(v)
	case upDoomed:
		u.doomed, u.keep = true, v[0] == 1
		u.nameFrom(v[1:])
	}
}

func (u *upload) nameFrom(v []byte) {
	if !u.object {
		u.name = parseOwner(v)
	}
}

// upload checks one upload's rows against each other.
func (r *run) upload(u *upload) {
	if u == nil {
		return
	}
	bad := func(format string, args ...any) {
		r.problem(r.about(KindRow, u.name.Bucket, u.name.Key, "", format, args...))
	}
	switch {
	case u.object:
	case u.progress || u.doomed:
		return // parts come and go
	case len(u.parts) > 0:
		bad("%d parts belong neither to a version nor to an upload: they are never freed", len(u.parts))
		return
	default:
		bad("a manifest belongs to no version")
		return
	}
	var sum uint64
	md := md5.New()
	known := true
	for i, l := range u.listed {
		if page := i / manifestParts; i%manifestParts == 0 && (page >= len(u.pages) || u.pageNo[page] != uint32(page) || u.pages[page] != sum) {
			bad("page %d of its manifest is missing, or begins at another byte than %d", page, sum)
		}
		p, ok := u.parts[l.number]
		if !ok {
			bad("part %d has no row: its bytes are lost; restore the object from a backup", l.number)
			known = false
		} else if size := binary.BigEndian.Uint64(p); size != l.size {
			bad("part %d has %d bytes, the manifest says %d", l.number, size, l.size)
		} else if len(p) != 8+md5.Size {
			known = false
		} else {
			_, _ = md.Write(p[8:])
		}
		sum += l.size
	}
	if sum != u.size || int(u.count) != len(u.listed) {
		bad("its manifest lists %d parts of %d bytes in all, the row says %d parts and %d bytes", len(u.listed), sum, u.count, u.size)
		known = false
	}
	if etag := fmt.Sprintf("%x-%d", md.Sum(nil), len(u.listed)); known && u.etag != etag {
		bad("its ETag is %s, that of its parts is %s", u.etag, etag)
	}
	if extra := len(u.parts) - len(u.listed); extra > 0 && !(u.doomed && u.keep) {
		bad("%d parts are not in its manifest and nothing is going to free them", extra)
	}
}

// manifestParts is how many parts a manifest page lists.
const manifestParts = 1000
