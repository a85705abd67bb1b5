package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"hearth/internal/env"
)

// Fork starts a lineage whose first snapshot is the parent's, without copying:
// it reads the parent's packs, which therefore stay until the child is gone.
// Where forks of forks have become many, it copies what the snapshot names
// instead, so that no chain grows for ever. A tenant that does not own the
// parent is env.ErrDenied.
func (s *Store) Fork(ctx context.Context, parent ID, child Lineage, tenant string) (Info, error) {
	if err := errors.Join(s.writable(), child.check(), ctx.Err()); err != nil {
		return Info{}, err
	}
	from, seq, err := ParseID(string(parent))
	if err != nil {
		return Info{}, err
	}
	if from == child {
		return Info{}, fmt.Errorf("%w: %s cannot fork itself", env.ErrInvalid, child)
	}
	unlock, err := s.locks.lockBoth(ctx, from, child)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	info, err := s.fork(ctx, from, seq, child, tenant)
	if err != nil {
		return Info{}, fmt.Errorf("fork %s: %w", parent, err)
	}
	return info, nil
}

func (s *Store) fork(ctx context.Context, from Lineage, seq uint64, child Lineage, tenant string) (Info, error) {
	parent, err := s.openLineage(from)
	if err != nil {
		return Info{}, err
	}
	defer parent.close()
	ref, err := parent.ref(seq)
	if err != nil {
		return Info{}, err
	}
	if parent.owner.Tenant != tenant {
		return Info{}, fmt.Errorf("%w: lineage %s belongs to another tenant", env.ErrDenied, from)
	}
	switch st, err := s.standing(child); {
	case err != nil:
		return Info{}, err
	case st == live:
		return Info{}, fmt.Errorf("%w: lineage %s", env.ErrExists, child)
	}
	head := *ref
	head.NextPack = 1
	head.Info = Info{
		ID: MakeID(child, 1), Lineage: child, Seq: 1, Tenant: tenant, Parent: ref.Info.ID,
		Time: ref.Info.Time, Base: ref.Info.Base, Roots: ref.Info.Roots, Labels: ref.Info.Labels,
		Files: ref.Info.Files, Bytes: ref.Info.Bytes,
	}
	begin := s.forkBorrowing
	if deep, err := s.borrowDepth(parent); err != nil {
		return Info{}, err
	} else if deep >= copyBorrow {
		begin = s.forkCopying
	}
	info, err := begin(ctx, parent, ref, &head)
	if err != nil {
		s.dropChild(parent, child)
	}
	return info, err
}

// borrowDepth counts the lineages that one borrows from.
func (s *Store) borrowDepth(lin *lineageDir) (int, error) {
	b, err := lin.borrows()
	for depth := 0; ; depth++ {
		if err != nil || b == nil || depth > maxBorrow {
			return depth, err
		}
		next, err := s.openLineage(b.Lineage)
		if err != nil {
			return depth, fmt.Errorf("%w: borrowed by a fork: %w", env.ErrCorrupt, err)
		}
		b, err = next.borrows()
		next.close()
		if err != nil {
			return depth, err
		}
	}
}

// forkBorrowing pins the parent first: a pin without a child is harmless, a
// child without a pin would lose its packs.
func (s *Store) forkBorrowing(_ context.Context, parent *lineageDir, ref, head *refRecord) (Info, error) {
	child := head.Info.Lineage
	if err := parent.pins.WriteFile("pin", string(child), nil, 0o600); err != nil {
		return Info{}, err
	}
	lin, err := s.begin(child, parent.owner)
	if err != nil {
		return Info{}, err
	}
	defer lin.close()
	b, err := json.Marshal(borrow{Version: 1, Lineage: parent.name, Snapshot: ref.Info.ID, NextPack: ref.NextPack})
	if err != nil {
		return Info{}, fmt.Errorf("encode borrow reference: %w", err)
	}
	if err := lin.dir.WriteFile("borrow", borrowName, b, 0o600); err != nil {
		return Info{}, err
	}
	return s.publish(lin, head)
}

