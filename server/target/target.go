// Package target says what a destination of event notifications is. Each kind of broker has a package of its own below
// this one, around the client library that is kept for it; none knows of buckets, rules or retries.
//
// # What is asked of a target
//
// Events of one key are delivered in order, each at least once. So whoever sends keeps what was not acknowledged and sends it
// again from the first on that was not; a target never reorders, never answers for what the broker has not taken over, and holds nothing
// after Send has returned.
package target

import (
	"context"
	"fmt"
	"time"
)

// Message is one event on its way. It is read-only.
type Message struct {
	// ID is the same whenever the same event is sent again, and of no other: brokers that can, drop repeats by it.
	ID     string
	Bucket string
	Key    string // of the object, as it is: any bytes. Brokers that have partitions choose them by bucket and key
	Event  string // S3's name without the s3: prefix, as ObjectCreated:Put
	Time   time.Time
	Body   []byte // JSON, UTF-8
}

// Target is a destination that is open. Send and Check may be called at once by several goroutines; Close comes last, once.
type Target interface {
	// Send delivers messages in order and answers how many of them, from the first on, the destination has acknowledged: it has them
	// for good, as far as it keeps anything for good. With fewer than all the error says why the next one was not; it is a *Rejected if that message
	// will never be taken. It ends soon after ctx does. It holds no memory that grows with how long the destination is away.
	Send(ctx context.Context, batch []Message) (acked int, err error)
	// Check reports whether messages would be taken now: the destination is there, lets us in, and has the queue, topic or table. It
	// delivers nothing. The error says what to do.
	Check(ctx context.Context) error
	// Close lets go of connections. It does not wait for anything but calls under way.
	Close() error
}

// Rejected is of a message that the destination refuses for what it is, however often it is sent: it is too large, or malformed in its eyes.
type Rejected struct{ Err error }

func (r *Rejected) Error() string { return fmt.Sprintf("refused for good: %v", r.Err) }

// Unwrap answers the cause.
func (r *Rejected) Unwrap() error { return r.Err }
