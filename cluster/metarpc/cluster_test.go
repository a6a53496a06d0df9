package metarpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

var (
	_ metaclient.Groups    = (*Router)(nil)
	_ metaclient.Elsewhere = (*Router)(nil)
	_ Host                 = (*multiraft.Host)(nil)
)

// get reads an object's bytes, "" if there is none.
func (a *node) get(key string) (string, error) {
	var body string
	err := a.meta.Read(a.c.t.Context(), 1, storage.Key(key), func(r rangestate.Reader) error {
		row, err := r.Object(1, storage.Key(key), nil)
		if errs.Is(err, errs.NoSuchKey) {
			body = ""
			return nil
		}
		body = string(row.GetData().GetInline())
		return err
	})
	return body, err
}

func (a *node) mustGet(key, want string) {
	a.c.t.Helper()
	if got, err := a.get(key); err != nil || got != want {
		a.c.t.Fatalf("%s reads %q of %s, want %q: %v", a.id, got, key, want, err)
	}
}

// A HEAD, a listing, a GET of an object in one piece and a PUT are one call each, once it is known who leads.
func TestOneCallEach(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodes(t, 4, 3)
		defer c.close()
		gateway := c.all[3]
		gateway.makeBucket(metapb.Versioning_VERSIONING_NEVER)
		gateway.must("key", putOp("key", 1, "body"))
		for name, test := range map[string]struct {
			want string
			fn   func() error
		}{
			"get": {"Query", func() error {
				return gateway.meta.Read(t.Context(), 1, "key", func(r rangestate.Reader) error {
					row, err := r.Object(1, "key", nil)
					if err != nil {
						return err
					}
					b, err := r.Bucket(1)
					if err != nil || b.Id != 1 {
						return errors.Join(errors.New("bucket"), err)
					}
					if _, n, err := r.PartExtent(1, "key", row, 1); err != nil || n != 4 {
						return errors.Join(errors.New("extent"), err)
					}
					segs, err := r.Segments(1, "key", row, 1, 2, 1)
					if err != nil || len(segs) != 1 || segs[0].Length != 2 {
						return errors.Join(errors.New("segments"), err)
					}
					return nil
				})
			}},
			"list": {"Query", func() error {
				return gateway.meta.ReadGroup(t.Context(), cluster.FirstRange, func(r rangestate.Reader) error {
					page, err := r.ListCurrent(1, "", "/", "", 1000)
					if len(page.Rows) == 0 || !page.Bounds.Contains(cluster.Pos{Bucket: 9, Key: "z"}) {
						t.Errorf("page %+v", page)
					}
					return err
				})
			}},
			"put": {"Propose", func() error { _, err := gateway.do("other", putOp("other", 2, "x")); return err }},
		} {
			calls := c.counted(func() {
				if err := test.fn(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
			if len(calls) != 1 || calls[test.want] != 1 {
				t.Errorf("%s made calls %v", name, calls)
			}
		}
		// Where the leader is, nothing goes over the network.
		lead := c.leaderOf(cluster.FirstRange)
		if calls := c.counted(func() { lead.mustGet("key", "body"); lead.must("k", putOp("k", 3, "")) }); len(calls) != 0 {
			t.Errorf("the leader's node made calls %v", calls)
		}
	})
}

// What one node acknowledged every other reads at once, while leadership moves around.
func TestReadAfterWriteEverywhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodes(t, 5, 3)
		defer c.close()
		c.all[4].makeBucket(metapb.Versioning_VERSIONING_NEVER)
		for i := range 60 {
			if i%10 == 9 {
				lead := c.leaderOf(cluster.FirstRange)
				next := slices.IndexFunc(c.all, func(a *node) bool { return a != lead })
				from := c.all[i%5]
				if err := from.router.TransferLeader(t.Context(), cluster.FirstRange, replicaOn(cluster.FirstRange, next).ID); err != nil && !errs.Is(err, errs.Unavailable) {
					t.Fatalf("transfer asked by %s: %v", from.id, err)
				}
			}
			body := fmt.Sprint(i)
			c.all[i%5].must("key", putOp("key", uint64(i+1), body))
			for _, a := range c.all {
				a.mustGet("key", body)
			}
		}
	})
}

// outage is what happens to the leader's node; undo may be nil.
type outage struct {
	do, undo func(*node)
}

func outages() map[string]outage {
	return map[string]outage{
		"killed":      {do: (*node).kill},
		"black-holed": {do: func(a *node) { a.c.setCut(a.id, true) }, undo: func(a *node) { a.c.setCut(a.id, false) }},
	}
}

