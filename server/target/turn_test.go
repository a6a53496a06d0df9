package target

import (
	"context"
	"errors"
	"testing"
)

func TestTurn(t *testing.T) {
	turn := NewTurn()
	if err := turn.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := turn.Take(ended); !errors.Is(err, context.Canceled) {
		t.Fatal("somebody has it, and the wait is over:", err)
	}
	closed := make(chan struct{})
	go func() {
		turn.Close()
		turn.Give()
		close(closed)
	}()
	select {
	case <-closed:
		t.Fatal("closed while somebody has it")
	default:
	}
	turn.Give()
	<-closed
	if err := turn.Take(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := turn.Take(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatal("who is refused keeps nobody else waiting:", err)
	}
}
