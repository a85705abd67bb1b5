package warm

import (
	"cmp"
	"slices"
	"time"

	"hearth/internal/env"
)

// poolView is one class's pool at a moment.
type poolView struct {
	class     *env.Class
	ready     []readySlot // of any revision
	preparing int
	fits      bool      // the node has a place and the memory for one more
	failures  int       // preparations that failed in a row
	retryAt   time.Time // no preparation before
}

type readySlot struct {
	id       env.SlotID
	revision string
	made     time.Time
}

// action is the next thing to do for the pools. At most one field is set; none
// means nothing is to be done before until (zero: until something changes).
type action struct {
	prepare *env.Class
	retire  env.SlotID
	until   time.Time
}

// Back-off after failed preparations.
const (
	retryFirst = 500 * time.Millisecond
	retryMost  = 30 * time.Second
)

// retryDelay doubles from retryFirst to retryMost.
func retryDelay(failures int) time.Duration {
	return min(retryFirst<<min(max(failures-1, 0), 10), retryMost)
}

// next decides what to do for the pools: first retire what is too old, of
// another revision or too many, as soon as that leaves no pool worse off, then
// prepare one slot for the pool that lacks the most. room is how many slots
// the node may still prepare.
func next(pools []poolView, room int, now time.Time) action {
	var wait time.Time
	soonest := func(t time.Time) {
		if wait.IsZero() || t.Before(wait) {
			wait = t
		}
	}
	if id, ok := retirable(pools, now, soonest); ok {
		return action{retire: id}
	}
	var best *poolView
	for i := range pools {
		p := &pools[i]
		if p.lack() <= 0 || room <= 0 || !p.fits {
			continue
		}
		if p.retryAt.After(now) {
			soonest(p.retryAt)
			continue
		}
		if best == nil || better(p, best) {
			best = p
		}
	}
	if best != nil {
		return action{prepare: best.class}
	}
	return action{until: wait}
}

// retirable finds a slot to remove: expired ones at any time, surplus, and old
// revisions' slots once they are surplus beside the current ones. Where there
// is no room for a new slot beside the old, an old one makes it, but never the
// last of its pool.
func retirable(pools []poolView, now time.Time, soonest func(time.Time)) (env.SlotID, bool) {
	for i := range pools {
		p := &pools[i]
		want := p.class.Warm.Slots
		slices.SortFunc(p.ready, func(a, b readySlot) int { return a.made.Compare(b.made) })
		current := 0
		for _, s := range p.ready {
			if age := p.class.Warm.MaxAge; age > 0 {
				if dies := s.made.Add(age); !dies.After(now) {
					return s.id, true
				} else {
					soonest(dies)
				}
			}
			if s.revision == p.class.Revision {
				current++
			}
		}
		for _, s := range p.ready {
			switch old := s.revision != p.class.Revision; {
			case old && (current >= want || len(p.ready) > want),
				old && !p.fits && p.preparing == 0 && len(p.ready) > 1,
				!old && current > want:
				return s.id, true
			}
		}
	}
	return "", false
}

// lack is how many slots of the current revision are missing.
func (p *poolView) lack() int {
	have := p.preparing
	for _, s := range p.ready {
		if s.revision == p.class.Revision {
			have++
		}
	}
	return p.class.Warm.Slots - have
}

// better orders pools by what share of their stock is missing, then by name.
func better(a, b *poolView) bool {
	x, y := a.lack()*max(b.class.Warm.Slots, 1), b.lack()*max(a.class.Warm.Slots, 1)
	if x != y {
		return x > y
	}
	return cmp.Less(a.class.Name, b.class.Name)
}

// spare finds a ready slot to do without when the node has promised more memory
// than it has: the oldest of the pool that has most.
func spare(pools []poolView) (env.SlotID, bool) {
	var most *poolView
	for i := range pools {
		p := &pools[i]
		if len(p.ready) > 0 && (most == nil || len(p.ready) > len(most.ready) || len(p.ready) == len(most.ready) && p.class.Name < most.class.Name) {
			most = p
		}
	}
	if most == nil {
		return "", false
	}
	return slices.MinFunc(most.ready, func(a, b readySlot) int { return a.made.Compare(b.made) }).id, true
}
