package fleet

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// action is what an inventory's line, compared with the store, asks for.
type action string

const (
	keep    action = "keep"    // as stored, or a claim is under way
	observe action = "observe" // as stored, in another phase
	adopt   action = "adopt"   // unknown, or a higher generation than stored
	release action = "release" // final, moved away, or an older generation
)

// judge decides about one environment that node reports. Have is nil if it is
// not stored. It is a pure function: the table in the tests is the specification.
func judge(node string, e *hearthv1.Environment, have *Record) action {
	gone := e.GetPhase() == hearthv1.Phase_PHASE_RELEASED || e.GetPhase() == hearthv1.Phase_PHASE_FAILED
	switch {
	case have == nil && gone:
		return keep
	case have == nil:
		return adopt
	case e.GetPhase() == hearthv1.Phase_PHASE_RELEASED:
		return keep
	case have.Ended:
		return release
	case have.Phase() == env.PhaseFailed && !have.isStale(node) && e.GetGeneration() >= have.Environment.GetGeneration():
		// It failed by itself, or its node had denied it. Nobody has asked for
		// its end, so what is left stays until somebody does.
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
	case have.Environment.GetPhase() == hearthv1.Phase_PHASE_CLAIMING:
		// Its claim goes on, or is repeated, or is abandoned.
		return keep
	case e.GetPhase() != have.Environment.GetPhase():
		return observe
	default:
		return keep
	}
}

// reconcile compares a node's full inventory with the store. It changes the
// store only; the sweep then asks and releases.
func (f *Fleet) reconcile(node string, list []*hearthv1.Environment) error {
	var errs []error
	present := map[env.ID]struct{}{}
	for _, e := range list {
		id, err := env.ParseID(e.GetId())
		if err != nil {
			f.log.Warn("inventory has a bad id", "node", node, "error", err)
			continue
		}
		present[id] = struct{}{}
		errs = append(errs, f.reconcileOne(node, id, e))
	}
	f.noteMissing(node, present)
	f.poke()
	return errors.Join(errs...)
}

func (f *Fleet) reconcileOne(node string, id env.ID, e *hearthv1.Environment) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	have := f.record(id)
	act := judge(node, e, have)
	if act == keep {
		return nil
	}
	f.metrics.reconciled(act)
	f.log.Info("reconciling", "action", string(act), "environment", id, "node", node, "generation", e.GetGeneration())
	r := &Record{Environment: proto.CloneOf(e)}
	if have != nil {
		r = have.clone()
	}
	switch act {
	case adopt:
		if have != nil && (have.Environment.GetNode() != node) {
			r.makeStale()
		}
		r.Environment = adopted(node, e, have)
		r.Snapshots = true // it may have some
	case observe:
		r.Environment.Phase, r.Environment.Message = e.GetPhase(), e.GetMessage()
	case release:
		r.addStale(Placement{node, env.Generation(e.GetGeneration())})
	}
	r.Changed = time.Now()
	return f.save(Change{Op: "reconcile-" + string(act), Put: State{Records: []*Record{r}}})
}

// adopted believes the node, except about whose the environment is if that is stored.
func adopted(node string, e *hearthv1.Environment, have *Record) *hearthv1.Environment {
	a := proto.CloneOf(e)
	a.Node = node
	if have != nil {
		a.Tenant = have.Environment.GetTenant()
	}
	return a
}

// noteMissing marks what is stored as living on node and was not reported. An
// answer that is under way may have crossed the inventory, so the node is asked.
func (f *Fleet) noteMissing(node string, present map[env.ID]struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[node]
	if n == nil {
		return
	}
	clear(n.missing)
	for id, r := range f.records {
		_, here := present[id]
		if here || r.final() || r.Environment.GetNode() != node || r.Environment.GetPhase() == hearthv1.Phase_PHASE_CLAIMING {
			continue
		}
		n.missing[id] = struct{}{}
	}
}
