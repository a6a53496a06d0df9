package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"cairn/server/status"
)

// EventTargets asks for all targets of events.
func (c *Client) EventTargets(ctx context.Context) (out []status.EventTarget, err error) {
	return out, c.askJSON(ctx, http.MethodGet, "/v1/events/targets", nil, &out)
}

// EventsStatus asks how far events have come.
func (c *Client) EventsStatus(ctx context.Context) (out status.Events, err error) {
	return out, c.askJSON(ctx, http.MethodGet, "/v1/events/status", nil, &out)
}

// PutEventTarget sets a target up.
func (c *Client) PutEventTarget(ctx context.Context, t *TargetSpec) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return c.askJSON(ctx, http.MethodPut, "/v1/events/targets", bytes.NewReader(b), nil)
}

// RemoveEventTarget forgets a target.
func (c *Client) RemoveEventTarget(ctx context.Context, name string, force bool) error {
	return c.askJSON(ctx, http.MethodDelete, "/v1/events/targets/"+url.PathEscape(name)+"?force="+strconv.FormatBool(force), nil, nil)
}

// TestEventTarget sends a target a test message.
func (c *Client) TestEventTarget(ctx context.Context, name string) error {
	return c.askJSON(ctx, http.MethodPost, "/v1/events/targets/"+url.PathEscape(name)+"/test", nil, nil)
}

// askJSON reads an answer into out; nil: it says nothing.
func (c *Client) askJSON(ctx context.Context, method, path string, body io.Reader, out any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, reportBytesMax)).Decode(out); err != nil {
		return fmt.Errorf("the answer of %s: %w", c.Base, err)
	}
	return nil
}

// eventLineMax bounds a line of a stream of events.
const eventLineMax = 4 << 20

// StreamEvents calls fn with events until the stream ends, fn fails or ctx ends.
func (c *Client) StreamEvents(ctx context.Context, q StreamQuery, fn func(*status.EventLine) error) error {
	v := url.Values{"bucket": {q.Bucket}, "from": {q.From}, "follow": {strconv.FormatBool(q.Follow)}}
	return c.stream(ctx, "/v1/events/stream?"+v.Encode(), func(l *StreamLine) error {
		if l.EventLine == nil {
			return nil
		}
		return fn(l.EventLine)
	})
}

// DeadEvents calls fn with dead letters of a target (empty: of all), max at most.
func (c *Client) DeadEvents(ctx context.Context, target string, max int, fn func(*status.DeadEvent) error) error {
	v := url.Values{"target": {target}, "limit": {strconv.Itoa(max)}}
	return c.stream(ctx, "/v1/events/dead?"+v.Encode(), func(l *StreamLine) error {
		if l.Dead == nil {
			return nil
		}
		return fn(l.Dead)
	})
}

// StreamCutError says that a stream ended before its last line: the server stopped, or the way to it broke.
type StreamCutError struct{ Err error }

func (e *StreamCutError) Error() string { return "the stream was cut off: " + e.Err.Error() }
func (e *StreamCutError) Unwrap() error { return e.Err }

// StreamError is what the server says went wrong after its answer had begun.
type StreamError struct{ Text string }

func (e *StreamError) Error() string { return e.Text }

// stream calls fn with each line but the last.
func (c *Client) stream(ctx context.Context, path string, fn func(*StreamLine) error) error {
	resp, err := c.call(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, eventLineMax)
	for lines.Scan() {
		l := &StreamLine{}
		if err := json.Unmarshal(lines.Bytes(), l); err != nil {
			return &StreamCutError{err}
		}
		switch {
		case l.Error != "":
			return &StreamError{l.Error}
		case l.End:
			return nil
		}
		if err := fn(l); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return &StreamCutError{err}
	}
	return &StreamCutError{io.ErrUnexpectedEOF}
}

// ReplayEvents has events sent again and waits for the end. It answers how far it came, also with an error.
func (c *Client) ReplayEvents(ctx context.Context, q ReplayQuery, progress func(status.ReplayProgress)) (p status.ReplayProgress, err error) {
	v := url.Values{"target": {q.Target}, "bucket": {q.Bucket}, "dead": {strconv.FormatBool(q.Dead)}}
	if q.From != "" {
		v.Set("from", q.From)
	}
	resp, err := c.call(ctx, http.MethodPost, "/v1/events/replay?"+v.Encode())
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, eventLineMax)
	for lines.Scan() {
		var l ReplayLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return p, fmt.Errorf("replay at %s: %w", c.Base, err)
		}
		switch {
		case l.Done != nil && l.Error != "":
			return *l.Done, &StreamError{l.Error}
		case l.Done != nil:
			return *l.Done, nil
		case l.Progress != nil:
			if p = *l.Progress; progress != nil {
				progress(p)
			}
		}
	}
	return p, &StreamCutError{errors.Join(lines.Err(), io.ErrUnexpectedEOF)}
}
