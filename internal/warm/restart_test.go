package warm

import (
	"errors"
	"strings"
	"testing"

	"hearth/internal/env"
)

func TestRestartKeepsTheFilesOfAnEnvironmentWhoseInitHasEnded(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	b.world.die(a.Environment.PID)
	for range 2 { // failed stays failed over a further restart
		n = b.open(demoClass(0))
		got, err := n.Get(a.Environment.ID)
		if err != nil || got.Phase != env.PhaseFailed || !strings.Contains(got.Message, "init ended") {
			t.Fatalf("environment = %+v, %v", got, err)
		}
		n.InitEnded(a.Environment.Slot) // containerd may tell it again
		if _, err := n.Inspect(string(a.Environment.Slot)); err != nil {
			t.Error(err)
		}
		if _, err := n.Snapshot(t.Context(), a.Environment.ID); err != nil {
			t.Errorf("snapshot of a failed environment: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	n = b.open(demoClass(0))
	if _, err := n.Release(t.Context(), a.Environment.ID, 0, false); err != nil {
		t.Error(err)
	}
	if left := b.world.leftovers(); left["containers"] != 0 || left["cgroups"] != 0 {
		t.Errorf("left = %v", left)
	}
}

func TestRestartKeepsTheClassThatASlotWasMadeFrom(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	old := demoClass(0)
	old.Snapshot.OnRelease = true
	old.Resources.MemoryBytes = 7 << 20
	n := b.open(old)
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open() // its manifest has gone
	if got := n.Room().MemoryReserved; got != 7<<20 {
		t.Errorf("%d bytes reserved", got)
	}
	snap, err := n.Release(t.Context(), a.Environment.ID, 0, false)
	if err != nil || snap.ID == "" {
		t.Errorf("release = %+v, %v, want the snapshot that the class promised", snap, err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open()
	if names, err := n.state.List(); err != nil || strings.Contains(strings.Join(names, " "), archivePrefix) {
		t.Errorf("kept classes = %v, %v, want none", names, err)
	}
}

func TestAStartThatCannotLookDestroysNothing(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	b.world.failWith(func(call string) error {
		if call == "open" {
			return errors.New("too many open files")
		}
		return nil
	})
	if err := b.tryOpen(demoClass(0)); err == nil {
		t.Error("the agent started without knowing what runs")
	}
	b.world.failWith(nil)
	n = b.open(demoClass(0))
	if got, err := n.Get(a.Environment.ID); err != nil || got.Phase != env.PhaseRunning {
		t.Errorf("environment = %+v, %v", got, err)
	}
}

func TestASlotThatCannotBeRemovedIsTriedAgain(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	n.work.Wait()
	b.world.failWith(func(call string) error {
		if call == "delete" {
			return errors.New("injected")
		}
		return nil
	})
	if _, err := n.Release(t.Context(), a.Environment.ID, 0, false); err == nil {
		t.Error("release with a failing delete worked")
	}
	n.InitEnded(a.Environment.Slot) // its init is killed: no panic, no failed environment
	if err := n.Quarantine(t.Context(), a.Environment.Slot, "late"); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("quarantine of a doomed slot = %v", err)
	}
	b.world.failWith(nil)
	n.mu.Lock()
	n.doomedAt = n.doomedAt.Add(-idleCheck)
	n.mu.Unlock()
	fillPools(t, n)
	if left := b.world.leftovers(); left["containers"] != 0 || left["cgroups"] != 0 || left["islands"] != 0 {
		t.Errorf("left = %v", left)
	}
}
