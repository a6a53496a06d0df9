package verify

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
)

// walk notes what every row of every range names and promises.
func (r *run) walk(ctx context.Context) error {
	for _, g := range r.cfg.Meta.Ranges() {
		timeMS, err := r.cfg.Meta.Walk(ctx, g, func(it *rangestate.Item) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			r.count(func(c *counts) { c.rows++ })
			return r.row(it)
		})
		if err != nil {
			return err
		}
		r.timeMS = max(r.timeMS, timeMS)
	}
	return nil
}

// Kinds of records about an upload, in the order in which they are read back.
const (
	upObject   = 'o' // a multipart version: size(8) parts(4) etag length(1) etag owner
	upPart     = 'p' // number in the key: size(8) MD5 or nothing
	upListed   = 'q' // a part that a manifest names; number in the key: size(8)
	upManifest = 'r' // a manifest page; its number in the key: offset(8) owner
	upProgress = 'u' // an upload in progress: owner
	upDoomed   = 'x' // a doomed row: keep(1) owner
)

func (r *run) row(it *rangestate.Item) error {
	name := storage.Owner{Bucket: it.Bucket, Key: it.Key}
	h := uploadHash(it.Bucket, it.Key, uint64(it.Seq))
	switch {
	case it.Err != nil:
		r.problem(r.about(KindMetadata, it.Bucket, it.Key, "", "a row of kind %q: %v; the other replicas may have it whole: see the problems of replicas", it.Kind, it.Err))
	case it.Object != nil:
		return r.object(it)
	case it.Part != nil:
		return r.part(it, h)
	case it.Manifest != nil:
		v := binary.BigEndian.AppendUint64(nil, it.Manifest.Offset)
		if err := r.putUpload(h, upManifest, it.Number, appendOwner(v, &name)); err != nil {
			return err
		}
		for _, p := range it.Manifest.Parts {
			if err := r.putUpload(h, upListed, p.Number, binary.BigEndian.AppendUint64(nil, p.Size)); err != nil {
				return err
			}
		}
	case it.Upload != nil:
		r.count(func(c *counts) { c.uploads++ })
		return r.putUpload(uploadHash(it.Bucket, it.Key, it.Upload.Seq), upProgress, 0, appendOwner(nil, &name))
	case it.Doomed != nil:
		keep := byte(0)
		if it.Doomed.KeepManifestParts {
			keep = 1
		}
		return r.putUpload(uploadHash(it.Bucket, it.Key, it.Doomed.UploadSeq), upDoomed, 0, appendOwner([]byte{keep}, &name))
	case it.Garbage != nil:
		r.count(func(c *counts) { c.garbage++ })
		for _, ref := range it.Garbage.Chunks {
			if why := refWrong(ref); why != "" {
				r.problem(r.about(KindRow, it.Bucket, it.Key, "", "a garbage row names a chunk that cannot be: %s", why))
				continue
			}
			if err := r.scratch.putNamed(&named{by: byGarbage, owner: name, ref: ref}); err != nil {
				return err
			}
		}
	case it.Repair != nil:
		r.count(func(c *counts) { c.repairs++ })
	}
	return nil
}

// versionName is a version as clients name it; "" for the null version.
func versionName(row *metapb.ObjectRow) string {
	if row.NullVersion {
		return ""
	}
	return storage.VersionID{Seq: storage.Seq(row.Seq), Nonce: row.Nonce}.String()
}

func (r *run) object(it *rangestate.Item) error {
	row := it.Object
	r.count(func(c *counts) {
		switch {
		case row.DeleteMarker:
			c.markers++
		case it.Kind == 'c':
			c.objects++
		default:
			c.versions++
		}
		c.logical += int64(row.Size)
	})
	if row.DeleteMarker {
		return nil
	}
	version := versionName(row)
	n := named{by: byVersion, owner: storage.Owner{Bucket: it.Bucket, Key: it.Key}, version: version}
	if copy(n.owner.Write[:], row.WriteId) != len(n.owner.Write) || len(row.WriteId) != len(n.owner.Write) {
		r.problem(r.about(KindRow, it.Bucket, it.Key, version, "the row names no write"))
		return nil
	}
	if up := row.GetData().GetUploadSeq(); up != 0 {
		v := binary.BigEndian.AppendUint64(nil, row.Size)
		v = binary.BigEndian.AppendUint32(v, row.Data.Parts)
		v = append(append(v, byte(len(row.Etag))), row.Etag...)
		return r.putUpload(uploadHash(it.Bucket, it.Key, up), upObject, 0, appendOwner(v, &n.owner))
	}
	return r.data(&n, row.Data, row.Size, row.Etag)
}

