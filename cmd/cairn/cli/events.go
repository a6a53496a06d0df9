package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"cairn/server/admin"
	"cairn/server/status"
)

type eventsCmd struct {
	Target eventTargetCmd `cmd:"" help:"Set up where events go."`
	Tail   eventTailCmd   `cmd:"" help:"Print a bucket's events as they come."`
	Replay eventReplayCmd `cmd:"" help:"Send kept events, or dead letters, to a target again."`
	Dead   eventDeadCmd   `cmd:"" help:"List events that a target refused for good."`
	Status eventStatusCmd `cmd:"" help:"Show what waits, what was delivered, and why something is not."`
}

type eventStatusCmd struct {
	Flags adminFlags `embed:""`
	JSON  bool       `name:"json" help:"Print JSON, for programs."`
}

// Help is shown under the usage line.
func (eventStatusCmd) Help() string {
	return `Asks the server's admin address with the root keys; any node answers for all. Delivered, dead and dropped are since the beginning.`
}

// Run is called by kong.
func (s *eventStatusCmd) Run(ctx context.Context, d Deps) error {
	client, err := s.Flags.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := client.EventsStatus(ctx)
	if err != nil {
		return explain(client, err)
	}
	if s.JSON {
		enc := json.NewEncoder(d.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(st)
	}
	st.Print(d.Stdout, d.Now())
	return nil
}

type eventTailCmd struct {
	Flags    adminFlags `embed:""`
	Bucket   string     `arg:"" optional:"" name:"bucket" help:"Only events of this bucket; without it of all."`
	From     string     `name:"from" placeholder:"PLACE" help:"Where to begin: a position as a line has it, a time (2027-01-02T15:04:05Z), begin (the oldest that is kept) or now (the default, but begin with --no-follow)."`
	NoFollow bool       `name:"no-follow" help:"End when there are no more."`
}

// Help is shown under the usage line.
func (eventTailCmd) Help() string {
	return `Prints lines of JSON. A line with an event has S3's record and the position behind it, from which a later tail goes on. A line with lost says that events which would have come are not kept any more. Events of a key come in their order. Only events that a rule of the bucket's notification configuration wants are there; a target of kind log takes them without sending them anywhere.

  cairn events tail photos                       what happens from now on
  cairn events tail photos --from begin          everything that is kept, and on
  cairn events tail photos --no-follow | jq -r .event.s3.object.key

When the server goes away it is tried again.`
}

// tailRetries is how often in a row a tail that was cut off is begun again without a line.
const tailRetries = 20

// Run is called by kong.
func (t *eventTailCmd) Run(ctx context.Context, d Deps) error {
	client, err := t.Flags.client()
	if err != nil {
		return err
	}
	q := admin.StreamQuery{Bucket: t.Bucket, From: t.From, Follow: !t.NoFollow}
	if q.From == "" && t.NoFollow {
		q.From = "begin"
	}
	enc := json.NewEncoder(d.Stdout)
	for failed, begun := 0, false; ; {
		err := client.StreamEvents(ctx, q, func(l *status.EventLine) error {
			failed, begun = 0, true
			if l.Event != nil || l.Lost {
				if err := enc.Encode(l); err != nil {
					return &outputError{err}
				}
			}
			if l.Position != "" { // only now: whoever goes on from here must have seen the line
				q.From = l.Position
			}
			return nil
		})
		switch {
		case err == nil, ctx.Err() != nil:
			return nil
		case !q.Follow || failed >= tailRetries || !begun && failed == 0 || !cut(err):
			return explainEvents(client, err)
		}
		failed++
		select {
		case <-time.After(tailPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// tailPause is how long a tail that was cut off waits before it is begun again.
const tailPause = 500 * time.Millisecond

// outputError says that a line could not be written to the standard output, for which no server can do anything.
type outputError struct{ err error }

func (e *outputError) Error() string { return "the output: " + e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// cut reports whether a stream may go on where it was cut off: the server said nothing against it, and its lines could be written.
func cut(err error) bool {
	var refused *admin.RefusedError
	var told *admin.StreamError
	var output *outputError
	return !errors.As(err, &told) && !errors.As(err, &output) && (!errors.As(err, &refused) || refused.Status == http.StatusServiceUnavailable)
}

type eventReplayCmd struct {
	Flags  adminFlags `embed:""`
	Target string     `arg:"" name:"target" help:"The target, by its name."`
	From   string     `name:"from" placeholder:"PLACE" help:"Where to begin: a position, a time (2027-01-02T15:04:05Z) or begin (the default: the oldest that is kept)."`
	Bucket string     `name:"bucket" placeholder:"BUCKET" help:"Only events of this bucket."`
	Dead   bool       `name:"dead" help:"Send the events that the target refused for good, instead of those that are kept. Each that it takes now is forgotten."`
}

// Help is shown under the usage line.
func (eventReplayCmd) Help() string {
	return `Sends events once more that were delivered, or are about to be, up to those that are there now. They have the ids and sequencers that they had. What comes meanwhile is delivered as ever, so order against it is not kept: compare sequencers.

If it ends early it prints a position; go on from there with --from.`
}

// Run is called by kong.
func (r *eventReplayCmd) Run(ctx context.Context, d Deps) error {
	if r.Dead && r.From != "" {
		return usage(errors.New("--from is of events that are kept; with --dead all dead letters are sent again"))
	}
	client, err := r.Flags.client()
	if err != nil {
		return err
	}
	p, err := client.ReplayEvents(ctx, admin.ReplayQuery{Target: r.Target, From: r.From, Bucket: r.Bucket, Dead: r.Dead}, func(p status.ReplayProgress) {
		fmt.Fprintf(d.Stderr, "replay: %d sent, %d refused\n", p.Sent, p.Refused)
	})
	if p.Lost {
		fmt.Fprintln(d.Stderr, "replay: some of the events from there on are not kept any more")
	}
	if err != nil {
		if p.Position != "" {
			fmt.Fprintf(d.Stderr, "replay: %d sent; to go on: --from %s\n", p.Sent, p.Position)
		}
		return explainEvents(client, err)
	}
	_, err = fmt.Fprintf(d.Stdout, "%d sent, %d refused by the target\n", p.Sent, p.Refused)
	return err
}

// explainEvents is explain, but for what the server says of a target in the middle of an answer, and for what failed on this side.
func explainEvents(c *admin.Client, err error) error {
	var refused *admin.RefusedError
	var told *admin.StreamError
	var output *outputError
	switch {
	case errors.As(err, &refused) && refused.Status != http.StatusUnauthorized:
		return errors.New(refused.Text)
	case errors.As(err, &told), errors.As(err, &output):
		return err
	}
	return explain(c, err)
}

type eventDeadCmd struct {
	Flags  adminFlags `embed:""`
	Target string     `arg:"" optional:"" name:"target" help:"The target, by its name; without it all."`
	Limit  int        `name:"limit" default:"1000" placeholder:"N" help:"At most so many (1000)."`
}

// Help is shown under the usage line.
func (eventDeadCmd) Help() string {
	return `Prints lines of JSON: the target, when and why it refused, and S3's record. 'cairn events replay TARGET --dead' sends them again.`
}

// Run is called by kong.
func (l *eventDeadCmd) Run(ctx context.Context, d Deps) error {
	if l.Limit < 1 || l.Limit > admin.DeadEventsMax {
		return usage(fmt.Errorf("--limit is %d: use 1 to %d", l.Limit, admin.DeadEventsMax))
	}
	client, err := l.Flags.client()
	if err != nil {
		return err
	}
	enc := json.NewEncoder(d.Stdout)
	err = client.DeadEvents(ctx, l.Target, l.Limit, func(e *status.DeadEvent) error {
		if err := enc.Encode(e); err != nil {
			return &outputError{err}
		}
		return nil
	})
	if err != nil {
		return explainEvents(client, err)
	}
	return nil
}
