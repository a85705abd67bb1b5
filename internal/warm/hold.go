package warm

import (
	"context"
	"fmt"

	"hearth/internal/env"
)

const heldMessage = "held for a move; resume it to keep it here"

// SnapshotAndHold captures an environment's files and leaves it frozen, with
// its island locked, because it is about to move: nothing that it does can be
// lost after the capture. Resume undoes it, Release ends it. A failed
// environment, of which nothing runs, is only captured.
func (n *Node) SnapshotAndHold(ctx context.Context, id env.ID) (_ env.Snapshot, err error) {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return env.Snapshot{}, err
	}
	defer end()
	s, done, err := n.hold(ctx, id)
	if err != nil {
		return env.Snapshot{}, err
	}
	defer done()
	st := n.stateOf(s)
	switch {
	case st.Env.Phase == env.PhaseFailed:
		return n.snapshot(ctx, s, freezeWindow{n, s})
	case !st.Env.obedient():
		return env.Snapshot{}, refusal(st.Env)
	}
	window := holdWindow{node: n, slot: s}
	snap, err := n.snapshot(ctx, s, window)
	if err == nil {
		err = window.Freeze(ctx) // whatever the capture needed
	}
	if err == nil {
		err = n.change(s, func(st *slotState) { st.Env.HeldAt = snap.ID })
	}
	if err == nil || st.Env.Held != "" {
		return snap, hurried(ctx, err)
	}
	undo := n.unhold(context.WithoutCancel(ctx), s)
	if undo != nil {
		n.log.Error("undo hold of environment", "environment", id, "error", undo)
	}
	return env.Snapshot{}, hurried(ctx, err)
}

// holdWindow is a freezeWindow that stays shut.
type holdWindow struct {
	node    *Node
	slot    *slot
	upgrade bool // for an upgrade: ended by the agent's death
}

func (w holdWindow) message() string {
	if w.upgrade {
		return upgradeMessage
	}
	return heldMessage
}

// Freeze journals the hold, locks and freezes.
func (w holdWindow) Freeze(ctx context.Context) error {
	err := w.node.changeIf(w.slot, func(st *slotState) error {
		e := st.Env
		switch {
		case !e.obedient():
			return refusal(e) // fenced or quarantined since
		case e.Held == "":
			e.Held, e.Phase = e.Phase, env.PhasePaused
		}
		e.Message, e.Upgrading = w.message(), w.upgrade
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.node.parts.Islands.Lock(w.slot.id); err != nil {
		return err
	}
	return w.node.settle(ctx, w.slot)
}

// Thaw leaves it as it is.
func (w holdWindow) Thaw(context.Context) error { return nil }

// unhold gives a held environment back the phase that it had.
func (n *Node) unhold(ctx context.Context, s *slot) error {
	if n.stateOf(s).Env.Held == "" {
		return nil
	}
	return n.reopenTo(ctx, s, true, func(e *envState) error {
		if e.Phase != env.PhasePaused {
			return refusal(e)
		}
		e.Phase, e.Held, e.HeldAt, e.Message, e.Upgrading = e.Held, "", "", "", false
		switch {
		case e.Phase == env.PhaseStalled:
			e.Message = stalledMessage
		case e.idle():
			e.Message = idleMessage
		}
		return nil
	})
}

// refusal says why an environment cannot be operated on in its phase.
func refusal(e *envState) error {
	mend := "release it"
	if e.Phase == env.PhaseFenced {
		mend = e.Message
	}
	return fmt.Errorf("%w: environment %s is %s; %s", env.ErrState, e.ID, e.Phase, mend)
}