// The leader's node goes: all others go on within 5 s, and nothing acknowledged is lost.
func TestLeaderGone(t *testing.T) {
	for name, o := range outages() {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newNodes(t, 6, 5)
				defer c.close()
				c.all[5].makeBucket(metapb.Versioning_VERSIONING_NEVER)
				lead := c.leaderOf(cluster.FirstRange)
				others := slices.DeleteFunc(slices.Clone(c.all), func(a *node) bool { return a == lead })
				for i, a := range others {
					a.must("key", putOp("key", uint64(i+1), "before"))
				}
				o.do(lead)
				var wg sync.WaitGroup
				for i, a := range others {
					wg.Go(func() {
						began := time.Now()
						key := "key-" + string(a.id)
						if _, err := a.do(key, putOp(key, uint64(100+i), "after")); err != nil {
							t.Errorf("put through %s: %v", a.id, err)
						}
						if took := time.Since(began); took > 5*time.Second {
							t.Errorf("a put through %s took %v", a.id, took)
						}
					})
					wg.Go(func() {
						began := time.Now()
						if got, err := a.get("key"); err != nil || got != "before" {
							t.Errorf("get through %s: %q, %v", a.id, got, err)
						}
						if took := time.Since(began); took > 5*time.Second {
							t.Errorf("a get through %s took %v", a.id, took)
						}
					})
				}
				wg.Wait()
				for i, a := range others {
					for _, b := range others {
						b.mustGet("key-"+string(a.id), "after")
					}
					// From now on the lost node costs nothing.
					began := time.Now()
					a.must("later", putOp("later", uint64(200+i), "x"))
					if took := time.Since(began); took > time.Second {
						t.Errorf("a later put through %s took %v", a.id, took)
					}
				}
				if o.undo == nil {
					return
				}
				o.undo(lead)
				lead.mustGet("key-"+string(others[0].id), "after")
				lead.must("back", putOp("back", 300, "x"))
				others[1].mustGet("back", "x")
			})
		})
	}
}

// Answers of proposals get lost on the way: each happens once.
func TestLostAnswers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodes(t, 4, 3)
		defer c.close()
		gateway := c.all[3]
		gateway.makeBucket(metapb.Versioning_VERSIONING_NEVER)
		var mu sync.Mutex
		n := 0
		c.setSpoil(func(method string, err error) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; strings.HasSuffix(method, "/Propose") && n%3 != 0 {
				return status.Error(codes.Unavailable, "the connection broke")
			}
			return err
		})
		for i := range 20 {
			key := fmt.Sprint("once-", i)
			op := putOp(key, uint64(i+1), "first")
			op.Conditions = &metapb.Conditions{IfNoneMatch: []string{"*"}}
			if _, err := gateway.do(key, op); err != nil {
				t.Fatalf("%s: %v", key, err) // were it applied twice, it would meet itself
			}
			op = putOp(key, uint64(100+i), "second")
			op.Conditions = &metapb.Conditions{IfNoneMatch: []string{"*"}}
			if _, err := gateway.do(key, op); !errs.Is(err, errs.PreconditionFailed) {
				t.Fatalf("%s exists, but: %v", key, err)
			}
			gateway.mustGet(key, "first")
		}
		// With no answer ever the fate is unknown, and is said to be.
		c.setSpoil(func(method string, err error) error { return status.Error(codes.Unavailable, "the connection broke") })
		if _, err := gateway.do("key", putOp("key", 500, "")); !errs.Is(err, errs.OutcomeUnknown) {
			t.Errorf("no answer at all: %v", err)
		}
		if _, err := gateway.get("key"); !errs.Is(err, errs.Unavailable) {
			t.Errorf("a read without an answer: %v", err)
		}
	})
}

