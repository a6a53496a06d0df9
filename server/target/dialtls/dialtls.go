// Package dialtls is the TLS side of a connection to a destination of events, as all of them are configured.
package dialtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Config says whom to believe and who we are. The zero value believes what the system believes and shows no certificate.
type Config struct {
	CAFile string // PEM: believe certificates of these authorities, and no others
	CAPEM  string // the same by value; both may be given

	CertFile, KeyFile string // PEM: our certificate and key, read anew for every connection, so that they can be renewed
	CertPEM, KeyPEM   string // the same by value, instead of the files

	ServerName string // expected in the other's certificate; default: the host that is dialed
	Insecure   bool   // believe any certificate: whoever is in between reads and changes all
}

// Validate reports what is contradictory. It reads no files.
func (c *Config) Validate() error {
	switch {
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("TLS: give both the certificate's file and the key's, or neither")
	case (c.CertPEM == "") != (c.KeyPEM == ""):
		return errors.New("TLS: give both the certificate and the key, or neither")
	case c.CertFile != "" && c.CertPEM != "":
		return errors.New("TLS: give the certificate and the key as files or by value, not both")
	case c.Insecure && (c.CAFile != "" || c.CAPEM != ""):
		return errors.New("TLS: a connection that believes any certificate needs no authority: remove one of the two")
	}
	return nil
}

// Client makes what a client library asks for. It reads the files, so it fails where one is missing or holds nothing of use.
func (c *Config) Client() (*tls.Config, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.Insecure}
	if c.CAFile != "" || c.CAPEM != "" {
		conf.RootCAs = x509.NewCertPool()
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("TLS: the authorities' certificates: %w", err)
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("TLS: %s holds no certificate in PEM", c.CAFile)
		}
	}
	if c.CAPEM != "" && !conf.RootCAs.AppendCertsFromPEM([]byte(c.CAPEM)) {
		return nil, errors.New("TLS: the authorities' certificates are not PEM")
	}
	if c.CertFile != "" || c.CertPEM != "" {
		if _, err := c.pair(); err != nil {
			return nil, err
		}
		own := *c
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own.pair() }
	}
	return conf, nil
}

func (c *Config) pair() (*tls.Certificate, error) {
	var cert tls.Certificate
	var err error
	if c.CertFile != "" {
		cert, err = tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	} else {
		cert, err = tls.X509KeyPair([]byte(c.CertPEM), []byte(c.KeyPEM))
	}
	if err != nil {
		return nil, fmt.Errorf("TLS: our certificate: %w", err)
	}
	return &cert, nil
}
