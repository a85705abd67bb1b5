package fleet

import (
	"maps"
	"slices"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// census counts and finds records without looking at all of them. Fleet.mu guards
// it; show and hide keep it.
type census struct {
	byNode  map[string]map[env.ID]struct{} // those that are not final, by their node
	byPhase map[hearthv1.Phase]int
	moving  map[env.ID]struct{}
	// ended is closed when the record that it is of does not move any more.
	ended map[env.ID]chan struct{}
}

func newCensus() census {
	return census{
		byNode: map[string]map[env.ID]struct{}{}, byPhase: map[hearthv1.Phase]int{},
		moving: map[env.ID]struct{}{}, ended: map[env.ID]chan struct{}{},
	}
}

// replace takes old out and now in; either may be nil.
func (c *census) replace(old, now *Record) {
	if old != nil {
		c.remove(old)
	}
	if now != nil {
		c.add(now)
	}
	if old != nil && old.moving() && (now == nil || !now.moving()) {
		if done := c.ended[old.ID()]; done != nil {
			close(done)
			delete(c.ended, old.ID())
		}
	}
}

func (c *census) add(r *Record) {
	c.byPhase[r.Environment.GetPhase()]++
	if r.moving() {
		c.moving[r.ID()] = struct{}{}
	}
	if r.final() {
		return
	}
	node := r.Environment.GetNode()
	if c.byNode[node] == nil {
		c.byNode[node] = map[env.ID]struct{}{}
	}
	c.byNode[node][r.ID()] = struct{}{}
}

func (c *census) remove(r *Record) {
	id, node := r.ID(), r.Environment.GetNode()
	c.byPhase[r.Environment.GetPhase()]--
	delete(c.moving, id)
	delete(c.byNode[node], id)
	if len(c.byNode[node]) == 0 {
		delete(c.byNode, node)
	}
}

// on lists what lives on a node, in order.
func (c *census) on(node string) []env.ID { return slices.Sorted(maps.Keys(c.byNode[node])) }
