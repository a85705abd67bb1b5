package warm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"hearth/internal/env"
)

// PoolView is a class's stock on this node.
type PoolView struct {
	Class     string
	Revision  string
	Want      int
	Ready     int
	Preparing int
	Claimed   int
	Waiting   int // claims that stand in line
	Created   int // slots that have everything but a container
	Message   string
	Memory    int64 // limit of one environment, in bytes
	Ephemeral bool  // of the class
}

// Room is what the node may still give away.
type Room struct {
	SlotsMax, SlotsUsed       int
	MemoryMax, MemoryReserved int64
	IDRangesMax, IDRangesUsed int
}

// view is the public form of a claimed slot's state.
func (s *slot) view(st slotState) Environment {
	e := st.Env
	return Environment{
		Address: s.address(),
		ID:      e.ID, Slot: st.ID, Class: st.Class, Revision: st.Revision, Tenant: e.Tenant, Generation: e.Generation,
		Phase: e.Phase, Message: e.Message, Warm: e.Warm, Snapshot: e.Snapshot,
		Claimed: e.Claimed, Labels: e.Labels, PID: st.PID, Ports: e.Ports,
		Ephemeral: e.Ephemeral, Resources: s.resources(st), ClaimKey: e.ClaimKey, ClaimRequest: e.ClaimRequest,
		Reason: e.reason(), Expires: e.Expires, TimeToLive: e.TimeToLive, Served: e.served(), Waited: e.Waited, Mounts: e.Mounts,
	}
}

// reason is a word for what the node did by itself; empty if its owner did it.
func (e *envState) reason() string {
	switch {
	case e.idle():
		return reasonIdle
	case !e.Expired.IsZero():
		return reasonExpired
	default:
		return ""
	}
}

// served says how the environment's claim was.
func (e *envState) served() string {
	switch {
	case !e.Warm:
		return ServedCold
	case e.Waited > 0:
		return ServedQueued
	default:
		return ServedWarm
	}
}

// address is the island's, "" if there is none any more.
func (s *slot) address() string {
	if !s.island.Address.IsValid() {
		return ""
	}
	return s.island.Address.String()
}

func (n *Node) viewOf(s *slot) Environment { return n.show(s, n.stateOf(s)) }

// show is the public form of a state that the slot has, or had a moment ago.
func (n *Node) show(s *slot, st slotState) Environment {
	e := s.view(st)
	n.mu.Lock()
	defer n.mu.Unlock()
	e.Outdated = n.outdatedLocked(st)
	return e
}

// viewLocked is viewOf for a caller who holds mu.
func (n *Node) viewLocked(s *slot) Environment {
	e := s.view(s.state)
	e.Outdated = n.outdatedLocked(s.state)
	return e
}

// outdatedLocked reports whether the class has another revision than the slot was
// made from. The caller holds mu.
func (n *Node) outdatedLocked(st slotState) bool {
	class := n.classes[st.Class]
	return class != nil && class.Revision != st.Revision
}

// Get returns one environment, also one that was released a short while ago
// because its time came.
func (n *Node) Get(id env.ID) (Environment, error) {
	s, err := n.find(id)
	if err != nil {
		if past, ok := n.pastOf(id); ok {
			return past, nil
		}
		return Environment{}, err
	}
	return n.viewOf(s), nil
}

