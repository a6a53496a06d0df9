package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/storage/errs"
)

const store = "0123456789abcdef"

func newCATest(t testing.TB, storeID string, now time.Time) *CA {
	t.Helper()
	ca, err := NewCA(storeID, now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newNode(t testing.TB, ca *CA, node cluster.NodeID, now time.Time) *Identity {
	t.Helper()
	id, err := ca.NewNode(node, NewSealKey(), now)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestSealedCASignsOn(t *testing.T) {
	now := time.Now()
	ca := newCATest(t, store, now)
	k := NewSealKey()
	sealed, err := ca.Seal(k)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, der[len(der)-40:]) {
		t.Error("the key is readable")
	}
	again, err := Unseal(sealed, k)
	if err != nil {
		t.Fatal(err)
	}
	if again.Pin() != ca.Pin() || again.StoreID() != store {
		t.Error("another CA came back")
	}
	a, b := newNode(t, ca, "a", now), newNode(t, again, "b", now)
	if p, err := a.Verify([]*x509.Certificate{b.leaf}, now); err != nil || p.Node != "b" || p.Expired {
		t.Errorf("%v %v", p, err)
	}
	if _, err := Unseal(sealed, NewSealKey()); !errs.Is(err, errs.Corrupt) {
		t.Errorf("another key: %v", err)
	}
	for i := range sealed {
		bent := bytes.Clone(sealed)
		bent[i] ^= 1
		if _, err := Unseal(bent, k); err == nil {
			t.Fatalf("opened with byte %d changed", i)
		}
	}
	if _, err := Unseal(sealed[:20], k); err == nil {
		t.Error("opened a piece")
	}
}

func TestIssueRefusesWhatItShould(t *testing.T) {
	now := time.Now()
	ca := newCATest(t, store, now)
	_, csr, err := NewRequest("x")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []cluster.NodeID{"", ".", "..", "a/b", "a b", "ä", "a%2f", cluster.NodeID(strings.Repeat("a", 64))} {
		if _, err := ca.Issue(csr, name, now); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %v", name, err)
		}
	}
	bent := bytes.Clone(csr)
	bent[len(bent)-1] ^= 1
	if _, err := ca.Issue(bent, "x", now); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("forged request: %v", err)
	}
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr2, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(csr2, "x", now); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("weak key: %v", err)
	}
	if _, err := ca.Issue(csr, "x", now.Add(CALife+time.Hour)); !errs.Is(err, errs.Unavailable) {
		t.Errorf("expired CA: %v", err)
	}
	if _, err := NewCA("a/b", now); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("bad store id: %v", err)
	}
}

