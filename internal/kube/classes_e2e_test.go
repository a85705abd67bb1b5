//go:build e2e

package kube

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
)

// good is a class, and bad a change of it that only the controller can refuse.
func good(name string) *v1alpha1.EnvironmentClass {
	return &v1alpha1.EnvironmentClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.EnvironmentClassSpec{
		Image: "example.com/x:1", Warm: v1alpha1.Warm{Slots: 2}, Egress: v1alpha1.Egress{Mode: "allow", Allow: []v1alpha1.EgressRule{{CIDR: "192.0.2.0/24"}}},
	}}
}

func bad(o *v1alpha1.EnvironmentClass) { o.Spec.Egress.Allow[0].CIDR = "192.0.2.7/24" }

func (w *world) class(name string) *v1alpha1.EnvironmentClass {
	w.t.Helper()
	o, err := w.c.classes.Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) edit(name string, f func(*v1alpha1.EnvironmentClass)) {
	w.t.Helper()
	o := w.class(name)
	f(o)
	if _, err := w.c.classes.Update(context.Background(), o, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) condition(name, kind string) metav1.Condition {
	o := w.class(name)
	if c := conditionOf(o.Status.Conditions, kind); c != nil && c.ObservedGeneration == o.Generation {
		return *c
	}
	return metav1.Condition{}
}

func (n *fakeNode) has(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.classes.GetManifests() {
		if strings.Contains(string(m), text) {
			return true
		}
	}
	return false
}

func TestAClassReachesTheNodesAndARejectedChangeDoesNot(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	n := w.fakes["n1"]
	if _, err := c.classes.Create(t.Context(), good("web"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node has it", func() bool { return n.has("example.com/x:1") })
	eventually(t, "it is accepted", func() bool { return w.condition("web", v1alpha1.ConditionAccepted).Status == metav1.ConditionTrue })
	eventually(t, "an event says so", func() bool { return hasEvent(t, c, "default", "web", ReasonClassAccepted) })
	if _, err := w.sessions["n1"].Inventory(&hearthv1.InventoryResponse{Node: "n1", Pools: []*hearthv1.Pool{{Class: "web", Want: 2, Ready: 1, Claimed: 3}}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its status counts slots", func() bool {
		s, r := w.class("web").Status, w.condition("web", v1alpha1.ConditionReady)
		return s.Ready == 1 && s.Wanted == 2 && s.Environments == 3 && r.Status == metav1.ConditionFalse && r.Message == "1 of 2 warm slots are ready"
	})

	w.edit("web", func(o *v1alpha1.EnvironmentClass) { o.Spec.Image = "example.com/x:2"; bad(o) })
	eventually(t, "the change is rejected", func() bool {
		a := w.condition("web", v1alpha1.ConditionAccepted)
		return a.Status == metav1.ConditionFalse && a.Reason == reasonRejected && strings.Contains(a.Message, "192.0.2.7/24") && strings.Contains(a.Message, "stays as it was")
	})
	eventually(t, "what stays in force is kept", func() bool { return w.class("web").Annotations[annotationInForce] != "" })
	if n.has("example.com/x:2") || !n.has("example.com/x:1") {
		t.Error("the node got the rejected class")
	}

	// The next controller has only the rejected object to go by.
	w.stop()
	next := newWorld(t, c, oneNode())
	eventually(t, "the next controller keeps it too", func() bool { return next.fakes["n1"].has("example.com/x:1") })
	next.edit("web", func(o *v1alpha1.EnvironmentClass) { o.Spec.Egress.Allow[0].CIDR = "192.0.2.0/25" })
	eventually(t, "a mended one is in force", func() bool { return next.fakes["n1"].has("example.com/x:2") })
	eventually(t, "nothing is kept any more", func() bool { return next.class("web").Annotations[annotationInForce] == "" })
	if err := c.classes.Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node loses it", func() bool { return !next.fakes["n1"].has("example.com/x") })
}
