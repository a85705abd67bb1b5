package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hearth/internal/env"
)

// Get describes a snapshot; env.ErrNotFound if there is none.
func (s *Store) Get(id ID) (Info, error) {
	name, seq, err := ParseID(string(id))
	if err != nil {
		return Info{}, err
	}
	defer s.locks.read(name)()
	lin, err := s.openLineage(name, false)
	if err != nil {
		return Info{}, err
	}
	defer lin.close()
	ref, err := lin.ref(s.keys, seq)
	if err != nil {
		return Info{}, err
	}
	return ref.Info, nil
}

// Head describes the newest snapshot of a lineage; env.ErrNotFound if it has
// none. A newest one that cannot be read is an error, never an older one.
func (s *Store) Head(name Lineage) (Info, error) {
	all, err := s.list(name, true)
	if err != nil {
		return Info{}, err
	}
	if len(all) == 0 {
		return Info{}, fmt.Errorf("%w: lineage %s has no snapshot", env.ErrNotFound, name)
	}
	return all[0], nil
}

// List describes the snapshots of a lineage, oldest first.
func (s *Store) List(name Lineage) ([]Info, error) { return s.list(name, false) }

func (s *Store) list(name Lineage, headOnly bool) ([]Info, error) {
	if err := name.check(); err != nil {
		return nil, err
	}
	defer s.locks.read(name)()
	lin, err := s.openLineage(name, false)
	if err != nil {
		return nil, err
	}
	defer lin.close()
	seqs, err := lin.seqs()
	if err != nil {
		return nil, err
	}
	if headOnly && len(seqs) > 1 {
		seqs = seqs[len(seqs)-1:]
	}
	var all []Info
	for _, seq := range seqs {
		ref, err := lin.ref(s.keys, seq)
		if err != nil {
			return nil, err
		}
		all = append(all, ref.Info)
	}
	return all, nil
}

// Lineages lists all lineages, sorted.
func (s *Store) Lineages() ([]Lineage, error) {
	names, err := s.lin.List()
	if err != nil {
		return nil, err
	}
	all := make([]Lineage, 0, len(names))
	for _, name := range names {
		if l := Lineage(name); l.check() == nil {
			all = append(all, l)
		}
	}
	return all, nil
}

// Fork starts a lineage whose first snapshot is the parent's, without copying:
// it reads the parent's packs, which therefore stay until the child is gone.
func (s *Store) Fork(ctx context.Context, parent ID, child Lineage) (Info, error) {
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
	first, second := min(from, child), max(from, child) // one order for all
	defer s.locks.write(first)()
	defer s.locks.write(second)()
	info, err := s.fork(from, seq, child)
	if err != nil {
		return Info{}, fmt.Errorf("fork %s: %w", parent, err)
	}
	return info, nil
}

// fork pins the parent first: a pin without a child is harmless, a child
// without a pin would lose its packs.
func (s *Store) fork(from Lineage, seq uint64, child Lineage) (Info, error) {
	parent, err := s.openLineage(from, false)
	if err != nil {
		return Info{}, err
	}
	defer parent.close()
	ref, err := parent.ref(s.keys, seq)
	if err != nil {
		return Info{}, err
	}
	if used, err := s.inUse(child); err != nil || used {
		return Info{}, errors.Join(err, fmt.Errorf("%w: lineage %s", env.ErrExists, child))
	}
	if err := parent.pins.WriteFile("pin", string(child), nil, 0o600); err != nil {
		return Info{}, err
	}
	lin, err := s.openLineage(child, true)
	if err != nil {
		return Info{}, err
	}
	defer lin.close()
	b, err := json.Marshal(borrow{Version: 1, Lineage: from, Snapshot: ref.Info.ID, NextPack: ref.NextPack})
	if err != nil {
		return Info{}, fmt.Errorf("encode borrow reference: %w", err)
	}
	if err := lin.dir.WriteFile("borrow", borrowName, b, 0o600); err != nil {
		return Info{}, err
	}
	head := *ref
	head.NextPack = 1
	head.Info = Info{
		ID: MakeID(child, 1), Lineage: child, Seq: 1, Parent: ref.Info.ID,
		Time: ref.Info.Time, Base: ref.Info.Base, Roots: ref.Info.Roots, Labels: ref.Info.Labels,
		Files: ref.Info.Files, Bytes: ref.Info.Bytes,
	}
	return s.publish(lin, &head)
}

