package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// Limits of an environment's own are its node's to keep: the controller stores
// none, only what is in force, which the node tells. A move takes them along with
// what else the environment was claimed with.

// Resize changes an environment's limits, all or none. One that is for somebody's
// object is resized by that.
func (f *Fleet) Resize(ctx context.Context, p Principal, key, id string, want *hearthv1.Resources) (*hearthv1.Environment, error) {
	if err := checkResources(want); err != nil {
		return nil, err
	}
	r, err := f.find(ctx, p, id)
	if err != nil {
		return nil, err
	}
	if r.Object != "" {
		return nil, fmt.Errorf("%w: environment %s is for the object %s: change its spec.resources", env.ErrState, id, r.Object)
	}
	return f.turn(ctx, p, "Resize", key, id, resizing(id, want))
}

func resizing(id string, want *hearthv1.Resources) func(context.Context, hearthv1connect.NodeServiceClient, string) (*hearthv1.Environment, error) {
	return func(ctx context.Context, c hearthv1connect.NodeServiceClient, key string) (*hearthv1.Environment, error) {
		resp, err := c.Resize(ctx, &hearthv1.NodeResizeRequest{IdempotencyKey: key, Environment: id, Resources: want})
		return resp.GetEnvironment(), err
	}
}

// ResizeFor gives an environment the limits that its object asks for now. What is
// in force already is not set again. A refusal is told.
func (f *Fleet) ResizeFor(ctx context.Context, id env.ID, want *hearthv1.Resources) error {
	r := f.record(id)
	if r == nil || r.final() || has(r.Environment.GetResources(), want) {
		return nil
	}
	err := checkResources(want)
	if err == nil {
		// The same wish may come again after another one: it is what the node has that
		// decides.
		key := fmt.Sprintf("%s/%d", id, time.Now().UnixNano())
		_, err = f.turn(ctx, Principal{Admin: true}, "ResizeFor", key, string(id), resizing(string(id), want))
	}
	if errors.Is(err, env.ErrInvalid) || errors.Is(err, env.ErrState) || errors.Is(err, env.ErrExhausted) || errors.Is(err, env.ErrUnsupported) {
		f.happened(ResizeRefused, r, err.Error())
	}
	return err
}

// has reports whether what is wanted is in force.
func has(have, want *hearthv1.Resources) bool {
	merged := &hearthv1.Resources{CpuMillis: have.GetCpuMillis(), MemoryBytes: have.GetMemoryBytes()}
	burst := have.GetCpuBurstMillis()
	if want.GetCpuMillis() != 0 {
		merged.CpuMillis = want.GetCpuMillis()
	}
	if want.GetMemoryBytes() != 0 {
		merged.MemoryBytes = want.GetMemoryBytes()
	}
	if want != nil && want.CpuBurstMillis != nil {
		burst = want.GetCpuBurstMillis()
	}
	return merged.GetCpuMillis() == have.GetCpuMillis() && merged.GetMemoryBytes() == have.GetMemoryBytes() && burst == have.GetCpuBurstMillis()
}

// checkResources refuses what no environment can have.
func checkResources(r *hearthv1.Resources) error {
	if r == nil {
		return nil
	}
	const most = 1 << 60 // the bounds are far below
	if r.GetCpuMillis() > most || r.GetMemoryBytes() > most || r.GetCpuBurstMillis() > most {
		return fmt.Errorf("%w: resources %v", env.ErrInvalid, r)
	}
	return env.Limits{
		CPUMillis: int64(r.GetCpuMillis()), MemoryBytes: int64(r.GetMemoryBytes()), CPUBurstMillis: int64(r.GetCpuBurstMillis()),
	}.Check()
}
