package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hearth/internal/env"
)

// idleCheck is how long Run sleeps at most: an action that nobody announced
// (an age reached, a journal grown) is seen then.
const idleCheck = 10 * time.Second

// Orphans are looked for at the start, soon after it, because what an agent that died
// had asked of the runtime may come to be when its successor has looked, and now and
// then.
const (
	sweepSoon  = 15 * time.Second
	sweepEvery = 5 * time.Minute
)

// step does the one most useful thing for the pools. It returns 0 if there may
// be more to do at once, else how long to wait unless something changes.
func (n *Node) step(ctx context.Context) (time.Duration, error) {
	select {
	case <-ctx.Done():
		return idleCheck, nil
	default:
	}
	if n.journal.Size() > journalBound {
		if err := n.compact(); err != nil {
			return idleCheck, fmt.Errorf("compact journal: %w", err)
		}
	}
	now := time.Now()
	if s := n.nextDoomed(now); s != nil {
		return 0, n.destroy(context.WithoutCancel(ctx), s)
	}
	if now.After(n.sweepAt) {
		n.sweepAt = now.Add(sweepEvery)
		if err := errors.Join(n.sweep(ctx, nil), n.pruneArchive()); err != nil {
			return idleCheck, fmt.Errorf("sweep orphans: %w", err)
		}
	}
	n.feel(now)
	act := n.decide(now)
	switch {
	case act.retire != "":
		return 0, n.retire(ctx, act.retire, act.rolls)
	case act.prepare != nil:
		n.refill(ctx, act.prepare, act.rolls)
		return 0, nil
	case act.create != nil:
		n.lay(ctx, act.create)
		return 0, nil
	case act.check != "":
		n.attend(ctx, act.check, n.prove)
		return 0, nil
	case act.deflate != "":
		n.attend(ctx, act.deflate, n.deflate)
		return 0, nil
	case act.until.IsZero():
		return idleCheck, nil
	default:
		return max(min(time.Until(act.until), idleCheck), time.Millisecond), nil
	}
}

// nextDoomed is a slot whose removal failed a while ago.
func (n *Node) nextDoomed(now time.Time) *slot {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.doomed) == 0 || now.Sub(n.doomedAt) < idleCheck {
		return nil
	}
	s := n.doomed[0]
	n.doomed = n.doomed[1:]
	return s
}

// rest is how long after a claim nothing is prepared: its answer is still to be
// encoded and sent, and what it asked for to run. The runtime's forks would take
// milliseconds of that.
const rest = 5 * time.Millisecond

// decide takes the view of the pools and asks next. While a claim is in
// flight, nothing is prepared: a fork of the runtime beside a thaw costs the
// claim up to 10 ms. While its answer is on its way the pools are not even looked
// at: that takes a system call for each slot, under the lock that the answer needs.
// The end of the rest wakes Run.
func (n *Node) decide(now time.Time) action {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.gate.shut:
		return action{}
	case n.restTill.After(now):
		return action{until: n.restTill}
	}
	n.dropDead()
	n.dropUnheldLocked()
	n.dropPoolsLocked()
	n.expireKeys(now)
	views := n.poolViewsLocked()
	if n.memoryLocked() > n.memory {
		id, ok := spareCreated(views)
		if !ok {
			id, ok = spare(views)
		}
		if ok {
			return action{retire: id}
		}
	}
	view := nodeView{
		now: now, room: n.roomLocked(), checking: n.checking != nil, checkAt: n.checkAt, rigid: n.rigid != "",
		pressed: n.pressed, pressedTill: n.preparedAt.Add(pressedPause), waiting: len(n.line)+n.starting > 0,
	}
	switch {
	case n.closed:
		view.hush = "the agent stops"
	case n.claiming > 0:
		view.hush = "claims are under way"
	}
	act := next(views, view)
	for name, p := range n.pools {
		p.waits = act.waits[name]
	}
	return act
}

// poolViewsLocked is what next is to know. The caller holds mu.
func (n *Node) poolViewsLocked() []poolView {
	views := make([]poolView, 0, len(n.pools))
	memory, room, waiting := n.memoryLocked(), n.roomLocked(), n.waitingLocked()
	for name, p := range n.pools {
		class := n.poolClassLocked(name)
		v := poolView{
			class: class, preparing: p.making, failures: p.failures, retryAt: p.retryAt, message: p.message, rolled: p.rolled,
			waiting: waiting[name], laying: p.laying,
		}
		for _, s := range p.created {
			v.created = append(v.created, viewOfCreated(s))
		}
		v.fits = room > 0 && memory+class.Resources.MemoryBytes <= n.memory
		v.stocked = n.createdLocked(class, class.Resources) != nil
		for _, s := range p.ready {
			v.ready = append(v.ready, viewOfReady(s))
		}
		if c := n.checking; c != nil && c.slot.class.Name == name {
			s := viewOfReady(c.slot)
			s.checked = true
			v.ready = append(v.ready, s)
		}
		views = append(views, v)
	}
	return views
}

