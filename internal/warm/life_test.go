package warm

import (
	"errors"
	"testing"

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
	b.world.fail = func(call string) error {
		if call == "capture" {
			return env.ErrExhausted
		}
		return nil
	}
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
		b.world.fail = func(c string) error {
			if c == call {
				return errors.New("injected")
			}
			return nil
		}
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", Snapshot: snap.ID}); err == nil {
			t.Errorf("claim with a failing %s worked", call)
		}
		n.work.Wait()
		if got := len(b.world.lineages); got != 0 {
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
	b.world.alive[e.PID] = false
	if err := n.InitEnded(e.Slot); err != nil {
		t.Fatal(err)
	}
	if got, _ := n.Get(e.ID); got.Phase != env.PhaseFailed {
		t.Errorf("phase = %s", got.Phase)
	}
	if got := b.world.islands[e.Slot]; got != "locked" {
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
	b.world.fail = func(call string) error {
		if call == "policy" {
			return env.ErrInvalid
		}
		return nil
	}
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
