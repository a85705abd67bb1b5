package nodeapi

import (
	"context"
	"fmt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/rpc"
)

// orders carries out what is asked of the agent as a whole.
type orders interface {
	// SetClasses replaces the classes by manifests in JSON, and keeps them and
	// the name of the set over restarts. A wrong one changes nothing.
	SetClasses(ctx context.Context, revision string, manifests [][]byte) error
	// ClassesRevision names the set in force; empty if no controller has set one.
	ClassesRevision() string
	// SetBudget bounds what all environments use together, over restarts. Zero
	// leaves a bound to the node's configuration.
	SetBudget(ctx context.Context, memoryBytes, cpuMillis uint64) error
	// HandOver lets go of the node's state for a newer agent; Served ends what
	// was kept up until that one serves.
	HandOver(ctx context.Context) error
	Served() error
}

// Bounds of one set of classes.
const (
	maxClasses       = 1000
	maxClassRevision = 128
)

// SetClasses implements NodeService. It is idempotent by nature.
func (s *Service) SetClasses(ctx context.Context, req *hearthv1.SetClassesRequest) (*hearthv1.SetClassesResponse, error) {
	switch n := len(req.GetManifests()); {
	case n > maxClasses:
		return nil, fmt.Errorf("%w: %d classes, at most %d", env.ErrInvalid, n, maxClasses)
	case req.GetRevision() == "" || len(req.GetRevision()) > maxClassRevision:
		return nil, fmt.Errorf("%w: the set of classes needs a revision of at most %d bytes", env.ErrInvalid, maxClassRevision)
	}
	if err := s.orders.SetClasses(ctx, req.GetRevision(), req.GetManifests()); err != nil {
		return nil, err
	}
	return &hearthv1.SetClassesResponse{}, nil
}

// SetBudget implements NodeService. It is idempotent by nature.
func (s *Service) SetBudget(ctx context.Context, req *hearthv1.SetBudgetRequest) (*hearthv1.SetBudgetResponse, error) {
	if err := s.orders.SetBudget(ctx, req.GetMemoryBytes(), req.GetCpuMillis()); err != nil {
		return nil, err
	}
	return &hearthv1.SetBudgetResponse{}, nil
}

// HandOver implements NodeService, for a newer agent on this node only. It goes
// on if the caller gives up waiting: a half of it is worse than none.
func (s *Service) HandOver(ctx context.Context, req *hearthv1.HandOverRequest) (*hearthv1.HandOverResponse, error) {
	if !rpc.CallerFrom(ctx).Local {
		return nil, fmt.Errorf("%w: an agent hands over on its node's socket only", env.ErrDenied)
	}
	var err error
	if req.GetServing() {
		err = s.orders.Served()
	} else {
		err = s.orders.HandOver(context.WithoutCancel(ctx))
	}
	if err != nil {
		return nil, err
	}
	return &hearthv1.HandOverResponse{}, nil
}
