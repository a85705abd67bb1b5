package fleet

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// ObjectRef is an object that somebody made and that asks for an environment.
type ObjectRef struct {
	// Object is the store's name of it, and UID its identity.
	Object, UID string
	// ID is the environment's: always the same for the same UID.
	ID     env.ID
	Tenant string
	Labels map[string]string
	Spec   *hearthv1.ClaimSpec
}

// ClaimFor claims the environment that an object asks for. It may be called again
// at any time, and is, after an error and after a restart: it goes on with what
// was placed, and answers without access once the environment lives. After an
// error the object still wants one; env.ErrState says that its environment has
// ended and there will be no other, env.ErrInvalid that there can be none.
// It is stored whatever its class says, since the object outlives this process.
func (f *Fleet) ClaimFor(ctx context.Context, ref ObjectRef) (*hearthv1.ClaimResponse, error) {
	if _, err := env.ParseID(string(ref.ID)); err != nil {
		return nil, err
	}
	spec := &hearthv1.ClaimSpec{}
	if ref.Spec != nil {
		spec = proto.CloneOf(ref.Spec)
	}
	spec.Tenant, spec.Labels = ref.Tenant, ref.Labels
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	if ref.Object == "" {
		return nil, fmt.Errorf("%w: environment %s: the object has no name", env.ErrInvalid, ref.ID)
	}
	end, err := f.takeKey(ctx, claimKey("", string(ref.ID))) // no caller's: a tenant has a name
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, f.cfg.ClaimTimeout)
	defer cancel()
	c := f.newClaiming(spec, &Record{Count: 1, Object: ref.Object, UID: ref.UID}, ref.ID)
	switch r := f.record(ref.ID); {
	case r == nil:
		return c.start(ctx)
	case r.final():
		return nil, fmt.Errorf("%w: environment %s is %s%s", env.ErrState, r.ID(), r.Phase(), because(r))
	case r.Phase() == env.PhaseClaiming && !r.moving():
		return c.resume(ctx, r)
	default:
		return &hearthv1.ClaimResponse{Environment: shown(r.Environment)}, nil
	}
}

// End releases an environment because its object is to go. It may be called again
// at any time. An environment that is not known is ended too: should its claim be
// under way, it will not be placed.
func (f *Fleet) End(ctx context.Context, id env.ID) error {
	if f.unwant(id) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.SnapshotTimeout)
	defer cancel()
	r, _, err := f.endAt(ctx, id)
	switch {
	case r == nil && errors.Is(err, env.ErrNotFound):
		return nil
	case r == nil:
		return err
	case err != nil:
		f.log.Warn("release waits for node", "environment", id, "node", r.Environment.GetNode(), "reason", err)
	}
	return nil
}

// decideEnd stores the end of an environment, before its node is asked.
func (f *Fleet) decideEnd(id env.ID) (*Record, error) {
	first := false
	r, err := f.update("release", id, func(r *Record) (bool, error) {
		if r.Phase() == env.PhaseReleased {
			return false, nil
		}
		first = true
		r.end(hearthv1.Phase_PHASE_RELEASED, "")
		return true, nil
	})
	if err == nil && first {
		f.happened(Released, r, "")
	}
	return r, err
}

// unwant reports that there is no record, and sees to it that a claim that is
// under way makes none.
func (f *Fleet) unwant(id env.ID) bool {
	defer f.lanes.enter(id)()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.records[id] != nil {
		return false
	}
	if w := f.underWay[id]; w != nil {
		w.unwanted = true
	}
	return true
}

func (f *Fleet) isUnwanted(id env.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.underWay[id]
	return w != nil && w.unwanted
}
