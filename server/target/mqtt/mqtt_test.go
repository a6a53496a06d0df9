package mqtt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	broker5 "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

var errCut = errors.New("cut")

// hook is what the tests' broker does: it lets one user in, keeps what is published and answers as told.
type hook struct {
	broker5.HookBase
	mu       sync.Mutex
	got      []packets.Packet
	answer   func(n int) error // of the n-th message ever, from 0
	n        int
	password string
	cut      func(*broker5.Client) // if answer is errCut
	limit    uint32                // told as the largest packet; 0: not told
}

func (h *hook) ID() string { return "test" }
func (h *hook) Provides(b byte) bool {
	return bytes.IndexByte([]byte{broker5.OnConnectAuthenticate, broker5.OnACLCheck, broker5.OnPublish, broker5.OnPacketEncode}, b) >= 0
}
func (h *hook) OnConnectAuthenticate(_ *broker5.Client, pk packets.Packet) bool {
	return string(pk.Connect.Username) == "events" && string(pk.Connect.Password) == h.password
}
func (h *hook) OnACLCheck(_ *broker5.Client, topic string, _ bool) bool { return topic != "forbidden" }
func (h *hook) OnPacketEncode(_ *broker5.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Connack {
		pk.Properties.MaximumPacketSize = h.limit
	}
	return pk
}
func (h *hook) OnPublish(cl *broker5.Client, pk packets.Packet) (packets.Packet, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
	if h.answer != nil {
		if err := h.answer(h.n - 1); errors.Is(err, errCut) {
			h.cut(cl)
			return pk, packets.ErrRejectPacket
		} else if err != nil {
			return pk, err
		}
	}
	h.got = append(h.got, pk)
	return pk, nil
}

func (h *hook) keys() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for _, pk := range h.got {
		all = append(all, string(pk.Payload))
	}
	return strings.Join(all, " ")
}

// serve runs a broker on the address, or on a free one; end stops it.
func serve(t *testing.T, address string, h *hook, config *tls.Config, options *broker5.Options) (at string, end func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	at = l.Addr().String()
	if config != nil {
		l = tls.NewListener(l, config)
	}
	options.Logger = slog.New(slog.DiscardHandler)
	s := broker5.New(options)
	if err := s.AddHook(h, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.AddListener(listeners.NewNet("test", l)); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end = func() {
		once.Do(func() {
			// The server's own way to its clients takes a lock for reading twice, and waits for ever if one leaves in between.
			s.Listeners.Close("test", func(string) {
				for _, c := range s.Clients.GetAll() {
					if !c.Net.Inline {
						_ = s.DisconnectClient(c, packets.ErrServerShuttingDown)
					}
				}
			})
			s.Close()
		})
	}
	t.Cleanup(end)
	return at, end
}

func openTarget(t *testing.T, c Config) target.Target {
	t.Helper()
	c.User, c.Password = "events", "secret"
	if c.Topic == "" {
		c.Topic = "cairn/events"
	}
	target, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}

func messages(n int) []target.Message {
	all := make([]target.Message, n)
	for i := range all {
		all[i] = target.Message{ID: fmt.Sprint("id", i), Bucket: "b", Key: "k", Event: "ObjectCreated:Put", Time: time.Unix(int64(i), 0), Body: fmt.Appendf(nil, `{"n":%d}`, i)}
	}
	return all
}

func TestSend(t *testing.T) {
	h := &hook{password: "secret"}
	at, _ := serve(t, "127.0.0.1:0", h, nil, new(broker5.Options))
	target := openTarget(t, Config{Address: at})
	if err := target.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h.n != 0 {
		t.Fatal("the check published")
	}
	if n, err := target.Send(t.Context(), messages(3)); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if got := h.keys(); got != `{"n":0} {"n":1} {"n":2}` {
		t.Fatal(got)
	}
	pk := h.got[1]
	var user []string
	for _, u := range pk.Properties.User {
		user = append(user, u.Key+"="+u.Val)
	}
	if got, want := strings.Join(user, " "), "id=id1 bucket=b event=ObjectCreated:Put time=1970-01-01T00:00:01Z"; got != want {
		t.Errorf("properties %s, want %s", got, want)
	}
	if pk.FixedHeader.Qos != 1 || pk.TopicName != "cairn/events" || pk.Properties.ContentType != "application/json" || pk.FixedHeader.Retain {
		t.Errorf("%+v", pk)
	}
	if n, err := target.Send(t.Context(), nil); n != 0 || err != nil {
		t.Error(n, err)
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name     string
		code     packets.Code
		allow    bool
		acked    int
		rejected bool
	}{
		{"nobody subscribes", packets.CodeNoMatchingSubscribers, false, 1, false},
		{"nobody subscribes, allowed", packets.CodeNoMatchingSubscribers, true, 3, false},
		{"malformed payload", packets.ErrPayloadFormatInvalid, false, 1, true},
		{"quota", packets.ErrQuotaExceeded, false, 1, false},
		{"not authorized", packets.ErrNotAuthorized, false, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &hook{password: "secret", answer: func(n int) error {
				if n == 1 {
					return c.code
				}
				return nil
			}}
			at, _ := serve(t, "127.0.0.1:0", h, nil, new(broker5.Options))
			to := openTarget(t, Config{Address: at, AllowNoSubscribers: c.allow})
			n, err := to.Send(t.Context(), messages(3))
			var rejected *target.Rejected
			if n != c.acked || (err == nil) != (n == 3) || errors.As(err, &rejected) != c.rejected {
				t.Fatal(n, err)
			}
			if n < 3 { // from there on, over the same connection
				if n, err := to.Send(t.Context(), messages(3)[n:]); n != 2 || err != nil {
					t.Fatal(n, err)
				}
				if got := h.keys(); got != `{"n":0} {"n":1} {"n":2}` {
					t.Error(got)
				}
			}
		})
	}
}

