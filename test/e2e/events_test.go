//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithymiddleware "github.com/aws/smithy-go/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"

	"cairn/test/brokers"
	"cairn/test/seed"
)

// record is what a record of an event says, every field that S3 documents for what happens here. Others fail the test.
type record struct {
	EventVersion string `json:"eventVersion"`
	EventSource  string `json:"eventSource"`
	AWSRegion    string `json:"awsRegion"`
	EventTime    string `json:"eventTime"`
	EventName    string `json:"eventName"`
	UserIdentity struct {
		PrincipalID string `json:"principalId"`
	} `json:"userIdentity"`
	RequestParameters struct {
		SourceIPAddress string `json:"sourceIPAddress"`
	} `json:"requestParameters"`
	ResponseElements struct {
		RequestID string `json:"x-amz-request-id"`
		ID2       string `json:"x-amz-id-2"`
	} `json:"responseElements"`
	S3 struct {
		SchemaVersion   string `json:"s3SchemaVersion"`
		ConfigurationID string `json:"configurationId"`
		Bucket          struct {
			Name          string `json:"name"`
			OwnerIdentity struct {
				PrincipalID string `json:"principalId"`
			} `json:"ownerIdentity"`
			ARN string `json:"arn"`
		} `json:"bucket"`
		Object struct {
			Key       string `json:"key"`
			Size      *int64 `json:"size"`
			ETag      string `json:"eTag"`
			VersionID string `json:"versionId"`
			Sequencer string `json:"sequencer"`
		} `json:"object"`
	} `json:"s3"`
	Glacier *struct {
		Restore struct {
			Expiry string `json:"lifecycleRestorationExpiryTime"`
			Class  string `json:"lifecycleRestoreStorageClass"`
		} `json:"restoreEventData"`
	} `json:"glacierEventData"`
	Lifecycle *struct {
		Transition struct {
			Class string `json:"destinationStorageClass"`
		} `json:"transitionEventData"`
	} `json:"lifecycleEventData"`
}

// key is the object's key as it is.
func (r *record) key(t *testing.T) string {
	t.Helper()
	key, err := url.QueryUnescape(r.S3.Object.Key)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// records are those of bodies, but for the test events: of those one must be about the bucket.
func records(t *testing.T, bodies []string, bucket string) (all []record) {
	t.Helper()
	tests := 0
	for _, body := range bodies {
		if strings.Contains(body, `"s3:TestEvent"`) {
			if strings.Contains(body, `"Bucket":"`+bucket+`"`) || strings.Contains(body, `"Bucket": "`+bucket+`"`) { // jsonb is written with spaces
				tests++
			}
			continue
		}
		var in struct{ Records []record }
		dec := json.NewDecoder(strings.NewReader(body))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil || len(in.Records) != 1 {
			t.Fatalf("%v, %d records in %s", err, len(in.Records), body)
		}
		all = append(all, in.Records...)
	}
	if tests != 1 {
		t.Errorf("%d test events came", tests)
	}
	return all
}

// receiver is a webhook.
type receiver struct {
	addr   string
	mu     sync.Mutex
	bodies []string
	down   bool
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{addr: l.Addr().String()}
	s := &http.Server{Handler: r}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return r
}

// ServeHTTP takes one event, or a list of them.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []json.RawMessage
	switch {
	case r.down:
		w.WriteHeader(http.StatusServiceUnavailable)
	case len(body) == 0: // a look whether somebody is here
	case json.Unmarshal(body, &list) == nil:
		for _, one := range list {
			r.bodies = append(r.bodies, string(one))
		}
	default:
		r.bodies = append(r.bodies, string(body))
	}
}

func (r *receiver) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.bodies)
}

