//go:build compose

package compose

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/test/linear"
	"cairn/test/linear/s3store"
	"cairn/test/seed"
)

const (
	access, secret = "cairn-on-loopback", "change-me-elsewhere" // the defaults of compose.yaml
	readyMax       = 3 * time.Minute
	stallMax       = 5 * time.Second  // promised: errors end within it
	patience       = 30 * time.Second // what a busy machine gets; the test logs what it took
)

func names() []string { return []string{"a1", "a2", "b1", "b2", "c1", "c2"} }

func url(i int) string { return fmt.Sprintf("http://127.0.0.1:%d", 9000+10*i) }

// project is the running compose project.
type project struct {
	t       *testing.T
	name    string // never that of somebody's data: what is of it is removed at the end
	compose []string
	ids     map[string]string // containers
}

// projectName is new in each run, and so is the network's name.
func projectName() string { return fmt.Sprintf("cairn-test-%d", os.Getpid()) }

func backbone() string { return projectName() + "_backbone" }

func run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "CAIRN_BACKBONE="+backbone(), "CAIRN_ROOT_ACCESS_KEY="+access, "CAIRN_ROOT_SECRET_KEY="+secret)
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return "", err
	}
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (p *project) run(args ...string) string {
	p.t.Helper()
	out, err := run(p.t.Context(), args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *project) do(args ...string) string {
	p.t.Helper()
	return p.run(slices.Concat(p.compose, args)...)
}

func up(t *testing.T) *project {
	p := &project{t: t, name: projectName(), compose: []string{"docker", "compose"}, ids: map[string]string{}}
	if _, err := run(t.Context(), "docker", "compose", "version"); err != nil {
		p.compose = []string{"docker-compose"}
	}
	p.compose = append(p.compose, "-p", p.name)
	p.nothingThere()
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := run(context.Background(), slices.Concat(p.compose, []string{"logs", "--no-color", "--tail=100"})...)
			t.Log(logs)
		}
		if _, err := run(context.Background(), slices.Concat(p.compose, []string{"down", "-v", "-t", "30"})...); err != nil {
			t.Error(err)
		}
	})
	p.do("up", "--build", "-d")
	for _, name := range names() {
		p.ids[name] = p.do("ps", "-q", name)
	}
	p.healthy(names()...)
	return p
}

// nothingThere ends the test, before it touches anything, if the project is not its own or
// its ports are in use, as by a cluster that somebody runs from compose.yaml.
func (p *project) nothingThere() {
	p.t.Helper()
	label := "label=com.docker.compose.project=" + p.name
	for _, list := range [][]string{{"container", "ls", "-aq"}, {"volume", "ls", "-q"}, {"network", "ls", "-q"}} {
		if out := p.run(slices.Concat([]string{"docker"}, list, []string{"--filter", label})...); out != "" {
			p.t.Fatalf("there is something of project %s already (docker %s): %s", p.name, list[0], out)
		}
	}
	for i := range names() {
		l, err := net.Listen("tcp", strings.TrimPrefix(url(i), "http://"))
		if err != nil {
			p.t.Fatalf("%s publishes %s: %v; is a cluster from compose.yaml running? (docker compose stop keeps its data)", names()[i], url(i), err)
		}
		l.Close()
	}
}

// healthy waits for the image's own health check.
func (p *project) healthy(names ...string) {
	p.t.Helper()
	for end := time.Now().Add(readyMax); ; time.Sleep(time.Second) {
		var states []string
		good := true
		for _, name := range names {
			state := p.run("docker", "inspect", "--format", "{{.State.Health.Status}}", p.ids[name])
			good = good && state == "healthy"
			states = append(states, name+" "+state)
		}
		if good {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("not healthy after %s: %s", readyMax, strings.Join(states, ", "))
		}
	}
}

func (p *project) cut(names ...string) {
	for _, name := range names {
		p.run("docker", "network", "disconnect", backbone(), p.ids[name])
	}
}