func TestTooLarge(t *testing.T) {
	h := &hook{password: "secret", limit: 1000}
	at, _ := serve(t, "127.0.0.1:0", h, nil, new(broker5.Options))
	to := openTarget(t, Config{Address: at})
	batch := messages(3)
	batch[1].Body = bytes.Repeat([]byte("1"), 1000)
	n, err := to.Send(t.Context(), batch)
	var rejected *target.Rejected
	if n != 1 || !errors.As(err, &rejected) {
		t.Fatal(n, err)
	}
	if n, err := to.Send(t.Context(), batch[2:]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

// TestCutShort is of a broker that ends the connection on a message, with and without saying why.
func TestCutShort(t *testing.T) {
	for _, c := range []struct {
		reason   packets.Code
		rejected bool
	}{{packets.ErrPacketTooLarge, true}, {packets.ErrQuotaExceeded, false}, {packets.Code{}, false}} {
		h := &hook{password: "secret"}
		h.answer = func(n int) error {
			if n == 1 {
				return errCut
			}
			return nil
		}
		at, _ := serve(t, "127.0.0.1:0", h, nil, new(broker5.Options))
		h.cut = func(cl *broker5.Client) {
			if c.reason.Code != 0 {
				_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: c.reason.Code, ProtocolVersion: 5})
			}
			cl.Stop(errCut)
		}
		to := openTarget(t, Config{Address: at, Timeout: time.Minute})
		n, err := to.Send(t.Context(), messages(3))
		var rejected *target.Rejected
		if n != 1 || err == nil || errors.As(err, &rejected) != c.rejected {
			t.Errorf("%+v: %d, %v", c, n, err)
		}
		if n, err := to.Send(t.Context(), messages(3)[1:]); n != 2 || err != nil {
			t.Errorf("%+v: again: %d, %v", c, n, err)
		}
	}
}

func TestNoQualityOfService(t *testing.T) {
	capabilities := broker5.NewDefaultServerCapabilities()
	capabilities.MaximumQos = 0
	at, _ := serve(t, "127.0.0.1:0", &hook{password: "secret"}, nil, &broker5.Options{Capabilities: capabilities})
	to := openTarget(t, Config{Address: at})
	if err := to.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "quality of service") {
		t.Error(err)
	}
	if n, err := to.Send(t.Context(), messages(1)); n != 0 || err == nil {
		t.Error(n, err)
	}
}

