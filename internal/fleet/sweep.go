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

// Run watches for silent nodes, releases what is stale, asks about what is
// missing and forgets what is old, until ctx ends. Calls to nodes have
// goroutines of their own, for which no round waits: a slow node delays neither
// the others nor the next round.
func (f *Fleet) Run(ctx context.Context) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	tick := time.NewTicker(f.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
			f.clean(ctx, &calls)
		case <-tick.C:
			f.silence()
			f.forget()
			f.poke()
		}
	}
}

// silence takes nodes out of placement that have not been heard of.
func (f *Fleet) silence() {
	f.mu.Lock()
	defer f.mu.Unlock()
	up := 0
	for _, n := range f.nodes {
		quiet := time.Since(n.seen)
		if n.session != 0 && quiet > f.cfg.LostAfter {
			f.unplaceable(n, fmt.Sprintf("silent for %s", quiet.Round(time.Second)))
		}
		if n.known.Unplaceable == "" {
			up++
		}
	}
	f.metrics.nodes.Set(float64(up))
}

// clean begins what there is to ask of the nodes, and waits for none of it.
func (f *Fleet) clean(ctx context.Context, calls *sync.WaitGroup) {
	for _, it := range f.takeStale(time.Now()) {
		calls.Go(func() { f.releaseStale(ctx, it) })
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
		if n.session == 0 || n.asking || len(n.missing) == 0 {
			continue
		}
		n.asking = true
		for id := range n.missing {
			out[n.name] = append(out[n.name], id)
		}
	}
	return out
}

func (f *Fleet) asked(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[node].asking = false
}

// askMissing fails what the node says again that it does not have.
func (f *Fleet) askMissing(ctx context.Context, node string, ids []env.ID) error {
	client := f.client(node)
	for _, id := range ids {
		err := f.confirm(ctx, client, node, id)
		if err != nil {
			return fmt.Errorf("ask for %s: %w", id, err)
		}
		f.mu.Lock()
		delete(f.nodes[node].missing, id)
		f.mu.Unlock()
	}
	return nil
}

type getter interface {
	Get(context.Context, *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error)
}

func (f *Fleet) confirm(ctx context.Context, client getter, node string, id env.ID) error {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.CallTimeout)
	defer cancel()
	_, err := client.Get(ctx, &hearthv1.NodeGetRequest{Environment: string(id)})
	if err == nil || !isNotFound(err) {
		return err
	}
	_, err = f.update("lost", id, nil, func(r *Record) (bool, error) {
		if r.final() || r.Environment.GetNode() != node {
			return false, nil
		}
		r.Environment.Phase = hearthv1.Phase_PHASE_FAILED
		r.Environment.Message = fmt.Sprintf("node %s no longer has it: it ended there, or the node was restarted or reinstalled", node)
		return true, nil
	})
	if isNotFound(err) {
		return nil
	}
	return err
}
