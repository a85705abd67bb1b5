package kube

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"hearth/api/v1alpha1"
	"hearth/internal/fleet"
)

// Events reports what happened as Kubernetes events. Those that repeat are
// counted in one, and an object that has too many gets no more for a while: an
// environment can make as many detections as it likes. It never blocks.
// It implements fleet.Observer.
type Events struct {
	recorder record.EventRecorder
	stop     func()
	store    *Store // knows the UIDs of what it made
}

var _ fleet.Observer = (*Events)(nil)

// NewEvents makes a reporter that writes until Close.
func NewEvents(c *Client, s *Store) *Events {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: c.core.CoreV1().Events("")})
	return &Events{
		recorder: b.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: fieldManager}),
		stop:     b.Shutdown, store: s,
	}
}

// Close ends the reporting; what waits to be written is lost.
func (e *Events) Close() { e.stop() }

// Happened reports one thing. That claims through the API come and go, and sleep, is
// no news: their callers know, and at their rate it would be most of what the cluster
// stores.
func (e *Events) Happened(ev fleet.Event) {
	usual := ev.Kind == fleet.Claimed || ev.Kind == fleet.Released || ev.Kind == fleet.IdlePaused
	if usual && ev.Object == "" {
		return
	}
	about, message := nodeRef(ev.Node), saying(ev)
	switch {
	case ev.Environment == nil:
	case ev.Environment.GetEphemeral():
		// No object stands for it.
		message = fmt.Sprintf("environment %s of %s: %s", ev.Environment.GetId(), ev.Environment.GetTenant(), message)
	default:
		about = e.environmentRef(ev)
	}
	if about.Name != "" {
		e.tell(about, string(ev.Kind), message)
	}
}

// saying is the event's text.
func saying(ev fleet.Event) string {
	switch {
	case ev.Severity != "":
		return ev.Severity + ": " + ev.Message
	case ev.Message != "":
		return ev.Message
	case ev.Kind == fleet.Claimed && ev.Environment.GetServed() == "queued":
		return "runs on node " + ev.Node + ", from a warm slot that its claim waited for"
	case ev.Kind == fleet.Claimed && ev.Environment.GetWarm():
		return "runs on node " + ev.Node + ", from a warm slot"
	case ev.Kind == fleet.Claimed:
		return "runs on node " + ev.Node
	case ev.Kind == fleet.Released:
		return "its end was decided"
	default:
		return string(ev.Kind)
	}
}

func (e *Events) environmentRef(ev fleet.Event) *corev1.ObjectReference {
	o := ref{ev.Environment.GetTenant(), ev.Environment.GetId(), types.UID(ev.UID)}
	if ns, name, ok := splitObject(ev.Object); ok {
		o.namespace, o.name = ns, name
	} else {
		o.uid = e.store.uidOf(ev.Environment.GetId())
	}
	return &corev1.ObjectReference{
		APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindEnvironment, Namespace: o.namespace, Name: o.name, UID: o.uid,
	}
}

// nodeRef is how kubelet's own events name a node, which is what "kubectl describe
// node" looks for.
func nodeRef(name string) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)}
}

// maxNote is the API server's bound of an event's message.
const maxNote = 1024

func (e *Events) tell(about runtime.Object, reason, message string) {
	kind := corev1.EventTypeNormal
	if warnings[reason] {
		kind = corev1.EventTypeWarning
	}
	e.recorder.Event(about, kind, reason, cut(message, maxNote))
}

// class reports about a class.
func (e *Events) class(o *v1alpha1.EnvironmentClass, reason, message string) {
	e.tell(&corev1.ObjectReference{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindEnvironmentClass, Name: o.Name, UID: o.UID}, reason, message)
}
