package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/rpc/pki"
)

// service is a NodeService of which Get answers as told and Detections streams.
type service struct {
	hearthv1connect.UnimplementedNodeServiceHandler
	call     func(context.Context) error
	fail     error
	opened   chan struct{} // receives when a stream is open
	ended    chan error    // receives a stream's end
	server   *Server
	registry *prometheus.Registry
	conns    atomic.Int64
	socket   string
}

func (s *service) Get(ctx context.Context, _ *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error) {
	if s.call != nil {
		return &hearthv1.NodeGetResponse{}, s.call(ctx)
	}
	return &hearthv1.NodeGetResponse{}, s.fail
}

func (s *service) Detections(ctx context.Context, _ *hearthv1.DetectionsRequest, out *connect.ServerStream[hearthv1.DetectionsResponse]) error {
	if err := out.Send(&hearthv1.DetectionsResponse{}); err != nil {
		return err
	}
	s.opened <- struct{}{}
	<-ctx.Done()
	s.ended <- ctx.Err()
	return ctx.Err()
}

// newService serves on a Unix socket, and on l if it is given.
func newService(t *testing.T, l net.Listener, gates ...Gate) *service {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s := &service{opened: make(chan struct{}, 8), ended: make(chan error, 8), registry: prometheus.NewRegistry(),
		socket: filepath.Join(t.TempDir(), "s.sock")}
	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewNodeServiceHandler(s, HandlerOptions(log, NewMetrics(s.registry), gates...)...))
	s.server = NewServer(log, mux)
	if l == nil {
		var err error
		if l, err = ListenUnix(s.socket); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.server.Serve(counting{l, &s.conns}); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = s.server.Shutdown(ctx)
		wg.Wait()
	})
	return s
}

// counting counts accepted connections.
type counting struct {
	net.Listener
	n *atomic.Int64
}

func (c counting) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

type client struct {
	hearthv1connect.NodeServiceClient
}

func clientOf(h *http.Client, url string) client {
	return client{hearthv1connect.NewNodeServiceClient(h, url, ClientOptions()...)}
}

func (s *service) unixClient(t *testing.T) client {
	t.Helper()
	h := UnixClient(s.socket)
	t.Cleanup(h.CloseIdleConnections)
	return clientOf(h, UnixURL)
}

func (c client) get(ctx context.Context) error {
	_, err := c.Get(ctx, &hearthv1.NodeGetRequest{})
	return err
}

func TestCallsShareOneConnection(t *testing.T) {
	s := newService(t, nil)
	c := s.unixClient(t)
	for range 50 {
		if err := c.get(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.conns.Load(); got != 1 {
		t.Errorf("%d connections", got)
	}
	const want = `
# HELP hearth_rpc_calls_total Calls answered, by method and code.
# TYPE hearth_rpc_calls_total counter
hearth_rpc_calls_total{code="ok",method="NodeService/Get"} 50
`
	if err := testutil.GatherAndCompare(s.registry, strings.NewReader(want), "hearth_rpc_calls_total"); err != nil {
		t.Error(err)
	}
}

func TestAUnixSocketIsPrivateAndReplacesAStaleOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
	if _, err := ListenUnix(path); !errors.Is(err, env.ErrExists) {
		t.Errorf("second listener: %v", err)
	}
	_ = l.Close()
	if left, _ := filepath.Glob(path + "*"); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(path); !errors.Is(err, env.ErrExists) {
		t.Errorf("over a file: %v", err)
	}
}

func TestClosingLeavesASuccessorsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	first, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	_ = first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
}

func TestAnOversizedMessageIsRefused(t *testing.T) {
	s := newService(t, nil)
	_, err := s.unixClient(t).Get(t.Context(), &hearthv1.NodeGetRequest{Environment: strings.Repeat("x", MaxMessageBytes+1)})
	if !errors.Is(err, env.ErrExhausted) {
		t.Errorf("error = %v", err)
	}
}

