package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// evictionPeriod is how often a kubelet looks whether pods must go.
const evictionPeriod = 10 * time.Second

// ask is a question to the node's kubelet.
func (d *nodeDisk) ask(ctx context.Context, path string, into any) error {
	b, err := d.w.kube.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + d.node + "/proxy/" + path).DoRaw(ctx)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// readMarks are the kubelet's thresholds, the higher of those for pods and for
// images.
func (d *nodeDisk) readMarks(ctx context.Context) (marks share, err error) {
	var answer struct {
		Config struct {
			EvictionHard map[string]string `json:"evictionHard"`
		} `json:"kubeletconfig"`
	}
	if err := d.ask(ctx, "configz", &answer); err != nil {
		return marks, err
	}
	mark := func(signal string) float64 {
		v, convErr := strconv.ParseFloat(strings.TrimSuffix(answer.Config.EvictionHard[signal], "%"), 64)
		if convErr != nil {
			err = fmt.Errorf("kubelet's threshold %s: %w", signal, convErr)
		}
		return v / 100
	}
	marks.bytes = max(mark("nodefs.available"), mark("imagefs.available"))
	marks.inodes = max(mark("nodefs.inodesFree"), mark("imagefs.inodesFree"))
	return marks, err
}

// seen is what the kubelet says of pods' and images' file systems, the less.
func (d *nodeDisk) seen(ctx context.Context) (share, error) {
	type fs struct{ AvailableBytes, CapacityBytes, InodesFree, Inodes float64 }
	var s struct {
		Node struct {
			FS      fs
			Runtime struct{ ImageFs fs }
		}
	}
	if err := d.ask(ctx, "stats/summary", &s); err != nil {
		return share{}, err
	}
	of := func(f fs) share { return share{f.AvailableBytes / f.CapacityBytes, f.InodesFree / f.Inodes} }
	both := of(s.Node.FS).least(of(s.Node.Runtime.ImageFs))
	if math.IsNaN(both.bytes + both.inodes) {
		return both, fmt.Errorf("the kubelet of %s has not looked at its disk yet", d.node)
	}
	return both, nil
}

// calm reports whether the kubelet sees no pressure, and whether every pod of
// the cluster is what it was.
func (d *nodeDisk) calm(ctx context.Context) error {
	status, message, err := d.pressure(ctx)
	if err != nil {
		return err
	}
	if status != corev1.ConditionFalse {
		return fmt.Errorf("node %s: disk pressure is %s: %s", d.node, status, message)
	}
	books, err := d.w.restarts(ctx)
	if err == nil && books != d.books {
		err = fmt.Errorf("pods are not what they were: %s before, %s now", d.books, books)
	}
	return err
}

func (d *nodeDisk) pressure(ctx context.Context) (status corev1.ConditionStatus, message string, err error) {
	n, err := d.w.kube.CoreV1().Nodes().Get(ctx, d.node, metav1.GetOptions{})
	if err != nil {
		return "", "", err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeDiskPressure {
			return c.Status, c.Message, nil
		}
	}
	return "", "", fmt.Errorf("node %s says nothing of disk pressure", d.node)
}
