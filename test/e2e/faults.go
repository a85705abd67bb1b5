package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/test/stage"
)

func (w *world) podsOf(ctx context.Context, namespace, app string) ([]corev1.Pod, error) {
	list, err := w.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + app})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// leader is the controller's pod that leads, by its label.
func (w *world) leader(ctx context.Context) (*corev1.Pod, error) {
	list, err := w.kube.CoreV1().Pods(systemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "hearth.run/leader=true"})
	if err != nil {
		return nil, err
	}
	var pods []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	if len(pods) != 1 {
		return nil, fmt.Errorf("%d pods lead", len(pods))
	}
	return &pods[0], nil
}

// killController ends the leader's process with SIGKILL, on its node.
func (w *world) killController(ctx context.Context) (string, error) {
	pod, err := w.leader(ctx)
	if err != nil {
		return "", err
	}
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	_, err = output(w.cluster.In(pod.Spec.NodeName, "ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", id))
	return pod.Name, err
}

// controllerKill ends the leader in the middle of claims. Every claim is repeated
// with its key until it is answered: then there are exactly as many environments
// as claims.
func (w *world) controllerKill(ctx context.Context) (f facts, err error) {
	const claims = 12
	before, err := w.list(w.ctl())
	if err != nil {
		return f, err
	}
	killed := make(chan error, 1)
	begun := time.Now()
	var mu sync.Mutex
	var got []stage.Claimed
	var faults []error
	var work sync.WaitGroup
	for i := range claims {
		work.Go(func() {
			time.Sleep(time.Duration(i) * 15 * time.Millisecond)
			c, err := w.claimUntil(ctx, fmt.Sprintf("kill-%d-%d", begun.UnixNano(), i))
			mu.Lock()
			defer mu.Unlock()
			got, faults = append(got, c), append(faults, err)
		})
	}
	go func() {
		time.Sleep(60 * time.Millisecond)
		_, err := w.killController(ctx)
		killed <- err
	}()
	work.Wait()
	if err := errors.Join(append(faults, <-killed)...); err != nil {
		return f, err
	}
	f.ms("all_answered_ms", time.Since(begun))
	ids := map[string]bool{}
	for _, c := range got {
		ids[c.ID()] = true
		if out, err := w.ctl().Sh(c, "echo alive"); err != nil || out != "alive\n" {
			return f, fmt.Errorf("environment %s answers %q: %v", c.ID(), out, err)
		}
	}
	f.add("claims", claims)
	f.add("environments", len(ids))
	if len(ids) != claims {
		return f, fmt.Errorf("%d claims were answered with %d environments", claims, len(ids))
	}
	// None doubled: neither the controller nor a node has more.
	if err := eventually(ctx, 20*time.Second, func() error {
		after, err := w.list(w.ctl())
		if err == nil && len(after) != len(before)+claims {
			err = fmt.Errorf("%d environments are listed, %d before and %d claimed", len(after), len(before), claims)
		}
		return err
	}); err != nil {
		return f, err
	}
	onNodes, err := w.onNodes(ctx)
	if err != nil {
		return f, err
	}
	f.add("on_nodes", len(onNodes))
	if len(onNodes) != len(before)+claims {
		return f, fmt.Errorf("the nodes have %d environments, %d before and %d claimed", len(onNodes), len(before), claims)
	}
	return f, w.releaseAll(w.ctl(), got...)
}

// claimUntil repeats a claim with one key until it is answered.
func (w *world) claimUntil(ctx context.Context, key string) (c stage.Claimed, err error) {
	err = eventually(ctx, 90*time.Second, func() (err error) {
		c, err = w.claim(w.ctl(), class, "--idempotency-key", key)
		return err
	})
	return c, err
}

// list is what the API lists for a caller: environments that are not final.
func (w *world) list(ctl stage.Hearthctl) (live []string, err error) {
	out, err := ctl.Run("list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var all struct{ Environments []struct{ ID, Phase string } }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("hearthctl list: %w: %.200s", err, out)
	}
	for _, e := range all.Environments {
		if !strings.Contains(strings.ToLower(e.Phase), "released") && !strings.Contains(strings.ToLower(e.Phase), "failed") {
			live = append(live, e.ID)
		}
	}
	return live, nil
}

// onNodes is what the agents themselves have.
func (w *world) onNodes(ctx context.Context) (ids []string, err error) {
	for _, n := range w.cluster.Nodes() {
		got, err := w.onNode(ctx, n)
		if err != nil {
			return nil, err
		}
		ids = append(ids, got...)
	}
	return ids, nil
}

