package fleet

import (
	"errors"
	"sync"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// action is what an inventory's line, compared with the store, asks for.
type action string

const (
	keep    action = "keep"    // as stored, or a claim or a move is under way
	observe action = "observe" // as stored, in another phase, or with another end
	expire  action = "expire"  // released by its node, because its time came
	adopt   action = "adopt"   // unknown, or a higher generation than stored
	release action = "release" // final, moved away, or an older generation
)

// judge decides about one environment that node reports. Have is nil if it is
// not stored. UnderWay says that this process is claiming it. It is a pure
// function: the table in the tests is the specification.
func judge(node string, e *hearthv1.Environment, have *Record, underWay bool) action {
	gone := e.GetPhase() == hearthv1.Phase_PHASE_RELEASED || e.GetPhase() == hearthv1.Phase_PHASE_FAILED
	switch {
	case have == nil && gone:
		return keep
	case have == nil:
		return adopt
	case e.GetPhase() == hearthv1.Phase_PHASE_RELEASED && isExpired(e) && have.isPlacedAt(node, e) && !have.moving() && !have.final():
		return expire
	case e.GetPhase() == hearthv1.Phase_PHASE_RELEASED:
		return keep
	case have.Ended:
		return release
	case have.isPlacedAt(node, e) && have.moving(), have.isNextAt(node, e):
		return keep // the move asks the nodes itself
	case e.GetGeneration() > have.Environment.GetGeneration() && e.GetGeneration() <= uint64(have.Next.Generation):
		// It was meant to have it, in a move that came to nothing.
		return release
	case have.Phase() == env.PhaseFailed && !have.isStale(node) && e.GetGeneration() >= have.Environment.GetGeneration():
		// It failed by itself, or its node had denied it, or was silent for long.
		// Nobody has asked for its end, so what is left stays until somebody does.
		if gone {
			return keep
		}
		return adopt
	case have.final():
		return release
	case e.GetGeneration() > have.Environment.GetGeneration():
		// The store was restored from an older copy: the node knows better.
		return adopt
	case e.GetGeneration() < have.Environment.GetGeneration(), have.Environment.GetNode() != node:
		return release
	case underWay, e.GetPhase() == hearthv1.Phase_PHASE_CLAIMING:
		return keep // the node's answer is on its way, or has overtaken this
	case have.differs(e):
		return observe
	default:
		return keep
	}
}

// isPlacedAt reports whether what node shows is the current placement.
func (r *Record) isPlacedAt(node string, e *hearthv1.Environment) bool {
	return r.Environment.GetNode() == node && r.Environment.GetGeneration() == e.GetGeneration()
}

// isNextAt reports whether what node shows is what a move makes there.
func (r *Record) isNextAt(node string, e *hearthv1.Environment) bool {
	return r.Next.Node == node && r.Next.Generation == env.Generation(e.GetGeneration())
}

// reconcileWorkers take the lines of one inventory.
const reconcileWorkers = 8

// reconcile compares a node's full inventory with the store. It changes the
// store only; the sweep then asks and releases.
func (f *Fleet) reconcile(node string, list []*hearthv1.Environment) error {
	present := map[env.ID]struct{}{}
	lines := make(chan *hearthv1.Environment, len(list))
	for _, e := range list {
		id, err := env.ParseID(e.GetId())
		if err != nil {
			f.log.Warn("inventory has a bad id", "node", node, "error", err)
			continue
		}
		if _, twice := present[id]; !twice {
			present[id] = struct{}{}
			lines <- e
		}
	}
	close(lines)
	turn := f.noteInventory(node, present)
	var mu sync.Mutex // guards errs
	var errs []error
	done := f.aside(asideTime, min(reconcileWorkers, len(lines)), func() {
		for e := range lines {
			if err := f.reconcileOne(node, turn, e); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		}
	})
	f.mu.Lock()
	f.nodesChanged() // again: what the node has is known now
	f.mu.Unlock()
	f.poke()
	mu.Lock()
	defer mu.Unlock()
	if !done {
		errs = append(errs, errStoreSlow)
	}
	return errors.Join(errs...)
}

var errStoreSlow = errors.New("the store takes long; the rest is done beside")

// reconcileOne takes one line of the inventory that is the turn'th of its node;
// those of an earlier one are past.
func (f *Fleet) reconcileOne(node string, turn uint64, e *hearthv1.Environment) error {
	id := env.ID(e.GetId())
	r, act, err := f.reconcileRecord(node, turn, id, e)
	if err != nil || act == keep {
		return err
	}
	f.metrics.reconciled(act)
	f.log.Info("reconciled", "action", string(act), "environment", id, "node", node, "generation", e.GetGeneration(), "phase", string(r.Phase()))
	if act == release {
		return nil
	}
	switch r.Phase() {
	case env.PhaseReleased:
		f.happened(Expired, r, r.Environment.GetMessage())
	case env.PhasePaused:
		if r.idle() {
			f.happened(IdlePaused, r, r.Environment.GetMessage())
		}
	case env.PhaseFailed:
		f.happened(Failed, r, r.Environment.GetMessage())
	case env.PhaseFenced:
		f.happened(Fenced, r, r.Environment.GetMessage())
	case env.PhaseStalled:
		f.happened(Stalled, r, r.Environment.GetMessage())
	case env.PhaseQuarantined:
		f.happened(Quarantined, r, r.Environment.GetMessage())
	}
	return nil
}

func (f *Fleet) reconcileRecord(node string, turn uint64, id env.ID, e *hearthv1.Environment) (*Record, action, error) {
	defer f.lanes.enter(id)()
	have := f.record(id)
	act := judge(node, e, have, f.isUnderWay(id))
	if act == keep || !f.isTurn(node, turn) {
		return nil, keep, nil
	}
	r := &Record{Environment: &hearthv1.Environment{Tenant: e.GetTenant()}}
	if have != nil {
		r = have.clone()
	}
	how := behind
	switch act {
	case adopt:
		how = durably
		r.adoptFrom(node, e)
	case observe:
		r.observe(e)
	case expire:
		how = durably
		r.expire(e.GetMessage())
	case release:
		p := Placement{node, env.Generation(e.GetGeneration())}
		if have.has(p) {
			return nil, keep, nil
		}
		r.addStale(p)
	}
	return r, act, f.write("reconcile-"+string(act), r, how)
}

// adoptFrom makes what node shows the current placement. What else may be
// somewhere is stale.
func (r *Record) adoptFrom(node string, e *hearthv1.Environment) {
	if r.Environment.GetNode() != node {
		r.makeStale()
	}
	if r.moving() && r.Next.Node != node && r.Next.Node != r.Environment.GetNode() {
		r.addStale(r.Next)
	}
	r.Next = Placement{}
	r.adopt(node, e)
}

// has reports whether p is stale already.
func (r *Record) has(p Placement) bool {
	for _, have := range r.Stale {
		if have.Node == p.Node && have.Generation >= p.Generation {
			return true
		}
	}
	return false
}

// staleOn lists what of a node's inventory must not run there. What the node has
// frozen while it was alone, and thaws when it gets the answer, it is asked about
// soon: its next inventory may be far.
func (f *Fleet) staleOn(node string, list []*hearthv1.Environment) []string {
	var out []string
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range list {
		id := env.ID(e.GetId())
		switch {
		case judge(node, e, f.records[id], f.underWay[id] != nil) == release:
			out = append(out, e.GetId())
		case e.GetPhase() == hearthv1.Phase_PHASE_FENCED && f.records[id] != nil && f.nodes[node] != nil:
			f.nodes[node].fenced[id] = struct{}{}
		}
	}
	return out
}

// noteInventory begins a node's next turn. It marks what is stored as living on
// node and was not reported: an answer that is under way may have crossed the
// inventory, so the node is asked.
func (f *Fleet) noteInventory(node string, present map[env.ID]struct{}) (turn uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[node]
	if n == nil {
		return 0
	}
	clear(n.missing)
	clear(n.fenced)
	for id := range f.census.byNode[node] {
		_, here := present[id]
		r := f.records[id]
		if here || r.moving() || r.Environment.GetPhase() == hearthv1.Phase_PHASE_CLAIMING {
			continue
		}
		n.missing[id] = struct{}{}
	}
	n.turn++
	return n.turn
}

func (f *Fleet) isTurn(node string, turn uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[node]
	return n != nil && n.turn == turn
}
