package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// Bounds of the releases of stale placements that are under way at once. Each
// may take a snapshot, for minutes.
const (
	endingPerNode = 8
	endingAtOnce  = 512
	maxEndingWait = time.Minute // between two tries of the same
)

// staleItem is a placement that is to be released.
type staleItem struct {
	id env.ID
	at Placement
}

// ending is how far the release of a staleItem is.
type ending struct {
	calls int           // under way: the sweep's and callers'
	wait  time.Duration // after the last failure
	after time.Time     // the next try
}

// holdEnding notes a release call that is under way, so that the sweep leaves
// the item alone. Done ends it: a nil error, that the placement is gone.
func (f *Fleet) holdEnding(it staleItem) (done func(error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.ending[it]
	if e == nil {
		e = &ending{}
		f.ending[it] = e
	}
	e.calls++
	return func(err error) { f.endingDone(it, e, err) }
}

func (f *Fleet) endingDone(it staleItem, e *ending, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.calls--
	if err != nil {
		e.wait = min(max(2*e.wait, f.cfg.Heartbeat), maxEndingWait)
		e.after = time.Now().Add(e.wait)
	} else if e.calls == 0 && f.ending[it] == e {
		delete(f.ending, it)
	}
}

// takeStale lists the placements to release now, on nodes that report, and
// notes them as under way.
func (f *Fleet) takeStale(now time.Time) []staleItem {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropEnded()
	total, perNode := 0, map[string]int{}
	for it, e := range f.ending {
		if e.calls > 0 {
			total++
			perNode[it.at.Node]++
		}
	}
	var out []staleItem
	for id := range f.pending {
		if m := f.moves[id]; m != nil && m.running {
			continue // it may still be asking for what is stale now
		}
		for _, p := range f.records[id].Stale {
			it := staleItem{id, p}
			n, e := f.nodes[p.Node], f.ending[it]
			if n == nil || n.session == 0 || total >= endingAtOnce || perNode[p.Node] >= endingPerNode {
				continue
			}
			if e == nil {
				e = &ending{}
				f.ending[it] = e
			}
			if e.calls > 0 || now.Before(e.after) {
				continue
			}
			e.calls++
			total++
			perNode[p.Node]++
			out = append(out, it)
		}
	}
	return out
}

// dropEnded forgets the tries of placements that are stale no more. The caller
// holds mu.
func (f *Fleet) dropEnded() {
	for it, e := range f.ending {
		r := f.records[it.id]
		if e.calls == 0 && (r == nil || !slices.Contains(r.Stale, it.at)) {
			delete(f.ending, it)
		}
	}
}

// retryEnding lets what failed on a node be tried again at once: the node is
// back. The caller holds mu.
func (f *Fleet) retryEnding(node string) {
	for it, e := range f.ending {
		if it.at.Node == node {
			e.wait, e.after = 0, time.Time{}
		}
	}
}

// releaseStale releases what takeStale gave. After a failure a later round
// tries again.
func (f *Fleet) releaseStale(ctx context.Context, it staleItem) {
	err := f.releaseOne(ctx, it)
	f.mu.Lock()
	e := f.ending[it]
	f.mu.Unlock()
	f.endingDone(it, e, err)
	switch {
	case err == nil:
		f.log.Info("stale environment released", "environment", it.id, "node", it.at.Node, "generation", it.at.Generation)
		f.poke() // there may be more than could be begun at once
	case ctx.Err() == nil:
		f.log.Warn("stale environment not released", "environment", it.id, "node", it.at.Node, "generation", it.at.Generation, "error", err)
	}
}

func (f *Fleet) releaseOne(ctx context.Context, it staleItem) error {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.SnapshotTimeout)
	defer cancel()
	_, err := f.client(it.at.Node).Release(ctx, releaseRequest(it.id, it.at.Generation, false))
	if err != nil && !isGone(err) {
		return err
	}
	_, err = f.update("stale-released", it.id, func(r *Record) (bool, error) {
		before := len(r.Stale)
		r.dropStale(it.at)
		return len(r.Stale) != before, nil
	})
	if isNotFound(err) {
		return nil
	}
	return err
}

// isGone reports whether a node's answer to a release says that neither the
// generation that was named nor an earlier one is there. A node that has
// nothing of the environment says not found. One that has a later generation
// says fenced: it holds one generation of an environment, so the named one is
// gone, and the later one is not what the release was for; its inventory shows
// it, and judge decides. One that has an earlier generation than was named
// releases it: what is stale there is that and everything before. A node that
// obeys a newer controller says nothing of the environment.
func isGone(err error) bool {
	return isNotFound(err) || (errors.Is(err, env.ErrFenced) && !errors.Is(err, env.ErrSuperseded))
}

// releaseRequest is the same for the caller's release and the sweep's of one
// generation, so that the node joins the second to the first. One with a
// snapshot is another request and has a key of its own.
func releaseRequest(id env.ID, g env.Generation, snapshot bool) *hearthv1.NodeReleaseRequest {
	key := fmt.Sprintf("%s/%d/release", id, g)
	if snapshot {
		key += "-with-snapshot"
	}
	return &hearthv1.NodeReleaseRequest{
		IdempotencyKey: key, Environment: string(id), Snapshot: snapshot, Generation: uint64(g),
	}
}
