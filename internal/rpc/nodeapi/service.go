package nodeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/netpol"
	"hearth/internal/rpc"
	"hearth/internal/warm"
)

// Info is what this node is.
type Info struct {
	Node     string
	Instance string
	BootID   string
	Version  string
	// GuestAddress is the host:port of the Guest API, CAPEM the authority of its
	// certificate; nil before there is one.
	GuestAddress string
	CAPEM        func() []byte
}

// Service implements NodeService.
type Service struct {
	info       Info
	node       *warm.Node
	snapshots  snapshots
	islands    islands
	detections detections
	orders     orders
	memo       *memo
	grants     *grants
	fetches    chan struct{} // a token each
}

// snapshots lists and sends what is stored.
type snapshots interface {
	List(lineage env.ID) ([]env.Snapshot, error)
	// Export writes a snapshot and all that it needs, for another node.
	Export(ctx context.Context, id env.SnapshotID, w io.Writer) error
}

// islands tells what an island's packets do, and opens it for a test.
type islands interface {
	Counters(slot env.SlotID) (netpol.Counters, error)
	Flows(slot env.SlotID) ([]netpol.Flow, error)
	OpenForTest(slot env.SlotID) error
}

// detections tells findings, old and new.
type detections interface {
	Recent(n int) []env.Detection
	Subscribe(ctx context.Context) <-chan env.Detection
}

var _ hearthv1connect.NodeServiceHandler = (*Service)(nil)

// New makes the service.
func New(info Info, node *warm.Node, s snapshots, i islands, d detections, o orders) *Service {
	return &Service{
		info: info, node: node, snapshots: s, islands: i, detections: d, orders: o,
		memo: newMemo(), grants: newGrants(), fetches: make(chan struct{}, maxFetches),
	}
}

// Claim implements NodeService. The node itself remembers claims by key.
func (s *Service) Claim(ctx context.Context, req *hearthv1.NodeClaimRequest) (*hearthv1.NodeClaimResponse, error) {
	claim, err := claimOf(req)
	if err != nil {
		return nil, err
	}
	answer, err := s.node.Claim(ctx, claim)
	if err != nil {
		return nil, err
	}
	return s.claimResponse(answer), nil
}

func (s *Service) claimResponse(a warm.Answer) *hearthv1.NodeClaimResponse {
	out := &hearthv1.NodeClaimResponse{
		Environment: s.environment(a.Environment), Access: s.access(a.Token), Took: durationpb.New(a.Took),
	}
	for _, p := range a.Phases {
		out.Phases = append(out.Phases, &hearthv1.PhaseTime{Name: p.Name, Took: durationpb.New(p.Took)})
	}
	return out
}

func (s *Service) access(token string) *hearthv1.Access {
	a := &hearthv1.Access{Address: s.info.GuestAddress, Token: token}
	if s.info.CAPEM != nil {
		a.CaPem = s.info.CAPEM()
	}
	return a
}

// Get implements NodeService.
func (s *Service) Get(_ context.Context, req *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error) {
	e, err := s.node.Get(env.ID(req.GetEnvironment()))
	if err != nil {
		return nil, err
	}
	return &hearthv1.NodeGetResponse{Environment: s.environment(e)}, nil
}

// List implements NodeService.
func (s *Service) List(context.Context, *hearthv1.NodeListRequest) (*hearthv1.NodeListResponse, error) {
	return &hearthv1.NodeListResponse{Environments: s.environments()}, nil
}

func (s *Service) environments() []*hearthv1.Environment {
	list := s.node.List()
	out := make([]*hearthv1.Environment, len(list))
	for i, e := range list {
		out[i] = s.environment(e)
	}
	return out
}

// Pause implements NodeService. It is idempotent by nature.
func (s *Service) Pause(ctx context.Context, req *hearthv1.NodePauseRequest) (*hearthv1.NodePauseResponse, error) {
	e, err := s.node.Pause(ctx, env.ID(req.GetEnvironment()))
	if err != nil {
		return nil, err
	}
	return &hearthv1.NodePauseResponse{Environment: s.environment(e)}, nil
}

