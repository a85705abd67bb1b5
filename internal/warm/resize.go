package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"hearth/internal/env"
)

// A slot has the limits of its class until its environment asks for others, at the
// claim or later. The journal has what was asked for, so that a restart puts it in
// force again. It says of memory never less than the kernel: a rise is written
// before it is in force, a fall after. So a restart in between raises a limit, which
// always can be done, and the node's memory is never promised twice.

// errUnfit is why a claim cannot have a slot whose limits it lowers. Nothing of the
// slot was touched.
var errUnfit = errors.New("the slot uses more memory than the claim lets it have")

// live are the resources that may change while a slot lives.
func live(r env.Resources) env.Resources {
	return env.Resources{
		CPUMillis: r.CPUMillis, CPUBurstMillis: r.CPUBurstMillis, CPUWeight: r.CPUWeight,
		MemoryBytes: r.MemoryBytes, MemoryHighBytes: r.MemoryHighBytes, SwapBytes: r.SwapBytes,
	}
}

// changed is what must be set to make from to; zero leaves the others.
func changed(from, to env.Resources) env.Resources {
	from, to = live(from), live(to)
	if from.CPUMillis == to.CPUMillis && from.CPUBurstMillis == to.CPUBurstMillis {
		to.CPUMillis, to.CPUBurstMillis, to.CPUWeight = 0, 0, 0
	}
	if from.MemoryBytes == to.MemoryBytes && from.MemoryHighBytes == to.MemoryHighBytes {
		to.MemoryBytes, to.MemoryHighBytes, to.SwapBytes = 0, 0, 0
	}
	return to
}

// bootOf is what a slot is made with for a claim: no less than its class says, for
// that is what its services are known to start with.
func bootOf(class *env.Class, l env.Limits) (env.Resources, error) {
	r, err := class.Resources.With(l)
	if err != nil {
		return env.Resources{}, fmt.Errorf("class %s: %w", class.Name, err)
	}
	if r.CPUMillis < class.Resources.CPUMillis {
		r.CPUMillis, r.CPUBurstMillis = class.Resources.CPUMillis, class.Resources.CPUBurstMillis
	}
	if r.MemoryBytes < class.Resources.MemoryBytes {
		r.MemoryBytes, r.MemoryHighBytes = class.Resources.MemoryBytes, class.Resources.MemoryHighBytes
	}
	return r, nil
}

// resources are the slot's by its state.
func (s *slot) resources(st slotState) env.Resources {
	if st.Env == nil {
		return s.class.Resources
	}
	r, err := s.class.Resources.With(st.Env.Limits)
	if err != nil { // cannot be: it was checked when it was asked for
		return s.class.Resources
	}
	return r
}

// memoryLocked is what is promised to the slot. The caller holds Node.mu.
func (s *slot) memoryLocked() int64 { return max(s.resources(s.state).MemoryBytes, s.asks) }

// promiseLocked promises memory to a slot that is among the node's, instead of what
// it has, until keepPromise. Less than what it has is always there. The caller holds
// mu.
func (n *Node) promiseLocked(s *slot, bytes int64) error {
	own := s.memoryLocked()
	if rest := n.memoryLocked() - own; bytes > own && rest+bytes > n.memory {
		return fmt.Errorf("%w: %d of %d bytes of memory are promised to others, and %d are asked for; release environments, ask for less, or raise the node's budget (limits.memory)",
			env.ErrExhausted, rest, n.memory, bytes)
	}
	s.asks = bytes
	return nil
}

// askLocked promises a ready slot what a claim asks for, or puts it back. The
// caller holds mu.
func (n *Node) askLocked(s *slot, c *Claim) error {
	want, err := s.class.Resources.With(c.Limits)
	if err == nil {
		err = n.promiseLocked(s, want.MemoryBytes)
	}
	if err != nil {
		n.returnLocked(s)
		return fmt.Errorf("claim class %s: %w", c.Class, err)
	}
	return nil
}

// keepPromise ends a promise: from now on the slot's state counts.
func (n *Node) keepPromise(s *slot) {
	n.mu.Lock()
	s.asks = 0
	n.mu.Unlock()
	n.poke()
}

// limitsOf are a claim's own limits, as far as they are not in force.
func (n *Node) limitsOf(s *slot) env.Resources {
	return changed(s.boot, s.resources(n.stateOf(s)))
}

// limit puts a claim's own limits in force.
func (s *slot) limit(r env.Resources) error {
	if r == (env.Resources{}) {
		return nil
	}
	err := s.cgroup.SetLimits(r)
	if errors.Is(err, env.ErrState) {
		err = fmt.Errorf("%w; ask for more, or claim another class: %w", errUnfit, err)
	}
	return err
}

