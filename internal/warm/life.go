package warm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hearth/internal/env"
)

// Pause freezes an environment until Resume.
func (n *Node) Pause(ctx context.Context, id env.ID) (Environment, error) {
	return n.freezeAs(ctx, id, env.PhasePaused, "")
}

// freezeAs journals the phase, then freezes. Repeating it is no error.
func (n *Node) freezeAs(ctx context.Context, id env.ID, phase env.Phase, message string) (Environment, error) {
	s, done, err := n.hold(id)
	if err != nil {
		return Environment{}, err
	}
	defer done()
	switch now := n.stateOf(s).Env.Phase; {
	case now == phase:
		return n.viewOf(s), nil
	case now == env.PhaseQuarantined, now == env.PhaseFailed:
		return Environment{}, stateError(id, now, "release it")
	}
	if err := n.setPhase(s, phase, message); err != nil {
		return Environment{}, err
	}
	if err := n.freeze(ctx, s); err != nil {
		return Environment{}, err
	}
	return n.viewOf(s), nil
}

func (n *Node) freeze(ctx context.Context, s *slot) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.UndoTimeout)
	defer cancel()
	return s.cgroup.Freeze(ctx)
}

// Resume thaws a paused environment.
func (n *Node) Resume(ctx context.Context, id env.ID) (Environment, error) {
	s, done, err := n.hold(id)
	if err != nil {
		return Environment{}, err
	}
	defer done()
	switch now := n.stateOf(s).Env.Phase; now {
	case env.PhaseRunning:
		return n.viewOf(s), nil
	case env.PhasePaused:
	default:
		return Environment{}, stateError(id, now, "release it")
	}
	if err := n.setPhase(s, env.PhaseRunning, ""); err != nil {
		return Environment{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.UndoTimeout)
	defer cancel()
	if err := s.cgroup.Thaw(ctx); err != nil {
		return Environment{}, err
	}
	return n.viewOf(s), nil
}

// Quarantine locks and freezes a slot that detection found guilty. A slot that
// nobody claimed is destroyed.
func (n *Node) Quarantine(ctx context.Context, id env.SlotID, why string) error {
	n.mu.Lock()
	s := n.slots[id]
	var environment env.ID
	if s != nil && s.state.Env != nil {
		environment = s.state.Env.ID
	}
	pooled := s != nil && environment == "" && n.takeLocked(s)
	n.mu.Unlock()
	switch {
	case s == nil:
		return fmt.Errorf("%w: slot %s", env.ErrNotFound, id)
	case pooled:
		return n.destroy(context.WithoutCancel(ctx), s)
	case environment == "":
		return fmt.Errorf("%w: slot %s is being prepared", env.ErrState, id)
	}
	if err := n.parts.Islands.Lock(id); err != nil {
		return err
	}
	_, err := n.freezeAs(ctx, environment, env.PhaseQuarantined, why)
	return err
}

// Snapshot captures an environment's files. A running one is frozen for the
// moment that the capture needs.
func (n *Node) Snapshot(ctx context.Context, id env.ID) (env.Snapshot, error) {
	s, done, err := n.hold(id)
	if err != nil {
		return env.Snapshot{}, err
	}
	defer done()
	return n.snapshot(ctx, s)
}

// snapshot is Snapshot for a held slot.
func (n *Node) snapshot(ctx context.Context, s *slot) (env.Snapshot, error) {
	st := n.stateOf(s)
	files := Files{Upper: st.Upper, Workspace: n.workspace(s.id), IDs: st.IDs}
	var freeze Freezer = s.cgroup
	if wantsFrozen(st.Env.Phase) {
		freeze = frozenAlready{}
	}
	snap, err := n.parts.Snapshots.Capture(ctx, st.Env.ID, st.Class, st.Image, files, freeze)
	if err != nil {
		return env.Snapshot{}, fmt.Errorf("snapshot environment %s: %w", st.Env.ID, err)
	}
	return snap, nil
}

// frozenAlready is the freezer of an environment that must stay frozen.
type frozenAlready struct{}

func (frozenAlready) Freeze(context.Context) error { return nil }
func (frozenAlready) Thaw(context.Context) error   { return nil }

// Fork captures an environment and claims copies of it.
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
		answer, err := n.Claim(ctx, child)
		if err != nil {
			return snap, answers, fmt.Errorf("child %d of %d: %w", len(answers)+1, len(children), err)
		}
		answers = append(answers, answer)
	}
	return snap, answers, nil
}

