package fleet

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/env"
)

// users of an environment are the callers' calls that are under way at its node.
// A source is held only when there are none: a resume that arrives late would let
// it run beside the target. Fleet.mu guards it.
type users struct {
	count int
	none  chan struct{} // closed when count is 0, if somebody waits for that
}

// use notes a call about the environment that is about to be sent to its node,
// until done. It waits, up to CallTimeout, while the environment moves.
func (f *Fleet) use(ctx context.Context, id env.ID) (done func(), err error) {
	if err := f.awaitMove(ctx, id); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.records[id]; r != nil && r.moving() {
		return nil, movesNow(r) // another move, at once: not worth a second wait
	}
	u := f.users[id]
	if u == nil {
		u = &users{}
		f.users[id] = u
	}
	u.count++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if u.count--; u.count > 0 {
			return
		}
		delete(f.users, id)
		if u.none != nil {
			close(u.none)
		}
	}, nil
}

func movesNow(r *Record) error {
	return fmt.Errorf("%w: environment %s moves from node %s to another one; try again in a moment", env.ErrUnavailable, r.ID(), r.Environment.GetNode())
}

// awaitMove waits until the environment does not move, up to CallTimeout.
func (f *Fleet) awaitMove(ctx context.Context, id env.ID) error {
	f.mu.Lock()
	r := f.records[id]
	if r == nil || !r.moving() {
		f.mu.Unlock()
		return nil
	}
	done := f.census.ended[id]
	if done == nil {
		done = make(chan struct{})
		f.census.ended[id] = done
	}
	f.mu.Unlock()
	t := time.NewTimer(f.cfg.CallTimeout)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return movesNow(r)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitUsers waits until no call is under way at the environment's node. New ones
// wait themselves, since it moves.
func (f *Fleet) awaitUsers(ctx context.Context, id env.ID) error {
	f.mu.Lock()
	u := f.users[id]
	if u == nil {
		f.mu.Unlock()
		return nil
	}
	if u.none == nil {
		u.none = make(chan struct{})
	}
	none := u.none
	f.mu.Unlock()
	select {
	case <-none:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: calls of environment %s are under way", ctx.Err(), id)
	}
}
