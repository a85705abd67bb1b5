package controllerapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// calls are one of every method on an environment, with the verbs it needs.
func calls(api hearthv1connect.EnvironmentServiceClient, ctx context.Context, id string) map[string]struct {
	verbs []string
	call  func() error
} {
	type entry = struct {
		verbs []string
		call  func() error
	}
	return map[string]entry{
		"Get": {[]string{"get"}, func() error { _, err := api.Get(ctx, &hearthv1.GetRequest{Environment: id}); return err }},
		"ListSnapshots": {[]string{"get"}, func() error {
			_, err := api.ListSnapshots(ctx, &hearthv1.ListSnapshotsRequest{Environment: id})
			return err
		}},
		"Pause": {[]string{"update"}, func() error {
			_, err := api.Pause(ctx, &hearthv1.PauseRequest{Environment: id, IdempotencyKey: "p"})
			return err
		}},
		"Resume": {[]string{"update"}, func() error {
			_, err := api.Resume(ctx, &hearthv1.ResumeRequest{Environment: id, IdempotencyKey: "r"})
			return err
		}},
		"Resize": {[]string{"update"}, func() error {
			_, err := api.Resize(ctx, &hearthv1.ResizeRequest{Environment: id, IdempotencyKey: "z", Resources: &hearthv1.Resources{CpuMillis: 500}})
			return err
		}},
		"Extend": {[]string{"update"}, func() error {
			_, err := api.Extend(ctx, &hearthv1.ExtendRequest{
				Environment: id, IdempotencyKey: "e", End: &hearthv1.ExtendRequest_Duration{Duration: durationpb.New(time.Hour)},
			})
			return err
		}},
		"Upgrade": {[]string{"update"}, func() error {
			_, err := api.Upgrade(ctx, &hearthv1.UpgradeRequest{Environment: id, IdempotencyKey: "u"})
			return err
		}},
		"Snapshot": {[]string{"update"}, func() error {
			_, err := api.Snapshot(ctx, &hearthv1.SnapshotRequest{Environment: id, IdempotencyKey: "s"})
			return err
		}},
		"Fork": {[]string{"update", "create"}, func() error {
			_, err := api.Fork(ctx, &hearthv1.ForkRequest{Environment: id, IdempotencyKey: "f", Count: 1})
			return err
		}},
		"Release": {[]string{"delete"}, func() error {
			_, err := api.Release(ctx, &hearthv1.ReleaseRequest{Environment: id, IdempotencyKey: "x"})
			return err
		}},
		"Token": {[]string{"update"}, func() error { _, err := api.Token(ctx, &hearthv1.TokenRequest{Environment: id}); return err }},
	}
}

func TestEveryMethodNeedsItsVerbInTheTenantsNamespace(t *testing.T) {
	all := []string{"create", "get", "list", "update", "delete"}
	for name, entry := range calls(nil, t.Context(), "") {
		for _, verb := range entry.verbs {
			t.Run(name+" without "+verb, func(t *testing.T) {
				c := bot()
				for _, v := range all {
					c.roles["blue/bot "+v+" blue"] = v != verb
				}
				a := serve(t, c)
				a.has(environment(blue, "blue"))
				err := calls(a.as("blue.bot.1"), t.Context(), string(blue))[name].call()
				if !errors.Is(err, env.ErrDenied) {
					t.Errorf("error = %v", err)
				}
			})
		}
		t.Run(name+" with its verbs alone", func(t *testing.T) {
			c := bot()
			for _, v := range entry.verbs {
				c.grant("blue/bot " + v + " blue")
			}
			a := serve(t, c)
			a.has(environment(blue, "blue"))
			err := calls(a.as("blue.bot.1"), t.Context(), string(blue))[name].call()
			if errors.Is(err, env.ErrDenied) || errors.Is(err, env.ErrNotFound) {
				t.Errorf("error = %v", err)
			}
		})
	}
}

func TestAnotherTenantsEnvironmentIsAsIfItWereNotThere(t *testing.T) {
	c := bot()
	for _, v := range []string{"create", "get", "list", "update", "delete"} {
		c.grant("blue/bot " + v + " blue") // everything at home, nothing in red
	}
	a := serve(t, c)
	a.has(environment(blue, "blue"), environment(red, "red"))
	theirs, nobodys := calls(a.as("blue.bot.1"), t.Context(), string(red)), calls(a.as("blue.bot.1"), t.Context(), none)
	for name, entry := range theirs {
		err, other := entry.call(), nobodys[name].call()
		if !errors.Is(err, env.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if got, want := strings.ReplaceAll(fmt.Sprint(err), string(red), "ID"), strings.ReplaceAll(fmt.Sprint(other), none, "ID"); got != want {
			t.Errorf("%s tells that it is there:\n%s\n%s", name, got, want)
		}
	}
	_, secret, err := a.fleet.CreateAPIKey("blue", false)
	ok(t, err)
	for name, entry := range calls(a.as(secret), t.Context(), string(red)) {
		if err := entry.call(); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("%s by API key: %v", name, err)
		}
	}
}

