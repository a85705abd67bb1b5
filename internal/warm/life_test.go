package warm

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

func TestReleaseRefusesAnotherGeneration(t *testing.T) {
	requireChown(t)
	n := newBench(t).open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo", Generation: 3})
	if err != nil {
		t.Fatal(err)
	}
	id := a.Environment.ID
	if _, err := n.Release(t.Context(), id, 2, false); !errors.Is(err, env.ErrFenced) {
		t.Errorf("release of generation 2 = %v, want ErrFenced", err)
	}
	if _, err := n.Get(id); err != nil {
		t.Errorf("after the refusal: %v", err)
	}
	if _, err := n.Release(t.Context(), id, 3, false); err != nil {
		t.Error(err)
	}
}

func TestReleaseKeepsAnEnvironmentWhoseSnapshotFails(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	b.world.failWith(func(call string) error {
		if call == "capture" {
			return env.ErrExhausted
		}
		return nil
	})
	if _, err := n.Release(t.Context(), a.Environment.ID, 0, true); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("release = %v, want ErrExhausted", err)
	}
	if got, err := n.Get(a.Environment.ID); err != nil || got.Phase != env.PhaseRunning {
		t.Errorf("environment = %+v, %v", got, err)
	}
}

func TestAFailedClaimOfASnapshotLeavesNoLineage(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := n.Snapshot(t.Context(), a.Environment.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"start", "unlock"} {
		b.world.failWith(func(c string) error {
			if c == call {
				return errors.New("injected")
			}
			return nil
		})
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", Snapshot: snap.ID}); err == nil {
			t.Errorf("claim with a failing %s worked", call)
		}
		n.work.Wait()
		if got := b.world.forked(); got != 0 {
			t.Errorf("%s: %d lineages are left", call, got)
		}
	}
}

func TestAnEndedInitFailsItsEnvironmentAndLocksItsIsland(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	e := a.Environment
	b.world.die(e.PID)
	n.InitEnded(e.Slot)
	if got, _ := n.Get(e.ID); got.Phase != env.PhaseFailed {
		t.Errorf("phase = %s", got.Phase)
	}
	if got := b.world.island(e.Slot); got != "locked" {
		t.Errorf("island is %s", got)
	}
	if _, err := n.Pause(t.Context(), e.ID); !errors.Is(err, env.ErrState) {
		t.Errorf("pause = %v, want ErrState", err)
	}
	if _, err := n.Release(t.Context(), e.ID, 0, false); err != nil {
		t.Error(err)
	}
}

func TestABadEgressPolicyCostsNoSlot(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	b.world.failWith(func(call string) error {
		if call == "policy" {
			return env.ErrInvalid
		}
		return nil
	})
	if _, err := n.Claim(t.Context(), Claim{Class: "demo", Egress: &env.EgressPolicy{}}); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("claim = %v, want ErrInvalid", err)
	}
	if got := n.Pools()[0]; got.Ready != 1 {
		t.Errorf("pool = %+v", got)
	}
}

func TestSweepRemovesWhatBelongsToNoSlot(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	orphan := env.NewSlotID()
	b.world.containers[orphan] = 0
	b.world.cgroups[orphan] = &fakeCgroup{world: b.world, slot: orphan}
	b.world.islands[orphan] = "open"
	if err := n.sweep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if left := b.world.leftovers(); left["containers"] != 1 || left["cgroups"] != 1 || left["islands"] != 1 {
		t.Errorf("left = %v, want only the ready slot", left)
	}
}

// What an agent that died had asked of the runtime may come to be when the next one
// has looked already.
func TestWhatAppearsAfterAStartIsSweptSoon(t *testing.T) {
	inBubble(t, demoClass(1), func(b *bench, n *Node) {
		b.world.mu.Lock()
		b.world.containers[env.NewSlotID()] = 0
		b.world.mu.Unlock()
		time.Sleep(sweepSoon + idleCheck + time.Second)
		synctest.Wait()
		if left := b.world.leftovers(); left["containers"] != 1 {
			t.Errorf("left = %v, want only the ready slot", left)
		}
	})
}

