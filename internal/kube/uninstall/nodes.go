package uninstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

var (
	podResource        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	daemonSetResource  = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	deploymentResource = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
)

func (u *Uninstaller) pods(namespace string) dynamic.ResourceInterface {
	return u.objects.Resource(podResource).Namespace(namespace)
}

// podsOf lists pods by label.
func (u *Uninstaller) podsOf(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	l, err := u.pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, reach(err)
	}
	pods := make([]corev1.Pod, len(l.Items))
	for i, o := range l.Items {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &pods[i]); err != nil {
			return nil, fmt.Errorf("pod %s: %w", o.GetName(), err)
		}
	}
	return pods, nil
}

// agentNodes are those on which an agent's pod is, or was not long ago.
func (u *Uninstaller) agentNodes(ctx context.Context) (names []string, err error) {
	pods, err := u.podsOf(ctx, nodesNamespace, part)
	seen := map[string]bool{}
	for _, p := range pods {
		if n := p.Spec.NodeName; n != "" && !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
	}
	return names, err
}

// agentTemplate is the agents' pod; nil if the DaemonSet is gone.
func (u *Uninstaller) agentTemplate(ctx context.Context) (*corev1.PodTemplateSpec, error) {
	o, err := u.objects.Resource(daemonSetResource).Namespace(nodesNamespace).Get(ctx, agentSet, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, reach(err)
	}
	template, _, err := unstructured.NestedMap(o.Object, "spec", "template")
	if err != nil {
		return nil, fmt.Errorf("daemonset %s: %w", agentSet, err)
	}
	t := &corev1.PodTemplateSpec{}
	return t, runtime.DefaultUnstructuredConverter.FromUnstructured(template, t)
}

func (u *Uninstaller) stopController(ctx context.Context) error {
	if err := gone(u.objects.Resource(deploymentResource).Namespace(systemNamespace).Delete(ctx, controllerName, foreground())); err != nil {
		return err
	}
	return u.noPods(ctx, systemNamespace, controllerName)
}

// stopAgents ends the agents, and the pods that hold the nodes' books.
func (u *Uninstaller) stopAgents(ctx context.Context) error {
	if err := gone(u.objects.Resource(daemonSetResource).Namespace(nodesNamespace).Delete(ctx, agentSet, foreground())); err != nil {
		return err
	}
	now := int64(0)
	err := u.pods(nodesNamespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now},
		metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=hearth-hold"})
	if gone(err) != nil {
		return reach(err)
	}
	return u.noPods(ctx, nodesNamespace, agentSet)
}

func foreground() metav1.DeleteOptions {
	p := metav1.DeletePropagationForeground
	return metav1.DeleteOptions{PropagationPolicy: &p}
}

// noPods waits until an application has none.
func (u *Uninstaller) noPods(ctx context.Context, namespace, app string) error {
	return wait(ctx, func() error {
		pods, err := u.podsOf(ctx, namespace, "app.kubernetes.io/name="+app)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%d pods of %s are left, the first is %s on node %s", len(pods), app, pods[0].Name, pods[0].Spec.NodeName)
		}
		return err
	})
}

const cleanupName = "hearth-cleanup"

// cleanNodes runs the agent's cleanup once on each node.
func (u *Uninstaller) cleanNodes(ctx context.Context, template *corev1.PodTemplateSpec, nodes []string) error {
	if template == nil {
		u.say("the DaemonSet is gone already: if a node was not cleaned, run `nodeagent cleanup --all` there")
		return nil
	}
	pods := u.pods(nodesNamespace)
	for _, n := range nodes {
		pod := cleanupPod(template, n)
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
		if err != nil {
			return err
		}
		now := int64(0)
		if err := gone(pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})); err != nil {
			return err
		}
		if err := wait(ctx, func() error {
			_, err := pods.Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
			return reach(err)
		}); err != nil {
			return err
		}
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, u.cleaned(ctx, cleanupPod(template, n).Name, n))
	}
	return errors.Join(errs...)
}

// cleanupPod is the agent's pod with another command.
func cleanupPod(template *corev1.PodTemplateSpec, node string) *corev1.Pod {
	t := template.DeepCopy()
	t.Labels["app.kubernetes.io/name"] = cleanupName
	t.Spec.NodeName = node
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	t.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	t.Spec.Affinity, t.Spec.NodeSelector = nil, nil
	c := &t.Spec.Containers[0]
	c.Args = []string{"cleanup", "--all"}
	c.StartupProbe, c.ReadinessProbe, c.LivenessProbe, c.Lifecycle = nil, nil, nil, nil
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: cleanupName + "-" + node, Namespace: nodesNamespace, Labels: t.Labels, Annotations: t.Annotations},
		Spec:       t.Spec,
	}
}

// cleaned waits for the pod's end. If it failed, what it said is in the error.
func (u *Uninstaller) cleaned(ctx context.Context, name, node string) error {
	var phase corev1.PodPhase
	if err := wait(ctx, func() error {
		p, err := u.pods(nodesNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return reach(err)
		}
		word, _, _ := unstructured.NestedString(p.Object, "status", "phase") // absent is not yet
		if phase = corev1.PodPhase(word); phase != corev1.PodSucceeded && phase != corev1.PodFailed {
			return fmt.Errorf("cleanup on node %s is %s", node, phase)
		}
		return nil
	}); err != nil {
		return err
	}
	if phase == corev1.PodFailed {
		return fmt.Errorf("cleanup on node %s failed: %s", node, u.lastWords(ctx, name))
	}
	u.say("node %s is clean", node)
	now := int64(0)
	return gone(u.pods(nodesNamespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
}

// lastWords is the end of a pod's log.
func (u *Uninstaller) lastWords(ctx context.Context, name string) string {
	client, err := rest.HTTPClientFor(u.rest)
	if err != nil {
		return err.Error()
	}
	defer client.CloseIdleConnections()
	url := fmt.Sprintf("%s/api/v1/namespaces/%s/pods/%s/log?tailLines=5", strings.TrimSuffix(u.rest.Host, "/"), nodesNamespace, name)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	r, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}
