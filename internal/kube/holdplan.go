package kube

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// holdAction is what is to be done about a node's hold pod.
type holdAction string

const (
	holdKeep   holdAction = "keep"
	holdCreate holdAction = "create"
	holdDelete holdAction = "delete"
	holdResize holdAction = "resize"
	holdMark   holdAction = "mark" // labels and annotations
)

// holdState is what is known of one node.
type holdState struct {
	pod      *corev1.Pod // nil if there is none
	node     *corev1.Node
	reports  bool // an agent is there
	occupied bool // environments live on the node, or are on their way to it
	closed   bool // cordoned or draining: the node may be about to go
	draining bool // because an eviction asked for it
	young    bool // the pod was made a moment ago
	want     budget
}

// planHold is a pure function: the table in the tests is the specification.
func planHold(s holdState) holdAction {
	p := s.pod
	switch {
	case p == nil && s.reports && (s.occupied || !s.closed):
		return holdCreate
	case p == nil, p.DeletionTimestamp != nil:
		return holdKeep
	case p.Status.Phase == corev1.PodFailed, p.Status.Phase == corev1.PodSucceeded:
		if s.young && !s.draining {
			return holdKeep // a kubelet that refuses it would refuse the next one, too
		}
		return holdDelete // killed, or evicted by the kubelet: it is made anew
	case !s.occupied && s.draining:
		return holdDelete // whoever evicts it waits for just that
	case !s.occupied && !s.reports:
		return holdDelete
	case marked(p) != strconv.FormatBool(s.occupied):
		return holdMark
	case !asked(p).equal(s.want):
		return holdResize
	default:
		return holdKeep
	}
}

// marked is what the pod's label says, empty if its annotations say otherwise.
func marked(p *corev1.Pod) string {
	v := p.Labels[labelOccupied]
	for k, want := range holdAnnotations(p.Annotations[annotationNode], v == "true") {
		if p.Annotations[k] != want {
			return ""
		}
	}
	return v
}
