package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hearth/internal/config"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// booked is what of the fleet Holds need.
type booked interface {
	Nodes() []fleet.NodeStatus
	DrainStatus(node string) (left, moving int, message string)
	SetBudgets(map[string]fleet.Budget)
}

// Holds keep the nodes' books: on each node with an agent one pod that does
// nothing and holds what the environments there may use, so that the scheduler,
// autoscalers and "kubectl drain" see it. The agents are told of no more than the
// pods were given.
type Holds struct {
	log       *slog.Logger
	c         *Client
	w         *Watches
	fleet     booked
	nodes     *Nodes
	events    *Events
	cfg       config.Hold
	namespace string
	wake      chan struct{} // has one element if something changed

	// Of the goroutine in Run.
	budgets map[string]fleet.Budget
	said    map[string]string // the last complaint about each node that has one
	begun   time.Time         // from when on agents are waited for
}

const (
	// holdsEvery is how often the books are compared without a sign.
	holdsEvery = 2 * time.Second
	// holdsSettle lets signs that come together be one.
	holdsSettle = 200 * time.Millisecond
	// agentGone is how long an agent that does not report is waited for before an
	// idle node's hold pod goes.
	agentGone = 10 * time.Minute
	// holdYoung is how long a pod stays that failed at once.
	holdYoung = 30 * time.Second
)

// NewHolds registers with w, which must not run yet; the pods are in namespace.
func NewHolds(log *slog.Logger, c *Client, w *Watches, f booked, nodes *Nodes, events *Events, namespace string, cfg config.Hold) *Holds {
	h := &Holds{
		log: log, c: c, w: w, fleet: f, nodes: nodes, events: events, namespace: namespace, cfg: cfg,
		wake: make(chan struct{}, 1), said: map[string]string{},
	}
	onChange(w.holds, func(_, _ *corev1.Pod, _ bool) { wakeUp(h.wake) })
	return h
}

// Run works until ctx ends.
func (h *Holds) Run(ctx context.Context) error {
	tick := time.NewTicker(holdsEvery)
	defer tick.Stop()
	h.begun = time.Now()
	for {
		h.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-h.wake:
			time.Sleep(holdsSettle)
		}
	}
}

// round compares the books. The agents are told first, since an API server that does
// not answer would keep that away; nothing more is asked of such a one.
func (h *Holds) round(ctx context.Context) {
	budgets, said := map[string]fleet.Budget{}, map[string]string{}
	var todo []holdState
	for _, st := range h.booked() {
		n, ok := got[*corev1.Node](h.w.nodes, "", st.Name)
		if !ok {
			continue // not a node of this cluster, or one that is gone
		}
		s, wrong := h.stateOf(n, st)
		if s.pod != nil {
			if b, ok := had(s.pod); ok {
				budgets[st.Name] = b.forFleet()
			}
			wrong = cmp.Or(waiting(s.pod), wrong)
		}
		if wrong != "" {
			said[n.Name] = wrong
			h.complain(n, wrong)
		}
		if planHold(s) != holdKeep {
			todo = append(todo, s)
		}
	}
	h.said = said
	if !maps.Equal(budgets, h.budgets) {
		h.budgets = budgets
		h.fleet.SetBudgets(budgets)
	}
	for _, s := range todo {
		action, begun := planHold(s), time.Now()
		err := h.do(ctx, s, action)
		if err != nil && ctx.Err() == nil {
			h.log.Warn("hold pod not as it shall be", "node", s.node.Name, "action", string(action), "error", err)
		}
		if time.Since(begun) >= callTimeout {
			return
		}
	}
}

// booked are the nodes that the fleet has seen, and those that have a hold pod
// nevertheless: their agents may have gone while another controller led.
func (h *Holds) booked() []fleet.NodeStatus {
	nodes := h.fleet.Nodes()
	seen := map[string]bool{}
	for _, st := range nodes {
		seen[st.Name] = true
	}
	for _, p := range listed[*corev1.Pod](h.w.holds) {
		if name := p.Annotations[annotationNode]; name != "" && !seen[name] {
			seen[name] = true
			nodes = append(nodes, fleet.NodeStatus{Name: name, LastHeartbeat: h.begun})
		}
	}
	return nodes
}

// stateOf is what is known of the node, and what is wrong about its labels.
func (h *Holds) stateOf(n *corev1.Node, st fleet.NodeStatus) (s holdState, wrong string) {
	s = holdState{node: n, reports: st.Ready || time.Since(st.LastHeartbeat) < agentGone, closed: st.Cordoned || st.Draining, draining: h.nodes.Draining(n.Name)}
	if s.occupied = st.Environments > 0; !s.occupied {
		left, _, _ := h.fleet.DrainStatus(n.Name) // counts what is on its way there, too
		s.occupied = left > 0
	}
	if p, ok := got[*corev1.Pod](h.w.holds, h.namespace, holdPodName(n.Name)); ok {
		s.pod, s.young = p, time.Since(p.CreationTimestamp.Time) < holdYoung
	}
	var err error
	if s.want, err = budgetOf(n, h.cfg); err != nil {
		wrong = err.Error()
	}
	return s, wrong
}

// complain reports once what keeps a node's books from being right.
func (h *Holds) complain(n *corev1.Node, why string) {
	if h.said[n.Name] == why {
		return
	}
	h.log.Warn("hold pod waits", "node", n.Name, "reason", why)
	h.events.tell(nodeRef(n.Name), ReasonHoldPodPending, "environments' budget: "+why)
}

func (h *Holds) do(ctx context.Context, s holdState, a holdAction) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pods := h.c.core.CoreV1().Pods(h.namespace)
	var err error
	switch a {
	case holdCreate:
		_, err = pods.Create(ctx, holdPod(h.namespace, s.node, h.cfg, s.want, s.occupied), metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.IsAlreadyExists(err) {
			err = nil // the watch is late
		}
	case holdDelete:
		err = pods.Delete(ctx, s.pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.pod.UID}})
		h.log.Info("hold pod deleted", "node", s.node.Name, "draining", s.draining)
	case holdMark:
		err = h.mark(ctx, s)
	case holdResize:
		err = h.resize(ctx, s)
	}
	if err != nil && !isNotFound(err) {
		return failed(fmt.Sprintf("%s hold pod %s", a, holdPodName(s.node.Name)), err)
	}
	return nil
}

func (h *Holds) mark(ctx context.Context, s holdState) error {
	p := holdPod(h.namespace, s.node, h.cfg, s.want, s.occupied)
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": p.Labels, "annotations": p.Annotations}})
	if err != nil {
		return err
	}
	_, err = h.c.core.CoreV1().Pods(h.namespace).Patch(ctx, s.pod.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}

// resize changes the pod in place. A cluster that cannot do that gets another pod,
// once the node is idle.
func (h *Holds) resize(ctx context.Context, s holdState) error {
	amount := map[string]any{"requests": s.want.list(), "limits": s.want.list()}
	body, err := json.Marshal(map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"name": holdContainer, "resources": amount}}}})
	if err != nil {
		return err
	}
	pods := h.c.core.CoreV1().Pods(h.namespace)
	_, err = pods.Patch(ctx, s.pod.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager}, "resize")
	switch {
	case err == nil:
		h.events.tell(nodeRef(s.node.Name), ReasonHoldPodResized, "environments' budget: "+s.want.String())
		return nil
	case s.occupied, errors.Is(failed("", err), env.ErrUnavailable):
		return err
	default:
		h.log.Warn("hold pod not resized in place, making it anew", "node", s.node.Name, "error", err)
		return pods.Delete(ctx, s.pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.pod.UID}})
	}
}