// List returns every environment on this node, oldest first.
func (n *Node) List() []Environment {
	n.mu.Lock()
	slots := make([]*slot, 0, len(n.envs))
	for _, s := range n.envs {
		if s.state.Env != nil && !n.pending[s.state.Env.ID] {
			slots = append(slots, s)
		}
	}
	n.mu.Unlock()
	out := make([]Environment, len(slots))
	for i, s := range slots {
		out[i] = n.viewOf(s)
	}
	slices.SortFunc(out, func(a, b Environment) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// find returns the slot of a claimed environment.
func (n *Node) find(id env.ID) (*slot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending[id] {
		return nil, fmt.Errorf("%w: environment %s is being claimed; wait for the claim's answer", env.ErrState, id)
	}
	s := n.envs[id]
	if s == nil || s.state.Env == nil {
		return nil, fmt.Errorf("%w: environment %.40q on this node", env.ErrNotFound, id)
	}
	return s, nil
}

// Pools returns every class's stock, by name.
func (n *Node) Pools() []PoolView {
	n.mu.Lock()
	defer n.mu.Unlock()
	claimed := map[string]int{}
	for _, s := range n.slots {
		if s.state.Phase == env.SlotClaimed {
			claimed[s.class.Name]++
		}
	}
	waiting := n.waitingLocked()
	out := make([]PoolView, 0, len(n.pools))
	for name, p := range n.pools {
		class := n.classes[name]
		if class == nil {
			continue // its last slots are being removed
		}
		out = append(out, PoolView{
			Class: name, Revision: class.Revision, Want: class.Warm.Slots,
			Ready: len(p.ready), Preparing: p.making, Claimed: claimed[name], Waiting: waiting[name], Created: len(p.created), Message: cmp.Or(p.waits, p.message, n.rigidLocked(class)),
			Memory: class.Resources.MemoryBytes, Ephemeral: class.Ephemeral,
		})
	}
	if c := n.checking; c != nil { // a claim that needs it gets it at once
		for i := range out {
			if out[i].Class == c.slot.class.Name {
				out[i].Ready++
			}
		}
	}
	slices.SortFunc(out, func(a, b PoolView) int { return strings.Compare(a.Class, b.Class) })
	return out
}

// Room returns the node's bounds and what of them is used.
func (n *Node) Room() Room {
	n.mu.Lock()
	defer n.mu.Unlock()
	return Room{
		SlotsMax: n.cfg.MaxSlots, SlotsUsed: len(n.slots),
		MemoryMax: n.memory, MemoryReserved: n.memoryLocked(),
		IDRangesMax: len(n.ids.used), IDRangesUsed: n.ids.inUse(),
	}
}

// classNames lists the classes for an error. The caller holds mu.
func (n *Node) classNames() string {
	names := make([]string, 0, len(n.classes))
	for name := range n.classes {
		names = append(names, name)
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Inspection is all that is known of a slot, for people.
type Inspection struct {
	Slot        env.SlotID    `json:"slot"`
	Phase       env.SlotPhase `json:"phase"`
	Class       string        `json:"class"`
	Revision    string        `json:"revision"`
	Image       string        `json:"image"`
	IDs         env.IDRange   `json:"ids"`
	PID         int           `json:"pid"`
	Alive       bool          `json:"alive"`
	Frozen      bool          `json:"frozen"`
	NetID       env.NetID     `json:"netId"`
	Address     string        `json:"address"`
	Cgroup      string        `json:"cgroup"`
	CgroupID    uint64        `json:"cgroupId"`
	Upper       string        `json:"upper"`
	Proven      time.Time     `json:"proven,omitzero"`     // its readiness was seen then
	Swappable   bool          `json:"swappable,omitempty"` // a ready slot's memory may go to swap
	Environment *Environment  `json:"environment,omitempty"`
}

// Inspect returns all that is known of a slot, by its id or its environment's.
func (n *Node) Inspect(name string) (Inspection, error) {
	n.mu.Lock()
	s := n.slots[env.SlotID(name)]
	if s == nil {
		s = n.envs[env.ID(name)]
	}
	doomed := s != nil && s.doomed
	n.mu.Unlock()
	if s == nil {
		return Inspection{}, fmt.Errorf("%w: slot or environment %.40q on this node", env.ErrNotFound, name)
	}
	st := n.stateOf(s)
	out := Inspection{
		Slot: st.ID, Phase: st.Phase, Class: st.Class, Revision: st.Revision, Image: st.Image,
		IDs: st.IDs, PID: st.PID, Upper: st.Upper,
		Proven: st.Proven, Swappable: st.Swappable && st.Phase == env.SlotReady,
	}
	if st.Phase == env.SlotPreparing || st.Phase == env.SlotCreated || doomed {
		return out, nil // its parts are still to be made, or being removed
	}
	if s.init == nil { // taken back failed: nothing of it runs
		v := n.viewOf(s)
		out.Environment = &v
		return out, nil
	}
	out.NetID, out.Address, out.Alive = s.island.NetID, s.address(), s.init.Alive()
	out.Cgroup, out.CgroupID = s.cgroup.ContainerPath(), s.cgroup.ID()
	out.Frozen, _ = s.cgroup.Frozen() // a cgroup that is just being removed reads as thawed
	if st.Env != nil {
		v := n.viewOf(s)
		out.Environment = &v
	}
	return out, nil
}
