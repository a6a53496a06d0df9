// Package webhook delivers events by HTTP POST.
//
// A request carries one event, the document as it is, and the next request waits for its answer: so events arrive in order over one
// kept-alive connection. A receiver that wants fewer requests is given several events in one, as a JSON array of documents.
//
// With a secret each request is signed, so that a receiver knows who sent it and when. The signature is the HMAC-SHA256 of the
// timestamp as it stands in its header, a full stop, and the body:
//
//	X-Cairn-Timestamp: 1800000000
//	X-Cairn-Signature: sha256=<hexadecimal>
//
// Answers are taken by their status: 2xx acknowledges. 4xx says that this message will never be taken, except for those that speak of
// the receiver's state or of our access (401, 403, 404, 405, 407, 408, 410, 421, 425, 426, 429): they and all others are
// tried again by whoever sends. Redirects are not followed: a body that is signed for one receiver goes to no other.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

// Config says where and how. Environment variables for proxies are not regarded.
type Config struct {
	URL           string         // http or https, without user information
	Secret        string         // for the signature; default: none, nothing is signed
	Authorization string         // value of that header, as "Bearer TOKEN"; default: none
	TLS           dialtls.Config // of https
	Batch         int            // events in a request, 1 to 1000; default 1. With more than 1 the body is always an array
	Timeout       time.Duration  // of a request with its answer; default 10 s
}

const (
	batchMax     = 1000
	batchBytes   = 4 << 20  // a request takes no further event beyond it
	answerBytes  = 64 << 10 // what is read of an answer, so that its connection can be kept
	excerptBytes = 200      // what of it is shown in an error
)

// Validate reports what is wrong.
func (c *Config) Validate() error {
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		return errors.New("webhook: the URL is missing")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("webhook: give the URL as http://HOST/PATH or https://HOST/PATH")
	case u.User != nil:
		return errors.New("webhook: the URL holds a user: give it as the authorization instead (Basic ...)")
	case u.Fragment != "":
		return errors.New("webhook: the URL has a fragment, which is never sent: remove it")
	case u.Scheme == "http" && c.TLS != dialtls.Config{}:
		return errors.New("webhook: TLS is configured but the URL is http: make it https")
	case strings.ContainsAny(c.Authorization, "\r\n\x00"):
		return errors.New("webhook: the authorization must be one line")
	case c.Batch < 0 || c.Batch > batchMax:
		return fmt.Errorf("webhook: the number of events in a request is 1 to %d", batchMax)
	case c.Timeout < 0:
		return errors.New("webhook: the timeout is negative")
	}
	return c.TLS.Validate()
}

type hook struct {
	conf   Config
	host   string
	client *http.Client
	closed atomic.Bool
}

// Open makes the target. It connects to nobody yet.
func Open(c Config) (target.Target, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Batch == 0 {
		c.Batch = 1
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	tls, err := c.TLS.Client()
	if err != nil {
		return nil, err
	}
	return &hook{conf: c, host: u.Host, client: &http.Client{
		Timeout:       c.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: c.Timeout}).DialContext,
			TLSClientConfig:        tls,
			TLSHandshakeTimeout:    c.Timeout,
			ForceAttemptHTTP2:      true,
			MaxIdleConns:           16,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: answerBytes,
			DisableCompression:     true,
		},
	}}, nil
}

func (h *hook) Send(ctx context.Context, batch []target.Message) (int, error) {
	acked := 0
	limit := h.conf.Batch
	for acked < len(batch) {
		n := chunk(batch[acked:], limit)
		err := h.post(ctx, batch[acked:acked+n])
		if rejected := (*target.Rejected)(nil); errors.As(err, &rejected) && n > 1 {
			limit = 1 // one of them is refused: the next requests tell which
			continue
		}
		if err != nil {
			return acked, err
		}
		acked += n
	}
	return acked, nil
}

// chunk answers how many messages the next request holds.
func chunk(batch []target.Message, limit int) int {
	n, size := 0, 0
	for n < min(len(batch), limit) {
		size += len(batch[n].Body)
		if n > 0 && size > batchBytes {
			break
		}
		n++
	}
	return n
}

