package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// hoarder is an ordinary pod that writes so many MB and keeps them. Of all pods
// it is the first to go.
const hoarder = `
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: expendable}
value: -1000
---
apiVersion: v1
kind: Pod
metadata: {name: hoarder, namespace: ` + otherTeam + `}
spec:
  nodeName: %s
  priorityClassName: expendable
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: hearth.local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "dd if=/dev/zero of=/data/hoard bs=1M count=%d && sleep 3600"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
`

// evictsPods is the control: what an environment may not bring about happens
// when a pod writes as much.
func (d *nodeDisk) evictsPods(ctx context.Context, f *facts) (err error) {
	size, err := d.size()
	if err != nil {
		return err
	}
	const room, below = 0.02, 0.02 // above the kubelet's mark before, and below it after
	if err := d.leave(d.marks.bytes + room); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.forget()) }()
	begun := time.Now()
	if err := d.w.apply(fmt.Sprintf(hoarder, d.node, int64((room+below)*float64(size))>>20)); err != nil {
		return err
	}
	if err := d.evicted(ctx); err != nil {
		return err
	}
	f.ms("pod_evicted_ms", time.Since(begun))
	if _, err := d.w.kubectl("delete", "-n", otherTeam, "pod/hoarder", "priorityclass/expendable", "--timeout=30s"); err != nil {
		return err
	}
	begun = time.Now()
	if err := eventually(ctx, 60*time.Second, func() error { return d.calm(ctx) }); err != nil {
		return err
	}
	f.ms("pressure_gone_ms", time.Since(begun))
	// A kubelet that needs room deletes images that nothing uses.
	return d.w.cluster.loadImages()
}

// evicted waits until the kubelet has evicted the pod. The node's pressure shows
// on the way.
func (d *nodeDisk) evicted(ctx context.Context) error {
	pressed := false
	return eventually(ctx, 120*time.Second, func() error {
		status, _, err := d.pressure(ctx)
		if err != nil {
			return err
		}
		pressed = pressed || status == corev1.ConditionTrue
		p, err := d.w.kube.CoreV1().Pods(otherTeam).Get(ctx, "hoarder", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !pressed || p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Evicted" {
			return fmt.Errorf("the pod is %s %s %s; disk pressure was seen: %v", p.Status.Phase, p.Status.Reason, p.Status.Message, pressed)
		}
		return nil
	})
}
