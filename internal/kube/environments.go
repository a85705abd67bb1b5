package kube

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/util/workqueue"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// claimer is what of the fleet Environments need.
type claimer interface {
	ClaimFor(context.Context, fleet.ObjectRef) (*hearthv1.ClaimResponse, error)
	End(context.Context, env.ID) error
	// SetTimeToLive does nothing if the environment has it already.
	SetTimeToLive(context.Context, env.ID, time.Duration) error
	// ResizeFor does nothing if the environment has those limits already.
	ResizeFor(context.Context, env.ID, *hearthv1.Resources) error
}

// Environments claims for the objects that people make, and ends what belongs to
// objects that are deleted.
type Environments struct {
	log    *slog.Logger
	w      *Watches
	store  *Store
	fleet  claimer
	claims workqueue.TypedRateLimitingInterface[item]
	ends   workqueue.TypedRateLimitingInterface[item]
	lives  workqueue.TypedRateLimitingInterface[item]
	sizes  workqueue.TypedRateLimitingInterface[item]

	turns turns
}

// item names an object and its environment, also when the object is gone.
type item struct {
	ref
	id env.ID
}

const (
	// claimWorkers bounds the claims for objects that are under way: a cold one
	// takes long, and nodes prepare few at a time anyway. Of one tenant there are
	// tenantClaims at most, so that those which take long keep nobody else's away.
	claimWorkers = 128
	tenantClaims = 16
	// A node is waited for endTime: the end is decided by then, and the fleet goes
	// on asking.
	endWorkers = 64
	endTime    = 10 * time.Second
	// lookAgain is when an object is looked at again of which the last look said
	// that nothing can be done: its class may have changed, or the fleet's mind.
	lookAgain = time.Minute
	// orphanAfter is how long an object that the API made may be without a record:
	// its creation may be under way, and be answered late.
	orphanAfter = time.Minute
)

// NewEnvironments registers with w, which must not run yet.
func NewEnvironments(log *slog.Logger, w *Watches, s *Store, f claimer) *Environments {
	e := &Environments{log: log, w: w, store: s, fleet: f, claims: newQueue[item](), ends: newQueue[item](), lives: newQueue[item](), sizes: newQueue[item](), turns: newTurns(tenantClaims)}
	onChange(w.environments, e.changed)
	return e
}

// changed notes what there is to do about an object. Before is what it was, nil if
// it is new. A change that the claiming itself has made is no reason to try again
// at once: what failed would go on failing, as fast as the API server writes.
func (e *Environments) changed(before, o *v1alpha1.Environment, deleted bool) {
	it := item{refOf(o), e.store.idOf(o)}
	if !deleted && wantsLife(o) {
		e.lives.Add(it)
	}
	if !deleted && e.wantsSize(o) {
		e.sizes.Add(it)
	}
	switch {
	case deleted, o.DeletionTimestamp != nil:
		e.ends.Add(it)
	case e.store.seal.sealed(o):
		if !e.store.Known(it.id, it.ref) {
			e.ends.AddAfter(it, orphanAfter)
		}
	case e.wantsClaim(o) && (before == nil || !e.wantsClaim(before) || !sameWish(before, o)):
		e.claims.Add(it)
	}
}

// sameWish tells that both objects ask for the same.
func sameWish(a, b *v1alpha1.Environment) bool {
	x, y := a.Spec, b.Spec
	x.Placement, y.Placement = nil, nil
	return a.UID == b.UID && maps.Equal(a.Labels, b.Labels) && equality.Semantic.DeepEqual(x, y)
}

// wantsClaim tells an object for which there may be no environment yet.
func (e *Environments) wantsClaim(o *v1alpha1.Environment) bool {
	return !e.store.seal.sealed(o) && o.DeletionTimestamp == nil &&
		(o.Status.Phase == "" || o.Status.Phase == v1alpha1.EnvironmentPhase(env.PhaseClaiming))
}

// Run works until ctx ends.
func (e *Environments) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for range claimWorkers {
		workers.Go(func() { work(ctx, e.claims, e.claim) })
	}
	for range endWorkers {
		workers.Go(func() { work(ctx, e.ends, e.end) })
	}
	for range lifeWorkers {
		workers.Go(func() { work(ctx, e.lives, e.live) })
	}
	for range sizeWorkers {
		workers.Go(func() { work(ctx, e.sizes, e.size) })
	}
	<-ctx.Done()
	e.claims.ShutDown()
	e.ends.ShutDown()
	e.lives.ShutDown()
	e.sizes.ShutDown()
	workers.Wait()
	return nil
}

// work does what is queued until the queue ends. An error asks for another try
// with back-off.
func work[T comparable](ctx context.Context, q workqueue.TypedRateLimitingInterface[T], do func(context.Context, T) error) {
	for {
		it, over := q.Get()
		if over {
			return
		}
		if ctx.Err() != nil {
			q.Done(it)
			continue
		}
		if err := do(ctx, it); err != nil && ctx.Err() == nil {
			q.AddRateLimited(it)
		} else {
			q.Forget(it)
		}
		q.Done(it)
	}
}

