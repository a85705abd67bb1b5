package kube

import (
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// The schema's bounds of a message and of a reason.
const (
	maxMessage = 1024
	maxReason  = 64
)

// statusOf is what the object shall say of the record. Before are the conditions
// that it has; at is the present.
func statusOf(r *fleet.Record, address string, generation int64, before []metav1.Condition, at time.Time) v1alpha1.EnvironmentStatus {
	e := r.Environment
	phase := phaseWords[e.GetPhase()]
	s := v1alpha1.EnvironmentStatus{
		Phase: v1alpha1.EnvironmentPhase(phase), ID: e.GetId(), Generation: int64(e.GetGeneration()),
		Message: cut(e.GetMessage(), maxMessage), Warm: e.GetWarm(), Address: address, ObservedGeneration: generation,
	}
	if t := e.GetClaimedAt(); t.IsValid() {
		s.ClaimedAt = &metav1.Time{Time: t.AsTime().Truncate(time.Second)}
	}
	s.Reason = cut(e.GetReason(), maxReason)
	switch word := e.GetServed(); word {
	case "warm", "queued", "cold": // what the schema takes
		s.Served = word
	}
	if t := e.GetExpiresAt(); t.IsValid() {
		s.ExpiresAt = &metav1.Time{Time: t.AsTime().Truncate(time.Second)}
	}
	s.TimeToLive = lengthOf(e.GetTimeToLive())
	s.Resources = resourcesStatus(e.GetResources())
	s.Conditions = []metav1.Condition{readyCondition(phase, s.Message, generation, before, at)}
	return s
}

// readyCondition is true while the environment runs; its reason is the phase.
func readyCondition(phase env.Phase, message string, generation int64, before []metav1.Condition, at time.Time) metav1.Condition {
	c := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reasonOf(phase), Message: message, ObservedGeneration: generation,
	}
	if phase == env.PhaseRunning {
		c.Status = metav1.ConditionTrue
	}
	return stamped(c, before, at)
}

// refusedStatus is of an object for which nothing could be claimed, and will be
// tried again.
func refusedStatus(id env.ID, message string, generation int64, before []metav1.Condition, at time.Time) v1alpha1.EnvironmentStatus {
	message = cut(message, maxMessage)
	return v1alpha1.EnvironmentStatus{
		Phase: v1alpha1.EnvironmentPhase(env.PhaseClaiming), ID: string(id), Message: message, ObservedGeneration: generation,
		Conditions: []metav1.Condition{stamped(metav1.Condition{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: string(fleet.ClaimFailed), Message: message, ObservedGeneration: generation,
		}, before, at)},
	}
}

// stamped gives a condition the time of its last change of status.
func stamped(c metav1.Condition, before []metav1.Condition, at time.Time) metav1.Condition {
	c.LastTransitionTime = metav1.NewTime(at.Truncate(time.Second))
	for _, b := range before {
		if b.Type == c.Type && b.Status == c.Status {
			c.LastTransitionTime = b.LastTransitionTime
		}
	}
	return c
}

// reasonOf is a phase as conditions have reasons: CamelCase.
func reasonOf(p env.Phase) string {
	if p == "" {
		return "Unknown"
	}
	return strings.ToUpper(string(p[:1])) + string(p[1:])
}

// cut shortens s to at most n bytes of whole characters.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	const more = "..."
	return strings.ToValidUTF8(s[:n-len(more)], "") + more
}
