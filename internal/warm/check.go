package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hearth/internal/env"
)

// What a ready slot proved once need not hold for ever: a service may have died
// of a limit, a file system may have filled. So a ready slot whose proof is
// older than its class wants is taken out of its pool, thawed with its island
// still locked, probed as at first, frozen and put back. The journal says so
// before the freezer does: a restart in between freezes the slot again and
// keeps it, with its old proof. One slot is checked at a time, beside the pools'
// work and never before it; a claim that finds no other slot ends the check and
// takes this one, as it would have without the check.

// checkMost bounds the probing of a check: what was ready once is so at once.
const checkMost = 5 * time.Second

// checkPause is how long nothing is checked after a check that did not pass: a
// journal that cannot be written, or a claim that was in need, is no moment for
// the next.
const checkPause = time.Second

// Labels of what was dead in a slot, and of how a check ended.
const (
	deadInit    = "init"
	deadProbe   = "readiness"
	deadFreezer = "freezer"

	deadNamespaces = "namespaces" // of a created slot

	checkPassed      = "passed"
	checkFailed      = "failed"
	checkInterrupted = "interrupted"
)

// errWanted ends a check for a claim.
var errWanted = errors.New("a claim wants the slot")

// check is that of one slot, or its deflation; it is in no pool meanwhile.
type check struct {
	slot *slot
	stop context.CancelCauseFunc
	done chan struct{} // closed when the slot is back in its pool, or lost to it
}

func viewOfReady(s *slot) readySlot {
	st := &s.state
	proven := st.Proven
	if proven.IsZero() { // of an agent that did not note it
		proven = st.Made
	}
	return readySlot{id: s.id, revision: st.Revision, made: st.Made, proven: proven, deflated: s.deflated}
}

// checksLocked reports whether a slot of the class is being checked. The caller
// holds mu.
func (n *Node) checksLocked(class string) bool {
	return n.checking != nil && n.checking.slot.class.Name == class
}

// attend begins to check or to deflate a ready slot, unless it has been claimed
// since. It ends with ctx, early if it must.
func (n *Node) attend(ctx context.Context, id env.SlotID, what func(context.Context, *check) error) {
	ctx, stop := context.WithCancelCause(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.slots[id]
	if s == nil || n.checking != nil || n.closed || n.gate.shut || !n.takeLocked(s) {
		stop(nil)
		return
	}
	ctx, unbound := n.gate.bound(ctx)
	c := &check{slot: s, stop: stop, done: make(chan struct{})}
	n.checking, s.abort = c, stop
	n.work.Add(1)
	go func() {
		defer n.work.Done()
		defer stop(nil)
		defer unbound()
		n.attended(c, what(ctx, c))
	}()
}

// lostError says that a slot is dead, and what of it.
type lostError struct {
	reason string // a label
	cause  error
}

func (e *lostError) Error() string { return e.cause.Error() }
func (e *lostError) Unwrap() error { return e.cause }

// prove thaws the slot, probes it and freezes it again. The error is nil, why it
// did not end by itself, or a *lostError: then the slot must not be handed out.
func (n *Node) prove(ctx context.Context, c *check) error {
	err := n.proveSlot(ctx, c.slot)
	result := checkPassed
	var lost *lostError
	switch {
	case errors.As(err, &lost):
		result = checkFailed
	case err != nil:
		result = checkInterrupted
	}
	n.metrics.checks.WithLabelValues(c.slot.class.Name, result).Inc()
	return err
}

func (n *Node) proveSlot(ctx context.Context, s *slot) error {
	if err := n.change(s, func(st *slotState) { st.Checking = true }); err != nil {
		return err // untouched
	}
	n.mu.Lock()
	s.deflated = false // what it uses comes back
	n.mu.Unlock()
	probed := n.probe(ctx, s)
	cause := context.Cause(ctx)
	aside := setAside(cause)
	switch {
	case !s.init.Alive():
		return &lostError{deadInit, errors.New("its init ended in the pool")}
	case cause != nil && !aside: // somebody ended it for what it did
		return &lostError{deadProbe, cause}
	case probed != nil && !aside:
		return &lostError{deadProbe, fmt.Errorf("it is not ready any more: %w", probed)}
	}
	if err := n.endCheck(context.WithoutCancel(ctx), s, probed == nil); err != nil {
		return &lostError{deadFreezer, err}
	}
	if probed != nil {
		return cause
	}
	return nil
}

// setAside reports whether a check was ended for nothing that its slot did.
func setAside(cause error) bool {
	return slices.Contains([]error{errWanted, errHandsOver, errStopping, context.Canceled}, cause)
}

// probe thaws the slot and asks its init whether it is ready.
func (n *Node) probe(ctx context.Context, s *slot) error {
	limit := s.class.Readiness.Timeout
	if limit <= 0 || limit > checkMost {
		limit = checkMost
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := s.cgroup.Thaw(ctx); err != nil {
		return err
	}
	return s.guest.AwaitReady(ctx)
}

// endCheck freezes a slot that is being checked and journals that it is ready
// again. A journal that cannot be written leaves the proof old: nothing else is
// lost, since the slot is frozen either way.
func (n *Node) endCheck(ctx context.Context, s *slot, proven bool) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.UndoTimeout)
	defer cancel()
	if err := s.cgroup.Freeze(ctx); err != nil {
		return err
	}
	err := n.change(s, func(st *slotState) {
		st.Checking = false
		if proven {
			st.Proven = time.Now()
		}
	})
	if err != nil {
		n.log.Warn("journal end of check", "slot", s.id, "error", err)
	}
	return nil
}

// attended puts the slot back into its pool, or has it removed.
func (n *Node) attended(c *check, err error) {
	s := c.slot
	var lost *lostError
	if errors.As(err, &lost) {
		n.metrics.dead.WithLabelValues(s.class.Name, lost.reason).Inc()
	}
	n.mu.Lock()
	n.checking, s.abort = nil, nil
	if err != nil {
		n.checkAt = time.Now().Add(checkPause)
	}
	switch p := n.pools[s.class.Name]; {
	case lost != nil:
		n.background(s, lost.Error())
	case p == nil:
		n.background(s, "its class is gone")
	default:
		p.ready = append(p.ready, s)
	}
	n.changedLocked()
	n.mu.Unlock()
	close(c.done)
	n.poke()
}

// interrupt ends the check of a slot of the class, if there is one, and waits
// until the slot is back in its pool. The caller holds mu, which is released
// meanwhile. It reports whether there may be a slot now.
func (n *Node) interrupt(ctx context.Context, class string) bool {
	if !n.checksLocked(class) {
		return false
	}
	c := n.checking
	n.mu.Unlock()
	defer n.mu.Lock()
	c.stop(errWanted)
	select {
	case <-c.done:
		return true
	case <-ctx.Done():
		return false
	}
}
