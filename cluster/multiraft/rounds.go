package multiraft

import (
	"context"
	"sync"

	"github.com/hashicorp/raft"

	"cairn/storage/errs"
)

// rounds shares the questions to voters in other processes between the reads that wait: a read joins the
// round that begins next, never one under way, whose answers may be from before the read.
type rounds struct {
	mu      sync.Mutex
	running bool
	next    *round
}

// round is one question to all voters away.
type round struct {
	term uint64
	done chan struct{}
	err  error
}

func (rs *rounds) confirm(ctx context.Context, r *replica, term uint64) error {
	rs.mu.Lock()
	if rs.next == nil || rs.next.term != term {
		// A round of another term is answered by its own readers' error; ours is a new one.
		rs.next = &round{term: term, done: make(chan struct{})}
		if !rs.running {
			rs.running = true
			r.spawn(func() { rs.run(r) }) // if the replica stops instead, cutCh ends the wait
		}
	}
	mine := rs.next
	rs.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-r.cutCh:
		return errs.New(errs.Unavailable, "multiraft.read", string(r.id), "the replica stopped")
	case <-ctx.Done():
		return &errs.Error{Kind: errs.Unavailable, Op: "multiraft.read", Subject: string(r.id), Detail: "no quorum confirmed the leader", Err: ctx.Err()}
	}
}

func (rs *rounds) run(r *replica) {
	for {
		rs.mu.Lock()
		n := rs.next
		rs.next = nil
		if n == nil {
			rs.running = false
			rs.mu.Unlock()
			return
		}
		rs.mu.Unlock()
		n.err = r.askVoters(n.term)
		close(n.done)
	}
}

// askVoters asks all voters for their term and returns when a quorum has confirmed it or cannot.
func (r *replica) askVoters(term uint64) error {
	ctx, cancel := context.WithTimeout(r.ctx, r.h.cfg.ElectionTimeout)
	defer cancel()
	servers := r.configuration().Servers
	answers := make(chan bool, len(servers))
	voters, asked := 0, 0
	t := &trans{r}
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		to, e := t.route(s.ID)
		if to == nil {
			continue
		}
		asked++
		go func() {
			got, err := to.ConfirmTerm(ctx, e)
			answers <- err == nil && got == term
		}()
	}
	yes := 0
	for ; asked > 0; asked-- {
		select {
		case ok := <-answers:
			if ok {
				yes++
			}
		case <-ctx.Done():
			asked = 1
		}
		if yes > voters/2 {
			return nil
		}
	}
	return errs.Newf(errs.Unavailable, "multiraft.read", string(r.id), "%d of %d voters confirm the leader", yes, voters)
}
