package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/test/stage"
)

// onNode is what a node's agent has that is not final.
func (w *world) onNode(ctx context.Context, node string) (ids []string, err error) {
	a, err := w.agentOf(node)
	if err != nil {
		return nil, err
	}
	defer a.close()
	r, err := a.List(ctx, &hearthv1.NodeListRequest{})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	for _, e := range r.GetEnvironments() {
		if p := e.GetPhase(); p != hearthv1.Phase_PHASE_RELEASED && p != hearthv1.Phase_PHASE_FAILED {
			ids = append(ids, e.GetId())
		}
	}
	return ids, nil
}

// claimOn claims of a class until n environments are on the node, and releases
// the others.
func (w *world) claimOn(node, class string, n int) (here []stage.Claimed, err error) {
	var others []stage.Claimed
	defer func() { err = errors.Join(err, w.releaseAll(w.ctl(), others...)) }()
	for tries := 0; len(here) < n; tries++ {
		if tries > 10*n {
			return here, fmt.Errorf("%d of %d claims went to node %s", len(here), tries, node)
		}
		c, err := w.claim(w.ctl(), class)
		if err != nil {
			return here, err
		}
		at, _, err := w.where(w.ctl(), c.ID())
		if err != nil {
			return here, err
		}
		if at == node {
			here = append(here, c)
		} else {
			others = append(others, c)
		}
	}
	return here, nil
}

// second is the node that is drained and cut off.
func (w *world) second() (string, error) {
	nodes := w.cluster.Nodes()
	if len(nodes) < 2 {
		return "", errors.New("the cluster has one node")
	}
	return nodes[1], nil
}

// drain cordons the second node, then drains it as an operator does.
func (w *world) drain(ctx context.Context) (f facts, err error) {
	node, err := w.second()
	if err != nil {
		return f, err
	}
	here, err := w.claimOn(node, class, 2)
	if err != nil {
		return f, err
	}
	sums := map[string]string{}
	const sum = "cd / && find workspace opt -type f | sort | xargs sha256sum | sha256sum"
	for _, c := range here {
		if _, err := w.ctl().Sh(c, "mkdir -p /opt && head -c 3000000 /dev/urandom > /workspace/data && date > /opt/note"); err != nil {
			return f, err
		}
		if sums[c.ID()], err = w.ctl().Sh(c, sum); err != nil {
			return f, err
		}
	}
	begun := time.Now()
	if _, err := w.kubectl("cordon", node); err != nil {
		return f, err
	}
	defer func() {
		_, again := w.kubectl("uncordon", node)
		err = errors.Join(err, again)
	}()
	if err := w.noClaimsOn(ctx, node); err != nil {
		return f, fmt.Errorf("cordoned: %w", err)
	}
	f.ms("cordon_ms", time.Since(begun))
	if left, err := w.onNode(ctx, node); err != nil || len(left) < len(here) {
		return f, fmt.Errorf("a cordon moved environments: %v left: %v", left, err)
	}
	begun = time.Now()
	out, err := w.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
	if err != nil {
		return f, fmt.Errorf("%w: %s", err, out)
	}
	f.ms("drain_ms", time.Since(begun))
	// The leader may have been among the evicted.
	begun = time.Now()
	if err := eventually(ctx, short, func() error {
		_, err := w.list(w.ctl())
		return err
	}); err != nil {
		return f, fmt.Errorf("drained: %w", err)
	}
	f.ms("answered_ms", time.Since(begun))
	for _, c := range here {
		at, _, err := w.where(w.ctl(), c.ID())
		if err != nil {
			return f, err
		}
		if at == node {
			return f, fmt.Errorf("environment %s is still on %s", c.ID(), node)
		}
		if got, err := w.ctl().Sh(c, sum); err != nil || got != sums[c.ID()] {
			return f, fmt.Errorf("environment %s has other files on %s: %q, want %q: %v", c.ID(), at, got, sums[c.ID()], err)
		}
		o, err := w.environment(ctx, team, c.ID())
		if err != nil {
			return f, err
		}
		if g := field(o, "spec", "placement", "generation"); g == "1" || g == "" {
			return f, fmt.Errorf("environment %s has generation %q after its move", c.ID(), g)
		}
	}
	f.add("moved", len(here))
	f.add("files", "same")
	if left, err := w.onNode(ctx, node); err != nil || len(left) > 0 {
		return f, fmt.Errorf("node %s still has %v: %v", node, left, err)
	}
	return f, w.releaseAll(w.ctl(), here...)
}

// noClaimsOn waits until no claim goes to the node, which the controller hears of by
// a watch: four in a row.
func (w *world) noClaimsOn(ctx context.Context, node string) error {
	return eventually(ctx, 5*time.Second, func() error {
		for range 4 {
			c, err := w.claim(w.ctl(), class)
			if err != nil {
				return err
			}
			at, _, err := w.where(w.ctl(), c.ID())
			if err = errors.Join(err, w.releaseAll(w.ctl(), c)); err != nil {
				return err
			}
			if at == node {
				return fmt.Errorf("a claim went to %s", node)
			}
		}
		return nil
	})
}

