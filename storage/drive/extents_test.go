package drive

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// countedFile counts itself while it is open; its Close may be held up.
type countedFile struct {
	vfsx.File
	open *atomic.Int32
	hold chan struct{}
}

func (f countedFile) Close() error {
	if f.hold != nil {
		<-f.hold
	}
	f.open.Add(-1)
	return nil
}

// TestExtentsHang: an open or close that hangs keeps only those waiting who want that very file.
func TestExtentsHang(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var open, opens atomic.Int32
		hold := make(chan struct{})
		var fail atomic.Bool
		files := newExtents(1, func(n uint32) (vfsx.File, error) {
			opens.Add(1)
			if n == 1 {
				<-hold
			}
			if n == 1 && fail.Load() {
				return nil, errors.New("can't be opened")
			}
			open.Add(1)
			f := countedFile{open: &open}
			if n == 2 {
				f.hold = hold
			}
			return f, nil
		})
		for n := range uint32(5) {
			files.add(1+n, extentRow{}, nil)
		}
		var got [3]*extentState
		for i := range got {
			go func() { got[i], _ = files.acquire(1) }()
		}
		synctest.Wait()
		use := func(n uint32) {
			e, err := files.acquire(n)
			ok(t, err)
			files.release(e)
		}
		use(2)
		go use(3) // closes 2, which hangs
		synctest.Wait()
		use(4)
		files.drop(5)
		if files.get(4) == nil || len(files.all()) != 4 {
			t.Fatal("the table is wrong")
		}
		close(hold)
		synctest.Wait()
		for _, e := range got {
			if e == nil || e != got[0] {
				t.Fatal("not opened")
			}
			files.release(e)
		}
		if opens.Load() != 4 {
			t.Fatalf("%d files were opened", opens.Load())
		}
		use(4) // it was closed when the first came
		if opens.Load() != 5 || open.Load() != 1 {
			t.Fatalf("%d files were opened, %d are open", opens.Load(), open.Load())
		}
		// An error goes to all who ask, and is not for ever.
		fail.Store(true)
		for range 2 {
			if e, err := files.acquire(1); e != nil || err == nil {
				t.Fatal("opened")
			}
		}
		fail.Store(false)
		use(1)
	})
}

// TestExtentsDroppedWhileOpened: who opens an extent that is compacted away meanwhile finds that there is none.
func TestExtentsDroppedWhileOpened(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var open atomic.Int32
		hold := make(chan struct{})
		files := newExtents(1, func(uint32) (vfsx.File, error) {
			<-hold
			open.Add(1)
			return countedFile{open: &open}, nil
		})
		files.add(1, extentRow{}, nil)
		for range 2 {
			go func() {
				if e, err := files.acquire(1); e != nil || err != nil {
					t.Errorf("%v, %v", e, err)
				}
			}()
		}
		synctest.Wait()
		files.drop(1)
		close(hold)
		synctest.Wait()
		if open.Load() != 0 {
			t.Fatal("the file is left open")
		}
	})
}

// TestExtentFilesBounded: files that the writer began and nobody uses any more count, too.
func TestExtentFilesBounded(t *testing.T) {
	var open atomic.Int32
	files := newExtents(3, nil)
	for n := range uint32(20) {
		open.Add(1)
		files.release(files.add(n, extentRow{}, countedFile{open: &open}))
	}
	if open.Load() != 3 {
		t.Fatalf("%d files are open", open.Load())
	}
}
