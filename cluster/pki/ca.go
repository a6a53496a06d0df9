package pki

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"cairn/cluster"
	"cairn/storage/errs"
)

// Lifetimes.
const (
	CALife   = 10 * 365 * 24 * time.Hour
	NodeLife = 90 * 24 * time.Hour
	// skew is how far clocks of nodes may differ without a certificate being refused for it.
	skew = 15 * time.Minute
	// caSkew backdates the CA: whoever made the store may have had a wrong clock then.
	caSkew = 24 * time.Hour
)

// NodeNameBytesMax bounds a node's name.
const NodeNameBytesMax = 63

// Pin is the SHA-256 of a CA's certificate.
type Pin [sha256.Size]byte

// SealKey seals the CA's key.
type SealKey [32]byte

// NewSealKey draws a key.
func NewSealKey() SealKey {
	var k SealKey
	rand.Read(k[:]) // never fails
	return k
}

// CA signs the certificates of one store's nodes. Safe for concurrent use.
type CA struct {
	storeID string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// NewCA makes the CA of a new store.
func NewCA(storeID string, now time.Time) (*CA, error) {
	const op = "pki.new_ca"
	if storeID == "" || strings.ContainsAny(storeID, "/?#@:% ") {
		return nil, errs.Newf(errs.InvalidArgument, op, storeID, "not a store id")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errs.Wrap(errs.Other, op, storeID, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, errs.Wrap(errs.Other, op, storeID, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"cairn"}, CommonName: "cairn store " + storeID},
		URIs:                  []*url.URL{{Scheme: "cairn", Host: storeID, Path: "/ca"}},
		NotBefore:             now.Add(-caSkew),
		NotAfter:              now.Add(CALife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, errs.Wrap(errs.Other, op, storeID, err)
	}
	return newCA(der, key)
}

func newCA(der []byte, key *ecdsa.PrivateKey) (*CA, error) {
	const op = "pki.ca"
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, op, "", err)
	}
	if !cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].Scheme != "cairn" || cert.URIs[0].Path != "/ca" {
		return nil, errs.New(errs.Foreign, op, cert.Subject.CommonName, "not a certificate of a store's CA")
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errs.New(errs.Corrupt, op, cert.Subject.CommonName, "the key does not belong to the certificate")
	}
	return &CA{storeID: cert.URIs[0].Host, cert: cert, key: key}, nil
}

// StoreID is the store whose CA it is.
func (ca *CA) StoreID() string { return ca.storeID }

// Cert is the CA's certificate in DER; not to be changed.
func (ca *CA) Cert() []byte { return ca.cert.Raw }

// Pin identifies the CA in tokens.
func (ca *CA) Pin() Pin { return sha256.Sum256(ca.cert.Raw) }

// The format of a sealed CA: a version byte, the nonce, and sealed PEM blocks of the certificate and the key.
const sealVersion = 1

const sealAD = "cairn ca"

// Seal encodes the CA with its key for the system group. Every call gives other bytes.
func (ca *CA) Seal(k SealKey) ([]byte, error) {
	const op = "pki.seal"
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return nil, errs.Wrap(errs.Other, op, ca.storeID, err)
	}
	plain := pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: ca.cert.Raw})
	plain = append(plain, pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})...)
	gcm, err := sealer(k)
	if err != nil {
		return nil, errs.Wrap(errs.Other, op, ca.storeID, err)
	}
	out := make([]byte, 1+gcm.NonceSize(), 1+gcm.NonceSize()+len(plain)+gcm.Overhead())
	out[0] = sealVersion
	rand.Read(out[1:])
	return gcm.Seal(out, out[1:], plain, []byte(sealAD)), nil
}

// Unseal is the inverse of Seal.
func Unseal(sealed []byte, k SealKey) (*CA, error) {
	const op = "pki.unseal"
	gcm, err := sealer(k)
	if err != nil {
		return nil, errs.Wrap(errs.Other, op, "", err)
	}
	if len(sealed) < 1+gcm.NonceSize()+gcm.Overhead() {
		return nil, errs.New(errs.Corrupt, op, "", "the sealed CA is cut off")
	}
	if sealed[0] != sealVersion {
		return nil, errs.Newf(errs.Corrupt, op, "", "the CA is sealed in format %d, this release knows %d: bring all nodes to the same release", sealed[0], sealVersion)
	}
	n := 1 + gcm.NonceSize()
	plain, err := gcm.Open(nil, sealed[1:n], sealed[n:], []byte(sealAD))
	if err != nil {
		return nil, errs.New(errs.Corrupt, op, "", "this node's seal key does not open the store's CA")
	}
	var cert []byte
	var key *ecdsa.PrivateKey
	for b, rest := pem.Decode(plain); b != nil; b, rest = pem.Decode(rest) {
		switch b.Type {
		case pemCertificate:
			cert = b.Bytes
		case pemKey:
			if key, err = parseKey(b.Bytes); err != nil {
				return nil, errs.Wrap(errs.Corrupt, op, "", err)
			}
		}
	}
	if cert == nil || key == nil {
		return nil, errs.New(errs.Corrupt, op, "", "the sealed CA is not whole")
	}
	return newCA(cert, key)
}

func sealer(k SealKey) (cipher.AEAD, error) {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Issue signs the certificate of a node whose request is csr (DER), and returns it
// in DER. That the node is who it says and a member is for the caller to know.
func (ca *CA) Issue(csr []byte, node cluster.NodeID, now time.Time) ([]byte, error) {
	const op = "pki.issue"
	if err := CheckNodeName(node); err != nil {
		return nil, err
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, errs.Wrap(errs.InvalidArgument, op, string(node), err)
	}
	pub, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errs.New(errs.InvalidArgument, op, string(node), "the request's key is not ECDSA P-256")
	}
	if now.After(ca.cert.NotAfter) {
		return nil, errs.Newf(errs.Unavailable, op, string(node), "the store's CA expired on %s (is this machine's clock right?)", ca.cert.NotAfter.Format(time.DateOnly))
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, errs.Wrap(errs.Other, op, string(node), err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"cairn"}, CommonName: string(node)},
		URIs:         []*url.URL{nodeURI(ca.storeID, node)},
		NotBefore:    later(now.Add(-skew), ca.cert.NotBefore),
		NotAfter:     earlier(now.Add(NodeLife), ca.cert.NotAfter),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, pub, ca.key)
	return der, errs.Wrap(errs.Other, op, string(node), err)
}

// CheckNodeName says what is wrong with a name: letters, digits, '-', '_' and '.' are allowed.
func CheckNodeName(node cluster.NodeID) error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	if node == "" || node == "." || node == ".." || len(node) > NodeNameBytesMax || strings.ContainsFunc(string(node), bad) {
		return errs.Newf(errs.InvalidArgument, "pki.node_name", fmt.Sprintf("%.80q", node),
			"a node's name has 1 to %d letters, digits, '-', '_' or '.'", NodeNameBytesMax)
	}
	return nil
}

func nodeURI(storeID string, node cluster.NodeID) *url.URL {
	return &url.URL{Scheme: "cairn", Host: storeID, Path: "/node/" + string(node)}
}

// NewRequest makes a node's key and the request (PKCS 10, DER) for its certificate.
func NewRequest(node cluster.NodeID) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, errs.Wrap(errs.Other, "pki.request", string(node), err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: string(node)}}, key)
	if err != nil {
		return nil, nil, errs.Wrap(errs.Other, "pki.request", string(node), err)
	}
	return key, csr, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	var k crypto.PrivateKey
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a %T is not an ECDSA key", k)
	}
	return key, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