// Long answers come in pieces, and the reader does not see them.
func TestPages(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodesWith(t, 4, 3, ServerConfig{AnswerBytesMax: 400})
		defer c.close()
		gateway := c.all[3]
		f := fill(gateway)
		err := gateway.meta.Read(t.Context(), 1, "big", func(r rangestate.Reader) error {
			rows, more, err := r.Parts(1, "up/2", f.upload, 0, 10000)
			if err != nil || len(rows) != 5 || more {
				t.Errorf("%d parts, more %v", len(rows), more)
			}
			if rows, more, err = r.Parts(1, "up/2", f.upload, 0, 4); err != nil || len(rows) != 4 || !more {
				t.Errorf("%d parts of 4, more %v: %v", len(rows), more, err)
			}
			big, err := r.Object(1, "big", nil)
			if err != nil {
				return err
			}
			segs, err := r.Segments(1, "big", big, 100, 2500, math.MaxInt)
			if err != nil || len(segs) != 3 || segs[0].Offset != 100 || segs[2].Length != 600 {
				t.Errorf("segments %+v, %v", segs, err)
			}
			if segs, err = r.Segments(1, "big", big, 100, 2500, 1); err != nil || len(segs) != 1 || segs[0].Length != 900 {
				t.Errorf("the first segments: %+v, %v", segs, err)
			}
			// A listing's pages are the caller's business, but must be whole.
			var keys []string
			for after := ""; ; {
				page, err := r.ListCurrent(1, "dir", "", after, 1000)
				if err != nil {
					return err
				}
				for _, row := range page.Rows {
					keys = append(keys, string(row.Key))
				}
				if !page.Truncated {
					break
				}
				if len(page.Rows) > 10 {
					t.Errorf("a page of %d rows in 400 bytes", len(page.Rows))
				}
				after = page.Next
			}
			if len(keys) != 59 || !slices.IsSorted(keys) {
				t.Errorf("%d keys: %v", len(keys), keys)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// A walk whose reader stops is let go, and the group goes on.
func TestWalkStalls(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodesWith(t, 4, 3, ServerConfig{StallTimeout: 10 * time.Second, StreamsMax: 1})
		defer c.close()
		gateway := c.all[3]
		gateway.makeBucket(metapb.Versioning_VERSIONING_NEVER)
		body := strings.Repeat("x", 1000)
		const rows = 4000 // far more than a connection's windows hold
		for i := range rows {
			key := fmt.Sprint("key", i)
			gateway.must(key, putOp(key, uint64(i+1), body))
		}
		n := 0
		walk := func(fn func() error) error {
			return gateway.meta.ReadGroup(t.Context(), cluster.FirstRange, func(r rangestate.Reader) error {
				err := r.Walk(func(it *rangestate.Item) error {
					if it.Object != nil {
						n++
					}
					return fn()
				})
				if err == nil {
					_, err = r.Info() // however long the walk took
				}
				return err
			})
		}
		// Longer than any one operation may take, but it goes on all the time.
		if err := walk(func() error { time.Sleep(20 * time.Millisecond); return nil }); err != nil || n != rows {
			t.Errorf("%d rows, %v", n, err)
		}
		n = 0
		err := walk(func() error {
			if n == 1 {
				time.Sleep(time.Minute)
			}
			return nil
		})
		if !errs.Is(err, errs.Timeout) {
			t.Errorf("a reader that stops: %v", err)
		}
		// Its place is free again, and a reader may go early.
		stop := errors.New("enough")
		if err := walk(func() error { return stop }); !errors.Is(err, stop) {
			t.Errorf("a walk ended with %v", err)
		}
		time.Sleep(15 * time.Second)
		if err := walk(func() error { return nil }); err != nil {
			t.Error(err)
		}
	})
}

// A walk ends when the replica that it reads stops, also while it waits for its reader: the drive can be closed.
func TestWalkEndsWithReplica(t *testing.T) {
	for name, through := range map[string]int{"here": 0, "elsewhere": 1} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newNodesWith(t, 2, 1, ServerConfig{StallTimeout: time.Hour})
				defer c.close()
				leader := c.all[0]
				leader.makeBucket(metapb.Versioning_VERSIONING_NEVER)
				body := strings.Repeat("x", 1000)
				for i := range 1500 {
					key := fmt.Sprint("key", i)
					leader.must(key, putOp(key, uint64(i+1), body))
				}
				begun, ended := make(chan struct{}), make(chan error, 1)
				go func() {
					n := 0
					ended <- c.all[through].meta.ReadGroup(t.Context(), cluster.FirstRange, func(r rangestate.Reader) error {
						return r.Walk(func(it *rangestate.Item) error {
							if n++; n == 1 {
								close(begun)
								if through != 0 {
									time.Sleep(time.Minute) // the leader waits for this reader
								}
							}
							time.Sleep(time.Millisecond)
							return nil
						})
					})
				}()
				<-begun
				synctest.Wait()
				at := time.Now()
				leader.host.DropDrive(leader.drive.ID)
				if err := leader.host.AddDrive(leader.drive); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(at); took > 5*time.Second {
					t.Errorf("the drive was closed and opened after %v", took)
				}
				if err := <-ended; !errs.Is(err, errs.Timeout) {
					t.Errorf("the walk ended with %v", err)
				}
			})
		})
	}
}