func (r *run) part(it *rangestate.Item, h [16]byte) error {
	row := it.Part
	r.count(func(c *counts) { c.parts++ })
	v := binary.BigEndian.AppendUint64(nil, row.Size)
	if sum, err := hex.DecodeString(row.Etag); err == nil && len(sum) == md5.Size {
		v = append(v, sum...)
	}
	if err := r.putUpload(h, upPart, row.Number, v); err != nil {
		return err
	}
	n := named{by: byPart, owner: storage.Owner{Bucket: it.Bucket, Key: it.Key}, part: row.Number}
	if len(row.WriteId) != len(n.owner.Write) || row.Number != it.Number {
		r.problem(r.about(KindRow, it.Bucket, it.Key, "", "the row of part %d names no write, or another part", it.Number))
		return nil
	}
	copy(n.owner.Write[:], row.WriteId)
	return r.data(&n, row.Data, row.Size, row.Etag)
}

// data notes the chunks of a version or part and checks what is in its row.
func (r *run) data(n *named, d *metapb.Data, size uint64, etag string) error {
	sum := uint64(len(d.GetInline()))
	for _, ref := range d.GetChunks() {
		if why := refWrong(ref); why != "" {
			r.problem(r.about(KindRow, n.owner.Bucket, n.owner.Key, n.version, "it names a chunk that cannot be: %s", why))
			return nil
		}
		sum += ref.ObjectBytes()
		n.ref = ref
		if err := r.scratch.putNamed(n); err != nil {
			return err
		}
	}
	if sum != size || len(d.GetInline()) > 0 && len(d.GetChunks()) > 0 {
		r.problem(r.about(KindRow, n.owner.Bucket, n.owner.Key, n.version, "its chunks or inline bytes are %d bytes, its size is %d", sum, size))
		return nil
	}
	if len(d.GetInline()) > 0 || size == 0 {
		r.count(func(c *counts) { c.inline++ })
		r.checkETag(n, etag, md5.Sum(d.GetInline()))
		return nil
	}
	if !r.cfg.Deep {
		return nil
	}
	return r.scratch.putContent(n, d, etag)
}

// checkETag compares the MD5 of bytes with an ETag that is one.
func (r *run) checkETag(n *named, etag string, sum [md5.Size]byte) {
	want, err := hex.DecodeString(etag)
	if err != nil || len(want) != md5.Size || bytes.Equal(want, sum[:]) {
		return
	}
	what := "the bytes"
	if n.by == byPart {
		what = fmt.Sprintf("the bytes of part %d", n.part)
	}
	r.problem(r.about(KindContent, n.owner.Bucket, n.owner.Key, n.version, "%s have MD5 %x, the ETag is %s: restore it from a backup", what, sum, etag))
}

// refWrong says why a reference cannot be to a chunk, or "".
func refWrong(ref *metapb.ChunkRef) string {
	switch l := layoutOf(ref); {
	case len(ref.Id) != len(storage.ChunkID{}):
		return "its id is not 16 bytes"
	case ref.K == 0 || ref.K > 64 || ref.M > 64 || ref.K+ref.M > 64:
		return fmt.Sprintf("code %d+%d", ref.K, ref.M)
	case l.StripeBytes <= 0 || l.Length <= 0 || l.Stripes() > 1<<16:
		return fmt.Sprintf("%d bytes in stripes of %d", ref.Length, ref.StripeBytes)
	case !ref.WellCompressed():
		return fmt.Sprintf("%d bytes stored for %d in frames of %d, compression %s", ref.Length, ref.RawLength, ref.FrameBytes, ref.Compression)
	}
	return ""
}

func layoutOf(ref *metapb.ChunkRef) storage.Layout {
	return storage.Layout{Scheme: storage.Scheme{K: uint8(ref.K), M: uint8(ref.M)}, StripeBytes: int(ref.StripeBytes), Length: int64(ref.Length)}
}

func (r *run) putUpload(h [16]byte, kind byte, n uint32, v []byte) error {
	key := append(append(make([]byte, 0, 21), h[:]...), kind)
	return r.scratch.uploads.add(binary.BigEndian.AppendUint32(key, n), v)
}
