package warm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hearth/internal/env"
)

// An environment keeps the revision of its class that it was made from, until it
// is told to move to the newest one, on its own node: with its id, generation,
// token and whatever else it was claimed with, its end, and its files. Its
// processes are new, as after a restore.
//
// It needs the room of two for a while. What may wait or fail comes first, while it
// runs: a capture of most of its files, a turn to have a slot made, room, the image,
// the island. Then it is held: frozen, locked and captured again, which finds little
// that is new. The slot is filled, becomes ready, and gets its identity. One record of the
// journal then makes that slot the environment. Until it is written, whatever
// fails, and the agent's death, gives the old slot its life back; after it the old
// slot is only removed.

// Keep says what an upgrade carries over of an environment's files.
type Keep int

const (
	KeepAll       Keep = iota // all of them, onto the same image
	KeepWorkspace             // /workspace; the rest is as the new image has it
)

// Upgraded is an upgrade's outcome.
type Upgraded struct {
	Environment Environment
	Snapshot    env.Snapshot // its files before
}

// upgradeMost bounds an upgrade's last steps, which are not undone any more.
const upgradeMost = configureTimeout

// Upgrade moves an environment to the newest revision of its class. One that is
// of it already is env.ErrState, unless the upgrade with this key made it so. An
// empty key is never a repetition. With KeepAll another image is env.ErrInvalid: what
// was written over files of the one does not belong on the other.
func (n *Node) Upgrade(ctx context.Context, id env.ID, key string, keep Keep) (Upgraded, error) {
	if len(key) > maxKey {
		return Upgraded{}, fmt.Errorf("%w: idempotency key of %d bytes, at most %d", env.ErrInvalid, len(key), maxKey)
	}
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return Upgraded{}, err
	}
	defer end()
	u := &upgrade{node: n, id: id, key: key, keep: keep, begun: time.Now()}
	defer u.letGo()
	err = u.run(ctx)
	if err != nil {
		err = hurried(ctx, fmt.Errorf("upgrade environment %s: %w", id, err))
	}
	u.count(err)
	if err != nil {
		return Upgraded{}, err
	}
	return Upgraded{Environment: n.viewOf(u.next), Snapshot: u.snapshot}, nil
}

// upgrade is one call of Upgrade. Its fields belong to that call's goroutine.
type upgrade struct {
	node  *Node
	id    env.ID
	key   string
	keep  Keep
	begun time.Time

	old, next *slot        // next is nil until it is the environment
	done      []func()     // let the slots go to other operations
	from      string       // revision
	stopped   time.Time    // when it was frozen; zero if it was not
	claim     Claim        // what it was claimed with
	snapshot  env.Snapshot // its files, since it was frozen
}

// Results of upgrades, as hearth_environment_upgrades_total has them.
const (
	upgradeDone    = "done"
	upgradeUndone  = "undone"  // it was stopped, and goes on as it was
	upgradeRefused = "refused" // it was not stopped
)

// count counts the upgrade, but not its answer when that is given again.
func (u *upgrade) count(err error) {
	result := upgradeDone
	switch {
	case u.next != nil && u.old == nil:
		return
	case u.next != nil:
	case u.stopped.IsZero():
		result = upgradeRefused
	default:
		result = upgradeUndone
		u.node.log.Warn("environment not upgraded; it goes on as it was", "environment", u.id, "slot", u.old.id, "error", err)
	}
	u.node.metrics.upgrades.WithLabelValues(result).Inc()
}

// letGo lets other operations have the slots.
func (u *upgrade) letGo() {
	for _, done := range u.done {
		done()
	}
	u.done = nil
}

func (u *upgrade) run(ctx context.Context) error {
	n := u.node
	s, err := n.find(u.id)
	if err != nil {
		return err
	}
	if n.stateOf(s).Env.upgradedBy(u.key) {
		return u.again(ctx)
	}
	if err := n.parts.Disk.Admit(0); err != nil {
		return err
	}
	class, err := n.upgradeOf(s)
	if err != nil {
		return err
	}
	// Said before it costs anything; it is looked at again when it counts.
	image, err := n.parts.Runtime.Image(ctx, class.Image)
	if err == nil {
		err = u.keep.fits(class, n.stateOf(s).Image, image.Digest)
	}
	if err == nil {
		err = n.roomFor(class, n.stateOf(s).Env.Limits)
	}
	if err == nil {
		err = u.copyAhead(ctx)
	}
	if err == nil {
		err = u.make(ctx, class, n.stateOf(s))
	}
	if err != nil {
		return err
	}
	return u.goOn(ctx)
}

