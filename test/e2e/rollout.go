package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// steadyClass has many small environments and an old slot or two.
const steadyClass = `
apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata: {name: steady}
spec:
  image: hearth.local/busybox:1
  resources: {cpu: 250m, memory: 48Mi, pids: 128}
  warm: {slots: 2}
`

// The most that a rollout may take away.
const (
	rolledEnvironments = 20
	mostDNSGap         = 200 // milliseconds
	mostClaimGap       = 2 * time.Second
)

// rollout replaces every agent under load.
func (w *world) rollout(ctx context.Context) (f facts, err error) {
	if err := w.apply(steadyClass); err != nil {
		return f, err
	}
	if err := w.poolsFull(ctx, 60*time.Second); err != nil {
		return f, err
	}
	l, err := w.load(ctx, "steady", rolledEnvironments)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, l.end()) }()
	gap := w.claimGap(ctx, "steady")
	begun := time.Now()
	if _, err := w.kubectl("-n", nodesNamespace, "rollout", "restart", "daemonset/"+agents); err != nil {
		return f, err
	}
	if _, err := w.kubectl("-n", nodesNamespace, "rollout", "status", "daemonset/"+agents, "--timeout=180s"); err != nil {
		return f, err
	}
	f.ms("rollout_ms", time.Since(begun))
	// The old agents end after the new ones are ready.
	if err := w.oneAgentANode(ctx); err != nil {
		return f, err
	}
	longest, claims, err := gap()
	if err != nil {
		return f, err
	}
	f.ms("claim_gap_ms", longest)
	f.add("claims", claims)
	if err := l.check(ctx, &f); err != nil {
		return f, err
	}
	for _, s := range l.nodes {
		if s.names > mostDNSGap+s.net {
			return f, fmt.Errorf("a node answered no names for %d ms, at most %d longer than its network: %v", s.names, mostDNSGap, f)
		}
	}
	if longest > mostClaimGap {
		return f, fmt.Errorf("no claim was answered for %s, at most %s", longest, mostClaimGap)
	}
	return f, nil
}

// claimGap claims and releases all the time, until the function that it returns
// is called: that gives the longest time without a claim that was answered.
func (w *world) claimGap(ctx context.Context, class string) func() (longest time.Duration, claims int, err error) {
	type result struct {
		longest time.Duration
		claims  int
		err     error
	}
	stop, done := make(chan struct{}), make(chan result, 1)
	go func() {
		var r result
		last := time.Now()
		for {
			select {
			case <-stop:
				done <- r
				return
			case <-ctx.Done():
				done <- r
				return
			case <-time.After(50 * time.Millisecond):
			}
			c, err := w.claim(w.ctl(), class)
			if err != nil {
				r.err = err // the last one explains a long gap
				continue
			}
			r.claims++
			r.longest = max(r.longest, time.Since(last))
			_ = w.releaseAll(w.ctl(), c) // a release that waits for its node is no gap
			last = time.Now()
		}
	}()
	return func() (time.Duration, int, error) {
		close(stop)
		r := <-done
		if r.claims == 0 {
			return 0, 0, fmt.Errorf("no claim was answered: %w", r.err)
		}
		return r.longest, r.claims, nil
	}
}

// oneAgentANode waits until the agents that were replaced have gone.
func (w *world) oneAgentANode(ctx context.Context) error {
	return eventually(ctx, 90*time.Second, func() error {
		pods, err := w.podsOf(ctx, nodesNamespace, agents)
		if err == nil && len(pods) != len(w.cluster.Nodes()) {
			err = fmt.Errorf("%d agents for %d nodes", len(pods), len(w.cluster.Nodes()))
		}
		return err
	})
}
