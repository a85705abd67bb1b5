package snapshot

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/env"
)

// Get describes a snapshot; env.ErrNotFound if there is none.
func (s *Store) Get(id ID) (Info, error) {
	name, seq, err := ParseID(string(id))
	if err != nil {
		return Info{}, err
	}
	lin, err := s.openLineage(name)
	if err != nil {
		return Info{}, err
	}
	defer lin.close()
	ref, err := lin.ref(seq)
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
	lin, err := s.openLineage(name)
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
		ref, err := lin.ref(seq)
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

// publish creates the reference: from here on the snapshot exists.
func (s *Store) publish(lin *lineageDir, ref *refRecord) (Info, error) {
	b, err := encodeRef(lin.keys, ref)
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

// Verify reads every record of a snapshot and checks it. The first damage is
// env.ErrCorrupt and names pack, record and file.
func (s *Store) Verify(ctx context.Context, id ID) (VerifyStats, error) {
	start := time.Now()
	var stats VerifyStats
	err := s.withSnapshot(id, func(_ *lineageDir, ref *refRecord, x *index) error {
		r := x.newReader(s.comp)
		t := newTracer(ctx, r, func(kind recordKind, id chunkID, length uint64) error {
			stats.Chunks++
			if kind != kindData {
				return nil // tracing reads it
			}
			b, err := r.read(id, kindData)
			if err == nil && uint64(len(b)) != length {
				err = pieceLength(id, uint64(len(b)), length)
			}
			stats.Bytes += int64(len(b))
			return err
		})
		err := t.snapshot(ref)
		stats.Files = t.files
		return err
	})
	stats.Took = time.Since(start)
	if err != nil {
		return stats, fmt.Errorf("verify %s: %w", id, err)
	}
	return stats, nil
}

// withSnapshot calls use with a snapshot's lineage, its reference and the index
// of its records.
func (s *Store) withSnapshot(id ID, use func(*lineageDir, *refRecord, *index) error) error {
	name, seq, err := ParseID(string(id))
	if err != nil {
		return err
	}
	lin, err := s.openLineage(name)
	if err != nil {
		return err
	}
	defer lin.close()
	ref, err := lin.ref(seq)
	if err != nil {
		return err
	}
	x, err := s.loadIndex(lin, ref.NextPack)
	if err != nil {
		return err
	}
	defer x.close()
	return use(lin, ref, x)
}
