package warm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
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
	if err := n.archiveClasses(slices.Collect(maps.Values(n.classes))); err != nil {
		return err
	}
	found, err := n.parts.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, st := range past.expired {
		n.buryEnvironment(st)
	}
	for _, st := range past.slots {
		if err := n.takeBack(ctx, st, finding{pid: found[st.ID], replaced: past.replaced[st.ID]}); err != nil {
			return err
		}
	}
	stale := make([]env.SlotID, 0, len(past.stale))
	for id, st := range past.stale {
		kept, ok := st.afterBoot(n.moment())
		if !ok || past.replaced[id] {
			stale = append(stale, id)
		} else if err := n.takeBack(ctx, kept, finding{rebooted: true}); err != nil {
			return err
		}
	}
	if err := n.sweep(ctx, stale); err != nil {
		n.log.Error("sweep orphans", "error", err)
	}
	n.mu.Lock()
	kept, environments, fenced := len(n.slots), len(n.envs), n.fenced
	n.mu.Unlock()
	if fenced { // complete what was intended
		if err := n.fenceAll(ctx); err != nil {
			n.log.Error("fence environments", "error", err)
		}
	}
	if len(past.slots)+len(past.stale) > 0 {
		n.log.Info("state recovered", "slots", kept, "environments", environments, "journaled", len(past.slots), "earlier_boots", len(past.stale))
	}
	if err := n.pruneArchive(); err != nil {
		n.log.Warn("prune kept classes", "error", err)
	}
	return n.compact()
}

// takeBack decides one journalled slot's fate and carries it out. Known is what was
// found already. Its error means that the slot could not be looked at: nothing is
// decided then.
func (n *Node) takeBack(ctx context.Context, st slotState, known finding) error {
	st = st.undisturbed()
	class, err := n.classOf(st)
	if err != nil {
		// What it was promised is lost with the file: it cannot be kept.
		n.log.Error("slot not taken back", "slot", st.ID, "error", err)
		class, st.Phase = &env.Class{Name: st.Class}, env.SlotPreparing
	}
	s := newSlot(st.ID, class)
	s.image, s.state = Image{Digest: st.Image}, st
	found, err := n.examine(ctx, s, known)
	if err != nil {
		s.letGo()
		return fmt.Errorf("look at slot %s: %w", st.ID, err)
	}
	n.mu.Lock()
	n.slots[s.id] = s
	n.ids.adopt(st.IDs)
	n.mu.Unlock()
	verdict, why := judge(st, found)
	if why != "" {
		n.log.Warn("slot changed by restart", "slot", s.id, "reason", why)
	}
	switch verdict {
	case keepReady:
		return n.keepReady(ctx, s)
	case keepEnvironment:
		if err := n.reopen(ctx, s); err != nil {
			n.fail(ctx, s, "it could not be taken back: "+err.Error())
		}
		n.enterEnvironment(s)
	case keepFailed:
		n.fail(ctx, s, why)
		n.enterEnvironment(s)
	default:
		n.remove(ctx, s)
	}
	return nil
}

