//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"cairn/cluster/netsim"
	"cairn/cluster/placement"
	"cairn/server/config"
	"cairn/server/status"
	"cairn/storage"
	"cairn/test/linear"
	"cairn/test/linear/s3store"
	"cairn/test/seed"
)

// stallMax is how long a fault may make the nodes that it did not hit fail or wait. On a
// machine that is busy with other things a test fails only past stallFails; what is above the promise is logged.
const (
	stallMax   = 5 * time.Second
	stallFails = 15 * time.Second
)

// clusterMax bounds each wait for a whole cluster: six processes on few processors.
const clusterMax = 3 * time.Minute

// nodes is a cluster of processes; node i stands in zone i / perZone.
type nodes struct {
	t       *testing.T
	all     []*process
	names   []string
	perZone int
	rules   string // the file of --simulate-network
	bucket  string
	probes  atomic.Int64
}

// startNodes starts a cluster: the first node makes it, the others join with tokens.
func startNodes(t *testing.T, zones, perZone int, extra ...string) *nodes {
	t.Helper()
	dir := t.TempDir()
	c := &nodes{t: t, perZone: perZone, rules: filepath.Join(dir, "rules.json")}
	var credentials []byte
	for i := range zones * perZone {
		zone := string(rune('a' + i/perZone))
		name := fmt.Sprintf("%s%d", zone, i%perZone+1)
		addr := freePorts(t, 1)[0]
		args := []string{"--node", name, "--zone", zone, "--cluster-listen", addr, "--cluster-advertise", addr, "--simulate-network", c.rules}
		if i == 0 {
			args = append(args, "--cluster-init")
		} else {
			args = append(args, "--join-token", "@"+filepath.Join(dir, name+".token"))
		}
		p := prepare(t, append(args, extra...)...)
		c.all, c.names = append(c.all, p), append(c.names, name)
		if i == 0 {
			if _, _, err := config.EnsureCredentials(p.data); err != nil {
				t.Fatal(err)
			}
			var err error
			if credentials, err = os.ReadFile(filepath.Join(p.data, config.CredentialsFile)); err != nil {
				t.Fatal(err)
			}
			p.start()
			continue
		}
		if err := os.MkdirAll(p.data, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.data, config.CredentialsFile), credentials, 0o600); err != nil {
			t.Fatal(err)
		}
		c.token(filepath.Join(dir, name+".token"))
		p.launch()
	}
	for _, p := range c.all[1:] {
		p.waitReady(clusterMax)
		p.access, p.secret = c.all[0].access, c.all[0].secret
	}
	c.settle(clusterMax)
	c.bucket = newBucket(t, c.all[0].endpoint)
	return c
}

// settle waits until the data and the metadata stand on all nodes: those that join are
// ready before that, and a zone lost by then may have been all there was.
func (c *nodes) settle(limit time.Duration) {
	c.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		s := c.all[0].status()
		why := ""
		strange := slices.ContainsFunc(s.Drives, func(d status.Drive) bool { return d.State != "active" || d.BytesTotal == 0 })
		if len(s.Drives) != len(c.all) || strange {
			why = fmt.Sprintf("%d drives of %d nodes", len(s.Drives), len(c.all))
		}
		for _, g := range s.Groups {
			if g.Voters != min(5, len(c.all)) {
				why = fmt.Sprintf("group %d has %d voters", g.ID, g.Voters)
			}
		}
		for _, plan := range s.Plans {
			if !slices.ContainsFunc(s.PGs, func(g status.PGs) bool {
				return g.Class == string(placement.SameTarget(storage.StorageClass(plan.Class))) && g.Scheme == plan.Scheme
			}) {
				why = "no placement group for all drives yet"
			}
		}
		if !s.Proof.OK {
			why = s.Proof.Line
		}
		for i, p := range c.all[1:] {
			// A node hears of drives a moment after they joined, and estimates by those that it knows.
			if why == "" && !reflect.DeepEqual(p.status().Plans, s.Plans) {
				why = c.names[i+1] + " does not plan as " + c.names[0] + " does"
			}
		}
		if why == "" {
			c.all[0].waitWhole(limit)
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("not settled after %s: %s", limit, why)
		}
	}
}

