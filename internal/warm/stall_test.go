package warm

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"hearth/internal/env"
)

type fakeDisk struct{ *world }

func (w fakeDisk) Admit(uint64) error { return w.call("admit") }

func (w fakeDisk) Watch(slot env.SlotID, _ uint64, _ string) error {
	if err := w.call("watch"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watched[slot] = true
	return nil
}

func (w fakeDisk) Unwatch(slot env.SlotID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watched, slot)
}

func (w fakeDisk) Bound(_ context.Context, _ env.SlotID, ids env.IDRange, bytes int64, workspace string) error {
	if err := w.call("bound"); err != nil {
		return err
	}
	if _, err := os.Stat(workspace); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quotas[ids.Base] = bytes
	return nil
}

func (w fakeDisk) Unbound(ids env.IDRange) error {
	if err := w.call("unbound"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.quotas, ids.Base)
	return nil
}

// full makes the disk refuse everything, or admit it again.
func (w *world) full(is bool) {
	if !is {
		w.failWith(nil)
		return
	}
	w.failWith(func(call string) error {
		if call == "admit" {
			return env.ErrExhausted
		}
		return nil
	})
}

func wantPhase(t *testing.T, b *bench, n *Node, id env.ID, want string) {
	t.Helper()
	if got := b.phaseOf(n, id); got != want {
		t.Errorf("environment is %q, want %q", got, want)
	}
}

func TestAStalledEnvironmentGoesOnWhenThereIsRoom(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	id, slot := e.ID, e.Slot
	if err := n.Stall(t.Context(), slot, "the disk is short"); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, id, "stalled frozen open")
	if e, _ := n.Get(id); e.Message != "the disk is short" {
		t.Errorf("message = %q", e.Message)
	}
	if err := n.Stall(t.Context(), slot, "again"); !errors.Is(err, env.ErrState) {
		t.Errorf("second stall = %v, want ErrState", err)
	}

	// Another agent takes over: what it finds stalled stays so until it relieves.
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open(demoClass(0))
	wantPhase(t, b, n, id, "stalled frozen open")
	if err := n.Relieve(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, id, "running thawed open")
	if e, _ := n.Get(id); e.Message != "" {
		t.Errorf("message = %q", e.Message)
	}
}

func TestReliefLeavesWhatSomebodyElseStopped(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	claim := func() Environment {
		e := b.claim(n, Claim{Class: "demo"})
		if err := n.Stall(t.Context(), e.Slot, "short"); err != nil {
			t.Fatal(err)
		}
		return e
	}
	paused, held, guilty, resumed := claim(), claim(), claim(), claim()
	if _, err := n.Pause(t.Context(), paused.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := n.SnapshotAndHold(t.Context(), held.ID); err != nil {
		t.Fatal(err)
	}
	if err := n.Quarantine(t.Context(), guilty.Slot, "mining"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Resume(t.Context(), resumed.ID); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, resumed.ID, "running thawed open")
	if err := n.Relieve(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, paused.ID, "paused frozen open")
	wantPhase(t, b, n, held.ID, "paused frozen locked")
	wantPhase(t, b, n, guilty.ID, "quarantined frozen locked")

	// What was held comes back stalled, and is relieved with the rest.
	if _, err := n.Resume(t.Context(), held.ID); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, held.ID, "stalled frozen open")
	if err := n.Relieve(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, held.ID, "running thawed open")
}

func TestAStalledEnvironmentIsFencedAndComesBackStalled(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	id := e.ID
	for _, step := range []error{
		n.Stall(t.Context(), e.Slot, "short"), n.Fence(t.Context()), n.Relieve(t.Context()),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	wantPhase(t, b, n, id, "fenced frozen locked")
	if err := n.Unfence(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, id, "stalled frozen open")
	if e, _ := n.Get(id); e.Message != stalledMessage {
		t.Errorf("message = %q", e.Message)
	}
	if err := n.Relieve(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, id, "running thawed open")
}

func TestAShortDiskRefusesWhatWouldFillIt(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	e := b.claim(n, Claim{Class: "demo"})
	snap, err := n.Snapshot(t.Context(), e.ID)
	if err != nil {
		t.Fatal(err)
	}
	b.world.full(true)
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, env.ErrExhausted) {
			t.Errorf("%s = %v, want ErrExhausted", what, err)
		}
	}
	_, err = n.Claim(t.Context(), Claim{Class: "demo"})
	refused("claim", err)
	_, err = n.Claim(t.Context(), Claim{Class: "demo", Snapshot: snap.ID})
	refused("restore", err)
	_, err = n.Snapshot(t.Context(), e.ID)
	refused("snapshot", err)
	n.mu.Lock()
	n.reserved++
	class := n.classes["demo"]
	n.mu.Unlock()
	_, err = n.prepare(t.Context(), nil, class, nil)
	refused("preparation", err)
	// A release must not be: it gives room back.
	if _, err := n.Release(t.Context(), e.ID, 0, true); err != nil {
		t.Errorf("release = %v", err)
	}
	b.world.full(false)
	if _, err := n.Claim(t.Context(), Claim{Class: "demo"}); err != nil {
		t.Errorf("claim with room = %v", err)
	}
}

func TestAStalledSlotThatNobodyClaimedIsReplaced(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	n.mu.Lock()
	s := n.pools["demo"].ready[0]
	n.mu.Unlock()
	if err := n.Stall(t.Context(), s.id, "short"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Inspect(string(s.id)); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("the slot is still there: %v", err)
	}
	if err := n.Stall(t.Context(), s.id, "short"); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("second stall = %v, want ErrNotFound", err)
	}
	if b.world.watched[s.id] {
		t.Error("its writes are still counted")
	}
}

func TestAStallEndsAPreparation(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	var stalled error
	b.world.failWith(func(call string) error {
		if call != "start" {
			return nil
		}
		n.mu.Lock()
		var id env.SlotID
		for id = range n.slots {
		}
		n.mu.Unlock()
		stalled = n.Stall(t.Context(), id, "the disk is short")
		return errors.New("what runs meanwhile ends")
	})
	_, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if stalled != nil {
		t.Errorf("stall = %v", stalled)
	}
	if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), "it writes while the disk is short") {
		t.Errorf("claim = %v", err)
	}
	n.work.Wait()
	if got := b.world.leftovers()["containers"]; got != 0 {
		t.Errorf("%d containers are left", got)
	}
}

func TestAStallHoldsAlsoWhereTheJournalCannotBeWritten(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	broken := false
	b.fault = func(op string) error {
		if broken && strings.HasPrefix(op, opJournal) {
			return syscall.ENOSPC
		}
		return nil
	}
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	broken = true
	if err := n.Stall(t.Context(), e.Slot, "short"); err != nil {
		t.Fatal(err)
	}
	wantPhase(t, b, n, e.ID, "stalled frozen open")
}