// partition cuts the second node off until its agent fences itself and the
// controller gives it up, then heals it. One environment was released meanwhile:
// it must not run again.
func (w *world) partition(ctx context.Context) (f facts, err error) {
	node, err := w.second()
	if err != nil {
		return f, err
	}
	here, err := w.claimOn(node, class, 2)
	if err != nil {
		return f, err
	}
	stays, goes := here[0], here[1]
	if _, err := w.ctl().Sh(stays, "(while true; do date +%s%N > /workspace/tick; sleep 0.1; done) >/dev/null 2>&1 &"); err != nil {
		return f, err
	}
	begun := time.Now()
	if err := w.cluster.Partition(node); err != nil {
		return f, err
	}
	healed := false
	defer func() {
		if !healed {
			err = errors.Join(err, w.cluster.Heal(node))
		}
	}()
	if err := eventually(ctx, 90*time.Second, func() error { return w.frozen(node, stays.Environment.Slot, true) }); err != nil {
		return f, fmt.Errorf("the agent did not fence itself: %w", err)
	}
	f.ms("fenced_ms", time.Since(begun))
	if err := eventually(ctx, 120*time.Second, func() error {
		o, err := w.environment(ctx, team, stays.ID())
		if err != nil {
			return err
		}
		if p, m := field(o, "status", "phase"), field(o, "status", "message"); p != "failed" || !strings.Contains(m, "no durable snapshot") {
			return fmt.Errorf("phase %s: %s", p, m)
		}
		return nil
	}); err != nil {
		return f, fmt.Errorf("the controller did not give it up: %w", err)
	}
	f.ms("given_up_ms", time.Since(begun))
	if _, err := w.kubectl("-n", team, "delete", "env", goes.ID(), "--wait=false"); err != nil {
		return f, err
	}
	back := time.Now()
	healed = true
	if err := w.cluster.Heal(node); err != nil {
		return f, err
	}
	if err := eventually(ctx, 60*time.Second, func() error { return w.frozen(node, stays.Environment.Slot, false) }); err != nil {
		return f, fmt.Errorf("it was not thawed: %w", err)
	}
	f.ms("thawed_ms", time.Since(back))
	if err := eventually(ctx, short, func() error {
		out, err := w.ctl().Sh(stays, "cat /workspace/tick; sleep 0.3; cat /workspace/tick")
		if l := strings.Fields(out); err == nil && (len(l) != 2 || l[0] == l[1]) {
			err = fmt.Errorf("its process stands still: %q", out)
		}
		return err
	}); err != nil {
		return f, err
	}
	if err := eventually(ctx, 30*time.Second, func() error { return w.gone(ctx, node, goes) }); err != nil {
		return f, err
	}
	f.add("stale", "stopped")
	w.released = append(w.released, goes.Environment.Slot)
	return f, w.releaseAll(w.ctl(), stays)
}

// frozen asks the kernel.
func (w *world) frozen(node, slot string, want bool) error {
	out, err := output(w.cluster.In(node, "cat", "/sys/fs/cgroup/unified/hearth/"+slot+"/cgroup.events"))
	if err == nil && strings.Contains(out, "frozen 1") != want {
		err = fmt.Errorf("slot %s: %q", slot, out)
	}
	return err
}

// gone asks the node whether anything of an environment is left.
func (w *world) gone(ctx context.Context, node string, c stage.Claimed) error {
	ids, err := w.onNode(ctx, node)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if id == c.ID() {
			return fmt.Errorf("environment %s is still on node %s", id, node)
		}
	}
	return nil
}

// uninstall takes everything away.
func (w *world) uninstall(ctx context.Context) (f facts, err error) {
	// Something is running, of both kinds.
	if _, err := w.claim(w.ctl(), class); err != nil {
		return f, err
	}
	if _, err := w.claim(w.ctl(), fleeting); err != nil {
		return f, err
	}
	if err := w.apply(fmt.Sprintf(environmentManifest, "last", team, class)); err != nil {
		return f, err
	}
	begun := time.Now()
	cmd := exec.Command(w.cluster.Product("hearthctl"), "uninstall", "--kubeconfig", w.cluster.Kubeconfig(), "--yes")
	if out, err := output(cmd); err != nil {
		return f, fmt.Errorf("%w: %s", err, out)
	}
	f.ms("command_ms", time.Since(begun))
	return f, w.untouched(ctx, &f)
}

// untouched looks for anything of Hearth in the cluster and on the nodes.
func (w *world) untouched(ctx context.Context, f *facts) error {
	kinds, err := w.kubectl("api-resources", "-o", "name")
	if err != nil {
		return err
	}
	if strings.Contains(kinds, "hearth.run") {
		return fmt.Errorf("the CRDs are left: %s", kinds)
	}
	for _, kind := range []string{"namespaces", "clusterroles", "clusterrolebindings", "priorityclasses", "validatingwebhookconfigurations"} {
		out, err := w.kubectl("get", kind, "-o", "name")
		if err != nil {
			return err
		}
		if strings.Contains(out, "hearth") {
			return fmt.Errorf("%s are left: %s", kind, out)
		}
	}
	left := 0
	for _, n := range w.cluster.Nodes() {
		if err := eventually(ctx, 20*time.Second, func() error {
			inv, err := w.inventory(n)
			if err == nil && inv.Count() > 0 {
				err = fmt.Errorf("left on %s: %v", n, inv)
			}
			return err
		}); err != nil {
			return err
		}
	}
	f.add("left", left)
	return nil
}
