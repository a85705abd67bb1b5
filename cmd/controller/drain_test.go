package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/boltstore"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// moves is what a fakeNode needs to be a source or a target. The node's mu guards
// specs and snapshots.
type moves struct {
	ledger    *ledger
	told      func(method, when string) // in the middle of a call
	specs     map[string]*hearthv1.ClaimSpec
	snapshots int
}

// ledger knows which node runs what, and what must never be.
type ledger struct {
	mu     sync.Mutex // guards all below
	at     map[string]map[string]bool
	faults []string
}

func (m *moves) tell(method, when string) {
	if m.told != nil {
		m.told(method, when)
	}
}

func (m *moves) runs(node, id string, runs bool) {
	l := m.ledger
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at[id] == nil {
		l.at[id] = map[string]bool{}
	}
	delete(l.at[id], node)
	if runs {
		l.at[id][node] = true
	}
	if len(l.at[id]) > 1 {
		l.faults = append(l.faults, fmt.Sprintf("%s runs at %v", id, l.at[id]))
	}
}

func (m *moves) claimed(node string, r *hearthv1.NodeClaimRequest) {
	if m.specs == nil {
		m.specs = map[string]*hearthv1.ClaimSpec{}
	}
	m.specs[r.GetEnvironment()] = r.GetSpec()
	m.runs(node, r.GetEnvironment(), true)
}

func (n *fakeNode) Snapshot(_ context.Context, r *hearthv1.NodeSnapshotRequest) (*hearthv1.NodeSnapshotResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, err := n.get(r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	n.moves.tell("Snapshot", "before")
	if r.GetHold() {
		n.moves.runs(n.name, r.GetEnvironment(), false)
	}
	n.moves.snapshots++
	n.moves.tell("Snapshot", "after")
	return &hearthv1.NodeSnapshotResponse{
		Snapshot: &hearthv1.Snapshot{Id: fmt.Sprintf("%s/%d", e.GetId(), n.moves.snapshots), Environment: e.GetId(), Tenant: e.GetTenant()},
		Spec:     proto.CloneOf(n.moves.specs[e.GetId()]),
	}, nil
}

func (n *fakeNode) Resume(_ context.Context, r *hearthv1.NodeResumeRequest) (*hearthv1.NodeResumeResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, err := n.get(r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	n.moves.tell("Resume", "before")
	e.Phase = hearthv1.Phase_PHASE_RUNNING
	n.moves.runs(n.name, r.GetEnvironment(), true)
	n.moves.tell("Resume", "after")
	return &hearthv1.NodeResumeResponse{Environment: proto.CloneOf(e)}, nil
}

// drainDirVar makes the test binary a controller on this state directory that
// drains node a, until it is killed or comes to crashAtVar.
const (
	drainDirVar  = "HEARTH_TEST_DRAIN_DIR"
	drainAddrVar = "HEARTH_TEST_DRAIN_ADDR"
)

func drainingControl(dir string) error {
	at := os.Getenv(crashAtVar)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	d, err := durable.OpenDir(dir, nil)
	if err != nil {
		return err
	}
	store, err := boltstore.Open(filepath.Join(dir, "fleet.db"), func(op string) error {
		if op == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	})
	if err != nil {
		return err
	}
	ca, err := pki.LoadOrCreateCA(d, testInstance, time.Now())
	if err != nil {
		return err
	}
	creds, err := ca.Credentials(pki.Controller(testInstance), []string{"127.0.0.1"}, time.Now())
	if err != nil {
		return err
	}
	source, err := pki.NewSource(creds)
	if err != nil {
		return err
	}
	var f *fleet.Fleet
	f, err = fleet.New(log, store, dialer(testInstance, source, nil, func() uint64 { return f.Epoch() }), quick, fleet.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		return err
	}
	f.SetNodes(map[string]fleet.NodeWish{"a": {Drain: true}})
	none := func(string) (fleet.Principal, bool) { return fleet.Principal{}, false }
	server := rpc.NewServer(log, apiHandler(log, rpc.NewMetrics(prometheus.NewRegistry()), f, ca, none, cluster{}))
	var l net.Listener
	if l, err = rpc.ListenTLS(os.Getenv(drainAddrVar), source); err != nil {
		return err
	}
	go func() { _ = f.Run(context.Background()) }()
	return server.Serve(l)
}

// drainer is a drainingControl in a process of its own.
type drainer struct {
	cmd    *exec.Cmd
	log    output
	exited chan struct{}
}

func startDrainer(t *testing.T, dir, addr, at string) *drainer {
	t.Helper()
	d := &drainer{cmd: exec.Command(os.Args[0]), exited: make(chan struct{})}
	d.cmd.Env = append(os.Environ(), drainDirVar+"="+dir, drainAddrVar+"="+addr, crashAtVar+"="+at)
	d.cmd.Stderr = &d.log
	ok(t, d.cmd.Start())
	go func() {
		defer close(d.exited)
		_ = d.cmd.Wait()
	}()
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("log of the controller that was to end at %q:\n%s", at, d.log.String())
		}
	})
	return d
}

