//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/kube"
	"hearth/internal/kube/kubetest"
	"hearth/internal/rpc"
	"hearth/internal/rpc/agentlink"
	"hearth/internal/rpc/controllerapi"
	"hearth/internal/rpc/pki"
)

const (
	agents   = "hearth-nodes"
	agentSA  = "hearth-nodeagent"
	audience = kube.Audience
)

// realCluster is an API server with two nodes, and an agent's pod on each, and
// two tenants; and a controller that asks it with no more rights than it needs.
func realCluster(t *testing.T) (*kubetest.Server, *control) {
	t.Helper()
	s := kubetest.Start(t)
	for _, n := range []string{"n1", "n2"} {
		s.Node(n)
		s.Account(agents, agentSA)
		s.Pod(agents, "agent-"+n, agentSA, n)
	}
	s.Account("blue", "bot")
	s.Pod("blue", "bot", "bot", "n1")
	s.Account("red", "bot")
	client, err := kube.Open(kube.Config{Kubeconfig: s.Controller(), UserAgent: "hearth-test"})
	ok(t, err)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	m := kube.NewIdentityMetrics(prometheus.NewRegistry())
	tokens, access := kube.NewTokens(log, client.API(), m), kube.NewAccess(log, client.API(), m)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tokens.Run(ctx) })
	wg.Go(func() { _ = access.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return s, startControlIn(t, cluster{
		callers: controllerapi.Cluster{Verify: tokens, Access: access},
		agents:  kube.NewReviewer(client.API(), tokens, env.ServiceAccount{Namespace: agents, Name: agentSA}),
	}, t.TempDir(), "127.0.0.1:0", quick, nil)
}

func ended(claims map[string]any) {
	past := time.Now().Add(-time.Hour).Unix()
	claims["iat"], claims["nbf"], claims["exp"] = past-600, past-600, past
}

// at finds c by its address and its authority, as the lease says both.
type at struct{ c *control }

func (a at) Find(context.Context) (string, []byte, error) { return a.c.addr, a.c.ca.PEM(), nil }

func TestRealTokensJoinTheirNodeAndNoOther(t *testing.T) {
	s, c := realCluster(t)
	pod := func(name string) kubetest.Bound { return kubetest.Bound{Kind: "Pod", Name: name} }
	n1 := s.Token(agents, agentSA, audience, pod("agent-n1"))
	s.Pod(agents, "agent-gone", agentSA, "n1")
	gone := s.Token(agents, agentSA, audience, pod("agent-gone"))
	s.DeletePod(agents, "agent-gone")
	cases := map[string]struct {
		token, node string
		want        error
		says        string
	}{
		"its own node":                      {n1, "n1", nil, ""},
		"the other node's pod":              {s.Token(agents, agentSA, audience, pod("agent-n2")), "n1", env.ErrDenied, "on node \"n2\""},
		"a forged node name":                {n1, "n3", env.ErrDenied, "on node \"n1\""},
		"ended":                             {s.Forge(n1, ended), "n1", env.ErrDenied, "ended at"},
		"another audience":                  {s.Token(agents, agentSA, "vault", pod("agent-n1")), "n1", env.ErrDenied, "audience"},
		"the API server's own audience":     {s.Token(agents, agentSA, "", pod("agent-n1")), "n1", env.ErrDenied, "audience"},
		"bound to nothing":                  {s.Token(agents, agentSA, audience, kubetest.Bound{}), "n1", env.ErrDenied, "bound to no pod"},
		"bound to the node alone":           {s.Token(agents, agentSA, audience, kubetest.Bound{Kind: "Node", Name: "n1"}), "n1", env.ErrDenied, "bound to no pod"},
		"of a pod that is gone":             {gone, "n1", env.ErrDenied, ""},
		"of another account on that node":   {s.Token("blue", "bot", audience, pod("bot")), "n1", env.ErrDenied, "not of system:serviceaccount:hearth-nodes"},
		"by another key":                    {s.ForgeByAnotherKey(n1, nil), "n1", env.ErrDenied, ""},
		"unsigned":                          {s.Unsigned(n1, nil), "n1", env.ErrDenied, ""},
		"with another node written into it": {strings.Join([]string{strings.Split(n1, ".")[0], strings.Split(s.Unsigned(n1, onNode("n2")), ".")[1], strings.Split(n1, ".")[2]}, "."), "n2", env.ErrDenied, ""},
		"the cluster's key, a pod unlike it": {s.Forge(n1, func(c map[string]any) {
			kubernetes(c)["pod"].(map[string]any)["uid"] = "11111111-1111-1111-1111-111111111111"
		}), "n1", env.ErrDenied, ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r, err := pki.NewRequest([]string{"127.0.0.1"})
			ok(t, err)
			resp, err := fleetClient(t, c).Join(t.Context(), &hearthv1.JoinRequest{Token: tc.token, Node: tc.node, CsrDer: r.DER})
			if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) || !strings.Contains(fmt.Sprint(err), tc.says) {
				t.Fatalf("error = %v; want %v with %q", err, tc.want, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), tc.token) {
				t.Errorf("the token is echoed: %v", err)
			}
			if err == nil {
				bundle, err := r.Bundle(resp.GetCertificatePem(), resp.GetCaPem())
				ok(t, err)
				creds, err := pki.ParseBundle(bundle)
				ok(t, err)
				if creds.Identity != pki.Node(testInstance, tc.node) {
					t.Errorf("certificate of %s", creds.Identity)
				}
			}
			t.Log(err)
		})
	}
}

