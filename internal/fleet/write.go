package fleet

import (
	"errors"
	"fmt"
	"time"

	"hearth/internal/env"
)

// durability is how a changed record is stored before it is shown.
type durability int

const (
	// durably: it survives a crash. For what is decided.
	durably durability = iota
	// behind: soon, and lost in a crash. For what nodes say, which they say again.
	behind
)

// write stores a record and then shows it. It is the only way in which records
// change; the ephemeral ones are only shown. After a Save of which nobody knows
// whether it was carried out, the next write is a Save, so that the store holds what
// is shown before anybody acts on it. The caller is in the record's lane.
func (f *Fleet) write(op string, r *Record, how durability) error {
	r.Changed = time.Now()
	switch {
	case r.Ephemeral:
	case how == behind && !f.isUnsure(r.ID()):
		f.store.Post(Change{Op: op, Record: r})
	default:
		if err := f.save(Change{Op: op, Record: r}); err != nil {
			f.doubt(r.ID(), err)
			return err
		}
		f.settle(r.ID())
	}
	f.show(r)
	return nil
}

func (f *Fleet) isUnsure(id env.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, is := f.unsure[id]
	return is
}

// doubt notes that a Save may have been carried out. A plain failure says nothing
// of one before.
func (f *Fleet) doubt(id env.ID, err error) {
	if !errors.Is(err, env.ErrUnavailable) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unsure[id] = struct{}{}
}

func (f *Fleet) settle(id env.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.unsure, id)
}

// drop forgets a record, behind: a crash brings it back, to be dropped again. The
// caller is in its lane.
func (f *Fleet) drop(op string, r *Record) {
	if !r.Ephemeral {
		f.store.Post(Change{Op: op, DeleteRecord: r.ID()})
	}
	f.hide(r.ID())
}

// save is the store's, with an error that names the mend.
func (f *Fleet) save(c Change) error {
	err := f.store.Save(c)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, env.ErrUnavailable):
		return fmt.Errorf("store %s: %w; nothing was done: repeat the call once the store of desired state answers (in Kubernetes, the API server)", c.Op, err)
	default:
		return fmt.Errorf("store %s: %w", c.Op, err)
	}
}

// update changes what is decided of one record: stored first, then shown. Edit
// gets a copy; if it returns an error nothing happens, and if it returns false
// nothing is stored. The record that is shown in the end is returned.
func (f *Fleet) update(op string, id env.ID, edit func(*Record) (bool, error)) (*Record, error) {
	return f.change(op, id, durably, edit)
}

// note changes what is observed of one record. It needs no store that answers.
func (f *Fleet) note(op string, id env.ID, edit func(*Record) (bool, error)) (*Record, error) {
	return f.change(op, id, behind, edit)
}

func (f *Fleet) change(op string, id env.ID, how durability, edit func(*Record) (bool, error)) (*Record, error) {
	defer f.lanes.enter(id)()
	have := f.record(id)
	if have == nil {
		return nil, notFound(id)
	}
	r := have.clone()
	changed, err := edit(r)
	if err != nil || !changed {
		return have, err
	}
	if err := f.write(op, r, how); err != nil {
		return have, err
	}
	return r, nil
}

// show puts a record into memory.
func (f *Fleet) show(r *Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.ID()
	f.unlist(id)
	f.census.replace(f.records[id], r)
	f.records[id] = r
	if r.Phase() != env.PhaseClaiming {
		delete(f.doubtful, id)
	}
	if r.ClaimKey != (ClaimKey{}) {
		f.byClaim[r.ClaimKey] = append(f.byClaim[r.ClaimKey], id)
	}
	if len(r.Stale) > 0 {
		f.pending[id] = struct{}{}
	} else {
		delete(f.pending, id)
	}
	if at, ok := f.dueAt(r); ok {
		f.due.set(id, at)
	} else {
		f.due.drop(id)
	}
}

// hide takes a record out of memory.
func (f *Fleet) hide(id env.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unlist(id)
	f.census.replace(f.records[id], nil)
	delete(f.records, id)
	delete(f.pending, id)
	delete(f.doubtful, id)
	delete(f.unsure, id)
	f.due.drop(id)
}

// unlist takes a record out of the index by claim. The caller holds mu.
func (f *Fleet) unlist(id env.ID) {
	r := f.records[id]
	if r == nil || r.ClaimKey == (ClaimKey{}) {
		return
	}
	kept := f.byClaim[r.ClaimKey][:0]
	for _, have := range f.byClaim[r.ClaimKey] {
		if have != id {
			kept = append(kept, have)
		}
	}
	if len(kept) == 0 {
		delete(f.byClaim, r.ClaimKey)
	} else {
		f.byClaim[r.ClaimKey] = kept
	}
}

func (f *Fleet) record(id env.ID) *Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records[id]
}

func notFound(id env.ID) error {
	return fmt.Errorf("%w: environment %s; list those that are with \"hearthctl list\"", env.ErrNotFound, id)
}
