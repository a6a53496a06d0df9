package brokers

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// Mosquitto is an MQTT broker with one subscriber, which keeps what comes.
type Mosquitto struct {
	Address string // 127.0.0.1:port
	mu      sync.Mutex
	taken   []string
}

// StartMosquitto starts a broker and subscribes to a topic there.
func StartMosquitto(t testing.TB, topic string) *Mosquitto {
	t.Helper()
	dir := directory(t)
	port := ports(t, 1)[0]
	m := &Mosquitto{Address: "127.0.0.1:" + port}
	conf := filepath.Join(dir, "mosquitto.conf")
	write(t, conf, "listener "+port+" 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
	start(t, command(t, dir, nil, program(t, "/usr/sbin/mosquitto"), "-c", conf), filepath.Join(dir, "log"), syscall.SIGKILL, func() error { return listens(m.Address) })
	conn, err := net.Dial("tcp", m.Address)
	if err != nil {
		t.Fatal(err)
	}
	client := paho.NewClient(paho.ClientConfig{
		Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.taken = append(m.taken, string(p.Packet.Payload))
			return true, nil
		}},
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := client.Connect(ctx, &paho.Connect{ClientID: "subscriber", CleanStart: true, KeepAlive: 30}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := client.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: topic, QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	return m
}

// Taken are the payloads that came, in order.
func (m *Mosquitto) Taken() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.taken...)
}
