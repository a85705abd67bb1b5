package nodeapi

import (
	"context"
	"fmt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/warm"
)

// Upgrade implements NodeService. A repeated key gets the first answer; after a
// restart of the agent the node still knows the key.
func (s *Service) Upgrade(ctx context.Context, req *hearthv1.NodeUpgradeRequest) (*hearthv1.NodeUpgradeResponse, error) {
	keep, err := keepOf(req.GetKeep())
	if err != nil {
		return nil, err
	}
	return once(ctx, s.memo, req.GetIdempotencyKey(), req, func() (*hearthv1.NodeUpgradeResponse, error) {
		u, err := s.node.Upgrade(ctx, env.ID(req.GetEnvironment()), req.GetIdempotencyKey(), keep)
		if err != nil {
			return nil, err
		}
		out := &hearthv1.NodeUpgradeResponse{Environment: s.environment(u.Environment)}
		if u.Snapshot.ID != "" {
			out.Snapshot = snapshotOf(u.Snapshot)
		}
		return out, nil
	})
}

// keepOf refuses what this agent does not know, rather than keep something else.
func keepOf(k hearthv1.Keep) (warm.Keep, error) {
	switch k {
	case hearthv1.Keep_KEEP_UNSPECIFIED, hearthv1.Keep_KEEP_ALL:
		return warm.KeepAll, nil
	case hearthv1.Keep_KEEP_WORKSPACE:
		return warm.KeepWorkspace, nil
	}
	return 0, fmt.Errorf("%w: keep %s; all or workspace", env.ErrInvalid, k)
}
