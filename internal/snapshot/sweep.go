package snapshot

import (
	"context"
	"errors"
	"fmt"
)

// Run removes what operations that never finished left behind, as far as no
// later one did, and then waits for the end of ctx. It disturbs nobody.
func (s *Store) Run(ctx context.Context) error {
	n, err := s.Sweep(ctx)
	switch {
	case err != nil && ctx.Err() == nil:
		s.log.Warn("sweep snapshot store", "error", err)
	case n > 0:
		s.log.Info("swept the snapshot store", "remainders", n)
	}
	<-ctx.Done()
	return nil
}

// Sweep removes the remainders of operations that a crash or an error ended:
// lineages without a snapshot, and in others packs and files that no snapshot
// covers. It returns how many, and goes on behind a lineage that it cannot
// sweep.
func (s *Store) Sweep(ctx context.Context) (int, error) {
	if err := s.writable(); err != nil {
		return 0, err
	}
	names, err := s.Lineages()
	if err != nil {
		return 0, err
	}
	swept := 0
	var errs []error
	for _, name := range names {
		n, err := s.sweepLineage(ctx, name)
		swept += n
		if err != nil {
			errs = append(errs, fmt.Errorf("lineage %s: %w", name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return swept, errors.Join(errs...)
}

func (s *Store) sweepLineage(ctx context.Context, name Lineage) (int, error) {
	unlock, err := s.locks.lock(ctx, name)
	if err != nil {
		return 0, err
	}
	defer unlock()
	switch st, err := s.standing(name); {
	case err != nil || st == absent:
		return 0, err
	case st == remainder:
		return 1, s.lin.RemoveTree("sweep", string(name))
	}
	lin, err := s.openLineage(name)
	if err != nil {
		return 0, err
	}
	defer lin.close()
	head, err := lin.head()
	if err != nil {
		return 0, err
	}
	next, err := lin.nextPack(head)
	if err != nil {
		return 0, err
	}
	swept, err := lin.sweep(next)
	if err != nil {
		return swept, err
	}
	_, stale, err := s.borrowers(lin)
	for _, child := range stale {
		if err := lin.pins.Remove("sweep", child); err != nil {
			return swept, err
		}
		swept++
	}
	return swept, err
}
