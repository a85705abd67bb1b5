package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/placement"
)

// nodeState is what is known of one node. It begins with the first inventory.
type nodeState struct {
	name    string
	address string
	client  hearthv1connect.NodeServiceClient
	session uint64 // of the stream that counts; 0 if there is none
	seen    time.Time
	known   placement.Node
	missing map[env.ID]struct{} // stored as living there, and not in its inventory
	asking  bool                // it is being asked about them
}

// Session is one node's stream of reports. A newer one of the same node takes
// over, and the older one's methods then return env.ErrFenced.
type Session struct {
	f    *Fleet
	node string
	id   uint64
}

// Connect begins a node's stream. The caller has proved the name.
func (f *Fleet) Connect(node, address string) *Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.session++
	n := f.nodes[node]
	if n == nil {
		n = &nodeState{name: node, missing: map[env.ID]struct{}{}}
		f.nodes[node] = n
	}
	if n.client == nil || n.address != address {
		n.address, n.client = address, f.dial(node, address)
	}
	n.session, n.seen = f.session, time.Now()
	f.retryEnding(node)
	n.known = placement.Node{Name: node, Unplaceable: "no inventory yet"}
	return &Session{f, node, f.session}
}

// current returns the node if the session is the one that counts. The caller
// holds mu.
func (s *Session) current() (*nodeState, error) {
	n := s.f.nodes[s.node]
	if n == nil || n.session != s.id {
		return nil, fmt.Errorf("%w: node %s reports on a newer stream", env.ErrFenced, s.node)
	}
	return n, nil
}

// Inventory replaces what is known of the node and reconciles.
func (s *Session) Inventory(inv *hearthv1.InventoryResponse) error {
	if err := s.report(inv.GetPools(), inv.GetRoom()); err != nil {
		return err
	}
	s.f.log.Info("inventory received", "node", s.node, "environments", len(inv.GetEnvironments()), "pools", len(inv.GetPools()))
	return s.f.reconcile(s.node, inv.GetEnvironments())
}

// Heartbeat renews the node and its room.
func (s *Session) Heartbeat(hb *hearthv1.Heartbeat) error {
	return s.report(hb.GetPools(), hb.GetRoom())
}

func (s *Session) report(pools []*hearthv1.Pool, room *hearthv1.Room) error {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := s.current()
	if err != nil {
		return err
	}
	n.seen = time.Now()
	n.known = nodeOf(s.node, pools, room)
	f.index.Set(n.known)
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

func nodeOf(name string, pools []*hearthv1.Pool, room *hearthv1.Room) placement.Node {
	n := placement.Node{
		Name:      name,
		SlotsMax:  int(room.GetSlotsMax()),
		SlotsUsed: int(room.GetSlotsUsed()),
		MemoryMax: int64(room.GetMemoryMaxBytes()), MemoryUsed: int64(room.GetMemoryReservedBytes()),
	}
	for _, p := range pools {
		n.Pools = append(n.Pools, placement.Pool{Class: p.GetClass(), Ready: int(p.GetReady()), Memory: int64(p.GetMemoryBytes())})
	}
	return n
}

// Detection notes a finding of the node. A frozen environment is quarantined.
func (s *Session) Detection(d *hearthv1.Detection) error {
	s.f.mu.Lock()
	_, err := s.current()
	s.f.mu.Unlock()
	if err != nil {
		return err
	}
	s.f.log.Warn("detection", "node", s.node, "rule", d.GetRule(), "severity", d.GetSeverity(), "environment", d.GetEnvironment(),
		"class", d.GetClass(), "response", d.GetResponse(), "destination", d.GetDestination())
	s.f.metrics.detection(d.GetSeverity())
	if d.GetResponse() != string(env.ResponseFreeze) || d.GetEnvironment() == "" {
		return nil
	}
	_, err = s.f.update("detection", env.ID(d.GetEnvironment()), nil, func(r *Record) (bool, error) {
		if r.final() || r.Environment.GetNode() != s.node {
			return false, nil
		}
		r.Environment.Phase = hearthv1.Phase_PHASE_QUARANTINED
		r.Environment.Message = fmt.Sprintf("frozen by rule %.64s", d.GetRule())
		return true, nil
	})
	if err != nil && !isNotFound(err) {
		s.f.log.Warn("detection not stored", "environment", d.GetEnvironment(), "error", err)
	}
	return nil
}

// Close ends the stream: nothing more is placed there until the next one.
func (s *Session) Close() {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := s.current()
	if err != nil {
		return
	}
	n.session = 0
	f.unplaceable(n, "not connected")
}

// unplaceable takes the node out of placement. The caller holds mu.
func (f *Fleet) unplaceable(n *nodeState, why string) {
	n.known.Unplaceable = why
	f.index.Set(n.known)
}

// client is the node's, whether or not it reports now; nil if it was never seen.
func (f *Fleet) client(node string) hearthv1connect.NodeServiceClient {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[node]; n != nil {
		return n.client
	}
	return nil
}

// NodeStatus is what is known of one node.
type NodeStatus struct {
	Name, Address string
	Ready         bool
	Message       string // why it is not ready
	LastHeartbeat time.Time
	Environments  int
}

// Nodes lists the nodes by name.
func (f *Fleet) Nodes() []NodeStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	live := map[string]int{}
	for _, r := range f.records {
		if !r.final() {
			live[r.Environment.GetNode()]++
		}
	}
	var out []NodeStatus
	for _, n := range f.nodes {
		out = append(out, NodeStatus{n.name, n.address, n.known.Unplaceable == "", n.known.Unplaceable, n.seen, live[n.name]})
	}
	slices.SortFunc(out, func(a, b NodeStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Reporting reports whether a stream of the node is open. Its name then belongs
// to a live agent and no join token gives it to another one.
func (f *Fleet) Reporting(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[node]
	return n != nil && n.session != 0
}
