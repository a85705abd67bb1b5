package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/placement"
)

// place stores where the claim goes, before it goes there. For a claim that the
// first node takes it is the only thing that is waited for; for an ephemeral
// class nothing is stored.
func (c *claiming) place(node string) error {
	if c.record == nil {
		return c.placeFirst(node)
	}
	f := c.f
	defer f.lanes.enter(c.id)()
	have := f.record(c.id)
	switch {
	case have == nil:
		return notFound(c.id)
	case have.final():
		return fmt.Errorf("%w: the claim of %s was given up", env.ErrState, c.id)
	}
	r := have.clone()
	r.Environment.Node = node
	r.Environment.Generation++
	r.setEphemeral(r.Ephemeral && f.isEphemeral(node, c.spec.GetClass())) // what is stored once stays so
	if err := f.write("claim-place", r, durably); err != nil {
		if errors.Is(err, env.ErrUnavailable) {
			f.show(r) // a generation that may be stored is not used for another node
		}
		return err
	}
	c.record = r
	f.settled(c.id) // nobody can have been told of this generation
	return nil
}

func (f *Fleet) settled(id env.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.doubtful, id)
}

func (f *Fleet) isFenced(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fenced(node, time.Now())
}

func (c *claiming) placeFirst(node string) error {
	f := c.f
	defer f.lanes.enter(c.id)()
	if f.isUnwanted(c.id) {
		return fmt.Errorf("%w: the claim of %s is not wanted any more", env.ErrState, c.id)
	}
	r := c.by.clone()
	r.Environment = &hearthv1.Environment{
		Id: string(c.id), Class: c.spec.GetClass(), Tenant: c.spec.GetTenant(), Labels: c.spec.GetLabels(),
		Generation: 1, Phase: hearthv1.Phase_PHASE_CLAIMING, Node: node, ClaimedAt: timestamppb.Now(), RestoredFrom: c.spec.GetSnapshot(),
		TimeToLive: c.spec.GetTimeToLive(),
	}
	r.setEphemeral(r.Object == "" && f.isEphemeral(node, c.spec.GetClass()))
	if err := f.write("claim-place", r, durably); err != nil {
		f.unplaced(r, err)
		return err
	}
	c.record = r
	return nil
}

// unplaced takes back a new record of which the store did not say that it is
// there: should it be, nobody was asked to make it.
func (f *Fleet) unplaced(r *Record, err error) {
	if errors.Is(err, env.ErrUnavailable) && r.Object == "" {
		f.store.Post(Change{Op: "claim-undo", DeleteRecord: r.ID()})
	}
	f.settle(r.ID())
}

// lost notes that the node may hold this generation, before another is made. It
// is stored with the next placement; after a crash before that, this node is
// asked again. If an earlier process may have answered for what this node holds,
// no other is made as long as that may run: done, with the reason.
func (c *claiming) lost(node string, cause error) (done bool, err error) {
	if c.f.inDoubt(c.record) && !c.f.isFenced(node) {
		return true, fmt.Errorf("%w: node %s may run environment %s and did not answer: %.*s; repeat the claim with the same idempotency key",
			env.ErrUnavailable, node, c.id, maxReason, cause)
	}
	c.silent = true
	c.note(node, "did not answer: ", cause)
	r, err := c.f.note("claim-lost", c.id, func(r *Record) (bool, error) {
		r.makeStale()
		return true, nil
	})
	if err != nil {
		return true, err
	}
	c.record = r
	return false, nil
}

// finish shows the environment and answers. That it runs is stored behind: until
// then the node's inventory says so.
func (c *claiming) finish(d placement.Decision, n *hearthv1.NodeClaimResponse) (*hearthv1.ClaimResponse, error) {
	r, err := c.f.ran("claim-done", c.record, n.GetEnvironment())
	if err != nil {
		return nil, err
	}
	return &hearthv1.ClaimResponse{
		Environment: shown(r.Environment), Access: n.GetAccess(), Took: n.GetTook(), Placement: append(c.refused, d.Reasons...),
	}, nil
}

// ran notes what the node made of a placement.
func (f *Fleet) ran(op string, placed *Record, e *hearthv1.Environment) (*Record, error) {
	first := false
	r, err := f.note(op, placed.ID(), func(r *Record) (bool, error) {
		if r.final() || r.Generation() != placed.Generation() || e.GetId() != string(r.ID()) {
			return false, fmt.Errorf("%w: environment %s was given up while its claim went on; claim again", env.ErrState, r.ID())
		}
		first = r.Phase() == env.PhaseClaiming
		r.Environment = r.merged(e)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if first {
		f.happened(Claimed, r, "")
	}
	return r, nil
}

// giveUp ends the claim with cause. The key may be used again for a new attempt.
// What a node may hold stays stored until the node has let go of it, and if one
// was silent the record stays for what that one makes late. A claim for an object
// stays as it is, since it is repeated for as long as the object exists.
func (c *claiming) giveUp(cause error) error {
	if len(c.refused) > 0 {
		cause = fmt.Errorf("%w; tried: %v", cause, c.refused)
	}
	told := c.by
	if c.record != nil {
		told = c.record
	} else {
		told = told.clone()
		told.Environment = &hearthv1.Environment{Id: string(c.id), Class: c.spec.GetClass(), Tenant: c.spec.GetTenant(), Labels: c.spec.GetLabels()}
	}
	c.f.happened(ClaimFailed, told, cause.Error())
	if c.record == nil || c.record.Object != "" {
		return cause
	}
	return errors.Join(cause, c.undo(cause))
}

func (c *claiming) undo(cause error) error {
	f := c.f
	defer f.lanes.enter(c.id)()
	r := f.record(c.id)
	switch {
	case r == nil || r.Ended:
		return nil
	case len(r.Stale) == 0 && !c.silent:
		f.drop("claim-failed", r)
		return nil
	default:
		r = r.clone()
		r.giveUp("the claim failed: " + cause.Error())
		return f.write("claim-failed", r, durably)
	}
}

// waitForNode waits, shortly after a start, until the node reports.
func (f *Fleet) waitForNode(ctx context.Context, node string) bool {
	for {
		f.mu.Lock()
		n := f.nodes[node]
		ok := n != nil && n.session != 0 && n.ephemeral != nil
		seen := f.changed
		f.mu.Unlock()
		if ok || !f.waitForChange(ctx, seen) {
			return ok
		}
	}
}
