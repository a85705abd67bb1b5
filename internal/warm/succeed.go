package warm

import (
	"context"
	"errors"
	"fmt"

	"hearth/internal/env"
)

const upgradeMessage = "it moves to the newest release of its class, and goes on in a moment"

// upgradeState is the last upgrade of an environment, so that a call which is
// repeated is known again.
type upgradeState struct {
	Key  string         `json:"key,omitempty"`
	From env.SnapshotID `json:"from,omitempty"` // its files before
}

func (e *envState) upgradedBy(key string) bool {
	return key != "" && e.Upgrade != nil && e.Upgrade.Key == key
}

// upgradable refuses an environment that cannot be upgraded to a class's newest
// revision, nil if there is none.
func (st slotState) upgradable(newest *env.Class) error {
	e := st.Env
	switch {
	case e.Upgrading && e.Held != "":
		return fmt.Errorf("%w: another upgrade of it is under way; if none is, resume it", env.ErrUnavailable)
	case e.Held != "":
		return fmt.Errorf("%w: it is %s", env.ErrState, heldMessage)
	case !e.obedient():
		return refusal(e)
	case newest == nil:
		return fmt.Errorf("%w: class %s is not on this node any more", env.ErrNotFound, st.Class)
	case newest.Revision == st.Revision:
		return fmt.Errorf("%w: it is of the newest release of class %s already (%s)", env.ErrState, st.Class, st.Revision)
	}
	if _, err := newest.Resources.With(e.Limits); err != nil {
		return fmt.Errorf("its own limits do not fit the new class; resize it first: %w", err)
	}
	return nil
}

// fits refuses to lay what was written over one image on another.
func (k Keep) fits(class *env.Class, from, to string) error {
	if k == KeepAll && from != to {
		return fmt.Errorf("%w: it lies on image %s, the newest release of class %s has %s, on which its changes do not belong; keep its workspace only (--keep workspace): the rest of its disk is then as the new image has it, and its files of before are in a snapshot",
			env.ErrInvalid, from, class.Name, to)
	}
	return nil
}

// stay ends an upgrade that did not come about: the phase is again what it was, but
// for what was decided meanwhile.
func (e *envState) stay() {
	held, upgrading := e.Held, e.Upgrading
	e.Upgrading = false
	if !upgrading || held == "" { // it was quarantined, or resumed
		return
	}
	e.Held, e.HeldAt = "", ""
	switch e.Phase {
	case env.PhaseFenced:
		e.Before = held
	case env.PhasePaused:
		e.Phase, e.Message = held, ""
		switch {
		case held == env.PhaseStalled:
			e.Message = stalledMessage
		case e.idle():
			e.Message = idleMessage
		}
	}
}

// successor is the environment, which is held for its upgrade, in a slot of the
// class's newest revision.
func (e *envState) successor(class *env.Class, key string, from env.SnapshotID) *envState {
	next := *e
	next.stay()
	next.Ports, next.Upgrade = class.Ports, &upgradeState{Key: key, From: from}
	return &next
}

// undisturbed is st without an upgrade that was under way when its agent died.
func (st slotState) undisturbed() slotState {
	if st.Env != nil && st.Env.Upgrading {
		e := *st.Env
		e.stay()
		st.Env = &e
	}
	return st
}

// succeed makes a slot the environment in place of another one, whose record, if
// it stays, says nothing any more. It is the one moment of an upgrade.
func (n *Node) succeed(old, s *slot, key string, from env.SnapshotID) error {
	n.journalMu.Lock()
	defer n.journalMu.Unlock()
	was, next := n.stateOf(old).Env, n.stateOf(s)
	if err := n.maySucceed(was, s); err != nil {
		return err
	}
	next.Env, next.Replaces = was.successor(s.class, key, from), old.id
	if err := n.append(next, false); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := old.state.Env; now.Phase != was.Phase { // changed in memory alone: see force
		next.Env.Phase, next.Env.Message, next.Env.Before = now.Phase, now.Message, now.Before
	}
	gone := *old.state.Env
	gone.Phase, gone.Upgrading = env.PhaseReleased, false
	old.state.Env = &gone
	s.state, s.asks, s.used = next, 0, n.now()
	n.envs[next.Env.ID] = s
	n.tell()
	return nil
}

// maySucceed refuses what came between.
func (n *Node) maySucceed(e *envState, s *slot) error {
	if !s.init.Alive() {
		return errors.New("the init of its new slot has ended")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !e.Upgrading || e.Held == "" || e.Phase != env.PhasePaused:
		return refusal(e)
	case s.condemned != "":
		return fmt.Errorf("%w: its new slot did what a rule forbids: %s", env.ErrDenied, s.condemned)
	}
	return nil
}

// endHold gives an environment back that was held for its upgrade.
func (n *Node) endHold(ctx context.Context, s *slot) error {
	e := n.stateOf(s).Env
	if !e.Upgrading {
		return nil // it was not held yet
	}
	e.stay()
	if !e.shut() { // while nothing runs inside yet
		if err := n.parts.Islands.Unlock(s.id, s.class.Egress, e.Egress); err != nil {
			return err
		}
	}
	// A full disk must not keep it frozen: a restart comes to the same.
	err := n.force(s, func(e *envState) error {
		e.stay()
		return nil
	})
	if n.stateOf(s).Env.shut() {
		err = errors.Join(err, n.parts.Islands.Lock(s.id))
	}
	return errors.Join(err, n.settle(ctx, s))
}

// resettle brings island and freezer to what the environment's state wants.
func (n *Node) resettle(ctx context.Context, s *slot) error {
	if e := n.stateOf(s).Env; !e.shut() {
		if err := n.parts.Islands.Unlock(s.id, s.class.Egress, e.Egress); err != nil {
			return err
		}
	}
	if n.stateOf(s).Env.shut() {
		if err := n.parts.Islands.Lock(s.id); err != nil {
			return err
		}
	}
	return n.settle(ctx, s)
}

// fenceLate fences an environment whose old slot the fence has met, or missed.
func (n *Node) fenceLate(ctx context.Context, s *slot) error {
	n.fencing.Lock()
	defer n.fencing.Unlock()
	if !n.Fenced() || s.class.RunOnPartition || !n.stateOf(s).Env.obedient() {
		return nil
	}
	return n.fence(ctx, s, fencedMessage)
}

// successor is the slot that has taken an environment over from another one; nil
// if none has.
func (n *Node) successor(of env.SlotID) *slot {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.envs {
		if s.state.Replaces == of {
			return s
		}
	}
	return nil
}