func (p *project) heal(names ...string) {
	for _, name := range names {
		p.run("docker", "network", "connect", "--alias", name, backbone(), p.ids[name])
	}
}

func store(i int, bucket string) *s3store.Store {
	return s3store.New(url(i), "us-east-1", access, secret, bucket)
}

// serving waits, patience at most, for each node to put and get, then wants no more errors.
func serving(t *testing.T, bucket, after string, nodes ...int) {
	t.Helper()
	var wg sync.WaitGroup
	for _, i := range nodes {
		wg.Go(func() {
			s := store(i, bucket)
			once := func() error {
				ctx, cancel := context.WithTimeout(t.Context(), patience/2)
				defer cancel()
				body := linear.Value(rand.Uint64()).Body()
				key := "probe-" + names()[i]
				if err := s.Put(ctx, key, body, linear.Condition{}); err != nil {
					return err
				}
				got, err := s.Get(ctx, key)
				if err == nil && string(got) != string(body) {
					err = fmt.Errorf("%s reads other bytes than it wrote", names()[i])
				}
				return err
			}
			begin := time.Now()
			for once() != nil && time.Since(begin) < patience {
				time.Sleep(50 * time.Millisecond)
			}
			took := time.Since(begin).Round(10 * time.Millisecond)
			for range 10 {
				if err := once(); err != nil {
					t.Errorf("%s after %s: %s fails: %v", time.Since(begin), after, names()[i], err)
					return
				}
			}
			verdict := "as promised"
			if took > stallMax {
				verdict = fmt.Sprintf("LATER THAN THE %s PROMISED", stallMax)
			}
			t.Logf("%s serves %s after %s: %s", names()[i], took, after, verdict)
		})
	}
	wg.Wait()
}

// TestZones cuts each zone off and stops another, with clients at all gateways
// all the while: their history, cut-off gateways included, is linearizable.
func TestZones(t *testing.T) {
	p := up(t)
	t.Run("tour", p.tour)
	for z, zone := range []string{"a", "b", "c"} {
		bucket := "history-" + zone
		probes := "probes-" + zone
		var stores []linear.Store
		for i := range names() {
			stores = append(stores, store(i, bucket))
		}
		for _, b := range []string{bucket, probes} {
			if err := store(0, b).CreateBucket(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		r := linear.NewRecorder()
		w := linear.Workload{Stores: stores, Keys: []string{"a", "b", "c", "d", "e", "f"}, Clients: 6, Ops: 60, Timeout: stallMax, Pause: time.Second, Seed: seed.Of(t) + uint64(z)<<32}
		done := make(chan struct{})
		go func() { w.Run(t.Context(), r); close(done) }()

		away := []int{2 * z, 2*z + 1}
		gone := []string{names()[away[0]], names()[away[1]]}
		var rest []int
		for i := range names() {
			if !slices.Contains(away, i) {
				rest = append(rest, i)
			}
		}
		p.cut(gone...)
		serving(t, probes, "cutting zone "+zone+" off", rest...)
		p.heal(gone...)
		p.healthy(gone...)
		p.do("stop", "-t", "30", gone[0], gone[1])
		serving(t, probes, "stopping zone "+zone, rest...)
		p.do("start", gone[0], gone[1])
		p.healthy(gone...)
		serving(t, probes, "the return of zone "+zone, 0, 1, 2, 3, 4, 5)
		<-done
		all, unanswered := r.Counts()
		t.Logf("zone %s: %d operations, %d of them without an answer", zone, all, unanswered)
		if err := r.Check(2 * time.Minute); errors.Is(err, linear.ErrUndecided) {
			t.Log(err) // says nothing of the store
		} else if err != nil {
			t.Fatal(err)
		}
	}
	p.run("docker", "exec", p.ids["b2"], "/cairn", "status")
	p.run("docker", "exec", p.ids["c1"], "/cairn", "verify")
}
