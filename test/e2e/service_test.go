//go:build e2e

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// refuses starts a server that must not start and wants the words in what it says.
func refuses(t *testing.T, what string, p *process, words ...string) {
	t.Helper()
	before, _ := os.ReadFile(p.log.Name())
	p.launch()
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.kill()
		t.Errorf("%s: the server neither starts nor ends", what)
		return
	}
	text, _ := os.ReadFile(p.log.Name())
	said := string(text[len(before):])
	if p.cmd.ProcessState.Success() {
		t.Errorf("%s: exit 0", what)
	}
	for _, w := range words {
		if !strings.Contains(said, w) {
			t.Errorf("%s: does not say %q but:\n%s", what, w, said)
		}
	}
	if strings.Contains(said, "panic:") || strings.Contains(said, "goroutine ") {
		t.Errorf("%s: a panic:\n%s", what, said)
	}
	p.cmd = nil
}

// TestRefusesToStart is all that can be wrong with folders: cairn says what, and what to do, and does not start half.
func TestRefusesToStart(t *testing.T) {
	p := start(t, zones()...)
	bucket := newBucket(t, p.endpoint)
	data := noiseBytes(1, 300<<10)
	put(t, p.client(), bucket, "k", data)

	t.Run("second process", func(t *testing.T) {
		q := prepare(t, zones()...)
		q.data = p.data
		refuses(t, "a second process on the same data", q, "another cairn process", p.data)
	})
	t.Run("port taken", func(t *testing.T) {
		q := prepare(t)
		q.host = p.host
		refuses(t, "a port that is taken", q, p.host, "address already in use")
	})
	wantObject(t, p.client(), bucket, "k", data)
	p.stop(30 * time.Second)

	other := start(t, zones()...)
	other.stop(30 * time.Second)
	drive := func(p *process, name string) string { return filepath.Join(p.data, name) }
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("drive of another store", func(t *testing.T) {
		mine, foreign := drive(p, "zone-a/drive-1"), drive(other, "zone-a/drive-1")
		move(mine, mine+".away")
		move(foreign, mine)
		refuses(t, "a drive of another store", p, mine)
		move(mine, foreign)
		move(mine+".away", mine)
	})
	t.Run("swapped drives", func(t *testing.T) {
		// Folders that changed places are a mistake worth naming, or are understood; half a start is neither.
		a, b := drive(p, "zone-a/drive-1"), drive(p, "zone-b/drive-1")
		move(a, a+".away")
		move(b, a)
		move(a+".away", b)
		refuses(t, "drives that changed places", p, "zone-a")
		move(b, a+".away")
		move(a, b)
		move(a+".away", a)
	})
	t.Run("foreign files", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "drive")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "thesis.doc"), []byte("do not touch"), 0o644); err != nil {
			t.Fatal(err)
		}
		q := prepare(t, "--drive", "path="+dir+",zone=a")
		refuses(t, "a folder with other files", q, dir)
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("the folder was touched: %v", left)
		}
	})
	t.Run("missing folder", func(t *testing.T) {
		q := prepare(t, "--drive", "path="+filepath.Join(t.TempDir(), "not", "mounted")+",zone=a")
		refuses(t, "a drive folder that is not there", q, "not/mounted")
	})
	t.Run("file in place of the data folder", func(t *testing.T) {
		q := prepare(t)
		if err := os.WriteFile(q.data, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		refuses(t, "a file as data folder", q, q.data)
	})
	t.Run("open credentials", func(t *testing.T) {
		path := filepath.Join(p.data, "credentials.json")
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		refuses(t, "credentials that others can read", p, "chmod 600")
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	p.start()
	wantObject(t, p.client(), bucket, "k", data)
	p.wantClean()
}

func TestAccountsAreApart(t *testing.T) {
	cfg := filepath.Join(t.TempDir(), "cairn.yaml")
	text := "accounts:\n  - {name: ann, access_key: ANNKEY, secret_key: ann-secret}\n  - {name: bob, access_key: BOBKEY, secret_key: bob-secret}\n"
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "--config", cfg)
	ann, bob := endpoint{p.host, "ANNKEY", "ann-secret"}.client(), endpoint{p.host, "BOBKEY", "bob-secret"}.client()
	ctx := t.Context()
	bucket := aws.String("of-ann")
	if _, err := ann.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: bucket}); err != nil {
		t.Fatal(err)
	}
	put(t, ann, "of-ann", "k", []byte("hers"))
	if _, err := bob.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: bucket}); code(err) != "BucketAlreadyExists" {
		t.Errorf("another's name: %v", err)
	}
	// In us-east-1 a repeated CreateBucket by the owner is answered 200.
	if _, err := ann.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: bucket}); err != nil && code(err) != "BucketAlreadyOwnedByYou" {
		t.Errorf("one's own name: %v", err)
	}
	// Who is granted something must exist, if only to be told that grants are not implemented.
	bobs, err := bob.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{*bobs.Owner.ID: "NotImplemented", "nobody": "InvalidArgument"} {
		_, err := ann.PutBucketAcl(ctx, &s3.PutBucketAclInput{Bucket: bucket, AccessControlPolicy: &types.AccessControlPolicy{
			Grants: []types.Grant{{Grantee: &types.Grantee{Type: types.TypeCanonicalUser, ID: aws.String(id)}, Permission: types.PermissionRead}},
		}})
		if code(err) != want {
			t.Errorf("a grant to %q: %v", id, err)
		}
	}
	for what, err := range map[string]error{
		"get":    second(get(ctx, bob, "of-ann", "k")),
		"put":    second(bob.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: aws.String("k"), Body: strings.NewReader("his")})),
		"list":   second(bob.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: bucket})),
		"delete": second(bob.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: aws.String("k")})),
		"rb":     second(bob.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: bucket})),
		"upload": second(bob.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: bucket, Key: aws.String("k")})),
	} {
		if code(err) != "AccessDenied" {
			t.Errorf("bob's %s in ann's bucket: %v", what, err)
		}
	}
	if _, err := bob.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: bucket}); httpStatus(err) != 403 {
		t.Errorf("bob's head of ann's bucket: %v", err)
	}
	if _, err := bob.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("of-bob")}); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String("of-bob"), Key: aws.String("k"), CopySource: aws.String("of-ann/k")}); code(err) != "AccessDenied" {
		t.Errorf("bob's copy from ann's bucket: %v", err)
	}
	out, err := bob.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil || len(out.Buckets) != 1 || aws.ToString(out.Buckets[0].Name) != "of-bob" {
		t.Errorf("bob's buckets: %v %v", out, err)
	}
	wantObject(t, ann, "of-ann", "k", []byte("hers"))
}