// token has the first node make a join token.
func (c *nodes) token(file string) {
	c.t.Helper()
	p := c.all[0]
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, "http://"+p.admin+"/v1/cluster/token", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.SetBasicAuth(p.access, p.secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("a join token: %s, %v", resp.Status, err)
	}
	if err := os.WriteFile(file, []byte(answer.Token), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *nodes) zone(z int) []*process { return c.all[z*c.perZone : (z+1)*c.perZone] }

// others are the nodes outside a zone.
func (c *nodes) others(z int) (list []*process) {
	for i, p := range c.all {
		if i/c.perZone != z {
			list = append(list, p)
		}
	}
	return list
}

// network puts rules in force at all nodes, which look at the file every second.
func (c *nodes) network(rules ...netsim.Rule) {
	c.t.Helper()
	text, err := json.Marshal(netsim.Rules{Rules: rules})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.rules+".new", text, 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(c.rules+".new", c.rules); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
}

// stopAll stops processes with SIGTERM, all at once. (A second signal would end one by force.)
func stopAll(t *testing.T, list []*process) {
	t.Helper()
	for _, p := range list {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	const limit = 90 * time.Second // 15 s for requests under way, and a busy machine
	late := time.After(limit)
	for _, p := range list {
		select {
		case <-p.done:
		case <-late:
			t.Fatalf("%s has not stopped %s after SIGTERM", p.host, limit)
		}
		if !p.cmd.ProcessState.Success() {
			t.Errorf("%s after SIGTERM: %s", p.host, p.cmd.ProcessState)
		}
		p.cmd = nil
	}
}

func startAll(list []*process) {
	for _, p := range list {
		p.launch()
	}
	for _, p := range list {
		p.waitReady(clusterMax)
	}
}

// serving waits until each of the nodes has put and got 20 times in a row without an error, and
// logs how long it stalled: until the last error, or in one operation. Errors until then are
// counted; a lost or wrong object fails the test at once.
func (c *nodes) serving(list []*process, after string) {
	c.t.Helper()
	var wg sync.WaitGroup
	for i, p := range list {
		wg.Go(func() {
			begin, wrong := time.Now(), 0
			var stall time.Duration
			for row, n := 0, 0; row < 20; n++ {
				probed := time.Now()
				err := c.probe(p, fmt.Sprintf("probe-%d", i), n)
				if row++; err == nil {
					stall = max(stall, time.Since(probed))
					continue
				}
				row, wrong, stall = 0, wrong+1, time.Since(begin)
				if c.t.Failed() {
					return
				}
				if took := time.Since(begin); took > stallFails {
					c.t.Errorf("%s after %s, %s still fails: %v", took, after, p.host, err)
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			switch {
			case stall > stallMax:
				c.t.Logf("after %s: %s stalled for %s with %d errors, above the promised %s", after, p.host, stall, wrong, stallMax)
			case stall > time.Second || wrong > 0:
				c.t.Logf("after %s: %s stalled for %s with %d errors", after, p.host, stall, wrong)
			}
		})
	}
	wg.Wait()
}

// probe puts the nth value of a key and gets it again. What was acknowledged and is not read is an error of the test.
func (c *nodes) probe(p *process, key string, n int) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), stallFails)
	defer cancel()
	want := noiseBytes(uint64(n)<<32|uint64(c.probes.Add(1)), 2000)
	if _, err := p.once().PutObject(ctx, &s3.PutObjectInput{Bucket: &c.bucket, Key: &key, Body: bytes.NewReader(want)}); err != nil {
		return err
	}
	got, err := get(ctx, p.once(), c.bucket, key)
	if code(err) == "NoSuchKey" || err == nil && !bytes.Equal(got, want) {
		c.t.Errorf("%s does not read what it wrote to %s: %d bytes, %v", p.host, key, len(got), err)
	}
	return err
}

// wantClean verifies until nothing is wrong: while a node is late, its shards count as
// missing, though nothing is lost. What stays wrong fails the test.
func (c *nodes) wantClean() {
	c.t.Helper()
	for try := 1; try < 3; try++ {
		c.all[0].waitWhole(clusterMax)
		r := c.all[0].verify()
		if r.Found == 0 {
			return
		}
		var b strings.Builder
		r.Print(&b)
		c.t.Logf("cairn verify, try %d:\n%.2000s", try, b.String())
		time.Sleep(stallMax)
	}
	c.all[0].waitWhole(clusterMax)
	c.all[0].wantClean()
}

// writers write through all the given nodes until stop is called, which also
// waits for them and checks nothing yet.
func (c *nodes) write(writers []*writer, list []*process) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	for i, w := range writers {
		wg.Go(func() { w.run(ctx, list[i%len(list)].once(), c.bucket) })
	}
	return func() { cancel(); wg.Wait() }
}

