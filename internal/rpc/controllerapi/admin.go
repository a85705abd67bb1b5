package controllerapi

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/rpc/pki"
)

// Admin serves hearth.v1.AdminService. It must be reachable over the Unix
// socket only.
type Admin struct {
	fleet *fleet.Fleet
	ca    *pki.CA
}

var _ hearthv1connect.AdminServiceHandler = (*Admin)(nil)

// NewAdmin makes the service.
func NewAdmin(f *fleet.Fleet, ca *pki.CA) *Admin { return &Admin{f, ca} }

// The lives of join tokens.
const (
	DefaultJoinLife = time.Hour
	maxJoinLife     = 30 * 24 * time.Hour
)

// CreateJoinToken implements the service.
func (s *Admin) CreateJoinToken(_ context.Context, r *hearthv1.CreateJoinTokenRequest) (*hearthv1.CreateJoinTokenResponse, error) {
	ttl := r.GetTtl().AsDuration()
	if ttl == 0 {
		ttl = DefaultJoinLife
	}
	if ttl < 0 || ttl > maxJoinLife {
		return nil, fmt.Errorf("%w: ttl %s: use up to %s", env.ErrInvalid, ttl, maxJoinLife)
	}
	text, expires, err := NewJoinToken(s.fleet, s.ca, ttl)
	if err != nil {
		return nil, err
	}
	return &hearthv1.CreateJoinTokenResponse{Token: text, ExpiresAt: timestamppb.New(expires)}, nil
}

// NewJoinToken makes and stores a token.
func NewJoinToken(f *fleet.Fleet, ca *pki.CA, ttl time.Duration) (text string, expires time.Time, err error) {
	t := pki.NewJoinToken(ca)
	expires = time.Now().Add(ttl)
	if err := f.AddJoinToken(fleet.JoinToken{Hash: t.Hash(), Expires: expires}); err != nil {
		return "", time.Time{}, err
	}
	return t.Text(), expires, nil
}

// CreateApiKey implements the service.
func (s *Admin) CreateApiKey(_ context.Context, r *hearthv1.CreateApiKeyRequest) (*hearthv1.CreateApiKeyResponse, error) {
	k, secret, err := s.fleet.CreateAPIKey(r.GetTenant(), r.GetAdmin())
	if err != nil {
		return nil, err
	}
	return &hearthv1.CreateApiKeyResponse{Key: shown(k), Secret: secret}, nil
}

func shown(k fleet.APIKey) *hearthv1.ApiKey {
	return &hearthv1.ApiKey{Id: k.ID, Tenant: k.Tenant, CreatedAt: timestamppb.New(k.Created)}
}

// ListApiKeys implements the service.
func (s *Admin) ListApiKeys(context.Context, *hearthv1.ListApiKeysRequest) (*hearthv1.ListApiKeysResponse, error) {
	resp := &hearthv1.ListApiKeysResponse{}
	for _, k := range s.fleet.APIKeys() {
		resp.Keys = append(resp.Keys, shown(k))
	}
	return resp, nil
}

// DeleteApiKey implements the service.
func (s *Admin) DeleteApiKey(_ context.Context, r *hearthv1.DeleteApiKeyRequest) (*hearthv1.DeleteApiKeyResponse, error) {
	return &hearthv1.DeleteApiKeyResponse{}, s.fleet.DeleteAPIKey(r.GetId())
}

// ListNodes implements the service.
func (s *Admin) ListNodes(context.Context, *hearthv1.ListNodesRequest) (*hearthv1.ListNodesResponse, error) {
	resp := &hearthv1.ListNodesResponse{}
	for _, n := range s.fleet.Nodes() {
		resp.Nodes = append(resp.Nodes, &hearthv1.NodeStatus{
			Name: n.Name, Address: n.Address, Ready: n.Ready, Message: n.Message,
			LastHeartbeat: timestamppb.New(n.LastHeartbeat), Environments: uint32(n.Environments),
			Cordoned: n.Cordoned, Draining: n.Draining,
		})
	}
	return resp, nil
}
