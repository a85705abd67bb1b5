package snapshot

import (
	"context"
	"fmt"
	"sync"

	"hearth/internal/env"
)

// locks serialises the changes of each lineage without a lock over all of
// them while one works.
type locks struct {
	mu sync.Mutex // guards m and the counts in it
	m  map[Lineage]*lineageLock
}

type lineageLock struct {
	held  chan struct{} // one token: the right to change the lineage's files
	users int           // that hold it or wait for it
}

func newLocks() locks { return locks{m: map[Lineage]*lineageLock{}} }

// lock waits for the lineage, no longer than ctx, and returns how to let it go.
func (l *locks) lock(ctx context.Context, name Lineage) (unlock func(), err error) {
	k := l.join(name)
	select {
	case k.held <- struct{}{}:
		return func() { <-k.held; l.leave(name, k) }, nil
	case <-ctx.Done():
		l.leave(name, k)
		return nil, fmt.Errorf("%w: lineage %s is being changed: %w", env.ErrUnavailable, name, ctx.Err())
	}
}

// lockBoth takes two lineages, in the order that is the same for all.
func (l *locks) lockBoth(ctx context.Context, a, b Lineage) (unlock func(), err error) {
	first, err := l.lock(ctx, min(a, b))
	if err != nil {
		return nil, err
	}
	second, err := l.lock(ctx, max(a, b))
	if err != nil {
		first()
		return nil, err
	}
	return func() { second(); first() }, nil
}

func (l *locks) join(name Lineage) *lineageLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.m[name]
	if k == nil {
		k = &lineageLock{held: make(chan struct{}, 1)}
		l.m[name] = k
	}
	k.users++
	return k
}

func (l *locks) leave(name Lineage, k *lineageLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.m, name)
	}
}
