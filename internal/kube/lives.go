package kube

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// lifeWorkers bounds the changes of times to live that are under way.
const lifeWorkers = 4

// lifeOf is the time to live that the object asks for; 0 is what its class says.
func lifeOf(o *v1alpha1.Environment) time.Duration { return asLength(o.Spec.TimeToLive) }

func asLength(d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration
}

// lengthOf is nil for none.
func lengthOf(d *durationpb.Duration) *metav1.Duration {
	if d.AsDuration() == 0 {
		return nil
	}
	return &metav1.Duration{Duration: d.AsDuration()}
}

// readLifetime reads what was known of an environment's end and of its sleep.
func readLifetime(e *hearthv1.Environment, o *v1alpha1.Environment) {
	s := o.Status
	if e.GetPhase() == hearthv1.Phase_PHASE_CLAIMING {
		s.TimeToLive = o.Spec.TimeToLive // what its node is asked for
	}
	e.Reason = s.Reason
	if s.ExpiresAt != nil {
		e.ExpiresAt = timestamppb.New(s.ExpiresAt.Time)
	}
	if ttl := asLength(s.TimeToLive); ttl != 0 {
		e.TimeToLive = durationpb.New(ttl)
	}
}

// wantsLife tells an object that asks for another time to live than is in force.
func wantsLife(o *v1alpha1.Environment) bool {
	return o.DeletionTimestamp == nil && env.Phase(o.Status.Phase).Live() && lifeOf(o) != asLength(o.Status.TimeToLive)
}

// live brings an environment's time to live to what its object says. What the
// class does not allow is told, and not tried again before the object changes.
func (e *Environments) live(ctx context.Context, it item) error {
	o, ok := got[*v1alpha1.Environment](e.w.environments, it.namespace, it.name)
	if !ok || o.UID != it.uid || !wantsLife(o) || e.store.Elsewhere(it.id, it.ref) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	err := e.fleet.SetTimeToLive(ctx, it.id, lifeOf(o))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, env.ErrInvalid):
		e.log.Warn("time to live of object not set", "object", it.ref, "environment", it.id, "reason", err)
		return nil
	default:
		return err
	}
}
