package snapshot

import "fmt"

// addition is a lineage that is open to get one more snapshot: by a capture, or
// from another node. Until its reference is published the lineage is as it was.
type addition struct {
	s     *Store
	lin   *lineageDir
	head  *refRecord // nil if there is none
	next  uint64     // number of the first pack that is new
	index *index
	packs *packWriter
}

// openAddition opens a lineage of o, new or not. The caller holds the lineage.
func (s *Store) openAddition(name Lineage, o owner) (*addition, error) {
	lin, err := s.begin(name, o)
	if err != nil {
		s.dropRemainder(name)
		return nil, err
	}
	a := &addition{s: s, lin: lin}
	if err := a.open(); err != nil {
		a.close()
		s.dropRemainder(name)
		return nil, err
	}
	return a, nil
}

// dropRemainder removes a lineage that has no snapshot, as far as it can; the
// next operation on the lineage, or a sweep, removes the rest. It is false for
// one that has, or of which that cannot be told.
func (s *Store) dropRemainder(name Lineage) bool {
	st, err := s.standing(name)
	if err != nil || st == live {
		return false
	}
	if st == remainder {
		if err := s.lin.RemoveTree("discard", string(name)); err != nil {
			s.log.Warn("remove empty lineage", "lineage", name, "error", err)
		}
	}
	return true
}

func (a *addition) open() (err error) {
	if a.head, err = a.lin.head(); err != nil {
		return fmt.Errorf("the newest snapshot cannot be read, so none is added: %w", err)
	}
	if a.next, err = a.lin.nextPack(a.head); err != nil {
		return err
	}
	swept, err := a.lin.sweep(a.next)
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	if swept > 0 {
		a.s.log.Info("swept an unfinished snapshot", "lineage", a.lin.name, "files", swept)
	}
	if a.index, err = a.s.loadIndex(a.lin, a.next); err != nil {
		return err
	}
	if n := len(a.index.lost); n > 0 {
		a.s.log.Warn("made indexes again from their packs", "lineage", a.lin.name, "indexes", n)
		if err := a.index.repair(a.lin); err != nil {
			return err
		}
	}
	a.packs = newPackWriter(a.lin, a.index, a.next)
	return nil
}

func (a *addition) close() {
	if a.packs != nil {
		a.packs.abort()
	}
	if a.index != nil {
		a.index.close()
	}
	a.lin.close()
}

// discard removes what was written for a snapshot that failed, as far as it
// can; the next operation on the lineage, or a sweep, removes the rest.
func (a *addition) discard() {
	a.packs.abort()
	if a.s.dropRemainder(a.lin.name) {
		return
	}
	// Its reference may be there, if it failed only in being made durable.
	head, err := a.lin.head()
	if err == nil {
		var next uint64
		if next, err = a.lin.nextPack(head); err == nil {
			_, err = a.lin.sweep(next)
		}
	}
	if err != nil {
		a.s.log.Warn("sweep failed snapshot", "lineage", a.lin.name, "error", err)
	}
}
