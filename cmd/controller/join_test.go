package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/rpc"
	"hearth/internal/rpc/agentlink"
	"hearth/internal/rpc/pki"
)

// link makes an agent's link with a token, in a directory of its own.
func link(t *testing.T, c *control, node, token string) *agentlink.Link {
	t.Helper()
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	t.Cleanup(func() { _ = dir.Close() })
	l, err := agentlink.New(slog.New(slog.DiscardHandler), agentlink.Config{
		Instance: testInstance, Node: node, Advertise: "127.0.0.1:1", Hosts: []string{"127.0.0.1"},
		Finder: agentlink.Static(c.addr), Token: func() (string, error) { return token, nil },
	}, dir, &fakeNode{name: node})
	ok(t, err)
	return l
}

func (c *control) token(t *testing.T, life time.Duration) pki.JoinToken {
	t.Helper()
	token := pki.NewJoinToken(c.ca)
	ok(t, c.fleet.AddJoinToken(fleet.JoinToken{Hash: token.Hash(), Expires: time.Now().Add(life)}))
	return token
}

func TestJoinRefusesForgedAndEndedTokens(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	good := c.token(t, time.Hour)
	forged := pki.NewJoinToken(c.ca) // the right authority, a secret that nobody stored
	otherCA := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	cases := map[string]struct {
		token string
		want  error
	}{
		"forged":    {forged.Text(), env.ErrDenied},
		"ended":     {c.token(t, -time.Second).Text(), env.ErrDenied},
		"malformed": {"hearth-join:12:34", env.ErrInvalid},
		"good":      {good.Text(), nil},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := link(t, c, "n-"+name, tc.token).Join(t.Context())
			if tc.want == nil {
				ok(t, err)
				return
			}
			wantErr(t, err, tc.want)
		})
	}
	t.Run("pins another authority", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := link(t, c, "n-other", otherCA.token(t, time.Hour).Text()).Join(ctx)
		wantErr(t, err, context.DeadlineExceeded) // it goes on trying: the address may be wrong for now
	})
}

func TestAJoinTokenDoesNotTakeTheNameOfALiveNode(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	startNode(t, c, &fakeNode{name: "n1"})
	_, err := link(t, c, "n1", c.token(t, time.Hour).Text()).Join(t.Context())
	wantErr(t, err, env.ErrExists)
}

// join gets a certificate the proper way.
func join(t *testing.T, c *control, node string) *pki.Source {
	t.Helper()
	s, err := link(t, c, node, c.token(t, time.Hour).Text()).Join(t.Context())
	ok(t, err)
	return s
}

func TestAReportMustBeOfTheCertificatesNode(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n1 := join(t, c, "n1")
	other := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	foreign := join(t, other, "n1")
	noCert, err := pki.CAClientConfig(c.ca.PEM(), "")
	ok(t, err)
	wrongCA := foreign.ClientConfig(pki.Controller(testInstance))
	wrongCA.RootCAs = noCert.RootCAs
	clients := map[string]struct {
		client *http.Client
		node   string
		want   error
	}{
		"own name":        {rpc.TLSClient(n1.ClientConfig(pki.Controller(testInstance))), "n1", nil},
		"another's name":  {rpc.TLSClient(n1.ClientConfig(pki.Controller(testInstance))), "n2", env.ErrDenied},
		"no certificate":  {rpc.TLSClient(noCert), "n1", env.ErrDenied},
		"wrong authority": {rpc.TLSClient(wrongCA), "n1", env.ErrUnavailable}, // the handshake fails
	}
	for name, tc := range clients {
		t.Run(name, func(t *testing.T) {
			defer tc.client.CloseIdleConnections()
			err := report(t, tc.client, c.addr, tc.node)
			if tc.want == nil {
				ok(t, err)
				return
			}
			wantErr(t, err, tc.want)
		})
	}
}

func report(t *testing.T, client *http.Client, addr, node string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	stream, err := hearthv1connect.NewFleetServiceClient(client, "https://"+addr, rpc.ClientOptions()...).Report(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.CloseRequest() }()
	_ = stream.Send(&hearthv1.ReportRequest{Node: node, Address: "127.0.0.1:1", Sequence: 1,
		Message: &hearthv1.ReportRequest_Inventory{Inventory: &hearthv1.InventoryResponse{}}})
	_, err = stream.Receive()
	return err
}

