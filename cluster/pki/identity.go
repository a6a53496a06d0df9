package pki

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"time"

	"cairn/cluster"
	"cairn/storage/errs"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	pemSeal        = "CAIRN SEAL KEY"
)

// Identity is a node's certificate with its key, and the CA that it trusts. It is
// immutable; renewal makes another.
type Identity struct {
	Node    cluster.NodeID
	StoreID string
	Seal    SealKey // opens the CA in the system group

	leaf, ca *x509.Certificate
	key      *ecdsa.PrivateKey
	cert     tls.Certificate
}

// NewIdentity joins certificates (DER) and key.
func NewIdentity(cert, ca []byte, key *ecdsa.PrivateKey, seal SealKey) (*Identity, error) {
	const op = "pki.identity"
	leaf, err := x509.ParseCertificate(cert)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, op, "", err)
	}
	root, err := x509.ParseCertificate(ca)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, op, "", err)
	}
	store, node, err := names(leaf)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errs.New(errs.Corrupt, op, string(node), "the key does not belong to the certificate")
	}
	if !root.IsCA || leaf.CheckSignatureFrom(root) != nil {
		return nil, errs.New(errs.Foreign, op, string(node), "the certificate is not signed by the CA beside it")
	}
	return &Identity{
		Node: node, StoreID: store, Seal: seal, leaf: leaf, ca: root, key: key,
		cert: tls.Certificate{Certificate: [][]byte{leaf.Raw, root.Raw}, PrivateKey: key, Leaf: leaf},
	}, nil
}

// NewNode makes the identity of a node whose process holds the CA: that which makes the store.
func (ca *CA) NewNode(node cluster.NodeID, seal SealKey, now time.Time) (*Identity, error) {
	key, csr, err := NewRequest(node)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(csr, node, now)
	if err != nil {
		return nil, err
	}
	return NewIdentity(cert, ca.Cert(), key, seal)
}

// Encode is the identity as a file: four PEM blocks, the node's certificate, the
// CA's, the node's key and the seal key. It is secret: mode 0600.
func (id *Identity) Encode() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		return nil, errs.Wrap(errs.Other, "pki.encode", string(id.Node), err)
	}
	var out []byte
	for _, b := range []pem.Block{
		{Type: pemCertificate, Bytes: id.leaf.Raw}, {Type: pemCertificate, Bytes: id.ca.Raw},
		{Type: pemKey, Bytes: der}, {Type: pemSeal, Bytes: id.Seal[:]},
	} {
		out = append(out, pem.EncodeToMemory(&b)...)
	}
	return out, nil
}

// Decode is the inverse of Encode. Blocks of other types are ignored.
func Decode(file []byte) (*Identity, error) {
	const op = "pki.decode"
	var certs [][]byte
	var key *ecdsa.PrivateKey
	var seal SealKey
	sealed := false
	for b, rest := pem.Decode(file); b != nil; b, rest = pem.Decode(rest) {
		switch b.Type {
		case pemCertificate:
			certs = append(certs, b.Bytes)
		case pemKey:
			var err error
			if key, err = parseKey(b.Bytes); err != nil {
				return nil, errs.Wrap(errs.Corrupt, op, "", err)
			}
		case pemSeal:
			sealed = copy(seal[:], b.Bytes) == len(seal) && len(b.Bytes) == len(seal)
		}
	}
	if len(certs) != 2 || key == nil || !sealed {
		return nil, errs.New(errs.Corrupt, op, "", "not the whole of a node's identity: restore the file, or let the node join anew under another name")
	}
	return NewIdentity(certs[0], certs[1], key, seal)
}

// CA is the CA's certificate in DER; not to be changed.
func (id *Identity) CA() []byte { return id.ca.Raw }

// Pin is that of the CA.
func (id *Identity) Pin() Pin { return sha256.Sum256(id.ca.Raw) }

// NotAfter is when the certificate expires.
func (id *Identity) NotAfter() time.Time { return id.leaf.NotAfter }

// RenewAt is when a third of the certificate's life is left.
func (id *Identity) RenewAt() time.Time {
	return id.leaf.NotAfter.Add(-id.leaf.NotAfter.Sub(id.leaf.NotBefore) / 3)
}