// Release removes an environment and every trace of it, taking a snapshot
// first if asked or if its class says so; without that snapshot it is kept. A
// generation other than 0 must be the environment's.
func (n *Node) Release(ctx context.Context, id env.ID, gen env.Generation, snapshot bool) (env.Snapshot, error) {
	start := time.Now()
	s, done, err := n.hold(id)
	if err != nil {
		return env.Snapshot{}, err
	}
	defer done()
	if own := n.stateOf(s).Env.Generation; gen != 0 && gen != own {
		return env.Snapshot{}, fmt.Errorf("%w: environment %s has generation %d here, not %d", env.ErrFenced, id, own, gen)
	}
	var snap env.Snapshot
	if snapshot || s.class.Snapshot.OnRelease {
		if snap, err = n.snapshot(ctx, s); err != nil {
			return env.Snapshot{}, err
		}
	}
	// A full disk must not stop a release: it may be what frees the disk, and
	// a restart finds the init gone and removes the rest.
	if err := n.setPhase(s, env.PhaseReleased, ""); err != nil && !errors.Is(err, env.ErrExhausted) {
		return snap, err
	}
	n.dropEnvironment(id)
	undo := context.WithoutCancel(ctx)
	if err := n.parts.Islands.Lock(s.id); err != nil {
		n.log.Warn("lock island before release", "slot", s.id, "error", err)
	}
	if err := n.destroy(undo, s); err != nil {
		return snap, fmt.Errorf("release environment %s: %w", id, err)
	}
	n.metrics.releases.Observe(time.Since(start).Seconds())
	n.log.Info("environment released", "environment", id, "slot", s.id, "took", time.Since(start))
	return snap, nil
}

// RestorePolicy puts an environment's own egress policy back in force.
func (n *Node) RestorePolicy(id env.ID) error {
	s, done, err := n.hold(id)
	if err != nil {
		return err
	}
	defer done()
	e := n.stateOf(s).Env
	if e.Phase == env.PhaseQuarantined {
		return n.parts.Islands.Lock(s.id)
	}
	return n.parts.Islands.Unlock(s.id, s.class.Egress, e.Egress)
}

// Token ends an environment's earlier tokens and returns a new one.
func (n *Node) Token(id env.ID) (string, error) {
	s, done, err := n.hold(id)
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
// done is called.
func (n *Node) hold(id env.ID) (s *slot, done func(), err error) {
	if s, err = n.find(id); err != nil {
		return nil, nil, err
	}
	s.op.Lock()
	n.mu.Lock()
	same := n.envs[id] == s && !n.closed
	n.mu.Unlock()
	if !same {
		s.op.Unlock()
		return nil, nil, fmt.Errorf("%w: environment %s was released meanwhile", env.ErrNotFound, id)
	}
	if phase := n.stateOf(s).Env.Phase; phase == env.PhaseClaiming {
		s.op.Unlock()
		return nil, nil, stateError(id, phase, "wait for its claim's answer")
	}
	return s, s.op.Unlock, nil
}

func (n *Node) setPhase(s *slot, phase env.Phase, message string) error {
	return n.change(s, func(st *slotState) { st.Env.Phase, st.Env.Message = phase, message })
}

func stateError(id env.ID, phase env.Phase, mend string) error {
	return fmt.Errorf("%w: environment %s is %s; %s", env.ErrState, id, phase, mend)
}

// InitEnded marks an environment as failed whose init has ended, and locks its
// island. Its files stay until it is released. Slots without an environment
// are replaced.
func (n *Node) InitEnded(id env.SlotID) error {
	n.mu.Lock()
	s := n.slots[id]
	claimed := s != nil && s.state.Env != nil
	n.mu.Unlock()
	if !claimed {
		n.poke() // a ready slot: dropDead finds it
		return nil
	}
	s.op.Lock()
	defer s.op.Unlock()
	st := n.stateOf(s)
	if s.init.Alive() || st.Env.Phase == env.PhaseReleased || st.Env.Phase == env.PhaseClaiming {
		return nil
	}
	if err := n.parts.Islands.Lock(id); err != nil {
		n.log.Error("lock island of ended environment", "environment", st.Env.ID, "error", err)
	}
	n.log.Warn("environment failed", "environment", st.Env.ID, "slot", id, "reason", "its init ended")
	return n.setPhase(s, env.PhaseFailed, "its init ended; release it, or restore a snapshot")
}
