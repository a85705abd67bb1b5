package fleet_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/storetest"
)

// peers is a fleet with nodes that hold, move and fence, in a synctest bubble. It
// fails the test as soon as two nodes run the same environment.
type peers struct {
	t     *testing.T
	store *storetest.Memory
	cfg   fleet.Config
	fleet *fleet.Fleet
	stop  func()

	mu     sync.Mutex // guards all below, and the nodes' books
	nodes  map[string]*peer
	events []fleet.Event
}

// peer is one node.
type peer struct {
	hearthv1connect.NodeServiceClient
	w    *peers
	name string

	envs      map[string]*peerEnv
	classes   []*hearthv1.Pool
	revision  string
	manifests [][]byte
	budget    fleet.Budget
	fail      map[string]func() error // by method, before it acts
	after     map[string]func() error // after it has acted
	calls     []string
	snapshots int
	quit      chan struct{} // ends its reports
	stale     []string      // of its last inventory's answer
	lie       func(*hearthv1.NodeSnapshotResponse)
	claims    []*hearthv1.NodeClaimRequest
}

type peerEnv struct {
	*hearthv1.Environment
	held   bool
	fenced bool
	spec   *hearthv1.ClaimSpec
}

func (e *peerEnv) runs() bool {
	return e.Phase == hearthv1.Phase_PHASE_RUNNING && !e.held && !e.fenced
}

func newPeers(t *testing.T, cfg fleet.Config, names ...string) *peers {
	t.Helper()
	w := &peers{t: t, store: storetest.NewMemory(), cfg: cfg, nodes: map[string]*peer{}}
	for _, name := range names {
		w.nodes[name] = &peer{w: w, name: name, envs: map[string]*peerEnv{}, fail: map[string]func() error{}, after: map[string]func() error{},
			classes: []*hearthv1.Pool{{Class: "small", Ready: 5}}}
	}
	w.restart()
	for _, name := range names {
		w.nodes[name].connect()
	}
	return w
}

func (w *peers) Happened(e fleet.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// happened counts events of a kind, about a node or anywhere.
func (w *peers) happened(k fleet.Kind) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, e := range w.events {
		if e.Kind == k {
			n++
		}
	}
	return n
}

// restart replaces the controller. What it posted is lost.
func (w *peers) restart() {
	w.t.Helper()
	if w.stop != nil {
		w.stop()
		w.store.Crash()
	}
	cfg := w.cfg
	cfg.Observer = w
	var f *fleet.Fleet
	dial := func(name, _ string) hearthv1connect.NodeServiceClient {
		return peerClient{w.nodes[name], func() uint64 { return f.Epoch() }}
	}
	f, err := fleet.New(slog.New(slog.NewTextHandler(w.t.Output(), nil)), w.store, dial, cfg, fleet.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	w.fleet, w.stop = f, func() { cancel(); <-done }
}

// close ends everything.
func (w *peers) close() {
	for _, n := range w.nodes {
		n.disconnect()
	}
	w.stop()
}

// connect begins the node's reports: an inventory, then heartbeats, and an
// inventory every minute. They end when the controller is another one.
func (n *peer) connect() {
	n.disconnect()
	quit := make(chan struct{})
	n.quit = quit
	f := n.w.fleet
	s := f.Connect(n.name, n.name+":1")
	beat := func(full bool) bool {
		if full {
			stale, err := s.Inventory(n.inventory())
			if err == nil {
				n.answered(stale)
			}
			return err == nil
		}
		return s.Heartbeat(&hearthv1.Heartbeat{Pools: n.classes, Room: room()}) == nil
	}
	if !beat(true) {
		n.w.t.Errorf("node %s was refused", n.name)
	}
	go func() {
		for i := 1; ; i++ {
			select {
			case <-quit:
				s.Close()
				return
			case <-time.After(2 * time.Second):
				if !beat(i%30 == 0) {
					return
				}
			}
		}
	}()
}

// disconnect ends the reports; the node's environments run on.
func (n *peer) disconnect() {
	if n.quit != nil {
		close(n.quit)
		n.quit = nil
		time.Sleep(time.Millisecond) // let the stream close
	}
}

func room() *hearthv1.Room { return &hearthv1.Room{SlotsMax: 100} }

func (n *peer) inventory() *hearthv1.InventoryResponse {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	inv := &hearthv1.InventoryResponse{Node: n.name, Pools: n.classes, Room: room(), ClassesRevision: n.revision}
	for _, id := range slices.Sorted(maps.Keys(n.envs)) {
		inv.Environments = append(inv.Environments, n.envs[id].shown())
	}
	return inv
}

func (e *peerEnv) shown() *hearthv1.Environment {
	out := proto.CloneOf(e.Environment)
	switch {
	case e.fenced:
		out.Phase = hearthv1.Phase_PHASE_FENCED
	case e.held:
		out.Phase = hearthv1.Phase_PHASE_PAUSED
	}
	return out
}

// answered thaws what is not stale.
func (n *peer) answered(stale []string) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.stale = stale
	for id, e := range n.envs {
		e.fenced = e.fenced && slices.Contains(stale, id)
	}
	n.w.check()
}

