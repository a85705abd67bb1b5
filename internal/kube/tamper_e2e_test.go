//go:build e2e

package kube

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// What a tenant may write into objects of its own namespace by hand.

func (w *world) patch(name, body string) {
	w.t.Helper()
	if _, err := w.c.environments(team).Patch(context.Background(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func TestWhoeverRaisesAGenerationByHandCannotKeepTheEnvironment(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	o := newEnvironment(t, c, team, "mine", "small")
	eventually(t, "it runs", func() bool { return w.get(team, "mine").Status.Phase == "running" })
	resp, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", &hearthv1.ClaimSpec{Class: "small"})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{"mine": string(testSeal.idOf(o)), resp.GetEnvironment().GetId(): resp.GetEnvironment().GetId()}
	for name, id := range ids {
		eventually(t, name+" runs", func() bool { return w.get(team, name).Status.Phase == "running" })
		w.patch(name, `{"spec":{"placement":{"nodeName":"n9","generation":1000}}}`)
		if err := w.sessions["n1"].Detection(&hearthv1.Detection{Environment: id, Rule: "r", Response: string(env.ResponseFreeze)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+" says that it was frozen", func() bool { return w.get(team, name).Status.Phase == "quarantined" })
		if err := c.environments(team).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+" is released and gone", func() bool { return w.fakes["n1"].wasReleased(id) && w.get(team, name) == nil })
	}
}

func TestAnEnvironmentWhoseObjectLostItsSealIsFoundByTheNextController(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	resp, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", &hearthv1.ClaimSpec{Class: "small"})
	if err != nil {
		t.Fatal(err)
	}
	id := resp.GetEnvironment().GetId()
	eventually(t, "it runs", func() bool { return w.get(team, id).Status.Phase == "running" })
	w.stop()
	w.patch(id, `{"metadata":{"annotations":{"`+annotationSeal+`":null}}}`)
	next := newWorld(t, c, w.fakes)
	running := resp.GetEnvironment()
	running.Tenant = team
	if _, err := next.sessions["n1"].Inventory(&hearthv1.InventoryResponse{Node: "n1", Environments: []*hearthv1.Environment{running}, Room: &hearthv1.Room{SlotsMax: 100, MemoryMaxBytes: 1 << 40}}); err != nil {
		t.Fatal(err)
	}
	named := func() string {
		list, err := c.environments(team).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			if o := &list.Items[i]; testSeal.idOf(o) == env.ID(id) && strings.HasPrefix(o.Name, id+"-") {
				return o.Name
			}
		}
		return ""
	}
	eventually(t, "an object stands for it", func() bool { return named() != "" })
	if _, err := next.fleet.Get(t.Context(), fleet.Principal{Tenant: team}, id); err != nil {
		t.Error(err)
	}
	name := named()
	if err := c.environments(team).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is released", func() bool { return next.fakes["n1"].wasReleased(id) && next.get(team, name) == nil })
	remove(t, c, ref{namespace: team, name: id})
}

func TestAClaimThatNodesRefuseIsNotRepeatedAsFastAsItIsWritten(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	fakes := map[string]*fakeNode{"n1": newFakeNode(), "n2": newFakeNode()}
	for _, f := range fakes {
		f.refuse = errors.Join(env.ErrState, errors.New("not here"))
	}
	w := newWorld(t, c, fakes)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // the nodes say again and again that they have room
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			for _, s := range w.sessions {
				_ = s.Heartbeat(&hearthv1.Heartbeat{Pools: []*hearthv1.Pool{{Class: "small", Want: 5, Ready: 5}}, Room: &hearthv1.Room{SlotsMax: 100, MemoryMaxBytes: 1 << 40}})
			}
		}
	}()
	o := newEnvironment(t, c, team, "refused", "small")
	// Shortly after a start other nodes are waited for.
	eventually(t, "status says why", func() bool {
		r := conditionOf(w.get(team, "refused").Status.Conditions, v1alpha1.ConditionReady)
		return r != nil && r.Reason == "ClaimFailed"
	})
	before := w.get(team, "refused").Spec.Placement.Generation
	time.Sleep(5 * time.Second)
	close(stop)
	<-done
	if n := w.get(team, "refused").Spec.Placement.Generation - before; n < 1 || n > 15 {
		t.Errorf("placed %d times in 5 seconds", n)
	}
	remove(t, c, refOf(o))
}