func (e *Environments) claim(ctx context.Context, it item) error {
	if !e.turns.take(it) {
		return nil // its turn comes
	}
	defer func() {
		if next, ok := e.turns.give(it.namespace); ok {
			e.claims.Add(next)
		}
	}()
	o, ok := got[*v1alpha1.Environment](e.w.environments, it.namespace, it.name)
	if !ok || o.UID != it.uid || !e.wantsClaim(o) {
		return nil
	}
	spec, err := specOf(o)
	if err == nil {
		_, err = e.fleet.ClaimFor(ctx, fleet.ObjectRef{
			Object: it.String(), UID: string(it.uid), ID: it.id, Tenant: it.namespace, Labels: labelsOf(o, false), Spec: spec,
		})
	}
	switch {
	case err == nil, ctx.Err() != nil:
		return err
	case errors.Is(err, env.ErrState):
		e.log.Debug("object wants no environment any more", "object", it.ref, "reason", err)
		e.claims.AddAfter(it, lookAgain)
	case errors.Is(err, env.ErrInvalid):
		e.store.Refuse(o, err.Error())
		e.claims.AddAfter(it, lookAgain)
	default:
		e.store.Refuse(o, err.Error())
		return err
	}
	return nil
}

// end ends what the object is for. It is also where an object ends up that a claim
// made whose caller was told that it failed.
func (e *Environments) end(ctx context.Context, it item) error {
	o, ok := got[*v1alpha1.Environment](e.w.environments, it.namespace, it.name)
	away := !ok || o.UID != it.uid
	if e.store.Elsewhere(it.id, it.ref) {
		return e.ended(it, e.other(ctx, o, away))
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	if away {
		e.store.Gone(it.id, it.ref)
		return e.ended(it, e.fleet.End(ctx, it.id))
	}
	if o.DeletionTimestamp == nil {
		if e.store.Known(it.id, it.ref) {
			return nil
		}
		e.log.Warn("deleting environment that no claim was answered with", "object", it.ref, "environment", it.id)
		return e.ended(it, e.store.Orphan(ctx, o))
	}
	e.store.Deleting(it.id, it.ref)
	if err := e.fleet.End(ctx, it.id); err != nil {
		return e.ended(it, err)
	}
	if e.store.Known(it.id, it.ref) || !slices.Contains(o.Finalizers, v1alpha1.Finalizer) {
		return nil // the store lets go when the nodes have
	}
	return e.ended(it, e.store.LetGo(ctx, o))
}

// other takes away an object that says it is of an environment which another object
// holds.
func (e *Environments) other(ctx context.Context, o *v1alpha1.Environment, away bool) error {
	switch {
	case away:
		return nil
	case o.DeletionTimestamp == nil:
		return e.store.Orphan(ctx, o)
	default:
		return e.store.LetGo(ctx, o)
	}
}

func (e *Environments) ended(it item, err error) error {
	if err != nil {
		e.log.Warn("environment of deleted object not ended", "object", it.ref, "environment", it.id, "error", err)
	}
	return err
}

// specOf is what the object asks for.
func specOf(o *v1alpha1.Environment) (*hearthv1.ClaimSpec, error) {
	s := &hearthv1.ClaimSpec{
		Class: o.Spec.Class, Hostname: o.Spec.Hostname, Variables: o.Spec.Variables, Snapshot: o.Spec.Snapshot,
	}
	for _, m := range o.Spec.Mounts {
		s.Mounts = append(s.Mounts, &hearthv1.Mount{Name: m.Name, Directory: m.Directory, Path: m.Path, ReadOnly: m.ReadOnly})
	}
	if ttl := lifeOf(o); ttl != 0 {
		s.TimeToLive = durationpb.New(ttl)
	}
	var err error
	if s.Resources, err = limitsProto(o.Spec.Resources); err != nil {
		return nil, err
	}
	if eg := o.Spec.Egress; eg != nil {
		s.Egress = &hearthv1.EgressPolicy{Mode: egressModes[eg.Mode]}
		var err1, err2 error
		s.Egress.Allow, err1 = rulesOf(eg.Allow)
		s.Egress.Deny, err2 = rulesOf(eg.Deny)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
	}
	return s, nil
}

var egressModes = map[v1alpha1.EgressMode]hearthv1.EgressPolicy_Mode{
	v1alpha1.EgressMode(env.EgressInternet): hearthv1.EgressPolicy_MODE_INTERNET,
	v1alpha1.EgressMode(env.EgressNone):     hearthv1.EgressPolicy_MODE_NONE,
	v1alpha1.EgressMode(env.EgressAllow):    hearthv1.EgressPolicy_MODE_ALLOW,
}

func rulesOf(in []v1alpha1.EgressRule) ([]*hearthv1.EgressRule, error) {
	var out []*hearthv1.EgressRule
	for _, r := range in {
		rule := &hearthv1.EgressRule{Cidr: r.CIDR}
		for _, p := range r.Ports {
			first, last, isRange := strings.Cut(string(p), "-")
			if !isRange {
				last = first
			}
			a, err1 := strconv.ParseUint(first, 10, 16)
			b, err2 := strconv.ParseUint(last, 10, 16)
			if err := errors.Join(err1, err2); err != nil {
				return nil, errors.Join(env.ErrInvalid, err)
			}
			rule.Ports = append(rule.Ports, &hearthv1.PortRange{First: uint32(a), Last: uint32(b)})
		}
		out = append(out, rule)
	}
	return out, nil
}