func second[T any](_ T, err error) error { return err }

func certificate(t *testing.T, name string) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "s3.crt"), filepath.Join(dir, "s3.key")
	write := func(name string) (pool *x509.CertPool) {
		c, k := certificate(t, name)
		if err := os.WriteFile(cert, c, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(key, k, 0o600); err != nil {
			t.Fatal(err)
		}
		pool = x509.NewCertPool()
		pool.AppendCertsFromPEM(c)
		return pool
	}
	pool := write("first")
	p := start(t, "--tls-cert", cert, "--tls-key", key)
	name := func(pool *x509.CertPool) (string, error) {
		conn, err := tls.Dial("tcp", p.host, &tls.Config{RootCAs: pool})
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
	}
	if got, err := name(pool); err != nil || got != "first" {
		t.Fatalf("serves %q, %v", got, err)
	}
	client := s3.New(p.client().Options(), func(o *s3.Options) {
		o.BaseEndpoint = aws.String("https://" + p.host)
		o.HTTPClient = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	})
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("secure")}); err != nil {
		t.Fatal(err)
	}
	data := noiseBytes(1, 3<<20)
	// Over TLS the SDK sends the checksum as a trailer of an unsigned stream.
	put(t, client, "secure", "k", data)
	wantObject(t, client, "secure", "k", data)

	pool = write("second")
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if got, err := name(pool); err == nil && got == "second" {
			break
		} else if time.Now().After(end) {
			t.Fatalf("a minute after the change: %q %v", got, err)
		}
	}
}

