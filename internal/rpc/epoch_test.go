package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/rpc/pki"
)

func issue(t *testing.T, ca *pki.CA, id pki.Identity) *pki.Source {
	t.Helper()
	creds, err := ca.Credentials(id, []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := pki.NewSource(creds)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// gatedNode serves the Node API on TLS to controllers of at least epoch 5.
func gatedNode(t *testing.T) (ca *pki.CA, addr string) {
	t.Helper()
	ca, _ = authority(t)
	l, err := ListenTLS("127.0.0.1:0", issue(t, ca, pki.Node("test", "n1")))
	if err != nil {
		t.Fatal(err)
	}
	obey := func(epoch uint64) error {
		if epoch < 5 {
			return fmt.Errorf("%w: a later one had 5", env.ErrSuperseded)
		}
		return nil
	}
	newService(t, l, RequireRole("test", pki.RoleController), RequireEpoch(obey))
	return ca, l.Addr().String()
}

func TestANodeObeysOnlyTheNewestController(t *testing.T) {
	ca, addr := gatedNode(t)
	controller := issue(t, ca, pki.Controller("test")).ClientConfig(pki.Node("test", "n1"))
	epoch := func(n uint64) []connect.ClientOption {
		return append(ClientOptions(), WithEpoch(func() uint64 { return n }))
	}
	cases := map[string]struct {
		options []connect.ClientOption
		want    error
	}{
		"newest":                         {epoch(5), nil},
		"newer":                          {epoch(1 << 63), nil},
		"lower":                          {epoch(4), env.ErrSuperseded},
		"none, from an older controller": {ClientOptions(), env.ErrInvalid},
		"no number":                      {append(ClientOptions(), connect.WithInterceptors(header{"five"})), env.ErrInvalid},
		"negative":                       {append(ClientOptions(), connect.WithInterceptors(header{"-1"})), env.ErrInvalid},
		"two":                            {append(ClientOptions(), connect.WithInterceptors(header{"9", "1"})), env.ErrInvalid},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			h := TLSClient(controller)
			defer h.CloseIdleConnections()
			api := hearthv1connect.NewNodeServiceClient(h, "https://"+addr, tc.options...)
			_, err := api.Get(t.Context(), &hearthv1.NodeGetRequest{})
			if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
				t.Errorf("a call: %v", err)
			}
			if errors.Is(tc.want, env.ErrSuperseded) && !errors.Is(err, env.ErrFenced) {
				t.Errorf("a superseded controller is not fenced: %v", err)
			}
			s, err := api.Detections(t.Context(), &hearthv1.DetectionsRequest{})
			if err == nil {
				defer s.Close()
				if !s.Receive() {
					err = s.Err()
				}
			}
			if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
				t.Errorf("a stream: %v", err)
			}
		})
	}
}

// header sends epochs as they are.
type header []string

func (v header) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		for _, s := range v {
			req.Header().Add(EpochHeader, s)
		}
		return next(ctx, req)
	}
}

func (v header) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		for _, s := range v {
			conn.RequestHeader().Add(EpochHeader, s)
		}
		return conn
	}
}

func (v header) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func TestTheEpochIsAskedOfControllersOnly(t *testing.T) {
	gate := RequireEpoch(func(uint64) error { return env.ErrSuperseded })
	for name, c := range map[string]Caller{
		"root on the node": {Local: true},
		"another node":     {Identity: pki.Node("test", "n2")},
		"nobody":           {},
	} {
		ctx := context.WithValue(t.Context(), callerKey{}, c)
		if _, err := gate(ctx, "/hearth.v1.NodeService/Get", http.Header{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// silentFleet hears reports and answers none.
type silentFleet struct {
	hearthv1connect.UnimplementedFleetServiceHandler
	ended chan error
}

func (f *silentFleet) Report(_ context.Context, s *connect.BidiStream[hearthv1.ReportRequest, hearthv1.ReportResponse]) error {
	if err := s.Send(&hearthv1.ReportResponse{}); err != nil {
		return err
	}
	for {
		if _, err := s.Receive(); err != nil {
			f.ended <- err
			return err
		}
	}
}

func TestAStreamEndsWithItsContextWhilePeersAreSilent(t *testing.T) {
	ca, source := authority(t)
	l, err := ListenTLS("127.0.0.1:0", source)
	if err != nil {
		t.Fatal(err)
	}
	f := &silentFleet{ended: make(chan error, 1)}
	_, handler := hearthv1connect.NewFleetServiceHandler(f, HandlerOptions(slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))...)
	server := NewServer(slog.New(slog.DiscardHandler), handler)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	defer func() {
		_ = server.Shutdown(t.Context())
		<-done
	}()
	h := TLSClient(issue(t, ca, pki.Node("test", "n1")).ClientConfig(pki.Controller("test")))
	defer h.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := hearthv1connect.NewFleetServiceClient(h, "https://"+l.Addr().String(), ClientOptions()...).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&hearthv1.ReportRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, cancel)
	got := make(chan error, 1)
	go func() {
		_, err := stream.Receive()
		got <- err
	}()
	select {
	case err := <-got:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the client's end: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the client still waits 5 s after its context ended")
	}
	// To the server it must not look as if all had been sent.
	if err := <-f.ended; errors.Is(err, io.EOF) {
		t.Errorf("the server's end: %v", err)
	}
}
