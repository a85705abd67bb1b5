package nodeapi

import (
	"fmt"
	"sync"
	"time"

	"hearth/internal/env"
	"hearth/internal/rpc/pki"
)

// grantTime is how long a node may fetch a snapshot that it was granted.
const grantTime = 15 * time.Minute

// maxGrants bounds what is remembered; beyond it the oldest go.
const maxGrants = 10_000

// grants says which node may fetch which snapshot. They live in memory: after a
// restart whoever wanted one asks again.
type grants struct {
	mu    sync.Mutex // guards until
	until map[grant]time.Time
}

type grant struct {
	node     string
	snapshot env.SnapshotID
}

func newGrants() *grants { return &grants{until: map[grant]time.Time{}} }

// checkGrantee refuses what can be no node's name.
func checkGrantee(instance, node string) error {
	if err := pki.Node(instance, node).Check(); err != nil {
		return fmt.Errorf("fetch_by: %w", err)
	}
	return nil
}

func (g *grants) give(node string, id env.SnapshotID, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.until) >= maxGrants {
		g.prune(now)
	}
	g.until[grant{node, id}] = now.Add(grantTime)
}

// prune forgets what is over, and the oldest. The caller holds mu.
func (g *grants) prune(now time.Time) {
	var oldest grant
	for k, until := range g.until {
		switch {
		case now.After(until):
			delete(g.until, k)
		case oldest == grant{} || until.Before(g.until[oldest]):
			oldest = k
		}
	}
	if len(g.until) >= maxGrants {
		delete(g.until, oldest)
	}
}

func (g *grants) allow(node string, id env.SnapshotID, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	until, ok := g.until[grant{node, id}]
	return ok && !now.After(until)
}
