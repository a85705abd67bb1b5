package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/boltstore"
	"hearth/internal/rpc"
	"hearth/internal/rpc/agentlink"
	"hearth/internal/rpc/controllerapi"
	"hearth/internal/rpc/pki"
)

const testInstance = "test"

// quick are times for tests.
var quick = fleet.Config{
	Heartbeat: 50 * time.Millisecond, LostAfter: time.Second,
	AttemptTimeout: time.Second, CallTimeout: time.Second,
}

// control is a controller in this process, made of the parts that wire.go joins.
type control struct {
	t      testing.TB
	fleet  *fleet.Fleet
	ca     *pki.CA
	source *pki.Source
	addr   string
	stop   func()
}

// startControl starts a controller on dir. It stops at the test's end, or by stop.
func startControl(t testing.TB, dir, addr string, cfg fleet.Config, fault durable.Fault) *control {
	t.Helper()
	return startControlIn(t, cluster{}, dir, addr, cfg, fault)
}

// startControlIn is startControl for a controller in a cluster.
func startControlIn(t testing.TB, in cluster, dir, addr string, cfg fleet.Config, fault durable.Fault) *control {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	d, err := durable.OpenDir(dir, nil)
	ok(t, err)
	store, err := boltstore.Open(filepath.Join(dir, "fleet.db"), fault)
	ok(t, err)
	ca, err := pki.LoadOrCreateCA(d, testInstance, time.Now())
	ok(t, err)
	creds, err := ca.Credentials(pki.Controller(testInstance), []string{"127.0.0.1"}, time.Now())
	ok(t, err)
	source, err := pki.NewSource(creds)
	ok(t, err)
	reg := prometheus.NewRegistry()
	var f *fleet.Fleet
	f, err = fleet.New(log, store, dialer(testInstance, source, nil, func() uint64 { return f.Epoch() }), cfg, fleet.NewMetrics(reg))
	ok(t, err)
	none := func(string) (fleet.Principal, bool) { return fleet.Principal{}, false }
	server := rpc.NewServer(log, apiHandler(log, rpc.NewMetrics(reg), f, ca, none, in))
	l, err := rpc.ListenTLS(addr, source)
	ok(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	wg.Go(func() { _ = f.Run(ctx) })
	c := &control{t: t, fleet: f, ca: ca, source: source, addr: l.Addr().String()}
	c.stop = sync.OnceFunc(func() {
		shut, done := context.WithTimeout(context.Background(), 5*time.Second)
		defer done()
		_ = server.Shutdown(shut)
		cancel()
		wg.Wait()
		_ = store.Close()
		_ = d.Close()
	})
	t.Cleanup(c.stop)
	return c
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// client is a caller of the Environments API with a new key of tenant.
func (c *control) client(tenant string) hearthv1connect.EnvironmentServiceClient {
	c.t.Helper()
	_, secret, err := c.fleet.CreateAPIKey(tenant, false)
	ok(c.t, err)
	return c.clientWith(secret)
}

func (c *control) clientWith(secret string) hearthv1connect.EnvironmentServiceClient {
	c.t.Helper()
	cfg, err := pki.CAClientConfig(c.ca.PEM(), "")
	ok(c.t, err)
	h := rpc.TLSClient(cfg)
	c.t.Cleanup(h.CloseIdleConnections)
	h.Transport = bearer{h.Transport, secret}
	return hearthv1connect.NewEnvironmentServiceClient(h, "https://"+c.addr, rpc.ClientOptions()...)
}

type bearer struct {
	next   http.RoundTripper
	secret string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer "+b.secret)
	return b.next.RoundTrip(r)
}

// fakeNode is an agent: the real link and the real mutual TLS around a
// NodeService that only keeps books. Its fields may be changed under mu.
type fakeNode struct {
	hearthv1connect.UnimplementedNodeServiceHandler
	name string

	mu       sync.Mutex
	envs     map[string]*hearthv1.Environment
	claims   map[string]*hearthv1.NodeClaimResponse // by idempotency key
	calls    int                                    // claims received, repeats included
	releases int
	ready    uint32
	most     uint32        // slots that it has room for; 0 is 1000
	changed  chan struct{} // its pools have; nil is never
	refuse   error
	cut      bool          // cut the connection after a claim was accepted
	slow     time.Duration // take so long for a claim
	halfFork bool          // refuse a fork after its first child, which stays
	link     *agentlink.Link
	stop     func()
	moves    moves // see drain_test.go
}

// startNode joins an agent to c and waits until it can be given claims.
func startNode(t testing.TB, c *control, n *fakeNode) *fakeNode {
	t.Helper()
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	text, _, err := controllerapi.NewJoinToken(c.fleet, c.ca, time.Hour)
	ok(t, err)
	serveNode(t, n, dir, c.addr, text)
	eventually(t, "node "+n.name+" is ready", func() bool {
		return slices.ContainsFunc(c.fleet.Nodes(), func(s fleet.NodeStatus) bool { return s.Name == n.name && s.Ready })
	})
	return n
}

// serveNode joins the controller at addr and serves the node until the test's end.
func serveNode(t testing.TB, n *fakeNode, dir *durable.Dir, addr, token string) {
	t.Helper()
	n.envs, n.claims = map[string]*hearthv1.Environment{}, map[string]*hearthv1.NodeClaimResponse{}
	if n.ready == 0 {
		n.ready = 100
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	n.link, err = agentlink.New(log, agentlink.Config{
		Instance: testInstance, Node: n.name, Advertise: plain.Addr().String(), Hosts: []string{"127.0.0.1"},
		Finder: agentlink.Static(addr), Token: func() (string, error) { return token, nil },
		Changed: n.changed,
	}, dir, n)
	ok(t, err)
	source, err := n.link.Join(t.Context())
	ok(t, err)
	ok(t, plain.Close())
	l, err := rpc.ListenTLS(plain.Addr().String(), source)
	ok(t, err)
	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewNodeServiceHandler(n, rpc.HandlerOptions(log, rpc.NewMetrics(prometheus.NewRegistry()),
		rpc.RequireRole(testInstance, pki.RoleController))...))
	server := rpc.NewServer(log, mux)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	wg.Go(func() { _ = n.link.Run(ctx, source) })
	n.stop = sync.OnceFunc(func() {
		cancel()
		shut, done := context.WithTimeout(context.Background(), time.Second)
		defer done()
		_ = server.Shutdown(shut)
		wg.Wait()
		_ = dir.Close()
	})
	t.Cleanup(n.stop)
}

// Stock is the part of the inventory that a heartbeat has.
func (n *fakeNode) Stock() *hearthv1.Heartbeat {
	inv, _ := n.Inventory(context.Background(), nil) // never fails
	return &hearthv1.Heartbeat{Pools: inv.GetPools(), Room: inv.GetRoom()}
}

func (n *fakeNode) Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	most := n.most
	if most == 0 {
		most = 1000
	}
	inv := &hearthv1.InventoryResponse{
		Node:  n.name,
		Pools: []*hearthv1.Pool{{Class: "small", Want: n.ready, Ready: n.ready}},
		Room:  &hearthv1.Room{SlotsMax: most, SlotsUsed: n.ready + uint32(len(n.envs))},
	}
	for _, e := range n.envs {
		inv.Environments = append(inv.Environments, proto.CloneOf(e))
	}
	return inv, nil
}

func (n *fakeNode) Claim(ctx context.Context, r *hearthv1.NodeClaimRequest) (*hearthv1.NodeClaimResponse, error) {
	n.mu.Lock()
	n.calls++
	refuse, slow := n.refuse, n.slow
	n.mu.Unlock()
	if refuse != nil {
		return nil, refuse
	}
	n.moves.tell("Claim", "before")
	if slow > 0 {
		time.Sleep(slow) // and then it claims, whether or not the caller is still there
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if have := n.claims[r.GetIdempotencyKey()]; have != nil {
		return have, n.maybeCut()
	}
	resp := &hearthv1.NodeClaimResponse{
		Environment: &hearthv1.Environment{Id: r.GetEnvironment(), Class: r.GetSpec().GetClass(), Tenant: r.GetSpec().GetTenant(),
			Generation: r.GetGeneration(), Phase: hearthv1.Phase_PHASE_RUNNING, Node: n.name, Warm: true, Labels: r.GetSpec().GetLabels()},
		Access: &hearthv1.Access{Address: "127.0.0.1:1", Token: fmt.Sprintf("token-%s-%d", r.GetEnvironment(), n.calls)},
		Took:   durationpb.New(time.Millisecond),
	}
	n.claims[r.GetIdempotencyKey()] = resp
	n.envs[r.GetEnvironment()] = resp.Environment
	n.moves.claimed(n.name, r)
	n.moves.tell("Claim", "after")
	return resp, n.maybeCut()
}

func (n *fakeNode) maybeCut() error {
	if n.cut {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (n *fakeNode) Fork(ctx context.Context, r *hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error) {
	resp := &hearthv1.NodeForkResponse{Snapshot: &hearthv1.Snapshot{Id: r.GetEnvironment() + "/1", Environment: r.GetEnvironment()}}
	for i, c := range r.GetChildren() {
		if i == 1 && n.halfway() {
			return nil, fmt.Errorf("%w: no slot for child 2", env.ErrExhausted)
		}
		child, err := n.Claim(ctx, c)
		if err != nil {
			return nil, err
		}
		resp.Children = append(resp.Children, child)
	}
	return resp, nil
}

func (n *fakeNode) halfway() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.halfFork
}

func (n *fakeNode) get(id string) (*hearthv1.Environment, error) {
	e := n.envs[id]
	if e == nil {
		return nil, fmt.Errorf("%w: environment %s", env.ErrNotFound, id)
	}
	return e, nil
}

func (n *fakeNode) Get(_ context.Context, r *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, err := n.get(r.GetEnvironment())
	return &hearthv1.NodeGetResponse{Environment: proto.CloneOf(e)}, err
}

func (n *fakeNode) Pause(_ context.Context, r *hearthv1.NodePauseRequest) (*hearthv1.NodePauseResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, err := n.get(r.GetEnvironment())
	if err == nil {
		e.Phase = hearthv1.Phase_PHASE_PAUSED
	}
	return &hearthv1.NodePauseResponse{Environment: proto.CloneOf(e)}, err
}

func (n *fakeNode) Release(_ context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.releases++
	e, err := n.get(r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	if g := r.GetGeneration(); g != 0 && g < e.GetGeneration() {
		return nil, fmt.Errorf("%w: generation %d", env.ErrFenced, e.GetGeneration())
	}
	n.moves.tell("Release", "before")
	delete(n.envs, r.GetEnvironment())
	n.moves.runs(n.name, r.GetEnvironment(), false)
	n.moves.tell("Release", "after")
	return &hearthv1.NodeReleaseResponse{}, nil
}

// set changes the node's behaviour.
func (n *fakeNode) set(f func(*fakeNode)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
}

// count reads one of the node's counters.
func (n *fakeNode) count(c *int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *c
}

// made is how many environments the node has ever made.
func (n *fakeNode) made() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.claims)
}

// has lists the environments that run there, with their generations.
func (n *fakeNode) has() map[string]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string]uint64{}
	for id, e := range n.envs {
		out[id] = e.GetGeneration()
	}
	return out
}

// running counts, over nodes, where each environment runs.
func running(nodes ...*fakeNode) map[string][]string {
	out := map[string][]string{}
	for _, n := range nodes {
		for _, id := range slices.Sorted(maps.Keys(n.has())) {
			out[id] = append(out[id], n.name)
		}
	}
	return out
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within 15 s: %s", what)
}
