package main

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
)

// controller is the backend of callers.
type controller struct {
	api hearthv1connect.EnvironmentServiceClient
}

func (c controller) claim(ctx context.Context, key string, spec *hearthv1.ClaimSpec) (*hearthv1.ClaimResponse, error) {
	return c.api.Claim(ctx, &hearthv1.ClaimRequest{IdempotencyKey: key, Spec: spec})
}

func (c controller) get(ctx context.Context, id string) (*hearthv1.Environment, error) {
	r, err := c.api.Get(ctx, &hearthv1.GetRequest{Environment: id})
	return r.GetEnvironment(), err
}

func (c controller) list(ctx context.Context, class, node string) ([]*hearthv1.Environment, error) {
	r, err := c.api.List(ctx, &hearthv1.ListRequest{Class: class, Node: node})
	return r.GetEnvironments(), err
}

// classes are those in use: callers may not list the rest.
func (c controller) classes(ctx context.Context) ([]string, error) {
	envs, err := c.list(ctx, "", "")
	var names []string
	for _, e := range envs {
		names = append(names, e.GetClass())
	}
	slices.Sort(names)
	return slices.Compact(names), err
}

func (c controller) pause(ctx context.Context, key, id string) (*hearthv1.Environment, error) {
	r, err := c.api.Pause(ctx, &hearthv1.PauseRequest{IdempotencyKey: key, Environment: id})
	return r.GetEnvironment(), err
}

func (c controller) resume(ctx context.Context, key, id string) (*hearthv1.Environment, error) {
	r, err := c.api.Resume(ctx, &hearthv1.ResumeRequest{IdempotencyKey: key, Environment: id})
	return r.GetEnvironment(), err
}

func (c controller) resize(ctx context.Context, key, id string, want *hearthv1.Resources) (*hearthv1.Environment, error) {
	r, err := c.api.Resize(ctx, &hearthv1.ResizeRequest{IdempotencyKey: key, Environment: id, Resources: want})
	return r.GetEnvironment(), err
}

func (c controller) snapshot(ctx context.Context, key, id string) (*hearthv1.Snapshot, error) {
	r, err := c.api.Snapshot(ctx, &hearthv1.SnapshotRequest{IdempotencyKey: key, Environment: id})
	return r.GetSnapshot(), err
}

func (c controller) snapshots(ctx context.Context, id string) ([]*hearthv1.Snapshot, error) {
	r, err := c.api.ListSnapshots(ctx, &hearthv1.ListSnapshotsRequest{Environment: id})
	return r.GetSnapshots(), err
}

func (c controller) fork(ctx context.Context, key, id string, count int, vars map[string]string) (*hearthv1.ForkResponse, error) {
	return c.api.Fork(ctx, &hearthv1.ForkRequest{IdempotencyKey: key, Environment: id, Count: uint32(count), Variables: vars})
}

func (c controller) extend(ctx context.Context, key, id string, end ending) (*hearthv1.Environment, error) {
	req := &hearthv1.ExtendRequest{IdempotencyKey: key, Environment: id, End: &hearthv1.ExtendRequest_Duration{Duration: durationpb.New(end.in)}}
	if end.at != nil {
		req.End = &hearthv1.ExtendRequest_ExpiresAt{ExpiresAt: end.at}
	}
	r, err := c.api.Extend(ctx, req)
	return r.GetEnvironment(), err
}

func (c controller) release(ctx context.Context, key, id string, snapshot bool) (*hearthv1.Snapshot, error) {
	r, err := c.api.Release(ctx, &hearthv1.ReleaseRequest{IdempotencyKey: key, Environment: id, Snapshot: snapshot})
	return r.GetSnapshot(), err
}

func (c controller) token(ctx context.Context, id string) (*hearthv1.Access, error) {
	r, err := c.api.Token(ctx, &hearthv1.TokenRequest{Environment: id})
	return r.GetAccess(), err
}

func (c controller) upgrade(ctx context.Context, key, id string, keep hearthv1.Keep) (*hearthv1.UpgradeResponse, error) {
	return c.api.Upgrade(ctx, &hearthv1.UpgradeRequest{IdempotencyKey: key, Environment: id, Keep: keep})
}