// roomFor refuses what has no room at the moment.
func (n *Node) roomFor(class *env.Class, l env.Limits) error {
	boot, err := bootOf(class, l)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.createdLocked(class, boot) != nil:
		return nil
	case n.roomLocked() <= 0 && !n.removesLocked():
		return n.noRoom()
	}
	return n.fitsLocked(class.Name, boot.MemoryBytes)
}

// copyAhead captures the environment while it runs, however long that takes, so
// that it need not stand still for as long.
func (u *upgrade) copyAhead(ctx context.Context) error {
	s, done, err := u.node.hold(ctx, u.id)
	if err != nil {
		return err
	}
	defer done()
	_, err = u.node.snapshot(ctx, s, freezeWindow{u.node, s})
	return err
}

// upgradeOf is the class to which an environment can be upgraded now.
func (n *Node) upgradeOf(s *slot) (*env.Class, error) {
	st := n.stateOf(s)
	n.mu.Lock()
	class, fenced := n.classes[st.Class], n.fenced
	n.mu.Unlock()
	if fenced {
		return nil, errFenced
	}
	return class, st.upgradable(class)
}

// again is for a caller who did not get the answer.
func (u *upgrade) again(ctx context.Context) error {
	n := u.node
	s, done, err := n.hold(ctx, u.id)
	if err != nil {
		return err
	}
	u.done = append(u.done, done)
	e := n.stateOf(s).Env
	if !e.upgradedBy(u.key) {
		return fmt.Errorf("%w: it was upgraded again since", env.ErrState)
	}
	// It may have been removed since, which is no reason to say nothing.
	if u.snapshot, err = n.parts.Snapshots.Get(e.Upgrade.From); err != nil && !errors.Is(err, env.ErrNotFound) {
		return err
	}
	u.next = s
	return n.resettle(ctx, s)
}

// make has a slot made that becomes the environment: in its turn, as for a claim.
func (u *upgrade) make(ctx context.Context, class *env.Class, st slotState) error {
	n := u.node
	c := &Claim{ID: u.id, Class: st.Class, Tenant: st.Env.Tenant, Limits: st.Env.Limits, made: u.build}
	n.mu.Lock()
	defer n.poke()
	defer n.mu.Unlock()
	if n.closed {
		return errStopping
	}
	w, err := n.standInLine(ctx, class, c)
	if err != nil {
		return err
	}
	if _, err = n.makeCold(ctx, w); err == nil {
		n.claiming-- // it is handed over
	}
	return err
}

// build makes the slot and moves the environment there. On an error the slot is
// removed and the environment goes on where it was.
func (u *upgrade) build(ctx context.Context, w *waiter) (*slot, error) {
	class := w.turn
	if u.keep == KeepAll {
		class = asItWas(class) // the same machine; without its disk it is as good as a new one
	}
	return u.node.build(ctx, w.base, class, w.boot, func(ctx context.Context, s *slot) error {
		u.node.mu.Lock()
		s.succeeds = true
		u.node.mu.Unlock()
		if w.base == nil {
			if err := u.node.layOut(ctx, s); err != nil {
				return err
			}
		}
		err := u.move(ctx, s)
		if err != nil {
			u.giveBack(ctx)
		}
		return err
	})
}

// move moves the environment into a slot that is laid out.
func (u *upgrade) move(ctx context.Context, s *slot) error {
	n := u.node
	old, done, err := n.hold(ctx, u.id)
	if err != nil {
		return err
	}
	u.old, u.done = old, append(u.done, done)
	st := n.stateOf(old)
	u.from = st.Revision
	class, err := n.upgradeOf(old)
	if err == nil && class.Revision != s.class.Revision {
		err = fmt.Errorf("%w: class %s has changed again meanwhile: try again", env.ErrUnavailable, class.Name)
	}
	if err == nil {
		err = u.keep.fits(s.class, st.Image, s.image.Digest)
	}
	if err != nil {
		return err
	}
	binds, err := n.openBinds(&Claim{Class: st.Class, Tenant: st.Env.Tenant, Mounts: st.Env.Mounts, Lifetime: &Lifetime{}})
	if err != nil {
		return err
	}
	defer closeBinds(binds)
	if err := n.parts.Islands.Warm(s.class.Egress, st.Env.Egress); err != nil {
		return fmt.Errorf("egress policy: %w", err)
	}
	if err := u.stop(ctx); err != nil {
		return err
	}
	if err := n.raise(ctx, s, u.fill); err != nil {
		return err
	}
	if err := u.identify(s, binds); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // a caller who has gone wants it as it was
	}
	s.op <- struct{}{} // nobody knows it yet
	if err := n.succeed(old, s, u.key, u.snapshot.ID); err != nil {
		<-s.op
		return err
	}
	u.next, u.done = s, append(u.done, func() { <-s.op })
	return nil
}