// check reads everything, each writer's keys through another node than it wrote through.
func (c *nodes) check(writers []*writer, all bool) {
	c.t.Helper()
	for i, w := range writers {
		w.check(c.t, c.all[(i+1)%len(c.all)].client(), c.bucket, all)
	}
}

func newWriters(n int, seed uint64) (writers []*writer) {
	for i := range n {
		writers = append(writers, newWriter(i, seed, 10))
	}
	return writers
}

// TestClusterReadsEverywhere: what one node acknowledged, every other reads and lists at once.
func TestClusterReadsEverywhere(t *testing.T) {
	c := startNodes(t, 3, 2)
	for i, p := range c.all {
		for _, size := range []int64{10, 5000, 300_000, 3 << 20} {
			key := fmt.Sprintf("%s/%d", c.names[i], size)
			want := noiseBytes(uint64(i)<<32+uint64(size), size)
			put(t, p.client(), c.bucket, key, want)
			for j, q := range c.all {
				if got, err := get(t.Context(), q.client(), c.bucket, key); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s wrote %s, %s reads %d bytes, %v", c.names[i], key, c.names[j], len(got), err)
				}
				out, err := q.client().ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &c.bucket, Prefix: &key})
				if err != nil {
					t.Errorf("%s wrote %s, %s does not list it: %v", c.names[i], key, c.names[j], err)
				} else if len(out.Contents) != 1 {
					t.Errorf("%s wrote %s, %s lists %d", c.names[i], key, c.names[j], len(out.Contents))
				}
			}
			if _, err := c.all[(i+3)%len(c.all)].client().DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &c.bucket, Key: &key}); err != nil {
				t.Error(err)
			}
			for j, q := range c.all {
				if _, err := get(t.Context(), q.client(), c.bucket, key); code(err) != "NoSuchKey" {
					t.Errorf("%s was deleted, %s answers %v", key, c.names[j], err)
				}
			}
		}
	}
	for _, p := range c.all {
		if s := p.status(); !s.Ready || len(s.Drives) != len(c.all) {
			t.Errorf("status at %s: ready %v, %d drives", p.host, s.Ready, len(s.Drives))
		}
	}
	c.wantClean()
}

