package raftrpc

import (
	"context"
	"testing"
	"time"

	"cairn/storage/errs"
	"cairn/test/bubble"
)

// A leader learns from its voters' answers whose drive is full, and takes nothing that grows until it has space again or is
// silent for a while.
func TestFullDriveElsewhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		w.birth(1, 0, 1, 2)
		w.put(1, "k", "v")
		full := (w.leader(1) + 1) % 3
		propose := func(cmd string) error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := w.nodes[w.leader(1, full)].host.Propose(ctx, 1, []byte(cmd))
			return err
		}
		for _, silent := range []bool{false, true} {
			w.nodes[full].full.Store(true)
			time.Sleep(3 * time.Second)
			if err := propose("k more"); !errs.Is(err, errs.DriveFull) {
				t.Errorf("a voter's drive is full: %v", err)
			}
			if err := propose("-k less"); err != nil {
				t.Errorf("a voter's drive is full, what grows nothing: %v", err)
			}
			if silent {
				w.hole(full)
			} else {
				w.nodes[full].full.Store(false)
			}
			time.Sleep(15 * time.Second)
			w.put(1, "k", "again", full)
		}
		w.rules()
		w.close()
	})
}
