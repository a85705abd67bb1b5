package warm

import (
	"context"
	"slices"
	"sync"
	"time"
)

// profile keeps the phases of the newest warm claims.
type profile struct {
	mu     sync.Mutex // guards all
	claims [][]PhaseTime
	next   int // where the next claim goes
}

// profileSize is how many claims are kept, about 200 bytes each.
const profileSize = 1000

// PhaseProfile is how long one phase of the newest warm claims took.
type PhaseProfile struct {
	Name               string
	Claims             int
	P50, P90, P99, Max time.Duration
}

func (p *profile) add(laps []PhaseTime) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.claims) < profileSize {
		p.claims = append(p.claims, laps)
		return
	}
	p.claims[p.next] = laps
	p.next = (p.next + 1) % profileSize
}

// totalPhase is the name of the whole among the phases.
const totalPhase = "total"

// phases are the profiles of all phases in the order of the claim path, then of the
// whole.
func (p *profile) phases() []PhaseProfile {
	p.mu.Lock()
	claims := slices.Clone(p.claims) // the laps of a claim never change
	p.mu.Unlock()
	var order []string
	took := map[string][]time.Duration{}
	for _, laps := range claims {
		var total time.Duration
		for i, lap := range laps {
			if took[lap.Name] == nil {
				order = insertAfter(order, laps[:i], lap.Name)
			}
			took[lap.Name] = append(took[lap.Name], lap.Took)
			total += lap.Took
		}
		took[totalPhase] = append(took[totalPhase], total)
	}
	if len(claims) > 0 {
		order = append(order, totalPhase)
	}
	out := make([]PhaseProfile, 0, len(order))
	for _, name := range order {
		out = append(out, profileOf(name, took[name]))
	}
	return out
}

// insertAfter puts a phase where its claim had it: behind the nearest one before it
// that has a place.
func insertAfter(order []string, before []PhaseTime, name string) []string {
	at := 0
	for _, lap := range slices.Backward(before) {
		if i := slices.Index(order, lap.Name); i >= 0 {
			at = i + 1
			break
		}
	}
	return slices.Insert(order, at, name)
}

func profileOf(name string, took []time.Duration) PhaseProfile {
	slices.Sort(took)
	rank := func(percent int) time.Duration { return took[(len(took)*percent+99)/100-1] }
	return PhaseProfile{Name: name, Claims: len(took), P50: rank(50), P90: rank(90), P99: rank(99), Max: took[len(took)-1]}
}

// recordClaim counts a claim, profiles and traces it.
func (n *Node) recordClaim(call context.Context, st slotState, watch *stopwatch) {
	served := st.Env.served()
	n.metrics.claim(st.Class, served, watch.laps, st.Env.Took)
	if served == ServedWarm {
		n.profile.add(watch.laps)
	}
	if n.parts.Tracer != nil {
		n.parts.Tracer.Claimed(call, st.Class, served, watch.start, watch.laps)
	}
}

// ClaimProfile tells where the newest warm claims spent their time on this node.
func (n *Node) ClaimProfile() []PhaseProfile { return n.profile.phases() }