func TestShutdownEndsStreamsAndLetsCallsFinish(t *testing.T) {
	s := newService(t, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	s.call = func(ctx context.Context) error {
		close(entered)
		<-leave
		return ctx.Err()
	}
	c := s.unixClient(t)
	stream, err := c.Detections(t.Context(), &hearthv1.DetectionsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	<-s.opened
	answer := make(chan error, 1)
	go func() { answer <- c.get(context.Background()) }()
	<-entered
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		down <- s.server.Shutdown(ctx)
	}()
	if err := <-s.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("stream ended with %v", err)
	}
	select {
	case <-down:
		t.Error("shutdown did not wait for the call")
	case <-time.After(300 * time.Millisecond):
	}
	close(leave)
	if err := <-answer; err != nil {
		t.Errorf("the call that was under way got %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	_ = stream.Close()
}

func TestShutdownAtItsDeadlineCutsWhatIsLeft(t *testing.T) {
	s := newService(t, nil)
	entered := make(chan struct{})
	s.call = func(ctx context.Context) error { close(entered); <-ctx.Done(); return ctx.Err() }
	c := s.unixClient(t)
	answer := make(chan error, 1)
	go func() { answer <- c.get(context.Background()) }()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := s.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown = %v", err)
	}
	if err := <-answer; !errors.Is(err, env.ErrUnavailable) || Answered(err) {
		t.Errorf("the cut call got %v", err)
	}
}

func authority(t *testing.T) (*pki.CA, *pki.Source) {
	t.Helper()
	dir, err := durable.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	ca, err := pki.LoadOrCreateCA(dir, "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	creds, err := ca.Credentials(pki.Controller("test"), []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	source, err := pki.NewSource(creds)
	if err != nil {
		t.Fatal(err)
	}
	return ca, source
}

func TestTLSIs13AndCallersAreKnownByTheirCertificates(t *testing.T) {
	ca, source := authority(t)
	l, err := ListenTLS("127.0.0.1:0", source)
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	s := newService(t, l)
	callers := make(chan Caller, 1)
	s.call = func(ctx context.Context) error { callers <- CallerFrom(ctx); return nil }
	cfg, err := pki.CAClientConfig(ca.PEM(), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		cfg  *tls.Config
		want Caller
	}{
		"without": {cfg, Caller{}},
		"with":    {source.ClientConfig(pki.Controller("test")), Caller{Identity: pki.Controller("test")}},
	} {
		h := TLSClient(tc.cfg)
		if err := clientOf(h, "https://"+addr).get(t.Context()); err != nil {
			t.Fatal(name, err)
		}
		if got := <-callers; got != tc.want {
			t.Errorf("%s: caller = %v", name, got)
		}
		h.CloseIdleConnections()
	}
	old := cfg.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if c, err := tls.Dial("tcp", addr, old); err == nil {
		_ = c.Close()
		t.Error("TLS 1.2 was accepted")
	}
	plain := &http.Client{Transport: &http.Transport{}}
	if r, err := plain.Get("http://" + addr + "/"); err == nil && r.StatusCode == http.StatusOK {
		t.Error("plain HTTP was accepted")
	}
}

func TestAUnixCallerIsLocalAndPassesRoleGates(t *testing.T) {
	s := newService(t, nil, RequireRole("test", pki.RoleController))
	if err := s.unixClient(t).get(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAGatesRefusalIsMappedAndCounted(t *testing.T) {
	s := newService(t, nil, func(ctx context.Context, _ string, _ http.Header) (context.Context, error) {
		return ctx, Unauthenticated(env.ErrDenied)
	})
	err := s.unixClient(t).get(t.Context())
	if !errors.Is(err, env.ErrDenied) || connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("error = %v", err)
	}
	const want = `
# HELP hearth_rpc_calls_total Calls answered, by method and code.
# TYPE hearth_rpc_calls_total counter
hearth_rpc_calls_total{code="unauthenticated",method="NodeService/Get"} 1
`
	if err := testutil.GatherAndCompare(s.registry, strings.NewReader(want), "hearth_rpc_calls_total"); err != nil {
		t.Error(err)
	}
}

func BenchmarkUnixCall(b *testing.B) {
	s := &service{}
	mux := http.NewServeMux()
	log := slog.New(slog.DiscardHandler)
	mux.Handle(hearthv1connect.NewNodeServiceHandler(s, HandlerOptions(log, NewMetrics(prometheus.NewRegistry()))...))
	server := NewServer(log, mux)
	path := filepath.Join(b.TempDir(), "s.sock")
	l, err := ListenUnix(path)
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	defer func() { _ = server.Shutdown(context.Background()) }()
	c := clientOf(UnixClient(path), UnixURL)
	for b.Loop() {
		if err := c.get(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
