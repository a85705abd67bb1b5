package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// lineageDir is an opened lineage:
//
//	owner           whose it is and its secret, see owner.go
//	packs/  idx/  refs/     see pack.go and ref.go
//	pins/<child>    a lineage that borrows from this one
//	borrow          what this one borrows from, if it is a fork
//	cache           see node.go
//
// What a snapshot names never changes, so reading needs no lock; a lineage that
// is deleted meanwhile is env.ErrNotFound.
type lineageDir struct {
	name                        Lineage
	dir, packs, idx, refs, pins *durable.Dir

	owner owner
	keys  *keys
}

const (
	refsName   = "refs"
	borrowName = "borrow"
	cacheName  = "cache"
	// maxBorrow bounds the forks of forks that a reader follows; a fork of more
	// than copyBorrow copies instead.
	maxBorrow  = 64
	copyBorrow = 16
)

// openLineage opens a lineage that exists.
func (s *Store) openLineage(name Lineage) (*lineageDir, error) {
	lin, err := s.openDirs(name, func(in *durable.Dir, sub string) (*durable.Dir, error) { return in.OpenSub(sub) })
	if errors.Is(err, env.ErrNotFound) {
		return nil, fmt.Errorf("%w: lineage %s", env.ErrNotFound, name)
	}
	if err != nil {
		return nil, err
	}
	if err := lin.readOwner(s.keys); err != nil {
		lin.close()
		return nil, err
	}
	return lin, nil
}

// makeLineage makes a lineage that belongs to o.
func (s *Store) makeLineage(name Lineage, o owner) (*lineageDir, error) {
	lin, err := s.openDirs(name, func(in *durable.Dir, sub string) (*durable.Dir, error) { return in.Sub("lineage", sub) })
	if err != nil {
		return nil, err
	}
	if err := lin.writeOwner(s.keys, o); err != nil {
		lin.close()
		return nil, err
	}
	return lin, nil
}

