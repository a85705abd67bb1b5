package warm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// fill puts files into a slot before anything is mounted or started.
type fill func(ctx context.Context, image Image, files Files) error

// prepare makes a slot of the class ready: frozen, its island locked. It makes it of
// created, or, if that is nil, anew: then the caller has raised n.reserved for it.
func (n *Node) prepare(ctx context.Context, created *slot, class *env.Class, fill fill) (*slot, error) {
	return n.prepareWith(ctx, created, class, class.Resources, fill)
}

// prepareWith is prepare with other resources than the class's, which a created slot
// has.
func (n *Node) prepareWith(ctx context.Context, created *slot, class *env.Class, boot env.Resources, fill fill) (*slot, error) {
	return n.build(ctx, created, class, boot, func(ctx context.Context, s *slot) error {
		if created == nil {
			if err := n.layOut(ctx, s); err != nil {
				return err
			}
		}
		return n.raise(ctx, s, fill)
	})
}

// build takes a created slot, or reserves one, and does what is to be done to it. What
// was made before an error is removed again.
func (n *Node) build(ctx context.Context, created *slot, class *env.Class, boot env.Resources, do func(context.Context, *slot) error) (*slot, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.PrepareTimeout)
	defer cancel()
	s := created
	if s == nil {
		var err error
		if s, err = n.reserveSlot(class, boot); err != nil {
			return nil, err
		}
	} else {
		n.mu.Lock()
		s.class = class
		n.mu.Unlock()
	}
	ctx, abort := context.WithCancelCause(ctx)
	n.abortable(s, abort)
	defer func() {
		n.abortable(s, nil)
		abort(nil)
	}()
	if err := do(ctx, s); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = errors.Join(cause, err)
		}
		err = fmt.Errorf("prepare slot of class %s: %w", class.Name, err)
		return nil, errors.Join(err, n.destroy(context.WithoutCancel(ctx), s))
	}
	return s, nil
}

// abortable notes how a slot's preparation can be ended, nil for not at all.
func (n *Node) abortable(s *slot, abort context.CancelCauseFunc) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s.abort = abort
}

// reserveSlot reserves ids and enters the slot into journal and memory, so that
// whatever is made for it has an owner.
func (n *Node) reserveSlot(class *env.Class, boot env.Resources) (*slot, error) {
	s := newSlot(env.NewSlotID(), class)
	s.boot, s.asks = boot, boot.MemoryBytes
	if err := n.enter(s); err != nil {
		return nil, err
	}
	if err := n.change(s, func(*slotState) {}); err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.slots, s.id)
		n.ids.put(s.state.IDs)
		return nil, err
	}
	return s, nil
}

// enter gives the slot its ids and its place among the node's slots, if the
// node has the memory and the disk for it. Either way it takes the caller's
// reservation: from here on the slot counts itself.
func (n *Node) enter(s *slot) error {
	full := n.parts.Disk.Admit(0)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reserved--
	if full != nil {
		return full
	}
	if err := n.fitsLocked(s.class.Name, s.memoryLocked()); err != nil {
		return err
	}
	ids, err := n.ids.take()
	if err != nil {
		return err
	}
	s.state = slotState{
		ID: s.id, Phase: env.SlotPreparing, Class: s.class.Name, Revision: s.class.Revision,
		IDs: ids, Made: time.Now(),
	}
	n.slots[s.id] = s
	n.tell()
	return nil
}

// fitsLocked refuses a slot for whose memory there is no room. The caller holds mu.
func (n *Node) fitsLocked(class string, want int64) error {
	if used := n.memoryLocked(); used+want > n.memory {
		return fmt.Errorf("%w: %d of %d bytes of memory are promised, class %s needs %d; release environments or raise the node's budget (limits.memory)",
			env.ErrExhausted, used, n.memory, class, want)
	}
	return nil
}

// memoryLocked is what the limits of all slots add up to. The caller holds mu.
func (n *Node) memoryLocked() int64 {
	var sum int64
	for _, s := range n.slots {
		sum += s.memoryLocked()
	}
	return sum
}