func (r *receiver) set(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

// destination is a target and how to see what came there.
type destination struct {
	kind     string
	settings []string
	secrets  []string
	taken    func() []string
}

// destinations starts a broker of each kind.
func destinations(t *testing.T) (all []destination) {
	hook := newReceiver(t)
	natsd, kafka, redisd := brokers.StartNATS(t, "events"), brokers.StartKafka(t, "events"), brokers.StartRedis(t)
	rabbit, postgres, mqtt, cloud := brokers.StartRabbitMQ(t, ""), brokers.StartPostgres(t, "", ""), brokers.StartMosquitto(t, "events"), brokers.StartAWS(t)
	conn, err := amqp091.Dial("amqp://guest:guest@" + rabbit.Address + "/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := channel.QueueDeclare("events", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	var queued []string
	rdb := redis.NewClient(&redis.Options{Addr: redisd.Address})
	t.Cleanup(func() { rdb.Close() })
	cloudSettings := []string{"endpoint=" + cloud.URL, "region=eu-test-1", "access-key-id=AKID"}
	cloudSecrets := []string{"secret-access-key=SECRET"}
	return []destination{
		{"webhook", []string{"url=http://" + hook.addr + "/events"}, []string{"secret=sesame"}, hook.taken},
		{"nats", []string{"servers=" + natsd.Address, "subject=events"}, nil, func() []string { return natsd.Taken(t) }},
		{"kafka", []string{"brokers=" + kafka.Address, "topic=events"}, nil, func() []string { return kafka.Taken(t) }},
		{"redis", []string{"address=" + redisd.Address, "stream=events"}, nil, func() (bodies []string) {
			list, err := rdb.XRange(t.Context(), "events", "-", "+").Result()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				bodies = append(bodies, m.Values["body"].(string))
			}
			return bodies
		}},
		{"amqp", []string{"address=" + rabbit.Address, "routing-key=events"}, nil, func() []string {
			for {
				d, ok, err := channel.Get("events", true)
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					return queued
				}
				queued = append(queued, string(d.Body))
			}
		}},
		{"mqtt", []string{"address=" + mqtt.Address, "topic=events"}, nil, mqtt.Taken},
		{"postgres", []string{"address=" + postgres.Address, "database=" + postgres.Database, "user=" + postgres.User, "table=events", "create-table=true"},
			[]string{"password=" + postgres.Password}, func() []string { return rowsOf(t, postgres) }},
		{"sqs", append(cloudSettings, "resource="+cloud.URL+brokers.Queue), cloudSecrets, func() []string { return cloud.Taken("sqs") }},
		{"sns", append(cloudSettings, "resource="+brokers.Topic), cloudSecrets, func() []string { return cloud.Taken("sns") }},
		{"lambda", append(cloudSettings, "resource="+brokers.Function), cloudSecrets, func() []string { return cloud.Taken("lambda") }},
	}
}

// rowsOf are the bodies of the table, in the order of what they are sorted by: jsonb has none of its own.
func rowsOf(t *testing.T, p *brokers.Postgres) (bodies []string) {
	conf, err := pgx.ParseConfig("postgres://" + p.Address + "/" + p.Database + "?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	conf.User, conf.Password = p.User, p.Password
	conn, err := pgx.ConnectConfig(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `SELECT body::text FROM events ORDER BY (body ? 'Records'), body->'Records'->0->'s3'->'object'->>'sequencer'`)
	if err != nil {
		t.Fatal(err)
	}
	if bodies, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		t.Fatal(err)
	}
	return bodies
}

// events runs a command below "cairn events".
func (p *process) events(extra ...string) string {
	p.t.Helper()
	code, out, errOut := p.cairn("events", extra...)
	if code != 0 {
		p.t.Fatalf("cairn events %v: %d %s", extra, code, errOut)
	}
	return out
}

// addTarget adds a target. Secrets go by files, as they should.
func (p *process) addTarget(name string, d destination, more ...string) {
	p.t.Helper()
	args := []string{"target", "add", name, d.kind}
	for _, s := range d.settings {
		args = append(args, "--set", s)
	}
	for i, s := range d.secrets {
		setting, value, _ := strings.Cut(s, "=")
		file := filepath.Join(p.t.TempDir(), "secret"+strconv.Itoa(i))
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			p.t.Fatal(err)
		}
		args = append(args, "--secret", setting+"=@"+file)
	}
	if out := p.events(append(args, more...)...); strings.Contains(out, "sesame") {
		p.t.Errorf("a secret is shown: %s", out)
	}
}

