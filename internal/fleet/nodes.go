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
	pools   []*hearthv1.Pool // as last reported
	down    string           // why it can be asked for nothing; empty if it can
	silent  bool             // the observer was told
	push    pushState
	missing map[env.ID]struct{} // stored as living there, and not in its inventory
	fenced  map[env.ID]struct{} // were frozen when it came back; it thaws them
	asking  bool                // it is being asked about them
	turn    uint64              // counts its inventories

	ephemeral map[string]bool // classes that it says are
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
		n = &nodeState{
			name: node, known: placement.Node{Name: node},
			missing: map[env.ID]struct{}{}, fenced: map[env.ID]struct{}{},
		}
		f.nodes[node] = n
	}
	if n.client == nil || n.address != address {
		n.address, n.client = address, f.dial(node, address)
	}
	n.session, n.seen = f.session, time.Now()
	n.push.known, n.push.budget = false, nil
	n.push.retry()
	f.retryEnding(node)
	f.retryMoves(node)
	f.takeDown(n, "no inventory yet")
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

// Inventory replaces what is known of the node and reconciles. Stale are the
// environments in it that must not run there and will be released. What cannot be
// stored now is no error: a store that does not answer shall fence no node, and
// the next inventory says it again.
func (s *Session) Inventory(inv *hearthv1.InventoryResponse) (stale []string, err error) {
	if err := s.report(inv.GetPools(), inv.GetRoom(), inv); err != nil {
		return nil, err
	}
	s.f.log.Info("inventory received", "node", s.node, "environments", len(inv.GetEnvironments()), "pools", len(inv.GetPools()))
	if err := s.f.reconcile(s.node, inv.GetEnvironments()); err != nil {
		s.f.log.Warn("inventory not reconciled; the next one will be", "node", s.node, "error", err)
	}
	return s.f.staleOn(s.node, inv.GetEnvironments()), nil
}

// Heartbeat renews the node and its room.
func (s *Session) Heartbeat(hb *hearthv1.Heartbeat) error {
	return s.report(hb.GetPools(), hb.GetRoom(), nil)
}

func (s *Session) report(pools []*hearthv1.Pool, room *hearthv1.Room, inv *hearthv1.InventoryResponse) error {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := s.current()
	if err != nil {
		return err
	}
	n.seen, n.down, n.silent = time.Now(), "", false
	n.known = nodeOf(s.node, pools, room)
	n.ephemeral, n.pools = ephemeralOf(pools), pools
	if inv != nil {
		n.push.known, n.push.revision = true, inv.GetClassesRevision()
	}
	f.judgePlaceable(n)
	f.nodesChanged()
	return nil
}

// judgePlaceable tells the index whether and why not. The caller holds mu.
func (f *Fleet) judgePlaceable(n *nodeState) {
	n.known.Unplaceable = n.down
	if n.down == "" {
		n.known.Unplaceable = f.wishes[n.name].unplaceable()
	}
	f.index.Set(n.known)
}

// nodesChanged wakes who waits for nodes. The caller holds mu.
func (f *Fleet) nodesChanged() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func nodeOf(name string, pools []*hearthv1.Pool, room *hearthv1.Room) placement.Node {
	n := placement.Node{
		Name:      name,
		SlotsMax:  int(room.GetSlotsMax()),
		SlotsUsed: int(room.GetSlotsUsed()),
		MemoryMax: int64(room.GetMemoryMaxBytes()), MemoryUsed: int64(room.GetMemoryReservedBytes()),
	}
	for _, p := range pools {
		n.Pools = append(n.Pools, placement.Pool{
			Class: p.GetClass(), Ready: int(p.GetReady()), Preparing: int(p.GetPreparing()), Waiting: int(p.GetWaiting()),
			Created: int(p.GetCreated()),
			Memory:  int64(p.GetMemoryBytes()),
		})
	}
	return n
}

