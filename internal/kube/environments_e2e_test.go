//go:build e2e

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/storetest"
)

const team = storetest.TenantA

func oneNode() map[string]*fakeNode { return map[string]*fakeNode{"n1": newFakeNode()} }

// counted is a client whose requests about Environments are counted.
func counted(t *testing.T) (*Client, *counter) {
	t.Helper()
	testClient(t) // makes namespaces
	n := &counter{}
	c, err := openWith(Config{Kubeconfig: os.Getenv("KUBECONFIG"), UserAgent: "hearth-test"}, func(rc *rest.Config) {
		rc.Wrap(func(next http.RoundTripper) http.RoundTripper { n.next = next; return n })
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, n
}

func TestAnEnvironmentThatIsAppliedRunsAndOneThatIsDeletedEnds(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	o := &v1alpha1.Environment{
		ObjectMeta: metav1.ObjectMeta{Namespace: team, Name: "mine", Labels: map[string]string{"app": "x"}},
		Spec:       v1alpha1.EnvironmentSpec{Class: "small", Hostname: "box", Variables: map[string]string{"A": "b"}, Egress: &v1alpha1.Egress{Mode: "none"}},
	}
	o, err := c.environments(team).Create(t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id := string(testSeal.idOf(o))
	eventually(t, "it runs", func() bool { return w.get(team, "mine").Status.Phase == "running" })
	o = w.get(team, "mine")
	if d := cmp.Diff([]any{"n1", int64(1), id, "n1:7401", true, []string{v1alpha1.Finalizer}},
		[]any{o.Spec.Placement.NodeName, o.Spec.Placement.Generation, o.Status.ID, o.Status.Address, o.Status.Warm, o.Finalizers}); d != "" {
		t.Errorf("object (-want +got):\n%s", d)
	}
	if c := conditionOf(o.Status.Conditions, v1alpha1.ConditionReady); c == nil || c.Status != metav1.ConditionTrue || c.Reason != "Running" || c.ObservedGeneration != o.Generation {
		t.Errorf("condition = %+v of generation %d", c, o.Generation)
	}
	spec := w.fakes["n1"].spec(id)
	if spec.GetVariables()["A"] != "b" || spec.GetHostname() != "box" || spec.GetTenant() != team || spec.GetLabels()["app"] != "x" || spec.GetEgress().GetMode() != hearthv1.EgressPolicy_MODE_NONE {
		t.Errorf("the node was asked for %v", spec)
	}
	eventually(t, "an event tells of it", func() bool { return hasEvent(t, c, team, "mine", "Claimed") })

	holding := make(chan struct{})
	w.fakes["n1"].mu.Lock()
	w.fakes["n1"].holding = holding
	w.fakes["n1"].mu.Unlock()
	if err := c.environments(team).Delete(t.Context(), "mine", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if o := w.get(team, "mine"); o == nil || o.DeletionTimestamp == nil {
		t.Fatal("the object went before its node had let go")
	}
	close(holding)
	eventually(t, "the object is gone", func() bool { return w.get(team, "mine") == nil })
	if !w.fakes["n1"].wasReleased(id) {
		t.Error("the node was not asked to release it")
	}
}

func TestAClaimThroughTheAPIIsOneWriteAndNoRead(t *testing.T) {
	c, n := counted(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	n.take()
	resp, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key-1", &hearthv1.ClaimSpec{Class: "small", Variables: map[string]string{"PASSWORD": "s3cret"}, Metadata: []byte(`{"token":"s3cret"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"POST /apis/hearth.run/v1alpha1/namespaces/" + team + "/environments"}, n.take()); d != "" {
		t.Errorf("requests before the answer (-want +got):\n%s", d)
	}
	id := resp.GetEnvironment().GetId()
	eventually(t, "status is written behind", func() bool { return w.get(team, id).Status.Phase == "running" })
	raw, err := json.Marshal(w.get(team, id))
	if err != nil || strings.Contains(string(raw), "s3cret") || strings.Contains(string(raw), "secret") {
		t.Errorf("the object holds a secret: %s, %v", raw, err)
	}

	n.take()
	if _, err := w.fleet.Release(t.Context(), fleet.Principal{Tenant: team}, "key-2", id, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the object is gone", func() bool { return w.get(team, id) == nil })
	if got := n.take(); len(got) == 0 || got[0] != "DELETE /apis/hearth.run/v1alpha1/namespaces/"+team+"/environments/"+id {
		t.Errorf("requests of a release: %v", got)
	}
}

func TestARepeatedClaimIsKnownToTheNextController(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	spec := &hearthv1.ClaimSpec{Class: "small"}
	first, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", spec)
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	next := newWorld(t, c, w.fakes)
	again, err := next.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", spec)
	if err != nil {
		t.Fatal(err)
	}
	if first.GetEnvironment().GetId() != again.GetEnvironment().GetId() {
		t.Errorf("the same key gave %s and then %s", first.GetEnvironment().GetId(), again.GetEnvironment().GetId())
	}
	if next.fleet.Epoch() <= w.fleet.Epoch() {
		t.Errorf("epochs: %d, then %d", w.fleet.Epoch(), next.fleet.Epoch())
	}
}

func TestAnEnvironmentThatCannotBeClaimedSaysWhyAndRunsLater(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	w.fakes["n1"].refuse = errors.Join(env.ErrExhausted, errors.New("no room at all"))
	newEnvironment(t, c, team, "late", "small")
	eventually(t, "status says why", func() bool {
		o := w.get(team, "late")
		r := conditionOf(o.Status.Conditions, v1alpha1.ConditionReady)
		return o.Status.Phase == "claiming" && r != nil && r.Reason == "ClaimFailed" && strings.Contains(r.Message, "no room at all")
	})
	w.fakes["n1"].mu.Lock()
	w.fakes["n1"].refuse = nil
	w.fakes["n1"].mu.Unlock()
	eventually(t, "it runs", func() bool { return w.get(team, "late").Status.Phase == "running" })
	r := conditionOf(w.get(team, "late").Status.Conditions, v1alpha1.ConditionReady)
	if r == nil || r.Status != metav1.ConditionTrue || r.Message != "" {
		t.Errorf("condition = %+v", r)
	}
}

func TestAnEnvironmentWhoseObjectIsTornAwayEnds(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	user := newEnvironment(t, c, team, "torn", "small")
	eventually(t, "it runs", func() bool { return w.get(team, "torn").Status.Phase == "running" })
	resp, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", &hearthv1.ClaimSpec{Class: "small"})
	if err != nil {
		t.Fatal(err)
	}
	id := resp.GetEnvironment().GetId()
	remove(t, c, refOf(user))
	remove(t, c, ref{namespace: team, name: id})
	eventually(t, "both are released", func() bool {
		return w.fakes["n1"].wasReleased(id) && w.fakes["n1"].wasReleased(string(testSeal.idOf(user)))
	})
	time.Sleep(500 * time.Millisecond)
	if w.get(team, id) != nil || w.get(team, "torn") != nil {
		t.Error("an object came back")
	}
}

func TestAnObjectThatIsDeletedBeforeItIsClaimedGoes(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	o := &v1alpha1.Environment{ObjectMeta: metav1.ObjectMeta{Namespace: team, Name: "early", Finalizers: []string{"example.com/other", v1alpha1.Finalizer}}, Spec: v1alpha1.EnvironmentSpec{Class: "small"}}
	if _, err := c.environments(team).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.environments(team).Delete(t.Context(), "early", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, c, oneNode())
	eventually(t, "our finalizer is gone and the other one is not", func() bool {
		return cmp.Equal(w.get(team, "early").Finalizers, []string{"example.com/other"})
	})
	remove(t, c, refOf(w.get(team, "early")))
}

func TestAnObjectThatNoClaimWasAnsweredWithIsDeleted(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	o, err := c.environments(team).Create(t.Context(), objectOf(recordAt("n1", 1, func(r *fleet.Record) { r.Environment.Tenant = team })), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.store.Orphan(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if w.get(team, o.Name) != nil {
		t.Error("it is still there")
	}
}

func TestATenantWithoutANamespaceIsToldSo(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	_, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: "nowhere"}, "key", &hearthv1.ClaimSpec{Class: "small"})
	if !errors.Is(err, env.ErrNotFound) || !strings.Contains(err.Error(), "kubectl create namespace nowhere") {
		t.Errorf("error = %v", err)
	}
}

func TestASilentAPIServerIsUnavailableAndCostsOnlyDurableClaims(t *testing.T) {
	c, n := counted(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	o := newEnvironment(t, c, team, "stays", "small")
	eventually(t, "it runs", func() bool { return w.get(team, "stays").Status.Phase == "running" })
	n.mu.Lock()
	real := n.next
	n.next = roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("dial tcp: connection refused") })
	n.mu.Unlock()
	_, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", &hearthv1.ClaimSpec{Class: "small"})
	if !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("error = %v", err)
	}
	if e, err := w.fleet.Get(t.Context(), fleet.Principal{Tenant: team}, string(testSeal.idOf(o))); err != nil || e.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
		t.Errorf("environment = %v, %v", e, err)
	}
	n.mu.Lock()
	n.next = real
	n.mu.Unlock()
	if _, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", &hearthv1.ClaimSpec{Class: "small"}); err != nil {
		t.Errorf("after it answers again: %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func hasEvent(t *testing.T, c *Client, namespace, name, reason string) bool {
	t.Helper()
	list, err := c.core.CoreV1().Events(namespace).List(context.Background(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + name + ",reason=" + reason})
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Items) > 0
}
