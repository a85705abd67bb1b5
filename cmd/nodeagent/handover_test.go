package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/rpc"
)

// oldAgent is a NodeService that hands over, or is too old to know how.
type oldAgent struct {
	hearthv1connect.UnimplementedNodeServiceHandler
	handOver func(serving bool) error
}

func (o oldAgent) HandOver(_ context.Context, req *hearthv1.HandOverRequest) (*hearthv1.HandOverResponse, error) {
	return &hearthv1.HandOverResponse{}, o.handOver(req.GetServing())
}

// serveOld serves a NodeService on the socket until the returned function is
// called.
func serveOld(t *testing.T, socket string, service hearthv1connect.NodeServiceHandler, wrap func(http.Handler) http.Handler) (stop func()) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewNodeServiceHandler(service, rpc.HandlerOptions(slog.New(slog.DiscardHandler), rpc.NewMetrics(prometheus.NewRegistry()))...))
	server := rpc.NewServer(slog.New(slog.DiscardHandler), wrap(mux))
	l, err := rpc.ReplaceUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

func plain(h http.Handler) http.Handler { return h }

// taker is an agent that is about to start, in a state directory that another
// holds.
func taker(t *testing.T) (a *agent, theirs *durable.FileLock) {
	t.Helper()
	dir := t.TempDir()
	a = &agent{log: slog.New(slog.NewTextHandler(t.Output(), nil)), going: newHandOver()}
	a.cfg = config.Agent{StateDir: dir, API: config.AgentAPI{Socket: filepath.Join(dir, "node.sock")}}
	theirs, err := durable.Lock(lockPath(a.cfg))
	if err != nil {
		t.Fatal(err)
	}
	return a, theirs
}

func TestANewAgentWaitsForTheLockThatItAskedForAndRelievesTheOldOne(t *testing.T) {
	a, theirs := taker(t)
	served := make(chan bool, 8)
	refused := false
	stop := serveOld(t, a.cfg.API.Socket, oldAgent{handOver: func(serving bool) error {
		switch {
		case serving:
			served <- true
			return nil
		case !refused: // busy at first
			refused = true
			return env.ErrUnavailable
		}
		return theirs.Unlock()
	}}, plain)
	defer stop()
	lock, err := a.takeOver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	if a.before == nil {
		t.Fatal("the old agent is forgotten")
	}
	// From here on the path is the new agent's own, which must not hear it.
	stopOwn := serveOld(t, a.cfg.API.Socket, oldAgent{handOver: func(bool) error {
		t.Error("the new agent asked itself")
		return nil
	}}, plain)
	defer stopOwn()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.relieve(ctx) }()
	select {
	case <-served:
	case <-time.After(5 * time.Second):
		t.Error("the old agent was not told")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestANewAgentGoesOnWithoutAnOldOneThatDied(t *testing.T) {
	a, theirs := taker(t)
	stop := serveOld(t, a.cfg.API.Socket, oldAgent{handOver: func(bool) error { return theirs.Unlock() }}, plain)
	lock, err := a.takeOver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	stop()
	stopOwn := serveOld(t, a.cfg.API.Socket, oldAgent{handOver: func(bool) error {
		t.Error("the new agent asked itself")
		return nil
	}}, plain)
	defer stopOwn()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := a.relieve(ctx); err != nil {
		t.Error(err)
	}
}

func TestAnAgentThatCannotHandOverIsNamed(t *testing.T) {
	a, theirs := taker(t)
	defer theirs.Unlock()
	stop := serveOld(t, a.cfg.API.Socket, hearthv1connect.UnimplementedNodeServiceHandler{}, plain)
	defer stop()
	_, err := a.takeOver(t.Context())
	if !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "too old to hand over") || !strings.Contains(err.Error(), "is held by process") {
		t.Errorf("take over = %v", err)
	}
}

func TestALockThatItsHolderKeepsIsWaitedForNoLongerThanAllowed(t *testing.T) {
	a, theirs := taker(t)
	defer theirs.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.takeOver(ctx); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "did not let go") {
		t.Errorf("take over from an agent that does not listen = %v", err)
	}
}

func TestARetiredAgentSendsItsCallersToTheNextOne(t *testing.T) {
	h := newHandOver()
	socket := filepath.Join(t.TempDir(), "s.sock")
	stop := serveOld(t, socket, oldAgent{handOver: func(bool) error { return nil }}, h.retiredLocal)
	defer stop()
	client := rpc.UnixClient(socket)
	defer client.CloseIdleConnections()
	node := hearthv1connect.NewNodeServiceClient(client, rpc.UnixURL, rpc.ClientOptions()...)
	ask := func() error {
		_, err := node.List(t.Context(), &hearthv1.NodeListRequest{})
		return err
	}
	if err := ask(); !errors.Is(err, env.ErrUnsupported) { // it is not implemented
		t.Fatal(err)
	}
	close(h.retired)
	stopNext := serveOld(t, socket, listing{}, plain)
	defer stopNext()
	_ = ask() // told to come by another connection
	for deadline := time.Now().Add(5 * time.Second); ask() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the client stays with the retired agent")
		}
	}
	if _, err := h.gate(t.Context(), hearthv1connect.NodeServiceListProcedure, nil); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("gate = %v", err)
	}
	if _, err := h.gate(t.Context(), hearthv1connect.NodeServiceHandOverProcedure, nil); err != nil {
		t.Errorf("gate of HandOver = %v", err)
	}
}

type listing struct {
	hearthv1connect.UnimplementedNodeServiceHandler
}

func (listing) List(context.Context, *hearthv1.NodeListRequest) (*hearthv1.NodeListResponse, error) {
	return &hearthv1.NodeListResponse{}, nil
}
