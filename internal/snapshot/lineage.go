package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// lineageDir is an opened lineage:
//
//	packs/  idx/  refs/     see pack.go and ref.go
//	pins/<child>            a lineage that borrows from this one
//	borrow                  what this one borrows from, if it is a fork
//	cache                   see cache.go
type lineageDir struct {
	name                        Lineage
	dir, packs, idx, refs, pins *durable.Dir
}

const (
	borrowName = "borrow"
	cacheName  = "cache"
	// maxBorrow bounds the forks of forks.
	maxBorrow = 64
)

func (s *Store) openLineage(name Lineage, create bool) (*lineageDir, error) {
	l := &lineageDir{name: name}
	open := func(in *durable.Dir, name string) (*durable.Dir, error) {
		if create {
			return in.Sub("lineage", name)
		}
		return in.OpenSub(name)
	}
	var err error
	if l.dir, err = open(s.lin, string(name)); err != nil {
		if errors.Is(err, env.ErrNotFound) {
			err = fmt.Errorf("%w: lineage %s", env.ErrNotFound, name)
		}
		return nil, err
	}
	for _, sub := range []struct {
		dir  **durable.Dir
		name string
	}{{&l.packs, "packs"}, {&l.idx, "idx"}, {&l.refs, "refs"}, {&l.pins, "pins"}} {
		if *sub.dir, err = open(l.dir, sub.name); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
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
	for _, d := range []struct {
		dir *durable.Dir
		ext string
	}{{l.idx, indexExt}, {l.packs, packExt}} {
		names, err := d.dir.List()
		if err != nil {
			return swept, err
		}
		for _, name := range names {
			if seq, ok := parsePackName(name, d.ext); ok && seq >= nextPack {
				if err := d.dir.Remove("sweep", name); err != nil {
					return swept, err
				}
				swept++
			}
		}
	}
	return swept, nil
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

// loadIndex reads the indexes of a lineage, up to the pack nextPack, and of
// all that it borrows from. The caller closes it.
func (s *Store) loadIndex(lin *lineageDir, nextPack uint64) (*index, error) {
	x := &index{places: map[chunkID]place{}}
	opened := []*lineageDir{}
	done := func(err error) (*index, error) {
		x.borrowed = append(x.borrowed, opened...)
		if err != nil {
			x.close()
			return nil, err
		}
		return x, nil
	}
	for depth := 0; ; depth++ {
		if depth > maxBorrow {
			return done(fmt.Errorf("%w: lineage %s borrows over more than %d forks", env.ErrCorrupt, lin.name, maxBorrow))
		}
		if err := x.load(lin, s.keys, nextPack); err != nil {
			return done(fmt.Errorf("lineage %s: %w", lin.name, err))
		}
		b, err := lin.borrows()
		if err != nil || b == nil {
			return done(err)
		}
		if lin, err = s.openLineage(b.Lineage, false); err != nil {
			return done(fmt.Errorf("%w: borrowed by a fork: %w", env.ErrCorrupt, err))
		}
		opened = append(opened, lin)
		nextPack = b.NextPack
	}
}

// locks serialises the changes of each lineage without a lock over all of
// them while one works.
type locks struct {
	mu sync.Mutex // guards m and the counts in it
	m  map[Lineage]*lineageLock
}

type lineageLock struct {
	sync.RWMutex // guards the lineage's files
	users        int
}

func (l *locks) get(name Lineage) *lineageLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.m[name]
	if k == nil {
		k = &lineageLock{}
		l.m[name] = k
	}
	k.users++
	return k
}

func (l *locks) put(name Lineage, k *lineageLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.m, name)
	}
}

// write waits for the lineage and returns how to let it go.
func (l *locks) write(name Lineage) (unlock func()) {
	k := l.get(name)
	k.Lock()
	return func() { k.Unlock(); l.put(name, k) }
}

func (l *locks) read(name Lineage) (unlock func()) {
	k := l.get(name)
	k.RLock()
	return func() { k.RUnlock(); l.put(name, k) }
}
