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
// node is asked: a node that does not answer is asked again when it is back.
// Releasing what is released already is no error.
func (f *Fleet) Release(ctx context.Context, p Principal, idempotencyKey, id string, snapshot bool) (*hearthv1.ReleaseResponse, error) {
	r, err := f.find(p, id)
	if err != nil {
		return nil, err
	}
	request, err := digest("Release", &hearthv1.ReleaseRequest{Environment: id, Snapshot: snapshot})
	if err != nil {
		return nil, err
	}
	key := AnswerKey{r.Environment.GetTenant(), idempotencyKey}
	prior, end, err := f.begin(ctx, key, request)
	if err != nil {
		return nil, err
	}
	defer end()
	if prior != nil && prior.Response != nil {
		return answered(prior, &hearthv1.ReleaseResponse{})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.cfg.SnapshotTimeout)
	defer cancel()
	answer := f.newAnswer(key, request)
	switch {
	case r.Phase() == env.PhaseReleased:
		return &hearthv1.ReleaseResponse{}, nil
	case r.Phase() == env.PhaseClaiming:
		return nil, fmt.Errorf("%w: environment %s is being claimed; repeat its claim or wait", env.ErrState, id)
	case snapshot:
		return f.releaseWithSnapshot(ctx, r, answer)
	default:
		return f.releaseNow(ctx, r, answer)
	}
}

func (f *Fleet) releaseWithSnapshot(ctx context.Context, r *Record, answer *Answer) (*hearthv1.ReleaseResponse, error) {
	client, err := f.reach(r)
	if err != nil {
		return nil, err
	}
	if err := f.noteSnapshots(r.ID()); err != nil {
		return nil, err
	}
	resp, err := client.Release(ctx, releaseRequest(r.ID(), r.Generation(), true))
	if err != nil {
		return nil, f.nodeError(r, err)
	}
	return f.released(r, answer, resp)
}

// releaseNow stores the end first. The class may want a snapshot at release,
// which the node then takes by itself.
func (f *Fleet) releaseNow(ctx context.Context, r *Record, answer *Answer) (*hearthv1.ReleaseResponse, error) {
	r, err := f.update("release", r.ID(), nil, func(r *Record) (bool, error) {
		if r.Phase() == env.PhaseReleased {
			return false, nil
		}
		r.end(hearthv1.Phase_PHASE_RELEASED, "")
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	client, err := f.reach(r)
	if err != nil { // stale: the sweep will do it
		f.log.Warn("release waits for node", "environment", r.ID(), "node", r.Environment.GetNode(), "reason", err)
		return &hearthv1.ReleaseResponse{}, nil
	}
	done := f.holdEnding(staleItem{r.ID(), Placement{r.Environment.GetNode(), r.Generation()}})
	n, err := client.Release(ctx, releaseRequest(r.ID(), r.Generation(), false))
	if isGone(err) {
		n, err = &hearthv1.NodeReleaseResponse{}, nil
	}
	var resp *hearthv1.ReleaseResponse
	if err == nil {
		resp, err = f.released(r, answer, n)
		done(err)
		return resp, err
	}
	done(err)
	f.log.Warn("release waits for node", "environment", r.ID(), "node", r.Environment.GetNode(), "reason", err)
	return &hearthv1.ReleaseResponse{}, nil
}

// released stores that the node has let go, and the answer.
func (f *Fleet) released(r *Record, answer *Answer, n *hearthv1.NodeReleaseResponse) (*hearthv1.ReleaseResponse, error) {
	resp := &hearthv1.ReleaseResponse{Snapshot: proto.CloneOf(n.GetSnapshot())}
	done, err := answer.finished(resp)
	if err != nil {
		return nil, err
	}
	at := Placement{r.Environment.GetNode(), r.Generation()}
	_, err = f.update("released", r.ID(), done, func(r *Record) (bool, error) {
		r.Environment.Phase, r.Environment.Message = hearthv1.Phase_PHASE_RELEASED, ""
		r.dropStale(at)
		r.Snapshots = r.Snapshots || resp.GetSnapshot() != nil
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}
