package kube

import (
	"context"
	"encoding/json"
	"maps"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The requests about the lease, and the label of the pod that holds it.

func (e *election) read(ctx context.Context) (*coordinationv1.Lease, error) {
	return e.c.core.CoordinationV1().Leases(e.me.Namespace).Get(ctx, e.me.Lease, metav1.GetOptions{})
}

func (e *election) create(ctx context.Context) (*coordinationv1.Lease, error) {
	e.sent = time.Now()
	lease := e.taken(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: e.me.Lease, Namespace: e.me.Namespace, Labels: map[string]string{partOf: "hearth"}}})
	return e.c.core.CoordinationV1().Leases(e.me.Namespace).Create(ctx, lease, metav1.CreateOptions{FieldManager: fieldManager})
}

// write is refused if the lease has changed since it was read.
func (e *election) write(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	e.sent = time.Now()
	return e.c.core.CoordinationV1().Leases(e.me.Namespace).Update(ctx, lease, metav1.UpdateOptions{FieldManager: fieldManager})
}

// taken is the lease as this process's.
func (e *election) taken(lease *coordinationv1.Lease) *coordinationv1.Lease {
	l := e.renewed(lease)
	now := metav1.NewMicroTime(time.Now())
	n := transitions(lease)
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != e.me.Holder {
		n++
	}
	l.Spec.AcquireTime, l.Spec.LeaseTransitions = &now, &n
	return l
}

func (e *election) renewed(lease *coordinationv1.Lease) *coordinationv1.Lease {
	l := lease.DeepCopy()
	now, seconds := metav1.NewMicroTime(time.Now()), int32((e.me.life()+time.Second-1)/time.Second)
	l.Spec.HolderIdentity, l.Spec.RenewTime, l.Spec.LeaseDurationSeconds = &e.me.Holder, &now, &seconds
	if l.Annotations == nil {
		l.Annotations = map[string]string{}
	}
	maps.Copy(l.Annotations, map[string]string{AnnotationAddress: e.me.Address, AnnotationCA: string(e.me.CA)})
	return l
}

func transitions(lease *coordinationv1.Lease) int32 {
	if n := lease.Spec.LeaseTransitions; n != nil {
		return *n
	}
	return 0
}

// release lets another candidate lead at once. If it cannot, the lease ends by
// itself.
func (e *election) release() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	e.label(ctx, false)
	lease, err := e.read(ctx)
	if err == nil && standingOf(e.me.Holder, lease, 0) == mine {
		none, second := "", int32(1)
		lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds = &none, &second
		_, err = e.write(ctx, lease)
	}
	if err != nil {
		e.log.Warn("lease not released", "lease", e.me.Lease, "error", err)
		return
	}
	e.log.Info("lease released", "lease", e.me.Lease)
}

// leaderLabel marks the one pod whose API is served.
const leaderLabel = "hearth.run/leader"

type labelState string

const (
	labelUnknown labelState = ""
	labelOn      labelState = "on"
	labelOff     labelState = "off"
)

// label gives or takes the leader's label, until that has succeeded. A leader takes
// it from others too: one that was cut off could not.
func (e *election) label(ctx context.Context, on bool) {
	want := labelOff
	if on {
		want = labelOn
	}
	if e.me.Pod == "" || e.labelled == want {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*e.me.renew())
	defer cancel()
	err := e.patchLabel(ctx, e.me.Pod, on)
	if err == nil && on {
		err = e.unlabelOthers(ctx)
	}
	if err != nil {
		e.log.Warn("leader's label not set", "pod", e.me.Pod, "error", err)
		return
	}
	e.labelled = want
}

func (e *election) patchLabel(ctx context.Context, pod string, on bool) error {
	var value any // null takes a label away
	if on {
		value = "true"
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{leaderLabel: value}}})
	if err != nil {
		return err
	}
	_, err = e.c.core.CoreV1().Pods(e.me.Namespace).Patch(ctx, pod, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}

func (e *election) unlabelOthers(ctx context.Context) error {
	pods, err := e.c.core.CoreV1().Pods(e.me.Namespace).List(ctx, metav1.ListOptions{LabelSelector: leaderLabel + "=true"})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		if p.Name != e.me.Pod {
			if err := e.patchLabel(ctx, p.Name, false); err != nil && !isNotFound(err) {
				return err
			}
		}
	}
	return nil
}