func TestARoleInAnotherNamespaceOpensThatTenant(t *testing.T) {
	c := bot().grant("blue/bot get red", "blue/bot list red", "blue/bot create red")
	a := serve(t, c)
	a.has(environment(blue, "blue"), environment(red, "red"))
	client := a.as("blue.bot.1")
	if _, err := client.Get(t.Context(), &hearthv1.GetRequest{Environment: string(red)}); err != nil {
		t.Error(err)
	}
	if _, err := client.Get(t.Context(), &hearthv1.GetRequest{Environment: string(blue)}); !errors.Is(err, env.ErrDenied) {
		t.Errorf("its own namespace gave it no role: %v", err)
	}
	list, err := client.List(t.Context(), &hearthv1.ListRequest{Tenant: "red"})
	if err != nil || len(list.GetEnvironments()) != 1 || list.GetEnvironments()[0].GetId() != string(red) {
		t.Errorf("list of red: %v, %v", list, err)
	}
	if _, err := client.List(t.Context(), &hearthv1.ListRequest{}); !errors.Is(err, env.ErrDenied) {
		t.Errorf("list of its own: %v", err)
	}
	// Who may create there gets as far as the missing nodes.
	claim := func(tenant string) error {
		_, err := client.Claim(t.Context(), &hearthv1.ClaimRequest{IdempotencyKey: "k-" + tenant, Spec: &hearthv1.ClaimSpec{Class: "small", Tenant: tenant}})
		return err
	}
	if err := claim("red"); err == nil || errors.Is(err, env.ErrDenied) {
		t.Errorf("claim for red: %v", err)
	}
	for _, tenant := range []string{"", "blue", "green", "../red", "red "} {
		if err := claim(tenant); !errors.Is(err, env.ErrDenied) {
			t.Errorf("claim for %q: %v", tenant, err)
		}
	}
}

func TestTheDefaultTenantIsTheTokensNamespace(t *testing.T) {
	c := bot().grant("blue/bot create blue", "blue/bot list blue")
	a := serve(t, c)
	a.has(environment(blue, "blue"), environment(red, "red"))
	list, err := a.as("blue.bot.1").List(t.Context(), &hearthv1.ListRequest{})
	if err != nil || len(list.GetEnvironments()) != 1 || list.GetEnvironments()[0].GetTenant() != "blue" {
		t.Errorf("%v, %v", list, err)
	}
	_, _ = a.as("blue.bot.1").Claim(t.Context(), &hearthv1.ClaimRequest{IdempotencyKey: "k", Spec: &hearthv1.ClaimSpec{Class: "small"}})
	if !slices.Contains(c.asked, "blue/bot create blue") {
		t.Errorf("asked %q", c.asked)
	}
}

func TestWhoIsNotKnownIsRefused(t *testing.T) {
	c := bot().grant("blue/bot list blue")
	a := serve(t, c)
	_, key, err := a.fleet.CreateAPIKey("blue", false)
	ok(t, err)
	list := func(text string) error {
		_, err := a.as(text).List(t.Context(), &hearthv1.ListRequest{})
		return err
	}
	for name, tc := range map[string]struct {
		text string
		want error
	}{
		"token":            {"blue.bot.1", nil},
		"forged token":     {"blue.bot.2", env.ErrDenied},
		"enormous token":   {"blue.bot." + strings.Repeat("x", maxToken), env.ErrDenied},
		"API key":          {key, nil},
		"forged API key":   {key[:len(key)-1] + "0", env.ErrDenied},
		"nothing":          {"", env.ErrDenied},
		"a token in parts": {"blue.bot", env.ErrDenied},
	} {
		if name == "forged API key" && strings.HasSuffix(key, "0") {
			tc.text = key[:len(key)-1] + "1"
		}
		if err := list(tc.text); !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.mu.Lock()
	c.down = true
	c.mu.Unlock()
	if err := list("blue.bot.1"); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("while keys are not known: %v", err)
	}
	if err := list(key); err != nil {
		t.Errorf("an API key needs no cluster: %v", err)
	}
	bare := serve(t, nil)
	if _, err := bare.as("blue.bot.1").List(t.Context(), &hearthv1.ListRequest{}); !errors.Is(err, env.ErrDenied) {
		t.Errorf("a token without Kubernetes: %v", err)
	}
}

