package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"hearth/internal/fleet"
)

// accounts is a fleet of which only budgets are told.
type accounts struct {
	drains
	mu      sync.Mutex // guards all below
	nodes   []fleet.NodeStatus
	budgets map[string]fleet.Budget
}

func (a *accounts) Nodes() []fleet.NodeStatus { return slices.Clone(a.nodes) }

func (a *accounts) SetBudgets(b map[string]fleet.Budget) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.budgets = b
}

// books are Holds beside nodes of which the test is the informer.
type books struct {
	*Holds
	api   *fake.Clientset
	fleet *accounts
}

func holding(t *testing.T, play func(*testing.T, *books)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api, f := fake.NewClientset(), &accounts{}
		c := &Client{core: api}
		w := &Watches{holds: informer(&cache.ListWatch{}, nil, &corev1.Pod{}), nodes: informer(&cache.ListWatch{}, nil, &corev1.Node{})}
		log := slog.New(slog.DiscardHandler)
		events := &Events{recorder: &record.FakeRecorder{}}
		h := NewHolds(log, c, w, f, NewNodes(log, c, w, &f.drains), events, "hearth-nodes", hold)
		play(t, &books{h, api, f})
	})
}

// has makes a node known, and its hold pod.
func (b *books) has(t *testing.T, name string, edit func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	n := node(func(n *corev1.Node) { n.Name = name })
	want, err := budgetOf(n, hold)
	if err != nil {
		t.Fatal(err)
	}
	p := holdPod("hearth-nodes", n, hold, want, false)
	p.CreationTimestamp.Time = time.Now()
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: holdContainer, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	if edit != nil {
		edit(p)
	}
	if err := errors.Join(b.w.nodes.GetStore().Add(n), b.w.holds.GetStore().Add(p), b.api.Tracker().Add(p.DeepCopy())); err != nil {
		t.Fatal(err)
	}
	return p
}

func (b *books) did(verb string) int {
	n := 0
	for _, a := range b.api.Actions() {
		if a.GetVerb() == verb {
			n++
		}
	}
	return n
}

// run works for a time.
func (b *books) run(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_ = b.Run(ctx)
}

func TestAHoldPodGoesWhoseAgentWentWhileAnotherControllerLed(t *testing.T) {
	holding(t, func(t *testing.T, b *books) {
		t.Helper()
		b.has(t, "n1", nil)
		b.run(t, agentGone-time.Second)
		if n := b.did("delete"); n != 0 {
			t.Error("it went before its agent was waited for")
		}
	})
	holding(t, func(t *testing.T, b *books) {
		t.Helper()
		b.has(t, "n1", nil)
		b.run(t, agentGone+10*time.Second)
		if n := b.did("delete"); n == 0 {
			t.Error("it holds what nobody uses")
		}
	})
	holding(t, func(t *testing.T, b *books) {
		t.Helper()
		b.fleet.left = 1
		b.has(t, "n1", func(p *corev1.Pod) { p.Labels[labelOccupied], p.Annotations = "true", holdAnnotations("n1", true) })
		b.run(t, 2*agentGone)
		if n := b.did("delete"); n != 0 {
			t.Error("it went though environments may live there")
		}
	})
}

func TestASilentAPIServerKeepsNoBudgetAway(t *testing.T) {
	holding(t, func(t *testing.T, b *books) {
		t.Helper()
		b.api.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			time.Sleep(callTimeout)
			return true, nil, context.DeadlineExceeded
		})
		const nodes = 100
		for i := range nodes {
			name := fmt.Sprint("n", i)
			b.has(t, name, nil)
			b.fleet.nodes = append(b.fleet.nodes, fleet.NodeStatus{Name: name, Ready: true, Environments: 1}) // to be marked
		}
		begun := time.Now()
		b.round(t.Context())
		if took := time.Since(begun); took > callTimeout || len(b.fleet.budgets) != nodes {
			t.Errorf("%d nodes have their budget after %s", len(b.fleet.budgets), took)
		}
	})
}

func TestAPodThatCouldNotBeResizedNowIsNotMadeAnew(t *testing.T) {
	small := func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
	}
	for name, tc := range map[string]struct {
		err  error
		want int
	}{
		"overload":                       {apierrors.NewTooManyRequests("slow down", 1), 0},
		"no answer":                      {errors.New("connection refused"), 0},
		"a cluster that does not resize": {apierrors.NewNotFound(schema.GroupResource{Resource: "pods/resize"}, "x"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			holding(t, func(t *testing.T, b *books) {
				t.Helper()
				b.api.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, tc.err })
				b.has(t, "n1", small)
				b.fleet.nodes = []fleet.NodeStatus{{Name: "n1", Ready: true}}
				b.round(t.Context())
				if n := b.did("delete"); n != tc.want {
					t.Errorf("deleted %d times", n)
				}
			})
		})
	}
}

func TestAPodThatTheKubeletRefusesIsNotMadeAnewAtOnce(t *testing.T) {
	holding(t, func(t *testing.T, b *books) {
		t.Helper()
		b.has(t, "n1", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
		b.fleet.nodes = []fleet.NodeStatus{{Name: "n1", Ready: true}}
		b.run(t, holdYoung-time.Second)
		if n := b.did("delete"); n != 0 {
			t.Errorf("deleted %d times", n)
		}
		b.run(t, 4*time.Second)
		if n := b.did("delete"); n == 0 {
			t.Error("it stays failed")
		}
	})
}

func TestComplaintsOfNodesThatAreGoneAreForgotten(t *testing.T) {
	holding(t, func(t *testing.T, b *books) {
		t.Helper()
		for i := range 10 {
			name := fmt.Sprint("n", i)
			p := b.has(t, name, func(p *corev1.Pod) {
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "no room"}}
			})
			b.fleet.nodes = []fleet.NodeStatus{{Name: name, Ready: true}}
			b.round(t.Context())
			if b.said[name] == "" {
				t.Error("nothing was said")
			}
			if err := errors.Join(b.w.nodes.GetStore().Delete(node(func(n *corev1.Node) { n.Name = name })), b.w.holds.GetStore().Delete(p)); err != nil {
				t.Fatal(err)
			}
		}
		if len(b.said) != 1 {
			t.Errorf("kept of %d nodes", len(b.said))
		}
	})
}
