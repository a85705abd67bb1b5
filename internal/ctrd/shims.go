package ctrd

import (
	"context"
	"fmt"
	"sync"

	"hearth/internal/env"
)

// Several containers share one shim: a shim of its own costs each of them some
// 4 MB and part of the time of its creation. A shim is named by the slot that it
// was started for, its leader, and may outlive it. Whoever dies with a shim is the
// price: containerd ends all its containers then.
const (
	// labelShim of a container names its shim's leader.
	labelShim = "hearth.run/shim"
	// annotationShim is where the shim reads which group it is started for
	// (groupLabels in containerd's cmd/containerd-shim-runc-v2/manager).
	annotationShim = "io.containerd.runc.v2.group"
)

// DefaultSlotsPerShim is how many containers share a shim unless Config says.
const DefaultSlotsPerShim = 8

// shims decides which container goes into which shim.
type shims struct {
	most int

	mu      sync.Mutex // guards all below
	leaders map[env.SlotID]*shim
	of      map[env.SlotID]*shim
}

// shim is one, as far as it matters to who comes and goes.
type shim struct {
	leader  env.SlotID
	runtime string // that of all its containers
	// open lets others in: its leader's task was made. Before, another one would
	// start a second shim.
	open    bool
	failed  bool          // a container could not be made in it: it is closed for good
	members int           // whose deletion has not begun
	joining int           // of them, those that are being created
	settled chan struct{} // closed when joining falls to 0; nil if nobody waits
}

func newShims(most int) *shims {
	return &shims{most: most, leaders: map[env.SlotID]*shim{}, of: map[env.SlotID]*shim{}}
}

// adopt notes a container that is there already.
func (s *shims) adopt(slot, leader env.SlotID, runtime string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.leaders[leader]
	if g == nil {
		g = &shim{leader: leader, runtime: runtime}
		s.leaders[leader] = g
	}
	g.open = true
	s.enter(g, slot)
}

// enter counts a member. The caller holds mu.
func (s *shims) enter(g *shim, slot env.SlotID) {
	if s.of[slot] == nil {
		s.of[slot] = g
		g.members++
	}
}

// join finds a place for a container that is about to be created, in the fullest
// shim of its runtime that has one, or in one of its own. made must be called once it was created,
// or was not: then nothing more goes there.
func (s *shims) join(slot env.SlotID, runtime string) (leader env.SlotID, made func(ok bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var g *shim
	for _, other := range s.leaders {
		if other.runtime == runtime && other.open && !other.failed && other.members < s.most && (g == nil || other.members > g.members) {
			g = other
		}
	}
	if g == nil {
		g = &shim{leader: slot, runtime: runtime}
		s.leaders[slot] = g
	}
	s.enter(g, slot)
	g.joining++
	return g.leader, func(ok bool) { s.made(g, ok) }
}

func (s *shims) made(g *shim, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.open, g.failed = g.open || ok, g.failed || !ok
	if g.joining--; g.joining == 0 && g.settled != nil {
		close(g.settled)
		g.settled = nil
	}
}

// leave takes a container out that is about to be deleted. If only such are left as
// are being created it waits for them: a shim ends with its last container.
func (s *shims) leave(ctx context.Context, slot env.SlotID) error {
	s.mu.Lock()
	g := s.of[slot]
	if g == nil {
		s.mu.Unlock()
		return nil
	}
	delete(s.of, slot)
	if g.members--; g.members == 0 {
		delete(s.leaders, g.leader)
	}
	var settled chan struct{}
	if g.joining > 0 && g.joining == g.members {
		if g.settled == nil {
			g.settled = make(chan struct{})
		}
		settled = g.settled
	}
	s.mu.Unlock()
	if settled == nil {
		return nil
	}
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for containers that join the shim of slot %s: %w", slot, ctx.Err())
	}
}

// leaderOf names the shim of a slot; empty if the slot has none.
func (s *shims) leaderOf(slot env.SlotID) env.SlotID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.of[slot]; g != nil {
		return g.leader
	}
	return ""
}

// serves reports whether a shim has containers.
func (s *shims) serves(leader env.SlotID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaders[leader] != nil
}

// ShimOf names the shim that a slot's container is in by the slot that it was
// started for; empty if there is no container.
func (r *Runtime) ShimOf(slot env.SlotID) env.SlotID { return r.shims.leaderOf(slot) }

// ShimServes reports whether a shim, named as by ShimOf, has containers that are not
// being deleted.
func (r *Runtime) ShimServes(leader env.SlotID) bool { return r.shims.serves(leader) }

// adoptShims finds out which container is in which shim.
func (r *Runtime) adoptShims(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(r.namespaced(ctx), r.cfg.StartTimeout)
	defer cancel()
	records, err := r.client.ContainerService().List(ctx, r.ours())
	if err != nil {
		return r.fail("list containers", err)
	}
	for _, rec := range records {
		slot, err := env.ParseSlotID(rec.ID)
		if err != nil {
			continue // labelled by hand
		}
		leader, err := env.ParseSlotID(rec.Labels[labelShim])
		if err != nil {
			leader = slot // of an agent that gave each its own
		}
		r.shims.adopt(slot, leader, nameOf(rec.Labels[labelRuntime]))
	}
	return nil
}