func TestCallersNeedTLS(t *testing.T) {
	a := serve(t, bot().grant("blue/bot list blue"))
	h := &http.Client{Transport: bearer{http.DefaultTransport, "blue.bot.1"}}
	r, err := h.Post("http://"+a.addr+hearthv1connect.EnvironmentServiceListProcedure, "application/json", strings.NewReader("{}"))
	if err == nil {
		defer r.Body.Close()
		if r.StatusCode == http.StatusOK {
			t.Error("plain text was answered")
		}
	}
}

func TestAnAPIKeyListsTheTenantThatItMay(t *testing.T) {
	a := serve(t, nil)
	a.has(environment(blue, "blue"), environment(red, "red"))
	_, own, err := a.fleet.CreateAPIKey("blue", false)
	ok(t, err)
	_, admin, err := a.fleet.CreateAPIKey("", true)
	ok(t, err)
	for name, tc := range map[string]struct {
		key, tenant string
		want        int
		err         error
	}{
		"own":               {own, "", 1, nil},
		"own by name":       {own, "blue", 1, nil},
		"another's":         {own, "red", 0, env.ErrDenied},
		"all":               {admin, "", 2, nil},
		"one, by the admin": {admin, "red", 1, nil},
	} {
		list, err := a.as(tc.key).List(t.Context(), &hearthv1.ListRequest{Tenant: tc.tenant})
		if len(list.GetEnvironments()) != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s: %d, %v", name, len(list.GetEnvironments()), err)
		}
	}
}

func TestAnAgentJoinsByAPodsTokenOfItsNode(t *testing.T) {
	c := bot()
	c.nodes["pod.on.n1"] = "n1"
	c.nodes["pod.on.n2"] = "n2"
	c.nodes["pod.on.bad"] = "N1/../n1"
	a := serve(t, c)
	a.has() // n1 reports: a restarted pod takes its name over all the same
	join := func(a *api, token, node string) error {
		r, err := pki.NewRequest([]string{"127.0.0.1"})
		ok(t, err)
		resp, err := hearthv1connect.NewFleetServiceClient(a.http(), "https://"+a.addr, rpc.ClientOptions()...).
			Join(t.Context(), &hearthv1.JoinRequest{Token: token, Node: node, CsrDer: r.DER})
		if err != nil {
			return err
		}
		_, err = r.Bundle(resp.GetCertificatePem(), resp.GetCaPem())
		return err
	}
	for name, tc := range map[string]struct {
		token, node string
		want        error
	}{
		"its own node":              {"pod.on.n1", "n1", nil},
		"another node's pod":        {"pod.on.n2", "n1", env.ErrDenied},
		"a forged node name":        {"pod.on.n1", "n3", env.ErrDenied},
		"a name that is none":       {"pod.on.bad", "N1/../n1", env.ErrInvalid},
		"a token nobody made":       {"pod.on.mars", "n1", env.ErrDenied},
		"a caller's token":          {"blue.bot.1", "n1", env.ErrDenied},
		"no token":                  {"", "n1", env.ErrDenied},
		"an enormous one":           {"a.b." + strings.Repeat("x", maxToken), "n1", env.ErrDenied},
		"a join token nobody made":  {pki.NewJoinToken(a.ca).Text(), "n9", env.ErrDenied},
		"half a token of the right": {"pod.on", "n1", env.ErrDenied},
	} {
		err := join(a, tc.token, tc.node)
		if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && tc.token != "" && strings.Contains(err.Error(), tc.token) {
			t.Errorf("%s: the token is echoed: %v", name, err)
		}
	}
	c.mu.Lock()
	c.down = true
	c.mu.Unlock()
	if err := join(a, "pod.on.n1", "n1"); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("while the API server is down: %v", err)
	}
	if err := join(serve(t, nil), "pod.on.n1", "n1"); !errors.Is(err, env.ErrDenied) {
		t.Errorf("without Kubernetes: %v", err)
	}
}

func TestAJoinTokenDoesNotTakeAReportingName(t *testing.T) {
	a := serve(t, bot())
	a.has()
	token := pki.NewJoinToken(a.ca)
	ok(t, a.fleet.AddJoinToken(fleet.JoinToken{Hash: token.Hash(), Expires: time.Now().Add(time.Hour)}))
	r, err := pki.NewRequest(nil)
	ok(t, err)
	client := hearthv1connect.NewFleetServiceClient(a.http(), "https://"+a.addr, rpc.ClientOptions()...)
	if _, err := client.Join(t.Context(), &hearthv1.JoinRequest{Token: token.Text(), Node: "n1", CsrDer: r.DER}); !errors.Is(err, env.ErrExists) {
		t.Errorf("n1 by a join token: %v", err)
	}
	if _, err := client.Join(t.Context(), &hearthv1.JoinRequest{Token: token.Text(), Node: "n2", CsrDer: r.DER}); err != nil {
		t.Errorf("n2 by a join token: %v", err)
	}
}