// Resume implements NodeService. It is idempotent by nature.
func (s *Service) Resume(ctx context.Context, req *hearthv1.NodeResumeRequest) (*hearthv1.NodeResumeResponse, error) {
	e, err := s.node.Resume(ctx, env.ID(req.GetEnvironment()))
	if err != nil {
		return nil, err
	}
	return &hearthv1.NodeResumeResponse{Environment: s.environment(e)}, nil
}

// Snapshot implements NodeService.
func (s *Service) Snapshot(ctx context.Context, req *hearthv1.NodeSnapshotRequest) (*hearthv1.NodeSnapshotResponse, error) {
	by := req.GetFetchBy()
	if by != "" {
		if err := checkGrantee(s.info.Instance, by); err != nil {
			return nil, err
		}
	}
	out, err := once(ctx, s.memo, req.GetIdempotencyKey(), req, func() (*hearthv1.NodeSnapshotResponse, error) {
		take := s.node.Snapshot
		if req.GetHold() {
			take = s.node.SnapshotAndHold
		}
		snap, err := take(ctx, env.ID(req.GetEnvironment()))
		if err != nil {
			return nil, err
		}
		resp := &hearthv1.NodeSnapshotResponse{Snapshot: snapshotOf(snap)}
		if req.GetHold() {
			origin, err := s.node.Origin(env.ID(req.GetEnvironment()))
			if err != nil {
				return nil, err
			}
			resp.Spec, resp.Lifetime = specOf(origin), lifetimeProto(origin.Lifetime)
		}
		return resp, nil
	})
	if err == nil && by != "" { // by a repeated call too: the first grant may be over
		s.grants.give(by, env.SnapshotID(out.GetSnapshot().GetId()), time.Now())
	}
	return out, err
}

// ListSnapshots implements NodeService.
func (s *Service) ListSnapshots(_ context.Context, req *hearthv1.NodeListSnapshotsRequest) (*hearthv1.NodeListSnapshotsResponse, error) {
	list, err := s.snapshots.List(env.ID(req.GetEnvironment()))
	if err != nil {
		return nil, err
	}
	out := &hearthv1.NodeListSnapshotsResponse{}
	for _, snap := range list {
		out.Snapshots = append(out.Snapshots, snapshotOf(snap))
	}
	return out, nil
}

// maxChildren bounds one fork.
const maxChildren = 16

// Fork implements NodeService.
func (s *Service) Fork(ctx context.Context, req *hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error) {
	if n := len(req.GetChildren()); n < 1 || n > maxChildren {
		return nil, fmt.Errorf("%w: %d children, from 1 to %d", env.ErrInvalid, n, maxChildren)
	}
	return once(ctx, s.memo, req.GetIdempotencyKey(), req, func() (*hearthv1.NodeForkResponse, error) {
		children := make([]warm.Claim, len(req.GetChildren()))
		for i, c := range req.GetChildren() {
			claim, err := claimOf(c)
			if err != nil {
				return nil, fmt.Errorf("child %d: %w", i+1, err)
			}
			children[i] = claim
		}
		snap, answers, err := s.node.Fork(ctx, env.ID(req.GetEnvironment()), children)
		if err != nil {
			return nil, err
		}
		out := &hearthv1.NodeForkResponse{Snapshot: snapshotOf(snap)}
		for _, a := range answers {
			out.Children = append(out.Children, s.claimResponse(a))
		}
		return out, nil
	})
}

// releaseTime bounds a release on the node, with the snapshot that it may take.
const releaseTime = 20 * time.Minute

// Release implements NodeService. It goes on if the caller gives up waiting: a
// repetition of the key joins it.
func (s *Service) Release(ctx context.Context, req *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	return once(ctx, s.memo, req.GetIdempotencyKey(), req, func() (*hearthv1.NodeReleaseResponse, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
		defer cancel()
		snap, err := s.node.Release(ctx, env.ID(req.GetEnvironment()), env.Generation(req.GetGeneration()), req.GetSnapshot())
		if err != nil {
			return nil, err
		}
		out := &hearthv1.NodeReleaseResponse{}
		if snap.ID != "" {
			out.Snapshot = snapshotOf(snap)
		}
		return out, nil
	})
}

