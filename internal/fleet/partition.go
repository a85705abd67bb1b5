package fleet

import (
	"fmt"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// A node that loses its controller freezes and locks its environments FenceAfter
// the sending of its last report that was answered. The controller says what
// became of them only PlaceAfter the arrival of the last one: by then they are
// frozen, whatever the node sees. A new controller does not know what an earlier
// one has answered, so that it counts from its own start.
//
// Times are differences of a monotonic clock: setting the wall clock moves nothing.

// fenceMargin is what lies at least between the two: the freezing, a report on its
// way, and clocks that do not run at the same rate.
func fenceMargin(fenceAfter time.Duration) time.Duration { return 2*time.Second + fenceAfter/20 }

// withPartition sets the defaults of the times of a partition.
func (c Config) withPartition() Config {
	if c.FenceAfter == 0 {
		c.FenceAfter = 5 * time.Minute
	}
	if c.PlaceAfter == 0 {
		c.PlaceAfter = c.FenceAfter + time.Minute
	}
	if c.FenceAfter < 0 {
		c.PlaceAfter = 0
	}
	return c
}

// checkPartition refuses times with which two generations could run at once, or
// with which nodes would freeze what works.
func (c Config) checkPartition() error {
	switch {
	case c.FenceAfter < 0:
		return nil
	case c.FenceAfter < c.LostAfter:
		return fmt.Errorf("%w: fleet.fenceAfter %s is below fleet.lostAfter %s: nodes that are given claims would freeze them", env.ErrInvalid, c.FenceAfter, c.LostAfter)
	case c.PlaceAfter < c.FenceAfter+fenceMargin(c.FenceAfter):
		return fmt.Errorf("%w: fleet.placeAfter %s: it must be at least fleet.fenceAfter and %s more, %s",
			env.ErrInvalid, c.PlaceAfter, fenceMargin(c.FenceAfter), c.FenceAfter+fenceMargin(c.FenceAfter))
	}
	return nil
}

// FenceAfter is what agents are told: how long after the sending of the last
// report that was answered they freeze their environments. 0 is never.
func (f *Fleet) FenceAfter() time.Duration { return max(0, f.cfg.FenceAfter) }

// silentFor is how long nothing was heard of a node, as far as this controller can
// know. The caller holds mu.
func (f *Fleet) silentFor(node string, now time.Time) time.Duration {
	if n := f.nodes[node]; n != nil {
		return now.Sub(n.seen)
	}
	return now.Sub(f.started)
}

// fenced reports whether a node has been silent for so long that what it has does
// not run, unless its class says that it shall. The caller holds mu.
func (f *Fleet) fenced(node string, now time.Time) bool {
	return f.cfg.PlaceAfter > 0 && f.silentFor(node, now) >= f.cfg.PlaceAfter
}

// loseFenced fails what lives on nodes that were silent for PlaceAfter. It is not
// ended: if the node comes back with it, it is believed. What moves is not among
// it: the move knows more. Nor is a claim that an earlier process may have
// answered: it waits for its node, and for its key.
func (f *Fleet) loseFenced(now time.Time) {
	for id, node := range f.onFenced(now) {
		f.mu.Lock()
		quiet := f.silentFor(node, now).Round(time.Second)
		f.mu.Unlock()
		message := fmt.Sprintf("node %s silent for %s: no durable snapshot", node, quiet)
		lost := false
		r, err := f.note("silent", id, func(r *Record) (bool, error) {
			lost = r.Environment.GetNode() == node && r.Phase().Live() && !r.moving()
			if lost {
				r.Environment.Phase, r.Environment.Message, r.Environment.Reason = hearthv1.Phase_PHASE_FAILED, message, ""
			}
			return lost, nil
		})
		switch {
		case err != nil && !isNotFound(err):
			f.log.Warn("environment of a silent node not failed", "environment", id, "node", node, "error", err)
		case err == nil && lost:
			f.log.Warn("environment of a silent node failed", "environment", id, "node", node, "silent", quiet)
			f.happened(Failed, r, message)
		}
	}
}

func (f *Fleet) onFenced(now time.Time) map[env.ID]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[env.ID]string{}
	for node, ids := range f.census.byNode {
		if !f.fenced(node, now) {
			continue
		}
		for id := range ids {
			if r := f.records[id]; r.Phase().Live() && !r.moving() {
				out[id] = node
			}
		}
	}
	return out
}