func kubernetes(claims map[string]any) map[string]any {
	k, _ := claims["kubernetes.io"].(map[string]any)
	return k
}

func onNode(name string) func(map[string]any) {
	return func(c map[string]any) { kubernetes(c)["node"].(map[string]any)["name"] = name }
}

func fleetClient(t *testing.T, c *control) hearthv1connect.FleetServiceClient {
	t.Helper()
	cfg, err := pki.CAClientConfig(c.ca.PEM(), pki.Controller(testInstance).ServerName())
	ok(t, err)
	h := rpc.TLSClient(cfg)
	t.Cleanup(h.CloseIdleConnections)
	return hearthv1connect.NewFleetServiceClient(h, "https://"+c.addr, rpc.ClientOptions()...)
}

func TestARestartedPodTakesItsNodesNameOver(t *testing.T) {
	s, c := realCluster(t)
	link := func() (*agentlink.Link, *pki.Source) {
		dir, err := durable.OpenDir(t.TempDir(), nil)
		ok(t, err)
		t.Cleanup(func() { _ = dir.Close() })
		l, err := agentlink.New(slog.New(slog.NewTextHandler(t.Output(), nil)), agentlink.Config{
			Instance: testInstance, Node: "n1", Advertise: "127.0.0.1:1", Hosts: []string{"127.0.0.1"}, Finder: at{c},
			Token: func() (string, error) {
				return s.Token(agents, agentSA, audience, kubetest.Bound{Kind: "Pod", Name: "agent-n1"}), nil
			},
		}, dir, &fakeNode{name: "n1"})
		ok(t, err)
		source, err := l.Join(t.Context())
		ok(t, err)
		return l, source
	}
	first, source := link()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- first.Run(ctx, source) }()
	eventually(t, "n1 reports", func() bool { return c.fleet.Reporting("n1") })
	link() // with a state directory of its own, while the first still reports
	cancel()
	ok(t, <-done)
}