// forkCopying gives the child every record that the snapshot names.
func (s *Store) forkCopying(ctx context.Context, parent *lineageDir, ref, head *refRecord) (Info, error) {
	x, err := s.loadIndex(parent, ref.NextPack)
	if err != nil {
		return Info{}, err
	}
	defer x.close()
	lin, err := s.begin(head.Info.Lineage, parent.owner)
	if err != nil {
		return Info{}, err
	}
	defer lin.close()
	w := newPackWriter(lin, newIndex(lin.keys), 1)
	defer w.abort()
	r := x.newReader(s.comp)
	t := newTracer(ctx, r, func(kind recordKind, id chunkID, _ uint64) error {
		_, payload, pl, err := r.stored(id, kind)
		if err != nil {
			return err
		}
		return w.put(pl.location, payload)
	})
	if err := t.snapshot(ref); err != nil {
		return Info{}, err
	}
	if head.Info.NewBytes, head.NextPack, err = w.close(); err != nil {
		return Info{}, err
	}
	return s.publish(lin, head)
}

// dropChild undoes a fork that failed, as far as it can. Unless its reference
// may be there: then it failed only in being made durable.
func (s *Store) dropChild(parent *lineageDir, child Lineage) {
	st, err := s.standing(child)
	if st == live {
		return
	}
	if err == nil && st == remainder {
		err = s.lin.RemoveTree("undo", string(child))
	}
	if err == nil {
		err = parent.pins.Remove("undo", string(child))
	}
	if err != nil {
		s.log.Warn("undo fork; the next sweep does", "lineage", child, "error", err)
	}
}

// Delete removes a lineage and all its snapshots. It is refused with
// env.ErrState, naming them, while forks borrow from it.
func (s *Store) Delete(name Lineage) error {
	if err := errors.Join(s.writable(), name.check()); err != nil {
		return err
	}
	parent, err := s.delete(name)
	if err != nil {
		return fmt.Errorf("delete lineage %s: %w", name, err)
	}
	if parent == "" {
		return nil
	}
	if err := s.unpin(parent, name); err != nil {
		return fmt.Errorf("delete lineage %s: unpin %s: %w", name, parent, err)
	}
	return nil
}

// delete removes the directory and returns what the lineage borrowed from.
func (s *Store) delete(name Lineage) (parent Lineage, err error) {
	unlock, err := s.locks.lock(context.Background(), name)
	if err != nil {
		return "", err
	}
	defer unlock()
	lin, err := s.openLineage(name)
	if err != nil {
		return "", err
	}
	defer lin.close()
	live, _, err := s.borrowers(lin)
	if err != nil {
		return "", err
	}
	if len(live) > 0 {
		return "", fmt.Errorf("%w: forks borrow from it: %s; delete them first", env.ErrState, strings.Join(live, ", "))
	}
	b, err := lin.borrows()
	if err != nil && !errors.Is(err, env.ErrCorrupt) {
		return "", err
	}
	if b != nil {
		parent = b.Lineage
	}
	return parent, s.lin.RemoveTree("delete", string(name))
}

// borrowers lists the forks that exist and borrow from the lineage, and the
// pins of those that do not: remainders of a crash.
func (s *Store) borrowers(lin *lineageDir) (live, stale []string, err error) {
	pins, err := lin.pins.List()
	if err != nil {
		return nil, nil, err
	}
	stale = slices.DeleteFunc(pins, func(child string) bool {
		borrows, err := s.borrowsFrom(Lineage(child), lin.name)
		if borrows || err != nil { // unreadable is not gone
			live = append(live, child)
			return true
		}
		return false
	})
	return live, stale, nil
}

func (s *Store) borrowsFrom(child, parent Lineage) (bool, error) {
	c, err := s.openLineage(child)
	if errors.Is(err, env.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer c.close()
	b, err := c.borrows()
	return b != nil && b.Lineage == parent, err
}

// unpin drops the child's pin, unless the child was made again meanwhile.
func (s *Store) unpin(parent, child Lineage) error {
	unlock, err := s.locks.lockBoth(context.Background(), parent, child)
	if err != nil {
		return err
	}
	defer unlock()
	lin, err := s.openLineage(parent)
	if errors.Is(err, env.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lin.close()
	borrows, err := s.borrowsFrom(child, parent)
	if err != nil || borrows {
		return err
	}
	return lin.pins.Remove("unpin", string(child))
}