// A replica is made on another node, joins, leads, leaves and is destroyed, all asked for elsewhere.
func TestReplicasElsewhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodes(t, 5, 3)
		defer c.close()
		c.all[4].makeBucket(metapb.Versioning_VERSIONING_NEVER)
		c.all[4].must("key", putOp("key", 1, "body"))
		g := cluster.FirstRange
		from, rep := c.follower(g).router, replicaOn(g, 3)
		for range 2 {
			if err := from.CreateReplica(t.Context(), nodeID(3), g, rep); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := from.AddReplica(t.Context(), g, rep); err != nil {
				t.Fatal(err)
			}
		}
		if err := from.TransferLeader(t.Context(), g, rep.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if c.leaderOf(g) != c.all[3] {
			t.Fatal("the new replica does not lead")
		}
		// The topology does not know the leader's replica yet: the nodes are asked, and it is found by itself.
		c.all[4].mustGet("key", "body")
		known := *c.topo
		unknown := known
		unknown.Groups = maps.Clone(known.Groups)
		delete(unknown.Groups, g)
		*c.topo = unknown
		for _, a := range c.all { // nor does it know the group
			if _, err := a.meta.DoGroup(t.Context(), g, &metapb.RangeCommand{Op: &metapb.RangeCommand_Tick{Tick: &metapb.TickOp{}}}); err != nil {
				t.Errorf("a group that the topology does not know: %s: %v", a.id, err)
			}
		}
		*c.topo = known
		topo := *c.topo
		topo.Groups = maps.Clone(topo.Groups)
		grp := topo.Groups[g]
		grp.Replicas = append(slices.Clone(grp.Replicas), rep)
		topo.Groups[g] = grp
		*c.topo = topo
		c.all[4].mustGet("key", "body")
		contents, err := c.all[4].router.Contents(t.Context(), g)
		if err != nil || len(contents) != 4 {
			t.Fatalf("contents %+v, %v", contents, err)
		}
		for _, r := range contents {
			if r.Hash == nil || string(r.Hash) != string(contents[0].Hash) || !r.Member || !r.Voter || r.Err != nil || r.Drive.IsZero() {
				t.Errorf("replica %+v", r)
			}
		}
		all, err := c.all[0].router.StatusOfAll(t.Context())
		if err != nil || len(all) != 5 || len(all[nodeID(3)]) != 1 || !all[nodeID(3)][0].Local {
			t.Errorf("status %+v, %v", all, err)
		}
		if err := from.TransferLeader(t.Context(), g, replicaOn(g, 0).ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := from.RemoveReplica(t.Context(), g, rep.ID); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := from.DestroyReplica(t.Context(), nodeID(3), g, rep.ID); err != nil {
				t.Fatal(err)
			}
		}
		if st := c.all[3].host.Status(); len(st) != 0 {
			t.Errorf("left behind: %+v", st)
		}
		c.all[4].mustGet("key", "body")
	})
}