func TestQuarantineDuringAClaimFollowsIt(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	b.world.failWith(func(call string) error {
		if call == "thaw" { // the environment runs, its claim is not answered yet
			for id := range n.slots {
				if n.slots[id].state.Env != nil {
					b.world.failWith(nil)
					if err := n.Quarantine(t.Context(), id, "mining"); err != nil {
						t.Errorf("quarantine: %v", err)
					}
				}
			}
		}
		return nil
	})
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	n.work.Wait()
	if got, _ := n.Get(a.Environment.ID); got.Phase != env.PhaseQuarantined {
		t.Errorf("phase = %s", got.Phase)
	}
	if !b.world.isFrozen(a.Environment.Slot) || b.world.island(a.Environment.Slot) != "locked" {
		t.Error("the guilty environment runs or its island is open")
	}
}

func TestQuarantineDuringASnapshotStaysFrozen(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	n.work.Wait()
	slot := a.Environment.Slot
	b.world.failWith(func(call string) error {
		if call == "capture" {
			b.world.failWith(nil)
			if err := n.Quarantine(t.Context(), slot, "mining"); err != nil {
				t.Errorf("quarantine: %v", err)
			}
		}
		return nil
	})
	if _, err := n.Snapshot(t.Context(), a.Environment.ID); err != nil {
		t.Fatal(err)
	}
	if !b.world.isFrozen(slot) {
		t.Error("the snapshot's end thawed a quarantined environment")
	}
}

func TestQuarantineFreezesThoughTheDiskIsFull(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	full := false
	b.fault = func(op string) error {
		if full && op == opJournal+":write" {
			return env.ErrExhausted
		}
		return nil
	}
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	n.work.Wait()
	full = true
	if err := n.Quarantine(t.Context(), a.Environment.Slot, "mining"); err != nil {
		t.Fatal(err)
	}
	if !b.world.isFrozen(a.Environment.Slot) {
		t.Error("a full disk kept the environment from being frozen")
	}
	if _, err := n.Release(t.Context(), a.Environment.ID, 0, false); err != nil {
		t.Errorf("release on a full disk = %v", err)
	}
	full = false
	n.mu.Lock()
	n.doomedAt = n.doomedAt.Add(-idleCheck)
	n.mu.Unlock()
	fillPools(t, n)
	if got := n.Room().SlotsUsed; got != 0 {
		t.Errorf("%d slots are remembered after the disk had room again", got)
	}
}

func TestAForkThatFailsHalfwayLeavesNoChild(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	parent, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	n.work.Wait()
	starts := 0
	b.world.failWith(func(call string) error {
		if call == "start" {
			if starts++; starts == 3 {
				return errors.New("injected")
			}
		}
		return nil
	})
	if _, answers, err := n.Fork(t.Context(), parent.Environment.ID, make([]Claim, 4)); err == nil || len(answers) != 0 {
		t.Errorf("fork = %d answers, %v", len(answers), err)
	}
	n.work.Wait()
	if got := n.List(); len(got) != 1 || got[0].ID != parent.Environment.ID {
		t.Errorf("%d environments run, want only the parent", len(got))
	}
}

func TestOperationsWaitForAClaimOrSayThatItIsUnderWay(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	id := env.NewID()
	b.world.failWith(func(call string) error {
		if call == "start" {
			if _, err := n.Release(t.Context(), id, 0, false); !errors.Is(err, env.ErrState) {
				t.Errorf("release during the claim = %v, want ErrState", err)
			}
			if _, err := n.Claim(t.Context(), Claim{ID: id, Class: "demo"}); !errors.Is(err, env.ErrExists) {
				t.Errorf("second claim of the id = %v, want ErrExists", err)
			}
		}
		return nil
	})
	if _, err := n.Claim(t.Context(), Claim{ID: id, Class: "demo"}); err != nil {
		t.Fatal(err)
	}
}

func TestHoldGivesUpWithItsCaller(t *testing.T) {
	requireChown(t)
	n := newBench(t).open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	_, done, err := n.hold(t.Context(), a.Environment.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Pause(ctx, a.Environment.ID); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("pause of a busy environment = %v, want ErrUnavailable", err)
	}
}