// apiDown stops the API server for a while.
func (w *world) apiDown(ctx context.Context) (f facts, err error) {
	l, err := w.load(ctx, class, 2)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, l.end()) }()
	// The access review of these callers is warm: an ephemeral claim was answered.
	warm, err := w.claim(w.ctl(), fleeting)
	if err != nil {
		return f, err
	}
	if err := w.releaseAll(w.ctl(), warm); err != nil {
		return f, err
	}
	begun := time.Now()
	if err := w.cluster.StopComponent("apiserver"); err != nil {
		return f, err
	}
	restarted := false
	defer func() {
		if !restarted {
			err = errors.Join(err, w.cluster.StartComponent(ctx, "apiserver"))
		}
	}()
	refusals, ephemeral, err := w.whileDown(ctx, begun, &f)
	if err != nil {
		return f, err
	}
	f.ms("down_ms", time.Since(begun))
	f.add("ephemeral_claims", ephemeral)
	f.add("durable_refused", refusals)
	restarted = true
	if err := w.cluster.StartComponent(ctx, "apiserver"); err != nil {
		return f, err
	}
	back := time.Now()
	// The controller's way there is a service, which kube-proxy brings back when it
	// has heard of the API server again: by the back-off of client-go's reflectors,
	// 30 to 60 seconds.
	if err := eventually(ctx, 120*time.Second, func() error {
		c, err := w.claim(w.ctl(), class)
		if err != nil {
			return err
		}
		return w.releaseAll(w.ctl(), c)
	}); err != nil {
		return f, fmt.Errorf("durable claims after the API server is back: %w", err)
	}
	f.ms("durable_again_ms", time.Since(back))
	if err := w.followed(ctx, &f); err != nil {
		return f, err
	}
	if err := w.proxied(ctx); err != nil {
		return f, err
	}
	f.ms("services_again_ms", time.Since(back))
	if err := l.check(ctx, &f); err != nil {
		return f, err
	}
	if l.fails.Load() > 0 {
		return f, fmt.Errorf("%d of %d commands failed while the API server was down", l.fails.Load(), l.execs.Load())
	}
	return f, w.poolsFull(ctx, 60*time.Second)
}

// followed checks that the controller follows what is written in Kubernetes again,
// once it can write itself.
func (w *world) followed(ctx context.Context, f *facts) (err error) {
	node, err := w.second()
	if err != nil {
		return err
	}
	begun := time.Now()
	if _, err := w.kubectl("cordon", node); err != nil {
		return err
	}
	defer func() {
		_, again := w.kubectl("uncordon", node)
		err = errors.Join(err, again)
	}()
	if err := w.noClaimsOn(ctx, node); err != nil {
		return fmt.Errorf("cordoned after the API server is back: %w", err)
	}
	f.ms("cordon_again_ms", time.Since(begun))
	return nil
}

// markerManifests are a service that every node's kube-proxy must hear of, and where
// it leads.
const markerManifests = `
apiVersion: v1
kind: Service
metadata: {name: marker, namespace: ` + team + `}
spec:
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: marker, namespace: ` + team + `, labels: {kubernetes.io/service-name: marker}}
addressType: IPv4
endpoints: [{addresses: [%s]}]
ports: [{port: 6443, protocol: TCP}]
`

// proxied waits until every node's kube-proxy follows services and endpoints again:
// one that does not sends callers to a leader that has gone, which is no fault of
// the journeys that come next.
func (w *world) proxied(ctx context.Context) (err error) {
	if err := w.apply(fmt.Sprintf(markerManifests, w.cluster.IP(w.cluster.Nodes()[0]))); err != nil {
		return err
	}
	defer func() {
		_, gone := w.kubectl("-n", team, "delete", "service/marker", "endpointslice/marker")
		err = errors.Join(err, gone)
	}()
	ip, err := w.kubectl("-n", team, "get", "service", "marker", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	addr := ip + ":80"
	for _, node := range w.cluster.Nodes() {
		if err := eventually(ctx, 120*time.Second, func() error {
			out, err := output(w.cluster.In(node, w.cluster.Probe(), "dial", addr))
			if err == nil && !slices.Contains(opened(out), addr) {
				err = fmt.Errorf("a new service does not answer node %s: %s", node, strings.TrimSpace(out))
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// downFor is how long the API server is away.
const downFor = time.Minute

// whileDown claims of both kinds for as long as the API server is away.
func (w *world) whileDown(ctx context.Context, begun time.Time, f *facts) (refusals, ephemeral int, err error) {
	for time.Since(begun) < downFor {
		c, err := w.claim(w.ctl(), fleeting)
		if err != nil {
			return 0, 0, fmt.Errorf("ephemeral claim %s after the API server stopped: %w", time.Since(begun).Round(time.Millisecond), err)
		}
		ephemeral++
		if out, err := w.ctl().Sh(c, "echo alive"); err != nil || out != "alive\n" {
			return 0, 0, fmt.Errorf("ephemeral environment answers %q: %v", out, err)
		}
		if err := w.releaseAll(w.ctl(), c); err != nil {
			return 0, 0, err
		}
		if refusals == 0 {
			_, stderr, code := w.ctl().Try("claim", "--class", class)
			if code == 0 {
				return 0, 0, errors.New("a durable claim was answered without the API server")
			}
			if code != 4 {
				return 0, 0, fmt.Errorf("a durable claim was refused with exit %d, not 4: %s", code, stderr)
			}
			refusals++
		}
		select {
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
	return refusals, ephemeral, nil
}