// tryOthers gives a claim that cannot have its slot the others of the pool, one
// after the other, and puts back what it cannot have. It returns the slot that the
// claim has in the end: the last one, with the error, if none would do.
func (n *Node) tryOthers(s *slot, c *Claim, err error, claim func(*slot) error) (*slot, error) {
	for tried := map[*slot]bool{}; errors.Is(err, errUnfit); {
		next := n.exchange(s, c, tried)
		if next == nil {
			break
		}
		s, err = next, claim(next)
	}
	return s, err
}

// exchange gives a claim another slot of the same pool, and puts its slot back. Nil
// is none; then the claim keeps what it has.
func (n *Node) exchange(s *slot, c *Claim, tried map[*slot]bool) *slot {
	tried[s] = true
	n.mu.Lock()
	var next *slot
	if p := n.pools[s.class.Name]; p != nil {
		for _, r := range p.ready {
			if !tried[r] && r.init.Alive() {
				next = r
				break
			}
		}
	}
	if next == nil || !n.takeLocked(next) {
		n.mu.Unlock()
		return nil
	}
	if n.askLocked(next, c) != nil {
		n.mu.Unlock()
		return nil
	}
	n.envs[c.ID] = next
	n.mu.Unlock()
	n.putBack(s)
	return next
}

// putBack makes a slot ready again that a claim took and did not touch.
func (n *Node) putBack(s *slot) {
	err := n.change(s, func(st *slotState) { st.Phase, st.Env = env.SlotReady, nil })
	n.mu.Lock()
	defer n.mu.Unlock()
	s.asks = 0
	switch {
	case err != nil:
		n.background(s, "it could not be put back: "+err.Error())
	case s.condemned != "":
		n.background(s, s.condemned)
	default:
		n.returnLocked(s)
		n.changedLocked()
	}
}

// returnLocked puts a slot back to its pool, which is sorted by age. The caller
// holds mu.
func (n *Node) returnLocked(s *slot) {
	s.asks = 0
	p := n.pools[s.class.Name]
	if p == nil {
		n.background(s, "its class is gone")
		return
	}
	at := slices.IndexFunc(p.ready, func(r *slot) bool { return r.state.Made.After(s.state.Made) })
	if at < 0 {
		at = len(p.ready)
	}
	p.ready = slices.Insert(p.ready, at, s)
}

// Resize changes the limits of an environment that runs, is paused or is stalled:
// all of them, or none after an error. Memory below what it uses is env.ErrState,
// more than the node may promise env.ErrExhausted.
func (n *Node) Resize(ctx context.Context, id env.ID, l env.Limits) (Environment, error) {
	if l == (env.Limits{}) {
		return Environment{}, fmt.Errorf("%w: resize environment %s: no limit is named; say cpu, memory or cpu burst", env.ErrInvalid, id)
	}
	if err := l.Check(); err != nil {
		return Environment{}, fmt.Errorf("resize environment %s: %w", id, err)
	}
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
	if err := n.resize(s, l); err != nil {
		return Environment{}, fmt.Errorf("resize environment %s: %w", id, err)
	}
	return n.viewOf(s), nil
}

// resize is Resize for a held slot.
func (n *Node) resize(s *slot, l env.Limits) error {
	st := n.stateOf(s)
	if err := st.Env.resizable(); err != nil {
		return err
	}
	before, from := st.Env.Limits, s.resources(st)
	after, to, err := s.class.Resources.Resized(before, l)
	if err != nil {
		return err
	}
	n.mu.Lock()
	err = n.promiseLocked(s, to.MemoryBytes)
	n.mu.Unlock()
	if err != nil {
		return err
	}
	defer n.keepPromise(s)
	// All of them, not only what changes: so a repetition mends what somebody else
	// has changed.
	inForce := func() error { return s.cgroup.SetLimits(live(to)) }
	journal := func(l env.Limits) error { return n.change(s, func(st *slotState) { st.Env.Limits = l }) }
	if to.MemoryBytes > from.MemoryBytes {
		if err := journal(after); err != nil {
			return err
		}
		if err := inForce(); err != nil {
			return errors.Join(err, n.force(s, func(e *envState) error { e.Limits = before; return nil }))
		}
	} else {
		if err := inForce(); err != nil {
			return err
		}
		if err := journal(after); err != nil {
			return errors.Join(err, s.cgroup.SetLimits(live(from)))
		}
	}
	n.log.Info("environment resized", "environment", st.Env.ID, "cpu_millis", to.CPUMillis, "cpu_burst_millis", to.CPUBurstMillis, "memory_bytes", to.MemoryBytes)
	return nil
}

// resizable refuses what is not its owner's to change, or is on its way to another
// node, which has been told its limits.
func (e *envState) resizable() error {
	switch {
	case !e.obedient():
		return refusal(e)
	case e.Held != "":
		return fmt.Errorf("%w: environment %s is held for a move; resize it once it has moved", env.ErrState, e.ID)
	}
	return nil
}
