package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hearth/internal/env"
)

// Pause freezes an environment until Resume. Repeating it freezes again, in
// case the first try did not complete. One that is paused because it did nothing
// does not go on by itself any more.
func (n *Node) Pause(ctx context.Context, id env.ID) (Environment, error) {
	return n.switchTo(ctx, id, env.PhasePaused)
}

// Resume thaws a paused environment. One that is held for a move gets the phase
// back that it had.
func (n *Node) Resume(ctx context.Context, id env.ID) (Environment, error) {
	return n.switchTo(ctx, id, env.PhaseRunning)
}

// switchTo journals running or paused, then settles the freezer.
func (n *Node) switchTo(ctx context.Context, id env.ID, phase env.Phase) (Environment, error) {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return Environment{}, err
	}
	defer end()
	s, done, err := n.hold(ctx, id)
	if err != nil {
		return Environment{}, hurried(ctx, err)
	}
	defer done()
	if phase == env.PhaseRunning && n.stateOf(s).Env.Held != "" {
		err = n.unhold(ctx, s)
	} else if err = n.setPhase(s, phase, "", env.PhaseRunning, env.PhasePaused, env.PhaseStalled); err == nil {
		err = n.settle(ctx, s)
	}
	if err != nil {
		return Environment{}, hurried(ctx, err)
	}
	return n.viewOf(s), nil
}

// settle brings the freezer to what the environment's phase wants. Whoever
// changes the phase settles it afterwards, so the last change wins.
func (n *Node) settle(ctx context.Context, s *slot) error {
	s.settling.Lock()
	defer s.settling.Unlock()
	ctx, cancel := context.WithTimeout(ctx, n.cfg.UndoTimeout)
	defer cancel()
	if wantsFrozen(n.stateOf(s).Env.Phase) {
		return s.cgroup.Freeze(ctx)
	}
	return s.cgroup.Thaw(ctx)
}

// Quarantine locks and freezes a slot that detection found guilty. It waits for
// no other operation: a snapshot under way leaves the environment frozen, a
// claim under way is followed by it. A slot that nobody claimed is destroyed.
// A journal that cannot be written does not stop it.
func (n *Node) Quarantine(ctx context.Context, id env.SlotID, why string) error {
	err := n.quarantineSlot(ctx, id, why)
	if err != nil {
		if next := n.successor(id); next != nil { // it was upgraded meanwhile
			return n.quarantineSlot(ctx, next.id, why)
		}
	}
	return err
}

func (n *Node) quarantineSlot(ctx context.Context, id env.SlotID, why string) error {
	n.mu.Lock()
	s := n.slots[id]
	if s == nil || s.doomed {
		n.mu.Unlock()
		return fmt.Errorf("%w: slot %s", env.ErrNotFound, id)
	}
	claimed := s.state.Env != nil
	if claimed && n.pending[s.state.Env.ID] {
		s.condemned = why
	}
	checked := n.checking != nil && n.checking.slot == s
	if checked {
		n.checking.stop(fmt.Errorf("%w: %s", env.ErrDenied, why)) // cancels only: calls nothing back
	}
	pending, pooled := s.condemned != "" && claimed && n.pending[s.state.Env.ID], !claimed && n.takeLocked(s)
	abort := n.condemnNextLocked(s, why)
	n.mu.Unlock()
	switch {
	case abort != nil:
		abort(fmt.Errorf("%w: its new slot did what a rule forbids: %s", env.ErrDenied, why))
		return n.parts.Islands.Lock(id)
	case pooled:
		return n.destroy(context.WithoutCancel(ctx), s)
	case checked: // which ends with its removal
		return nil
	case !claimed:
		return fmt.Errorf("%w: slot %s is being prepared", env.ErrState, id)
	case pending:
		return n.parts.Islands.Lock(id)
	}
	return errors.Join(n.parts.Islands.Lock(id), n.quarantine(ctx, s, why))
}