func TestVirtualHosts(t *testing.T) {
	p := start(t, "--domain", "s3.cairn.test")
	c := s3.New(p.client().Options(), func(o *s3.Options) {
		o.UsePathStyle = false
		o.BaseEndpoint = aws.String("http://s3.cairn.test")
		o.HTTPClient = &http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) { return net.Dial("tcp", p.host) }}}
	})
	ctx := t.Context()
	if _, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("vhost")}); err != nil {
		t.Fatal(err)
	}
	put(t, c, "vhost", "a/ü b+c", []byte("x"))
	wantObject(t, c, "vhost", "a/ü b+c", []byte("x"))
	wantObject(t, p.client(), "vhost", "a/ü b+c", []byte("x"))
	if keys, _ := listKeys(t, c, &s3.ListObjectsV2Input{Bucket: aws.String("vhost")}); len(keys) != 1 {
		t.Errorf("listing: %q", keys)
	}
}

// TestIdle logs what a server costs that has nothing to do, and fails if something
// spins or grows. The promises are 0.5% of a core and 100 MiB; docs/benchmarks.md has the figure of
// a quiet machine, for on a busy one they are no measure: what fails is far above.
func TestIdle(t *testing.T) {
	p := start(t, zones()...)
	bucket := newBucket(t, p.endpoint)
	for i := range 20 {
		put(t, p.client(), bucket, fmt.Sprint(i), noiseBytes(uint64(i), 200<<10))
	}
	time.Sleep(5 * time.Second)
	const span = 20 * time.Second
	before := p.cpu()
	time.Sleep(span)
	share := float64(p.cpu()-before) / float64(span) * 100
	rss := p.proc("VmRSS") >> 20
	t.Logf("idle: %.2f%% of a core, %d MiB", share, rss)
	if share > 30 {
		t.Errorf("idle takes %.2f%% of a core: something spins", share)
	}
	if rss > 500 {
		t.Errorf("idle takes %d MiB: something grows", rss)
	}
}

func TestSeeingIt(t *testing.T) {
	p := start(t, zones()...)
	bucket := newBucket(t, p.endpoint)
	put(t, p.client(), bucket, "k", noiseBytes(1, 300<<10))
	_, err := get(t.Context(), p.client(), bucket, "nothing")
	if code(err) != "NoSuchKey" {
		t.Error(err)
	}
	exit, out, errOut := p.cairn("status")
	if exit != 0 {
		t.Fatalf("status: %d %s", exit, errOut)
	}
	t.Logf("\n%s", out)
	for _, want := range []string{"ready", "zone-a/drive-1", "zone-c/drive-2", "STANDARD", "3+3", "zone rule: 108 placement groups, no zone holds more", "12 placement groups inside one zone", "1.50 bytes a byte", "whole", "5 voters"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not say %q", want)
		}
	}
	s := p.status()
	if len(s.Drives) != 6 || len(s.Zones) != 3 || len(s.Groups) != 2 || !s.Proof.OK || s.Usage.Objects != 1 || s.Usage.Bytes != 300<<10 {
		t.Errorf("status --json: %+v", s)
	}
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`cairn_s3_requests_total{operation="PutObject",status="200"} 1`, `cairn_s3_requests_total{operation="GetObject",status="404"} 1`,
		"cairn_drive_up{", "cairn_zone_rule_ok 1", "cairn_ready 1", "cairn_objects 1", "cairn_garbage_queue"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if prom, err := exec.LookPath("promtool"); err == nil {
		cmd := exec.Command(prom, "check", "metrics")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool: %v\n%s", err, out)
		}
	}
	resp, err = http.Get("http://" + p.admin + "/v1/status")
	if err != nil || resp.StatusCode != 401 {
		t.Errorf("status without keys: %v %v", resp, err)
	}
	if a := p.do(t, request{method: "GET", path: "/v1/status"}); a.status == 200 && strings.Contains(string(a.body), "store_id") {
		t.Error("the S3 port serves the admin API")
	}
}