func TestVerify(t *testing.T) {
	now := time.Now()
	ca := newCATest(t, store, now)
	us := newNode(t, ca, "us", now)
	leaf := func(ca *CA, at time.Time) []*x509.Certificate {
		return []*x509.Certificate{newNode(t, ca, "them", at).leaf}
	}
	for _, c := range []struct {
		name    string
		certs   []*x509.Certificate
		at      time.Time
		kind    errs.Kind
		text    string
		expired bool
	}{
		{"good", leaf(ca, now), now, 0, "", false},
		{"our clock is a little late", leaf(ca, now.Add(20*time.Minute)), now, 0, "", false},
		{"expired", leaf(ca, now), now.Add(NodeLife + time.Hour), 0, "", true},
		{"a year after", leaf(ca, now), now.Add(365 * 24 * time.Hour), 0, "", true},
		{"not yet", leaf(ca, now.Add(48*time.Hour)), now, errs.AccessDenied, "set the clocks", false},
		{"other store", leaf(newCATest(t, "fedcba", now), now), now, errs.Foreign, "store fedcba", false},
		{"other CA, same store", leaf(newCATest(t, store, now), now), now, errs.Foreign, "not signed by its CA", false},
		{"none", nil, now, errs.AccessDenied, "no certificate", false},
		{"the CA's own", []*x509.Certificate{ca.cert}, now, errs.Foreign, "not the certificate of a cairn node", false},
	} {
		p, err := us.Verify(c.certs, c.at)
		if c.kind != 0 {
			if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if err != nil || p.Node != "them" || p.Expired != c.expired {
			t.Errorf("%s: %v %v", c.name, p, err)
		}
	}
}

func TestIdentityFile(t *testing.T) {
	now := time.Now()
	ca := newCATest(t, store, now)
	id := newNode(t, ca, "n1", now)
	file, err := id.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(append([]byte("# a comment\n"), file...))
	if err != nil || got.Node != "n1" || got.StoreID != store || got.Seal != id.Seal || got.Pin() != ca.Pin() {
		t.Fatalf("%v %v", got, err)
	}
	for n := 0; n < len(file)-1; n += 7 {
		if _, err := Decode(file[:n]); err == nil {
			t.Fatalf("decoded %d of %d bytes", n, len(file))
		}
	}
	if at := id.RenewAt(); at.Sub(now) < 59*24*time.Hour || at.Sub(now) > 61*24*time.Hour {
		t.Errorf("renewed after %v", at.Sub(now))
	}

	key, csr, err := id.Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(csr, "n1", now.Add(80*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	next, err := id.Renewed(cert, key)
	if err != nil || !next.NotAfter().After(id.NotAfter()) || next.Seal != id.Seal {
		t.Fatalf("%v %v", next, err)
	}
	if _, err := id.Renewed(cert, id.key); err == nil {
		t.Error("took a certificate of another key")
	}
	sealed, err := ca.Seal(id.Seal)
	if err != nil {
		t.Fatal(err)
	}
	own, err := id.SignOwn(sealed, csr, now)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := id.Renewed(own, key); err != nil || again.Node != "n1" {
		t.Errorf("%v %v", again, err)
	}
	strange, err := newCATest(t, store, now).Seal(id.Seal)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.SignOwn(strange, csr, now); !errs.Is(err, errs.Foreign) {
		t.Errorf("signed with another CA: %v", err)
	}
	other, err := ca.Issue(csr, "n2", now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Renewed(other, key); !errs.Is(err, errs.Foreign) {
		t.Errorf("took another node's certificate: %v", err)
	}
	foreign, err := newCATest(t, store, now).Issue(csr, "n1", now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Renewed(foreign, key); !errs.Is(err, errs.Foreign) {
		t.Errorf("took a certificate of another CA: %v", err)
	}
}

func TestToken(t *testing.T) {
	ca := newCATest(t, store, time.Now())
	tok := NewToken(store, ca.Pin(), []string{"10.0.0.1:9002", "[fd00::1]:9002", "node-3.example:9002"})
	text := tok.String()
	got, err := ParseToken(" " + text + "\n")
	if err != nil || got.String() != text || got.ID() != tok.ID() || len(got.Addresses) != 3 {
		t.Fatalf("%v %v", got, err)
	}
	if NewToken(store, ca.Pin(), nil).ID() == tok.ID() {
		t.Error("two tokens are alike")
	}
	if strings.Contains(text, tok.ID()) || tok.ID() != TokenID(tok.Secret[:]) {
		t.Error("the id is wrong or shows in the text")
	}
	// Any one character changed, dropped or added is noticed.
	for i := range text {
		for _, bent := range []string{text[:i] + text[i+1:], text[:i] + "A" + text[i:], text[:i] + string(text[i]^1) + text[i+1:]} {
			if p, err := ParseToken(bent); err == nil && p.String() != text {
				t.Fatalf("took %q", bent)
			} else if err != nil && strings.Contains(err.Error(), text[10:30]) {
				t.Fatal("the error shows the secret")
			}
		}
	}
	later, err := base64.RawURLEncoding.DecodeString(text[len(tokenPrefix):])
	if err != nil {
		t.Fatal(err)
	}
	later[0] = 2
	if _, err := ParseToken(tokenPrefix + base64.RawURLEncoding.EncodeToString(later)); err == nil || !strings.Contains(err.Error(), "another release") {
		t.Errorf("version 2: %v", err)
	}
	for _, a := range [][]string{nil, {"no port"}, {strings.Repeat("a", 300) + ":1"}} {
		if err := NewToken(store, ca.Pin(), a).Check(); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%q: %v", a, err)
		}
	}
}

func TestTokenPinsTheCA(t *testing.T) {
	now := time.Now()
	ca := newCATest(t, store, now)
	id := newNode(t, ca, "n1", now)
	tok := NewToken(store, ca.Pin(), []string{"x:1"})
	if p, err := tok.Verify([]*x509.Certificate{id.leaf, id.ca}, now); err != nil || p.Node != "n1" {
		t.Errorf("%v %v", p, err)
	}
	evil := newCATest(t, store, now)
	them := newNode(t, evil, "n1", now)
	for name, certs := range map[string][]*x509.Certificate{
		"another CA":                {them.leaf, them.ca},
		"our CA beside a stranger":  {them.leaf, id.ca},
		"our leaf, CA not shown":    {id.leaf},
		"a leaf pinned for a CA":    {id.leaf, id.leaf},
		"nothing":                   nil,
		"the CA itself as the node": {id.ca, id.ca},
	} {
		if _, err := tok.Verify(certs, now); !errs.Is(err, errs.Foreign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	tok := NewToken(store, Pin{1}, []string{"10.0.0.1:9002", "b:1"})
	f.Add(tok.String())
	f.Add("cairn-")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if tok, err := ParseToken(text); err == nil {
			if tok.Check() != nil || tok.String() != strings.TrimSpace(text) {
				t.Fatalf("%q came back as %q", text, tok.String())
			}
		}
		// With a right checksum everything behind it is reached.
		raw := append([]byte{tokenVersion}, text...)
		b := tokenPrefix + base64.RawURLEncoding.EncodeToString(withChecksum(raw))
		if tok, err := ParseToken(b); err == nil && (tok.Check() != nil || tok.String() != b) {
			t.Fatalf("%q came back as %q", b, tok.String())
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	now := time.Now()
	whole, err := newNode(f, newCATest(f, store, now), "n1", now).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := Decode(b)
		if err != nil {
			return
		}
		// What was taken is itself again, and nothing else.
		file, err := id.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(file)
		if err != nil || again.Node != id.Node || again.StoreID != id.StoreID || again.Seal != id.Seal || !bytes.Equal(again.CA(), id.CA()) {
			t.Fatalf("%+v came back as %+v, %v", id, again, err)
		}
	})
}

func withChecksum(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}