// Token implements NodeService.
func (s *Service) Token(ctx context.Context, req *hearthv1.NodeTokenRequest) (*hearthv1.NodeTokenResponse, error) {
	token, err := s.node.Token(ctx, env.ID(req.GetEnvironment()))
	if err != nil {
		return nil, err
	}
	return &hearthv1.NodeTokenResponse{Access: s.access(token)}, nil
}

// Inventory implements NodeService.
func (s *Service) Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error) {
	stock := s.Stock()
	return &hearthv1.InventoryResponse{
		Node: s.info.Node, Instance: s.info.Instance, BootId: s.info.BootID, Version: s.info.Version,
		Environments: append(s.environments(), s.past()...), Pools: stock.GetPools(), Room: stock.GetRoom(),
		ClassesRevision: s.orders.ClassesRevision(),
	}, nil
}

// Stock is the small part of the inventory that changes with every claim.
func (s *Service) Stock() *hearthv1.Heartbeat {
	out := &hearthv1.Heartbeat{Room: roomOf(s.node.Room())}
	for _, p := range s.node.Pools() {
		out.Pools = append(out.Pools, poolOf(p))
	}
	return out
}

// Inspect implements NodeService.
func (s *Service) Inspect(_ context.Context, req *hearthv1.InspectRequest) (*hearthv1.InspectResponse, error) {
	i, err := s.node.Inspect(req.GetName())
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(i)
	if err != nil {
		return nil, fmt.Errorf("encode inspection: %w", err)
	}
	return &hearthv1.InspectResponse{Json: b}, nil
}

// Flows implements NodeService.
func (s *Service) Flows(_ context.Context, req *hearthv1.FlowsRequest) (*hearthv1.FlowsResponse, error) {
	e, err := s.node.Get(env.ID(req.GetEnvironment()))
	if err != nil {
		return nil, err
	}
	counters, err := s.islands.Counters(e.Slot)
	if err != nil {
		return nil, err
	}
	flows, err := s.islands.Flows(e.Slot)
	if err != nil {
		return nil, err
	}
	return flowsOf(flows, counters), nil
}

// UnsafeOpenIsland implements NodeService, for root on this node only.
func (s *Service) UnsafeOpenIsland(ctx context.Context, req *hearthv1.UnsafeOpenIslandRequest) (*hearthv1.UnsafeOpenIslandResponse, error) {
	if !rpc.CallerFrom(ctx).Local {
		return nil, fmt.Errorf("%w: an island is opened on its node's socket only", env.ErrDenied)
	}
	id := env.ID(req.GetEnvironment())
	e, err := s.node.Get(id)
	if err != nil {
		return nil, err
	}
	if req.GetOpen() {
		err = s.islands.OpenForTest(e.Slot)
	} else {
		err = s.node.RestorePolicy(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	return &hearthv1.UnsafeOpenIslandResponse{}, nil
}

// recentDetections is how many past findings Detections starts with.
const recentDetections = 1000

// Detections implements NodeService.
func (s *Service) Detections(ctx context.Context, req *hearthv1.DetectionsRequest, out *connect.ServerStream[hearthv1.DetectionsResponse]) error {
	send := func(d env.Detection) error {
		if want := req.GetEnvironment(); want != "" && want != string(d.Environment) {
			return nil
		}
		return out.Send(&hearthv1.DetectionsResponse{Detection: Detection(d)})
	}
	// Subscribed before the past is read, so that nothing falls between; what
	// comes twice is told apart by its time and rule.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	news := s.detections.Subscribe(ctx)
	for _, d := range s.detections.Recent(recentDetections) {
		if err := send(d); err != nil {
			return err
		}
	}
	if !req.GetFollow() {
		return nil
	}
	for d := range news {
		if err := send(d); err != nil {
			return err
		}
	}
	return nil
}
