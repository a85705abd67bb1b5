package fleet

import (
	"context"
	"fmt"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// A controller that has just started knows only what is stored. What is ephemeral
// it learns from the nodes, which report within moments. Until then it must not say
// of anything that it is not there, or make it again.

// whileYoung waits, shortly after a start, until what nodes report makes known true.
func (f *Fleet) whileYoung(ctx context.Context, known func() (bool, error)) error {
	for {
		f.mu.Lock()
		wait, seen := f.cfg.AdoptWait-time.Since(f.started), f.changed
		f.mu.Unlock()
		if ok, err := known(); ok || err != nil || wait <= 0 {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-seen:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// awaitAdoption waits while the call may have made something that only a node
// knows of.
func (c *call) awaitAdoption(ctx context.Context, class string) error {
	return c.f.whileYoung(ctx, func() (bool, error) {
		if err := c.look(); err != nil {
			return false, fmt.Errorf("%w: the idempotency key was used for another request; take a new one", err)
		}
		return c.prior != nil || len(c.made) > 0 || c.f.knownDurable(class), nil
	})
}

// awaitRecord waits while the environment may be one that only a node knows of.
func (f *Fleet) awaitRecord(ctx context.Context, id env.ID) error {
	return f.whileYoung(ctx, func() (bool, error) { return f.record(id) != nil, nil })
}

// knownDurable reports that some node has the class and none says that it is
// ephemeral.
func (f *Fleet) knownDurable(class string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := false
	for _, n := range f.nodes {
		if ephemeral, ok := n.ephemeral[class]; ok {
			if ephemeral {
				return false
			}
			known = true
		}
	}
	return known
}

// ephemeralOf are the classes of a node's report; true for the ephemeral ones.
func ephemeralOf(pools []*hearthv1.Pool) map[string]bool {
	out := make(map[string]bool, len(pools))
	for _, p := range pools {
		out[p.GetClass()] = p.GetEphemeral()
	}
	return out
}

// isEphemeral reports whether node says that the class is.
func (f *Fleet) isEphemeral(node, class string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[node]
	return n != nil && n.ephemeral[class]
}
