package fleet

import (
	"context"
	"fmt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// again answers a key whose answer is no longer in memory, and whose environment
// lives. Its node answers the claim as it did before; if it no longer can, since
// the environment has come there otherwise or the key is too old, the answer has
// a new token.
func (c *claiming) again(ctx context.Context, r *Record) (*hearthv1.ClaimResponse, error) {
	id := r.ID()
	done, err := c.f.use(ctx, id)
	if err != nil {
		return nil, err
	}
	defer done()
	if r = c.f.record(id); r == nil {
		return nil, notFound(id)
	}
	c.f.waitForNode(ctx, r.Environment.GetNode())
	client, err := c.f.reach(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.f.cfg.AttemptTimeout)
	defer cancel()
	// A node that has lost it would make an empty one in its place.
	if err := c.f.stillThere(ctx, client, r); err != nil {
		return nil, err
	}
	n, err := client.Claim(ctx, nodeClaim(r, c.spec))
	switch {
	case err == nil:
		return c.f.answerAgain(r, n)
	case silent(err):
		return nil, c.f.nodeError(r, err)
	}
	return c.f.answerAnew(ctx, client, r)
}

// stillThere asks the node for what is stored as living there.
func (f *Fleet) stillThere(ctx context.Context, client hearthv1connect.NodeServiceClient, r *Record) error {
	resp, err := client.Get(ctx, &hearthv1.NodeGetRequest{Environment: string(r.ID())})
	if err != nil {
		return f.nodeError(r, err)
	}
	e := resp.GetEnvironment()
	if p := e.GetPhase(); e.GetGeneration() != r.Environment.GetGeneration() || p == hearthv1.Phase_PHASE_RELEASED || p == hearthv1.Phase_PHASE_FAILED {
		return f.nodeError(r, fmt.Errorf("%w: environment %s ended there", env.ErrNotFound, r.ID()))
	}
	return nil
}

func (f *Fleet) answerAgain(r *Record, n *hearthv1.NodeClaimResponse) (*hearthv1.ClaimResponse, error) {
	r, err := f.ran("claim-again", r, n.GetEnvironment())
	if err != nil {
		return nil, err
	}
	return &hearthv1.ClaimResponse{
		Environment: shown(r.Environment), Access: n.GetAccess(), Took: n.GetTook(), Placement: []string{r.Environment.GetNode() + ": placed before"},
	}, nil
}

// answerAnew answers with a new token; older ones end.
func (f *Fleet) answerAnew(ctx context.Context, client hearthv1connect.NodeServiceClient, r *Record) (*hearthv1.ClaimResponse, error) {
	t, err := client.Token(ctx, &hearthv1.NodeTokenRequest{Environment: string(r.ID())})
	if err != nil {
		return nil, f.nodeError(r, err)
	}
	if now := f.record(r.ID()); now != nil {
		r = now
	}
	return &hearthv1.ClaimResponse{
		Environment: shown(r.Environment), Access: t.GetAccess(), Placement: []string{r.Environment.GetNode() + ": placed before; the token is new"},
	}, nil
}