// TestClusterLosesZones: each zone in turn is stopped, partitioned off or
// black-holed while clients write; the others serve again soon (see serving), and
// nothing acknowledged is lost or comes back.
func TestClusterLosesZones(t *testing.T) {
	c := startNodes(t, 3, 2)
	seed := seed.Of(t)
	writers := newWriters(6, seed)
	cut := func(z int, silent bool) netsim.Rule {
		zone := "zone:" + string(rune('a'+z))
		return netsim.Rule{From: zone, To: "!" + zone, Partition: !silent, BlackHole: silent}
	}
	for _, fault := range []struct {
		name  string
		begin func(z int)
		end   func(z int)
	}{
		{"stopping zone", func(z int) { stopAll(t, c.zone(z)) }, func(z int) { startAll(c.zone(z)) }},
		{"partitioning zone", func(z int) { c.network(cut(z, false)) }, func(int) { c.network() }},
		{"black-holing zone", func(z int) { c.network(cut(z, true)) }, func(int) { c.network() }},
	} {
		for z := range 3 {
			after := fmt.Sprintf("%s %c", fault.name, 'a'+z)
			stop := c.write(writers, c.others(z))
			time.Sleep(500 * time.Millisecond)
			fault.begin(z)
			c.serving(c.others(z), after)
			stop()
			for i, w := range writers {
				w.check(t, c.others(z)[(i+1)%len(c.others(z))].client(), c.bucket, false)
			}
			fault.end(z)
			for _, p := range c.zone(z) {
				p.waitReady(clusterMax)
			}
			c.serving(c.all, "the end of "+after)
			c.check(writers, true)
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	c.wantClean()
}

// TestClusterBlackHoledNode: one node's packets are dropped; the others never stall for long.
func TestClusterBlackHoledNode(t *testing.T) {
	c := startNodes(t, 3, 2)
	for i := range c.all {
		node := "node:" + c.names[i]
		c.network(netsim.Rule{From: node, To: "!" + node, BlackHole: true})
		var rest []*process
		rest = append(append(rest, c.all[:i]...), c.all[i+1:]...)
		c.serving(rest, "black-holing "+c.names[i])
		c.network()
		c.serving(c.all, "the return of "+c.names[i])
	}
}

// TestClusterKill is TestKill for a cluster: one, some or all nodes are killed in the middle of writes.
func TestClusterKill(t *testing.T) {
	c := startNodes(t, 3, 2)
	seed := seed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 1000))
	writers := newWriters(6, seed)
	n := rounds(t)
	for round := range n {
		stop := c.write(writers, c.all)
		time.Sleep(time.Duration(50+rng.IntN(1000)) * time.Millisecond)
		victims := rng.Perm(len(c.all))[:[]int{1, 1, 2, 3, len(c.all)}[rng.IntN(5)]]
		var dead []*process
		for _, v := range victims {
			dead = append(dead, c.all[v])
		}
		for _, p := range dead {
			p.kill()
		}
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
		stop()
		startAll(dead)
		c.check(writers, round == n-1)
		if t.Failed() {
			t.Fatalf("round %d of %d, killed %v", round+1, n, victims)
		}
	}
	c.wantClean()
}

// leader is the process that leads the first group of a role, as one that answers sees it, or nil.
func (c *nodes) leader(role string) *process {
	for _, p := range c.all {
		code, out, _ := p.cairn("status", "--json")
		var s status.Status
		if code != 0 || json.Unmarshal([]byte(out), &s) != nil {
			continue
		}
		for _, g := range s.Groups {
			for _, r := range g.Replicas {
				if g.Role == role && r.ID == g.Leader && slices.Contains(c.names, r.Node) {
					return c.all[slices.Index(c.names, r.Node)]
				}
			}
		}
	}
	return nil
}

// TestClusterOneWinner: of 32 writers of one key with If-None-Match: * over all
// gateways exactly one is told that it won, while the leader of their range is killed. A writer that
// heard nothing may have won too, so then none is told.
func TestClusterOneWinner(t *testing.T) {
	c := startNodes(t, 3, 2)
	rng := rand.New(rand.NewPCG(seed.Of(t), 0))
	leaders := 0
	defer func() { t.Log("leaders killed:", leaders) }()
	for round := range max(3, rounds(t)/3) {
		key := fmt.Sprintf("one-%d", round)
		var wins, refused, open atomic.Int64
		var wg sync.WaitGroup
		victim := c.leader("range")
		if victim == nil { // there is none just now
			victim = c.all[rng.IntN(len(c.all))]
		} else {
			leaders++
		}
		for i := range 32 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := c.all[i%len(c.all)].once().PutObject(ctx, &s3.PutObjectInput{Bucket: &c.bucket, Key: &key, Body: bytes.NewReader(noiseBytes(uint64(i), 3000)), IfNoneMatch: aws.String("*")})
				var answer *awshttp.ResponseError
				switch {
				case err == nil:
					wins.Add(1)
				case errors.As(err, &answer) && answer.HTTPStatusCode() == http.StatusPreconditionFailed:
					refused.Add(1)
				default:
					open.Add(1)
				}
			})
		}
		victim.kill()
		wg.Wait()
		startAll([]*process{victim})
		if w, o := wins.Load(), open.Load(); w > 1 || w == 0 && o == 0 {
			t.Errorf("round %d: %d winners, %d refused, %d without an answer", round, w, refused.Load(), o)
		}
	}
}

