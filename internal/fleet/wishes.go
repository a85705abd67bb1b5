package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"hearth/internal/env"
)

// NodeWish is what an operator wants of one node.
type NodeWish struct {
	Cordoned bool // it gets no claims
	Drain    bool // nor this, and its environments are moved
	// Reason is for people; it may be empty.
	Reason string
}

// unplaceable says why the wish lets nothing be placed; empty if it does.
func (w NodeWish) unplaceable() string {
	var why string
	switch {
	case w.Drain:
		why = "draining"
	case w.Cordoned:
		why = "cordoned"
	default:
		return ""
	}
	if w.Reason != "" {
		why += ": " + w.Reason
	}
	return why
}

// SetNodes replaces what is wished of all nodes. A node without a wish is like any
// other, and a wish may be of a node that was never seen. What was being moved
// from a node that is drained no more stays there, unless it has gone already.
func (f *Fleet) SetNodes(wishes map[string]NodeWish) {
	f.mu.Lock()
	var begun []string
	for name, w := range wishes {
		if w.Drain && !f.wishes[name].Drain {
			begun = append(begun, name)
		}
	}
	f.wishes = maps.Clone(wishes)
	maps.DeleteFunc(f.drained, func(name string, _ struct{}) bool { return !f.wishes[name].Drain })
	for _, n := range f.nodes {
		f.judgePlaceable(n)
	}
	f.nodesChanged()
	left := map[string]int{}
	for _, name := range begun {
		left[name] = len(f.census.byNode[name])
	}
	f.mu.Unlock()
	slices.Sort(begun)
	for _, name := range begun {
		f.log.Info("node is drained", "node", name, "environments", left[name], "reason", wishes[name].Reason)
		f.tell(Event{Kind: Draining, Node: name, Message: fmt.Sprintf("moving %d environments to other nodes", left[name])})
	}
	f.poke()
}

// DrainStatus is how far the drain of a node is: how many environments are left
// there, how many of them are on their way to another node, and what to tell an
// operator. A node is empty when none is left.
func (f *Fleet) DrainStatus(node string) (left, moving int, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	staying := map[string]int{}
	var stuck []string
	ids := f.census.on(node)
	for _, id := range ids {
		r := f.records[id]
		switch why := r.stays(); {
		case r.moving():
			moving++
		case why != "":
			staying[why]++
		}
		if m := f.moves[id]; m != nil && m.why != "" && len(stuck) < maxStuck {
			stuck = append(stuck, fmt.Sprintf("%s: %s", id, m.why))
		}
	}
	left = len(ids) + f.arriving(node)
	return left, moving, drainMessage(left, moving, staying, stuck)
}

// maxStuck bounds the environments that a message names.
const maxStuck = 3

func drainMessage(left, moving int, staying map[string]int, stuck []string) string {
	if left == 0 {
		return "no environment is left"
	}
	parts := []string{fmt.Sprintf("moving %d of %d environments", moving, left)}
	for _, why := range slices.Sorted(maps.Keys(staying)) {
		parts = append(parts, fmt.Sprintf("%d %s", staying[why], why))
	}
	return strings.Join(append(parts, stuck...), "; ")
}

// stays says why a record is not moved, though its node is drained; empty if it is.
func (r *Record) stays() string {
	switch p := r.Phase(); {
	case r.moving():
		return ""
	case r.Ephemeral:
		return "ephemeral: they stay until they end"
	case p == env.PhaseClaiming:
		return "being claimed: they move once they run"
	case !movablePhase(r.Environment.GetPhase(), false):
		return string(p) + ": they stay until they are released or run again"
	default:
		return ""
	}
}

// arriving counts what is on its way to a node. The caller holds mu.
func (f *Fleet) arriving(node string) int {
	n := 0
	for id := range f.census.moving {
		if r := f.records[id]; r.Next.Node == node && r.Environment.GetNode() != node {
			n++
		}
	}
	return n
}

// tellDrained tells once of each node on which nothing is left.
func (f *Fleet) tellDrained() {
	f.mu.Lock()
	var now []string
	for name, w := range f.wishes {
		if _, told := f.drained[name]; told || !w.Drain || len(f.census.byNode[name]) > 0 || f.arriving(name) > 0 {
			continue
		}
		f.drained[name] = struct{}{}
		now = append(now, name)
	}
	f.mu.Unlock()
	slices.Sort(now)
	for _, name := range now {
		f.log.Info("node drained", "node", name)
		f.tell(Event{Kind: Drained, Node: name, Message: "no environment is left"})
	}
}
