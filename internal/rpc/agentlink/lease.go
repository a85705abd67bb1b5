package agentlink

import (
	"time"

	"hearth/internal/env"
)

// Lease is how the node stands with its controller. Times are since boot, on
// the clock that goes on while the machine sleeps (CLOCK_BOOTTIME).
type Lease struct {
	Last       time.Duration // when the last answered report was sent
	FenceAfter time.Duration // after Last; 0 is never
	Fenced     bool          // the environments are held
	Stale      []env.ID      // what the last answer to an inventory said must not go on
}

// left is how long the lease still lasts at now, and whether it ends at all.
func (l Lease) left(now time.Duration) (time.Duration, bool) {
	if l.FenceAfter <= 0 {
		return 0, false
	}
	return l.Last + l.FenceAfter - now, true
}

// over reports whether the lease has ended at now.
func (l Lease) over(now time.Duration) bool {
	left, ends := l.left(now)
	return ends && left <= 0
}

// action is what the guard does next.
type action int

const (
	wait action = iota
	fence
	unfence
)

// stand is the guard's state: the lease, and what was done about it.
type stand struct {
	Lease
	// held: a fence was begun, and no unfence has succeeded since.
	held bool
	// allowed counts the answers that let environments go on; done those of
	// them that were carried out, or came too late.
	allowed, done uint64
}

// next is what the state asks for at now.
func (s *stand) next(now time.Duration) action {
	switch over := s.over(now); {
	case over && !s.Fenced:
		return fence
	case !over && s.allowed != s.done:
		return unfence
	default:
		return wait
	}
}

// renew notes an answered report.
func (s *stand) renew(sent, fenceAfter time.Duration) {
	s.Last, s.FenceAfter = max(s.Last, sent), max(fenceAfter, 0)
}

// allow notes the answer to an inventory. One that comes when the lease is over
// allows nothing: the next report is an inventory again.
func (s *stand) allow(now time.Duration, stale []env.ID) {
	if s.over(now) {
		return
	}
	s.Stale = stale
	s.allowed++
}

// beginFence notes that environments are about to be held: no answer that came
// before lets them go on.
func (s *stand) beginFence() { s.held, s.done = true, s.allowed }

// beginUnfence notes that environments are about to go on.
func (s *stand) beginUnfence() (answer uint64) {
	s.Fenced = false
	return s.allowed
}

// endUnfence notes that those of the answer go on.
func (s *stand) endUnfence(answer uint64) {
	s.done = answer
	s.held = false
}
