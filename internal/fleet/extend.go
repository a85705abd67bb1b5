package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// Extend sets when the environment ends. It waits while the environment moves.
func (f *Fleet) Extend(ctx context.Context, p Principal, req *hearthv1.ExtendRequest) (*hearthv1.Environment, error) {
	ask := &hearthv1.NodeExtendRequest{Environment: req.GetEnvironment()}
	switch end := req.GetEnd().(type) {
	case *hearthv1.ExtendRequest_Duration:
		ask.End = &hearthv1.NodeExtendRequest_Duration{Duration: end.Duration}
	case *hearthv1.ExtendRequest_ExpiresAt:
		ask.End = &hearthv1.NodeExtendRequest_ExpiresAt{ExpiresAt: end.ExpiresAt}
	default:
		return nil, fmt.Errorf("%w: say for how long (duration) or until when (expires_at) the environment shall live", env.ErrInvalid)
	}
	return f.turn(ctx, p, "Extend", req.GetIdempotencyKey(), req.GetEnvironment(), f.extending(ask))
}

// extending asks one node.
func (f *Fleet) extending(ask *hearthv1.NodeExtendRequest) func(context.Context, hearthv1connect.NodeServiceClient, string) (*hearthv1.Environment, error) {
	return func(ctx context.Context, c hearthv1connect.NodeServiceClient, key string) (*hearthv1.Environment, error) {
		ask.IdempotencyKey = key
		resp, err := c.Extend(ctx, ask)
		return resp.GetEnvironment(), err
	}
}

// SetTimeToLive makes an environment live for so long after its claim, because its
// object says so now; 0 is what its class says. What is in force already is not
// set again. An end that its class does not allow is env.ErrInvalid, and is told.
func (f *Fleet) SetTimeToLive(ctx context.Context, id env.ID, ttl time.Duration) error {
	r := f.record(id)
	switch {
	case r == nil || r.final():
		return nil // nothing lives that could end
	case r.Environment.GetTimeToLive().AsDuration() == ttl:
		return nil
	}
	ask := &hearthv1.NodeExtendRequest{Environment: string(id), End: &hearthv1.NodeExtendRequest_TimeToLive{TimeToLive: durationpb.New(ttl)}}
	// Each asking has a key of its own: the same wish may come again after another.
	key := fmt.Sprintf("%s/%d", id, time.Now().UnixNano())
	_, err := f.turn(ctx, Principal{Admin: true}, "SetTimeToLive", key, string(id), f.extending(ask))
	if errors.Is(err, env.ErrInvalid) {
		f.happened(ExtendRefused, r, err.Error())
	}
	return err
}
