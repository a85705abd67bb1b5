package controllerapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/boltstore"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// cluster vouches as told. It is all three of the cluster's answers.
type cluster struct {
	mu     sync.Mutex
	tokens map[string]env.ServiceAccount
	roles  map[string]bool   // "namespace/account verb tenant"
	nodes  map[string]string // of agents' tokens
	down   bool
	asked  []string
}

func (c *cluster) Verify(_ context.Context, token string) (env.ServiceAccount, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.tokens[token]
	switch {
	case c.down:
		return a, fmt.Errorf("%w: no keys", env.ErrUnavailable)
	case !ok:
		return a, fmt.Errorf("%w: the token's signature is not good", env.ErrDenied)
	}
	return a, nil
}

func (c *cluster) Authorize(_ context.Context, who env.ServiceAccount, verb, tenant string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := fmt.Sprintf("%s/%s %s %s", who.Namespace, who.Name, verb, tenant)
	c.asked = append(c.asked, q)
	if !c.roles[q] {
		return fmt.Errorf("%w: %s", env.ErrDenied, q)
	}
	return nil
}

func (c *cluster) Review(_ context.Context, token string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	node, ok := c.nodes[token]
	switch {
	case c.down:
		return "", fmt.Errorf("%w: review the agent's token", env.ErrUnavailable)
	case !ok:
		return "", fmt.Errorf("%w: the agent's token is not accepted", env.ErrDenied)
	}
	return node, nil
}

// api is a controller's services on real TLS.
type api struct {
	t       *testing.T
	fleet   *fleet.Fleet
	ca      *pki.CA
	addr    string
	cluster *cluster
}

type unreachable struct {
	hearthv1connect.NodeServiceClient
}

func (unreachable) err() error { return fmt.Errorf("%w: no node here", env.ErrUnavailable) }

func (u unreachable) Get(context.Context, *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error) {
	return nil, u.err()
}

func (unreachable) ListSnapshots(context.Context, *hearthv1.NodeListSnapshotsRequest) (*hearthv1.NodeListSnapshotsResponse, error) {
	return &hearthv1.NodeListSnapshotsResponse{}, nil // it may be asked of what nobody knows
}

func (u unreachable) Pause(context.Context, *hearthv1.NodePauseRequest) (*hearthv1.NodePauseResponse, error) {
	return nil, u.err()
}

func (u unreachable) Resume(context.Context, *hearthv1.NodeResumeRequest) (*hearthv1.NodeResumeResponse, error) {
	return nil, u.err()
}

func (u unreachable) Extend(context.Context, *hearthv1.NodeExtendRequest) (*hearthv1.NodeExtendResponse, error) {
	return nil, u.err()
}

func (u unreachable) Snapshot(context.Context, *hearthv1.NodeSnapshotRequest) (*hearthv1.NodeSnapshotResponse, error) {
	return nil, u.err()
}

func (u unreachable) Fork(context.Context, *hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error) {
	return nil, u.err()
}

func (u unreachable) Release(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	return nil, u.err()
}

func (u unreachable) Token(context.Context, *hearthv1.NodeTokenRequest) (*hearthv1.NodeTokenResponse, error) {
	return nil, u.err()
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve starts the services; c is nil for a controller without Kubernetes.
func serve(t *testing.T, c *cluster) *api {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	store, err := boltstore.Open(filepath.Join(dir.Path(), "fleet.db"), nil)
	ok(t, err)
	ca, err := pki.LoadOrCreateCA(dir, "test", time.Now())
	ok(t, err)
	creds, err := ca.Credentials(pki.Controller("test"), []string{"127.0.0.1"}, time.Now())
	ok(t, err)
	source, err := pki.NewSource(creds)
	ok(t, err)
	reg := prometheus.NewRegistry()
	f, err := fleet.New(log, store, func(string, string) hearthv1connect.NodeServiceClient { return unreachable{} },
		fleet.Config{LostAfter: time.Millisecond, CallTimeout: time.Second}, fleet.NewMetrics(reg))
	ok(t, err)
	var callers Cluster
	var agents reviewer
	if c != nil {
		callers, agents = Cluster{Verify: c, Access: c}, c
	}
	mux := http.NewServeMux()
	m := rpc.NewMetrics(reg)
	nobody := func(string) (fleet.Principal, bool) { return fleet.Principal{}, false }
	mux.Handle(hearthv1connect.NewEnvironmentServiceHandler(NewEnvironments(f, callers), rpc.HandlerOptions(log, m, Authenticate(f, nobody, callers))...))
	mux.Handle(hearthv1connect.NewFleetServiceHandler(NewFleet(log, f, ca, agents), rpc.HandlerOptions(log, m)...))
	server := rpc.NewServer(log, mux)
	l, err := rpc.ListenTLS("127.0.0.1:0", source)
	ok(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		wg.Wait()
		_ = store.Close()
		_ = dir.Close()
	})
	return &api{t: t, fleet: f, ca: ca, addr: l.Addr().String(), cluster: c}
}

type bearer struct {
	next http.RoundTripper
	text string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer "+b.text)
	return b.next.RoundTrip(r)
}

func (a *api) http() *http.Client {
	cfg, err := pki.CAClientConfig(a.ca.PEM(), "")
	ok(a.t, err)
	h := rpc.TLSClient(cfg)
	a.t.Cleanup(h.CloseIdleConnections)
	return h
}

func (a *api) as(text string) hearthv1connect.EnvironmentServiceClient {
	h := a.http()
	h.Transport = bearer{h.Transport, text}
	return hearthv1connect.NewEnvironmentServiceClient(h, "https://"+a.addr, rpc.ClientOptions()...)
}

// has makes environments known, as their node would.
func (a *api) has(envs ...*hearthv1.Environment) {
	s := a.fleet.Connect("n1", "127.0.0.1:1")
	_, err := s.Inventory(&hearthv1.InventoryResponse{Node: "n1", Environments: envs})
	ok(a.t, err)
}

const (
	blue = env.ID("e-01arz3ndektsv4rrffq69g5fav")
	red  = env.ID("e-01arz3ndektsv4rrffq69g5fb0")
	none = "e-01arz3ndektsv4rrffq69g5fb1" // nobody's
)

func environment(id env.ID, tenant string) *hearthv1.Environment {
	return &hearthv1.Environment{Id: string(id), Class: "small", Tenant: tenant, Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING, Node: "n1"}
}

func bot() *cluster {
	return &cluster{
		tokens: map[string]env.ServiceAccount{"blue.bot.1": {Namespace: "blue", Name: "bot", UID: "1"}},
		roles:  map[string]bool{}, nodes: map[string]string{},
	}
}

func (c *cluster) grant(roles ...string) *cluster {
	for _, r := range roles {
		c.roles[r] = true
	}
	return c
}