// fence freezes all, as the agent does by itself.
func (n *peer) fence() {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for _, e := range n.envs {
		e.fenced = true
	}
}

// check fails if two nodes run the same. The caller holds mu.
func (w *peers) check() {
	at := map[string]string{}
	for name, n := range w.nodes {
		for id, e := range n.envs {
			if !e.runs() {
				continue
			}
			if at[id] != "" {
				w.t.Errorf("environment %s runs on %s and %s", id, at[id], name)
			}
			at[id] = name
		}
	}
}

// where lists, by environment, where it is, with generation and state.
func (w *peers) where() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		for id, e := range w.nodes[name].envs {
			state := strings.ToLower(strings.TrimPrefix(e.Phase.String(), "PHASE_"))
			if e.held {
				state += " held"
			}
			if e.fenced {
				state += " fenced"
			}
			out[id] += fmt.Sprintf("%s/%d %s;", name, e.GetGeneration(), state)
		}
	}
	return out
}

func (w *peers) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// claim claims one and returns its id.
func (w *peers) claim(key string) string {
	w.t.Helper()
	resp, err := w.fleet.Claim(context.Background(), alice, key, &hearthv1.ClaimSpec{
		Class: "small", Variables: map[string]string{"KEY": key}, Labels: map[string]string{"for": key},
		Egress: &hearthv1.EgressPolicy{Mode: hearthv1.EgressPolicy_MODE_NONE},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.GetEnvironment().GetId()
}

// record is what callers see.
func (w *peers) record(id string) *hearthv1.Environment {
	for _, e := range w.fleet.List(alice, "", "") {
		if e.GetId() == id {
			return e
		}
	}
	return nil
}

// peerClient is a node as one controller reaches it: calls of an older one than it
// has obeyed are refused.
type peerClient struct {
	*peer
	epoch func() uint64
}

// do runs one call under the node's books.
func (n *peer) do(ctx context.Context, method, id string, act func() error) error {
	n.w.mu.Lock()
	n.calls = append(n.calls, method+" "+id)
	fail, after := n.fail[method], n.after[method]
	n.w.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	n.w.mu.Lock()
	err := act()
	n.w.check()
	n.w.mu.Unlock()
	if err == nil && after != nil {
		err = after()
	}
	return err
}

func (n *peer) has(id string) (*peerEnv, error) {
	if e := n.envs[id]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("%w: environment %s", env.ErrNotFound, id)
}

func (n *peer) Get(ctx context.Context, r *hearthv1.NodeGetRequest) (out *hearthv1.NodeGetResponse, err error) {
	return out, n.do(ctx, "Get", r.GetEnvironment(), func() error {
		e, err := n.has(r.GetEnvironment())
		if err == nil {
			out = &hearthv1.NodeGetResponse{Environment: e.shown()}
		}
		return err
	})
}

func (n *peer) Claim(ctx context.Context, r *hearthv1.NodeClaimRequest) (out *hearthv1.NodeClaimResponse, err error) {
	return out, n.do(ctx, "Claim", r.GetEnvironment(), func() error {
		n.claims = append(n.claims, r)
		e := n.envs[r.GetEnvironment()]
		if e != nil && e.GetGeneration() != r.GetGeneration() {
			return fmt.Errorf("%w: environment %s", env.ErrExists, r.GetEnvironment())
		}
		if e == nil {
			e = &peerEnv{spec: r.GetSpec(), Environment: &hearthv1.Environment{
				Id: r.GetEnvironment(), Class: r.GetSpec().GetClass(), Tenant: r.GetSpec().GetTenant(), Labels: r.GetSpec().GetLabels(),
				Generation: r.GetGeneration(), Phase: hearthv1.Phase_PHASE_RUNNING, ClaimKey: r.GetClaimKey(), ClaimRequest: r.GetClaimRequest(),
			}}
			for _, p := range n.classes {
				e.Ephemeral = e.Ephemeral || p.GetClass() == e.Class && p.GetEphemeral()
			}
			n.envs[r.GetEnvironment()] = e
		}
		out = &hearthv1.NodeClaimResponse{Environment: e.shown(), Access: &hearthv1.Access{Address: n.name, Token: fmt.Sprintf("%s/%d", e.Id, e.Generation)}}
		return nil
	})
}

func (n *peer) Snapshot(ctx context.Context, r *hearthv1.NodeSnapshotRequest) (out *hearthv1.NodeSnapshotResponse, err error) {
	return out, n.do(ctx, "Snapshot", r.GetEnvironment(), func() error {
		e, err := n.has(r.GetEnvironment())
		if err != nil {
			return err
		}
		p := e.Phase // a stalled one is captured to be moved only: its node's disk is short
		if p != hearthv1.Phase_PHASE_RUNNING && p != hearthv1.Phase_PHASE_PAUSED && (p != hearthv1.Phase_PHASE_STALLED || !r.GetHold()) {
			return fmt.Errorf("%w: environment is %s", env.ErrState, p)
		}
		n.snapshots++
		e.held = e.held || r.GetHold()
		out = &hearthv1.NodeSnapshotResponse{Snapshot: &hearthv1.Snapshot{Id: fmt.Sprintf("%s/%d", e.Id, n.snapshots), Environment: e.Id, Tenant: e.Tenant}}
		if r.GetHold() {
			out.Spec = proto.CloneOf(e.spec)
		}
		if n.lie != nil {
			n.lie(out)
		}
		return nil
	})
}

func (n *peer) turn(ctx context.Context, method, id string, p hearthv1.Phase, unhold bool) (out *hearthv1.Environment, err error) {
	return out, n.do(ctx, method, id, func() error {
		e, err := n.has(id)
		if err != nil {
			return err
		}
		e.Phase, e.held = p, e.held && !unhold
		out = e.shown()
		return nil
	})
}

func (n *peer) Pause(ctx context.Context, r *hearthv1.NodePauseRequest) (*hearthv1.NodePauseResponse, error) {
	e, err := n.turn(ctx, "Pause", r.GetEnvironment(), hearthv1.Phase_PHASE_PAUSED, false)
	return &hearthv1.NodePauseResponse{Environment: e}, err
}

func (n *peer) Resume(ctx context.Context, r *hearthv1.NodeResumeRequest) (*hearthv1.NodeResumeResponse, error) {
	e, err := n.turn(ctx, "Resume", r.GetEnvironment(), hearthv1.Phase_PHASE_RUNNING, true)
	return &hearthv1.NodeResumeResponse{Environment: e}, err
}

func (n *peer) Release(ctx context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	return &hearthv1.NodeReleaseResponse{}, n.do(ctx, "Release", r.GetEnvironment(), func() error {
		e, err := n.has(r.GetEnvironment())
		switch {
		case err != nil:
			return err
		case r.GetGeneration() < e.GetGeneration():
			return fmt.Errorf("%w: generation %d is here", env.ErrFenced, e.GetGeneration())
		}
		delete(n.envs, r.GetEnvironment())
		return nil
	})
}

func (n *peer) Token(ctx context.Context, r *hearthv1.NodeTokenRequest) (out *hearthv1.NodeTokenResponse, err error) {
	return out, n.do(ctx, "Token", r.GetEnvironment(), func() error {
		_, err := n.has(r.GetEnvironment())
		out = &hearthv1.NodeTokenResponse{Access: &hearthv1.Access{Address: n.name}}
		return err
	})
}

func (n *peer) SetClasses(ctx context.Context, r *hearthv1.SetClassesRequest) (*hearthv1.SetClassesResponse, error) {
	return &hearthv1.SetClassesResponse{}, n.do(ctx, "SetClasses", r.GetRevision(), func() error {
		n.revision, n.manifests = r.GetRevision(), r.GetManifests()
		return nil
	})
}

func (n *peer) SetBudget(ctx context.Context, r *hearthv1.SetBudgetRequest) (*hearthv1.SetBudgetResponse, error) {
	return &hearthv1.SetBudgetResponse{}, n.do(ctx, "SetBudget", fmt.Sprint(r.GetMemoryBytes()), func() error {
		n.budget = fleet.Budget{MemoryBytes: r.GetMemoryBytes(), CPUMillis: r.GetCpuMillis()}
		return nil
	})
}

// called counts the calls of a method.
func (n *peer) called(method string) int {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	count := 0
	for _, c := range n.calls {
		if strings.HasPrefix(c, method+" ") {
			count++
		}
	}
	return count
}

// books are a copy of what the node knows.
type books struct {
	revision  string
	manifests [][]byte
	budget    fleet.Budget
	stale     []string
	claims    []*hearthv1.NodeClaimRequest
	envs      int
}

func (n *peer) books() books {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return books{n.revision, n.manifests, n.budget, slices.Clone(n.stale), slices.Clone(n.claims), len(n.envs)}
}

// told is a copy of the events.
func (w *peers) told() []fleet.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// onCall sets what a method does first, or last; nil is nothing.
func (n *peer) onCall(method string, before, after func() error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.fail[method], n.after[method] = before, after
}

var errCut = fmt.Errorf("%w: connection reset", env.ErrUnavailable)

func always(err error) func() error { return func() error { return err } }

// once is err the first time only.
func once(err error) func() error {
	var mu sync.Mutex
	done := false
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return nil
		}
		done = true
		return err
	}
}