// layOut makes what a slot needs before it has a container. Nothing is mounted, so
// that it may be filled, and nothing of the image runs.
func (n *Node) layOut(ctx context.Context, s *slot) error {
	id, ids := s.id, n.stateOf(s).IDs
	var err error
	if s.image, err = n.parts.Runtime.Image(ctx, s.class.Image); err != nil {
		return err
	}
	s.files = Files{IDs: ids}
	if s.files.Upper, err = n.parts.Runtime.Prepare(ctx, id, s.image, ids); err != nil {
		return err
	}
	if s.files.Workspace, err = n.makeWorkspace(id, ids); err != nil {
		return err
	}
	if most := s.class.Resources.DiskBytes; most > 0 {
		if err := n.parts.Disk.Bound(ctx, id, ids, most, s.files.Workspace); err != nil {
			return err
		}
	}
	island, err := n.parts.Islands.Create(ctx, id, ids)
	if err != nil {
		return err
	}
	s.island = island.IslandInfo
	s.namespaces = namespaces{island.UserNS, island.NetNS, island.Held, island.Connect, island.ReleaseHolder}
	if s.cgroup, err = n.parts.Cgroups.Create(id, s.boot); err != nil {
		return err
	}
	if err := n.parts.Detector.Bind(id, island.NetID, s.cgroup.ID(), s.class); err != nil {
		return err
	}
	return n.parts.Disk.Watch(id, s.cgroup.ID(), s.class.Name)
}

// raise makes a slot that is laid out ready: the sensors are there before the first
// process, the island's link and the door to its identity before the first process of
// the image.
func (n *Node) raise(ctx context.Context, s *slot, fill fill) error {
	if fill != nil {
		if err := fill(ctx, s.image, s.files); err != nil {
			return err
		}
	}
	if err := n.contain(ctx, s); err != nil {
		return err
	}
	if err := n.boot(ctx, s); err != nil {
		return err
	}
	if err := s.cgroup.Freeze(ctx); err != nil {
		return err
	}
	return n.change(s, func(st *slotState) {
		st.Phase, st.Filled = env.SlotReady, fill != nil
		st.Image, st.Upper = s.image.Digest, s.files.Upper
		st.PID, st.PIDStart = s.init.PID(), s.init.Started()
		st.Island, st.Proven = s.island.Record, time.Now()
	})
}

// namespaces are those of a slot that has no container yet.
type namespaces struct {
	user, net string
	held      func() bool                                      // nil is for ever
	connect   func(context.Context) (record []byte, err error) // nil once they have a link
	release   func() error                                     // ends what holds them; nil for none
}

func (ns *namespaces) letGo() error {
	release := ns.release
	if release == nil {
		return nil
	}
	ns.release = nil
	return release()
}

// connect gives the slot's namespaces their link, if they have none.
func (s *slot) connect(ctx context.Context) (err error) {
	if s.namespaces.connect == nil {
		return nil
	}
	s.island.Record, err = s.namespaces.connect(ctx)
	s.namespaces.connect = nil
	return err
}

// contain makes the container in the slot's namespaces, and their link meanwhile.
func (n *Node) contain(ctx context.Context, s *slot) error {
	// What holds them may go as soon as the container has been created, or has not.
	defer func() {
		if err := s.namespaces.letGo(); err != nil {
			n.log.Warn("release namespace holder", "slot", s.id, "error", err)
		}
	}()
	class := *s.class
	class.Resources = s.boot
	var pid int
	both, making := errgroup.WithContext(ctx)
	both.Go(func() error { return s.connect(making) })
	both.Go(func() (err error) {
		pid, err = n.parts.Runtime.Create(making, Container{
			Slot: s.id, Class: &class, Image: s.image, IDs: s.files.IDs,
			UserNS: s.namespaces.user, NetNS: s.namespaces.net,
			Cgroup: s.cgroup.ContainerPath(), Workspace: s.files.Workspace,
		})
		return err
	})
	if err := both.Wait(); err != nil {
		return err
	}
	// Now the container has a cgroup of its own below.
	if err := s.cgroup.SetLimits(s.boot); err != nil {
		return err
	}
	var err error
	if s.init, err = n.parts.Inits.Open(pid); err != nil {
		return err
	}
	return s.init.OpenIdentity(s.files.IDs)
}

// boot starts init and waits until the class's probe has passed.
func (n *Node) boot(ctx context.Context, s *slot) error {
	if err := n.parts.Runtime.Start(ctx, s.id); err != nil {
		return err
	}
	var err error
	if s.guest, err = n.parts.Guests.Dial(s.id, s.init); err != nil {
		return err
	}
	if err := n.configure(ctx, s); err != nil {
		return err
	}
	if err := n.awaitReady(ctx, s); err != nil {
		return err
	}
	return n.parts.Islands.Warm(s.class.Egress, nil)
}

