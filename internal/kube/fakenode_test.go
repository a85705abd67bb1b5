//go:build e2e

package kube

import (
	"context"
	"fmt"
	"sync"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// fakeNode is a node's API that keeps books.
type fakeNode struct {
	hearthv1connect.NodeServiceClient
	mu       sync.Mutex // guards all below
	claims   map[string]*hearthv1.NodeClaimResponse
	specs    map[string]*hearthv1.ClaimSpec
	released []string
	classes  *hearthv1.SetClassesRequest
	budget   *hearthv1.SetBudgetRequest
	refuse   error
	holding  chan struct{} // releases wait for it if it is not nil
}

func newFakeNode() *fakeNode {
	return &fakeNode{claims: map[string]*hearthv1.NodeClaimResponse{}, specs: map[string]*hearthv1.ClaimSpec{}}
}

func (n *fakeNode) Claim(_ context.Context, r *hearthv1.NodeClaimRequest) (*hearthv1.NodeClaimResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		return nil, n.refuse
	}
	if n.claims[r.GetIdempotencyKey()] == nil {
		n.claims[r.GetIdempotencyKey()] = &hearthv1.NodeClaimResponse{
			Environment: &hearthv1.Environment{Id: r.GetEnvironment(), Generation: r.GetGeneration(), Phase: hearthv1.Phase_PHASE_RUNNING, Warm: true},
			Access:      &hearthv1.Access{Token: "secret"},
		}
		n.specs[r.GetEnvironment()] = r.GetSpec()
	}
	return n.claims[r.GetIdempotencyKey()], nil
}

func (n *fakeNode) Get(_ context.Context, r *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.claims {
		if c.GetEnvironment().GetId() == r.GetEnvironment() {
			return &hearthv1.NodeGetResponse{Environment: c.GetEnvironment()}, nil
		}
	}
	return nil, fmt.Errorf("%w: environment %s", env.ErrNotFound, r.GetEnvironment())
}

func (n *fakeNode) Release(ctx context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	n.mu.Lock()
	holding := n.holding
	n.mu.Unlock()
	if holding != nil {
		select {
		case <-holding:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.released = append(n.released, r.GetEnvironment())
	return &hearthv1.NodeReleaseResponse{}, nil
}

func (n *fakeNode) SetClasses(_ context.Context, r *hearthv1.SetClassesRequest) (*hearthv1.SetClassesResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.classes = r
	return &hearthv1.SetClassesResponse{}, nil
}

func (n *fakeNode) SetBudget(_ context.Context, r *hearthv1.SetBudgetRequest) (*hearthv1.SetBudgetResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.budget = r
	return &hearthv1.SetBudgetResponse{}, nil
}

func (n *fakeNode) wasReleased(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.released {
		if r == id {
			return true
		}
	}
	return false
}

func (n *fakeNode) spec(id string) *hearthv1.ClaimSpec {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.specs[id]
}
