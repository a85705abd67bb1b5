package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// askedAtOnce bounds the nodes that are asked for a lineage at the same time.
const askedAtOnce = 32

// Snapshot takes one.
func (f *Fleet) Snapshot(ctx context.Context, p Principal, key, id string) (*hearthv1.Snapshot, error) {
	r, client, done, err := f.liveInUse(ctx, p, id)
	if err != nil {
		return nil, err
	}
	defer done()
	nkey, err := nodeKey(r.Environment.GetTenant(), "Snapshot", key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.SnapshotTimeout)
	defer cancel()
	resp, err := client.Snapshot(ctx, &hearthv1.NodeSnapshotRequest{IdempotencyKey: nkey, Environment: id})
	if err != nil {
		return nil, f.nodeError(r, err)
	}
	return resp.GetSnapshot(), nil
}

// ListSnapshots lists the environment's, released or not: its node's, or, if it is
// not known any more, those that a node keeps for the caller's tenant.
func (f *Fleet) ListSnapshots(ctx context.Context, p Principal, id string) ([]*hearthv1.Snapshot, error) {
	parsed, err := env.ParseID(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.CallTimeout)
	defer cancel()
	r := f.record(parsed)
	if r == nil {
		found, err := f.seek(ctx, p, parsed, "")
		return found.list, err
	}
	if !p.sees(r) {
		return nil, notFound(parsed)
	}
	client, err := f.reach(r)
	if err != nil {
		return nil, err
	}
	resp, err := client.ListSnapshots(ctx, &hearthv1.NodeListSnapshotsRequest{Environment: id})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", r.Environment.GetNode(), err)
	}
	return resp.GetSnapshots(), nil
}

// snapshotHome is the node that has the snapshot to restore, empty if none is
// asked for. Its lineage bears the name of the environment that began it: its
// record says where it is and whose, or else the node that keeps it.
func (f *Fleet) snapshotHome(ctx context.Context, spec *hearthv1.ClaimSpec) (string, error) {
	id := spec.GetSnapshot()
	if id == "" {
		return "", nil
	}
	lineage, _, ok := strings.Cut(id, "/")
	parsed, err := env.ParseID(lineage)
	if !ok || err != nil {
		return "", fmt.Errorf("%w: snapshot %.80q: it has the form <environment>/<number>", env.ErrInvalid, id)
	}
	p := Principal{Tenant: spec.GetTenant()}
	if r := f.record(parsed); r != nil {
		if !p.sees(r) {
			return "", fmt.Errorf("snapshot %.80q: %w", id, notFound(parsed))
		}
		return r.Environment.GetNode(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.CallTimeout)
	defer cancel()
	found, err := f.seek(ctx, p, parsed, id)
	if err != nil {
		return "", fmt.Errorf("snapshot %.80q: %w", id, err)
	}
	return found.node, nil
}

// kept is a lineage on a node.
type kept struct {
	node string
	list []*hearthv1.Snapshot
}

// seek asks all nodes for a lineage of the caller's, with the snapshot want if it
// is not empty. Of several that have it the one with the most snapshots has the
// newest. If some did not answer and none has it, that is env.ErrUnavailable.
// Shortly after a start it waits for nodes that have not reported yet.
func (f *Fleet) seek(ctx context.Context, p Principal, lineage env.ID, want string) (kept, error) {
	asked := map[string]bool{}
	var quiet []string
	for {
		f.mu.Lock()
		seen := f.changed
		f.mu.Unlock()
		found, silent := f.askFor(ctx, p, lineage, want, asked)
		if len(found.list) > 0 {
			return found, nil
		}
		if quiet = append(quiet, silent...); !f.waitForChange(ctx, seen) {
			break
		}
	}
	if len(quiet) > 0 {
		slices.Sort(quiet)
		return kept{}, fmt.Errorf("%w: no node that answered has snapshots of %s, and these did not answer: %.200s; try again",
			env.ErrUnavailable, lineage, strings.Join(quiet, ", "))
	}
	return kept{}, notFound(lineage)
}

// askFor asks the nodes that were not asked before.
func (f *Fleet) askFor(ctx context.Context, p Principal, lineage env.ID, want string, asked map[string]bool) (best kept, quiet []string) {
	var mu sync.Mutex // guards best and quiet
	var wg sync.WaitGroup
	turn := make(chan struct{}, askedAtOnce)
	for node, client := range f.reporting() {
		if asked[node] {
			continue
		}
		asked[node] = true
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			resp, err := client.ListSnapshots(ctx, &hearthv1.NodeListSnapshotsRequest{Environment: string(lineage)})
			mine := ownOf(p, resp.GetSnapshots(), want)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && !isNotFound(err) {
				quiet = append(quiet, node)
			}
			if len(mine) > len(best.list) || (len(mine) == len(best.list) && len(mine) > 0 && node < best.node) {
				best = kept{node, mine}
			}
		})
	}
	wg.Wait()
	return best, quiet
}

// ownOf are the snapshots that the caller may see, none if want is not among them.
// One whose tenant is not known is an administrator's only.
func ownOf(p Principal, list []*hearthv1.Snapshot, want string) []*hearthv1.Snapshot {
	own := slices.DeleteFunc(slices.Clone(list), func(s *hearthv1.Snapshot) bool {
		return !p.Admin && (s.GetTenant() == "" || s.GetTenant() != p.Tenant)
	})
	if want != "" && !slices.ContainsFunc(own, func(s *hearthv1.Snapshot) bool { return s.GetId() == want }) {
		return nil
	}
	return own
}

// reporting are the nodes whose stream is open.
func (f *Fleet) reporting() map[string]hearthv1connect.NodeServiceClient {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]hearthv1connect.NodeServiceClient{}
	for name, n := range f.nodes {
		if n.session != 0 {
			out[name] = n.client
		}
	}
	return out
}
