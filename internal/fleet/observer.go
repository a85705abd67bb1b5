package fleet

import (
	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
)

// Observer is told what an operator or a user may want to know. It is called
// outside of all locks, from the goroutine in which the thing happened, and must
// not block: what takes long it does elsewhere.
type Observer interface {
	Happened(Event)
}

// Kind is what happened. It is the one vocabulary of logs' readers, Kubernetes
// events and dashboards.
type Kind string

// The kinds of events.
const (
	Claimed     Kind = "Claimed"     // an environment runs for the first time
	ClaimFailed Kind = "ClaimFailed" // a claim ended without one
	Released    Kind = "Released"    // its end was decided
	Expired     Kind = "Expired"     // its time to live ended, and its node released it
	IdlePaused  Kind = "IdlePaused"  // its node paused it, since it did nothing
	Failed      Kind = "Failed"      // it ended by itself, or its node no longer has it
	Detected    Kind = "Detected"    // a detection rule fired
	Quarantined Kind = "Quarantined" // a rule froze it
	NodeSilent  Kind = "NodeSilent"  // a node has not reported for too long
	Fenced      Kind = "Fenced"      // its node froze and locked it
	Stalled     Kind = "Stalled"     // its node froze it, since it wrote while the disk was short
	Moving      Kind = "Moving"      // it is about to go to another node
	Moved       Kind = "Moved"
	MoveFailed  Kind = "MoveFailed"
	Draining    Kind = "Draining" // a node is being emptied
	Drained     Kind = "Drained"
	// ExtendRefused: its object asks for a time to live that it may not have.
	ExtendRefused Kind = "ExtendRefused"
	// ResizeRefused: its object asks for limits that it cannot have now.
	ResizeRefused Kind = "ResizeRefused"
)

// Event is one thing that happened.
type Event struct {
	Kind Kind
	// Environment it happened to, a copy; nil if it happened to a node.
	Environment *hearthv1.Environment
	// Object and UID name what the environment was made for; see Record.
	Object, UID string
	Node        string // where; empty if nowhere yet
	Message     string
	// Severity is a detection's: low, medium, high or critical. Empty otherwise.
	Severity string
}

// happened tells of a record. The caller holds no lock.
func (f *Fleet) happened(k Kind, r *Record, message string) {
	f.tell(Event{Kind: k, Environment: proto.CloneOf(r.Environment), Object: r.Object, UID: r.UID, Node: r.Environment.GetNode(), Message: message})
}

// tell tells the observer, if there is one. The caller holds no lock.
func (f *Fleet) tell(e Event) {
	if f.cfg.Observer != nil {
		f.cfg.Observer.Happened(e)
	}
}
