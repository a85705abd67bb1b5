package warm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// loadKey reads the node's token key, or makes it.
func loadKey(dir *durable.Dir) ([]byte, error) {
	key, err := dir.ReadFile(keyFile, 4096)
	if errors.Is(err, env.ErrNotFound) {
		key = make([]byte, tokenKeySize)
		_, _ = rand.Read(key) // never fails: crypto/rand aborts the program instead
		err = dir.WriteFile(opKey, keyFile, key, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("token key: %w", err)
	}
	if len(key) != tokenKeySize {
		return nil, fmt.Errorf("%w: %s has %d bytes, not %d; remove it to make a new one: tokens given out end", env.ErrCorrupt, keyFile, len(key), tokenKeySize)
	}
	return key, nil
}

// recover compares the journal with containerd and the kernel: it takes back
// what lives, completes what was intended, and removes everything else that
// carries this instance's name.
func (n *Node) recover(ctx context.Context, past *replay) error {
	found, err := n.parts.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, st := range past.slots {
		if err := n.takeBack(ctx, st, found[st.ID]); err != nil {
			return err
		}
	}
	stale := make([]env.SlotID, 0, len(past.stale))
	for id := range past.stale {
		stale = append(stale, id)
	}
	if err := n.sweep(ctx, stale); err != nil {
		n.log.Error("sweep orphans", "error", err)
	}
	n.mu.Lock()
	kept, environments := len(n.slots), len(n.envs)
	n.mu.Unlock()
	if len(past.slots)+len(past.stale) > 0 {
		n.log.Info("state recovered", "slots", kept, "environments", environments, "journaled", len(past.slots), "earlier_boots", len(past.stale))
	}
	return n.compact()
}

// takeBack decides one journalled slot's fate and carries it out.
func (n *Node) takeBack(ctx context.Context, st slotState, pid int) error {
	s := &slot{id: st.ID, class: n.classOf(st), image: Image{Digest: st.Image}, state: st}
	verdict, why := judge(st, n.examine(ctx, s, pid))
	n.mu.Lock()
	n.slots[s.id] = s
	n.ids.adopt(st.IDs)
	n.mu.Unlock()
	if verdict == destroy {
		n.log.Info("slot not taken back", "slot", s.id, "reason", why)
		return n.removeFound(ctx, s)
	}
	if err := n.reopen(ctx, s); err != nil {
		n.log.Error("slot not taken back", "slot", s.id, "error", err)
		return n.removeFound(ctx, s)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if verdict == keepReady {
		p := n.pools[st.Class]
		if p == nil {
			n.background(s, "its class is gone")
			return nil
		}
		p.ready = append(p.ready, s)
		return nil
	}
	n.envs[st.Env.ID] = s
	if st.Env.Key != "" {
		k := &keyed{digest: st.Env.Digest, done: make(chan struct{}), id: st.Env.ID, at: time.Now()}
		close(k.done)
		n.keys[st.Env.Key] = k
	}
	return nil
}

// removeFound destroys a slot that is not taken back. What cannot be removed
// now is tried again later; only a journal that cannot be written is fatal.
func (n *Node) removeFound(ctx context.Context, s *slot) error {
	if err := n.destroy(context.WithoutCancel(ctx), s); err != nil {
		n.log.Error("remove slot", "slot", s.id, "error", err)
	}
	return nil
}

// examine asks the kernel about a slot and opens what it finds.
func (n *Node) examine(ctx context.Context, s *slot, pid int) finding {
	var f finding
	if cg, err := n.parts.Cgroups.Adopt(s.id); err == nil {
		s.cgroup = cg
		f.frozen, _ = cg.Frozen() // an unreadable cgroup counts as thawed: a ready slot is destroyed then
	}
	if pid != 0 && pid == s.state.PID && s.cgroup != nil {
		if p, err := n.parts.Inits.Open(pid); err == nil {
			s.init = p
			f.initAlive = p.Started() == s.state.PIDStart
		}
	}
	info, err := n.parts.Islands.Adopt(ctx, s.id, s.state.Island)
	if err == nil {
		s.island, f.island = info, true
	} else if len(s.state.Island) > 0 {
		n.log.Warn("adopt island", "slot", s.id, "error", err)
	}
	return f
}

// reopen makes a kept slot whole again: guest, sensors, policy and the freezer
// as the journal wants them.
func (n *Node) reopen(ctx context.Context, s *slot) error {
	st := s.state
	var err error
	if s.guest, err = n.parts.Guests.Dial(s.id, s.init); err != nil {
		return err
	}
	if err := n.parts.Detector.Bind(s.id, s.island.NetID, s.cgroup.ID(), s.class); err != nil {
		return err
	}
	if st.Env == nil {
		return s.init.OpenIdentity(st.IDs)
	}
	n.parts.Detector.Claimed(s.id, st.Env.ID)
	ctx, cancel := context.WithTimeout(ctx, n.cfg.UndoTimeout)
	defer cancel()
	if wantsFrozen(st.Env.Phase) {
		if st.Env.Phase == env.PhaseQuarantined {
			if err := n.parts.Islands.Lock(s.id); err != nil {
				return err
			}
		}
		return s.cgroup.Freeze(ctx)
	}
	if err := n.parts.Islands.Unlock(s.id, s.class.Egress, st.Env.Egress); err != nil {
		return err
	}
	return s.cgroup.Thaw(ctx)
}

// classOf is the class that a slot was made from; if its manifest has gone,
// what the journal knows of it.
func (n *Node) classOf(st slotState) *env.Class {
	if c := n.classes[st.Class]; c != nil {
		return c
	}
	return &env.Class{Name: st.Class, Revision: st.Revision, Egress: env.EgressPolicy{Mode: env.EgressNone}}
}

// sweep removes what carries this instance's name and belongs to no slot. A
// slot is known before anything is made for it, so what is listed first and
// not known then is nobody's.
func (n *Node) sweep(ctx context.Context, suspects []env.SlotID) error {
	orphans := map[env.SlotID]bool{}
	for _, id := range suspects {
		orphans[id] = true
	}
	containers, err := n.parts.Runtime.List(ctx)
	errs := []error{err}
	for id := range containers {
		orphans[id] = true
	}
	cgroups, err := n.parts.Cgroups.List()
	errs = append(errs, err)
	for _, id := range cgroups {
		orphans[id] = true
	}
	dirs, err := os.ReadDir(n.cfg.WorkDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, d := range dirs {
		if id, err := env.ParseSlotID(d.Name()); err == nil {
			orphans[id] = true
		}
	}
	for id := range orphans {
		if n.known(id) {
			continue
		}
		n.log.Warn("orphan removed", "slot", id)
		errs = append(errs, n.destroyOrphan(ctx, id))
	}
	return errors.Join(append(errs, n.parts.Islands.Sweep(ctx, n.known))...)
}

func (n *Node) known(id env.SlotID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.slots[id] != nil
}

// destroyOrphan removes a slot of which only the name is known.
func (n *Node) destroyOrphan(ctx context.Context, id env.SlotID) error {
	s := &slot{id: id, class: &env.Class{}, state: slotState{ID: id}}
	if cg, err := n.parts.Cgroups.Adopt(id); err == nil {
		s.cgroup = cg
	}
	return n.destroy(ctx, s)
}