// condemnNextLocked ends the upgrade into a slot that is not the environment yet;
// nil is for any other. The caller holds mu.
func (n *Node) condemnNextLocked(s *slot, why string) context.CancelCauseFunc {
	if !s.succeeds || s.state.Env != nil && n.envs[s.state.Env.ID] == s {
		return nil
	}
	s.condemned = why
	return s.abort
}

// quarantine sets the phase, in memory alone if it must, and freezes.
func (n *Node) quarantine(ctx context.Context, s *slot, why string) error {
	if n.stateOf(s).Env.Phase != env.PhaseQuarantined {
		err := n.force(s, func(e *envState) error {
			if !slices.Contains(living, e.Phase) {
				return refusal(e)
			}
			e.Phase, e.Message, e.Before, e.Held, e.HeldAt, e.Idle = env.PhaseQuarantined, why, "", "", "", false
			return nil
		})
		if err != nil {
			return err
		}
	}
	return n.settle(ctx, s)
}

// Snapshot captures an environment's files. A running one is frozen for the
// moment that the capture needs. It is refused while the node's disk is short.
func (n *Node) Snapshot(ctx context.Context, id env.ID) (env.Snapshot, error) {
	if err := n.parts.Disk.Admit(0); err != nil {
		return env.Snapshot{}, fmt.Errorf("snapshot environment %s: %w", id, err)
	}
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return env.Snapshot{}, err
	}
	defer end()
	s, done, err := n.hold(ctx, id)
	if err != nil {
		return env.Snapshot{}, hurried(ctx, err)
	}
	defer done()
	snap, err := n.snapshot(ctx, s, freezeWindow{n, s})
	return snap, hurried(ctx, err)
}

// snapshot is Snapshot for a held slot.
func (n *Node) snapshot(ctx context.Context, s *slot, window Freezer) (env.Snapshot, error) {
	st := n.stateOf(s)
	files := Files{Upper: st.Upper, Workspace: n.workspace(s.id), IDs: st.IDs}
	snap, err := n.parts.Snapshots.Capture(ctx, st.Env.ID, st.Env.Tenant, st.Class, st.Image, files, window)
	if err != nil {
		return env.Snapshot{}, fmt.Errorf("snapshot environment %s: %w", st.Env.ID, err)
	}
	return snap, nil
}

// freezeWindow freezes an environment for a capture. Its end leaves frozen what
// must be: a paused environment, or one quarantined meanwhile.
type freezeWindow struct {
	node *Node
	slot *slot
}

func (w freezeWindow) Freeze(ctx context.Context) error {
	w.slot.settling.Lock()
	defer w.slot.settling.Unlock()
	return w.slot.cgroup.Freeze(ctx)
}

func (w freezeWindow) Thaw(ctx context.Context) error { return w.node.settle(ctx, w.slot) }

// Fork captures an environment and claims copies of it. Either all children
// come or none stays.
func (n *Node) Fork(ctx context.Context, id env.ID, children []Claim) (env.Snapshot, []Answer, error) {
	s, err := n.find(id)
	if err != nil {
		return env.Snapshot{}, nil, err
	}
	snap, err := n.Snapshot(ctx, id)
	if err != nil {
		return env.Snapshot{}, nil, err
	}
	st := n.stateOf(s)
	var answers []Answer
	for _, child := range children {
		child.Class, child.Tenant, child.Snapshot = st.Class, st.Env.Tenant, snap.ID
		if child.Limits == (env.Limits{}) {
			child.Limits = st.Env.Limits
		}
		if child.Mounts == nil {
			child.Mounts = st.Env.Mounts
		}
		if child.TimeToLive == 0 {
			child.TimeToLive = st.Env.TimeToLive
		}
		answer, err := n.Claim(ctx, child)
		if err != nil {
			err = fmt.Errorf("child %d of %d: %w", len(answers)+1, len(children), err)
			return snap, nil, errors.Join(err, n.releaseAll(context.WithoutCancel(ctx), answers))
		}
		answers = append(answers, answer)
	}
	return snap, answers, nil
}

