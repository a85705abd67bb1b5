package detect

import (
	"fmt"
	"sync"

	"hearth/internal/env"
)

// bound is a watched slot.
type bound struct {
	Subject
	env env.ID // guarded by subjects.mu; empty until claimed
}

// subjects finds slots by each of their keys.
type subjects struct {
	mu       sync.RWMutex // guards all fields and bound.env
	bySlot   map[env.SlotID]*bound
	byNet    map[env.NetID]*bound
	byCgroup map[uint64]*bound
}

func newSubjects() *subjects {
	return &subjects{
		bySlot:   map[env.SlotID]*bound{},
		byNet:    map[env.NetID]*bound{},
		byCgroup: map[uint64]*bound{},
	}
}

// add takes a subject all of whose keys are free.
func (t *subjects) add(s Subject) error {
	if s.Slot == "" || s.NetID == 0 || s.CgroupID == 0 {
		return fmt.Errorf("bind slot %q: %w: slot, net id and cgroup id are needed", s.Slot, env.ErrInvalid)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.bySlot[s.Slot] != nil:
		return fmt.Errorf("bind slot %s: %w: the slot is bound", s.Slot, env.ErrExists)
	case t.byNet[s.NetID] != nil:
		return fmt.Errorf("bind slot %s: %w: net id %d is slot %s's", s.Slot, env.ErrExists, s.NetID, t.byNet[s.NetID].Slot)
	case t.byCgroup[s.CgroupID] != nil:
		return fmt.Errorf("bind slot %s: %w: cgroup %d is slot %s's", s.Slot, env.ErrExists, s.CgroupID, t.byCgroup[s.CgroupID].Slot)
	}
	b := &bound{Subject: s}
	t.bySlot[s.Slot], t.byNet[s.NetID], t.byCgroup[s.CgroupID] = b, b, b
	return nil
}

func (t *subjects) remove(slot env.SlotID) (*bound, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.bySlot[slot]
	if b == nil {
		return nil, false
	}
	delete(t.bySlot, slot)
	delete(t.byNet, b.NetID)
	delete(t.byCgroup, b.CgroupID)
	return b, true
}

func (t *subjects) claimed(slot env.SlotID, id env.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.bySlot[slot]; b != nil {
		b.env = id
	}
}

func (t *subjects) net(id env.NetID) *bound {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byNet[id]
}

func (t *subjects) cgroup(id uint64) *bound {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byCgroup[id]
}

func (t *subjects) environment(b *bound) env.ID {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return b.env
}

func (t *subjects) list() []*bound {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]*bound, 0, len(t.bySlot))
	for _, b := range t.bySlot {
		all = append(all, b)
	}
	return all
}
