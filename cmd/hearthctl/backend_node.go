package main

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// node is the backend of operators on a node: the agent without a controller.
type node struct {
	api hearthv1connect.NodeServiceClient
}

func (n node) claim(ctx context.Context, key string, spec *hearthv1.ClaimSpec) (*hearthv1.ClaimResponse, error) {
	r, err := n.api.Claim(ctx, &hearthv1.NodeClaimRequest{IdempotencyKey: key, Spec: spec})
	if err != nil {
		return nil, err
	}
	return claimed(r), nil
}

func claimed(r *hearthv1.NodeClaimResponse) *hearthv1.ClaimResponse {
	return &hearthv1.ClaimResponse{Environment: r.GetEnvironment(), Access: r.GetAccess(), Took: r.GetTook()}
}

func (n node) get(ctx context.Context, id string) (*hearthv1.Environment, error) {
	r, err := n.api.Get(ctx, &hearthv1.NodeGetRequest{Environment: id})
	return r.GetEnvironment(), err
}

func (n node) list(ctx context.Context, class, name string) ([]*hearthv1.Environment, error) {
	r, err := n.api.List(ctx, &hearthv1.NodeListRequest{})
	var out []*hearthv1.Environment
	for _, e := range r.GetEnvironments() {
		if (class == "" || e.GetClass() == class) && (name == "" || e.GetNode() == name) {
			out = append(out, e)
		}
	}
	return out, err
}

func (n node) classes(ctx context.Context) ([]string, error) {
	r, err := n.api.Inventory(ctx, &hearthv1.InventoryRequest{})
	var names []string
	for _, p := range r.GetPools() {
		names = append(names, p.GetClass())
	}
	return names, err
}

func (n node) pause(ctx context.Context, key, id string) (*hearthv1.Environment, error) {
	r, err := n.api.Pause(ctx, &hearthv1.NodePauseRequest{IdempotencyKey: key, Environment: id})
	return r.GetEnvironment(), err
}

func (n node) resume(ctx context.Context, key, id string) (*hearthv1.Environment, error) {
	r, err := n.api.Resume(ctx, &hearthv1.NodeResumeRequest{IdempotencyKey: key, Environment: id})
	return r.GetEnvironment(), err
}

func (n node) resize(ctx context.Context, key, id string, want *hearthv1.Resources) (*hearthv1.Environment, error) {
	r, err := n.api.Resize(ctx, &hearthv1.NodeResizeRequest{IdempotencyKey: key, Environment: id, Resources: want})
	return r.GetEnvironment(), err
}

func (n node) snapshot(ctx context.Context, key, id string) (*hearthv1.Snapshot, error) {
	r, err := n.api.Snapshot(ctx, &hearthv1.NodeSnapshotRequest{IdempotencyKey: key, Environment: id})
	return r.GetSnapshot(), err
}

func (n node) snapshots(ctx context.Context, id string) ([]*hearthv1.Snapshot, error) {
	r, err := n.api.ListSnapshots(ctx, &hearthv1.NodeListSnapshotsRequest{Environment: id})
	return r.GetSnapshots(), err
}

// fork names the children itself and their keys after its own, so that a
// repetition means the same ones.
func (n node) fork(ctx context.Context, key, id string, count int, vars map[string]string) (*hearthv1.ForkResponse, error) {
	req := &hearthv1.NodeForkRequest{IdempotencyKey: key, Environment: id}
	for i := range count {
		req.Children = append(req.Children, &hearthv1.NodeClaimRequest{
			IdempotencyKey: fmt.Sprintf("%s/%d", key, i),
			Environment:    string(env.NewID()),
			Spec:           &hearthv1.ClaimSpec{Variables: vars},
		})
	}
	r, err := n.api.Fork(ctx, req)
	if err != nil {
		return nil, err
	}
	out := &hearthv1.ForkResponse{Snapshot: r.GetSnapshot()}
	for _, c := range r.GetChildren() {
		out.Children = append(out.Children, claimed(c))
	}
	return out, nil
}

func (n node) extend(ctx context.Context, key, id string, end ending) (*hearthv1.Environment, error) {
	req := &hearthv1.NodeExtendRequest{IdempotencyKey: key, Environment: id, End: &hearthv1.NodeExtendRequest_Duration{Duration: durationpb.New(end.in)}}
	if end.at != nil {
		req.End = &hearthv1.NodeExtendRequest_ExpiresAt{ExpiresAt: end.at}
	}
	r, err := n.api.Extend(ctx, req)
	return r.GetEnvironment(), err
}

func (n node) release(ctx context.Context, key, id string, snapshot bool) (*hearthv1.Snapshot, error) {
	r, err := n.api.Release(ctx, &hearthv1.NodeReleaseRequest{IdempotencyKey: key, Environment: id, Snapshot: snapshot})
	return r.GetSnapshot(), err
}

func (n node) token(ctx context.Context, id string) (*hearthv1.Access, error) {
	r, err := n.api.Token(ctx, &hearthv1.NodeTokenRequest{Environment: id})
	return r.GetAccess(), err
}

func (n node) upgrade(ctx context.Context, key, id string, keep hearthv1.Keep) (*hearthv1.UpgradeResponse, error) {
	r, err := n.api.Upgrade(ctx, &hearthv1.NodeUpgradeRequest{IdempotencyKey: key, Environment: id, Keep: keep})
	if err != nil {
		return nil, err
	}
	return &hearthv1.UpgradeResponse{Environment: r.GetEnvironment(), Snapshot: r.GetSnapshot()}, nil
}
