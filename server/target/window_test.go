package target_test

import (
	"errors"
	"testing"

	"cairn/server/target"
)

func TestWindow(t *testing.T) {
	of := func(keys ...string) (batch []target.Message) {
		for _, k := range keys {
			batch = append(batch, target.Message{Bucket: k[:1], Key: k[1:]})
		}
		return batch
	}
	for _, c := range []struct {
		batch []target.Message
		limit int
		want  int
	}{
		{nil, 4, 0},
		{of("a1"), 0, 1},
		{of("a1", "a2", "b1", "b2"), 10, 4},
		{of("a1", "a2", "b1", "b2"), 3, 3},
		{of("a1", "a2", "a1", "b2"), 10, 2},
		{of("a1", "a1"), 10, 1},
		{of("a1", "b1", "ab1", "a1"), 10, 3},
	} {
		if got := target.Window(c.batch, c.limit); got != c.want {
			t.Errorf("%v, %d at most: %d, want %d", c.batch, c.limit, got, c.want)
		}
	}
}

func TestRejected(t *testing.T) {
	cause := errors.New("too large")
	var err error = &target.Rejected{Err: cause}
	if !errors.Is(err, cause) || err.Error() != "refused for good: too large" {
		t.Fatal(err)
	}
}
