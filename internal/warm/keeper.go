package warm

import (
	"context"
	"errors"
	"sync"
	"time"

	"hearth/internal/env"
)

const (
	// lifeTick is how late an end is noticed at most.
	lifeTick = time.Second
	// endingsAtOnce bounds the releases of environments whose time has come.
	endingsAtOnce = 4
	// After a release that failed, it is tried again.
	endingFirst = 10 * time.Second
	endingMost  = 5 * time.Minute
)

// keeper ends and pauses environments by themselves. Its maps belong to the
// goroutine of RunLifetimes, but for what mu guards.
type keeper struct {
	node  *Node
	work  sync.WaitGroup
	quiet map[env.ID]*idleness

	mu     sync.Mutex // guards the rest
	busy   map[env.ID]bool
	failed map[env.ID]failedEnding
	ending int
}

type failedEnding struct {
	wait time.Duration
	next time.Duration // CLOCK_BOOTTIME
}

func newKeeper(n *Node) *keeper {
	return &keeper{node: n, quiet: map[env.ID]*idleness{}, busy: map[env.ID]bool{}, failed: map[env.ID]failedEnding{}}
}

// RunLifetimes releases environments whose time has come, also what came to its
// end while no agent ran, and pauses those that are idle, until ctx ends. Then it
// waits for what is under way.
func (n *Node) RunLifetimes(ctx context.Context) error {
	k := newKeeper(n)
	defer k.work.Wait()
	tick := time.NewTicker(lifeTick)
	defer tick.Stop()
	for {
		k.endDue(ctx)
		k.pauseQuiet(ctx)
		k.wakeUsed(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// endDue begins to release what is due.
func (k *keeper) endDue(ctx context.Context) {
	now, due := k.node.now(), k.node.due()
	k.forgetFailed(due)
	for _, s := range due {
		id := k.node.stateOf(s).Env.ID
		if !k.mayEnd(id, now) {
			continue
		}
		k.work.Go(func() {
			err := k.node.expire(ctx, s)
			k.ended(id, err)
			if err != nil && ctx.Err() == nil && !isEnding(err) {
				k.node.metrics.expiryFailures.Inc()
				k.node.log.Error("release environment whose time has come; it is tried again", "environment", id, "error", err)
			}
		})
	}
}

// forgetFailed drops what is due no more.
func (k *keeper) forgetFailed(due []*slot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.failed) == 0 {
		return
	}
	still := make(map[env.ID]failedEnding, len(k.failed))
	for _, s := range due {
		id := k.node.stateOf(s).Env.ID
		if f, ok := k.failed[id]; ok {
			still[id] = f
		}
	}
	k.failed = still
}

// isEnding reports whether an operation was refused because the agent stops or
// hands over: the next one does it.
func isEnding(err error) bool { return errors.Is(err, errHandsOver) || errors.Is(err, errStopping) }

// mayEnd reserves one of the releases that may be under way.
func (k *keeper) mayEnd(id env.ID, now time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[id] || k.ending >= endingsAtOnce || k.failed[id].next > now {
		return false
	}
	k.busy[id] = true
	k.ending++
	return true
}

func (k *keeper) ended(id env.ID, err error) {
	now := k.node.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.busy, id)
	k.ending--
	if err == nil {
		delete(k.failed, id)
		return
	}
	wait := min(max(2*k.failed[id].wait, endingFirst), endingMost)
	k.failed[id] = failedEnding{wait, now + wait}
}

// pauseQuiet looks at the environments that may be paused when they are idle, as
// often as their classes need, and begins to pause those that are.
func (k *keeper) pauseQuiet(ctx context.Context) {
	watched := k.node.environments(func(s *slot) bool {
		return s.class.Lifetime.PauseWhenIdle > 0 && s.state.Env.Phase == env.PhaseRunning
	})
	seen := make(map[env.ID]bool, len(watched))
	now := k.node.now()
	for _, s := range watched {
		id := k.node.stateOf(s).Env.ID
		seen[id] = true
		if k.isQuiet(s, id, now) {
			k.pause(ctx, s, id)
		}
	}
	for id := range k.quiet {
		if !seen[id] {
			delete(k.quiet, id)
		}
	}
}

// wakeUsed lets go on what sleeps though somebody uses it: a fence came between a
// caller and the pause that made way for him.
func (k *keeper) wakeUsed(ctx context.Context) {
	for _, s := range k.node.environments(func(s *slot) bool { return s.users > 0 && s.state.Env.idle() }) {
		id := k.node.stateOf(s).Env.ID
		k.beside(id, func() {
			if err := k.node.wakeUp(ctx, s); err != nil && !errors.Is(err, env.ErrState) && !isEnding(err) && ctx.Err() == nil {
				k.node.log.Warn("resume idle environment that is used", "environment", id, "error", err)
			}
		})
	}
}

// beside works on one environment beside the others, if nothing else does.
func (k *keeper) beside(id env.ID, do func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[id] {
		return
	}
	k.busy[id] = true
	k.work.Go(func() {
		do()
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.busy, id)
	})
}

// isQuiet looks at one environment if its piece is over.
func (k *keeper) isQuiet(s *slot, id env.ID, now time.Duration) bool {
	window := s.class.Lifetime.PauseWhenIdle
	w := k.quiet[id]
	if w != nil && now-w.last.at < piece(window) {
		return false
	}
	u, err := k.node.usage(s, now)
	switch {
	case err != nil: // it is being removed, most likely: nothing is known of it
		delete(k.quiet, id)
		return false
	case w == nil:
		k.quiet[id] = newIdleness(u, u.used == 0)
		return false
	}
	return w.note(u) >= window
}

// usage asks the kernel what the environment has used.
func (n *Node) usage(s *slot, now time.Duration) (usage, error) {
	u := usage{at: now}
	var err error
	if u.cpu, err = s.cgroup.CPUTime(); err != nil {
		return u, err
	}
	if u.packets, err = n.parts.Islands.Packets(s.id); err != nil {
		return u, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	u.users, u.used = s.users, s.used
	return u, nil
}

// pause pauses one environment beside the others: a freeze may take long.
func (k *keeper) pause(ctx context.Context, s *slot, id env.ID) {
	k.beside(id, func() {
		err := k.node.pauseIdle(ctx, s)
		switch {
		case err == nil:
			k.node.log.Info("environment paused", "environment", id, "slot", s.id, "reason", reasonIdle)
		case !errors.Is(err, errInUse) && !errors.Is(err, env.ErrState) && !isEnding(err) && ctx.Err() == nil:
			k.node.log.Warn("pause idle environment", "environment", id, "error", err)
		}
	})
}
