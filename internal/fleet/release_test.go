package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// capturing is a node whose releases take long, each once by key.
type capturing struct {
	slow map[string]time.Duration // by environment

	mu    sync.Mutex // guards all below
	calls map[string]chan struct{}
	began []string
}

func (c *capturing) release(ctx context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	c.mu.Lock()
	done, joined := c.calls[r.GetIdempotencyKey()]
	if !joined {
		done = make(chan struct{})
		c.calls[r.GetIdempotencyKey()] = done
		c.began = append(c.began, r.GetEnvironment())
	}
	c.mu.Unlock()
	if joined {
		<-done
	} else {
		defer close(done)
		select {
		case <-time.After(c.slow[r.GetEnvironment()]):
		case <-ctx.Done(): // a capture ends with its caller
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.calls, r.GetIdempotencyKey())
			return nil, ctx.Err()
		}
	}
	return &hearthv1.NodeReleaseResponse{Snapshot: &hearthv1.Snapshot{Id: r.GetEnvironment() + "/1"}}, nil
}

func TestAReleaseThatCapturesForMinutesIsWaitedForAndAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		s := w.report()
		beat := make(chan struct{})
		defer close(beat)
		go func() {
			for {
				select {
				case <-beat:
					return
				case <-time.After(2 * time.Second):
					_ = s.Heartbeat(&hearthv1.Heartbeat{})
				}
			}
		}()
		got, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		id := got.GetEnvironment().GetId()
		c := &capturing{slow: map[string]time.Duration{id: 5 * time.Minute}, calls: map[string]chan struct{}{}}
		w.node.onRelease(c.release)
		resp, err := w.fleet.Release(context.Background(), alice, "r", id, false)
		if err != nil || resp.GetSnapshot().GetId() != id+"/1" {
			t.Errorf("release = %v, %v; want the snapshot that the class takes", resp, err)
		}
		synctest.Wait()
		if len(w.node.released) != 1 {
			t.Errorf("the node was asked %d times", len(w.node.released))
		}
		again, err := w.fleet.Release(context.Background(), alice, "r", id, false)
		if err != nil || again.GetSnapshot().GetId() != id+"/1" {
			t.Errorf("repeated: %v, %v", again, err)
		}
	})
}

// The controller is replaced while a node captures for a caller's release: the
// sweep of the next one must find the running release, not begin another.
func TestTheSweepJoinsTheReleaseOfACaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.report()
		got, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		id := got.GetEnvironment().GetId()
		c := &capturing{slow: map[string]time.Duration{id: 5 * time.Minute}, calls: map[string]chan struct{}{}}
		w.node.onRelease(c.release)
		first, done := w.fleet, make(chan struct{})
		go func() {
			defer close(done)
			_, _ = first.Release(context.Background(), alice, "r", id, false)
		}()
		time.Sleep(10 * time.Second)
		w.restart()
		w.report(&hearthv1.Environment{Id: id, Class: "small", Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING})
		time.Sleep(6 * time.Minute)
		<-done
		synctest.Wait()
		if len(c.began) != 1 || len(w.node.released) != 2 {
			t.Errorf("of %d releases %d began", len(w.node.released), len(c.began))
		}
		if got := stale(t, w); len(got) != 0 {
			t.Errorf("stale: %q", got)
		}
	})
}

// The sweep has to do it. Meanwhile others are released.
func TestASlowStaleReleaseDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.report()
		slow, err := w.claim("slow")
		if err != nil {
			t.Fatal(err)
		}
		quick, err := w.claim("quick")
		if err != nil {
			t.Fatal(err)
		}
		slowID, quickID := slow.GetEnvironment().GetId(), quick.GetEnvironment().GetId()
		w.node.onRelease(func(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
			return nil, fmt.Errorf("%w: connection reset", env.ErrUnavailable)
		})
		for _, id := range []string{slowID, quickID} {
			if _, err := w.fleet.Release(context.Background(), alice, id, id, false); err != nil {
				t.Fatal(err)
			}
		}
		c := &capturing{slow: map[string]time.Duration{slowID: 5 * time.Minute}, calls: map[string]chan struct{}{}}
		w.node.onRelease(c.release)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !cmp.Equal(stale(t, w), []string{slowID + "/1"}) {
			t.Errorf("stale after 5 s: %q, want only the slow one", stale(t, w))
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := stale(t, w); len(got) != 0 || len(c.began) != 2 {
			t.Errorf("stale: %q; began %q", got, c.began)
		}
	})
}

