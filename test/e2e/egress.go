package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"hearth/test/cluster"
)

// victims are what an environment must not reach: a pod with a service, by its
// cluster address and by an external one that looks public.
const victims = `
apiVersion: v1
kind: Pod
metadata: {name: victim, namespace: team-b, labels: {app: victim}}
spec:
  nodeName: %[1]s
  containers:
  - name: web
    image: hearth.local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "mkdir -p /srv && echo victim > /srv/index.html && exec httpd -f -p 8080 -h /srv"]
---
apiVersion: v1
kind: Service
metadata: {name: victim, namespace: team-b}
spec:
  selector: {app: victim}
  ports: [{port: 80, targetPort: 8080}]
  externalIPs: [%[2]s]
`

// externalIP is public by its look, and no host of the internet has it.
const externalIP = "93.184.216.99"

// target is a TCP address that an environment may or may not reach.
type target struct {
	name, addr string
	reason     string // of the drops that refusing it counts; "" if it is allowed
}

func (w *world) egress(ctx context.Context) (f facts, err error) {
	a, err := w.claim(w.ctl(), class)
	if err != nil {
		return f, err
	}
	b, err := w.claim(w.tenants[otherTeam].ctl, class)
	if err != nil {
		return f, err
	}
	defer func() { _ = w.releaseAll(w.tenants[otherTeam].ctl, b) }()
	node, _, err := w.where(w.ctl(), a.ID())
	if err != nil {
		return f, err
	}
	if err := w.installProbe(w.ctl(), a.ID(), "/probe"); err != nil {
		return f, err
	}
	list, err := w.targets(ctx, node, b.Environment.Address)
	if err != nil {
		return f, err
	}
	if got, err := b.Get(8000, "/index.html"); err != nil || got != "ready\n" {
		return f, fmt.Errorf("the neighbour's own service answers %q: %v", got, err)
	}
	if err := w.positiveControl(ctx, node, list); err != nil {
		return f, fmt.Errorf("positive control: %w", err)
	}
	f.add("controls", len(list))
	agent, err := w.agentOf(node)
	if err != nil {
		return f, err
	}
	defer agent.close()
	for _, t := range list {
		before, err := agent.drops(ctx, a.ID())
		if err != nil {
			return f, err
		}
		open, err := w.dial(w.ctl(), a.ID(), t.addr)
		if err != nil {
			return f, err
		}
		after, err := agent.drops(ctx, a.ID())
		switch {
		case err != nil:
			return f, err
		case t.reason == "" && len(open) == 0:
			return f, fmt.Errorf("%s (%s) should be reached: %v", t.name, t.addr, after)
		case t.reason != "" && len(open) > 0:
			return f, fmt.Errorf("%s (%s) was reached", t.name, t.addr)
		case t.reason != "" && t.reason != "nat" && after[t.reason] == before[t.reason]:
			return f, fmt.Errorf("%s (%s) was refused, but not counted as %s: %v", t.name, t.addr, t.reason, after)
		}
		f.add(t.name, map[bool]string{true: "reached", false: "refused(" + t.reason + ")"}[t.reason == ""])
	}
	return f, w.releaseAll(w.ctl(), a)
}

func (w *world) targets(ctx context.Context, node, neighbour string) ([]target, error) {
	if err := w.apply(fmt.Sprintf(victims, node, externalIP)); err != nil {
		return nil, err
	}
	if _, err := w.kubectl("-n", otherTeam, "wait", "--for=condition=Ready", "pod/victim", "--timeout=30s"); err != nil {
		return nil, err
	}
	pod, err := w.kubectl("-n", otherTeam, "get", "pod", "victim", "-o", "jsonpath={.status.podIP}")
	if err != nil {
		return nil, err
	}
	svc, err := w.kubectl("-n", otherTeam, "get", "service", "victim", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return nil, err
	}
	api, err := w.kubectl("-n", "default", "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return nil, err
	}
	ip := w.cluster.IP(node)
	list := []target{
		{"public", fmt.Sprintf("%s:%d", cluster.PublicAddresses[1], cluster.HTTPPort), ""},
		{"api-server", w.cluster.IP(w.cluster.Nodes()[0]) + ":6443", "node"},
		{"api-service", api + ":443", "special"},
		{"pod", pod + ":8080", "special"},
		{"service", svc + ":80", "special"},
		{"external-ip", externalIP + ":80", "nat"},
		{"kubelet", ip + ":10250", "node"},
		{"agent", ip + ":7401", "node"},
		{"neighbour", neighbour + ":8000", "neighbour"},
	}
	if node != w.cluster.Nodes()[0] {
		list[1].reason = "special" // another machine's address, in a range that is not public
	}
	for i, m := range cluster.MetadataAddresses {
		list = append(list, target{fmt.Sprintf("metadata-%d", i+1), fmt.Sprintf("%s:%d", m, cluster.HTTPPort), "metadata"})
	}
	for i, m := range cluster.PrivateAddresses {
		list = append(list, target{fmt.Sprintf("private-%d", i+1), fmt.Sprintf("%s:%d", m, cluster.HTTPPort), "private"})
	}
	return list, nil
}

// positiveControl shows that each target answers whoever may reach it: the node
// itself, on whose network the environment is.
func (w *world) positiveControl(ctx context.Context, node string, list []target) error {
	var addrs []string
	for _, t := range list {
		addrs = append(addrs, t.addr)
	}
	return eventually(ctx, 15*time.Second, func() error {
		out, err := output(w.cluster.In(node, append([]string{w.cluster.Probe(), "dial"}, addrs...)...))
		if err != nil {
			return err
		}
		open := opened(out)
		for _, t := range list {
			// The neighbour's island refuses the node too: what comes in must
			// belong to a flow of its own. Its control was the port proxy.
			if t.name != "neighbour" && !slices.Contains(open, t.addr) {
				return fmt.Errorf("%s (%s) does not answer node %s: %s", t.name, t.addr, node, strings.TrimSpace(out))
			}
		}
		return nil
	})
}
