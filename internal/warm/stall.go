package warm

import (
	"context"
	"errors"
	"fmt"

	"hearth/internal/env"
)

const stalledMessage = "the node's disk is short; it goes on when there is room"

// Stall freezes a slot that writes while the node's disk is short, until
// Relieve. It waits for no other operation. Its owner may resume it before, to
// remove files: if it writes on, it is stalled again. A slot that nobody
// claimed is destroyed, one that is being prepared too. One that is being
// claimed is env.ErrState. A journal that cannot be written does not stop it.
func (n *Node) Stall(ctx context.Context, id env.SlotID, why string) error {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	n.mu.Lock()
	s := n.slots[id]
	if s == nil || s.doomed {
		n.mu.Unlock()
		return fmt.Errorf("%w: slot %s", env.ErrNotFound, id)
	}
	claimed, pooled, abort := s.state.Env != nil, n.takeLocked(s), s.abort
	pending := claimed && n.pending[s.state.Env.ID]
	n.mu.Unlock()
	switch {
	case pooled:
		return n.destroy(context.WithoutCancel(ctx), s)
	case claimed && !pending:
		return n.stall(ctx, s, why)
	case abort == nil:
		return fmt.Errorf("%w: slot %s is being claimed", env.ErrState, id)
	}
	abort(fmt.Errorf("%w: it writes while %s", env.ErrExhausted, why))
	return nil
}

// stall freezes one environment. One that does not run is left as it is.
func (n *Node) stall(ctx context.Context, s *slot, why string) error {
	err := n.force(s, func(e *envState) error {
		if e.Phase != env.PhaseRunning {
			return refusal(e)
		}
		e.Phase, e.Message = env.PhaseStalled, why
		return nil
	})
	if err != nil {
		return err
	}
	return n.settle(ctx, s)
}

// Relieve lets the environments go on that Stall has frozen, but for those that
// are held for a move or fenced: they come back as they were. It is cheap if
// there is nothing to do. After an error it can be repeated.
func (n *Node) Relieve(ctx context.Context) error {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	var errs []error
	for _, s := range n.environments(func(s *slot) bool { return s.state.Env.Phase == env.PhaseStalled }) {
		err := n.setPhase(s, env.PhaseRunning, "", env.PhaseStalled)
		if errors.Is(err, env.ErrState) {
			continue // changed meanwhile
		}
		if err == nil {
			err = n.settle(ctx, s)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("let stalled slot %s go on: %w", s.id, err))
		}
	}
	return errors.Join(errs...)
}