// releaseAll takes back claims that have been answered to nobody.
func (n *Node) releaseAll(ctx context.Context, answers []Answer) error {
	var errs []error
	for _, a := range answers {
		_, err := n.release(ctx, a.Environment.ID, 0, keepNothing)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Release removes an environment and every trace of it, taking a snapshot
// first if asked or if its class says so; without that snapshot it is kept. A
// caller that names a generation releases no newer one.
func (n *Node) Release(ctx context.Context, id env.ID, gen env.Generation, snapshot bool) (env.Snapshot, error) {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return env.Snapshot{}, err
	}
	defer end()
	keep := keepAsClassSays
	if snapshot {
		keep = keepSnapshot
	}
	snap, err := n.release(ctx, id, gen, keep)
	return snap, hurried(ctx, err)
}

// keep says whether a release takes a snapshot first.
type keep int

const (
	keepAsClassSays keep = iota
	keepSnapshot
	keepNothing
)

func (n *Node) release(ctx context.Context, id env.ID, gen env.Generation, keep keep) (env.Snapshot, error) {
	s, done, err := n.hold(ctx, id)
	if err != nil {
		return env.Snapshot{}, err
	}
	defer done()
	if own := n.stateOf(s).Env.Generation; gen != 0 && gen < own {
		return env.Snapshot{}, fmt.Errorf("%w: environment %s has generation %d here, newer than %d", env.ErrFenced, id, own, gen)
	}
	return n.releaseHeld(ctx, s, keep, func(e *envState, _ env.SnapshotID) { e.Message = "" })
}

// releaseHeld is release for a held slot. Note says in the record why, and gets
// the snapshot that was taken, if one was.
func (n *Node) releaseHeld(ctx context.Context, s *slot, keep keep, note func(*envState, env.SnapshotID)) (snap env.Snapshot, err error) {
	start, id := time.Now(), n.stateOf(s).Env.ID
	if keep == keepSnapshot || keep == keepAsClassSays && s.class.Snapshot.OnRelease {
		if snap, err = n.lastSnapshot(ctx, s); err != nil {
			return env.Snapshot{}, err
		}
	}
	// A full disk must not stop a release: it may be what frees the disk, and
	// a restart finds the init gone and removes the rest.
	end := func(e *envState) error {
		if !slices.Contains(append(living, env.PhaseFailed, env.PhaseReleased), e.Phase) {
			return refusal(e)
		}
		e.Phase, e.Idle = env.PhaseReleased, false
		note(e, snap.ID)
		return nil
	}
	err = n.changeIf(s, func(st *slotState) error { return end(st.Env) })
	if errors.Is(err, env.ErrExhausted) {
		err = n.force(s, end)
	}
	if err != nil {
		return snap, err
	}
	n.dropEnvironment(id)
	undo := context.WithoutCancel(ctx)
	if err := n.destroy(undo, s); err != nil {
		return snap, fmt.Errorf("release environment %s: %w", id, err)
	}
	n.metrics.releases.Observe(time.Since(start).Seconds())
	n.log.Info("environment released", "environment", id, "slot", s.id, "took", time.Since(start))
	return snap, nil
}

// lastSnapshot is that of a release. What was captured and held since is not
// captured again: if it has moved, its lineage goes on elsewhere, and a second
// snapshot of the same number would be another one.
func (n *Node) lastSnapshot(ctx context.Context, s *slot) (env.Snapshot, error) {
	if e := n.stateOf(s).Env; e.Held != "" && e.HeldAt != "" {
		return n.parts.Snapshots.Get(e.HeldAt)
	}
	return n.snapshot(ctx, s, freezeWindow{n, s})
}

// RestorePolicy puts an environment's own egress policy back in force.
func (n *Node) RestorePolicy(ctx context.Context, id env.ID) error {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	s, done, err := n.hold(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	e := n.stateOf(s).Env
	if e.shut() {
		return n.parts.Islands.Lock(s.id)
	}
	return n.parts.Islands.Unlock(s.id, s.class.Egress, e.Egress)
}

// Token ends an environment's earlier tokens and returns a new one.
func (n *Node) Token(ctx context.Context, id env.ID) (string, error) {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	s, done, err := n.hold(ctx, id)
	if err != nil {
		return "", err
	}
	defer done()
	if err := n.change(s, func(st *slotState) { st.Env.Epoch++ }); err != nil {
		return "", err
	}
	if err := n.journal.Sync(opJournal); err != nil { // an ended token must stay ended
		return "", err
	}
	e := n.stateOf(s).Env
	return n.tokens.of(e.ID, e.Generation, e.Epoch), nil
}

// Access is what a bearer of a valid token reaches.
type Access struct {
	Environment Environment
	Guest       Guest
}

// Authorize checks an environment's token. A wrong token and an unknown
// environment are the same error.
func (n *Node) Authorize(id env.ID, token string) (Access, error) {
	s, err := n.find(id)
	if err == nil {
		st := n.stateOf(s)
		if n.tokens.valid(token, id, st.Env.Generation, st.Env.Epoch) {
			return Access{Environment: n.viewOf(s), Guest: s.guest}, nil
		}
	}
	return Access{}, fmt.Errorf("%w: no environment with this id and token on this node", env.ErrDenied)
}

// hold finds an environment and keeps other operations from changing it until
// done is called. It waits for those no longer than ctx.
func (n *Node) hold(ctx context.Context, id env.ID) (s *slot, done func(), err error) {
	for err == nil {
		if s, err = n.find(id); err != nil {
			return nil, nil, err
		}
		select {
		case s.op <- struct{}{}:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w: environment %s is busy with another operation: %w", env.ErrUnavailable, id, ctx.Err())
		}
		n.mu.Lock()
		now, closed := n.envs[id], n.closed
		n.mu.Unlock()
		switch {
		case closed:
			err = errStopping
		case now == nil:
			err = fmt.Errorf("%w: environment %s was released meanwhile", env.ErrNotFound, id)
		case now == s:
			return s, func() { <-s.op }, nil
		} // or it has another slot: it was upgraded meanwhile
		<-s.op
	}
	return nil, nil, err
}

// setPhase journals a phase if the environment is in it already or in one of
// from; otherwise it is env.ErrState. A repetition writes nothing.
func (n *Node) setPhase(s *slot, phase env.Phase, message string, from ...env.Phase) error {
	if e := n.stateOf(s).Env; e.Phase == phase && !e.Idle {
		return nil
	}
	return n.changeIf(s, func(st *slotState) error {
		if !slices.Contains(from, st.Env.Phase) {
			return refusal(st.Env)
		}
		st.Env.Phase, st.Env.Message, st.Env.Idle = phase, message, false
		return nil
	})
}

// living are the phases of environments that have processes.
var living = []env.Phase{env.PhaseRunning, env.PhasePaused, env.PhaseStalled, env.PhaseQuarantined, env.PhaseFenced}

// InitEnded marks an environment as failed whose init has ended, and locks its
// island. Its files stay until it is released. Slots without an environment
// are replaced. It waits for no other operation.
func (n *Node) InitEnded(id env.SlotID) {
	n.mu.Lock()
	s := n.slots[id]
	known := s != nil && !s.doomed
	claimed := known && s.state.Env != nil
	pending := claimed && n.pending[s.state.Env.ID] // its claim looks itself
	n.mu.Unlock()
	switch {
	case claimed && !pending:
		n.initEnded(s)
	case known:
		n.poke() // a ready slot: dropDead finds it
	}
}

func (n *Node) initEnded(s *slot) {
	st := n.stateOf(s)
	if s.init == nil || s.init.Alive() || !st.Env.Phase.Live() {
		return
	}
	if err := n.parts.Islands.Lock(s.id); err != nil {
		n.log.Error("lock island of ended environment", "environment", st.Env.ID, "error", err)
	}
	n.log.Warn("environment failed", "environment", st.Env.ID, "slot", s.id, "reason", initEndedMessage)
	if err := n.setPhase(s, env.PhaseFailed, initEndedMessage, living...); err != nil {
		n.log.Error("journal ended environment", "environment", st.Env.ID, "error", err)
	}
}

const initEndedMessage = "its init ended; release it, or restore a snapshot"
