package nodeapi

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
)

// ClaimProfile implements NodeService.
func (s *Service) ClaimProfile(context.Context, *hearthv1.ClaimProfileRequest) (*hearthv1.ClaimProfileResponse, error) {
	out := &hearthv1.ClaimProfileResponse{}
	for _, p := range s.node.ClaimProfile() {
		out.Phases = append(out.Phases, &hearthv1.PhaseProfile{
			Name: p.Name, Claims: uint32(p.Claims), P50: durationpb.New(p.P50), P90: durationpb.New(p.P90),
			P99: durationpb.New(p.P99), Max: durationpb.New(p.Max),
		})
	}
	return out, nil
}
