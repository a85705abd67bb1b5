package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

func TestACallerWhoLeavesTheLineLeavesNothing(t *testing.T) {
	// Also at the very moment at which the claim is served.
	for _, after := range []time.Duration{300 * time.Millisecond, time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			lined(t, 1, 8, queued(0, 10*time.Second), func(b *bench, n *Node) {
				t := b.t
				c := &claims{node: n}
				c.begin(t.Context(), "first", Claim{Class: "demo"})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				time.AfterFunc(after, cancel)
				gone := Claim{Class: "demo", Key: "k", ID: env.NewID()}
				c.begin(ctx, "second", gone)
				c.begin(t.Context(), "third", Claim{Class: "demo"})
				time.Sleep(5 * time.Second)
				c.work.Wait()
				if _, err := n.Get(gone.ID); err == nil && !errors.Is(ctx.Err(), context.Canceled) {
					t.Error("the claim of a caller who went away was carried out")
				}
				if b.world.leftovers()["containers"] != len(c.envs) {
					t.Errorf("left = %v, for %d environments", b.world.leftovers(), len(c.envs))
				}
				if _, err := n.Claim(t.Context(), gone); err != nil { // its key is free
					t.Errorf("repeated claim = %v", err)
				}
			})
		})
	}
}

func TestWhatWasGivenToACallerWhoHasGoneIsGivenBack(t *testing.T) {
	for name, class := range map[string]*env.Class{
		"a ready slot": queued(1, time.Minute), "a turn": queued(0, time.Minute), "a created slot": created(0, 1),
	} {
		t.Run(name, func(t *testing.T) {
			class.Warm.Wait = time.Minute
			lined(t, 4, 8, class, func(b *bench, n *Node) {
				t := b.t
				n.mu.Lock()
				n.starting = 4 // other claims go on
				ready := slices.Clone(n.pools["demo"].ready)
				for _, s := range ready {
					n.takeLocked(s)
					n.pools["demo"].making++ // so that no other is prepared
				}
				n.mu.Unlock()
				before := n.Room()
				ctx, cancel := context.WithCancel(t.Context())
				errs := make(chan error, 1)
				go func() {
					_, err := n.Claim(ctx, Claim{Class: "demo"})
					errs <- err
				}()
				synctest.Wait()
				n.mu.Lock() // it is served, and its caller goes away, before it looks
				n.starting = 0
				n.pools["demo"].making -= len(ready)
				n.pools["demo"].ready = append(n.pools["demo"].ready, ready...)
				n.serveLocked()
				if len(n.line) != 0 {
					t.Error("the claim was not served")
				}
				cancel()
				n.mu.Unlock()
				if err := <-errs; !errors.Is(err, context.Canceled) {
					t.Errorf("claim = %v", err)
				}
				n.nobodyWaits(t)
				pool := n.Pools()[0]
				if pool.Ready != class.Warm.Slots || pool.Created != class.Warm.Created || n.Room() != before {
					t.Errorf("pool = %+v, room %+v, before %+v", pool, n.Room(), before)
				}
			})
		})
	}
}

func TestWhoStandsInLineIsToldWhyItEnds(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(ctx context.Context, n *Node) error
		want error
		says string
	}{
		"the agent stops":      {func(_ context.Context, n *Node) error { return n.Close() }, env.ErrUnavailable, "is stopping"},
		"it hands over":        {func(ctx context.Context, n *Node) error { return n.Quiesce(ctx, 2*time.Second) }, env.ErrUnavailable, "hands over"},
		"the node is fenced":   {func(ctx context.Context, n *Node) error { return n.Fence(ctx) }, env.ErrUnavailable, "has lost its controller"},
		"its class is no more": {func(ctx context.Context, n *Node) error { return n.SetClasses(ctx, nil) }, env.ErrNotFound, "was taken off"},
	} {
		t.Run(name, func(t *testing.T) {
			requireChown(t)
			synctest.Test(t, func(t *testing.T) {
				n := newBench(t).open(queued(0, 10*time.Second))
				n.starting = 4 // other claims go on, whatever happens
				errs := make(chan error, 1)
				go func() {
					_, err := n.Claim(t.Context(), Claim{Class: "demo"})
					errs <- err
				}()
				time.Sleep(100 * time.Millisecond)
				ended := make(chan error, 1)
				go func() { ended <- test.end(t.Context(), n) }()
				begun := time.Now()
				if err := <-errs; !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) || time.Since(begun) > 0 {
					t.Errorf("the claim in line: %v after %s, want %v at once", err, time.Since(begun), test.want)
				}
				if err := <-ended; err != nil {
					t.Error(err)
				}
				n.starting = 0
				n.nobodyWaits(t)
			})
		})
	}
}

// An agent that is killed while claims wait has answered none of them, and leaves
// nothing of theirs.
func TestDeathWhileClaimsWaitLeavesNothingOfThem(t *testing.T) {
	requireChown(t)
	for _, at := range []time.Duration{500 * time.Millisecond, time.Second, 1500 * time.Millisecond} {
		t.Run(at.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.starts = 2
				var mu sync.Mutex
				dead := false
				die := func() error {
					mu.Lock()
					defer mu.Unlock()
					if dead {
						return errors.New("the agent is dead")
					}
					return nil
				}
				b.fault = func(string) error { return die() }
				b.world.failWith(func(call string) error {
					if call == "create" {
						time.Sleep(time.Second)
					}
					return die()
				})
				n := b.open(queued(1, 10*time.Second))
				stop := runNode(t, n)
				time.Sleep(10 * time.Second)
				c := &claims{node: n}
				for i := range 5 {
					c.begin(t.Context(), fmt.Sprint(i), Claim{Class: "demo"})
				}
				time.Sleep(at)
				mu.Lock()
				dead = true
				mu.Unlock()
				answered := c.answered()
				c.work.Wait()
				stop()
				n.work.Wait()
				if len(c.envs) != answered {
					t.Fatalf("%d claims were answered by a dead agent", len(c.envs)-answered)
				}
				b.fault = nil
				b.world.failWith(nil)
				again := b.open(queued(0, 0))
				fillPools(t, again)
				if got := again.List(); len(got) != answered {
					t.Errorf("%d environments, %d were answered", len(got), answered)
				}
				if left := b.world.leftovers(); left["containers"] != answered || left["islands"] != answered || left["processes"] != answered || left["cgroups"] != answered {
					t.Errorf("left = %v, for %d environments", left, answered)
				}
				again.nobodyWaits(t)
				if err := again.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