func TestRealTokensOfCallers(t *testing.T) {
	s, c := realCluster(t)
	s.Grant("blue", "blue", "bot", "create", "get", "list")
	session := c.fleet.Connect("n1", "127.0.0.1:1")
	const blue, red = "e-01arz3ndektsv4rrffq69g5fav", "e-01arz3ndektsv4rrffq69g5fb0"
	_, err := session.Inventory(&hearthv1.InventoryResponse{Node: "n1", Environments: []*hearthv1.Environment{
		{Id: blue, Class: "small", Tenant: "blue", Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING, Node: "n1"},
		{Id: red, Class: "small", Tenant: "red", Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING, Node: "n1"},
	}})
	ok(t, err)
	good := s.Token("blue", "bot", audience, kubetest.Bound{Kind: "Pod", Name: "bot"})
	list := func(token, tenant string) error {
		_, err := c.clientWith(token).List(t.Context(), &hearthv1.ListRequest{Tenant: tenant})
		return err
	}
	for name, tc := range map[string]struct {
		token, tenant string
		want          error
		says          string
	}{
		"good":                            {good, "", nil, ""},
		"another tenant":                  {good, "red", env.ErrDenied, "in namespace red"},
		"another tenant's own":            {s.Token("red", "bot", audience, kubetest.Bound{}), "", env.ErrDenied, "in namespace red"},
		"ended":                           {s.Forge(good, ended), "", env.ErrDenied, "ended at"},
		"another audience":                {s.Token("blue", "bot", "vault", kubetest.Bound{}), "", env.ErrDenied, "audience"},
		"for the API server":              {s.Token("blue", "bot", "", kubetest.Bound{}), "", env.ErrDenied, "audience"},
		"by another key":                  {s.ForgeByAnotherKey(good, nil), "", env.ErrDenied, "signature"},
		"unsigned":                        {s.Unsigned(good, nil), "", env.ErrDenied, "RS256"},
		"of another issuer":               {s.Forge(good, func(c map[string]any) { c["iss"] = "https://evil" }), "", env.ErrDenied, "issued by"},
		"that says to be of another name": {s.Forge(good, func(c map[string]any) { c["sub"] = "system:serviceaccount:red:bot" }), "", env.ErrDenied, "no service account"},
	} {
		t.Run(name, func(t *testing.T) {
			err := list(tc.token, tc.tenant)
			if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) || !strings.Contains(fmt.Sprint(err), tc.says) {
				t.Errorf("error = %v; want %v with %q", err, tc.want, tc.says)
			}
		})
	}
	api := c.clientWith(good)
	if _, err := api.Get(t.Context(), &hearthv1.GetRequest{Environment: blue}); err != nil {
		t.Error(err)
	}
	if _, err := api.Release(t.Context(), &hearthv1.ReleaseRequest{Environment: blue, IdempotencyKey: "r"}); !errors.Is(err, env.ErrDenied) {
		t.Errorf("release without the verb: %v", err)
	}
	if _, err := api.Get(t.Context(), &hearthv1.GetRequest{Environment: red}); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("another tenant's environment: %v", err)
	}
	plain := &http.Client{Transport: bearer{http.DefaultTransport, good}}
	if r, err := plain.Post("http://"+c.addr+hearthv1connect.EnvironmentServiceListProcedure, "application/json", strings.NewReader("{}")); err == nil {
		_ = r.Body.Close()
		if r.StatusCode == http.StatusOK {
			t.Error("plain text was answered")
		}
	}
	s.Grant("red", "blue", "bot", "get")
	time.Sleep(6 * time.Second) // a denial holds for 5
	if _, err := api.Get(t.Context(), &hearthv1.GetRequest{Environment: red}); err != nil {
		t.Errorf("with a role there: %v", err)
	}
	s.Revoke("blue", "blue", "bot")
	begun := time.Now()
	eventuallyIn(t, 35*time.Second, "the role is gone", func() bool { return errors.Is(list(good, ""), env.ErrDenied) })
	t.Logf("a role that was taken away ended after %s", time.Since(begun).Round(time.Second))
}

func eventuallyIn(t *testing.T, within time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !cond(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func TestKnownCallersAreServedWhileTheAPIServerIsSilent(t *testing.T) {
	s, c := realCluster(t)
	s.Grant("blue", "blue", "bot", "list")
	s.Grant("red", "red", "bot", "list")
	known, fresh := s.Token("blue", "bot", audience, kubetest.Bound{}), s.Token("blue", "bot", audience, kubetest.Bound{})
	stranger := s.Token("red", "bot", audience, kubetest.Bound{})
	agent := s.Token(agents, agentSA, audience, kubetest.Bound{Kind: "Pod", Name: "agent-n1"})
	list := func(token string) (time.Duration, error) {
		begun := time.Now()
		_, err := c.clientWith(token).List(t.Context(), &hearthv1.ListRequest{})
		return time.Since(begun), err
	}
	_, err := list(known)
	ok(t, err)
	speak := s.Silence()
	defer func() { speak() }()
	var slowest time.Duration
	for begun := time.Now(); time.Since(begun) < 45*time.Second; time.Sleep(time.Second) { // past the 30 s of an allowance
		took, err := list(known)
		ok(t, err)
		slowest = max(slowest, took)
	}
	t.Logf("slowest of 45 s without an answer from the API server: %s", slowest.Round(time.Millisecond))
	if slowest > 900*time.Millisecond {
		t.Errorf("a known caller waited %s", slowest)
	}
	if _, err := list(fresh); err != nil {
		t.Errorf("another token of a known account: %v", err)
	}
	if _, err := list(stranger); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("an account that was never asked for: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	r, err := pki.NewRequest(nil)
	ok(t, err)
	if _, err := fleetClient(t, c).Join(ctx, &hearthv1.JoinRequest{Token: agent, Node: "n1", CsrDer: r.DER}); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("an agent's join: %v", err)
	}
	speak()
	speak = func() {}
	eventuallyIn(t, 15*time.Second, "strangers are known again", func() bool { _, err := list(stranger); return err == nil })
}
