package fleet

import (
	"context"
	"errors"
	"fmt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// Upgrade moves an environment to the newest revision of its class on its node,
// also one that is for somebody's object: it is an order, and nothing that an
// object asks for. It waits while the environment moves. A caller who goes away
// ends it, unless it is done already.
func (f *Fleet) Upgrade(ctx context.Context, p Principal, req *hearthv1.UpgradeRequest) (*hearthv1.UpgradeResponse, error) {
	if _, known := hearthv1.Keep_name[int32(req.GetKeep())]; !known {
		return nil, fmt.Errorf("%w: keep %s; all or workspace", env.ErrInvalid, req.GetKeep())
	}
	id := req.GetEnvironment()
	r, client, done, err := f.liveInUse(ctx, p, id)
	if err != nil {
		return nil, err
	}
	defer done()
	key, err := nodeKey(r.Environment.GetTenant(), "Upgrade", req.GetIdempotencyKey())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.SnapshotTimeout) // files are copied
	defer cancel()
	resp, err := client.Upgrade(ctx, &hearthv1.NodeUpgradeRequest{IdempotencyKey: key, Environment: id, Keep: req.GetKeep()})
	if errors.Is(err, env.ErrUnsupported) {
		return nil, fmt.Errorf("node %s cannot upgrade environments; if its agent is older than this controller, update the agent: %w", r.Environment.GetNode(), err)
	}
	if err != nil {
		return nil, f.nodeError(r, err)
	}
	return &hearthv1.UpgradeResponse{Environment: f.observed(r, resp.GetEnvironment()), Snapshot: resp.GetSnapshot()}, nil
}
