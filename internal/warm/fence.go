package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"hearth/internal/durable"
	"hearth/internal/env"
)

const (
	fencedMessage = "its node has lost the controller; it goes on when the controller answers"
	staleMessage  = "the controller has ended it or placed it elsewhere; it will be released"
)

// fencers is how many environments are frozen at once.
const fencers = 8

// wasFenced reports whether the last agent had fenced the node.
func wasFenced(dir *durable.Dir) (bool, error) {
	_, err := dir.ReadFile(fenceFile, 4096)
	if errors.Is(err, env.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Fence locks and freezes every environment whose class does not say that it
// runs on, and refuses claims, until Unfence; also over a restart. Quarantined
// environments stay so. It waits for no other operation. A state that cannot be
// written stops nothing. After an error it can be repeated.
func (n *Node) Fence(ctx context.Context) error {
	n.fencing.Lock()
	defer n.fencing.Unlock()
	if err := n.state.WriteFile(opFence, fenceFile, []byte(time.Now().UTC().Format(time.RFC3339)+"\n"), 0o600); err != nil {
		n.log.Error("keep that the node is fenced; it holds until the agent's restart", "error", err)
	}
	n.mu.Lock()
	n.fenced = true
	n.dissolveLocked(errFenced)
	n.mu.Unlock()
	return n.fenceAll(ctx)
}

// fenceAll fences what a fenced node may not run. The caller holds fencing, or
// nothing else runs yet.
func (n *Node) fenceAll(ctx context.Context) error {
	targets := n.environments(func(s *slot) bool {
		return !s.class.RunOnPartition && s.state.Env.obedient()
	})
	var group errgroup.Group
	group.SetLimit(fencers)
	errs := make([]error, len(targets))
	for i, s := range targets {
		group.Go(func() error {
			errs[i] = n.fence(ctx, s, fencedMessage)
			return nil
		})
	}
	_ = group.Wait() // errs has them
	if len(targets) > 0 {
		n.log.Warn("environments fenced", "environments", len(targets))
	}
	return errors.Join(errs...)
}

// fence locks and freezes one environment. One that ended or was quarantined
// meanwhile is left as it is.
func (n *Node) fence(ctx context.Context, s *slot, why string) error {
	if err := n.parts.Islands.Lock(s.id); err != nil {
		return fmt.Errorf("fence slot %s: %w", s.id, err)
	}
	err := n.force(s, func(e *envState) error {
		if !e.obedient() {
			return env.ErrState
		}
		e.Before, e.Phase, e.Message = e.Phase, env.PhaseFenced, why
		return nil
	})
	if errors.Is(err, env.ErrState) {
		return nil
	}
	if err := n.settle(ctx, s); err != nil {
		return fmt.Errorf("fence slot %s: %w", s.id, err)
	}
	return nil
}

// Unfence lets the environments go on that Fence has stopped, each in the phase
// that it had, but for the stale ones, which the controller has ended or placed
// elsewhere: those are stopped if they run, and stay so. It is cheap if there
// is nothing to do. After an error it can be repeated.
func (n *Node) Unfence(ctx context.Context, stale []env.ID) error {
	n.fencing.Lock()
	defer n.fencing.Unlock()
	var errs []error
	for _, s := range n.environments(func(s *slot) bool {
		return s.state.Env.Phase == env.PhaseRunning && slices.Contains(stale, s.state.Env.ID)
	}) {
		errs = append(errs, n.fence(ctx, s, staleMessage))
	}
	back := n.environments(func(s *slot) bool {
		return s.state.Env.Phase == env.PhaseFenced && !slices.Contains(stale, s.state.Env.ID)
	})
	for _, s := range back {
		errs = append(errs, n.unfence(ctx, s))
	}
	n.mu.Lock()
	was := n.fenced
	n.fenced = false
	n.mu.Unlock()
	if was {
		n.log.Info("node unfenced", "environments", len(back))
		errs = append(errs, n.state.Remove(opFence, fenceFile))
		n.poke()
	}
	return errors.Join(errs...)
}

// unfence gives one environment its phase back.
func (n *Node) unfence(ctx context.Context, s *slot) error {
	st := n.stateOf(s)
	err := n.reopenTo(ctx, s, st.Env.Held == "", func(e *envState) error {
		if e.Phase != env.PhaseFenced {
			return env.ErrState // ended, or quarantined, meanwhile
		}
		e.Phase, e.Before, e.Message = e.Before, "", ""
		switch {
		case e.Held != "":
			e.Message = heldMessage
		case e.Phase == env.PhaseStalled:
			e.Message = stalledMessage
		case e.idle():
			e.Message = idleMessage
		}
		return nil
	})
	if err != nil && !errors.Is(err, env.ErrState) {
		return fmt.Errorf("unfence environment %s: %w", st.Env.ID, err)
	}
	return nil
}

// reopenTo changes an environment's state, with its island open if it is to be,
// and lets it run as the new phase wants. An edit that refuses changes nothing.
func (n *Node) reopenTo(ctx context.Context, s *slot, open bool, edit func(*envState) error) error {
	if open { // while nothing runs inside yet
		if err := n.parts.Islands.Unlock(s.id, s.class.Egress, n.stateOf(s).Env.Egress); err != nil {
			return err
		}
	}
	if err := n.changeIf(s, func(st *slotState) error { return edit(st.Env) }); err != nil {
		return errors.Join(err, n.parts.Islands.Lock(s.id))
	}
	return n.settle(ctx, s)
}

// force is changeIf for what must not fail for a full disk: then the change is
// made in memory alone.
func (n *Node) force(s *slot, edit func(*envState) error) error {
	refused := false
	err := n.changeIf(s, func(st *slotState) error {
		err := edit(st.Env)
		refused = err != nil
		return err
	})
	if err == nil || refused {
		return err
	}
	n.log.Error("journal phase; it holds until the agent's restart", "slot", s.id, "error", err)
	n.mu.Lock()
	defer n.mu.Unlock()
	e := *s.state.Env
	if err := edit(&e); err != nil {
		return err
	}
	s.state.Env = &e
	return nil
}

// environments lists the slots of answered environments that want chooses. It
// is called under mu and must not block.
func (n *Node) environments(want func(*slot) bool) []*slot {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*slot
	for id, s := range n.envs {
		if s.state.Env != nil && !n.pending[id] && want(s) {
			out = append(out, s)
		}
	}
	return out
}

// Fenced reports whether the node has lost its controller.
func (n *Node) Fenced() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fenced
}

// errFenced refuses a claim of a fenced node.
var errFenced = fmt.Errorf("%w: this node has lost its controller and takes no claims until it answers", env.ErrUnavailable)
