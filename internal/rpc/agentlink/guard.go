package agentlink

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"hearth/internal/env"
)

// fencer holds the node's environments. Both methods may be repeated, and are
// never called at once.
type fencer interface {
	// Fence freezes and locks every environment whose class does not let it
	// run on. An error leaves none running that could be stopped.
	Fence(ctx context.Context) error
	// Unfence lets go on what Fence held, but not what is stale.
	Unfence(ctx context.Context, stale []env.ID) error
}

const (
	// look: timers stand still while the machine sleeps, the lease does not.
	look = time.Second
	// fenceTimeout bounds one try, fenceRetry is between two.
	fenceTimeout = 30 * time.Second
	fenceRetry   = time.Second
)

// guard keeps the lease.
type guard struct {
	log    *slog.Logger
	fencer fencer
	now    func() time.Duration // since boot
	keep   func(Lease)          // outlives this process
	wake   chan struct{}        // has one element if run shall look again

	mu    sync.Mutex // guards stand
	stand stand
}

func newGuard(log *slog.Logger, f fencer, now func() time.Duration, keep func(Lease), kept Lease) *guard {
	return &guard{log: log, fencer: f, now: now, keep: keep, wake: make(chan struct{}, 1), stand: stand{Lease: kept}}
}

// renewed notes that a report that was sent at that time was answered.
func (g *guard) renewed(sent, fenceAfter time.Duration) {
	g.mu.Lock()
	changed := g.stand.FenceAfter != fenceAfter
	g.stand.renew(sent, fenceAfter)
	l := g.stand.Lease
	g.mu.Unlock()
	g.keep(l)
	if changed {
		g.poke()
	}
}

// release notes that an inventory was answered: all but stale may go on.
func (g *guard) release(stale []env.ID) {
	g.mu.Lock()
	g.stand.allow(g.now(), stale)
	g.mu.Unlock()
	g.poke()
}

func (g *guard) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// holding reports whether environments wait for the answer to an inventory.
func (g *guard) holding() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stand.held && g.stand.allowed == g.stand.done
}

func (g *guard) show() Lease {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.stand.Lease
	l.Stale = slices.Clone(l.Stale)
	return l
}

// run does what the lease asks for until ctx ends.
func (g *guard) run(ctx context.Context) error {
	if g.fencer == nil {
		<-ctx.Done()
		return nil
	}
	for ctx.Err() == nil {
		pause := g.pause()
		if !g.step(ctx) {
			pause = min(pause, fenceRetry)
		}
		select {
		case <-ctx.Done():
		case <-g.wake:
		case <-time.After(pause):
		}
	}
	return nil
}

// pause is how long nothing can fall due.
func (g *guard) pause() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	left, ends := g.stand.left(g.now())
	if !ends || left <= 0 {
		return look
	}
	return min(left, look)
}

// step does the next thing, and reports whether it succeeded.
func (g *guard) step(ctx context.Context) bool {
	g.mu.Lock()
	l := g.stand.Lease
	next := g.stand.next(g.now())
	var answer uint64
	switch next {
	case fence:
		g.stand.beginFence()
	case unfence:
		answer = g.stand.beginUnfence()
	}
	g.mu.Unlock()
	switch next {
	case fence:
		return g.fence(ctx, l)
	case unfence:
		return g.unfence(ctx, l, answer)
	}
	return true
}

func (g *guard) fence(ctx context.Context, l Lease) bool {
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	silent := g.now() - l.Last
	if err := g.fencer.Fence(ctx); err != nil {
		g.log.Error("environments not fenced", "silent", silent, "fence_after", l.FenceAfter, "error", err)
		return false
	}
	g.mu.Lock()
	g.stand.Fenced = true
	g.mu.Unlock()
	g.log.Warn("environments fenced", "silent", silent, "fence_after", l.FenceAfter)
	return true
}

// unfence ends with the lease: what is late must not thaw what was fenced again.
func (g *guard) unfence(ctx context.Context, l Lease, answer uint64) bool {
	most := fenceTimeout
	if left, ends := l.left(g.now()); ends {
		most = min(most, left)
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if err := g.fencer.Unfence(ctx, l.Stale); err != nil {
		g.log.Error("environments not unfenced", "stale", len(l.Stale), "error", err)
		return false
	}
	g.mu.Lock()
	was := g.stand.held
	g.stand.endUnfence(answer)
	g.mu.Unlock()
	if was {
		g.log.Info("environments unfenced", "stale", len(l.Stale))
	}
	return true
}
