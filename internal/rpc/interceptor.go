package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect"
)

// MaxMessageBytes bounds one message in either direction; streams carry more
// in several. A larger one is refused with env.ErrExhausted.
const MaxMessageBytes = 4 << 20

// compressFrom is the size from which gzip is worth its time, for clients that ask.
const compressFrom = 16 << 10

// Gate decides from the headers whether a call may go on, before its message is
// read. The context that it returns is the handler's.
type Gate func(ctx context.Context, procedure string, header http.Header) (context.Context, error)

// HandlerOptions are for every generated New…Handler: limits, recovery, the
// mapping of errors, metrics, logs. Gates run in order; their errors are mapped
// too, and counted.
func HandlerOptions(log *slog.Logger, m *Metrics, gates ...Gate) []connect.HandlerOption {
	opts := []connect.HandlerOption{
		connect.WithReadMaxBytes(MaxMessageBytes),
		connect.WithCompressMinBytes(compressFrom),
		connect.WithInterceptors(&serverSide{log: log, metrics: m}),
	}
	for _, g := range gates {
		opts = append(opts, connect.WithRequestGate(
			func(ctx context.Context, spec connect.Spec, _ connect.Peer, h http.Header) (context.Context, error) {
				ctx, err := g(ctx, spec.Procedure, h)
				if err != nil {
					err = Error(err)
					m.observe(spec.Procedure, connect.CodeOf(err).String(), 0)
				}
				return ctx, err
			}))
	}
	return opts
}

// ClientOptions are for every generated New…Client: limits, no compression
// (peers are near), errors turned back by FromError.
func ClientOptions() []connect.ClientOption {
	return []connect.ClientOption{
		connect.WithReadMaxBytes(MaxMessageBytes),
		connect.WithAcceptCompression("gzip", nil, nil),
		connect.WithInterceptors(clientSide{}),
	}
}

// serverSide maps, counts and logs what a service answers.
type serverSide struct {
	log     *slog.Logger
	metrics *Metrics
}

func (s *serverSide) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		begun := time.Now()
		defer func() {
			if r := recover(); r != nil {
				res, err = nil, s.recovered(req.Spec(), r)
			}
			s.done(req.Spec(), begun, err)
		}()
		res, err = next(ctx, req)
		return res, Error(err)
	}
}

func (s *serverSide) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (s *serverSide) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		begun := time.Now()
		defer func() {
			if r := recover(); r != nil {
				err = s.recovered(conn.Spec(), r)
			}
			s.done(conn.Spec(), begun, err)
		}()
		return Error(next(ctx, conn))
	}
}

// recovered keeps a fault of one call from ending the process, except the one
// by which net/http itself cuts a connection.
func (s *serverSide) recovered(spec connect.Spec, r any) error {
	if err, ok := r.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(r) //nolint:forbidigo // net/http recovers it again and cuts the connection
	}
	s.log.Error("handler panicked", "procedure", spec.Procedure, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	return connect.NewError(connect.CodeInternal, fmt.Errorf("%s failed inside the server; its log has the cause", spec.Procedure))
}

func (s *serverSide) done(spec connect.Spec, begun time.Time, err error) {
	took := time.Since(begun)
	code := "ok"
	if err != nil {
		code = connect.CodeOf(err).String()
	}
	s.metrics.observe(spec.Procedure, code, took)
	switch code {
	case "internal", "unknown", "data_loss":
		s.log.Warn("call failed", "procedure", spec.Procedure, "code", code, "took", took, "error", err)
	default:
		s.log.Debug("call answered", "procedure", spec.Procedure, "code", code, "took", took)
	}
}

// methodOf is "EnvironmentService/Claim" of "/hearth.v1.EnvironmentService/Claim".
func methodOf(procedure string) string {
	_, m, _ := strings.Cut(procedure, ".v1.")
	return m
}

// clientSide turns errors back.
type clientSide struct{}

func (clientSide) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		return res, FromError(err)
	}
}

func (clientSide) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return &clientConn{next(ctx, spec)}
	}
}

func (clientSide) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// clientConn turns the errors of a stream back. io.EOF passes as it is.
type clientConn struct{ connect.StreamingClientConn }

func (c *clientConn) Send(msg any) error    { return FromError(c.StreamingClientConn.Send(msg)) }
func (c *clientConn) Receive(msg any) error { return FromError(c.StreamingClientConn.Receive(msg)) }
