package kube

import "hearth/internal/fleet"

// The reasons of Kubernetes events are the fleet's kinds and these.
const (
	ReasonClassAccepted  = "ClassAccepted"
	ReasonClassRejected  = "ClassRejected"
	ReasonHoldPodPending = "HoldPodPending" // no room on the node for its environments' budget
	ReasonHoldPodResized = "HoldPodResized"
	ReasonDrainAsked     = "DrainAsked" // an eviction of the hold pod began a drain
)

// warnings are the reasons that somebody should look at.
var warnings = map[string]bool{
	string(fleet.ClaimFailed):   true,
	string(fleet.Failed):        true,
	string(fleet.Detected):      true,
	string(fleet.Quarantined):   true,
	string(fleet.NodeSilent):    true,
	string(fleet.Fenced):        true,
	string(fleet.Stalled):       true,
	string(fleet.MoveFailed):    true,
	string(fleet.ExtendRefused): true,
	string(fleet.ResizeRefused): true,
	ReasonClassRejected:         true,
	ReasonHoldPodPending:        true,
}