func (h *hook) post(ctx context.Context, messages []target.Message) error {
	body := messages[0].Body
	if h.conf.Batch > 1 {
		size := 2
		for _, m := range messages {
			size += len(m.Body) + 1
		}
		body = append(make([]byte, 0, size), '[')
		for i, m := range messages {
			if i > 0 {
				body = append(body, ',')
			}
			body = append(body, m.Body...)
		}
		body = append(body, ']')
	}
	req, err := h.request(ctx, http.MethodPost, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if h.conf.Batch == 1 {
		req.Header.Set("X-Cairn-Event-Id", messages[0].ID)
		req.Header.Set("X-Cairn-Event", messages[0].Event)
	}
	resp, excerpt, err := h.do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 == 2 {
		return nil
	}
	err = h.refusal(resp, excerpt)
	if resp.StatusCode/100 == 4 && !ofReceiver(resp.StatusCode) {
		return &target.Rejected{Err: err}
	}
	return err
}

// ofReceiver tells statuses that speak of the receiver's state or of our access to it, and not of a message.
func ofReceiver(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusProxyAuthRequired,
		http.StatusRequestTimeout, http.StatusGone, http.StatusMisdirectedRequest, http.StatusTooEarly, http.StatusUpgradeRequired,
		http.StatusTooManyRequests:
		return true
	}
	return false
}

func (h *hook) request(ctx context.Context, method string, body []byte) (*http.Request, error) {
	if h.closed.Load() {
		return nil, errors.New("webhook: closed")
	}
	req, err := http.NewRequestWithContext(ctx, method, h.conf.URL, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	req.Header.Set("User-Agent", "cairn")
	if h.conf.Authorization != "" {
		req.Header.Set("Authorization", h.conf.Authorization)
	}
	stamp := strconv.FormatInt(time.Now().Unix(), 10)
	req.Header.Set("X-Cairn-Timestamp", stamp)
	if h.conf.Secret != "" {
		mac := hmac.New(sha256.New, []byte(h.conf.Secret))
		mac.Write([]byte(stamp + "."))
		mac.Write(body)
		req.Header.Set("X-Cairn-Signature", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	}
	return req, nil
}

// do reads the answer to its end, or as far as it may be long; the body is closed. Errors name the host and not the whole URL, which
// may hold a secret.
func (h *hook) do(req *http.Request) (*http.Response, string, error) {
	resp, err := h.client.Do(req)
	if err != nil {
		if ended := context.Cause(req.Context()); ended != nil {
			err = ended
		}
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return nil, "", fmt.Errorf("webhook: %s: %w", h.host, err)
	}
	defer resp.Body.Close()
	start := make([]byte, excerptBytes)
	n, err := io.ReadFull(resp.Body, start)
	if err == nil {
		io.Copy(io.Discard, io.LimitReader(resp.Body, answerBytes)) // only to keep the connection: the status is the answer
	}
	return resp, string(start[:n]), nil
}

func (h *hook) refusal(resp *http.Response, excerpt string) error {
	text := fmt.Sprintf("webhook: %s answers %d %s", h.host, resp.StatusCode, http.StatusText(resp.StatusCode))
	if after := resp.Header.Get("Retry-After"); after != "" {
		text += fmt.Sprintf(", to be tried again after %.40q", after)
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		text += ": check the authorization and the secret"
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone:
		text += ": check the URL"
	}
	if resp.StatusCode/100 == 3 {
		text += ": redirects are not followed: configure the URL it leads to"
	} else if excerpt = strings.ToValidUTF8(strings.TrimSpace(excerpt), "?"); excerpt != "" {
		text += fmt.Sprintf(": %q", excerpt)
	}
	return errors.New(text)
}

// Check asks with HEAD. Receivers that know only POST answer with 404, 405 or the like, which is an answer; so it
// shows that somebody is there who does not turn us away, and not that a POST would be taken.
func (h *hook) Check(ctx context.Context) error {
	req, err := h.request(ctx, http.MethodHead, nil)
	if err != nil {
		return err
	}
	resp, excerpt, err := h.do(req)
	if err != nil {
		return err
	}
	switch code := resp.StatusCode; {
	case code/100 == 3, code >= 500 && code != http.StatusNotImplemented, code == http.StatusUnauthorized, code == http.StatusForbidden,
		code == http.StatusProxyAuthRequired, code == http.StatusGone, code == http.StatusTooManyRequests:
		return h.refusal(resp, excerpt)
	}
	return nil
}

func (h *hook) Close() error {
	h.closed.Store(true)
	h.client.CloseIdleConnections()
	return nil
}
