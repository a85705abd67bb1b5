package env

// SlotPhase is where a slot stands in its life.
type SlotPhase string

// The phases of a slot, in order.
const (
	SlotPreparing SlotPhase = "preparing"
	SlotCreated   SlotPhase = "created" // laid out: nothing is mounted, nothing runs
	SlotReady     SlotPhase = "ready"
	SlotClaimed   SlotPhase = "claimed"
)

// Phase is where an environment stands in its life.
type Phase string

// The phases of an environment. Running alternates with Paused and Stalled, which
// ends by itself when the node's disk has room; Released and Failed are final.
const (
	PhaseClaiming    Phase = "claiming"
	PhaseRunning     Phase = "running"
	PhasePaused      Phase = "paused"
	PhaseStalled     Phase = "stalled"
	PhaseHibernated  Phase = "hibernated"
	PhaseQuarantined Phase = "quarantined"
	PhaseFenced      Phase = "fenced"
	PhaseReleased    Phase = "released"
	PhaseFailed      Phase = "failed"
)

// Live reports whether an environment in this phase has processes on a node.
func (p Phase) Live() bool {
	switch p {
	case PhaseRunning, PhasePaused, PhaseStalled, PhaseQuarantined, PhaseFenced:
		return true
	default:
		return false
	}
}