// stop freezes, locks and captures the environment, and remembers what it was
// claimed with.
func (u *upgrade) stop(ctx context.Context) (err error) {
	n := u.node
	u.stopped = time.Now()
	window := holdWindow{node: n, slot: u.old, upgrade: true}
	if u.snapshot, err = n.snapshot(ctx, u.old, window); err != nil {
		return err
	}
	if err := window.Freeze(ctx); err != nil { // whatever the capture needed
		return err
	}
	u.claim, err = n.origin(u.old)
	u.claim.ID = u.id
	return err
}

// fill restores what is carried over.
func (u *upgrade) fill(ctx context.Context, _ Image, files Files) error {
	if err := u.node.parts.Disk.Admit(u.snapshot.Stats.Bytes); err != nil {
		return fmt.Errorf("restore snapshot %s of %d bytes: %w", u.snapshot.ID, u.snapshot.Stats.Bytes, err)
	}
	if u.keep == KeepWorkspace {
		files.Upper = ""
	}
	return u.node.parts.Snapshots.Restore(ctx, u.snapshot.ID, files)
}

// identify gives the slot, which is frozen, all that the environment was claimed
// with. To a restart it is a claim that was never answered.
func (u *upgrade) identify(s *slot, binds []Bind) error {
	n := u.node
	files, err := identityFiles(u.id, &u.claim)
	if err != nil {
		return err
	}
	e := n.stateOf(u.old).Env.successor(s.class, u.key, u.snapshot.ID)
	e.Phase = env.PhaseClaiming
	if err := n.change(s, func(st *slotState) { st.Phase, st.Env = env.SlotClaimed, e }); err != nil {
		return err
	}
	if err := n.equip(s, &u.claim, files, binds, newStopwatch()); err != nil {
		return err
	}
	n.parts.Detector.Claimed(s.id, u.id)
	return nil
}

// giveBack lets the environment go on in its old slot as if nothing had been, but
// for what was decided about it meanwhile.
func (u *upgrade) giveBack(ctx context.Context) {
	defer u.letGo()
	if u.old == nil {
		return
	}
	if err := u.node.endHold(context.WithoutCancel(ctx), u.old); err != nil {
		u.node.log.Error("let environment go on that was not upgraded; resume it", "environment", u.id, "slot", u.old.id, "error", err)
	}
}

// goOn lets the environment run in its new slot, and removes the old one. Nothing
// of it is undone: a resume, or the same upgrade, tries again what fails.
func (u *upgrade) goOn(ctx context.Context) error {
	n, s := u.node, u.next
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), upgradeMost)
	defer cancel()
	// A power failure must not leave the record of a slot whose files are gone.
	if err := n.journal.Sync(opJournal); err != nil {
		n.log.Error("sync journal", "environment", u.id, "error", err)
	}
	n.mu.Lock()
	condemned := s.condemned
	n.mu.Unlock()
	if condemned != "" {
		if err := n.quarantineSlot(ctx, s.id, condemned); err != nil {
			n.log.Error("quarantine upgraded environment", "environment", u.id, "error", err)
		}
	}
	if err := n.fenceLate(ctx, s); err != nil {
		n.log.Error("fence upgraded environment", "environment", u.id, "error", err)
	}
	err := n.resettle(ctx, s)
	if err == nil {
		err = n.startClaimed(ctx, s)
	}
	stood := time.Since(u.stopped)
	n.metrics.upgradeSeconds.Observe(stood.Seconds())
	n.log.Info("environment upgraded", "environment", u.id, "slot", s.id, "replaced", u.old.id, "class", s.class.Name,
		"from", u.from, "to", s.class.Revision, "stood", stood, "took", time.Since(u.begun))
	n.discard(u.old)
	if !s.init.Alive() {
		n.initEnded(s)
	}
	if err != nil {
		return fmt.Errorf("it is of the newest release, and does not go on; resume it: %w", err)
	}
	return nil
}

// startClaimed starts the services that wait for a claim: beside the caller, or, if
// the environment stands still, by letting it run for that long.
func (n *Node) startClaimed(ctx context.Context, s *slot) error {
	e := n.stateOf(s).Env
	switch {
	case !waitsForClaim(s.class) || e.shut():
		return nil
	case !wantsFrozen(e.Phase):
		n.work.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), n.cfg.UndoTimeout)
			defer cancel()
			n.claimed(ctx, s, e.ID)
		})
		return nil
	}
	s.settling.Lock()
	err := s.cgroup.Thaw(ctx)
	s.settling.Unlock()
	if err == nil {
		n.claimed(ctx, s, e.ID)
	}
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.cfg.UndoTimeout)
	defer cancel()
	return errors.Join(err, n.settle(again, s))
}