func (d *drainer) kill() {
	_ = d.cmd.Process.Kill()
	<-d.exited
}

// TestADrainSurvivesAKilledController kills the controller in the middle of each
// step of a move, starts another one, and expects the environment at the target
// alone, having run at one node at a time.
func TestADrainSurvivesAKilledController(t *testing.T) {
	for _, at := range []string{
		"move-begin:before", "move-begin:after", "Snapshot before", "Snapshot after",
		"Claim before", "Claim after", "move-arrive:before", "move-arrive:after", "Release before", "Release after",
	} {
		t.Run(at, func(t *testing.T) { drainAt(t, at, nil) })
	}
}

// The target refuses at first, so that the environment goes back.
func TestADrainThatGoesBackSurvivesAKilledController(t *testing.T) {
	for _, at := range []string{"move-back:before", "move-back:after", "Resume before", "Resume after", "move-settle:before", "move-settle:after"} {
		t.Run(at, func(t *testing.T) { drainAt(t, at, fmt.Errorf("%w: disk full", env.ErrExhausted)) })
	}
}

func drainAt(t *testing.T, at string, refuse error) {
	t.Helper()
	dir, addr := t.TempDir(), freeAddr(t)
	ok(t, os.Chmod(dir, 0o700))
	ledger := &ledger{at: map[string]map[string]bool{}}
	c := startControl(t, dir, addr, quick, nil)
	a := startNode(t, c, &fakeNode{name: "a", moves: moves{ledger: ledger}})
	b := startNode(t, c, &fakeNode{name: "b", moves: moves{ledger: ledger}})
	_, secret, err := c.fleet.CreateAPIKey("team", false)
	ok(t, err)
	req := claimOf("k")
	req.Spec.Variables = map[string]string{"TOKEN": "secret"}
	claimed, err := c.clientWith(secret).Claim(t.Context(), req)
	ok(t, err)
	id := claimed.GetEnvironment().GetId()
	if got := claimed.GetEnvironment().GetNode(); got != "a" {
		t.Fatalf("claimed at %s", got)
	}
	c.stop()

	method, when, call := strings.Cut(at, " ")
	first := make(chan *drainer, 1)
	kill := sync.OnceFunc(func() { d := <-first; d.kill() })
	hook := func(m, w string) {
		if m == method && w == when {
			kill()
		}
	}
	b.set(func(n *fakeNode) { n.refuse = refuse })
	crash := at
	if call {
		crash = ""
		a.set(func(n *fakeNode) { n.moves.told = hook })
		b.set(func(n *fakeNode) { n.moves.told = hook })
	}
	d := startDrainer(t, dir, addr, crash)
	first <- d
	select {
	case <-d.exited:
	case <-time.After(30 * time.Second):
		t.Fatalf("the controller did not come to %q; its log:\n%s", at, d.log.String())
	}
	b.set(func(n *fakeNode) { n.refuse = nil })
	second := startDrainer(t, dir, addr, "")
	eventually(t, "it is at the target alone", func() bool {
		return cmp.Equal(running(a, b), map[string][]string{id: {"b"}})
	})
	second.kill()
	if ledger.mu.Lock(); len(ledger.faults) > 0 {
		t.Errorf("two generations ran: %q", ledger.faults)
	}
	ledger.mu.Unlock()
	if spec := b.moves.specs[id]; spec.GetVariables()["TOKEN"] != "secret" || !strings.HasPrefix(spec.GetSnapshot(), id+"/") {
		t.Errorf("the target was given %v", spec)
	}
	c = startControl(t, dir, addr, quick, nil)
	eventually(t, "the nodes report again", func() bool { return c.fleet.Reporting("a") && c.fleet.Reporting("b") })
	list, err := c.clientWith(secret).List(t.Context(), &hearthv1.ListRequest{})
	ok(t, err)
	if e := list.GetEnvironments(); len(e) != 1 || e[0].GetNode() != "b" || e[0].GetGeneration() != b.has()[id] || e[0].GetPhase() != hearthv1.Phase_PHASE_RUNNING {
		t.Errorf("list = %v, the target has %v", e, b.has())
	}
}