// keepReady puts a ready slot back into its pool, frozen. Of one that was being
// checked nothing more is known than before the check. Its limits are read now, not
// by a claim.
func (n *Node) keepReady(ctx context.Context, s *slot) error {
	err := n.watch(s)
	if err == nil {
		err = s.init.OpenIdentity(s.state.IDs)
	}
	if err == nil {
		err = s.cgroup.SetLimits(s.boot)
	}
	if err == nil && s.state.Checking {
		err = n.endCheck(ctx, s, false)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.pools[s.class.Name]
	switch {
	case err != nil:
		n.background(s, err.Error())
	case p == nil:
		n.background(s, "its class is gone")
	default:
		p.ready = append(p.ready, s)
	}
	return nil
}

// enterEnvironment makes a kept environment known again, by its id and its key.
func (n *Node) enterEnvironment(s *slot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := s.state.Env
	n.envs[e.ID] = s
	if e.Key != "" {
		k := &keyed{digest: e.Digest, done: make(chan struct{}), id: e.ID}
		close(k.done)
		n.keys[e.Key] = k
		n.keyAges = append(n.keyAges, keyAgeing{e.Key, time.Now()})
	}
}

// fail keeps an environment's files, and nothing of it running.
func (n *Node) fail(ctx context.Context, s *slot, why string) {
	errs := []error{s.cgroup.Kill(ctx)}
	if err := n.parts.Islands.Lock(s.id); err != nil && !errors.Is(err, env.ErrNotFound) {
		errs = append(errs, err)
	}
	if s.guest == nil {
		guest, err := n.parts.Guests.Dial(s.id, s.init)
		s.guest = guest
		errs = append(errs, err)
	}
	errs = append(errs, n.setPhase(s, env.PhaseFailed, why+"; release it, or restore a snapshot", living...))
	if err := errors.Join(errs...); err != nil {
		n.log.Error("keep failed environment", "slot", s.id, "error", err)
	}
}

// remove destroys a slot that is not taken back. What cannot be removed now is
// tried again later.
func (n *Node) remove(ctx context.Context, s *slot) {
	if err := n.destroy(context.WithoutCancel(ctx), s); err != nil {
		n.log.Error("remove slot", "slot", s.id, "error", err)
	}
}

// examine asks the kernel about a slot and opens what it finds. Not being there
// is a finding; not being able to look is an error.
func (n *Node) examine(ctx context.Context, s *slot, f finding) (_ finding, err error) {
	s.init = endedInit{s.state.PID}
	if s.cgroup, err = n.parts.Cgroups.Adopt(s.id); err != nil {
		return f, err
	}
	if f.frozen, err = s.cgroup.Frozen(); err != nil {
		return f, err
	}
	if f.pid != 0 && f.pid == s.state.PID {
		p, err := n.parts.Inits.Open(f.pid)
		if err != nil && !errors.Is(err, env.ErrNotFound) {
			return f, err
		}
		if err == nil && p.Started() == s.state.PIDStart {
			s.init, f.initAlive = p, true
		} else if err == nil {
			p.Close() // another process has the number now
		}
	}
	info, err := n.parts.Islands.Adopt(ctx, s.id, s.state.Island)
	switch {
	case err == nil:
		s.island, f.island = info, true
	case errors.Is(err, env.ErrNotFound), errors.Is(err, env.ErrCorrupt):
		if len(s.state.Island) > 0 {
			n.log.Warn("adopt island", "slot", s.id, "error", err)
		}
	default:
		return f, err
	}
	return f, nil
}

// watch gives a kept slot its guest and its sensors back.
func (n *Node) watch(s *slot) (err error) {
	if s.guest, err = n.parts.Guests.Dial(s.id, s.init); err != nil {
		return err
	}
	if err := n.parts.Disk.Watch(s.id, s.cgroup.ID(), s.class.Name); err != nil {
		return err
	}
	return n.parts.Detector.Bind(s.id, s.island.NetID, s.cgroup.ID(), s.class)
}

// reopen makes a kept environment whole again: guest, sensors, policy and the
// freezer as the journal wants them. A freezer that does not follow is no
// reason to lose it: the user's next pause or resume tries again.
func (n *Node) reopen(ctx context.Context, s *slot) error {
	if err := n.watch(s); err != nil {
		return err
	}
	e := s.state.Env
	n.parts.Detector.Claimed(s.id, e.ID)
	var err error
	if e.shut() {
		err = n.parts.Islands.Lock(s.id)
	} else {
		err = n.parts.Islands.Unlock(s.id, s.class.Egress, e.Egress)
	}
	if err != nil {
		return err
	}
	if err := s.cgroup.SetLimits(live(s.resources(s.state))); err != nil { // the old ones hold
		n.log.Error("restore limits of environment", "environment", e.ID, "error", err)
	}
	if err := n.settle(ctx, s); err != nil {
		n.log.Error("settle environment", "environment", e.ID, "phase", e.Phase, "error", err)
	}
	return nil
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
	s := newSlot(id, &env.Class{})
	s.state.ID = id
	cg, err := n.parts.Cgroups.Adopt(id)
	if err == nil {
		s.cgroup = cg
	}
	return errors.Join(err, n.destroy(ctx, s))
}
