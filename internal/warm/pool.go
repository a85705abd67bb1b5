package warm

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"hearth/internal/env"
)

// poolView is one class's pool at a moment.
type poolView struct {
	class     *env.Class
	ready     []readySlot // of any revision
	created   []createdSlot
	preparing int
	laying    int       // created slots that are being made
	fits      bool      // the node has a place and the memory for one more
	stocked   bool      // a created slot has them already
	failures  int       // preparations that failed in a row
	retryAt   time.Time // no preparation before
	message   string    // why the last preparation failed
	rolled    time.Time // the last replacement because the class changed; zero for none
	waiting   int       // claims that stand in line
}

type readySlot struct {
	id       env.SlotID
	revision string
	made     time.Time
	proven   time.Time // when its readiness was last seen
	checked  bool      // it is being checked: neither to retire nor to check
	deflated bool
}

// nodeView is what concerns all pools.
type nodeView struct {
	now      time.Time
	room     int       // slots that may still be made
	hush     string    // why nothing begins at the moment; "" if it may
	checking bool      // a slot is being checked
	checkAt  time.Time // no check before
	rigid    bool      // slots cannot be deflated here
	waiting  bool      // claims stand in line, or have slots made
	// pressed says why the node has no power to spare, "" if it has. Until
	// pressedTill only a pool without a ready slot is refilled.
	pressed     string
	pressedTill time.Time
}

