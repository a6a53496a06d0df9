package admin

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"cairn/server/status"
)

// Client asks the admin API of a process.
type Client struct {
	Base      string // "http://127.0.0.1:9001"
	AccessKey string
	SecretKey string
	HTTP      *http.Client // nil is http.DefaultClient
}

// reportBytesMax bounds one line of a verification: a report with its list of problems.
const reportBytesMax = 64 << 20

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (s status.Status, err error) {
	resp, err := c.call(ctx, http.MethodGet, "/v1/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, reportBytesMax)).Decode(&s); err != nil {
		return s, fmt.Errorf("status from %s: %w", c.Base, err)
	}
	return s, nil
}

// NewToken asks for a token that lets one node join within valid.
func (c *Client) NewToken(ctx context.Context, valid time.Duration) (string, error) {
	resp, err := c.call(ctx, http.MethodPost, "/v1/cluster/token?valid="+valid.String())
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var a TokenAnswer
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&a); err != nil || a.Token == "" {
		return "", fmt.Errorf("join token from %s: %w", c.Base, cmp.Or(err, errors.New("the answer has none")))
	}
	return a.Token, nil
}

// Ready is nil if the process there serves reads and writes, else says why not. It needs no keys.
func (c *Client) Ready(ctx context.Context) error {
	resp, err := c.call(ctx, http.MethodGet, "/health/ready")
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Verify starts a verification there and waits for its report.
func (c *Client) Verify(ctx context.Context, progress func(status.Progress)) (status.Report, error) {
	resp, err := c.call(ctx, http.MethodPost, "/v1/verify")
	if err != nil {
		return status.Report{}, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, reportBytesMax)
	for lines.Scan() {
		var l Line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return status.Report{}, fmt.Errorf("verify at %s: %w", c.Base, err)
		}
		switch {
		case l.Report != nil:
			return *l.Report, nil
		case l.Error != "":
			return status.Report{}, errors.New(l.Error)
		case l.Progress != nil && progress != nil:
			progress(*l.Progress)
		}
	}
	if err := lines.Err(); err != nil {
		return status.Report{}, fmt.Errorf("verify at %s: %w", c.Base, err)
	}
	return status.Report{}, fmt.Errorf("verify at %s: the connection ended before the report: is the server still up?", c.Base)
}

// call answers an error unless the status is 200.
func (c *Client) call(ctx context.Context, method, path string) (*http.Response, error) {
	return c.send(ctx, method, path, nil)
}

// send is call with a body.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.Base+path, body)
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(c.AccessKey, c.SecretKey)
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return nil, &RefusedError{Status: resp.StatusCode, Text: strings.TrimSpace(string(text))}
	}
	return resp, nil
}

// RefusedError is an answer of the admin API other than 200: a server is there.
type RefusedError struct {
	Status int
	Text   string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%s (%d)", e.Text, e.Status) }