func queueARN(name string) *string { return aws.String("arn:aws:sqs:us-east-1:000000000000:" + name) }

var allEvents = []types.Event{
	"s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:ObjectRestore:*", "s3:ObjectTagging:*", "s3:LifecycleExpiration:*", "s3:LifecycleTransition", "s3:IntelligentTiering",
}

// done is something that was done and the record that must come of it.
type done struct {
	key, event, version, etag, request string
	size                               int64 // -1: none is told
	store                              bool  // the store did it by itself
}

// requestID is the id of the request that an operation of the SDK was answered for.
func requestID(m smithymiddleware.Metadata) string {
	id, _ := middleware.GetRequestIDMetadata(m)
	return id
}

// doer does things in a bucket with versions, and keeps what must be told of them.
type doer struct {
	t      *testing.T
	c      *s3.Client
	bucket string
	all    []done
}

func (d *doer) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *doer) put(key, body, tags string, class types.StorageClass) (version string) {
	d.t.Helper()
	in := &s3.PutObjectInput{Bucket: &d.bucket, Key: &key, Body: strings.NewReader(body), StorageClass: class}
	if tags != "" {
		in.Tagging = &tags
	}
	out, err := d.c.PutObject(d.t.Context(), in)
	d.must(err)
	d.all = append(d.all, done{key, "ObjectCreated:Put", *out.VersionId, strings.Trim(*out.ETag, `"`), requestID(out.ResultMetadata), int64(len(body)), false})
	return *out.VersionId
}

// everything does all that there are events for below a prefix.
func (d *doer) everything(prefix string) {
	t, c, ctx, b := d.t, d.c, d.t.Context(), &d.bucket
	t.Helper()
	key := prefix + "a +ü/(1).txt"
	body := strings.Repeat("x", 3000)
	version := d.put(key, body, "", "")
	etag := d.all[len(d.all)-1].etag
	tagged, err := c.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: b, Key: &key, Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("a"), Value: aws.String("b")}}}})
	d.must(err)
	d.all = append(d.all, done{key, "ObjectTagging:Put", version, etag, requestID(tagged.ResultMetadata), -1, false})
	untagged, err := c.DeleteObjectTagging(ctx, &s3.DeleteObjectTaggingInput{Bucket: b, Key: &key})
	d.must(err)
	d.all = append(d.all, done{key, "ObjectTagging:Delete", version, etag, requestID(untagged.ResultMetadata), -1, false})
	marker, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: b, Key: &key})
	d.must(err)
	d.all = append(d.all, done{key, "ObjectRemoved:DeleteMarkerCreated", *marker.VersionId, "d41d8cd98f00b204e9800998ecf8427e", requestID(marker.ResultMetadata), -1, false})
	gone, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: b, Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: &key, VersionId: marker.VersionId}}}})
	d.must(err)
	d.all = append(d.all, done{key, "ObjectRemoved:Delete", *marker.VersionId, "", requestID(gone.ResultMetadata), -1, false})

	copied := prefix + "copy"
	cp, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: b, Key: &copied, CopySource: aws.String(url.PathEscape(d.bucket + "/" + key))})
	d.must(err)
	d.all = append(d.all, done{copied, "ObjectCreated:Copy", *cp.VersionId, etag, requestID(cp.ResultMetadata), int64(len(body)), false})

	parts := prefix + "parts"
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: b, Key: &parts})
	d.must(err)
	part, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: b, Key: &parts, UploadId: up.UploadId, PartNumber: aws.Int32(1), Body: strings.NewReader(body)})
	d.must(err)
	mp, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: b, Key: &parts, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{
		Parts: []types.CompletedPart{{ETag: part.ETag, PartNumber: aws.Int32(1), ChecksumCRC32: part.ChecksumCRC32}},
	}})
	d.must(err)
	d.all = append(d.all, done{parts, "ObjectCreated:CompleteMultipartUpload", *mp.VersionId, strings.Trim(*mp.ETag, `"`), requestID(mp.ResultMetadata), int64(len(body)), false})

	cold := prefix + "cold"
	version = d.put(cold, body, "", types.StorageClassGlacier)
	etag = d.all[len(d.all)-1].etag
	restore, err := c.RestoreObject(ctx, &s3.RestoreObjectInput{Bucket: b, Key: &cold, RestoreRequest: &types.RestoreRequest{Days: aws.Int32(1000), GlacierJobParameters: &types.GlacierJobParameters{Tier: types.TierExpedited}}})
	d.must(err)
	d.all = append(d.all,
		done{cold, "ObjectRestore:Post", version, etag, requestID(restore.ResultMetadata), int64(len(body)), false},
		done{cold, "ObjectRestore:Completed", version, etag, "", int64(len(body)), true})

	moved := prefix + "moved"
	version = d.put(moved, strings.Repeat(body, 50), "move=yes", "")
	d.all = append(d.all, done{moved, "LifecycleTransition", version, d.all[len(d.all)-1].etag, "", 50 * int64(len(body)), true})
	ended := prefix + "ended"
	d.put(ended, body, "end=yes", "")
	d.all = append(d.all, done{ended, "LifecycleExpiration:DeleteMarkerCreated", "", "d41d8cd98f00b204e9800998ecf8427e", "", -1, true})
}

