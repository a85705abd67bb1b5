package warm

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/env"
)

// gate counts the operations under way, and lets none in while the agent hands
// its work over. It is guarded by Node.mu.
type gate struct {
	operations int
	shut       bool          // the agent hands over
	idle       chan struct{} // closed when the last operation ends; nil if nobody waits for that
	// hurry ends the operations that a hand-over cannot wait for.
	hurry    context.Context
	hurryNow context.CancelCauseFunc
}

func newGate() gate {
	hurry, now := context.WithCancelCause(context.Background())
	return gate{hurry: hurry, hurryNow: now}
}

// errStopping is what operations meet while the agent stops.
var errStopping = fmt.Errorf("%w: this node's agent is stopping", env.ErrUnavailable)

// errHandsOver is what operations meet while the agent hands over.
var errHandsOver = fmt.Errorf("%w: this node's agent hands over to a newer one: try again in a moment", env.ErrUnavailable)

// begin lets an operation in, unless the agent stops or hands over. The
// returned context also ends if a hand-over cannot wait any longer. end must be
// called.
func (n *Node) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return nil, nil, errStopping
	case n.gate.shut:
		return nil, nil, errHandsOver
	}
	n.gate.operations++
	ctx, done := n.gate.bound(ctx)
	return ctx, func() {
		done()
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.gate.operations--; n.gate.operations == 0 && n.gate.idle != nil {
			close(n.gate.idle)
			n.gate.idle = nil
		}
	}, nil
}

// Quiesce lets no new operation in and starts nothing for the pools, then waits
// for what is under way: patience as it is, and as long again once its contexts
// have ended. On success nothing changes any more but by processes that end;
// Reopen undoes it. If something does not end, nothing has changed and the
// error is env.ErrUnavailable.
func (n *Node) Quiesce(ctx context.Context, patience time.Duration) error {
	n.mu.Lock()
	if n.gate.shut || n.closed {
		n.mu.Unlock()
		return errHandsOver
	}
	idle := make(chan struct{})
	n.gate.shut = true
	n.dissolveLocked(errHandsOver) // nothing is prepared for them any more
	if n.gate.operations == 0 {
		close(idle)
	} else {
		n.gate.idle = idle
	}
	hurryNow := n.gate.hurryNow
	n.mu.Unlock()
	if await(ctx, idle, patience) {
		return nil
	}
	hurryNow(errHandsOver)
	if ctx.Err() == nil && await(ctx, idle, patience) {
		return nil
	}
	n.mu.Lock()
	left := n.gate.operations
	n.mu.Unlock()
	n.Reopen()
	return fmt.Errorf("%w: %d operations do not end; try again later", env.ErrUnavailable, left)
}

// await reports whether done was closed within the time and before ctx ended.
func await(ctx context.Context, done <-chan struct{}, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// Reopen undoes Quiesce.
func (n *Node) Reopen() {
	n.mu.Lock()
	n.gate.shut, n.gate.idle = false, nil
	if n.gate.hurry.Err() != nil {
		operations := n.gate.operations
		n.gate = newGate()
		n.gate.operations = operations
	}
	n.mu.Unlock()
	n.poke()
}

// untilHurry is ctx for work beside operations, which ends early if the agent
// cannot wait for it any longer. The next start completes it. done must be
// called.
func (n *Node) untilHurry(ctx context.Context) (_ context.Context, done func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gate.bound(ctx)
}

// bound is a context that also ends when operations are to hurry. The caller
// holds Node.mu.
func (g *gate) bound(ctx context.Context) (_ context.Context, done func()) {
	hurry := g.hurry
	ctx, cancel := context.WithCancelCause(ctx)
	undo := context.AfterFunc(hurry, func() { cancel(context.Cause(hurry)) })
	return ctx, func() {
		undo()
		cancel(nil)
	}
}

// hurried replaces the error of an operation that a hand-over has ended.
func hurried(ctx context.Context, err error) error {
	if err != nil && context.Cause(ctx) == errHandsOver { //nolint:errorlint // the very error
		return fmt.Errorf("%w: %v", errHandsOver, err)
	}
	return err
}
