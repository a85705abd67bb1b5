package rpc

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"connectrpc.com/connect"

	"hearth/internal/env"
	"hearth/internal/rpc/pki"
)

// EpochHeader carries a controller's epoch, in decimal, on each of its calls to
// a node.
const EpochHeader = "Hearth-Epoch"

// WithEpoch is for a controller's clients of nodes: every call says the epoch.
// It is asked at each call, never before the first.
func WithEpoch(epoch func() uint64) connect.ClientOption {
	return connect.WithInterceptors(epochSide{epoch})
}

type epochSide struct{ epoch func() uint64 }

func (s epochSide) set(h http.Header) { h.Set(EpochHeader, strconv.FormatUint(s.epoch(), 10)) }

func (s epochSide) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		s.set(req.Header())
		return next(ctx, req)
	}
}

func (s epochSide) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		s.set(conn.RequestHeader())
		return conn
	}
}

func (s epochSide) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// RequireEpoch is a Gate for nodes: a controller must say its epoch, and obey
// decides on it: env.ErrSuperseded for one that is lower than another that it
// let pass before. Other callers need none; who may call at all is RequireRole's
// decision, which comes before.
func RequireEpoch(obey func(epoch uint64) error) Gate {
	return func(ctx context.Context, procedure string, h http.Header) (context.Context, error) {
		if c := CallerFrom(ctx); c.Local || c.Identity.Role != pki.RoleController {
			return ctx, nil
		}
		values := h.Values(EpochHeader)
		if len(values) != 1 {
			return ctx, fmt.Errorf("%w: %s came with %d headers %s, not one: a controller older than this agent sends none; upgrade the controller",
				env.ErrInvalid, methodOf(procedure), len(values), EpochHeader)
		}
		epoch, err := strconv.ParseUint(values[0], 10, 64)
		if err != nil {
			return ctx, fmt.Errorf("%w: header %s: %.24q is no epoch", env.ErrInvalid, EpochHeader, values[0])
		}
		return ctx, obey(epoch)
	}
}
