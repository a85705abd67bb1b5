//go:build e2e

package kube

import (
	"context"
	"encoding/pem"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/config"
	"hearth/internal/fleet"
)

var testHold = config.Hold{Image: "hearth/pause:test", Memory: "50%", CPU: "2", PriorityClass: "hearth-hold"}

// withHolds is a world with hold pods on a Kubernetes node "n1" that no kubelet runs.
func withHolds(t *testing.T) *world {
	t.Helper()
	c := testClient(t)
	wipe(t, c)
	ctx := t.Context()
	_ = c.core.CoreV1().Nodes().Delete(ctx, "n1", metav1.DeleteOptions{})
	zero := int64(0)
	if err := c.core.CoreV1().Pods(testNamespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	n, err := c.core.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Allocatable = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("16Gi"), corev1.ResourceCPU: resource.MustParse("8")}
	if _, err := c.core.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = c.core.SchedulingV1().PriorityClasses().Create(ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "hearth-hold"}, Value: 1000}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	w := newWorld(t, c, oneNode())
	h := NewHolds(testLog(t), c, w.watches, w.fleet, w.nodes, w.events, testNamespace, testHold)
	hctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = h.Run(hctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *world) hold() *corev1.Pod {
	w.t.Helper()
	p, err := w.c.core.CoreV1().Pods(testNamespace).Get(context.Background(), "hearth-hold-n1", metav1.GetOptions{})
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// runs lets the kubelet say that the pod runs with what it asks for.
func (w *world) runs(p *corev1.Pod) {
	w.t.Helper()
	p.Spec.NodeName = "n1"
	now := metav1.Now()
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
		Name: holdContainer, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		Resources: &corev1.ResourceRequirements{Requests: p.Spec.Containers[0].Resources.Requests},
	}}}
	if _, err := w.c.core.CoreV1().Pods(testNamespace).UpdateStatus(context.Background(), p, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) node(edit func(*corev1.Node)) {
	w.t.Helper()
	n, err := w.c.core.CoreV1().Nodes().Get(context.Background(), "n1", metav1.GetOptions{})
	if err == nil {
		edit(n)
		_, err = w.c.core.CoreV1().Nodes().Update(context.Background(), n, metav1.UpdateOptions{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (n *fakeNode) hasBudget(memory, cpu uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.budget.GetMemoryBytes() == memory && n.budget.GetCpuMillis() == cpu
}

func TestAHoldPodKeepsTheNodesBooks(t *testing.T) {
	w := withHolds(t)
	eventually(t, "there is a hold pod", func() bool { return w.hold() != nil })
	p := w.hold()
	if p.Status.QOSClass != corev1.PodQOSGuaranteed || !asked(p).equal(budget{resource.MustParse("8Gi"), resource.MustParse("2")}) {
		t.Errorf("pod is %s and asks for %s", p.Status.QOSClass, asked(p))
	}
	if owner := metav1.GetControllerOf(p); owner == nil || owner.Kind != "Node" {
		t.Errorf("owner = %v", owner)
	}
	if marked(p) != "false" || p.Annotations[annotationAutoscaler] != "true" {
		t.Errorf("an idle node's pod has %v, %v", p.Labels, p.Annotations)
	}
	time.Sleep(100 * time.Millisecond)
	if w.fakes["n1"].budget != nil {
		t.Error("the node has a budget that no pod holds yet")
	}
	w.runs(p)
	eventually(t, "the node has the pod's budget", func() bool { return w.fakes["n1"].hasBudget(8<<30, 2000) })

	if _, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", &hearthv1.ClaimSpec{Class: "small"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is occupied", func() bool {
		p := w.hold()
		return marked(p) == "true" && p.Annotations[annotationKarpenter] == "true" && p.Annotations[annotationAutoscaler] == "false"
	})
	w.node(func(n *corev1.Node) { n.Labels = map[string]string{labelMemory: "4Gi", labelCPU: "1500m"} })
	eventually(t, "it is resized in place", func() bool {
		now := w.hold()
		return now.UID == p.UID && asked(now).equal(budget{resource.MustParse("4Gi"), resource.MustParse("1500m")})
	})
	if w.fakes["n1"].hasBudget(4<<30, 1500) {
		t.Error("the node has a budget that the kubelet has not granted yet")
	}
	w.runs(w.hold())
	eventually(t, "the node has the new budget", func() bool { return w.fakes["n1"].hasBudget(4<<30, 1500) })
}

func TestEvictingAnOccupiedHoldPodDrainsItsNode(t *testing.T) {
	w := withHolds(t)
	eventually(t, "there is a hold pod", func() bool { return w.hold() != nil })
	w.runs(w.hold())
	srv := httptest.NewTLSServer(DrainHandler(testLog(t), w.watches, w.nodes, w.fleet))
	t.Cleanup(srv.Close)
	w.askAbout(srv)

	resp, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "key", &hearthv1.ClaimSpec{Class: "small"})
	if err != nil {
		t.Fatal(err)
	}
	w.node(func(n *corev1.Node) { n.Spec.Unschedulable = true })
	err = w.evict(true)
	if !apierrors.IsTooManyRequests(err) || w.nodes.Draining("n1") {
		t.Errorf("a dry run: %v, draining %v", err, w.nodes.Draining("n1"))
	}
	err = w.evict(false)
	if !apierrors.IsTooManyRequests(err) || !strings.Contains(err.Error(), "environments live on node n1") {
		t.Fatalf("eviction: %v", err)
	}
	if st := w.fleet.Nodes()[0]; !st.Draining {
		t.Errorf("node = %+v", st)
	}
	eventually(t, "an event tells of the drain", func() bool { return hasEvent(t, w.c, "default", "n1", "Draining") })
	if _, err := w.fleet.Release(t.Context(), fleet.Principal{Tenant: team}, "key-2", resp.GetEnvironment().GetId(), false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod of the empty node is deleted", func() bool { p := w.hold(); return p == nil || p.DeletionTimestamp != nil })
	time.Sleep(holdsEvery + 500*time.Millisecond)
	if w.hold() != nil {
		t.Error("a cordoned node that is empty has a hold pod again")
	}
	w.node(func(n *corev1.Node) { n.Spec.Unschedulable = false })
	eventually(t, "after uncordon there is one again", func() bool { return w.hold() != nil && !w.nodes.Draining("n1") })
	if err := w.evict(false); err != nil {
		t.Errorf("an idle hold pod may be evicted: %v", err)
	}
	eventually(t, "it comes back, since the node is not cordoned", func() bool { p := w.hold(); return p != nil && !w.fleet.Nodes()[0].Draining })
}

// askAbout has the API server ask srv about evictions.
func (w *world) askAbout(srv *httptest.Server) {
	w.t.Helper()
	const name = "hearth-drain-test"
	hooks := w.c.core.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	url, fail, none, scope := srv.URL+DrainPath, admissionv1.Fail, admissionv1.SideEffectClassNoneOnDryRun, admissionv1.NamespacedScope
	_ = hooks.Delete(context.Background(), name, metav1.DeleteOptions{})
	w.t.Cleanup(func() { _ = hooks.Delete(context.Background(), name, metav1.DeleteOptions{}) })
	_, err := hooks.Create(context.Background(), &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "drain.hearth.run", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}, FailurePolicy: &fail, SideEffects: &none,
			AdmissionReviewVersions: []string{"v1"},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods/eviction"}, Scope: &scope},
			}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	for range 2 {
		if err := w.c.TrustWebhook(context.Background(), name, ca); err != nil {
			w.t.Fatal(err)
		}
	}
	time.Sleep(500 * time.Millisecond) // the API server learns of webhooks by a watch
}

func (w *world) evict(dry bool) error {
	e := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "hearth-hold-n1", Namespace: testNamespace}}
	if dry {
		e.DeleteOptions = &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
	}
	return w.c.core.PolicyV1().Evictions(testNamespace).Evict(context.Background(), e)
}