// killEvery is how long there is from one kill of a leader to the next in TestClusterHistories.
const killEvery = 3 * time.Second

// killed is how many processes were killed while they led, by the role of what they led.
type killed map[string]int

// leaders kills the leader of the range, and every third time that of the system group, until the clients are
// done: each is started again at once (sooner than a lease ends) or a little later, and has come back before the next goes.
func (k killed) leaders(c *nodes, rng *rand.Rand, done <-chan struct{}) {
	for n := 0; ; {
		role := "range"
		if n%3 == 1 {
			role = "system"
		}
		next := time.After(killEvery)
		// What another says may be old by now; the victim itself knows it best.
		if victim := c.leader(role); victim != nil && victim.leads(role) {
			victim.kill()
			n++
			k[role]++
			time.Sleep([]time.Duration{0, 0, 500 * time.Millisecond, 1500 * time.Millisecond}[rng.IntN(4)])
			startAll([]*process{victim})
		} else { // there is none just now
			next = time.After(100 * time.Millisecond)
		}
		select {
		case <-done:
			return
		case <-next:
		}
	}
}

// leads is whether the process says that it leads the first group of a role.
func (p *process) leads(role string) bool {
	code, out, _ := p.cairn("status", "--json")
	var s status.Status
	if code != 0 || json.Unmarshal([]byte(out), &s) != nil {
		return false
	}
	i := slices.IndexFunc(s.Groups, func(g status.Group) bool { return g.Role == role })
	return i >= 0 && slices.ContainsFunc(s.Groups[i].Replicas, func(r status.Replica) bool { return r.Node == s.Node && r.State == "leader" })
}

// TestClusterHistories: histories over all gateways are linearizable while leaders are killed every few seconds, and
// after cuts. At most one node is down at a time.
func TestClusterHistories(t *testing.T) {
	c := startNodes(t, 3, 2)
	seed := seed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	stores := make([]linear.Store, len(c.all))
	total, verdicts := killed{}, 0
	for round := range max(2, rounds(t)/5) {
		c.bucket = newBucket(t, c.all[0].endpoint) // its listings show the keys and no others
		for i, p := range c.all {
			stores[i] = s3store.New(p.url(), region, p.access, p.secret, c.bucket)
		}
		r := linear.NewRecorder()
		// The pauses make it last for some kills, however fast the store is.
		w := linear.Workload{Stores: stores, Keys: []string{"a", "b", "c", "d"}, Clients: 6, Ops: 60, Timeout: 10 * time.Second, Pause: 300 * time.Millisecond, Seed: seed + uint64(round)}
		done := make(chan struct{})
		go func() { w.Run(t.Context(), r); close(done) }()
		time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
		if round%2 == 1 {
			zone := "zone:" + string(rune('a'+rng.IntN(3)))
			c.network(netsim.Rule{From: zone, To: "!" + zone, BlackHole: rng.IntN(2) == 0, Latency: netsim.Duration(20 * time.Millisecond)})
			c.network()
		}
		dead := killed{}
		dead.leaders(c, rng, done)
		<-done
		all, unanswered := r.Counts()
		t.Logf("round %d: %d operations, %d of them without an answer; killed leaders %v", round, all, unanswered, dead)
		for role, n := range dead {
			total[role] += n
		}
		if err := r.Check(2 * time.Minute); err == nil {
			verdicts++
		} else if errors.Is(err, linear.ErrUndecided) {
			t.Log(err) // says nothing of the store
		} else {
			t.Fatal(err)
		}
	}
	if total["range"] == 0 || total["system"] == 0 || verdicts == 0 {
		t.Errorf("killed leaders %v, verdicts on %d histories: nothing was proven", total, verdicts)
	}
}
