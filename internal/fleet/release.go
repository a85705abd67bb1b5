package fleet

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// Release ends an environment. With snapshot one is taken first, and if that
// fails the environment stays as it was. Without, the end is stored before the
// node is asked: a node that does not answer is asked again when it is back. The
// end of an ephemeral one is stored nowhere, so it is an error if its node does
// not answer, though it is asked again. Releasing what is released already is no
// error.
func (f *Fleet) Release(ctx context.Context, p Principal, idempotencyKey, id string, snapshot bool) (*hearthv1.ReleaseResponse, error) {
	r, err := f.find(ctx, p, id)
	if err != nil {
		return nil, err
	}
	call, end, err := f.begin(ctx, r.Environment.GetTenant(), idempotencyKey, "Release", &hearthv1.ReleaseRequest{Environment: id, Snapshot: snapshot})
	if err != nil {
		return nil, err
	}
	defer end()
	if call.prior != nil {
		return answered(call.prior, &hearthv1.ReleaseResponse{})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.cfg.SnapshotTimeout)
	defer cancel()
	resp, err := f.release(ctx, r.ID(), snapshot)
	if err == nil && resp.GetSnapshot() != nil {
		call.remember(resp)
	}
	return resp, err
}

func (f *Fleet) release(ctx context.Context, id env.ID, snapshot bool) (*hearthv1.ReleaseResponse, error) {
	switch r := f.record(id); {
	case r == nil:
		return nil, notFound(id)
	case r.Phase() == env.PhaseReleased && (len(r.Stale) == 0 || !r.Ephemeral):
		return &hearthv1.ReleaseResponse{}, nil
	case r.Phase() == env.PhaseClaiming && f.isUnderWay(id):
		return nil, fmt.Errorf("%w: environment %s is being claimed; repeat its claim or wait", env.ErrState, id)
	case snapshot && r.Phase() != env.PhaseReleased:
		return f.releaseWithSnapshot(ctx, r)
	default:
		return f.releaseNow(ctx, id)
	}
}

func (f *Fleet) releaseWithSnapshot(ctx context.Context, r *Record) (*hearthv1.ReleaseResponse, error) {
	id := r.ID()
	done, err := f.use(ctx, id)
	if err != nil {
		return nil, err
	}
	defer done()
	if r = f.record(id); r == nil {
		return nil, notFound(id)
	}
	client, err := f.reach(r)
	if err != nil {
		return nil, err
	}
	n, err := client.Release(ctx, releaseRequest(r.ID(), r.Generation(), true))
	if err != nil {
		return nil, f.nodeError(r, err)
	}
	f.freed(r)
	if f.released(r) {
		f.happened(Released, r, "")
	}
	return &hearthv1.ReleaseResponse{Snapshot: proto.CloneOf(n.GetSnapshot())}, nil
}

// releaseNow stores the end first. The class may want a snapshot at release,
// which the node then takes by itself.
func (f *Fleet) releaseNow(ctx context.Context, id env.ID) (*hearthv1.ReleaseResponse, error) {
	r, resp, err := f.endAt(ctx, id)
	if r == nil {
		return nil, err
	}
	switch {
	case err == nil:
		return resp, nil
	case r.Ephemeral:
		return nil, fmt.Errorf("%w; only this controller knows that environment %s is to end, and goes on trying: repeat until it succeeds", err, id)
	}
	f.log.Warn("release waits for node", "environment", r.ID(), "node", r.Environment.GetNode(), "reason", err)
	return &hearthv1.ReleaseResponse{}, nil
}

// endAt decides the end and asks the node. The record is nil if the end was not
// decided. The sweep leaves the placement alone meanwhile.
func (f *Fleet) endAt(ctx context.Context, id env.ID) (*Record, *hearthv1.ReleaseResponse, error) {
	done := func(error) {}
	if r := f.record(id); r != nil {
		done = f.holdEnding(staleItem{id, Placement{r.Environment.GetNode(), r.Generation()}})
	}
	defer done(nil)
	r, err := f.decideEnd(id)
	if err != nil {
		return nil, nil, err
	}
	if len(r.Stale) == 0 {
		return r, &hearthv1.ReleaseResponse{}, nil
	}
	resp, err := f.releaseAt(ctx, r)
	return r, resp, err
}

// releaseAt asks the node of a record that has ended to let go of it. If it does
// not answer, the placement stays stale and the sweep asks again.
func (f *Fleet) releaseAt(ctx context.Context, r *Record) (*hearthv1.ReleaseResponse, error) {
	client, err := f.reach(r)
	if err != nil {
		return nil, err
	}
	done := f.holdEnding(staleItem{r.ID(), Placement{r.Environment.GetNode(), r.Generation()}})
	n, err := client.Release(ctx, releaseRequest(r.ID(), r.Generation(), false))
	if err == nil {
		f.freed(r)
	}
	if isGone(err) {
		n, err = &hearthv1.NodeReleaseResponse{}, nil
	}
	if err != nil {
		done(err)
		return nil, f.nodeError(r, err)
	}
	f.released(r)
	done(nil)
	return &hearthv1.ReleaseResponse{Snapshot: proto.CloneOf(n.GetSnapshot())}, nil
}

// freed books the room that a release has made, so that a claim that follows need
// not wait for the node's next report.
func (f *Fleet) freed(r *Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index.Freed(r.Environment.GetNode(), r.Environment.GetClass(), int64(r.Environment.GetResources().GetMemoryBytes()))
}

// released notes that the node has let go of the record's placement. That is
// stored behind: after a crash the node is asked again, and has nothing.
func (f *Fleet) released(released *Record) (first bool) {
	at := Placement{released.Environment.GetNode(), released.Generation()}
	_, err := f.note("released", released.ID(), func(r *Record) (bool, error) {
		if r.Generation() == at.Generation && r.Phase() != env.PhaseReleased {
			first = true
			r.Environment.Phase, r.Environment.Message, r.Environment.Reason, r.Ended = hearthv1.Phase_PHASE_RELEASED, "", "", true
		}
		r.dropStale(at)
		return true, nil
	})
	if err != nil && !isNotFound(err) {
		f.log.Warn("release not noted", "environment", released.ID(), "error", err)
	}
	return first
}