// stale lists what is stored as to be released.
func stale(t *testing.T, w *world) []string {
	t.Helper()
	st, err := w.store.Load()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range st.Records {
		for _, p := range r.Stale {
			out = append(out, fmt.Sprintf("%s/%d", r.ID(), p.Generation))
		}
	}
	return out
}

func TestAStaleReleaseThatFailsIsTriedLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		s := w.report()
		got, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		var full atomic.Bool
		full.Store(true)
		w.node.onRelease(func(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
			if full.Load() {
				return nil, errors.New("capture: no space left")
			}
			return &hearthv1.NodeReleaseResponse{}, nil
		})
		if _, err := w.fleet.Release(context.Background(), alice, "r", got.GetEnvironment().GetId(), false); err != nil {
			t.Fatal(err)
		}
		for range 300 { // ten minutes
			time.Sleep(2 * time.Second)
			if err := s.Heartbeat(&hearthv1.Heartbeat{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := len(w.node.released); n < 10 || n > 20 {
			t.Errorf("tried %d times in ten minutes, want about 15", n)
		}
		// The node comes back on a new stream: at once.
		full.Store(false)
		w.report()
		synctest.Wait()
		if got := stale(t, w); len(got) != 0 {
			t.Errorf("stale: %q", got)
		}
	})
}

// generations is a node's rule: it refuses as fenced what is lower than what it
// holds, and releases what it holds for the same and for a higher one.
type generations map[string]uint64

func (g generations) release(_ context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	own, ok := g[r.GetEnvironment()]
	if !ok {
		return nil, fmt.Errorf("%w: environment", env.ErrNotFound)
	}
	if r.GetGeneration() < own {
		return nil, fmt.Errorf("%w: generation %d is here", env.ErrFenced, own)
	}
	delete(g, r.GetEnvironment())
	return &hearthv1.NodeReleaseResponse{}, nil
}

func (g generations) inventory() []*hearthv1.Environment {
	var out []*hearthv1.Environment
	for id, n := range g {
		out = append(out, &hearthv1.Environment{Id: id, Class: "small", Generation: n, Phase: hearthv1.Phase_PHASE_RUNNING})
	}
	return out
}

func TestNoGenerationOfAReleasedEnvironmentStaysOnItsNode(t *testing.T) {
	for name, holds := range map[string]uint64{"an earlier one": 1, "the same": 2, "a later one, which an inventory shows": 3} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				id := string(env.NewID())
				w.report(&hearthv1.Environment{Id: id, Class: "small", Tenant: "alice", Generation: 2, Phase: hearthv1.Phase_PHASE_RUNNING})
				g := generations{id: holds}
				w.node.onRelease(g.release)
				if _, err := w.fleet.Release(context.Background(), alice, "r", id, false); err != nil {
					t.Fatal(err)
				}
				if got := stale(t, w); len(got) != 0 {
					t.Errorf("stale after the node's answer: %q", got)
				}
				if holds <= 2 && len(g) != 0 {
					t.Errorf("the node holds %v", g)
				}
				w.report(g.inventory()...)
				time.Sleep(3 * time.Second)
				synctest.Wait()
				if got := stale(t, w); len(g) != 0 || len(got) != 0 {
					t.Errorf("the node holds %v; stale: %q", g, got)
				}
			})
		})
	}
}

// A stale generation below the wanted one on the same node is answered as fenced:
// it is gone, and the wanted one stays.
func TestAFencedStaleReleaseLeavesTheLaterGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		w.node.err = errors.New("connection reset")
		g := generations{}
		w.node.onRelease(func(ctx context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
			g[r.GetEnvironment()] = 9
			return g.release(ctx, r)
		})
		if _, err := w.claim("k"); err == nil {
			t.Fatal("the claim succeeded")
		}
		list := w.fleet.List(alice, "", "")
		if len(list) != 1 || len(g) != 1 || g[list[0].GetId()] != 9 {
			t.Fatalf("list = %v; the node holds %v", list, g)
		}
		if got := stale(t, w); len(got) != 0 || len(g) != 1 {
			t.Errorf("stale: %q, the node holds %v", got, g)
		}
	})
}
