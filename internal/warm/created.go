package warm

import (
	"context"
	"slices"
	"time"

	"hearth/internal/env"
)

// A created slot has all that a slot needs before its container: ids, root file
// system, workspace, island, cgroup, sensors. Nothing is mounted, nothing of the image
// has run, and it takes no memory but that of the process that holds its namespaces.
// So it may still be filled: a restore takes one, and so do a cold claim and the
// refill of its pool, which is spared that much of the way.
//
// Its namespaces end with the agent, however that ends. So no restart takes one
// back: those that the journal knows are removed, and others made.

// createdSlot is a created slot at a moment.
type createdSlot struct {
	id       env.SlotID
	revision string
	made     time.Time
}

func viewOfCreated(s *slot) createdSlot {
	return createdSlot{s.id, s.state.Revision, s.state.Made}
}

// lastsCreated reports whether a created slot may still be used.
func (p *poolView) lastsCreated(s createdSlot, now time.Time) bool {
	age := p.class.Warm.MaxAge
	return s.revision == p.class.Revision && (age <= 0 || s.made.Add(age).After(now))
}

// cramped reports whether the pool lacks a ready slot for which there is no place.
func (p *poolView) cramped(now time.Time) bool {
	return p.lack(now) > 0 && !p.fits && !p.stocked && !p.rolling()
}

// superfluous finds a created slot to remove: one that cannot be used any more, or
// is too many, or one that has the place of a ready slot that a pool lacks.
func superfluous(pools []poolView, now time.Time, wait func(time.Time)) (env.SlotID, bool) {
	cramped := false
	for i := range pools {
		p := &pools[i]
		for _, s := range p.created {
			if !p.lastsCreated(s, now) {
				return s.id, true
			}
			if age := p.class.Warm.MaxAge; age > 0 {
				wait(s.made.Add(age))
			}
		}
		if len(p.created) > p.class.Warm.Created {
			return p.created[0].id, true
		}
		cramped = cramped || p.cramped(now) && !p.retryAt.After(now)
	}
	if cramped {
		return spareCreated(pools)
	}
	return "", false
}

// spareCreated finds a created slot to do without: the oldest of the pool that has
// most.
func spareCreated(pools []poolView) (env.SlotID, bool) {
	var most *poolView
	for i := range pools {
		p := &pools[i]
		if len(p.created) > 0 && (most == nil || len(p.created) > len(most.created) || len(p.created) == len(most.created) && p.class.Name < most.class.Name) {
			most = p
		}
	}
	if most == nil {
		return "", false
	}
	return most.created[0].id, true
}

// barest finds the pool to make a created slot for, out of the places that are left
// when every pool has its ready slots.
func barest(pools []poolView, n nodeView, wait func(time.Time)) *env.Class {
	var best *poolView
	left := n.room
	for i := range pools {
		p := &pools[i]
		if p.cramped(n.now) {
			return nil // it would be given up at once
		}
		left -= max(p.lack(n.now), 0)
		switch {
		case p.class.Warm.Created-len(p.created)-p.laying <= 0 || !p.fits:
		case p.retryAt.After(n.now):
			wait(p.retryAt)
		case best == nil || p.class.Name < best.class.Name:
			best = p
		}
	}
	if best == nil || left <= 0 || !n.idle(wait) {
		return nil
	}
	return best.class
}

// lay makes a created slot for the class's pool.
func (n *Node) lay(ctx context.Context, class *env.Class) {
	n.mu.Lock()
	p := n.pools[class.Name]
	if p == nil || n.gate.shut { // the class went, or a hand-over began, since decide looked
		n.mu.Unlock()
		return
	}
	p.laying++
	n.reserved++
	n.preparedAt = time.Now()
	n.mu.Unlock()

	s, err := n.build(ctx, nil, class, class.Resources, func(ctx context.Context, s *slot) error {
		if err := n.layOut(ctx, s); err != nil {
			return err
		}
		if err := s.connect(ctx); err != nil {
			return err
		}
		return n.change(s, func(st *slotState) {
			st.Phase = env.SlotCreated
			st.Image, st.Upper = s.image.Digest, s.files.Upper
		})
	})

	n.mu.Lock()
	defer n.mu.Unlock()
	p.laying--
	if err == nil {
		p.failures, p.message, p.retryAt = 0, "", time.Time{}
		p.created = append(p.created, s)
		n.log.Info("slot created", "slot", s.id, "class", class.Name, "took", time.Since(n.preparedAt))
	} else if ctx.Err() == nil {
		p.failures++
		p.retryAt = time.Now().Add(retryDelay(p.failures))
		p.message = err.Error()
		n.metrics.prepareFailures.WithLabelValues(class.Name).Inc()
		n.log.Error("slot preparation", "class", class.Name, "failures", p.failures, "error", err)
	}
	n.changedLocked()
}

// createdLocked finds a created slot that is as one made for this class and these
// resources would be; nil is none. The caller holds mu.
func (n *Node) createdLocked(class *env.Class, boot env.Resources) *slot {
	p := n.pools[class.Name]
	if p == nil {
		return nil
	}
	v, now := poolView{class: class}, time.Now()
	for _, s := range p.created {
		if v.lastsCreated(viewOfCreated(s), now) && s.boot == boot && s.namespaces.lasting() {
			return s
		}
	}
	return nil
}

// lasting reports whether a container can still be made in the namespaces: what holds
// them is a process, which anybody with root on the node may end.
func (ns *namespaces) lasting() bool { return ns.held == nil || ns.held() }

// dropUnheldLocked has the created slots removed whose namespaces are gone. The caller
// holds mu.
func (n *Node) dropUnheldLocked() {
	for _, p := range n.pools {
		for _, s := range slices.Clone(p.created) {
			if !s.namespaces.lasting() {
				n.takeLocked(s)
				n.metrics.dead.WithLabelValues(s.class.Name, deadNamespaces).Inc()
				n.background(s, "what held its namespaces has ended")
			}
		}
	}
}

// takeCreatedLocked takes such a slot out of its pool. The caller holds mu.
func (n *Node) takeCreatedLocked(class *env.Class, boot env.Resources) *slot {
	s := n.createdLocked(class, boot)
	if s != nil {
		n.takeLocked(s)
	}
	return s
}

// returnCreatedLocked puts a created slot back of which nothing was used. The caller
// holds mu.
func (n *Node) returnCreatedLocked(s *slot) {
	if p := n.pools[s.class.Name]; p != nil {
		p.created = append(p.created, s)
		return
	}
	n.background(s, "its class is gone")
}
