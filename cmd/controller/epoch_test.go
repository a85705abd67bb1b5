package main

import (
	"errors"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/agentlink"
	"hearth/internal/rpc/pki"
)

// TestASupersededControllerIsRefusedByNodes is over real TLS: both controllers
// have a certificate of the one authority, and differ in their epochs alone.
func TestASupersededControllerIsRefusedByNodes(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	defer dir.Close()
	node := &fakeNode{name: "n1", envs: map[string]*hearthv1.Environment{}}
	open := func() *agentlink.Link {
		l, err := agentlink.New(slog.New(slog.DiscardHandler), agentlink.Config{Instance: testInstance, Node: "n1", Advertise: "127.0.0.1:1"}, dir, node)
		ok(t, err)
		return l
	}
	link := open()
	creds, err := c.ca.Credentials(pki.Node(testInstance, "n1"), []string{"127.0.0.1"}, time.Now())
	ok(t, err)
	source, err := pki.NewSource(creds)
	ok(t, err)
	l, err := rpc.ListenTLS("127.0.0.1:0", source)
	ok(t, err)
	mux := http.NewServeMux()
	log := slog.New(slog.DiscardHandler)
	mux.Handle(hearthv1connect.NewNodeServiceHandler(node, rpc.HandlerOptions(log, rpc.NewMetrics(prometheus.NewRegistry()),
		rpc.RequireRole(testInstance, pki.RoleController), rpc.RequireEpoch(func(e uint64) error { return link.Obey(e) }))...))
	server := rpc.NewServer(log, mux)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	defer func() {
		_ = server.Shutdown(t.Context())
		<-done
	}()
	call := func(epoch uint64) error {
		_, err := dialer(testInstance, c.source, nil, func() uint64 { return epoch })("n1", l.Addr().String()).
			Inventory(t.Context(), &hearthv1.InventoryRequest{})
		return err
	}
	for _, epoch := range []uint64{4, 4, 7} {
		ok(t, call(epoch))
	}
	for range 2 {
		if err := call(6); !errors.Is(err, env.ErrSuperseded) || !errors.Is(err, env.ErrFenced) {
			t.Errorf("epoch 6 after 7: %v", err)
		}
		ok(t, call(7))
		link = open() // the agent restarts
	}
	h := rpc.TLSClient(c.source.ClientConfig(pki.Node(testInstance, "n1")))
	defer h.CloseIdleConnections()
	_, err = hearthv1connect.NewNodeServiceClient(h, "https://"+l.Addr().String(), rpc.ClientOptions()...).
		Inventory(t.Context(), &hearthv1.InventoryRequest{})
	if !errors.Is(err, env.ErrInvalid) {
		t.Errorf("a controller that says no epoch: %v", err)
	}
}