// Detection notes a finding of the node. A frozen environment is quarantined.
func (s *Session) Detection(d *hearthv1.Detection) error {
	s.f.mu.Lock()
	_, err := s.current()
	r := s.f.records[env.ID(d.GetEnvironment())]
	s.f.mu.Unlock()
	if err != nil {
		return err
	}
	s.f.log.Warn("detection", "node", s.node, "rule", d.GetRule(), "severity", d.GetSeverity(), "environment", d.GetEnvironment(),
		"class", d.GetClass(), "response", d.GetResponse(), "destination", d.GetDestination())
	s.f.metrics.detection(d.GetSeverity())
	if r == nil || r.Environment.GetNode() != s.node {
		s.f.tell(Event{Kind: Detected, Node: s.node, Message: detected(d), Severity: d.GetSeverity()})
		return nil
	}
	s.f.tell(Event{
		Kind: Detected, Environment: shown(r.Environment), Object: r.Object, UID: r.UID,
		Node: s.node, Message: detected(d), Severity: d.GetSeverity(),
	})
	if d.GetResponse() == string(env.ResponseFreeze) {
		s.f.aside(asideTime, 1, func() { s.quarantined(r.ID(), fmt.Sprintf("frozen by rule %.64s", d.GetRule())) })
	}
	return nil
}

// detected is a finding in one line: the node's words, bounded.
func detected(d *hearthv1.Detection) string {
	out := fmt.Sprintf("rule %.64s, response %.32s", d.GetRule(), d.GetResponse())
	if d.GetDestination() != "" {
		out += fmt.Sprintf(", destination %.128s", d.GetDestination())
	}
	return out
}

func (s *Session) quarantined(id env.ID, why string) {
	changed := false
	r, err := s.f.note("detection", id, func(r *Record) (bool, error) {
		changed = !r.final() && r.Environment.GetNode() == s.node && r.Phase() != env.PhaseQuarantined
		if changed {
			r.Environment.Phase, r.Environment.Message, r.Environment.Reason = hearthv1.Phase_PHASE_QUARANTINED, why, ""
		}
		return changed, nil
	})
	switch {
	case err != nil && !isNotFound(err):
		s.f.log.Warn("detection not stored", "environment", id, "error", err)
	case err == nil && changed:
		s.f.happened(Quarantined, r, why)
	}
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
	f.takeDown(n, "not connected")
}

// takeDown takes the node out of placement. The caller holds mu.
func (f *Fleet) takeDown(n *nodeState, why string) {
	n.down = why
	f.judgePlaceable(n)
}

// up reports whether the node can be asked now. The caller holds mu.
func (f *Fleet) up(node string) bool {
	n := f.nodes[node]
	return n != nil && n.session != 0 && n.down == ""
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
	// Ready is true of a node that reports. A cordoned one is ready too.
	Ready bool
	// Message says why it is not ready, or gets no claims, or does not take its
	// classes or budget.
	Message            string
	LastHeartbeat      time.Time
	Environments       int
	Cordoned, Draining bool
}

// Nodes lists the nodes that were seen, by name.
func (f *Fleet) Nodes() []NodeStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []NodeStatus
	for _, n := range f.nodes {
		w := f.wishes[n.name]
		out = append(out, NodeStatus{
			Name: n.name, Address: n.address, Ready: n.down == "", Message: n.message(), LastHeartbeat: n.seen,
			Environments: len(f.census.byNode[n.name]), Cordoned: w.Cordoned || w.Drain, Draining: w.Drain,
		})
	}
	slices.SortFunc(out, func(a, b NodeStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (n *nodeState) message() string {
	var parts []string
	for _, why := range []string{n.known.Unplaceable, n.push.refused} {
		if why != "" {
			parts = append(parts, why)
		}
	}
	return strings.Join(parts, "; ")
}

// Reporting reports whether a stream of the node is open. Its name then belongs
// to a live agent and no join token gives it to another one.
func (f *Fleet) Reporting(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[node]
	return n != nil && n.session != 0
}
