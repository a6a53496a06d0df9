package targettest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// CA is an authority of a test, with one certificate for 127.0.0.1 that serves for both sides.
type CA struct {
	pool              *x509.CertPool
	cert              tls.Certificate
	caPEM, leaf, keys string
}

// NewCA makes one.
func NewCA(t testing.TB) *CA {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	make := func(serial int64, ca bool, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IsCA: ca, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		if !ca {
			c.KeyUsage = x509.KeyUsageDigitalSignature
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		}
		if parent == nil {
			parent, signer = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
		must(err)
		cert, err := x509.ParseCertificate(der)
		must(err)
		return cert, key
	}
	root, rootKey := make(1, true, nil, nil)
	leaf, leafKey := make(2, false, root, rootKey)
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	must(err)
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	ca := &CA{pool: x509.NewCertPool(), caPEM: text("CERTIFICATE", root.Raw), leaf: text("CERTIFICATE", leaf.Raw), keys: text("PRIVATE KEY", der)}
	ca.pool.AddCert(root)
	ca.cert, err = tls.X509KeyPair([]byte(ca.leaf), []byte(ca.keys))
	must(err)
	return ca
}

// PEM is the authority's certificate.
func (c *CA) PEM() string { return c.caPEM }

// Pair is the certificate and its key in PEM.
func (c *CA) Pair() (cert, key string) { return c.leaf, c.keys }

// Server is for a broker that asks for certificates.
func (c *CA) Server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.cert}, ClientCAs: c.pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

// Client is for the tests' own connections.
func (c *CA) Client() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.cert}, RootCAs: c.pool, ServerName: "127.0.0.1"}
}