// Buckets are read from the system group wherever it is led.
func TestSystemElsewhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodes(t, 4, 3)
		defer c.close()
		gateway := c.all[3]
		for _, name := range []string{"aaa", "abb", "bbb"} {
			if _, err := gateway.meta.Sys(t.Context(), &metapb.SysCommand{Op: &metapb.SysCommand_CreateBucket{CreateBucket: &metapb.CreateBucketOp{Bucket: &metapb.SysBucket{Name: name, Owner: "me"}}}}); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"queue", "mail"} {
			if _, err := gateway.meta.Sys(t.Context(), &metapb.SysCommand{Op: &metapb.SysCommand_PutTarget{PutTarget: &metapb.PutTargetOp{Target: &metapb.SysTarget{Name: name, Kind: "log"}}}}); err != nil {
				t.Fatal(err)
			}
		}
		for _, a := range []*node{gateway, c.leaderOf(cluster.SystemGroup)} {
			err := a.meta.System(t.Context(), func(r sysstate.Reader) error {
				st, err := r.Store()
				if err != nil || st.Id != testStoreID {
					t.Errorf("%s: store %v, %v", a.id, st, err)
				}
				bk, err := r.BucketByName("abb")
				if err != nil || bk.Name != "abb" {
					t.Errorf("%s: bucket %v, %v", a.id, bk, err)
				}
				if by, err := r.BucketByID(storage.BucketID(bk.GetId())); err != nil || by.Name != "abb" {
					t.Errorf("%s: bucket %v, %v", a.id, by, err)
				}
				if _, err := r.BucketByName("none"); !errs.Is(err, errs.NoSuchBucket) {
					t.Errorf("%s: no bucket: %v", a.id, err)
				}
				if _, err := r.BucketByID(99); !errs.Is(err, errs.NoSuchBucket) {
					t.Errorf("%s: no bucket: %v", a.id, err)
				}
				if page, more, err := r.ListBuckets("me", "a", "", 1); err != nil || len(page) != 0 || more {
					t.Errorf("%s: buckets in the making are listed: %v %v %v", a.id, page, more, err)
				}
				if page, err := r.PendingBuckets(storage.BucketID(bk.GetId()-1), 10); err != nil || len(page) != 2 {
					t.Errorf("%s: pending %v, %v", a.id, page, err)
				}
				if n, err := r.CountBuckets(); err != nil || n != 3 {
					t.Errorf("%s: %d buckets, %v", a.id, n, err)
				}
				if all, err := r.Targets(); err != nil || len(all) != 2 || all[0].Name != "mail" || all[1].Name != "queue" {
					t.Errorf("%s: targets %v, %v", a.id, all, err)
				}
				if g, err := r.Target("queue"); err != nil || g.Name != "queue" || g.Kind != "log" || g.Generation != 1 {
					t.Errorf("%s: target %v, %v", a.id, g, err)
				}
				if _, err := r.Target("none"); !errs.Is(err, errs.NotFound) {
					t.Errorf("%s: no target: %v", a.id, err)
				}
				if starts, err := r.DriveStarts(driveID(1)); err != nil || starts != 1 {
					t.Errorf("%s: %d starts, %v", a.id, starts, err)
				}
				if ms, err := r.TimeMS(); err != nil || ms == 0 {
					t.Errorf("%s: time %d, %v", a.id, ms, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// Targets that do not fit into one answer come in several.
func TestManyTargetsElsewhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodesWith(t, 4, 3, ServerConfig{AnswerBytesMax: 5000})
		defer c.close()
		gateway := c.all[3]
		var want []string
		for i := range 12 {
			g := &metapb.SysTarget{Name: fmt.Sprintf("t%02d", i), Kind: "log", Settings: []*metapb.KV{{Name: "s", Value: strings.Repeat("x", 1000)}}}
			if _, err := gateway.meta.Sys(t.Context(), &metapb.SysCommand{Op: &metapb.SysCommand_PutTarget{PutTarget: &metapb.PutTargetOp{Target: g}}}); err != nil {
				t.Fatal(err)
			}
			want = append(want, g.Name)
		}
		var got []string
		calls := c.counted(func() {
			err := gateway.meta.System(t.Context(), func(r sysstate.Reader) error {
				got = nil
				all, err := r.Targets()
				for _, g := range all {
					got = append(got, g.Name)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
		if !slices.Equal(got, want) || calls["SysQuery"] != 3 {
			t.Errorf("%v by %v", got, calls)
		}
	})
}

// Who was removed, and who cannot say who he is, gets nothing; and there is an end to what is answered at once.
func TestRefused(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodesWith(t, 4, 3, ServerConfig{CallsMax: 1})
		defer c.close()
		gateway := c.all[3]
		gateway.makeBucket(metapb.Versioning_VERSIONING_NEVER)
		topo := *c.topo
		topo.Nodes = maps.Clone(topo.Nodes)
		topo.Nodes[gateway.id] = cluster.Node{ID: gateway.id, State: cluster.NodeRemoved}
		*c.topo = topo
		// To a client of its gateway that is 503 and not 403.
		if _, err := gateway.router.Propose(t.Context(), cluster.FirstRange, nil); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "removed") {
			t.Errorf("a removed node's command: %v", err)
		}
		if _, err := gateway.do("key", putOp("key", 1, "")); !errs.Is(err, errs.Unavailable) {
			t.Errorf("a removed node's command: %v", err)
		}
		if _, err := gateway.get("key"); !errs.Is(err, errs.Unavailable) {
			t.Errorf("a removed node's question: %v", err)
		}
		srv := &Server{cfg: ServerConfig{Topology: func() *cluster.Topology { return c.topo }, Caller: func(context.Context) (cluster.NodeID, error) { return "n0", nil }}, calls: make(chan struct{}, 1)}
		done, err := srv.admit(t.Context(), srv.calls)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := srv.admit(t.Context(), srv.calls); !errs.Is(err, errs.Busy) {
			t.Errorf("one call too many: %v", err)
		}
		done()
		if _, err := srv.admit(t.Context(), srv.calls); err != nil {
			t.Error(err)
		}
	})
}