// compare compares what was done below a prefix with the records of it: the same for each key, in that order.
func (d *doer) compare(t *testing.T, kind string, got []record) {
	t.Helper()
	want := map[string][]done{}
	for _, w := range d.all {
		if strings.HasPrefix(w.key, kind+"/") {
			want[w.key] = append(want[w.key], w)
		}
	}
	last := map[string]string{}
	for _, r := range got {
		key := r.key(t)
		o := &r.S3.Object
		if len(want[key]) == 0 {
			t.Errorf("%s: nobody did %s of %q", kind, r.EventName, key)
			continue
		}
		w := want[key][0]
		want[key] = want[key][1:]
		size := int64(-1)
		if o.Size != nil {
			size = *o.Size
		}
		if r.EventName != w.event || size != w.size || o.ETag != w.etag || w.version != "" && o.VersionID != w.version || o.VersionID == "" || o.Sequencer <= last[key] {
			t.Errorf("%s: %s of %q: %+v after %q, want %+v", kind, r.EventName, key, *o, last[key], w)
		}
		last[key] = o.Sequencer
		at, err := time.Parse("2006-01-02T15:04:05.000Z", r.EventTime)
		if err != nil || time.Since(at) > time.Hour || r.EventSource != "aws:s3" || r.AWSRegion != region || r.EventVersion != "2.1" && r.EventVersion != "2.3" {
			t.Errorf("%s: %+v", kind, r)
		}
		if b := &r.S3.Bucket; r.S3.SchemaVersion != "1.0" || r.S3.ConfigurationID != "all of "+kind || b.Name != d.bucket || b.ARN != "arn:aws:s3:::"+d.bucket || b.OwnerIdentity.PrincipalID == "" {
			t.Errorf("%s: %+v", kind, r.S3)
		}
		who, from := r.UserIdentity.PrincipalID, r.RequestParameters.SourceIPAddress
		switch {
		case w.store:
			if who != "s3.amazonaws.com" || from != "s3.amazonaws.com" {
				t.Errorf("%s: %s of %q by %q from %q", kind, r.EventName, key, who, from)
			}
		case who == "" || who == "s3.amazonaws.com" || from != "127.0.0.1" || r.ResponseElements.RequestID != w.request || r.ResponseElements.ID2 == "":
			t.Errorf("%s: %s of %q by %q from %q: %+v, want request %s", kind, r.EventName, key, who, from, r.ResponseElements, w.request)
		}
		if (r.EventName == "LifecycleTransition") != (r.Lifecycle != nil && r.Lifecycle.Transition.Class == "GLACIER_IR") {
			t.Errorf("%s: %s: %+v", kind, r.EventName, r.Lifecycle)
		}
		if (r.EventName == "ObjectRestore:Completed") != (r.Glacier != nil && r.Glacier.Restore.Class == "GLACIER" && r.Glacier.Restore.Expiry != "") {
			t.Errorf("%s: %s: %+v", kind, r.EventName, r.Glacier)
		}
	}
	for key, left := range want {
		if len(left) > 0 {
			t.Errorf("%s: of %q did not come: %+v", kind, key, left)
		}
	}
}