func TestReportsAreAnsweredWithTheFenceAndWhatIsStale(t *testing.T) {
	cfg := quick
	cfg.FenceAfter, cfg.PlaceAfter = 7*time.Second, 20*time.Second
	c := startControl(t, t.TempDir(), "127.0.0.1:0", cfg, nil)
	n := startNode(t, c, &fakeNode{name: "n1"})
	api := c.client("a")
	claimed, err := api.Claim(t.Context(), claimOf("k"))
	ok(t, err)
	id, kept := claimed.GetEnvironment().GetId(), string(env.NewID())
	n.stop()
	_, err = api.Release(t.Context(), &hearthv1.ReleaseRequest{IdempotencyKey: "r", Environment: id})
	ok(t, err)

	creds, err := c.ca.Credentials(pki.Node(testInstance, "n1"), []string{"127.0.0.1"}, time.Now())
	ok(t, err)
	source, err := pki.NewSource(creds)
	ok(t, err)
	client := rpc.TLSClient(source.ClientConfig(pki.Controller(testInstance)))
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := hearthv1connect.NewFleetServiceClient(client, "https://"+c.addr, rpc.ClientOptions()...).Report(ctx)
	ok(t, err)
	defer func() { _ = stream.CloseRequest(); _ = stream.CloseResponse() }()
	inv := &hearthv1.InventoryResponse{Node: "n1"}
	for _, e := range []string{id, kept} {
		inv.Environments = append(inv.Environments, &hearthv1.Environment{Id: e, Class: "small", Tenant: "a", Generation: 1, Phase: hearthv1.Phase_PHASE_FENCED})
	}
	ok(t, stream.Send(&hearthv1.ReportRequest{Node: "n1", Address: "127.0.0.1:1", Sequence: 1, Message: &hearthv1.ReportRequest_Inventory{Inventory: inv}}))
	got, err := stream.Receive()
	ok(t, err)
	if got.GetFenceAfter().AsDuration() != cfg.FenceAfter || !cmp.Equal(got.GetStale(), []string{id}) {
		t.Errorf("answer = %v, want the released one as stale", got)
	}
	ok(t, stream.Send(&hearthv1.ReportRequest{Node: "n1", Address: "127.0.0.1:1", Sequence: 2, Message: &hearthv1.ReportRequest_Heartbeat{Heartbeat: &hearthv1.Heartbeat{}}}))
	got, err = stream.Receive()
	ok(t, err)
	if got.GetFenceAfter().AsDuration() != cfg.FenceAfter || len(got.GetStale()) != 0 {
		t.Errorf("answer to a heartbeat = %v", got)
	}
	list, err := api.List(t.Context(), &hearthv1.ListRequest{Node: "n1"})
	ok(t, err)
	shown := map[string]hearthv1.Phase{}
	for _, e := range list.GetEnvironments() {
		shown[e.GetId()] = e.GetPhase()
	}
	if want := map[string]hearthv1.Phase{id: hearthv1.Phase_PHASE_RELEASED, kept: hearthv1.Phase_PHASE_FENCED}; !cmp.Equal(shown, want) {
		t.Errorf("list = %v, want %v", shown, want)
	}
}
