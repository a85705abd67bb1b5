package controllerapi

import (
	"context"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/fleet"
)

// Environments serves hearth.v1.EnvironmentService. It must be mounted behind
// the gate of Authenticate.
type Environments struct {
	fleet  *fleet.Fleet
	access authorizer
}

var _ hearthv1connect.EnvironmentServiceHandler = (*Environments)(nil)

// NewEnvironments makes the service. The cluster is the one of Authenticate.
func NewEnvironments(f *fleet.Fleet, cluster Cluster) *Environments {
	return &Environments{fleet: f, access: cluster.Access}
}

// Claim implements the service.
func (s *Environments) Claim(ctx context.Context, r *hearthv1.ClaimRequest) (*hearthv1.ClaimResponse, error) {
	p, err := s.in(ctx, r.GetSpec().GetTenant(), verbCreate)
	if err != nil {
		return nil, err
	}
	return s.fleet.Claim(ctx, p, r.GetIdempotencyKey(), r.GetSpec())
}

// Get implements the service.
func (s *Environments) Get(ctx context.Context, r *hearthv1.GetRequest) (*hearthv1.GetResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbGet)
	if err != nil {
		return nil, err
	}
	e, err := s.fleet.Get(ctx, p, r.GetEnvironment())
	return &hearthv1.GetResponse{Environment: e}, err
}

// List implements the service.
func (s *Environments) List(ctx context.Context, r *hearthv1.ListRequest) (*hearthv1.ListResponse, error) {
	p, err := s.listed(ctx, r.GetTenant())
	if err != nil {
		return nil, err
	}
	return &hearthv1.ListResponse{Environments: s.fleet.List(p, r.GetClass(), r.GetNode())}, nil
}

// Pause implements the service.
func (s *Environments) Pause(ctx context.Context, r *hearthv1.PauseRequest) (*hearthv1.PauseResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbUpdate)
	if err != nil {
		return nil, err
	}
	e, err := s.fleet.Pause(ctx, p, r.GetIdempotencyKey(), r.GetEnvironment())
	return &hearthv1.PauseResponse{Environment: e}, err
}

// Resume implements the service.
func (s *Environments) Resume(ctx context.Context, r *hearthv1.ResumeRequest) (*hearthv1.ResumeResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbUpdate)
	if err != nil {
		return nil, err
	}
	e, err := s.fleet.Resume(ctx, p, r.GetIdempotencyKey(), r.GetEnvironment())
	return &hearthv1.ResumeResponse{Environment: e}, err
}

// Resize implements the service.
func (s *Environments) Resize(ctx context.Context, r *hearthv1.ResizeRequest) (*hearthv1.ResizeResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbUpdate)
	if err != nil {
		return nil, err
	}
	e, err := s.fleet.Resize(ctx, p, r.GetIdempotencyKey(), r.GetEnvironment(), r.GetResources())
	return &hearthv1.ResizeResponse{Environment: e}, err
}

// Snapshot implements the service.
func (s *Environments) Snapshot(ctx context.Context, r *hearthv1.SnapshotRequest) (*hearthv1.SnapshotResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbUpdate)
	if err != nil {
		return nil, err
	}
	snap, err := s.fleet.Snapshot(ctx, p, r.GetIdempotencyKey(), r.GetEnvironment())
	return &hearthv1.SnapshotResponse{Snapshot: snap}, err
}

// ListSnapshots implements the service.
func (s *Environments) ListSnapshots(ctx context.Context, r *hearthv1.ListSnapshotsRequest) (*hearthv1.ListSnapshotsResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbGet)
	if err != nil {
		return nil, err
	}
	list, err := s.fleet.ListSnapshots(ctx, p, r.GetEnvironment())
	return &hearthv1.ListSnapshotsResponse{Snapshots: list}, err
}

// Fork implements the service.
func (s *Environments) Fork(ctx context.Context, r *hearthv1.ForkRequest) (*hearthv1.ForkResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbUpdate, verbCreate)
	if err != nil {
		return nil, err
	}
	return s.fleet.Fork(ctx, p, r)
}

// Release implements the service.
func (s *Environments) Release(ctx context.Context, r *hearthv1.ReleaseRequest) (*hearthv1.ReleaseResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbDelete)
	if err != nil {
		return nil, err
	}
	return s.fleet.Release(ctx, p, r.GetIdempotencyKey(), r.GetEnvironment(), r.GetSnapshot())
}

// Extend implements the service.
func (s *Environments) Extend(ctx context.Context, r *hearthv1.ExtendRequest) (*hearthv1.ExtendResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbUpdate)
	if err != nil {
		return nil, err
	}
	e, err := s.fleet.Extend(ctx, p, r)
	return &hearthv1.ExtendResponse{Environment: e}, err
}

// Token implements the service.
func (s *Environments) Token(ctx context.Context, r *hearthv1.TokenRequest) (*hearthv1.TokenResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbUpdate)
	if err != nil {
		return nil, err
	}
	a, err := s.fleet.Token(ctx, p, r.GetEnvironment())
	return &hearthv1.TokenResponse{Access: a}, err
}

// Upgrade implements the service.
func (s *Environments) Upgrade(ctx context.Context, r *hearthv1.UpgradeRequest) (*hearthv1.UpgradeResponse, error) {
	p, err := s.on(ctx, r.GetEnvironment(), verbUpdate)
	if err != nil {
		return nil, err
	}
	return s.fleet.Upgrade(ctx, p, r)
}
