package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

const fakeKey = "test-key"

// fake is a controller and a node in memory, behind the real server code. An
// environment is a directory; its processes are this machine's.
type fake struct {
	hearthv1connect.UnimplementedEnvironmentServiceHandler
	dir    string
	ca     []byte
	server string // host:port of the controller and the node
	socket string
	ports  map[uint32]string // of every environment: listeners of this machine

	mu    sync.Mutex // guards all below
	envs  map[string]*fakeEnv
	keys  map[string]*hearthv1.ClaimResponse
	calls map[string]int
	fail  map[string]error // by method, once
	slow  time.Duration    // of each claim
	// revision is of the class, image that it lies on.
	revision, image string
}

type fakeEnv struct {
	*hearthv1.Environment
	image     string
	token     string
	tokens    int
	snapshots int
}

// newFake starts serving until t ends.
func newFake(t testing.TB, dir string) *fake {
	t.Helper()
	state, err := durable.OpenDir(filepath.Join(dir, "ca"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.LoadOrCreateCA(state, "hearth", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	creds, err := ca.Credentials(pki.Controller("hearth"), []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	source, err := pki.NewSource(creds)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{
		dir: dir, ca: ca.PEM(), socket: filepath.Join(dir, "n.sock"), ports: map[uint32]string{},
		envs: map[string]*fakeEnv{}, keys: map[string]*hearthv1.ClaimResponse{},
		calls: map[string]int{}, fail: map[string]error{}, revision: "r1", image: "old",
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), f.ca, 0o600); err != nil {
		t.Fatal(err)
	}
	tcp, err := rpc.ListenTLS("127.0.0.1:0", source)
	if err != nil {
		t.Fatal(err)
	}
	f.server = tcp.Addr().String()
	unix, err := rpc.ListenUnix(f.socket)
	if err != nil {
		t.Fatal(err)
	}
	f.ports[80] = f.echo(t)
	f.serve(t, tcp, unix)
	return f
}

func (f *fake) serve(t testing.TB, tcp, unix net.Listener) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	m := rpc.NewMetrics(prometheus.NewRegistry())
	outside, node := http.NewServeMux(), http.NewServeMux()
	outside.Handle(hearthv1connect.NewEnvironmentServiceHandler(f, rpc.HandlerOptions(log, m, f.apiKey)...))
	outside.Handle(hearthv1connect.NewGuestServiceHandler(&fakeGuest{fake: f}, rpc.HandlerOptions(log, m, f.guestToken)...))
	node.Handle(hearthv1connect.NewNodeServiceHandler(&fakeNode{fake: f}, rpc.HandlerOptions(log, m)...))
	var work sync.WaitGroup
	for _, s := range []struct {
		server *rpc.Server
		l      net.Listener
	}{{rpc.NewServer(log, outside), tcp}, {rpc.NewServer(log, node), unix}} {
		work.Go(func() { _ = s.server.Serve(s.l) })
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_ = s.server.Shutdown(ctx)
		})
	}
}

// echo is a server that answers each connection, after its end, with what it got
// in upper case: it needs half-closing to work.
func (f *fake) echo(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var got strings.Builder
				buf := make([]byte, 1000)
				for {
					n, err := c.Read(buf)
					got.Write(buf[:n])
					if err != nil {
						break
					}
				}
				fmt.Fprint(c, strings.ToUpper(got.String()))
			}()
		}
	}()
	return l.Addr().String()
}

func (f *fake) apiKey(ctx context.Context, _ string, h http.Header) (context.Context, error) {
	if h.Get("Authorization") != "Bearer "+fakeKey {
		return ctx, rpc.Unauthenticated(fmt.Errorf("%w: the API key is not known", env.ErrDenied))
	}
	return ctx, nil
}

// begin counts a call and returns the failure that a script ordered.
func (f *fake) begin(method string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[method]++
	err := f.fail[method]
	delete(f.fail, method)
	return err
}

func (f *fake) find(id string) (*fakeEnv, error) {
	e, ok := f.envs[id]
	if !ok {
		return nil, fmt.Errorf("%w: environment %s: it was released, or never claimed here", env.ErrNotFound, id)
	}
	return e, nil
}

func (f *fake) root(id string) string { return filepath.Join(f.dir, "roots", id) }