// action is the next thing to do for the pools. At most one of prepare, create,
// retire, check and deflate is set; none means nothing is to be done before until
// (zero: until something changes).
type action struct {
	prepare *env.Class
	create  *env.Class
	retire  env.SlotID
	check   env.SlotID
	deflate env.SlotID
	rolls   bool // prepare or retire because the class changed
	until   time.Time
	waits   map[string]string // why each pool that lacks slots is not refilled, by class
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
// prepare one slot for the pool that lacks the most, then make a created one, then,
// with nothing else to do, check the ready slot whose readiness was seen the longest
// ago, or deflate one.
func next(pools []poolView, n nodeView) action {
	var act action
	if id, ok := superfluous(pools, n.now, act.wait); ok {
		return action{retire: id}
	}
	if id, rolls, ok := retirable(pools, n.now, act.wait); ok {
		return action{retire: id, rolls: rolls}
	}
	var best *poolView
	for i := range pools {
		p := &pools[i]
		if p.lack(n.now) <= 0 {
			continue
		}
		if why, until := p.held(n); why != "" {
			act.wait(until)
			act.waiting(p.class.Name, why)
			continue
		}
		if best == nil || better(p, best, n.now) {
			best = p
		}
	}
	if best != nil {
		act.prepare, act.rolls = best.class, best.rolling()
		act.waiting(best.class.Name, "")
		return act
	}
	if act.create = barest(pools, n, act.wait); act.create != nil {
		return act
	}
	if act.check = due(pools, n, act.wait); act.check == "" {
		act.deflate = inflated(pools, n, act.wait)
	}
	return act
}

// wait makes until the sooner of itself and t, unless t is zero.
func (a *action) wait(t time.Time) {
	if !t.IsZero() && (a.until.IsZero() || t.Before(a.until)) {
		a.until = t
	}
}

func (a *action) waiting(class, why string) {
	if a.waits == nil {
		a.waits = map[string]string{}
	}
	a.waits[class] = why
}

// held says why nothing is prepared for a pool that lacks slots, "" if
// something may be, and until when; zero is until something changes.
func (p *poolView) held(n nodeView) (why string, until time.Time) {
	switch {
	case p.rolling() && p.rollAt().After(n.now):
		return fmt.Sprintf("the class changed; the next slot is replaced at %s (warm.rollEvery)", p.rollAt().UTC().Format(time.TimeOnly)), p.rollAt()
	case n.room <= 0 && !p.stocked:
		return "every slot of the node is in use (limits.slots)", time.Time{}
	case !p.fits && !p.stocked:
		return "the node's memory is promised to others (limits.memory)", time.Time{}
	case p.retryAt.After(n.now):
		return cmp.Or(p.message, "the last preparation failed"), p.retryAt
	case n.pressed != "" && len(p.ready) > 0 && n.pressedTill.After(n.now):
		return n.pressed, n.pressedTill
	}
	return n.hush, time.Time{}
}

// full reports whether the pool has as many slots as it should, if one does not
// look at their revision: what it lacks are replacements.
func (p *poolView) full() bool { return len(p.ready)+p.preparing >= p.class.Warm.Slots }

// rolling reports whether what the pool lacks replaces slots of another revision.
func (p *poolView) rolling() bool {
	return p.full() && slices.ContainsFunc(p.ready, func(s readySlot) bool { return s.revision != p.class.Revision })
}

// fades is when a slot counts as missing because of its age, so that its
// replacement is there before it ends; ends is when it may not be handed out any
// more. Both are zero for never.
func (p *poolView) fades(s readySlot) (fades, ends time.Time) {
	age := p.class.Warm.MaxAge
	if age <= 0 {
		return time.Time{}, time.Time{}
	}
	return s.made.Add(age / 10 * 9), s.made.Add(age)
}

// lasts reports whether a slot is of the current revision and young enough.
func (p *poolView) lasts(s readySlot, now time.Time) bool {
	fades, _ := p.fades(s)
	return s.revision == p.class.Revision && (fades.IsZero() || fades.After(now))
}

// rollAt is when the next slot may be replaced because the class changed.
func (p *poolView) rollAt() time.Time {
	if p.rolled.IsZero() {
		return time.Time{}
	}
	return p.rolled.Add(p.class.Warm.RollEvery)
}

// retirable finds a slot to remove: ended ones at any time, surplus, and those of
// old revisions or soon to end once they are surplus beside the others. Where
// there is no room for a new slot beside the old, an old one makes it, at the rate
// that its class allows, but never the last of its pool.
func retirable(pools []poolView, now time.Time, wait func(time.Time)) (id env.SlotID, rolls, ok bool) {
	for i := range pools {
		p := &pools[i]
		want := p.class.Warm.Slots
		slices.SortFunc(p.ready, func(a, b readySlot) int { return a.made.Compare(b.made) })
		current := 0
		for _, s := range p.ready {
			switch fades, ends := p.fades(s); {
			case fades.After(now):
				wait(fades)
			case ends.After(now):
				wait(ends)
			case !ends.IsZero() && !s.checked:
				return s.id, false, true
			}
			if p.lasts(s, now) {
				current++
			}
		}
		cramped := !p.fits && !p.stocked && p.preparing == 0 && len(p.ready) > 1
		for _, s := range p.ready {
			old, revised := !p.lasts(s, now), s.revision != p.class.Revision
			switch {
			case s.checked:
			case old && (current >= want || len(p.ready) > want), !old && current > want:
				return s.id, false, true
			case old && cramped && revised && p.rollAt().After(now):
				wait(p.rollAt())
			case old && cramped:
				return s.id, revised, true
			}
		}
	}
	return "", false, false
}

// due finds the ready slot to check: the one whose readiness was seen the
// longest ago, and longer than its class wants. One that seems to have been
// seen in the future, since the clock was set back, is due.
func due(pools []poolView, n nodeView, wait func(time.Time)) env.SlotID {
	var oldest *readySlot
	for i := range pools {
		every := pools[i].class.Warm.CheckEvery
		if every <= 0 {
			continue
		}
		for j := range pools[i].ready {
			s := &pools[i].ready[j]
			if s.checked {
				continue
			}
			if at := s.proven.Add(every); at.After(n.now) && !s.proven.After(n.now) {
				wait(at)
			} else if oldest == nil || s.proven.Before(oldest.proven) {
				oldest = s
			}
		}
	}
	if oldest == nil || !n.idle(wait) {
		return ""
	}
	return oldest.id
}

// inflated finds a ready slot to deflate.
func inflated(pools []poolView, n nodeView, wait func(time.Time)) env.SlotID {
	if n.rigid {
		return ""
	}
	for i := range pools {
		if !pools[i].class.Warm.Deflate {
			continue
		}
		for _, s := range pools[i].ready {
			if !s.checked && !s.deflated {
				if !n.idle(wait) {
					return ""
				}
				return s.id
			}
		}
	}
	return ""
}

// idle reports whether ready slots may be attended to.
func (n nodeView) idle(wait func(time.Time)) bool {
	switch {
	case n.checking, n.waiting, n.hush != "": // whose end wakes the pools
		return false
	case n.checkAt.After(n.now):
		wait(n.checkAt)
		return false
	case n.pressed != "":
		wait(n.now.Add(pressedPause))
		return false
	}
	return true
}

// lack is how many slots are missing that are of the current revision and last.
func (p *poolView) lack(now time.Time) int {
	have := p.preparing
	for _, s := range p.ready {
		if p.lasts(s, now) {
			have++
		}
	}
	return p.class.Warm.Slots - have
}

// better orders pools by whether claims wait, then by what share of their stock is
// missing, then by name.
func better(a, b *poolView, now time.Time) bool {
	if (a.waiting > 0) != (b.waiting > 0) {
		return a.waiting > 0
	}
	x, y := a.lack(now)*max(b.class.Warm.Slots, 1), b.lack(now)*max(a.class.Warm.Slots, 1)
	if x != y {
		return x > y
	}
	return cmp.Less(a.class.Name, b.class.Name)
}

// spare finds a ready slot to do without when the node has promised more memory
// than it has: the oldest of the pool that has most.
func spare(pools []poolView) (env.SlotID, bool) {
	var most []readySlot
	name := ""
	for i := range pools {
		p := &pools[i]
		idle := slices.DeleteFunc(slices.Clone(p.ready), func(s readySlot) bool { return s.checked })
		if len(idle) > 0 && (most == nil || len(idle) > len(most) || len(idle) == len(most) && p.class.Name < name) {
			most, name = idle, p.class.Name
		}
	}
	if most == nil {
		return "", false
	}
	return slices.MinFunc(most, func(a, b readySlot) int { return a.made.Compare(b.made) }).id, true
}
