package kube

import (
	"slices"
	"strconv"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// presence is what is known of an object's being there.
type presence int

const (
	// absent: it was never made, as far as is known. One attempt may have been cut
	// off, so that making it again may find it there.
	absent presence = iota
	present
	// gone: it was there, and is not any more.
	gone
)

// object is what the API server has of one environment, as its last answer said.
type object struct {
	ref
	presence   presence
	theirs     bool // somebody else made it
	placement  *v1alpha1.Placement
	letGo      string
	ended      bool // by annotation
	deleting   bool
	finalizers []string
	generation int64
}

func (k sealer) objectFrom(o *v1alpha1.Environment) object {
	return object{
		ref: refOf(o), presence: present, theirs: !k.sealed(o), placement: o.Spec.Placement,
		letGo: o.Annotations[annotationLetGo], ended: o.Annotations[annotationEnded] != "",
		deleting: o.DeletionTimestamp != nil, finalizers: o.Finalizers, generation: o.Generation,
	}
}

// step is one request.
type step string

const (
	stepCreate step = "create"
	stepPlace  step = "place"  // apply placement, finalizer and marks
	stepClear  step = "clear"  // take all of these away again
	stepDelete step = "delete" // the object stays until its finalizers are gone
	stepLetGo  step = "let go" // take the finalizer away
)

// steps lists what makes have say what is decided in r, in an order in which a
// crash after any of them leaves something true. It is a pure function: the table
// in the tests is the specification.
func steps(have object, r *fleet.Record) []step {
	if have.presence == gone {
		return nil // nothing is left that could hold it
	}
	if have.presence == absent {
		switch {
		case r.Ended && len(r.Stale) == 0:
			return nil
		case r.Ended:
			return []step{stepCreate, stepDelete}
		default:
			return []step{stepCreate}
		}
	}
	if !r.Ended {
		if have.ended || have.letGo != "" || !samePlacement(have.placement, placementOf(r)) {
			return []step{stepPlace}
		}
		return nil
	}
	return endingSteps(have, r)
}

// endingSteps: an object of ours is deleted when its environment has ended, and so
// is one of somebody else's that was released. One of theirs for which a claim
// failed stays, for it will be tried again.
func endingSteps(have object, r *fleet.Record) []step {
	var out []step
	keep := have.theirs && !have.deleting && r.Phase() != env.PhaseReleased
	switch {
	case keep && (!have.ended || !sameStale(impliedStale(have, r), r.Stale)):
		return []step{stepPlace}
	case keep:
		return nil
	case len(r.Stale) > 0 && !sameStale(impliedStale(have, r), r.Stale) && !outdone(have, r):
		out = append(out, stepPlace)
	}
	if !have.deleting {
		out = append(out, stepDelete)
	}
	if len(r.Stale) == 0 {
		out = append(out, stepLetGo)
	}
	return out
}

// outdone tells that somebody else has written a later placement into the object than
// there ever was, so that no true one can be written any more: a generation only
// rises. It must not keep the environment from its end. The next controller finds
// on the nodes what of it is left.
func outdone(have object, r *fleet.Record) bool {
	return have.placement != nil && have.placement.Generation > int64(r.Generation())
}

// impliedStale is what is read as stale once the object is being deleted.
func impliedStale(have object, r *fleet.Record) []fleet.Placement {
	read := &fleet.Record{Environment: &hearthv1.Environment{Phase: r.Environment.GetPhase()}}
	readPlacement(read, have.placement)
	ended(read, have.letGo)
	return read.Stale
}

func sameStale(a, b []fleet.Placement) bool {
	if len(a) != len(b) {
		return false
	}
	for _, p := range a {
		if !slices.Contains(b, p) {
			return false
		}
	}
	return true
}

// marks are the annotations that r needs beside its placement.
func marks(r *fleet.Record) map[string]string {
	m := map[string]string{}
	if !r.Ended {
		return m
	}
	if r.Object != "" {
		m[annotationEnded] = "true"
	}
	here := fleet.Placement{Node: r.Environment.GetNode(), Generation: r.Generation()}
	if here.Node != "" && !slices.Contains(r.Stale, here) {
		m[annotationLetGo] = strconv.FormatUint(uint64(here.Generation), 10)
	}
	return m
}

// forgetting lists what makes the object say nothing of an environment any more:
// one of ours goes, one of somebody else's is left to them.
func forgetting(have object) []step {
	switch {
	case have.presence == gone:
		return nil
	case have.theirs && !have.deleting:
		return []step{stepClear}
	case have.deleting:
		return []step{stepLetGo}
	default:
		return []step{stepDelete, stepLetGo}
	}
}
