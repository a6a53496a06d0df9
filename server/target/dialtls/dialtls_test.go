package dialtls_test

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"

	"cairn/server/target/dialtls"
	"cairn/server/target/targettest"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.pem")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// shake makes a connection between a server that asks for certificates and a client of the configuration.
func shake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			err = c.(*tls.Conn).Handshake()
			c.Close()
		}
		served <- err
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conf := client.Clone()
	if conf.ServerName == "" {
		conf.ServerName = "127.0.0.1"
	}
	c := tls.Client(raw, conf)
	err = c.Handshake()
	if err != nil {
		raw.Close()
	}
	serr := <-served
	c.Close()
	if err == nil {
		err = serr
	}
	return err
}

func TestClient(t *testing.T) {
	ca, other := targettest.NewCA(t), targettest.NewCA(t)
	cert, key := ca.Pair()
	otherCert, otherKey := other.Pair()
	for name, c := range map[string]struct {
		conf dialtls.Config
		ok   bool
	}{
		"by value":         {dialtls.Config{CAPEM: ca.PEM(), CertPEM: cert, KeyPEM: key}, true},
		"files":            {dialtls.Config{CAFile: write(t, ca.PEM()), CertFile: write(t, cert), KeyFile: write(t, key)}, true},
		"two authorities":  {dialtls.Config{CAFile: write(t, other.PEM()), CAPEM: ca.PEM(), CertPEM: cert, KeyPEM: key}, true},
		"insecure":         {dialtls.Config{Insecure: true, CertPEM: cert, KeyPEM: key}, true},
		"no certificate":   {dialtls.Config{CAPEM: ca.PEM()}, false},
		"not ours":         {dialtls.Config{CAPEM: ca.PEM(), CertPEM: otherCert, KeyPEM: otherKey}, false},
		"other authority":  {dialtls.Config{CAPEM: other.PEM(), CertPEM: cert, KeyPEM: key}, false},
		"the system's":     {dialtls.Config{CertPEM: cert, KeyPEM: key}, false},
		"another's name":   {dialtls.Config{CAPEM: ca.PEM(), CertPEM: cert, KeyPEM: key, ServerName: "elsewhere"}, false},
		"the name by hand": {dialtls.Config{CAPEM: ca.PEM(), CertPEM: cert, KeyPEM: key, ServerName: "127.0.0.1"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := c.conf.Client()
			if err != nil {
				t.Fatal(err)
			}
			if err := shake(t, ca.Server(), client); (err == nil) != c.ok {
				t.Errorf("%v, want success %v", err, c.ok)
			}
		})
	}
}

// TestRenewed replaces our certificate: the next connection shows the new one.
func TestRenewed(t *testing.T) {
	ca, old := targettest.NewCA(t), targettest.NewCA(t)
	cert, key := old.Pair()
	conf := dialtls.Config{CAPEM: ca.PEM(), CertFile: write(t, cert), KeyFile: write(t, key)}
	client, err := conf.Client()
	if err != nil {
		t.Fatal(err)
	}
	if err := shake(t, ca.Server(), client); err == nil {
		t.Fatal("let in with an unknown certificate")
	}
	cert, key = ca.Pair()
	for path, text := range map[string]string{conf.CertFile: cert, conf.KeyFile: key} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := shake(t, ca.Server(), client); err != nil {
		t.Fatal(err)
	}
}

func TestBad(t *testing.T) {
	ca := targettest.NewCA(t)
	cert, key := ca.Pair()
	_, otherKey := targettest.NewCA(t).Pair()
	for _, c := range []dialtls.Config{
		{CertFile: "a"},
		{KeyFile: "a"},
		{CertPEM: cert},
		{KeyPEM: key},
		{CertFile: "a", KeyFile: "b", CertPEM: cert, KeyPEM: key},
		{Insecure: true, CAPEM: ca.PEM()},
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("%+v is taken", c)
		}
		if _, err := c.Client(); err == nil {
			t.Errorf("%+v is used", c)
		}
	}
	for _, c := range []dialtls.Config{
		{CAPEM: "no PEM"},
		{CAFile: write(t, "no PEM")},
		{CAFile: filepath.Join(t.TempDir(), "none")},
		{CertPEM: cert, KeyPEM: otherKey},
		{CertFile: write(t, cert), KeyFile: filepath.Join(t.TempDir(), "none")},
	} {
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
		if _, err := c.Client(); err == nil {
			t.Errorf("%+v is used", c)
		}
	}
}
