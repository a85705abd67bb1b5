package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func compareIDs(a, b env.ID) int { return strings.Compare(string(a), string(b)) }

func isNotFound(err error) bool { return errors.Is(err, env.ErrNotFound) }

// Run watches for silent nodes, releases what is stale, asks about what is
// missing and forgets what is old, until ctx ends. Calls to nodes have a
// goroutine of their own, so that a slow node does not hide a silent one.
func (f *Fleet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-f.wake:
				f.clean(ctx)
			}
		}
	})
	defer wg.Wait()
	tick := time.NewTicker(f.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
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

// forget deletes what has been kept long enough, and gives up claims that were
// interrupted and never repeated.
func (f *Fleet) forget() {
	now := time.Now()
	c, abandoned := f.expired(now)
	if len(c.DeleteAnswers)+len(c.DeleteRecords)+len(c.DeleteJoinTokens) > 0 {
		if err := f.put(c); err != nil {
			f.log.Warn("old state not deleted", "error", err)
		}
	}
	for _, id := range abandoned {
		_, err := f.update("claim-abandon", id, nil, func(r *Record) (bool, error) {
			if r.Environment.GetPhase() != hearthv1.Phase_PHASE_CLAIMING || now.Sub(r.Changed) < f.cfg.AbandonAfter {
				return false, nil
			}
			r.end(hearthv1.Phase_PHASE_FAILED, "the claim was interrupted and never repeated")
			return true, nil
		})
		if err != nil && !isNotFound(err) {
			f.log.Warn("claim not given up", "environment", id, "error", err)
		}
	}
}

func (f *Fleet) expired(now time.Time) (c Change, abandoned []env.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.Op = "forget"
	underWay := map[env.ID]bool{}
	for k, a := range f.answers {
		if f.busy[k] != nil {
			for _, id := range a.Environments {
				underWay[id] = true
			}
		} else if a.Expires.Before(now) {
			c.DeleteAnswers = append(c.DeleteAnswers, k)
		}
	}
	for _, t := range f.joins {
		if t.Expires.Before(now) {
			c.DeleteJoinTokens = append(c.DeleteJoinTokens, t)
		}
	}
	for id, r := range f.records {
		switch {
		case underWay[id]:
		case r.final() && len(r.Stale) == 0 && !r.Snapshots && now.Sub(r.Changed) > f.cfg.KeepAnswers:
			c.DeleteRecords = append(c.DeleteRecords, id)
		case r.Environment.GetPhase() == hearthv1.Phase_PHASE_CLAIMING && now.Sub(r.Changed) > f.cfg.AbandonAfter:
			abandoned = append(abandoned, id)
		}
	}
	return c, abandoned
}

// clean works on every node at once, so that a slow one delays none but itself
// and the next round.
func (f *Fleet) clean(ctx context.Context) {
	stale, missing := f.staleOn(), f.missingOn()
	nodes := map[string]struct{}{}
	for n := range stale {
		nodes[n] = struct{}{}
	}
	for n := range missing {
		nodes[n] = struct{}{}
	}
	var wg sync.WaitGroup
	for n := range nodes {
		wg.Go(func() {
			if err := errors.Join(f.releaseStale(ctx, n, stale[n]), f.askMissing(ctx, n, missing[n])); err != nil && ctx.Err() == nil {
				f.log.Warn("node not reconciled", "node", n, "error", err)
			}
		})
	}
	wg.Wait()
}

// releaseStale stops at the first fault: the next round tries again.
func (f *Fleet) releaseStale(ctx context.Context, node string, items []staleItem) error {
	client := f.client(node)
	for _, it := range items {
		resp, err := f.releaseOne(ctx, client, it)
		// Fenced: the node has a higher generation, so this one is gone.
		if err != nil && !isNotFound(err) && !errors.Is(err, env.ErrFenced) {
			return fmt.Errorf("release generation %d of %s: %w", it.at.Generation, it.id, err)
		}
		if _, err := f.update("stale-released", it.id, nil, func(r *Record) (bool, error) {
			r.dropStale(it.at)
			r.Snapshots = r.Snapshots || resp.GetSnapshot() != nil
			return true, nil
		}); err != nil && !isNotFound(err) {
			return err
		}
		f.log.Info("stale environment released", "environment", it.id, "node", node, "generation", it.at.Generation)
	}
	return nil
}

type releaser interface {
	Release(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error)
}

func (f *Fleet) releaseOne(ctx context.Context, client releaser, it staleItem) (*hearthv1.NodeReleaseResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.CallTimeout)
	defer cancel()
	return client.Release(ctx, &hearthv1.NodeReleaseRequest{
		IdempotencyKey: fmt.Sprintf("%s/%d/stale", it.id, it.at.Generation),
		Environment:    string(it.id), Generation: uint64(it.at.Generation),
	})
}

func (f *Fleet) missingOn() map[string][]env.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string][]env.ID{}
	for _, n := range f.nodes {
		if n.session == 0 {
			continue
		}
		for id := range n.missing {
			out[n.name] = append(out[n.name], id)
		}
	}
	return out
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
