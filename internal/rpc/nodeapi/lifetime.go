package nodeapi

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/warm"
)

// Extend implements NodeService. A repeated key gets the first answer: by a
// duration it would otherwise be another end each time.
func (s *Service) Extend(ctx context.Context, req *hearthv1.NodeExtendRequest) (*hearthv1.NodeExtendResponse, error) {
	extension, err := extensionOf(req)
	if err != nil {
		return nil, err
	}
	return once(ctx, s.memo, req.GetIdempotencyKey(), req, func() (*hearthv1.NodeExtendResponse, error) {
		e, err := s.node.Extend(ctx, env.ID(req.GetEnvironment()), extension)
		if err != nil {
			return nil, err
		}
		return &hearthv1.NodeExtendResponse{Environment: s.environment(e)}, nil
	})
}

// extensionOf reads foreign numbers.
func extensionOf(req *hearthv1.NodeExtendRequest) (x warm.Extension, err error) {
	switch end := req.GetEnd().(type) {
	case *hearthv1.NodeExtendRequest_Duration:
		if x.By, err = lengthOf(end.Duration); err == nil && x.By == 0 {
			err = fmt.Errorf("%w: an extension by nothing; release the environment to end it now", env.ErrInvalid)
		}
	case *hearthv1.NodeExtendRequest_ExpiresAt:
		if err := end.ExpiresAt.CheckValid(); err != nil {
			return x, fmt.Errorf("%w: end of environment: %v", env.ErrInvalid, err)
		}
		x.Until = end.ExpiresAt.AsTime()
	case *hearthv1.NodeExtendRequest_TimeToLive:
		ttl, err := lengthOf(end.TimeToLive)
		x.FromClaim = &ttl
		return x, err
	default:
		err = fmt.Errorf("%w: say for how long or until when the environment shall live", env.ErrInvalid)
	}
	return x, err
}

// lengthOf refuses what is no length of time.
func lengthOf(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
		return 0, fmt.Errorf("%w: %v is no length of time", env.ErrInvalid, d)
	}
	return d.AsDuration(), nil
}

// past are the environments whose time came; see warm.Node.Past.
func (s *Service) past() []*hearthv1.Environment {
	list := s.node.Past()
	out := make([]*hearthv1.Environment, len(list))
	for i, e := range list {
		out[i] = s.environment(e)
	}
	return out
}

// lifetimeOf is nil for an environment that begins here.
func lifetimeOf(l *hearthv1.Lifetime) *warm.Lifetime {
	if l == nil {
		return nil
	}
	out := &warm.Lifetime{Lived: max(l.GetLived().AsDuration(), 0), TimeToLive: max(l.GetTimeToLive().AsDuration(), 0)}
	if l.GetLeft() != nil {
		left := max(l.GetLeft().AsDuration(), 0)
		out.Left = &left
	}
	return out
}

// lifetimeProto is the inverse of lifetimeOf.
func lifetimeProto(l *warm.Lifetime) *hearthv1.Lifetime {
	if l == nil {
		return nil
	}
	out := &hearthv1.Lifetime{Lived: durationpb.New(l.Lived)}
	if l.Left != nil {
		out.Left = durationpb.New(*l.Left)
	}
	if l.TimeToLive != 0 {
		out.TimeToLive = durationpb.New(l.TimeToLive)
	}
	return out
}