// TestEventTargets: all that S3 has events for arrives at every kind of destination, and says what S3's documentation says.
func TestEventTargets(t *testing.T) {
	all := destinations(t)
	p := start(t, append(zones(), "--lifecycle-day", ruleDay.String(), "--restore-time-max", "1s")...)
	bucket := newBucket(t, p.endpoint)
	d := &doer{t: t, c: p.client(), bucket: bucket}
	_, err := d.c.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{Bucket: &bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}})
	d.must(err)
	var queues []types.QueueConfiguration
	for _, to := range all {
		p.addTarget(to.kind, to)
		p.events("target", "test", to.kind)
		queues = append(queues, types.QueueConfiguration{
			Id: aws.String("all of " + to.kind), QueueArn: queueARN(to.kind), Events: allEvents,
			Filter: &types.NotificationConfigurationFilter{Key: &types.S3KeyFilter{FilterRules: []types.FilterRule{{Name: types.FilterRuleNamePrefix, Value: aws.String(to.kind + "/")}}}},
		})
	}
	const before = 1 // what the tests of the targets sent
	_, err = d.c.PutBucketNotificationConfiguration(t.Context(), &s3.PutBucketNotificationConfigurationInput{Bucket: &bucket, NotificationConfiguration: &types.NotificationConfiguration{QueueConfigurations: queues}})
	d.must(err)
	tag := func(name string) *types.LifecycleRuleFilter {
		return &types.LifecycleRuleFilter{Tag: &types.Tag{Key: &name, Value: aws.String("yes")}}
	}
	_, err = d.c.PutBucketLifecycleConfiguration(t.Context(), &s3.PutBucketLifecycleConfigurationInput{Bucket: &bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: []types.LifecycleRule{
		{ID: aws.String("move"), Status: types.ExpirationStatusEnabled, Filter: tag("move"), Transitions: []types.Transition{{Days: aws.Int32(1), StorageClass: types.TransitionStorageClassGlacierIr}}},
		{ID: aws.String("end"), Status: types.ExpirationStatusEnabled, Filter: tag("end"), Expiration: &types.LifecycleExpiration{Days: aws.Int32(1)}},
	}}})
	d.must(err)
	for _, to := range all {
		d.everything(to.kind + "/")
	}
	perTarget := len(d.all)/len(all) + 1 // and the test event
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if !slices.ContainsFunc(all, func(to destination) bool { return len(to.taken()) < before+perTarget }) {
			break
		}
	}
	for _, to := range all {
		d.compare(t, to.kind, records(t, to.taken(), bucket))
	}
	if out := p.events("status"); !strings.Contains(out, "webhook") || !strings.Contains(out, bucket) {
		t.Error(out)
	}
	if out := p.events("target", "list", "--json"); strings.Contains(out, "sesame") || strings.Contains(out, "SECRET") || !strings.Contains(out, "postgres") {
		t.Error(out)
	}
	tailed := p.events("tail", bucket, "--from", "begin", "--no-follow")
	if n := strings.Count(tailed, `"eventName"`); n != len(d.all) {
		t.Errorf("%d events are kept, want %d\n%s", n, len(d.all), tailed)
	}
}

