package warm

import (
	"errors"
	"strings"
	"testing"

	"hearth/internal/env"
)

func TestAHeldEnvironmentStaysStoppedUntilItIsResumed(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	ran, slept := b.claim(n, Claim{Class: "demo"}), b.claim(n, Claim{Class: "demo"})
	if _, err := n.Pause(t.Context(), slept.ID); err != nil {
		t.Fatal(err)
	}
	for _, e := range []Environment{ran, slept} {
		for range 2 { // it may be repeated
			snap, err := n.SnapshotAndHold(t.Context(), e.ID)
			if err != nil || snap.Lineage != e.ID {
				t.Fatalf("hold = %+v, %v", snap, err)
			}
		}
		if got := b.phaseOf(n, e.ID); got != "paused frozen locked" {
			t.Errorf("a held environment is %s", got)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open(demoClass(0))
	for id, want := range map[env.ID]string{ran.ID: "running thawed open", slept.ID: "paused frozen open"} {
		if got := b.phaseOf(n, id); got != "paused frozen locked" {
			t.Errorf("after a restart a held environment is %s", got)
		}
		if got, _ := n.Get(id); !strings.Contains(got.Message, "move") {
			t.Errorf("message = %q", got.Message)
		}
		if _, err := n.Resume(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got := b.phaseOf(n, id); got != want {
			t.Errorf("resumed, it is %s, want %s", got, want)
		}
		if got, _ := n.Get(id); got.Message != "" {
			t.Errorf("message = %q", got.Message)
		}
	}
}

func TestAHeldEnvironmentIsFencedAndReleasedAsAnyOther(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	if _, err := n.SnapshotAndHold(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Fence(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := b.phaseOf(n, e.ID); got != "fenced frozen locked" {
			t.Errorf("it is %s", got)
		}
		if err := n.Unfence(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if got := b.phaseOf(n, e.ID); got != "paused frozen locked" {
			t.Errorf("it is %s", got)
		}
	}
	if _, err := n.Release(t.Context(), e.ID, 0, false); err != nil {
		t.Fatal(err)
	}
	if left := b.world.leftovers(); left["containers"] != 0 || left["islands"] != 0 {
		t.Errorf("left = %v", left)
	}
}

func TestAFailedHoldLetsTheEnvironmentGoOn(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	for _, failing := range []string{"capture", "freeze", "lock"} {
		b.world.failWith(func(call string) error {
			if call == failing {
				return errors.New("injected")
			}
			return nil
		})
		if _, err := n.SnapshotAndHold(t.Context(), e.ID); err == nil {
			t.Errorf("hold with a failing %s worked", failing)
		}
		b.world.failWith(nil)
		if got := b.phaseOf(n, e.ID); got != "running thawed open" {
			t.Errorf("after a failing %s it is %s", failing, got)
		}
	}
}

func TestWhatIsQuarantinedIsNotHeldAndWhatFailedIsOnlyCaptured(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	bad, dead := b.claim(n, Claim{Class: "demo"}), b.claim(n, Claim{Class: "demo"})
	if err := n.Quarantine(t.Context(), bad.Slot, "bad"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.SnapshotAndHold(t.Context(), bad.ID); !errors.Is(err, env.ErrState) {
		t.Errorf("hold = %v, want ErrState", err)
	}
	b.world.die(dead.PID)
	n.InitEnded(dead.Slot)
	if _, err := n.SnapshotAndHold(t.Context(), dead.ID); err != nil {
		t.Errorf("hold of a failed environment = %v", err)
	}
	if got, _ := n.Get(dead.ID); got.Phase != env.PhaseFailed {
		t.Errorf("phase = %s", got.Phase)
	}
}