func TestTheNodeAPIWantsTheControllersCertificate(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1"})
	addr := c.fleet.Nodes()[0].Address
	n2 := join(t, c, "n2")
	noCert, err := pki.CAClientConfig(c.ca.PEM(), pki.Node(testInstance, "n1").ServerName())
	ok(t, err)
	cases := map[string]struct {
		client *http.Client
		want   error
	}{
		"controller":                 {rpc.TLSClient(c.source.ClientConfig(pki.Node(testInstance, "n1"))), nil},
		"another node":               {rpc.TLSClient(n2.ClientConfig(pki.Node(testInstance, "n1"))), env.ErrDenied},
		"no certificate":             {rpc.TLSClient(noCert), env.ErrDenied},
		"expects another node there": {rpc.TLSClient(c.source.ClientConfig(pki.Node(testInstance, "n3"))), env.ErrUnavailable},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			defer tc.client.CloseIdleConnections()
			_, err := hearthv1connect.NewNodeServiceClient(tc.client, "https://"+addr, rpc.ClientOptions()...).
				Inventory(t.Context(), &hearthv1.InventoryRequest{})
			if tc.want == nil {
				ok(t, err)
				return
			}
			wantErr(t, err, tc.want)
		})
	}
	_ = n
}

func TestAnAgentRestartsWithoutItsController(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	defer dir.Close()
	asked := 0
	text := c.token(t, time.Hour).Text()
	cfg := agentlink.Config{Instance: testInstance, Node: "n1", Advertise: "127.0.0.1:1", Finder: agentlink.Static(c.addr),
		Token: func() (string, error) { asked++; return text, nil }}
	l, err := agentlink.New(slog.New(slog.DiscardHandler), cfg, dir, &fakeNode{})
	ok(t, err)
	_, err = l.Join(t.Context())
	ok(t, err)
	c.stop()
	l, err = agentlink.New(slog.New(slog.DiscardHandler), cfg, dir, &fakeNode{})
	ok(t, err)
	s, err := l.Join(t.Context())
	ok(t, err)
	if asked != 1 || s.Current().Identity != pki.Node(testInstance, "n1") {
		t.Errorf("token asked %d times, identity %s", asked, s.Current().Identity)
	}
	cfg.Node = "n2"
	l, err = agentlink.New(slog.New(slog.DiscardHandler), cfg, dir, &fakeNode{})
	ok(t, err)
	_, err = l.Join(t.Context())
	wantErr(t, err, env.ErrExists)
}

func TestAnAgentRefusesALowerEpoch(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	defer dir.Close()
	ok(t, dir.WriteFile("epoch", "controller-epoch", []byte("1000"), 0o600))
	text := c.token(t, time.Hour).Text()
	var logged strings.Builder
	l, err := agentlink.New(slog.New(slog.NewTextHandler(&logged, nil)), agentlink.Config{Instance: testInstance, Node: "n1", Advertise: "127.0.0.1:1",
		Finder: agentlink.Static(c.addr), Token: func() (string, error) { return text, nil }}, dir, nodeWithNothing{})
	ok(t, err)
	s, err := l.Join(t.Context())
	ok(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	ok(t, l.Run(ctx, s))
	if l.Connected() || !strings.Contains(logged.String(), "a later one had 1000") {
		t.Errorf("connected %v; log:\n%s", l.Connected(), logged.String())
	}
}

type nodeWithNothing struct{}

func (nodeWithNothing) Stock() *hearthv1.Heartbeat { return &hearthv1.Heartbeat{} }

func (nodeWithNothing) Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error) {
	return &hearthv1.InventoryResponse{}, nil
}

func TestACertificateIsRenewedWithoutAToken(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n1 := join(t, c, "n1")
	client := rpc.TLSClient(n1.ClientConfig(pki.Controller(testInstance)))
	defer client.CloseIdleConnections()
	api := hearthv1connect.NewFleetServiceClient(client, "https://"+c.addr, rpc.ClientOptions()...)
	r, err := pki.NewRequest(nil)
	ok(t, err)
	resp, err := api.Join(t.Context(), &hearthv1.JoinRequest{Node: "n1", CsrDer: r.DER})
	ok(t, err)
	bundle, err := r.Bundle(resp.GetCertificatePem(), resp.GetCaPem())
	ok(t, err)
	renewed, err := pki.ParseBundle(bundle)
	ok(t, err)
	ok(t, n1.Replace(renewed))
	_, err = api.Join(t.Context(), &hearthv1.JoinRequest{Node: "n2", CsrDer: r.DER})
	wantErr(t, err, env.ErrDenied) // its own name only
	if err == nil || !strings.Contains(fmt.Sprint(err), "join token") {
		t.Errorf("error = %v", err)
	}
}