// TestClusterEvents: events of a bucket with versions while processes are killed and the receiver is away: what is received is what happened.
func TestClusterEvents(t *testing.T) {
	ops, away := 3000, 10*time.Second
	if s := os.Getenv("CAIRN_E2E_EVENTS"); s != "" { // 20000
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		ops, away = n, time.Minute
	}
	c := startNodes(t, 3, 2)
	hook := newReceiver(t)
	c.all[0].addTarget("hook", destination{kind: "webhook", settings: []string{"url=http://" + hook.addr + "/", "batch=100"}})
	ctx, bucket := t.Context(), &c.bucket
	client := c.all[0].client()
	_, err := client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.PutBucketNotificationConfiguration(ctx, &s3.PutBucketNotificationConfigurationInput{Bucket: bucket, NotificationConfiguration: &types.NotificationConfiguration{
		QueueConfigurations: []types.QueueConfiguration{{Id: aws.String("all"), QueueArn: queueARN("hook"), Events: []types.Event{"s3:ObjectCreated:*", "s3:ObjectRemoved:*"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	seed := seed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 3))
	var (
		mu     sync.Mutex
		acked  = map[string]bool{} // key, event and version
		unsure int
		wg     sync.WaitGroup
	)
	const writers, keys = 8, 500
	finished := make(chan struct{})
	for w := range writers {
		wg.Go(func() {
			own := rand.New(rand.NewPCG(seed, uint64(100+w)))
			for range ops / writers {
				s3c := c.all[own.IntN(len(c.all))].client()
				key := fmt.Sprintf("k%03d", own.IntN(keys))
				event, version := "ObjectCreated:Put", (*string)(nil)
				var err error
				if own.IntN(3) == 0 {
					var out *s3.DeleteObjectOutput
					event = "ObjectRemoved:DeleteMarkerCreated"
					if out, err = s3c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: &key}); err == nil {
						version = out.VersionId
					}
				} else {
					var out *s3.PutObjectOutput
					if out, err = s3c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: &key, Body: strings.NewReader(strings.Repeat("x", own.IntN(3000)))}); err == nil {
						version = out.VersionId
					}
				}
				mu.Lock()
				if err == nil {
					acked[key+" "+event+" "+*version] = true
				} else {
					unsure++
				}
				mu.Unlock()
			}
		})
	}
	go func() { wg.Wait(); close(finished) }()
	go func() {
		time.Sleep(time.Second)
		hook.set(true)
		time.Sleep(away)
		hook.set(false)
	}()
	total := killed{}
	total.leaders(c, rng, finished)
	<-finished
	t.Logf("%d acknowledged, %d without an answer, killed leaders %v", len(acked), unsure, total)
	happened := map[string]bool{}
	pages := s3.NewListObjectVersionsPaginator(client, &s3.ListObjectVersionsInput{Bucket: bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range page.Versions {
			happened[*v.Key+" ObjectCreated:Put "+*v.VersionId] = true
		}
		for _, m := range page.DeleteMarkers {
			happened[*m.Key+" ObjectRemoved:DeleteMarkerCreated "+*m.VersionId] = true
		}
	}
	for a := range acked {
		if !happened[a] {
			t.Errorf("acknowledged and lost: %s", a)
		}
	}
	received := map[string]string{} // and its sequencer
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		received = map[string]string{}
		for _, r := range records(t, hook.taken(), c.bucket) {
			received[r.key(t)+" "+r.EventName+" "+r.S3.Object.VersionID] = r.S3.Object.Sequencer
		}
		if len(received) >= len(happened) {
			break
		}
	}
	if !maps.EqualFunc(happened, received, func(bool, string) bool { return true }) {
		missing, more := 0, 0
		for h := range happened {
			if received[h] == "" {
				if missing++; missing < 10 {
					t.Errorf("did not come: %s", h)
				}
			}
		}
		for r := range received {
			if !happened[r] {
				if more++; more < 10 {
					t.Errorf("came and never happened: %s", r)
				}
			}
		}
		t.Errorf("%d happened, %d received, %d missing, %d too many\n%s", len(happened), len(received), missing, more, c.all[0].events("status"))
	}
	last, seen, repeats := map[string]string{}, map[string]string{}, 0
	for _, r := range records(t, hook.taken(), c.bucket) {
		key, o := r.key(t), &r.S3.Object
		id := key + " " + r.EventName + " " + o.VersionID
		if before, again := seen[id]; again {
			if repeats++; before != o.Sequencer {
				t.Errorf("%s came again with another sequencer", id)
			}
			continue
		}
		seen[id] = o.Sequencer
		if o.Sequencer <= last[key] {
			t.Errorf("%s: sequencer %s came after %s", id, o.Sequencer, last[key])
		}
		last[key] = o.Sequencer
	}
	t.Logf("%d events, %d repeats", len(seen), repeats)
	if total["range"] == 0 || len(seen) < ops/2 {
		t.Errorf("killed leaders %v, %d events: nothing was proven", total, len(seen))
	}
}