func (f *fake) access(e *fakeEnv) *hearthv1.Access {
	e.tokens++
	e.token = fmt.Sprintf("token-%d-of-%s", e.tokens, e.Id)
	return &hearthv1.Access{Address: f.server, Token: e.token, CaPem: f.ca}
}

func (f *fake) claim(key string, spec *hearthv1.ClaimSpec) (*hearthv1.ClaimResponse, error) {
	if err := f.begin("claim"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	slow := f.slow
	f.mu.Unlock()
	if slow > 0 {
		_ = os.WriteFile(filepath.Join(f.dir, "claiming"), nil, 0o600)
		time.Sleep(slow)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := f.keys[key]; ok && key != "" {
		return r, nil
	}
	if spec.GetClass() != "base" {
		return nil, fmt.Errorf("%w: class %q: this controller has base", env.ErrNotFound, spec.GetClass())
	}
	id := string(env.NewID())
	e := &fakeEnv{image: f.image, Environment: &hearthv1.Environment{
		Id: id, Class: spec.GetClass(), Phase: hearthv1.Phase_PHASE_RUNNING, Node: "node-1", Generation: 1, Warm: spec.GetSnapshot() == "",
		ClaimedAt: timestamppb.Now(), Labels: spec.GetLabels(), RestoredFrom: spec.GetSnapshot(),
		Ports: []*hearthv1.Port{{Name: "web", Number: 80, Http: true}}, Slot: string(env.NewSlotID()), Revision: f.revision,
	}}
	if err := os.MkdirAll(filepath.Join(f.root(id), "tmp"), 0o700); err != nil {
		return nil, err
	}
	e.Resources = &hearthv1.Resources{CpuMillis: 1000, MemoryBytes: 1 << 30}
	proto.Merge(e.Resources, spec.GetResources())
	e.Mounts = spec.GetMounts()
	if ttl := spec.GetTimeToLive(); ttl != nil {
		e.ExpiresAt = timestamppb.New(time.Now().Add(ttl.AsDuration()))
	}
	f.envs[id] = e
	r := &hearthv1.ClaimResponse{Environment: e.Environment, Access: f.access(e), Took: durationpb.New(620 * time.Microsecond)}
	f.keys[key] = r
	return r, nil
}

func (f *fake) list(class string) []*hearthv1.Environment {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*hearthv1.Environment
	for _, e := range f.envs {
		if class == "" || e.Class == class {
			out = append(out, e.Environment)
		}
	}
	slices.SortFunc(out, func(a, b *hearthv1.Environment) int { return strings.Compare(a.Id, b.Id) })
	return out
}

func (f *fake) Claim(_ context.Context, r *hearthv1.ClaimRequest) (*hearthv1.ClaimResponse, error) {
	return f.claim(r.GetIdempotencyKey(), r.GetSpec())
}

func (f *fake) List(_ context.Context, r *hearthv1.ListRequest) (*hearthv1.ListResponse, error) {
	return &hearthv1.ListResponse{Environments: f.list(r.GetClass())}, f.begin("list")
}

func (f *fake) Get(_ context.Context, r *hearthv1.GetRequest) (*hearthv1.GetResponse, error) {
	e, err := f.phase("get", r.GetEnvironment(), 0, 0)
	return &hearthv1.GetResponse{Environment: e}, err
}

// phase moves an environment from one phase to another, if they are named.
func (f *fake) phase(method, id string, from, to hearthv1.Phase) (*hearthv1.Environment, error) {
	if err := f.begin(method); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.find(id)
	if err != nil {
		return nil, err
	}
	if from != to && e.Phase != from {
		return nil, fmt.Errorf("%w: environment %s is %s", env.ErrState, id, phase(e.Environment))
	}
	if from != to {
		e.Phase = to
	}
	return e.Environment, nil
}

func (f *fake) Pause(_ context.Context, r *hearthv1.PauseRequest) (*hearthv1.PauseResponse, error) {
	e, err := f.phase("pause", r.GetEnvironment(), hearthv1.Phase_PHASE_RUNNING, hearthv1.Phase_PHASE_PAUSED)
	return &hearthv1.PauseResponse{Environment: e}, err
}

func (f *fake) Resume(_ context.Context, r *hearthv1.ResumeRequest) (*hearthv1.ResumeResponse, error) {
	e, err := f.phase("resume", r.GetEnvironment(), hearthv1.Phase_PHASE_PAUSED, hearthv1.Phase_PHASE_RUNNING)
	return &hearthv1.ResumeResponse{Environment: e}, err
}

func (f *fake) Resize(_ context.Context, r *hearthv1.ResizeRequest) (*hearthv1.ResizeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.find(r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	proto.Merge(e.Resources, r.GetResources())
	return &hearthv1.ResizeResponse{Environment: proto.CloneOf(e.Environment)}, nil
}

// Extend allows a day.
func (f *fake) Extend(_ context.Context, r *hearthv1.ExtendRequest) (*hearthv1.ExtendResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.find(r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	at := r.GetExpiresAt()
	if at == nil {
		at = timestamppb.New(time.Now().Add(r.GetDuration().AsDuration()))
	}
	if time.Until(at.AsTime()) > 24*time.Hour {
		return nil, fmt.Errorf("%w: class base allows 24h0m0s", env.ErrInvalid)
	}
	e.ExpiresAt = at
	return &hearthv1.ExtendResponse{Environment: proto.CloneOf(e.Environment)}, nil
}

func (f *fake) snapshot(id string) (*hearthv1.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.find(id)
	if err != nil {
		return nil, err
	}
	e.snapshots++
	return f.snap(e, e.snapshots), nil
}

func (f *fake) snap(e *fakeEnv, n int) *hearthv1.Snapshot {
	return &hearthv1.Snapshot{
		Id: fmt.Sprintf("%s/%d", e.Id, n), Environment: e.Id, Class: e.Class, CreatedAt: timestamppb.Now(),
		Stats: &hearthv1.SnapshotStats{Files: 3, Bytes: 3 << 20, NewBytes: 512, FreezeMs: 1.5, Took: durationpb.New(20 * time.Millisecond)},
	}
}

func (f *fake) Snapshot(_ context.Context, r *hearthv1.SnapshotRequest) (*hearthv1.SnapshotResponse, error) {
	s, err := f.snapshot(r.GetEnvironment())
	return &hearthv1.SnapshotResponse{Snapshot: s}, err
}

func (f *fake) ListSnapshots(_ context.Context, r *hearthv1.ListSnapshotsRequest) (*hearthv1.ListSnapshotsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.find(r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	out := &hearthv1.ListSnapshotsResponse{}
	for n := range e.snapshots {
		out.Snapshots = append(out.Snapshots, f.snap(e, n+1))
	}
	return out, nil
}

func (f *fake) Fork(_ context.Context, r *hearthv1.ForkRequest) (*hearthv1.ForkResponse, error) {
	s, err := f.snapshot(r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	out := &hearthv1.ForkResponse{Snapshot: s}
	for i := range r.GetCount() {
		c, err := f.claim(fmt.Sprintf("%s/%d", r.GetIdempotencyKey(), i), &hearthv1.ClaimSpec{Class: "base", Snapshot: s.GetId()})
		if err != nil {
			return nil, err
		}
		out.Children = append(out.Children, c)
	}
	return out, nil
}

func (f *fake) release(id string) error {
	if err := f.begin("release"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(id); err != nil {
		return err
	}
	delete(f.envs, id)
	return os.RemoveAll(f.root(id))
}

func (f *fake) Release(_ context.Context, r *hearthv1.ReleaseRequest) (*hearthv1.ReleaseResponse, error) {
	out := &hearthv1.ReleaseResponse{}
	if r.GetSnapshot() {
		s, err := f.snapshot(r.GetEnvironment())
		if err != nil {
			return nil, err
		}
		out.Snapshot = s
	}
	return out, f.release(r.GetEnvironment())
}

func (f *fake) Token(_ context.Context, r *hearthv1.TokenRequest) (*hearthv1.TokenResponse, error) {
	if err := f.begin("token"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.find(r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	return &hearthv1.TokenResponse{Access: f.access(e)}, nil
}

// fakeNode is the node's own API over the same environments.
type fakeNode struct {
	hearthv1connect.UnimplementedNodeServiceHandler
	*fake
}

// The two embedded types share method names; the node's are given here.
func (n *fakeNode) Claim(_ context.Context, r *hearthv1.NodeClaimRequest) (*hearthv1.NodeClaimResponse, error) {
	c, err := n.claim(r.GetIdempotencyKey(), r.GetSpec())
	return &hearthv1.NodeClaimResponse{Environment: c.GetEnvironment(), Access: c.GetAccess(), Took: c.GetTook()}, err
}

func (n *fakeNode) List(context.Context, *hearthv1.NodeListRequest) (*hearthv1.NodeListResponse, error) {
	return &hearthv1.NodeListResponse{Environments: n.list("")}, nil
}

func (n *fakeNode) Get(_ context.Context, r *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error) {
	e, err := n.phase("get", r.GetEnvironment(), 0, 0)
	return &hearthv1.NodeGetResponse{Environment: e}, err
}

func (n *fakeNode) Pause(_ context.Context, r *hearthv1.NodePauseRequest) (*hearthv1.NodePauseResponse, error) {
	e, err := n.phase("pause", r.GetEnvironment(), hearthv1.Phase_PHASE_RUNNING, hearthv1.Phase_PHASE_PAUSED)
	return &hearthv1.NodePauseResponse{Environment: e}, err
}

func (n *fakeNode) Resume(_ context.Context, r *hearthv1.NodeResumeRequest) (*hearthv1.NodeResumeResponse, error) {
	e, err := n.phase("resume", r.GetEnvironment(), hearthv1.Phase_PHASE_PAUSED, hearthv1.Phase_PHASE_RUNNING)
	return &hearthv1.NodeResumeResponse{Environment: e}, err
}

func (n *fakeNode) Resize(ctx context.Context, r *hearthv1.NodeResizeRequest) (*hearthv1.NodeResizeResponse, error) {
	resp, err := n.fake.Resize(ctx, &hearthv1.ResizeRequest{Environment: r.GetEnvironment(), Resources: r.GetResources()})
	return &hearthv1.NodeResizeResponse{Environment: resp.GetEnvironment()}, err
}

func (n *fakeNode) Extend(ctx context.Context, r *hearthv1.NodeExtendRequest) (*hearthv1.NodeExtendResponse, error) {
	req := &hearthv1.ExtendRequest{Environment: r.GetEnvironment(), End: &hearthv1.ExtendRequest_Duration{Duration: r.GetDuration()}}
	resp, err := n.fake.Extend(ctx, req)
	return &hearthv1.NodeExtendResponse{Environment: resp.GetEnvironment()}, err
}

func (n *fakeNode) Snapshot(_ context.Context, r *hearthv1.NodeSnapshotRequest) (*hearthv1.NodeSnapshotResponse, error) {
	s, err := n.snapshot(r.GetEnvironment())
	return &hearthv1.NodeSnapshotResponse{Snapshot: s}, err
}

func (n *fakeNode) ListSnapshots(ctx context.Context, r *hearthv1.NodeListSnapshotsRequest) (*hearthv1.NodeListSnapshotsResponse, error) {
	s, err := n.fake.ListSnapshots(ctx, &hearthv1.ListSnapshotsRequest{Environment: r.GetEnvironment()})
	return &hearthv1.NodeListSnapshotsResponse{Snapshots: s.GetSnapshots()}, err
}

func (n *fakeNode) Fork(ctx context.Context, r *hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error) {
	s, err := n.fake.Fork(ctx, &hearthv1.ForkRequest{IdempotencyKey: r.GetIdempotencyKey(), Environment: r.GetEnvironment(), Count: uint32(len(r.GetChildren()))})
	out := &hearthv1.NodeForkResponse{Snapshot: s.GetSnapshot()}
	for _, c := range s.GetChildren() {
		out.Children = append(out.Children, &hearthv1.NodeClaimResponse{Environment: c.GetEnvironment(), Access: c.GetAccess()})
	}
	return out, err
}

func (n *fakeNode) Release(_ context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	return &hearthv1.NodeReleaseResponse{}, n.release(r.GetEnvironment())
}

func (n *fakeNode) Token(ctx context.Context, r *hearthv1.NodeTokenRequest) (*hearthv1.NodeTokenResponse, error) {
	s, err := n.fake.Token(ctx, &hearthv1.TokenRequest{Environment: r.GetEnvironment()})
	return &hearthv1.NodeTokenResponse{Access: s.GetAccess()}, err
}

func (n *fakeNode) Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error) {
	return &hearthv1.InventoryResponse{Pools: []*hearthv1.Pool{{Class: "base"}, {Class: "other"}}}, nil
}

func (n *fakeNode) Inspect(context.Context, *hearthv1.InspectRequest) (*hearthv1.InspectResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, nil)
}

// unambiguous: both embedded types have these.
var _ hearthv1connect.NodeServiceHandler = (*fakeNode)(nil)
