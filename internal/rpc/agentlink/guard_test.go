package agentlink

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

// fakeNode notes what a guard does to it.
type fakeNode struct {
	mu     sync.Mutex
	did    []string
	refuse error
	slow   time.Duration
	begun  time.Time
}

func (n *fakeNode) do(ctx context.Context, what string) error {
	n.mu.Lock()
	n.did = append(n.did, what+" at "+time.Since(n.begun).Round(time.Second).String())
	refuse, slow := n.refuse, n.slow
	n.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return refuse
}

func (n *fakeNode) Fence(ctx context.Context) error { return n.do(ctx, "fence") }

func (n *fakeNode) Unfence(ctx context.Context, stale []env.ID) error {
	what := "unfence"
	for _, id := range stale {
		what += " but " + string(id)
	}
	return n.do(ctx, what)
}

func (n *fakeNode) set(refuse error, slow time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse, n.slow = refuse, slow
}

func (n *fakeNode) done() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.did)
}

// guarded runs a guard in a bubble whose boot was its beginning.
func guarded(t *testing.T, kept Lease, play func(*guard, *fakeNode)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		boot := time.Now()
		n := &fakeNode{begun: boot}
		g := newGuard(slog.New(slog.DiscardHandler), n, func() time.Duration { return time.Since(boot) }, func(Lease) {}, kept)
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error)
		go func() { end <- g.run(ctx) }()
		play(g, n)
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
	})
}

func want(t *testing.T, n *fakeNode, did ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(did, n.done()); diff != "" {
		t.Errorf("- wanted, + done:\n%s", diff)
	}
}

const five = 5 * time.Minute

func TestALeaseThatEndsFencesAndAnAnsweredInventoryUnfences(t *testing.T) {
	guarded(t, Lease{}, func(g *guard, n *fakeNode) {
		g.renewed(0, five)
		time.Sleep(five - time.Second)
		want(t, n)
		time.Sleep(2 * time.Second)
		want(t, n, "fence at 5m0s")
		if !g.show().Fenced || !g.holding() {
			t.Errorf("lease %+v, holding %v", g.show(), g.holding())
		}
		g.renewed(g.now(), five) // a heartbeat alone lets nothing go on
		time.Sleep(time.Minute)
		want(t, n, "fence at 5m0s")
		g.renewed(g.now(), five)
		g.release([]env.ID{"e-old"})
		want(t, n, "fence at 5m0s", "unfence but e-old at 6m1s")
		if g.show().Fenced || g.holding() {
			t.Errorf("lease %+v, holding %v", g.show(), g.holding())
		}
	})
}

func TestEachAnswerExtendsTheLeaseFromItsSending(t *testing.T) {
	guarded(t, Lease{}, func(g *guard, n *fakeNode) {
		const after = 70 * time.Second
		g.renewed(0, after)
		for range 10 {
			sent := g.now()
			time.Sleep(30 * time.Second) // the answer takes long
			g.renewed(sent, after)
		}
		want(t, n)
		time.Sleep(39 * time.Second)
		want(t, n)
		time.Sleep(2 * time.Second)
		want(t, n, "fence at 5m40s")
	})
}

func TestAnAnswerToAnOldReportUnfencesNothing(t *testing.T) {
	guarded(t, Lease{}, func(g *guard, n *fakeNode) {
		g.renewed(0, time.Minute)
		time.Sleep(2 * time.Minute)
		want(t, n, "fence at 1m0s")
		g.renewed(30*time.Second, time.Minute) // sent before the fence, answered now
		g.release(nil)
		time.Sleep(time.Minute)
		want(t, n, "fence at 1m0s")
		if !g.holding() {
			t.Error("the next report would be no inventory")
		}
	})
}

func TestAFenceIsTriedUntilItSucceeds(t *testing.T) {
	guarded(t, Lease{}, func(g *guard, n *fakeNode) {
		n.set(errors.New("a frozen cgroup does not answer"), 0)
		g.renewed(0, time.Minute)
		time.Sleep(time.Minute + 2500*time.Millisecond)
		want(t, n, "fence at 1m0s", "fence at 1m1s", "fence at 1m2s")
		if g.show().Fenced {
			t.Error("it says fenced")
		}
		n.set(nil, 0)
		time.Sleep(10 * time.Second)
		want(t, n, "fence at 1m0s", "fence at 1m1s", "fence at 1m2s", "fence at 1m3s")
	})
}

func TestAnInventoryAnsweredDuringAFailingFenceUnfences(t *testing.T) {
	guarded(t, Lease{}, func(g *guard, n *fakeNode) {
		n.set(errors.New("half of them are frozen"), 0)
		g.renewed(0, time.Minute)
		time.Sleep(time.Minute + 500*time.Millisecond)
		n.set(nil, 0)
		g.renewed(g.now(), time.Minute)
		g.release(nil)
		want(t, n, "fence at 1m0s", "unfence at 1m1s")
	})
}

func TestAnUnfenceThatOutlastsTheLeaseIsCutAndFencedAgain(t *testing.T) {
	guarded(t, Lease{}, func(g *guard, n *fakeNode) {
		n.set(nil, time.Hour)
		g.renewed(0, 10*time.Second)
		g.release(nil)
		time.Sleep(20 * time.Second)
		want(t, n, "unfence at 0s", "fence at 10s")
	})
}

func TestAFailedUnfenceIsTriedAgainWhileTheLeaseLasts(t *testing.T) {
	guarded(t, Lease{}, func(g *guard, n *fakeNode) {
		n.set(errors.New("no"), 0)
		g.renewed(0, 10*time.Second)
		synctest.Wait()
		g.release(nil)
		time.Sleep(2500 * time.Millisecond)
		want(t, n, "unfence at 0s", "unfence at 1s", "unfence at 2s")
		n.set(nil, 0)
		time.Sleep(5 * time.Second)
		want(t, n, "unfence at 0s", "unfence at 1s", "unfence at 2s", "unfence at 3s")
	})
}

func TestWithoutFenceAfterNothingIsFenced(t *testing.T) {
	for name, told := range map[string]time.Duration{"never": 0, "negative": -time.Second} {
		t.Run(name, func(t *testing.T) {
			guarded(t, Lease{}, func(g *guard, n *fakeNode) {
				g.renewed(0, time.Minute)
				g.renewed(0, told)
				time.Sleep(24 * time.Hour)
				want(t, n)
			})
		})
	}
}

func TestARestartedAgentContinuesTheLease(t *testing.T) {
	guarded(t, Lease{Last: 0, FenceAfter: time.Minute}, func(_ *guard, n *fakeNode) {
		time.Sleep(59 * time.Second)
		want(t, n)
		time.Sleep(2 * time.Second)
		want(t, n, "fence at 1m0s")
	})
	guarded(t, Lease{Last: -time.Hour, FenceAfter: time.Minute}, func(_ *guard, n *fakeNode) {
		want(t, n, "fence at 0s") // it ended while there was no agent
	})
}

func TestTheFirstInventoryUnfencesWhatAnEarlierAgentFenced(t *testing.T) {
	guarded(t, Lease{}, func(g *guard, n *fakeNode) {
		g.renewed(0, time.Minute)
		g.release([]env.ID{"e-1", "e-2"})
		want(t, n, "unfence but e-1 but e-2 at 0s")
		if diff := cmp.Diff([]env.ID{"e-1", "e-2"}, g.show().Stale); diff != "" {
			t.Error(diff)
		}
	})
}
