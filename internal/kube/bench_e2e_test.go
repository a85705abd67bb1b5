//go:build e2e

package kube

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/fleet"
)

// What the API server costs a claim: the node's part takes no time here.

func BenchmarkClaimThroughTheAPI(b *testing.B) {
	w := benchWorld(b)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		begun := time.Now()
		if _, err := w.fleet.Claim(b.Context(), fleet.Principal{Tenant: team}, fmt.Sprint("key-", i, begun.UnixNano()), &hearthv1.ClaimSpec{Class: "small"}); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
	percentiles(b, took)
}

func BenchmarkClaimByApply(b *testing.B) {
	w := benchWorld(b)
	events, err := w.c.environments(team).Watch(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer events.Stop()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		begun := time.Now()
		o := newEnvironment(b, w.c, team, fmt.Sprintf("bench-%d-%d", i, begun.UnixNano()), "small")
		for e := range events.ResultChan() {
			if have, ok := e.Object.(*v1alpha1.Environment); ok && e.Type == watch.Modified && have.UID == o.UID && have.Status.Phase == "running" {
				break
			}
		}
		took = append(took, time.Since(begun))
	}
	percentiles(b, took)
}

// benchWorld has a node that reports, again and again, that it has room.
func benchWorld(b *testing.B) *world {
	b.Helper()
	c := testClient(b)
	wipe(b, c)
	w := newWorld(b, c, oneNode())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = w.sessions["n1"].Heartbeat(&hearthv1.Heartbeat{Pools: []*hearthv1.Pool{{Class: "small", Want: 1000, Ready: 1000}}, Room: &hearthv1.Room{SlotsMax: 1 << 20, MemoryMaxBytes: 1 << 50}})
			time.Sleep(10 * time.Millisecond)
		}
	}()
	b.Cleanup(func() { cancel(); <-done })
	return w
}

func percentiles(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(.5), "p50-ms")
	b.ReportMetric(at(.99), "p99-ms")
}

// BenchmarkOneWrite is the floor: an object of about the same size, and nothing else.
func BenchmarkOneWrite(b *testing.B) {
	w := benchWorld(b)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		begun := time.Now()
		_, err := w.c.core.CoreV1().ConfigMaps(testNamespace).Create(b.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-", Labels: map[string]string{"i": fmt.Sprint(i)}},
		}, metav1.CreateOptions{})
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
	percentiles(b, took)
}

// BenchmarkOneEnvironment is the floor of a claim through the API.
func BenchmarkOneEnvironment(b *testing.B) {
	c := testClient(b)
	wipe(b, c)
	var took []time.Duration
	for b.Loop() {
		o := objectOf(recordAt("n1", 1, func(r *fleet.Record) { r.Environment.Tenant = team }))
		begun := time.Now()
		if _, err := c.environments(team).Create(b.Context(), o, metav1.CreateOptions{FieldManager: fieldManager}); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
	percentiles(b, took)
}
