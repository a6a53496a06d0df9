package tlsreload

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pair writes a self-signed certificate named name.
func pair(t *testing.T, dir, name string) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if _, err := Load(certPath, keyPath, nil); err == nil {
		t.Fatal("loaded from files that are not there")
	}
	c1, k1 := pair(t, dir, "first")
	c2, k2 := pair(t, dir, "second")
	put(t, certPath, c1)
	put(t, keyPath, k1)
	p, err := Load(certPath, keyPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := p.Reload(); changed || err != nil {
		t.Fatalf("unchanged files: %v %v", changed, err)
	}
	// The new certificate is there, its key not yet: the old pair is served.
	put(t, certPath, c2)
	if changed, err := p.Reload(); changed || err == nil || p.Leaf().Subject.CommonName != "first" {
		t.Fatalf("half a change: %v %v, serves %s", changed, err, p.Leaf().Subject)
	}
	put(t, keyPath, k2)
	if changed, err := p.Reload(); !changed || err != nil || p.Leaf().Subject.CommonName != "second" {
		t.Fatalf("whole change: %v %v, serves %s", changed, err, p.Leaf().Subject)
	}
	os.Remove(keyPath)
	if _, err := p.Reload(); err == nil || p.Leaf().Subject.CommonName != "second" {
		t.Fatalf("key gone: %v, serves %s", err, p.Leaf().Subject)
	}
}

func TestServesTheNewCertificate(t *testing.T) {
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	c1, k1 := pair(t, dir, "first")
	put(t, certPath, c1)
	put(t, keyPath, k1)
	p, err := Load(certPath, keyPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go p.Watch(ctx, 5*time.Millisecond)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler()}
	go s.Serve(tls.NewListener(inner, p.Config()))
	defer s.Close()

	name := func() string {
		conn, err := tls.Dial("tcp", inner.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := name(); got != "first" {
		t.Fatalf("serves %q", got)
	}
	c2, k2 := pair(t, dir, "second")
	put(t, certPath, c2)
	put(t, keyPath, k2)
	for end := time.Now().Add(10 * time.Second); name() != "second"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new certificate is not served")
		}
	}
}
