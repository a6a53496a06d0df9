package target

import (
	"context"
	"errors"
)

// ErrClosed is what a call after Close answers.
var ErrClosed = errors.New("the target is closed")

// Turn lets one caller at a time use what a target holds, until it is closed. Waiting ends with ctx, as a mutex's does not.
type Turn struct {
	held   chan struct{} // has an element while somebody has the turn
	closed bool          // belongs to who has it
}

// NewTurn makes one that nobody has.
func NewTurn() *Turn { return &Turn{held: make(chan struct{}, 1)} }

// Take waits for the turn, which Give ends. Errors: ctx's, ErrClosed.
func (t *Turn) Take(ctx context.Context) error {
	select {
	case t.held <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if t.closed {
		t.Give()
		return ErrClosed
	}
	return nil
}

// Give ends the turn of who has it.
func (t *Turn) Give() { <-t.held }

// Close waits for the turn, which Give ends, and lets nobody have it afterwards.
func (t *Turn) Close() {
	t.held <- struct{}{}
	t.closed = true
}