// publish creates the reference: from here on the snapshot exists.
func (s *Store) publish(lin *lineageDir, ref *refRecord) (Info, error) {
	b, err := encodeRef(s.keys, ref)
	if err != nil {
		return Info{}, err
	}
	if len(b) > maxRef {
		return Info{}, fmt.Errorf("%w: reference of %d bytes, the bound is %d: too many names in one directory", env.ErrExhausted, len(b), maxRef)
	}
	if err := lin.refs.WriteNew("ref", refName(ref.Info.Seq), b, 0o600); err != nil {
		return Info{}, err
	}
	return ref.Info, nil
}

// inUse is true if the lineage has a snapshot. One without any is the
// remainder of a fork or a capture that did not finish.
func (s *Store) inUse(name Lineage) (bool, error) {
	lin, err := s.openLineage(name, false)
	if errors.Is(err, env.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lin.close()
	seqs, err := lin.seqs()
	return len(seqs) > 0, err
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
	defer s.locks.write(name)()
	lin, err := s.openLineage(name, false)
	if err != nil {
		return "", err
	}
	defer lin.close()
	live, err := s.borrowers(lin)
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

// borrowers lists the forks that still exist and borrow from the lineage. The
// pin of one that does not is the remainder of a crash.
func (s *Store) borrowers(lin *lineageDir) ([]string, error) {
	pins, err := lin.pins.List()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pins, func(child string) bool {
		c, err := s.openLineage(Lineage(child), false)
		if errors.Is(err, env.ErrNotFound) {
			return true
		}
		if err != nil {
			return false // unreadable is not gone
		}
		defer c.close()
		b, err := c.borrows()
		return err == nil && (b == nil || b.Lineage != lin.name)
	}), nil
}

// unpin drops the child's pin, unless the child was made again meanwhile.
func (s *Store) unpin(parent, child Lineage) error {
	defer s.locks.write(min(parent, child))()
	defer s.locks.write(max(parent, child))()
	if again, err := s.openLineage(child, false); err == nil {
		again.close()
		return nil
	}
	lin, err := s.openLineage(parent, false)
	if errors.Is(err, env.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lin.close()
	return lin.pins.Remove("unpin", string(child))
}

// Verify reads every record of a snapshot and checks it. The first damage is
// env.ErrCorrupt and names pack, record and file.
func (s *Store) Verify(ctx context.Context, id ID) (VerifyStats, error) {
	start := time.Now()
	var v verifier
	err := s.withSnapshot(id, func(ref *refRecord, x *index) error {
		v = verifier{r: x.newReader(s.keys, s.comp), seen: map[chunkID]bool{}}
		for i, b := range ref.RootEntries {
			e, err := decodeRootEntry(b)
			if err != nil {
				return err
			}
			if err := v.dir(ctx, "/"+ref.Info.Roots[i], e); err != nil {
				return err
			}
		}
		return nil
	})
	v.stats.Took = time.Since(start)
	if err != nil {
		return v.stats, fmt.Errorf("verify %s: %w", id, err)
	}
	return v.stats, nil
}

// withSnapshot calls use with a snapshot and the index of its records.
func (s *Store) withSnapshot(id ID, use func(*refRecord, *index) error) error {
	name, seq, err := ParseID(string(id))
	if err != nil {
		return err
	}
	defer s.locks.read(name)()
	lin, err := s.openLineage(name, false)
	if err != nil {
		return err
	}
	defer lin.close()
	ref, err := lin.ref(s.keys, seq)
	if err != nil {
		return err
	}
	x, err := s.loadIndex(lin, ref.NextPack)
	if err != nil {
		return err
	}
	defer x.close()
	return use(ref, x)
}

// verifier reads each record once, however often it is named.
type verifier struct {
	r     *reader
	seen  map[chunkID]bool
	stats VerifyStats
}

func (v *verifier) dir(ctx context.Context, path string, e *entry) error {
	entries, err := v.r.entries(e.pages)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	v.stats.Files++
	v.stats.Chunks += int64(len(e.pages))
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := path + "/" + e.name
		switch e.kind {
		case kindDir:
			err = v.dir(ctx, at, e)
		case kindFile:
			err = v.file(at, e)
		default:
			v.stats.Files++
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) file(path string, e *entry) error {
	v.stats.Files++
	err := v.r.segments(e, func(_ uint64, seg segment) error {
		if seg.hole() || v.seen[seg.id] {
			return nil
		}
		b, err := v.r.read(seg.id, kindData)
		if err != nil {
			return err
		}
		if uint64(len(b)) != seg.length {
			return fmt.Errorf("%w: piece %s has %d bytes, not %d", env.ErrCorrupt, seg.id, len(b), seg.length)
		}
		v.seen[seg.id] = true
		v.stats.Chunks++
		v.stats.Bytes += int64(len(b))
		return nil
	})
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}
