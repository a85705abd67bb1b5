package kube

import (
	"context"
	"errors"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/config"
	"hearth/internal/env"
)

// sizeWorkers bounds the changes of limits that are under way.
const sizeWorkers = 4

// limitsProto is what an object asks for; nil for nothing.
func limitsProto(r *v1alpha1.EnvironmentResources) (*hearthv1.Resources, error) {
	l, err := config.LimitsOf(r)
	if err != nil || l == (env.Limits{}) {
		return nil, err
	}
	out := &hearthv1.Resources{CpuMillis: uint64(l.CPUMillis), MemoryBytes: uint64(l.MemoryBytes)}
	if l.CPUBurstMillis != 0 {
		burst := uint64(max(l.CPUBurstMillis, 0))
		out.CpuBurstMillis = &burst
	}
	return out, nil
}

// resourcesFrom reads what was in force. A status that somebody has spoilt says
// nothing: the node will say better.
func resourcesFrom(r *v1alpha1.EnvironmentResources) *hearthv1.Resources {
	out, err := limitsProto(r)
	if err != nil {
		return nil
	}
	return out
}

// resourcesStatus is the inverse of resourcesFrom.
func resourcesStatus(r *hearthv1.Resources) *v1alpha1.EnvironmentResources {
	return config.ResourcesOf(env.Limits{
		CPUMillis: int64(r.GetCpuMillis()), MemoryBytes: int64(r.GetMemoryBytes()), CPUBurstMillis: int64(r.GetCpuBurstMillis()),
	})
}

// wantsSize tells an object of somebody's own that asks for other limits than are
// in force. What it does not name stays as it is.
func (e *Environments) wantsSize(o *v1alpha1.Environment) bool {
	switch phase := env.Phase(o.Status.Phase); {
	case o.DeletionTimestamp != nil, o.Spec.Resources == nil, e.store.seal.sealed(o):
		return false
	case phase != env.PhaseRunning && phase != env.PhasePaused && phase != env.PhaseStalled:
		return false // it cannot be changed now
	}
	want, err := config.LimitsOf(o.Spec.Resources)
	if err != nil {
		return true // to be told
	}
	have, err := config.LimitsOf(o.Status.Resources)
	if err != nil {
		return true
	}
	if have.CPUBurstMillis == 0 {
		have.CPUBurstMillis = env.NoBurst
	}
	return have.Merge(want) != have
}

// size gives an environment the limits that its object asks for. A refusal is told;
// it may be over when others have ended, so it is tried again after a while.
func (e *Environments) size(ctx context.Context, it item) error {
	o, ok := got[*v1alpha1.Environment](e.w.environments, it.namespace, it.name)
	if !ok || o.UID != it.uid || !e.wantsSize(o) || e.store.Elsewhere(it.id, it.ref) {
		return nil
	}
	want, err := limitsProto(o.Spec.Resources)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, endTime)
		defer cancel()
		err = e.fleet.ResizeFor(ctx, it.id, want)
	}
	switch {
	case err == nil, errors.Is(err, env.ErrUnavailable), ctx.Err() != nil:
		return err
	case !errors.Is(err, env.ErrInvalid):
		e.sizes.AddAfter(it, lookAgain)
	}
	e.log.Warn("limits of object not set", "object", it.ref, "environment", it.id, "reason", err)
	return nil
}