// Request makes a key and request for the next certificate.
func (id *Identity) Request() (*ecdsa.PrivateKey, []byte, error) { return NewRequest(id.Node) }

// Renewed is the identity with a new certificate (DER) of the same node and CA.
func (id *Identity) Renewed(cert []byte, key *ecdsa.PrivateKey) (*Identity, error) {
	next, err := NewIdentity(cert, id.ca.Raw, key, id.Seal)
	if err != nil {
		return nil, err
	}
	if next.Node != id.Node || next.StoreID != id.StoreID {
		return nil, errs.Newf(errs.Foreign, "pki.renew", string(id.Node), "the new certificate is for %s of store %s", next.Node, next.StoreID)
	}
	return next, nil
}

// SignOwn signs the next certificate of this node with the store's CA, sealed as the
// system group has it: no other node is needed for it.
func (id *Identity) SignOwn(sealed, csr []byte, now time.Time) ([]byte, error) {
	ca, err := Unseal(sealed, id.Seal)
	if err != nil {
		return nil, err
	}
	if ca.Pin() != id.Pin() {
		return nil, errs.New(errs.Foreign, "pki.sign_own", string(id.Node), "the store has another CA than this node trusts")
	}
	return ca.Issue(csr, id.Node, now)
}

// Peer is what a verified certificate says.
type Peer struct {
	Node    cluster.NodeID
	Expired bool // permits renewal and nothing else
}

// Verify checks the certificates that the other end of a connection showed, its
// own first: that they are of a node of this store, signed by its CA. It does not
// know whether the node is (still) a member.
func (id *Identity) Verify(certs []*x509.Certificate, now time.Time) (Peer, error) {
	return verify(certs, id.ca, id.StoreID, now)
}

func verify(certs []*x509.Certificate, ca *x509.Certificate, storeID string, now time.Time) (Peer, error) {
	const op = "pki.verify"
	if len(certs) == 0 {
		return Peer{}, errs.New(errs.AccessDenied, op, "", "no certificate was shown")
	}
	leaf := certs[0]
	store, node, err := names(leaf)
	if err != nil {
		return Peer{}, err
	}
	if store != storeID {
		return Peer{}, errs.Newf(errs.Foreign, op, string(node),
			"the certificate is of store %s, this store is %s: an address leads to another cluster, or the node's files came from one", store, storeID)
	}
	// The time is judged below, in words that help: here any moment of its life will do.
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	at := later(leaf.NotBefore, earlier(leaf.NotAfter, now))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return Peer{}, &errs.Error{Kind: errs.Foreign, Op: op, Subject: string(node), Err: err,
			Detail: "the certificate names this store but is not signed by its CA: let the node join with a token of this store"}
	}
	if now.Add(skew).Before(leaf.NotBefore) {
		return Peer{}, errs.Newf(errs.AccessDenied, op, string(node), "the certificate begins at %s but the clock here says %s: set the clocks of both machines",
			leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return Peer{Node: node, Expired: now.After(leaf.NotAfter.Add(skew))}, nil
}

// names are what a node's certificate says of store and node.
func names(leaf *x509.Certificate) (storeID string, node cluster.NodeID, err error) {
	for _, u := range leaf.URIs {
		name, ok := strings.CutPrefix(u.Path, "/node/")
		if u.Scheme == "cairn" && ok && CheckNodeName(cluster.NodeID(name)) == nil {
			return u.Host, cluster.NodeID(name), nil
		}
	}
	return "", "", errs.Newf(errs.Foreign, "pki.names", leaf.Subject.CommonName, "not the certificate of a cairn node")
}

// ServerTLS asks callers for a certificate but leaves judging it to Verify after
// the handshake, so that a refusal can be said in words.
func (id *Identity) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		DynamicRecordSizingDisabled: true, // few connections, used for long
		Certificates:                []tls.Certificate{id.cert},
		ClientAuth:                  tls.RequestClientCert,
		SessionTicketsDisabled:      true,
	}
}

// ClientTLS shows the node's certificate and leaves judging the other's to Verify
// after the handshake: nothing may be sent before.
func (id *Identity) ClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		DynamicRecordSizingDisabled: true,
		Certificates:                []tls.Certificate{id.cert},
		InsecureSkipVerify:          true, // names of hosts mean nothing here: see Verify
	}
}
