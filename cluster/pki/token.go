package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net"
	"slices"
	"strings"
	"time"

	"cairn/storage/errs"
)

// Limits of a token.
const (
	tokenVersion          = 1
	tokenPrefix           = "cairn-"
	tokenStoreBytesMax    = 64
	tokenAddressesMax     = 8
	tokenAddressBytesMax  = 255
	tokenBytesMax         = 4096 // of the text
	tokenSecretBytes      = 16
	tokenFixedBytes       = 1 + 1 + sha256.Size + tokenSecretBytes + 1 + 4
	tokenIDBytes          = 16
	tokenIDDomain         = "cairn join token\x00"
	tokenHelp             = "; make a new one with \"cairn cluster token\" on a member"
	tokenNotOne           = "not a join token" + tokenHelp
	tokenCut              = "the join token is cut off or mistyped" + tokenHelp
	tokenChecksumTrailing = 4
)

// Token lets one node join: it says where the store is, pins its CA, and carries
// a secret that is good once. Whoever holds it may join: it is secret.
//
// Its text is "cairn-" and base64url without padding of: version 1; length and bytes
// of the store's id; the pin; the secret; the number of addresses, length and bytes of
// each; CRC-32C of all that, big end first.
type Token struct {
	StoreID   string
	Pin       Pin      // zero in a cluster without TLS
	Addresses []string // host:port of members' cluster addresses
	Secret    [tokenSecretBytes]byte
}

// NewToken draws a token. At most 8 of the addresses are taken.
func NewToken(storeID string, pin Pin, addresses []string) Token {
	t := Token{StoreID: storeID, Pin: pin, Addresses: slices.Clone(addresses[:min(len(addresses), tokenAddressesMax)])}
	rand.Read(t.Secret[:]) // never fails
	return t
}

// ID names the token in the store's records, which must not show its secret.
func (t Token) ID() string { return TokenID(t.Secret[:]) }

// TokenID is the id of the token with a secret: what JoinRequest carries.
func TokenID(secret []byte) string {
	sum := sha256.Sum256(append([]byte(tokenIDDomain), secret...))
	return hex.EncodeToString(sum[:tokenIDBytes])
}

// String is the token's text, to be given to a joining node.
func (t Token) String() string {
	b := []byte{tokenVersion, byte(len(t.StoreID))}
	b = append(b, t.StoreID...)
	b = append(b, t.Pin[:]...)
	b = append(b, t.Secret[:]...)
	b = append(b, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		b = append(append(b, byte(len(a))), a...)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// Check says what is wrong with a token that is to be given out.
func (t Token) Check() error {
	const op = "pki.token"
	if t.StoreID == "" || len(t.StoreID) > tokenStoreBytesMax {
		return errs.Newf(errs.InvalidArgument, op, "", "a store id of %d bytes: 1 to %d are allowed", len(t.StoreID), tokenStoreBytesMax)
	}
	if len(t.Addresses) == 0 || len(t.Addresses) > tokenAddressesMax {
		return errs.Newf(errs.InvalidArgument, op, "", "%d addresses: 1 to %d are allowed", len(t.Addresses), tokenAddressesMax)
	}
	for _, a := range t.Addresses {
		if _, _, err := net.SplitHostPort(a); err != nil || len(a) > tokenAddressBytesMax {
			return errs.Newf(errs.InvalidArgument, op, "", "%.80q is not an address: host:port is wanted", a)
		}
	}
	return nil
}

// ParseToken reads a token's text; white space around it does not matter. Errors never show the token.
func ParseToken(text string) (Token, error) {
	bad := func(detail string) (Token, error) {
		return Token{}, errs.New(errs.InvalidArgument, "pki.token", "", detail)
	}
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok || len(text) > tokenBytesMax {
		return bad(tokenNotOne)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(b) == 0 {
		return bad(tokenCut)
	}
	if b[0] != tokenVersion {
		return bad("the join token was made by another release: bring all nodes to the same one")
	}
	if len(b) < tokenFixedBytes {
		return bad(tokenCut)
	}
	n := len(b) - tokenChecksumTrailing
	if binary.BigEndian.Uint32(b[n:]) != crc32.Checksum(b[:n], crc32.MakeTable(crc32.Castagnoli)) {
		return bad(tokenCut)
	}
	var t Token
	r := reader{b: b[1:n]}
	t.StoreID = string(r.take(int(r.byte())))
	copy(t.Pin[:], r.take(len(t.Pin)))
	copy(t.Secret[:], r.take(len(t.Secret)))
	for range r.byte() {
		t.Addresses = append(t.Addresses, string(r.take(int(r.byte()))))
	}
	if r.short || len(r.b) != 0 {
		return bad(tokenNotOne)
	}
	if err := t.Check(); err != nil {
		return Token{}, err
	}
	return t, nil
}

// reader takes bytes from the front and remembers when there were too few.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.short = nil, true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// ClientTLS is for a node that has nothing but the token. As with Identity.ClientTLS, Verify comes after the handshake.
func (t Token) ClientTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // see Verify
}

// Verify checks that the called is a node of the token's store: the chain it
// shows contains the pinned CA and is signed by it.
func (t Token) Verify(certs []*x509.Certificate, now time.Time) (Peer, error) {
	for _, c := range certs {
		if sha256.Sum256(c.Raw) == t.Pin && c.IsCA {
			return verify(certs, c, t.StoreID, now)
		}
	}
	name := ""
	if len(certs) > 0 {
		if store, node, err := names(certs[0]); err == nil {
			name = string(node) + " of store " + store
		}
	}
	return Peer{}, errs.New(errs.Foreign, "pki.token", name, "the node called does not belong to the cluster that the join token was made in: check the addresses, or make a token in the right cluster")
}
