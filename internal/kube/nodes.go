package kube

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/internal/fleet"
)

// The labels of nodes that people set.
const (
	labelMemory  = "hearth.run/memory"  // budget of the node's environments
	labelCPU     = "hearth.run/cpu"     // the same
	labelExclude = "hearth.run/exclude" // no agent, and no claims for one that is there
)

// drainTaints are put on a node that is about to go. Cordoning alone is not here:
// it only stops claims.
var drainTaints = map[string]bool{
	"ToBeDeletedByClusterAutoscaler":                         true,
	"karpenter.sh/disrupted":                                 true,
	"karpenter.sh/disruption":                                true, // before v1
	"node.kubernetes.io/out-of-service":                      true,
	"node.cloudprovider.kubernetes.io/shutdown":              true,
	"cloud.google.com/impending-node-termination":            true,
	"aws-node-termination-handler/spot-itn":                  true,
	"aws-node-termination-handler/asg-lifecycle-termination": true,
	"kubernetes.azure.com/scalesetpriority-preempted":        true,
}

// wishOf is what the node's object says that is wished of it. It is pure.
func wishOf(n *corev1.Node) fleet.NodeWish {
	w := fleet.NodeWish{}
	for _, t := range n.Spec.Taints {
		if drainTaints[t.Key] {
			return fleet.NodeWish{Cordoned: true, Drain: true, Reason: "the node has the taint " + t.Key}
		}
	}
	switch {
	case n.DeletionTimestamp != nil:
		return fleet.NodeWish{Cordoned: true, Drain: true, Reason: "the node's object is being deleted"}
	case n.Spec.Unschedulable:
		w = fleet.NodeWish{Cordoned: true}
	}
	if _, ok := n.Labels[labelExclude]; ok {
		w = fleet.NodeWish{Cordoned: true, Reason: "it has the label " + labelExclude}
	}
	return w
}

// wisher is what of the fleet Nodes need.
type wisher interface {
	SetNodes(map[string]fleet.NodeWish)
}

// Nodes tells the fleet what is wished of the nodes: by their objects, and by
// evictions of hold pods.
type Nodes struct {
	log   *slog.Logger
	c     *Client
	w     *Watches
	fleet wisher
	wake  chan struct{} // has one element if something changed

	mu sync.Mutex // guards all below, and makes reading them and telling the fleet one step
	// marks are the nodes that evictions asked to drain, and since when. Uncordoning
	// ends it.
	marks map[string]time.Time
	read  map[string]time.Time // when a node was last read anew
	last  map[string]fleet.NodeWish
}

// NewNodes registers with w, which must not run yet.
func NewNodes(log *slog.Logger, c *Client, w *Watches, f wisher) *Nodes {
	n := &Nodes{log: log, c: c, w: w, fleet: f, wake: make(chan struct{}, 1), marks: map[string]time.Time{}, read: map[string]time.Time{}}
	onEdit(w.nodes, func(a, b *corev1.Node) bool { return wishOf(a) == wishOf(b) }, func() { wakeUp(n.wake) })
	return n
}

// First tells the fleet what is wished as far as it has been seen, so that nothing
// is placed on a node that is cordoned. The watches must have synced before.
func (n *Nodes) First(context.Context) error {
	n.round()
	return nil
}

// Run works until ctx ends.
func (n *Nodes) Run(ctx context.Context) error {
	tick := time.NewTicker(markLate / 4)
	defer tick.Stop()
	for {
		n.round()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-n.wake:
		}
	}
}

// Drain begins a drain that an eviction asks for. When it returns nothing is
// placed on the node any more.
func (n *Nodes) Drain(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, had := n.marks[node]; had {
		return
	}
	n.marks[node] = time.Now()
	n.log.Info("drain asked for by an eviction", "node", node)
	n.tell()
}

// Draining tells whether an eviction asked for the node's drain.
func (n *Nodes) Draining(node string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.marks[node]
	return ok
}

// Cordoned tells whether the node is closed to pods. The one who asks may have
// cordoned it a moment ago, so it is read anew if it does not seem so, at most once
// in readEvery: anybody can ask.
func (n *Nodes) Cordoned(ctx context.Context, node string) bool {
	o, ok := got[*corev1.Node](n.w.nodes, "", node)
	if ok && wishOf(o).Cordoned {
		return true
	}
	if !ok || !n.mayRead(node) {
		return false // the eviction is tried again
	}
	ctx, cancel := context.WithTimeout(ctx, cordonTimeout)
	defer cancel()
	now, err := n.c.core.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	return err == nil && wishOf(now).Cordoned
}

func (n *Nodes) mayRead(node string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if at, ok := n.read[node]; ok && now.Sub(at) < readEvery {
		return false
	}
	n.read[node] = now
	return true
}

const (
	// cordonTimeout is less than the API server waits for a webhook.
	cordonTimeout = 3 * time.Second
	readEvery     = time.Second
	// markLate is how long the view of a node may be late: before, an uncordoned one
	// may be one whose cordon was not seen yet.
	markLate = 5 * time.Second
)

func (n *Nodes) round() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tell()
}

// tell tells the fleet what changed. The caller holds mu, under which the nodes are
// looked at too, so that the fleet hears of what is newer later; it calls nothing of
// this package back.
func (n *Nodes) tell() {
	objects := listed[*corev1.Node](n.w.nodes)
	wishes := map[string]fleet.NodeWish{}
	seen := map[string]bool{}
	for _, o := range objects {
		seen[o.Name] = true
		if w := wishOf(o); w != (fleet.NodeWish{}) {
			wishes[o.Name] = w
		}
	}
	for name, since := range n.marks {
		if !seen[name] || !wishes[name].Cordoned && time.Since(since) > markLate {
			n.log.Info("drain ends", "node", name, "gone", !seen[name])
			delete(n.marks, name)
			continue
		}
		if !wishes[name].Drain {
			wishes[name] = fleet.NodeWish{Cordoned: true, Drain: true, Reason: "its hold pod is being evicted"}
		}
	}
	maps.DeleteFunc(n.read, func(name string, _ time.Time) bool { return !seen[name] })
	if n.last == nil || !maps.Equal(wishes, n.last) {
		n.last = wishes
		n.fleet.SetNodes(wishes)
	}
}
