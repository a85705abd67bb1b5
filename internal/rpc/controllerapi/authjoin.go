package controllerapi

import (
	"context"
	"errors"
	"fmt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// reviewer says for which node the cluster made an agent's service account
// token. A token that is not an agent's is env.ErrDenied, with what is wrong
// about it; a cluster that cannot be asked is env.ErrUnavailable.
type reviewer interface {
	Review(ctx context.Context, token string) (node string, err error)
}

// mayJoin lets in who has a join token, unless an agent of that name reports
// now, or a token of the cluster that was made for this very node: who has that
// one takes the name over, as a restarted pod does.
func (s *Fleet) mayJoin(ctx context.Context, r *hearthv1.JoinRequest) error {
	if s.reviewer != nil && looksLikeToken(r.GetToken()) {
		return s.provesNode(ctx, r)
	}
	t, err := pki.ParseJoinToken(r.GetToken())
	if err != nil {
		return rpc.Unauthenticated(fmt.Errorf("%w: a join token, or this node's certificate, is needed", env.ErrDenied))
	}
	if err := s.fleet.CheckJoinToken(t.Hash()); err != nil {
		return rpc.Unauthenticated(err)
	}
	if s.fleet.Reporting(r.GetNode()) {
		return fmt.Errorf("%w: a node named %s reports now; give this one another name, or stop that one first", env.ErrExists, r.GetNode())
	}
	return nil
}

func (s *Fleet) provesNode(ctx context.Context, r *hearthv1.JoinRequest) error {
	if n := len(r.GetToken()); n > maxToken {
		return rpc.Unauthenticated(fmt.Errorf("%w: the token has %d bytes; one of a service account has at most %d", env.ErrDenied, n, maxToken))
	}
	node, err := s.reviewer.Review(ctx, r.GetToken())
	switch {
	case errors.Is(err, env.ErrDenied):
		return rpc.Unauthenticated(err)
	case err != nil:
		return err
	case node != r.GetNode():
		return fmt.Errorf("%w: the token was made for a pod on node %.64q, not on %s; the agent's name must be its node's", env.ErrDenied, node, r.GetNode())
	}
	return nil
}
