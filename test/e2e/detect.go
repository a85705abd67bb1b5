package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/test/cluster"
)

// minerLine is the first that a miner says to its pool.
const minerLine = `{"id": 1, "method": "mining.subscribe", "params": ["x/1.0"]}`

// detect plays a miner: metric, event, frozen, and an alert that arrives.
func (w *world) detect(ctx context.Context) (f facts, err error) {
	mon, err := w.startMonitoring(ctx)
	if err != nil {
		return f, err
	}
	defer mon.stop()
	c, err := w.claim(w.ctl(), class)
	if err != nil {
		return f, err
	}
	if err := w.installProbe(w.ctl(), c.ID(), "/usr/bin/python3"); err != nil {
		return f, err
	}
	pool := fmt.Sprintf("%s:%d", cluster.PublicAddresses[2], cluster.StratumPort)
	begun := time.Now()
	miner := w.ctl().Command("exec", c.ID(), "--", "/usr/bin/python3", "say", pool, minerLine)
	if err := miner.Start(); err != nil {
		return f, err
	}
	defer func() { _ = miner.Process.Kill(); _ = miner.Wait() }()
	if err := eventually(ctx, short, func() error {
		o, err := w.environment(ctx, team, c.ID())
		if err != nil {
			return err
		}
		if p := field(o, "status", "phase"); p != "quarantined" {
			return fmt.Errorf("phase %s: %s", p, field(o, "status", "message"))
		}
		return nil
	}); err != nil {
		return f, err
	}
	f.ms("quarantined_ms", time.Since(begun))
	if err := eventually(ctx, short, func() error { return w.eventOf(ctx, c.ID(), "Detected", "mining.") }); err != nil {
		return f, err
	}
	f.add("event", "Detected")
	node, _, err := w.where(w.ctl(), c.ID())
	if err != nil {
		return f, err
	}
	frozen, err := output(w.cluster.In(node, "sh", "-c", "cat /sys/fs/cgroup/unified/hearth/"+c.Environment.Slot+"/cgroup.events"))
	if err != nil || !strings.Contains(frozen, "frozen 1") {
		return f, fmt.Errorf("its cgroup says %q: %v", frozen, err)
	}
	f.add("cgroup", "frozen")
	if err := mon.metricAbove(ctx, `sum(hearth_detections_total{rule=~"mining.*"})`, 0); err != nil {
		return f, err
	}
	f.ms("metric_ms", time.Since(begun))
	if err := mon.alertArrives(ctx, "HearthDetection"); err != nil {
		return f, err
	}
	f.ms("alert_ms", time.Since(begun))
	if err := mon.everyQueryIsFed(); err != nil {
		return f, err
	}
	f.add("queries", "fed")
	return f, w.releaseAll(w.ctl(), c)
}

// eventOf looks for a Kubernetes event about an environment's object.
func (w *world) eventOf(ctx context.Context, object, reason, text string) error {
	list, err := w.kube.CoreV1().Events(team).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + object})
	if err != nil {
		return err
	}
	var seen []string
	for _, e := range list.Items {
		if e.Reason == reason && strings.Contains(e.Message, text) {
			return nil
		}
		seen = append(seen, e.Reason)
	}
	return fmt.Errorf("no event %s with %q about %s: %v", reason, text, object, seen)
}
