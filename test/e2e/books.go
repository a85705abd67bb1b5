package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The budget that a label gives the second node, and what it is in bytes.
const (
	budgetMemory = "1536Mi"
	budgetBytes  = "1610612736"
)

// books follows a node's budget: a label resizes the hold pod in place and bounds
// the environments' cgroup tree; while an environment lives there the pod cannot
// be evicted; and a memory hog in an environment costs no pod anything.
func (w *world) books(ctx context.Context) (f facts, err error) {
	node, err := w.second()
	if err != nil {
		return f, err
	}
	before, err := w.holdPod(ctx, node)
	if err != nil {
		return f, err
	}
	begun := time.Now()
	if _, err := w.kubectl("label", "node", node, "hearth.run/memory="+budgetMemory); err != nil {
		return f, err
	}
	defer func() {
		_, again := w.kubectl("label", "node", node, "hearth.run/memory-")
		err = errors.Join(err, again)
	}()
	if err := eventually(ctx, 60*time.Second, func() error { return w.resized(ctx, node, before) }); err != nil {
		return f, err
	}
	f.ms("resized_ms", time.Since(begun))
	if err := eventually(ctx, 30*time.Second, func() error {
		out, err := output(w.cluster.In(node, "sh", "-c", "cat /sys/fs/cgroup/memory/hearth/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/hearth/memory.max"))
		if err == nil && strings.TrimSpace(out) != budgetBytes {
			err = fmt.Errorf("the tree's limit is %q, not %s", out, budgetBytes)
		}
		return err
	}); err != nil {
		return f, err
	}
	f.add("tree_bytes", budgetBytes)
	here, err := w.claimOn(node, class, 1)
	if err != nil {
		return f, err
	}
	if err := eventually(ctx, short, func() error { return w.protected(ctx, node) }); err != nil {
		return f, err
	}
	f.add("eviction", "refused")
	if err := w.hog(ctx, here[0].ID()); err != nil {
		return f, err
	}
	f.add("memory_hog", "killed-alone")
	return f, w.releaseAll(w.ctl(), here...)
}

func (w *world) holdPod(ctx context.Context, node string) (*corev1.Pod, error) {
	return w.kube.CoreV1().Pods(nodesNamespace).Get(ctx, "hearth-hold-"+node, metav1.GetOptions{})
}

// resized reports whether the same pod, never restarted, has the new budget.
func (w *world) resized(ctx context.Context, node string, before *corev1.Pod) error {
	p, err := w.holdPod(ctx, node)
	if err != nil {
		return err
	}
	if p.UID != before.UID || len(p.Status.ContainerStatuses) != 1 || p.Status.ContainerStatuses[0].RestartCount > 0 {
		return errors.New("the hold pod was made anew or restarted")
	}
	got := p.Status.ContainerStatuses[0].Resources
	if got == nil || got.Requests.Memory().String() != budgetMemory || p.Status.QOSClass != corev1.PodQOSGuaranteed {
		return fmt.Errorf("the hold pod has %v, class %s", got, p.Status.QOSClass)
	}
	return nil
}

// protected reports whether autoscalers are told to leave the pod, and whether an
// eviction is refused in the way that lets its caller try again.
func (w *world) protected(ctx context.Context, node string) error {
	p, err := w.holdPod(ctx, node)
	if err != nil {
		return err
	}
	if p.Labels["hearth.run/occupied"] != "true" || p.Annotations["karpenter.sh/do-not-disrupt"] != "true" ||
		p.Annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] != "false" {
		return fmt.Errorf("the hold pod is not marked: %v %v", p.Labels, p.Annotations)
	}
	err = w.kube.PolicyV1().Evictions(nodesNamespace).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace}})
	if !apierrors.IsTooManyRequests(err) {
		return fmt.Errorf("an eviction was answered %v", err)
	}
	return nil
}

// hog takes more memory than an environment may have. It alone is killed: no pod
// of the cluster is evicted or restarted, and no node is under pressure.
func (w *world) hog(ctx context.Context, id string) error {
	restarts, err := w.restarts(ctx)
	if err != nil {
		return err
	}
	// Tail keeps a line in memory until it ends.
	if out, _, code := w.ctl().Try("exec", id, "--", "sh", "-c", "tail -n 1 < /dev/zero"); code == 0 {
		return fmt.Errorf("the hog ended well: %q", out)
	}
	now, err := w.restarts(ctx)
	if err != nil {
		return err
	}
	if now != restarts {
		return fmt.Errorf("containers were restarted: %s before, %s after", restarts, now)
	}
	nodes, err := w.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range nodes.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeMemoryPressure && c.Status != corev1.ConditionFalse {
				return fmt.Errorf("node %s: memory pressure %s: %s", n.Name, c.Status, c.Message)
			}
		}
	}
	return nil
}

// restarts names every pod of the cluster with its restarts, and those that failed.
func (w *world) restarts(ctx context.Context) (string, error) {
	pods, err := w.kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	var all []string
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			all = append(all, fmt.Sprintf("%s/%s:%d:%s", p.Namespace, p.Name, c.RestartCount, p.Status.Reason))
		}
	}
	return strings.Join(all, " "), nil
}
