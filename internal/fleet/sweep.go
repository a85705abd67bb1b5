package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func isNotFound(err error) bool { return errors.Is(err, env.ErrNotFound) }

// Run watches for silent nodes, releases what is stale, moves what lives on nodes
// that are drained, gives nodes their classes, asks about what is missing and
// forgets what is old, until ctx ends. Calls to nodes and to the store have
// goroutines of their own, for which no round waits: a slow node delays neither
// the others nor the next round.
func (f *Fleet) Run(ctx context.Context) error {
	var calls sync.WaitGroup
	defer f.awaitAsides()
	defer calls.Wait()
	calls.Go(func() { f.every(ctx, f.forget) })
	calls.Go(func() { f.every(ctx, func() { f.loseFenced(time.Now()) }) })
	tick := time.NewTicker(f.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
			f.clean(ctx, &calls)
		case <-tick.C:
			f.silence(time.Now())
			f.tellDrained()
			f.poke()
		}
	}
}

// every calls fn each heartbeat, until ctx ends.
func (f *Fleet) every(ctx context.Context, fn func()) {
	tick := time.NewTicker(f.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			fn()
		}
	}
}

// silence takes nodes out of placement that have not been heard of, tells of them
// once, and counts.
func (f *Fleet) silence(now time.Time) {
	f.mu.Lock()
	var silent []Event
	for _, n := range f.nodes {
		quiet := now.Sub(n.seen)
		if quiet <= f.cfg.LostAfter {
			continue
		}
		if n.session != 0 {
			f.takeDown(n, fmt.Sprintf("silent for %s", quiet.Round(time.Second)))
		}
		if !n.silent {
			n.silent = true
			silent = append(silent, Event{Kind: NodeSilent, Node: n.name, Message: fmt.Sprintf("no report for %s", quiet.Round(time.Second))})
		}
	}
	f.forgetNodes(now)
	f.count()
	f.mu.Unlock()
	for _, e := range silent {
		f.log.Warn("node is silent", "node", e.Node, "reason", e.Message)
		f.tell(e)
	}
}

// forgetNodes forgets nodes that are gone for long and of which nothing is stored.
// The caller holds mu.
func (f *Fleet) forgetNodes(now time.Time) {
	var stale map[string]bool
	for name, n := range f.nodes {
		if n.session != 0 || now.Sub(n.seen) <= f.cfg.KeepAnswers || n.asking || n.push.running || len(f.census.byNode[name]) > 0 {
			continue
		}
		if stale == nil {
			stale = f.staleNodes()
		}
		if !stale[name] {
			delete(f.nodes, name)
			f.index.Remove(name)
		}
	}
}

// staleNodes are those that something is to be released on, or moves to. The
// caller holds mu.
func (f *Fleet) staleNodes() map[string]bool {
	out := map[string]bool{}
	for id := range f.pending {
		for _, p := range f.records[id].Stale {
			out[p.Node] = true
		}
	}
	for id := range f.census.moving {
		out[f.records[id].Next.Node] = true
	}
	return out
}

// count sets the gauges. The caller holds mu.
func (f *Fleet) count() {
	placeable, states := 0, map[string]int{}
	for _, n := range f.nodes {
		w := f.wishes[n.name]
		switch {
		case n.down != "":
			states["silent"]++
		case w.Drain:
			states["draining"]++
		case w.Cordoned:
			states["cordoned"]++
		default:
			states["ready"]++
			placeable++
		}
	}
	f.metrics.nodes.Set(float64(placeable))
	f.metrics.counted(states, f.census.byPhase)
}

// clean begins what there is to ask of the nodes, and waits for none of it.
func (f *Fleet) clean(ctx context.Context, calls *sync.WaitGroup) {
	now := time.Now()
	for _, it := range f.takeStale(now) {
		calls.Go(func() { f.releaseStale(ctx, it) })
	}
	for id, m := range f.takeMoves(now) {
		calls.Go(func() { f.move(ctx, id, m) })
	}
	for _, p := range f.takePushes(now) {
		calls.Go(func() { f.give(ctx, p) })
	}
	for node, ids := range f.takeMissing() {
		calls.Go(func() {
			defer f.asked(node)
			if err := f.askMissing(ctx, node, ids); err != nil && ctx.Err() == nil {
				f.log.Warn("node not asked for missing environments", "node", node, "error", err)
			}
		})
	}
}

// takeMissing lists, by node, what is to be asked about, and marks those nodes
// as being asked.
func (f *Fleet) takeMissing() map[string][]env.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string][]env.ID{}
	for _, n := range f.nodes {
		if n.session == 0 || n.asking || len(n.missing)+len(n.fenced) == 0 {
			continue
		}
		n.asking = true
		for id := range n.missing {
			out[n.name] = append(out[n.name], id)
		}
		for id := range n.fenced {
			if _, twice := n.missing[id]; !twice {
				out[n.name] = append(out[n.name], id)
			}
		}
	}
	return out
}

func (f *Fleet) asked(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[node].asking = false
}

// askMissing fails what the node says again that it does not have, and observes
// what it has.
func (f *Fleet) askMissing(ctx context.Context, node string, ids []env.ID) error {
	client := f.client(node)
	for _, id := range ids {
		e, err := f.confirm(ctx, client, node, id)
		if err != nil {
			return fmt.Errorf("ask for %s: %w", id, err)
		}
		f.mu.Lock()
		n := f.nodes[node]
		delete(n.missing, id)
		if e.GetPhase() != hearthv1.Phase_PHASE_FENCED {
			delete(n.fenced, id)
		}
		f.mu.Unlock()
	}
	return nil
}

type getter interface {
	Get(context.Context, *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error)
}

func (f *Fleet) confirm(ctx context.Context, client getter, node string, id env.ID) (*hearthv1.Environment, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.CallTimeout)
	defer cancel()
	resp, err := client.Get(ctx, &hearthv1.NodeGetRequest{Environment: string(id)})
	if err == nil {
		if r := f.record(id); r != nil && r.Environment.GetNode() == node {
			f.observed(r, resp.GetEnvironment())
		}
		return resp.GetEnvironment(), nil
	}
	if !isNotFound(err) {
		return nil, err
	}
	if r := f.record(id); r != nil && r.Environment.GetNode() == node && r.mustHaveExpired(time.Now()) {
		f.timeCame(r, expiredMessage)
		return nil, nil
	}
	message := fmt.Sprintf("node %s no longer has it: it ended there, or the node was restarted or reinstalled", node)
	lost := false
	r, err := f.note("lost", id, func(r *Record) (bool, error) {
		lost = !r.final() && !r.moving() && r.Environment.GetNode() == node
		if lost {
			r.Environment.Phase, r.Environment.Message, r.Environment.Reason = hearthv1.Phase_PHASE_FAILED, message, ""
		}
		return lost, nil
	})
	if isNotFound(err) {
		return nil, nil
	}
	if err == nil && lost {
		f.happened(Failed, r, message)
	}
	return nil, err
}
