package rangestate

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
)

// state is all rows of a store, read the slow way, straight from the raw keys.
type state struct {
	chunks   map[string][]string  // chunk id -> the places that name it
	data     map[string]stateData // place -> data
	versions map[string]*stateVersion
	nulls    map[string]uint64
	uploads  map[string]*metapb.UploadRow
	doomed   map[string]bool // places of parts that a doomed row reaches
	stray    []string
}

type stateData struct {
	write string
	data  *metapb.Data
}

type stateVersion struct {
	row     *metapb.ObjectRow
	current bool
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func parse(t testing.TB, db *pebble.DB) *state {
	t.Helper()
	s := &state{
		chunks: map[string][]string{}, data: map[string]stateData{}, versions: map[string]*stateVersion{}, nulls: map[string]uint64{},
		uploads: map[string]*metapb.UploadRow{}, doomed: map[string]bool{},
	}
	name := func(chunks []*metapb.ChunkRef, where string) {
		for _, c := range chunks {
			s.chunks[string(c.Id)] = append(s.chunks[string(c.Id)], where)
		}
	}
	version := func(pos string, value string, current bool) {
		row := &metapb.ObjectRow{}
		must(t, row.UnmarshalVT([]byte(value)))
		where := fmt.Sprintf("%s/version %d", pos, row.Seq)
		if s.versions[where] != nil {
			t.Errorf("%s is there twice", where)
		}
		s.versions[where] = &stateVersion{row, current}
		if row.Data == nil {
			row.Data = &metapb.Data{}
		}
		s.data[where] = stateData{string(row.WriteId), row.Data}
		name(row.Data.Chunks, where)
	}
	listed := map[string]bool{}   // parts named by manifests
	manifest := map[string]bool{} // uploads with manifests
	dooms := map[string][]*metapb.DoomedRow{}
	parts := map[string]string{} // place -> upload place
	for _, kv := range dump(t, db) {
		raw, value := []byte(kv[0]), kv[1]
		kind := raw[0]
		if kind == kindGroup {
			if raw[9] == subGarbage {
				row := &metapb.GarbageRow{}
				must(t, row.UnmarshalVT([]byte(value)))
				if len(row.Chunks) == 0 {
					t.Errorf("empty garbage row %v", row)
				}
				name(row.Chunks, fmt.Sprintf("garbage %x", raw[10:]))
			}
			continue
		}
		if kind == kindEvent {
			if len(raw) != eventHeadLen+8 {
				t.Errorf("malformed key %q", raw)
			}
			continue
		}
		bucket := binary.BigEndian.Uint64(raw[1:9])
		key, suffix := raw[9:], []byte(nil)
		if !rawKind(kind) {
			var ok bool
			if key, suffix, ok = cutEscaped(raw[9:], nil); !ok {
				t.Errorf("malformed key %q", raw)
			}
		}
		pos := fmt.Sprintf("%d/%q", bucket, string(key))
		seq := uint64(0)
		if len(suffix) >= 8 {
			seq = binary.BigEndian.Uint64(suffix)
		}
		upload := fmt.Sprintf("%s/upload %d", pos, seq)
		switch kind {
		case kindCurrent:
			version(pos, value, true)
		case kindVersion:
			version(pos, value, false)
		case kindNull:
			s.nulls[pos] = binary.BigEndian.Uint64([]byte(value))
		case kindUpload:
			row := &metapb.UploadRow{}
			must(t, row.UnmarshalVT([]byte(value)))
			s.uploads[upload] = row
		case kindPart:
			row := &metapb.PartRow{}
			must(t, row.UnmarshalVT([]byte(value)))
			where := fmt.Sprintf("%s part %d", upload, suffixNumber(raw))
			if row.Data == nil {
				row.Data = &metapb.Data{}
			}
			s.data[where] = stateData{string(row.WriteId), row.Data}
			name(row.Data.Chunks, where)
			parts[where] = upload
		case kindManifest:
			row := &metapb.ManifestRow{}
			must(t, row.UnmarshalVT([]byte(value)))
			manifest[upload] = true
			for _, p := range row.Parts {
				listed[fmt.Sprintf("%s part %d", upload, p.Number)] = true
			}
		case kindDoomed:
			row := &metapb.DoomedRow{}
			must(t, row.UnmarshalVT([]byte(value)))
			at := fmt.Sprintf("%s/upload %d", pos, row.UploadSeq)
			dooms[at] = append(dooms[at], row)
		case kindBucket, kindCompleted, kindOutcome, kindRepair, kindTimer:
		default:
			t.Errorf("row of an unknown kind: %q", raw)
		}
	}
	object := map[string]bool{} // uploads that live objects name
	for where, v := range s.versions {
		if up := v.row.Data.UploadSeq; up != 0 {
			var pos string
			for i := len(where) - 1; ; i-- {
				if where[i] == '/' {
					pos = where[:i]
					break
				}
			}
			object[fmt.Sprintf("%s/upload %d", pos, up)] = true
		}
	}
	for where, upload := range parts {
		for _, d := range dooms[upload] {
			if !d.KeepManifestParts || !listed[where] {
				s.doomed[where] = true
			}
		}
		if s.uploads[upload] == nil && !(object[upload] && listed[where]) && !s.doomed[where] {
			s.stray = append(s.stray, where)
		}
	}
	for upload := range manifest {
		full := false
		for _, d := range dooms[upload] {
			full = full || !d.KeepManifestParts
		}
		if object[upload] == full {
			s.stray = append(s.stray, fmt.Sprintf("manifest of %s (object %v, doomed %v)", upload, object[upload], full))
		}
	}
	return s
}