func TestAway(t *testing.T) {
	h := &hook{password: "secret"}
	at, end := serve(t, "127.0.0.1:0", h, nil, new(broker5.Options))
	to := openTarget(t, Config{Address: at})
	if n, err := to.Send(t.Context(), messages(1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	end()
	if n, err := to.Send(t.Context(), messages(1)); n != 0 || err == nil {
		t.Fatal(n, err)
	}
	if err := to.Check(t.Context()); err == nil {
		t.Fatal("a broker that is away passes the check")
	}
	again := &hook{password: "secret"}
	serve(t, at, again, nil, new(broker5.Options))
	if n, err := to.Send(t.Context(), messages(2)); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if got := again.keys(); got != `{"n":0} {"n":1}` {
		t.Error("what was not acknowledged came by itself: ", got)
	}
}

func TestWrongPassword(t *testing.T) {
	at, _ := serve(t, "127.0.0.1:0", &hook{password: "another"}, nil, new(broker5.Options))
	to := openTarget(t, Config{Address: at})
	if err := to.Check(t.Context()); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "0x86") {
		t.Error(err)
	}
}

// TestSilence is of a broker that takes the connection, or the message, and never answers.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	held := make(chan struct{})
	h := &hook{password: "secret", answer: func(int) error { <-held; return nil }}
	at, _ := serve(t, "127.0.0.1:0", h, nil, new(broker5.Options))
	defer close(held)
	for _, address := range []string{l.Addr().String(), at} {
		to := openTarget(t, Config{Address: address, Timeout: 50 * time.Millisecond})
		if n, err := to.Send(t.Context(), messages(1)); n != 0 || err == nil {
			t.Error(address, n, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if n, err := to.Send(ctx, messages(1)); n != 0 || !errors.Is(err, context.Canceled) {
			t.Error(address, n, err)
		}
	}
}

// chunks is a connection that is read in pieces of a size.
type chunks struct {
	net.Conn
	data []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.data)
	c.data = c.data[n:]
	return n, nil
}

func TestBounded(t *testing.T) {
	packet := func(length int) []byte {
		p := []byte{0x40}
		for rest := length; ; {
			c := byte(rest & 0x7f)
			if rest >>= 7; rest > 0 {
				c |= 0x80
			}
			if p = append(p, c); rest == 0 {
				return append(p, make([]byte, length)...)
			}
		}
	}
	good := slices.Concat(packet(0), packet(2), packet(127), packet(128), packet(packetMax), packet(3))
	for _, size := range []int{1, 7, 4096, 1 << 20} {
		all, err := io.ReadAll(&bounded{Conn: &chunks{data: slices.Clone(good), size: size}})
		if err != nil || !bytes.Equal(all, good) {
			t.Errorf("pieces of %d: %d bytes, %v", size, len(all), err)
		}
		for _, bad := range [][]byte{packet(packetMax + 1), {0x20, 0xff, 0xff, 0xff, 0x7f}, {0x20, 0x80, 0x80, 0x80, 0x80, 0x01}} {
			if _, err := io.ReadAll(&bounded{Conn: &chunks{data: slices.Concat(good, bad), size: size}}); err == nil {
				t.Errorf("pieces of %d: % x passes", size, bad[:5])
			}
		}
	}
}

// TestGarbage is of servers that speak something else: it is told at once, and nothing counts as delivered.
func TestGarbage(t *testing.T) {
	for _, answer := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-x\r\n", "\x20\xff\xff\xff\x7f", "\x20\x03\x00", ""} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 1024))
				_, _ = conn.Write([]byte(answer))
				conn.Close()
			}
		}()
		to := openTarget(t, Config{Address: l.Addr().String()})
		if n, err := to.Send(t.Context(), messages(1)); n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q: %d, %v", answer, n, err)
		}
	}
}

func TestConcurrent(t *testing.T) {
	h := &hook{password: "secret"}
	at, _ := serve(t, "127.0.0.1:0", h, nil, new(broker5.Options))
	to := openTarget(t, Config{Address: at})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if n, err := to.Send(t.Context(), messages(5)); n != 5 || err != nil {
				t.Error(n, err)
			}
			if err := to.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if h.n != 20 {
		t.Error(h.n)
	}
}

func TestClosed(t *testing.T) {
	to := openTarget(t, Config{Address: "127.0.0.1:1"})
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Send(t.Context(), messages(1)); !errors.Is(err, target.ErrClosed) {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	certificate, roots := authority(t)
	h := &hook{password: "secret"}
	at, _ := serve(t, "127.0.0.1:0", h, &tls.Config{Certificates: []tls.Certificate{certificate}}, new(broker5.Options))
	if n, err := openTarget(t, Config{Address: at, TLS: &dialtls.Config{CAPEM: roots}}).Send(t.Context(), messages(2)); n != 2 || err != nil {
		t.Error(n, err)
	}
	if n, err := openTarget(t, Config{Address: at, TLS: &dialtls.Config{}}).Send(t.Context(), messages(1)); n != 0 || err == nil {
		t.Error("a certificate of nobody is trusted", n, err)
	}
}

// authority makes a certificate for 127.0.0.1 and who vouches for it.
func authority(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestValidate(t *testing.T) {
	good := Config{Address: "mqtt.example.com:1883", Topic: "a/b"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"no port":    func(c *Config) { c.Address = "mqtt.example.com" },
		"no host":    func(c *Config) { c.Address = ":1883" },
		"no topic":   func(c *Config) { c.Topic = "" },
		"wildcard":   func(c *Config) { c.Topic = "a/#" },
		"wildcard +": func(c *Config) { c.Topic = "a/+/b" },
		"not UTF-8":  func(c *Config) { c.Topic = "a\xff" },
		"timeout":    func(c *Config) { c.Timeout = -1 },
		"user":       func(c *Config) { c.User = "a\x00" },
		"password":   func(c *Config) { c.Password = strings.Repeat("a", topicMax+1) },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := Open(c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}