// Bounds of what init may take, so that one that lies or hangs does not keep
// the pools waiting for the whole of PrepareTimeout.
const (
	configureTimeout = 15 * time.Second
	readyTimeout     = 30 * time.Second // where the class's probe says nothing
	readySlack       = 10 * time.Second // beyond the probe's own time
)

// awaitReady waits for the class's probe, which init itself should end in time.
func (n *Node) awaitReady(ctx context.Context, s *slot) error {
	limit := s.class.Readiness.Timeout
	if limit <= 0 {
		limit = readyTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit+readySlack, fmt.Errorf(
		"%w: init did not say within %s whether the slot is ready: it hangs or lies; compare the binary at initPath with the release's", env.ErrUnavailable, limit+readySlack))
	defer cancel()
	return s.guest.AwaitReady(ctx)
}

// configure waits until init listens, which it does as the first thing after
// its start, and hands the class over.
func (n *Node) configure(ctx context.Context, s *slot) error {
	ctx, cancel := context.WithTimeoutCause(ctx, configureTimeout, fmt.Errorf(
		"%w: init did not take its class within %s: it hangs or lies; compare the binary at initPath with the release's", env.ErrUnavailable, configureTimeout))
	defer cancel()
	const first, most = time.Millisecond, 20 * time.Millisecond
	for delay := first; ; delay = min(2*delay, most) {
		err := s.guest.Configure(ctx, s.class)
		if !errors.Is(err, env.ErrUnavailable) {
			return err
		}
		if !s.init.Alive() {
			return fmt.Errorf("init ended before it listened: %w", err)
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(err, cause) {
				err = errors.Join(cause, err)
			}
			return err
		}
	}
}

// workspace is the host directory of a slot's /workspace.
func (n *Node) workspace(id env.SlotID) string {
	return filepath.Join(n.cfg.WorkDir, string(id), "workspace")
}

// makeWorkspace makes the host directory that becomes /workspace.
func (n *Node) makeWorkspace(id env.SlotID, ids env.IDRange) (string, error) {
	dir := n.workspace(id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make workspace: %w", err)
	}
	if err := os.Chown(dir, int(ids.Base), int(ids.Base)); err != nil {
		return "", fmt.Errorf("own workspace: %w", err)
	}
	return dir, nil
}

// destroy removes every trace of a slot, whatever was made of it. It goes on
// after an error, and keeps the slot in journal and memory then: the removal is
// tried again a while later, and at the next start.
func (n *Node) destroy(ctx context.Context, s *slot) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.UndoTimeout)
	defer cancel()
	n.mu.Lock()
	s.doomed = true
	removed := s.removed
	n.mu.Unlock()
	if !removed {
		if err := n.removeParts(ctx, s); err != nil {
			n.metrics.leaks.Inc()
			n.retryLater(s)
			return err
		}
	}
	if err := n.forget(s); err != nil {
		// Nothing is left but the record, which says no more than a restart
		// would find out.
		n.log.Warn("forget removed slot", "slot", s.id, "error", err)
		n.retryLater(s)
		return nil
	}
	n.poke()
	return nil
}

// removeParts removes all that was made of a slot, in the order that keeps it
// harmless, and lets go of it when nothing is left.
func (n *Node) removeParts(ctx context.Context, s *slot) error {
	id := s.id
	var errs []error
	try := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s of slot %s: %w", what, id, err))
		}
	}
	if err := n.parts.Islands.Lock(id); err != nil && !errors.Is(err, env.ErrNotFound) {
		try("lock island", err)
	}
	if s.cgroup != nil {
		try("kill", s.cgroup.Kill(ctx))
	}
	try("delete container", n.parts.Runtime.Delete(ctx, id))
	n.parts.Detector.Unbind(id)
	n.parts.Disk.Unwatch(id)
	try("end namespaces", s.namespaces.letGo())
	try("destroy island", n.parts.Islands.Destroy(ctx, id))
	if s.cgroup != nil {
		try("remove cgroup", s.cgroup.Remove(ctx))
	}
	try("remove files", durable.RemoveAll(ctx, filepath.Join(n.cfg.WorkDir, string(id))))
	if s.class.Resources.DiskBytes > 0 {
		try("unbound disk", n.parts.Disk.Unbound(s.state.IDs))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.letGo()
	n.mu.Lock()
	defer n.mu.Unlock()
	s.removed = true
	return nil
}

// retryLater keeps a slot known whose removal is to be tried again.
func (n *Node) retryLater(s *slot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slots[s.id] = s
	n.doomed, n.doomedAt = append(n.doomed, s), time.Now()
}
