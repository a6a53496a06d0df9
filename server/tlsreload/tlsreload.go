// Package tlsreload serves a certificate from files and takes up new ones when
// the files change, without a restart.
package tlsreload

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// Pair is a certificate and its key in two PEM files.
//
// The files are read anew every so often and compared: that sees renames,
// symbolic links swapped by certificate managers and mounted secrets alike, and
// costs nothing to speak of. A pair that does not fit (one file written, the
// other not yet) or does not parse is left alone until it does; the last good
// one is served meanwhile.
type Pair struct {
	certPath, keyPath string
	logger            *slog.Logger
	now               func() time.Time
	current           atomic.Pointer[loaded]
}

type loaded struct {
	certPEM, keyPEM []byte
	cert            tls.Certificate
}

// Load reads the pair; the files must be good at the start. A nil logger logs nothing.
func Load(certPath, keyPath string, logger *slog.Logger) (*Pair, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	p := &Pair{certPath: certPath, keyPath: keyPath, logger: logger, now: time.Now}
	if _, err := p.Reload(); err != nil {
		return nil, err
	}
	return p, nil
}

// Config is a TLS configuration for a server that serves the pair.
func (p *Pair) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &p.current.Load().cert, nil
		},
	}
}

// Leaf is the certificate now served.
func (p *Pair) Leaf() *x509.Certificate { return p.current.Load().cert.Leaf }

// Watch looks at the files every interval until ctx ends.
func (p *Pair) Watch(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		changed, err := p.Reload()
		switch {
		case err != nil && err.Error() != last:
			last = err.Error()
			p.logger.Error("certificate not reloaded; the last good one is served", "error", err)
		case err == nil && changed:
			last = ""
			p.logger.Info("certificate reloaded", "file", p.certPath, "until", p.Leaf().NotAfter)
		case err == nil:
			last = ""
		}
	}
}

// Reload reads the files now; changed says whether another certificate is served.
func (p *Pair) Reload() (changed bool, err error) {
	certPEM, err1 := os.ReadFile(p.certPath)
	keyPEM, err2 := os.ReadFile(p.keyPath)
	if err := errors.Join(err1, err2); err != nil {
		return false, fmt.Errorf("certificate: %w", err)
	}
	old := p.current.Load()
	if old != nil && bytes.Equal(old.certPEM, certPEM) && bytes.Equal(old.keyPEM, keyPEM) {
		return false, nil
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return false, fmt.Errorf("certificate %s and key %s: %w", p.certPath, p.keyPath, err)
	}
	if p.now().After(cert.Leaf.NotAfter) {
		p.logger.Warn("certificate has expired", "file", p.certPath, "since", cert.Leaf.NotAfter)
	}
	p.current.Store(&loaded{certPEM, keyPEM, cert})
	return true, nil
}
