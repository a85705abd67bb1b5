package warm

import (
	"context"
	"errors"
	"time"

	"hearth/internal/env"
)

// A ready slot does nothing until it is claimed, so its memory need not be in
// memory. A class may have it swapped out: the slot is taken out of its pool, as
// for a check, the journal says that its memory may be swapped out, the kernel is
// told, and takes back what it can. A claim ends that before it writes the first
// secret: what is in swap comes back as it is used, and nothing more goes there.
// So no secret of an environment is ever in swap, unless its class lets it swap.

// deflateMost bounds a deflation.
const deflateMost = 30 * time.Second

// The moments of hearth_slot_deflation_bytes.
const (
	beforeDeflation = "before"
	afterDeflation  = "after"
)

// deflate swaps a frozen slot's memory out. The error is why it did not end by
// itself, after which the slot is as good as before, or a *lostError.
func (n *Node) deflate(ctx context.Context, c *check) error {
	s := c.slot
	if err := n.change(s, func(st *slotState) { st.Swappable = true }); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, deflateMost)
	defer cancel()
	before, after, err := s.cgroup.Deflate(limited)
	cause := context.Cause(ctx)
	switch {
	case !s.init.Alive():
		return &lostError{deadInit, errors.New("its init ended in the pool")}
	case cause != nil && !setAside(cause): // somebody ended it for what it did
		return &lostError{deadProbe, cause}
	case cause != nil:
		return cause
	case errors.Is(err, env.ErrUnsupported):
		// It may have been allowed before, when the node still could.
		if err := n.inflate(s); err != nil {
			return err
		}
		if err := n.change(s, func(st *slotState) { st.Swappable = false }); err != nil {
			return err
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.rigid = err.Error()
		n.log.Warn("slots are not deflated", "error", err)
		return nil
	case err != nil && !errors.Is(err, context.DeadlineExceeded): // or that was all in the time
		n.log.Warn("deflate slot", "slot", s.id, "error", err)
	}
	if before > 0 {
		n.metrics.deflation.WithLabelValues(s.class.Name, beforeDeflation).Observe(float64(before))
		n.metrics.deflation.WithLabelValues(s.class.Name, afterDeflation).Observe(float64(after))
	}
	n.log.Debug("slot deflated", "slot", s.id, "before", before, "after", after)
	n.mu.Lock()
	defer n.mu.Unlock()
	s.deflated = true // also after an error: once is enough until the next check
	return nil
}

// inflate ends a deflation for a claim.
func (n *Node) inflate(s *slot) error {
	st := n.stateOf(s)
	if !st.Swappable {
		return nil
	}
	return s.cgroup.Inflate(s.resources(st))
}

// rigidLocked says why the slots of a class are not deflated that asks for it. The
// caller holds mu.
func (n *Node) rigidLocked(class *env.Class) string {
	if !class.Warm.Deflate || n.rigid == "" {
		return ""
	}
	return "slots are not deflated: " + n.rigid
}