func (s *Store) openDirs(name Lineage, open func(in *durable.Dir, sub string) (*durable.Dir, error)) (*lineageDir, error) {
	l := &lineageDir{name: name}
	var err error
	if l.dir, err = open(s.lin, string(name)); err != nil {
		return nil, err
	}
	for _, sub := range []struct {
		dir  **durable.Dir
		name string
	}{{&l.packs, "packs"}, {&l.idx, "idx"}, {&l.refs, refsName}, {&l.pins, "pins"}} {
		if *sub.dir, err = open(l.dir, sub.name); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// standing is what there is of a lineage.
type standing int

const (
	absent    standing = iota
	remainder          // of an operation that never finished: it has no snapshot
	live
)

func (s *Store) standing(name Lineage) (standing, error) {
	dir, err := s.lin.OpenSub(string(name))
	if errors.Is(err, env.ErrNotFound) {
		return absent, nil
	}
	if err != nil {
		return absent, err
	}
	defer func() { _ = dir.Close() }()
	refs, err := dir.OpenSub(refsName)
	if errors.Is(err, env.ErrNotFound) {
		return remainder, nil
	}
	if err != nil {
		return absent, err
	}
	defer func() { _ = refs.Close() }()
	seqs, err := (&lineageDir{refs: refs}).seqs()
	if err == nil && len(seqs) == 0 {
		return remainder, nil
	}
	return live, err
}

// begin opens a lineage of o to add a snapshot to it, making it if it is new.
// What an operation that never finished left of it is removed first. The
// caller holds the lineage.
func (s *Store) begin(name Lineage, o owner) (*lineageDir, error) {
	st, err := s.standing(name)
	if err != nil {
		return nil, err
	}
	if st == remainder {
		if err := s.lin.RemoveTree("clear", string(name)); err != nil {
			return nil, err
		}
	}
	if st != live {
		return s.makeLineage(name, o)
	}
	lin, err := s.openLineage(name)
	if err != nil {
		return nil, err
	}
	if err := lin.admit(s.keys, o.Tenant); err != nil {
		lin.close()
		return nil, err
	}
	return lin, nil
}

// admit refuses a tenant that does not own the lineage. One that was begun
// before lineages had owners becomes the tenant's.
func (l *lineageDir) admit(store *keys, tenant string) error {
	if l.owner.Tenant == tenant {
		return nil
	}
	if l.owner.none() {
		return l.writeOwner(store, owner{Tenant: tenant})
	}
	return fmt.Errorf("%w: lineage %s belongs to another tenant", env.ErrDenied, l.name)
}

func (l *lineageDir) close() {
	for _, d := range []*durable.Dir{l.dir, l.packs, l.idx, l.refs, l.pins} {
		if d != nil {
			_ = d.Close()
		}
	}
}

// sweep removes what captures that were never acknowledged left behind: files
// in the making, and packs that no reference covers.
func (l *lineageDir) sweep(nextPack uint64) (int, error) {
	swept := 0
	for _, d := range []*durable.Dir{l.dir, l.packs, l.idx, l.refs, l.pins} {
		n, err := d.Sweep()
		swept += n
		if err != nil {
			return swept, err
		}
	}
	left, err := l.unclaimed(nextPack)
	for _, f := range left {
		if err := f.dir.Remove("sweep", f.name); err != nil {
			return swept, err
		}
		swept++
	}
	return swept, err
}

type packPart struct {
	dir  *durable.Dir
	name string
}

// unclaimed lists packs and indexes from a number on, indexes first.
func (l *lineageDir) unclaimed(nextPack uint64) ([]packPart, error) {
	var all []packPart
	for _, d := range []struct {
		dir *durable.Dir
		ext string
	}{{l.idx, indexExt}, {l.packs, packExt}} {
		names, err := d.dir.List()
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if seq, ok := parsePackName(name, d.ext); ok && seq >= nextPack {
				all = append(all, packPart{d.dir, name})
			}
		}
	}
	return all, nil
}

// borrow says that a lineage reads the packs of another up to a number.
type borrow struct {
	Version  int     `json:"version"`
	Lineage  Lineage `json:"lineage"`
	Snapshot ID      `json:"snapshot"`
	NextPack uint64  `json:"next_pack"`
}

func (l *lineageDir) borrows() (*borrow, error) {
	b, err := l.dir.ReadFile(borrowName, 4096)
	if errors.Is(err, env.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeBorrow(b)
}

func decodeBorrow(b []byte) (*borrow, error) {
	r := &borrow{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%w: borrow reference: %w", env.ErrCorrupt, err)
	}
	if err := checkVersion("borrow", uint32(min(max(r.Version, 0), math.MaxInt32)), 1); err != nil {
		return nil, err
	}
	if r.Lineage.check() != nil {
		return nil, fmt.Errorf("%w: borrow reference", env.ErrCorrupt)
	}
	return r, nil
}

// sameFamily is true if the one may read the other's records: of one tenant,
// named under one key.
func (l *lineageDir) sameFamily(other *lineageDir) bool {
	return bytes.Equal(l.owner.Secret, other.owner.Secret) &&
		(l.owner.Tenant == other.owner.Tenant || l.owner.none() || other.owner.none())
}

// loadIndex reads the indexes of a lineage, up to the pack nextPack, and of
// all that it borrows from. The caller closes it.
func (s *Store) loadIndex(lin *lineageDir, nextPack uint64) (*index, error) {
	x := newIndex(lin.keys)
	if err := s.fillIndex(x, lin, nextPack); err != nil {
		x.close()
		return nil, err
	}
	return x, nil
}

func (s *Store) fillIndex(x *index, lin *lineageDir, nextPack uint64) error {
	for first := lin; ; {
		if len(x.borrowed) > maxBorrow {
			return fmt.Errorf("%w: lineage %s borrows over more than %d forks", env.ErrCorrupt, first.name, maxBorrow)
		}
		if err := x.load(lin, nextPack); err != nil {
			return fmt.Errorf("lineage %s: %w", lin.name, err)
		}
		b, err := lin.borrows()
		if err != nil || b == nil {
			return err
		}
		if lin, err = s.openLineage(b.Lineage); err != nil {
			return fmt.Errorf("%w: borrowed by a fork: %w", env.ErrCorrupt, err)
		}
		x.borrowed = append(x.borrowed, lin)
		if !lin.sameFamily(first) {
			return fmt.Errorf("%w: lineage %s borrows from %s, which is of another tenant or key", env.ErrCorrupt, first.name, lin.name)
		}
		nextPack = b.NextPack
	}
}
