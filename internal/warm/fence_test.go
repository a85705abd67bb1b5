package warm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"hearth/internal/env"
)

// phaseOf is an environment's, with its freezer and its island.
func (b *bench) phaseOf(n *Node, id env.ID) string {
	b.t.Helper()
	e, err := n.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	state := "thawed"
	if b.world.isFrozen(e.Slot) {
		state = "frozen"
	}
	return fmt.Sprintf("%s %s %s", e.Phase, state, b.world.island(e.Slot))
}

func (b *bench) claim(n *Node, c Claim) Environment {
	b.t.Helper()
	a, err := n.Claim(b.t.Context(), c)
	if err != nil {
		b.t.Fatal(err)
	}
	n.work.Wait()
	return a.Environment
}

// fenced makes a node with an environment of each sort, and fences it.
func fencedBench(t *testing.T) (b *bench, n *Node, classes []*env.Class, ids map[string]env.ID) {
	t.Helper()
	requireChown(t)
	b = newBench(t)
	free := demoClass(0)
	free.Name, free.RunOnPartition = "free", true
	classes = []*env.Class{demoClass(0), free}
	n = b.open(classes...)
	ids = map[string]env.ID{}
	for _, name := range []string{"running", "paused", "quarantined", "stale"} {
		ids[name] = b.claim(n, Claim{Class: "demo"}).ID
	}
	ids["free"] = b.claim(n, Claim{Class: "free"}).ID
	if _, err := n.Pause(t.Context(), ids["paused"]); err != nil {
		t.Fatal(err)
	}
	e, _ := n.Get(ids["quarantined"])
	if err := n.Quarantine(t.Context(), e.Slot, "bad"); err != nil {
		t.Fatal(err)
	}
	if err := n.Fence(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b, n, classes, ids
}

func wantPhases(t *testing.T, b *bench, n *Node, ids map[string]env.ID, want map[string]string) {
	t.Helper()
	for name, phase := range want {
		if got := b.phaseOf(n, ids[name]); got != phase {
			t.Errorf("%s is %s, want %s", name, got, phase)
		}
	}
}

var whileFenced = map[string]string{
	"running": "fenced frozen locked", "paused": "fenced frozen locked", "stale": "fenced frozen locked",
	"quarantined": "quarantined frozen locked", "free": "running thawed open",
}

func TestAFencedNodeStopsWhatMayNotRunOnAlsoOverARestart(t *testing.T) {
	b, n, classes, ids := fencedBench(t)
	for round := range 3 {
		wantPhases(t, b, n, ids, whileFenced)
		if !n.Fenced() {
			t.Error("the node does not know that it is fenced")
		}
		if _, err := n.Claim(t.Context(), Claim{Class: "demo"}); !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "controller") {
			t.Errorf("claim of a fenced node = %v", err)
		}
		for name, op := range map[string]func() error{
			"resume": func() error { _, err := n.Resume(t.Context(), ids["running"]); return err },
			"pause":  func() error { _, err := n.Pause(t.Context(), ids["running"]); return err },
			"hold":   func() error { _, err := n.SnapshotAndHold(t.Context(), ids["running"]); return err },
		} {
			if err := op(); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "controller") {
				t.Errorf("%s of a fenced environment = %v", name, err)
			}
		}
		if err := n.Fence(t.Context()); err != nil { // it may be repeated
			t.Error(err)
		}
		if round < 2 {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			n = b.open(classes...)
		}
	}
	if _, err := n.Snapshot(t.Context(), ids["running"]); err != nil {
		t.Errorf("snapshot of a fenced environment: %v", err)
	}
	if _, err := n.Release(t.Context(), ids["running"], 0, false); err != nil {
		t.Errorf("release of a fenced environment: %v", err)
	}
}

func TestUnfencingGivesBackThePhasesButThawsNothingStale(t *testing.T) {
	b, n, classes, ids := fencedBench(t)
	after := map[string]string{
		"running": "running thawed open", "paused": "paused frozen open", "stale": "fenced frozen locked",
		"quarantined": "quarantined frozen locked", "free": "running thawed open",
	}
	for range 2 { // the second time there is nothing to do
		if err := n.Unfence(t.Context(), []env.ID{ids["stale"]}); err != nil {
			t.Fatal(err)
		}
		wantPhases(t, b, n, ids, after)
	}
	if n.Fenced() {
		t.Error("the node is still fenced")
	}
	b.claim(n, Claim{Class: "demo"})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open(classes...)
	wantPhases(t, b, n, ids, after)
	if err := n.Unfence(t.Context(), nil); err != nil { // it was believed after all
		t.Fatal(err)
	}
	wantPhases(t, b, n, ids, map[string]string{"stale": "running thawed open"})
}

func TestAStaleEnvironmentIsStoppedThoughTheNodeWasNeverFenced(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	stale, held := b.claim(n, Claim{Class: "demo"}), b.claim(n, Claim{Class: "demo"})
	if _, err := n.SnapshotAndHold(t.Context(), held.ID); err != nil {
		t.Fatal(err)
	}
	if err := n.Unfence(t.Context(), []env.ID{stale.ID, held.ID}); err != nil {
		t.Fatal(err)
	}
	if got := b.phaseOf(n, stale.ID); got != "fenced frozen locked" {
		t.Errorf("the stale one is %s", got)
	}
	if got := b.phaseOf(n, held.ID); got != "paused frozen locked" {
		t.Errorf("the held one is %s: its move may come to nothing", got)
	}
}

func TestAFullDiskKeepsNobodyFromBeingFenced(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	full := false
	b.fault = func(op string) error {
		if full && (op == opJournal+":write" || op == opFence+":write") {
			return env.ErrExhausted
		}
		return nil
	}
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	full = true
	if err := n.Fence(t.Context()); err != nil {
		t.Error(err)
	}
	if got := b.phaseOf(n, e.ID); got != "fenced frozen locked" {
		t.Errorf("the environment is %s", got)
	}
	full = false
	if err := n.Unfence(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if got := b.phaseOf(n, e.ID); got != "running thawed open" {
		t.Errorf("the environment is %s", got)
	}
}

func TestAClaimThatAFenceOvertakesFailsAndLeavesNothing(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	b.world.failWith(func(call string) error {
		if call == "thaw" {
			return n.Fence(t.Context())
		}
		return nil
	})
	if _, err := n.Claim(t.Context(), Claim{Class: "demo"}); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("claim = %v, want ErrUnavailable", err)
	}
	b.world.failWith(nil)
	n.work.Wait()
	if left := b.world.leftovers(); left["containers"] != 0 || len(n.List()) != 0 {
		t.Errorf("left = %v, %v", left, n.List())
	}
}

func TestADeathInTheMiddleOfFencingIsCompletedByTheNextStart(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	b.world.failWith(func(call string) error {
		if call == "lock" { // as if the agent died before it
			return errors.New("injected")
		}
		return nil
	})
	if err := n.Fence(t.Context()); err == nil {
		t.Error("a fence that failed said nothing")
	}
	b.world.failWith(nil)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open(demoClass(0))
	if got := b.phaseOf(n, e.ID); got != "fenced frozen locked" {
		t.Errorf("the environment is %s", got)
	}
}