// dropDead takes ready slots whose init has ended out of their pools and has
// them removed. The caller holds mu.
func (n *Node) dropDead() {
	for _, p := range n.pools {
		alive := p.ready[:0:0]
		for _, s := range p.ready {
			if s.init.Alive() {
				alive = append(alive, s)
				continue
			}
			n.buryLocked(s)
		}
		p.ready = alive
	}
}

// buryLocked counts a slot that died in its pool and has it removed. The caller
// holds mu and has taken it out.
func (n *Node) buryLocked(s *slot) {
	n.metrics.dead.WithLabelValues(s.class.Name, deadInit).Inc()
	n.tell()
	n.background(s, "its init ended in the pool")
}

// expireKeys forgets old idempotency keys, but those of environments that are
// still here. The caller holds mu.
func (n *Node) expireKeys(now time.Time) {
	for range len(n.keyAges) {
		oldest := n.keyAges[0]
		if now.Sub(oldest.at) <= keyAge && len(n.keyAges) <= maxKeys {
			return
		}
		n.keyAges = n.keyAges[1:]
		if k := n.keys[oldest.key]; k != nil && n.envs[k.id] != nil {
			n.keyAges = append(n.keyAges, keyAgeing{oldest.key, now})
		} else {
			delete(n.keys, oldest.key)
		}
	}
}

// roomLocked is how many slots may still be made. The caller holds mu.
func (n *Node) roomLocked() int { return n.cfg.MaxSlots - len(n.slots) - n.reserved }

// refill prepares one slot of the class for its pool. It rolls if the pool has
// as many as it should, but of an older revision.
func (n *Node) refill(ctx context.Context, class *env.Class, rolls bool) {
	n.mu.Lock()
	p := n.pools[class.Name]
	if p == nil || n.gate.shut { // the class went, or a hand-over began, since decide looked
		n.mu.Unlock()
		return
	}
	p.making++
	created := n.takeCreatedLocked(class, class.Resources)
	if created == nil {
		n.reserved++
	}
	start := time.Now()
	n.preparedAt = start
	n.mu.Unlock()
	n.tell()

	s, err := n.prepare(ctx, created, class, nil)

	n.mu.Lock()
	p.making--
	if err == nil {
		p.failures, p.message, p.retryAt = 0, "", time.Time{}
		p.ready = append(p.ready, s)
		if rolls {
			p.rolled = time.Now()
		}
	} else if ctx.Err() == nil {
		p.failures++
		p.retryAt = time.Now().Add(retryDelay(p.failures))
		p.message = err.Error()
	}
	failures := p.failures
	n.changedLocked()
	n.mu.Unlock()

	if err == nil {
		n.metrics.prepare.WithLabelValues(class.Name).Observe(time.Since(start).Seconds())
		n.log.Info("slot ready", "slot", s.id, "class", class.Name, "took", time.Since(start))
	} else if ctx.Err() == nil {
		n.metrics.prepareFailures.WithLabelValues(class.Name).Inc()
		n.log.Error("slot preparation", "class", class.Name, "failures", failures, "error", err)
	}
}

// retire removes a ready slot from its pool. It rolls if that makes room for one
// of the class's new revision.
func (n *Node) retire(ctx context.Context, id env.SlotID, rolls bool) error {
	n.mu.Lock()
	s := n.slots[id]
	taken := s != nil && n.takeLocked(s)
	if taken && rolls {
		n.pools[s.class.Name].rolled = time.Now()
	}
	n.mu.Unlock()
	if !taken {
		return nil // a claim was faster
	}
	n.log.Info("slot retired", "slot", id, "class", s.class.Name)
	return n.destroy(context.WithoutCancel(ctx), s)
}

// takeLocked takes one slot, ready or created, out of its pool. The caller holds mu.
func (n *Node) takeLocked(s *slot) bool {
	p := n.pools[s.class.Name]
	if p == nil {
		return false // its class has gone
	}
	for _, stock := range []*[]*slot{&p.ready, &p.created} {
		if i := slices.Index(*stock, s); i >= 0 {
			*stock = append((*stock)[:i:i], (*stock)[i+1:]...)
			n.tell()
			return true
		}
	}
	return false
}

// background removes a slot beside the caller, who may hold mu.
func (n *Node) background(s *slot, why string) {
	n.log.Warn("slot removed", "slot", s.id, "class", s.class.Name, "reason", why)
	n.discard(s)
}

// discard removes a slot that has served, beside the caller, who may hold mu.
func (n *Node) discard(s *slot) {
	n.work.Add(1)
	go func() {
		defer n.work.Done()
		ctx, done := n.untilHurry(context.Background())
		defer done()
		if err := n.destroy(ctx, s); err != nil {
			n.log.Error("remove slot", "slot", s.id, "error", err)
		}
		n.poke()
	}()
}
