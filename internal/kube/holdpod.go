package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/internal/config"
	"hearth/internal/fleet"
)

// The names of hold pods, and what is written onto them.
const (
	nameLabel = "app.kubernetes.io/name"
	holdName  = "hearth-hold"
	// holdContainer is the name of the one container.
	holdContainer = "hold"
	// labelOccupied is "true" while environments live on the node. A
	// PodDisruptionBudget selects it.
	labelOccupied = "hearth.run/occupied"
	// annotationNode is the node's name, which may be too long for a label.
	annotationNode = "hearth.run/node"
	// What Karpenter and the Cluster Autoscaler ask before they remove a node.
	annotationKarpenter  = "karpenter.sh/do-not-disrupt"
	annotationAutoscaler = "cluster-autoscaler.kubernetes.io/safe-to-evict"
)

// budget is what the environments of one node may use together.
type budget struct {
	memory, cpu resource.Quantity
}

func (b budget) list() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceMemory: b.memory, corev1.ResourceCPU: b.cpu}
}

func (b budget) String() string {
	return fmt.Sprintf("memory %s, cpu %s", b.memory.String(), b.cpu.String())
}

func (b budget) forFleet() fleet.Budget {
	return fleet.Budget{MemoryBytes: uint64(max(b.memory.Value(), 0)), CPUMillis: uint64(max(b.cpu.MilliValue(), 0))}
}

func (b budget) equal(o budget) bool { return b.memory.Cmp(o.memory) == 0 && b.cpu.Cmp(o.cpu) == 0 }

// budgetOf is the node's: by its labels, or the configured share of it. A label
// that is no quantity is said to be wrong, and the share counts.
func budgetOf(n *corev1.Node, h config.Hold) (budget, error) {
	memory, err1 := shareOf(n, labelMemory, h.Memory, corev1.ResourceMemory)
	cpu, err2 := shareOf(n, labelCPU, h.CPU, corev1.ResourceCPU)
	if err1 == nil {
		err1 = err2
	}
	return budget{memory, cpu}, err1
}

func shareOf(n *corev1.Node, label string, share config.Share, of corev1.ResourceName) (resource.Quantity, error) {
	var wrong error
	if text, ok := n.Labels[label]; ok {
		q, err := resource.ParseQuantity(text)
		if err == nil && q.Sign() > 0 {
			return q, nil
		}
		wrong = fmt.Errorf("label %s=%.63s is not an amount such as 8Gi or 1500m; %s counts", label, text, share)
	}
	q, err := share.Of(n.Status.Allocatable[of])
	if err != nil {
		return q, err
	}
	return q, wrong
}

// holdPod is the node's. It may be scheduled there and nowhere else, by the
// scheduler, so that it waits if there is no room.
func holdPod(namespace string, n *corev1.Node, h config.Hold, b budget, occupied bool) *corev1.Pod {
	yes, no, user, grace := true, false, int64(65532), int64(0)
	amount := b.list()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: holdPodName(n.Name), Namespace: namespace,
			Labels:      map[string]string{partOf: "hearth", nameLabel: holdName, labelOccupied: strconv.FormatBool(occupied)},
			Annotations: holdAnnotations(n.Name, occupied),
			// An owner that controls lets "kubectl drain" evict the pod, and the pod
			// goes with the node's object.
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID, Controller: &yes, BlockOwnerDeletion: &no}},
		},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: holdContainer, Image: h.Image, ImagePullPolicy: corev1.PullIfNotPresent,
				Resources: corev1.ResourceRequirements{Requests: amount, Limits: amount},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Affinity:                      &corev1.Affinity{NodeAffinity: onlyOn(n.Name)},
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			PriorityClassName:             h.PriorityClass,
			TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
		},
	}
}

func onlyOn(node string) *corev1.NodeAffinity {
	return &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}}
}

func holdAnnotations(node string, occupied bool) map[string]string {
	return map[string]string{
		annotationNode: node, annotationKarpenter: strconv.FormatBool(occupied), annotationAutoscaler: strconv.FormatBool(!occupied),
	}
}

// maxHoldName keeps the name one that a pod's host name can have, too.
const maxHoldName = 63

func holdPodName(node string) string {
	name := holdName + "-" + node
	if len(name) <= maxHoldName {
		return name
	}
	sum := sha256.Sum256([]byte(node))
	return name[:maxHoldName-9] + "-" + hex.EncodeToString(sum[:4])
}

// asked is what the pod asks for; had is what the kubelet gave it, as far as it
// says so.
func asked(p *corev1.Pod) budget { return amountOf(p.Spec.Containers[0].Resources.Requests) }

func had(p *corev1.Pod) (budget, bool) {
	for _, s := range p.Status.ContainerStatuses {
		if s.Name != holdContainer || s.State.Running == nil {
			continue
		}
		if s.Resources != nil && len(s.Resources.Requests) > 0 {
			return amountOf(s.Resources.Requests), true
		}
		return asked(p), true
	}
	return budget{}, false
}

func amountOf(l corev1.ResourceList) budget {
	return budget{l[corev1.ResourceMemory], l[corev1.ResourceCPU]}
}

// waiting says why the pod does not run, or does not have what it asks for; empty
// if it has.
func waiting(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		switch {
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse:
			return c.Message
		case c.Type == corev1.PodResizePending && c.Status == corev1.ConditionTrue:
			return c.Reason + ": " + c.Message
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason != "ContainerCreating" {
			return w.Reason + ": " + w.Message
		}
	}
	return ""
}
