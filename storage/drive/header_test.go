package drive

import (
	"testing"

	"cairn/storage/errs"
)

func TestHeader(t *testing.T) {
	fs := newMem(t)
	d := told(t, small(fs))
	id, other := shardID(1, 5, 3), shardID(2, 6, 0)
	ok(t, put(d, id, 100_000))
	ok(t, put(d, other, 10))
	h, err := d.Header(ctx, id)
	ok(t, err)
	if h != header(id) {
		t.Fatalf("%+v, want %+v", h, header(id))
	}
	_, err = d.Header(ctx, shardID(1, 9, 0))
	wantKind(t, err, errs.NotFound)

	// A damaged header is Corrupt though the payload can be read, and an append heals it.
	at, _, err := d.index.location(appendShardKey(nil, &id))
	ok(t, err)
	f, err := fs.OpenReadWrite(d.extentPath(at.extent), "")
	ok(t, err)
	_, err = f.WriteAt([]byte{0xee}, int64(at.off)+60)
	ok(t, err)
	ok(t, f.Close())
	holds(t, d, id, 100_000)
	_, err = d.Header(ctx, id)
	wantKind(t, err, errs.Corrupt)
	ok(t, put(d, id, 100_000))
	h, err = d.Header(ctx, id)
	ok(t, err)
	if h != header(id) {
		t.Fatalf("%+v", h)
	}
	holds(t, d, id, 100_000)

	ok(t, remove(d, id))
	_, err = d.Header(ctx, id)
	wantKind(t, err, errs.Gone)
	ok(t, d.Close())
	_, err = d.Header(ctx, other)
	wantKind(t, err, errs.Closed)
}
