package controllerapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/rpc"
)

// Environments serves hearth.v1.EnvironmentService. It must be mounted behind
// the gate of Authenticate.
type Environments struct{ fleet *fleet.Fleet }

var _ hearthv1connect.EnvironmentServiceHandler = (*Environments)(nil)

// NewEnvironments makes the service.
func NewEnvironments(f *fleet.Fleet) *Environments { return &Environments{f} }

type principalKey struct{}

// Authenticate is the gate that turns "authorization: Bearer <API key>" into a
// principal. Keys of the first function are tried after the fleet's own.
func Authenticate(f *fleet.Fleet, listed func(key string) (fleet.Principal, bool)) rpc.Gate {
	return func(ctx context.Context, _ string, h http.Header) (context.Context, error) {
		key, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
		if !ok || key == "" {
			return ctx, rpc.Unauthenticated(fmt.Errorf("%w: the API key is missing: send the header \"authorization: Bearer <key>\"", env.ErrDenied))
		}
		p, err := f.Authenticate(key)
		if err != nil {
			var found bool
			if p, found = listed(key); !found {
				return ctx, rpc.Unauthenticated(err)
			}
		}
		return context.WithValue(ctx, principalKey{}, p), nil
	}
}

// principal is the caller's; without the gate it is nobody, who sees nothing.
func principal(ctx context.Context) fleet.Principal {
	p, _ := ctx.Value(principalKey{}).(fleet.Principal)
	return p
}

// Claim implements the service.
func (s *Environments) Claim(ctx context.Context, r *hearthv1.ClaimRequest) (*hearthv1.ClaimResponse, error) {
	return s.fleet.Claim(ctx, principal(ctx), r.GetIdempotencyKey(), r.GetSpec())
}

// Get implements the service.
func (s *Environments) Get(ctx context.Context, r *hearthv1.GetRequest) (*hearthv1.GetResponse, error) {
	e, err := s.fleet.Get(ctx, principal(ctx), r.GetEnvironment())
	return &hearthv1.GetResponse{Environment: e}, err
}

// List implements the service.
func (s *Environments) List(ctx context.Context, r *hearthv1.ListRequest) (*hearthv1.ListResponse, error) {
	return &hearthv1.ListResponse{Environments: s.fleet.List(principal(ctx), r.GetClass(), r.GetNode())}, nil
}

// Pause implements the service.
func (s *Environments) Pause(ctx context.Context, r *hearthv1.PauseRequest) (*hearthv1.PauseResponse, error) {
	e, err := s.fleet.Pause(ctx, principal(ctx), r.GetIdempotencyKey(), r.GetEnvironment())
	return &hearthv1.PauseResponse{Environment: e}, err
}

// Resume implements the service.
func (s *Environments) Resume(ctx context.Context, r *hearthv1.ResumeRequest) (*hearthv1.ResumeResponse, error) {
	e, err := s.fleet.Resume(ctx, principal(ctx), r.GetIdempotencyKey(), r.GetEnvironment())
	return &hearthv1.ResumeResponse{Environment: e}, err
}

// Snapshot implements the service.
func (s *Environments) Snapshot(ctx context.Context, r *hearthv1.SnapshotRequest) (*hearthv1.SnapshotResponse, error) {
	snap, err := s.fleet.Snapshot(ctx, principal(ctx), r.GetIdempotencyKey(), r.GetEnvironment())
	return &hearthv1.SnapshotResponse{Snapshot: snap}, err
}

// ListSnapshots implements the service.
func (s *Environments) ListSnapshots(ctx context.Context, r *hearthv1.ListSnapshotsRequest) (*hearthv1.ListSnapshotsResponse, error) {
	list, err := s.fleet.ListSnapshots(ctx, principal(ctx), r.GetEnvironment())
	return &hearthv1.ListSnapshotsResponse{Snapshots: list}, err
}

// Fork implements the service.
func (s *Environments) Fork(ctx context.Context, r *hearthv1.ForkRequest) (*hearthv1.ForkResponse, error) {
	return s.fleet.Fork(ctx, principal(ctx), r)
}

// Release implements the service.
func (s *Environments) Release(ctx context.Context, r *hearthv1.ReleaseRequest) (*hearthv1.ReleaseResponse, error) {
	return s.fleet.Release(ctx, principal(ctx), r.GetIdempotencyKey(), r.GetEnvironment(), r.GetSnapshot())
}

// Token implements the service.
func (s *Environments) Token(ctx context.Context, r *hearthv1.TokenRequest) (*hearthv1.TokenResponse, error) {
	a, err := s.fleet.Token(ctx, principal(ctx), r.GetEnvironment())
	return &hearthv1.TokenResponse{Access: a}, err
}
