package warm

import (
	"errors"
	"testing"

	"hearth/internal/env"
)

func revised(slots int, revision string) *env.Class {
	c := demoClass(slots)
	c.Revision = revision
	return c
}

// readyOf counts the ready slots of a class by revision.
func readyOf(n *Node, class string) map[string]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string]int{}
	if p := n.pools[class]; p != nil {
		for _, s := range p.ready {
			out[s.state.Revision]++
		}
	}
	return out
}

func TestAChangedClassRollsItsPoolAndNeverEmptiesIt(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(3))
	fillPools(t, n)
	if err := n.SetClasses(t.Context(), []*env.Class{revised(3, "r2")}); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := n.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		ready := readyOf(n, "demo")
		if total := ready["r1"] + ready["r2"]; total < 3 || total > 4 {
			t.Fatalf("ready = %v: want 3, and one more in between", ready)
		}
	}
	if ready := readyOf(n, "demo"); ready["r2"] != 3 || ready["r1"] != 0 {
		t.Errorf("ready = %v", ready)
	}
	if got := b.world.leftovers()["containers"]; got != 3 {
		t.Errorf("%d containers", got)
	}
}

func TestAFullNodeRollsByGivingUpOldSlotsButNotTheLast(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(6)) // as many as the node has places
	fillPools(t, n)
	if err := n.SetClasses(t.Context(), []*env.Class{revised(6, "r2")}); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := n.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ready := readyOf(n, "demo"); ready["r1"]+ready["r2"] == 0 {
			t.Fatal("the pool is empty")
		}
	}
	if ready := readyOf(n, "demo"); ready["r2"] != 6 {
		t.Errorf("ready = %v", ready)
	}
}

func TestSetClassesBeginsAndEndsPools(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(2))
	fillPools(t, n)
	kept, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	other := demoClass(1)
	other.Name, other.Ephemeral = "other", true
	if err := n.SetClasses(t.Context(), []*env.Class{other}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Claim(t.Context(), Claim{Class: "demo"}); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("claim of a class that is gone = %v", err)
	}
	fillPools(t, n)
	pools := n.Pools()
	if len(pools) != 1 || pools[0].Class != "other" || pools[0].Ready != 1 || !pools[0].Ephemeral {
		t.Errorf("pools = %+v", pools)
	}
	if ready := readyOf(n, "demo"); len(ready) != 0 {
		t.Errorf("the pool of the class that is gone has %v", ready)
	}
	n.work.Wait()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open(other) // the kept environment needs its class's file
	if got, err := n.Get(kept.Environment.ID); err != nil || got.Phase != env.PhaseRunning {
		t.Errorf("environment of the class that is gone = %+v, %v", got, err)
	}
	a, err := n.Claim(t.Context(), Claim{Class: "other"})
	if err != nil || !a.Environment.Ephemeral {
		t.Errorf("claim = %+v, %v", a.Environment, err)
	}
}

func TestAWrongSetOfClassesChangesNothing(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	full := false
	b.fault = func(op string) error {
		if full && op == opArchive+":write" {
			return env.ErrExhausted
		}
		return nil
	}
	n := b.open(demoClass(1))
	if err := n.SetClasses(t.Context(), []*env.Class{revised(1, "r2"), revised(1, "r3")}); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("set = %v, want ErrInvalid", err)
	}
	full = true
	if err := n.SetClasses(t.Context(), []*env.Class{revised(1, "r2")}); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("set on a full disk = %v, want ErrExhausted", err)
	}
	if got := n.Pools()[0].Revision; got != "r1" {
		t.Errorf("revision = %s", got)
	}
}

func TestASmallerBudgetRemovesReadySlotsAndRefusesClaims(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(3)) // 1 MiB each
	fillPools(t, n)
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	n.SetMemory(2 << 20)
	if _, err := n.Claim(t.Context(), Claim{Class: "demo"}); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("claim beyond the budget = %v", err)
	}
	fillPools(t, n)
	if room := n.Room(); room.MemoryReserved != 2<<20 || room.MemoryMax != 2<<20 {
		t.Errorf("room = %+v", room)
	}
	n.SetMemory(1 << 19)
	fillPools(t, n)
	if got, err := n.Get(a.Environment.ID); err != nil || got.Phase != env.PhaseRunning {
		t.Errorf("the environment = %+v, %v; a budget ends nothing", got, err)
	}
	if got := n.Pools()[0].Ready; got != 0 {
		t.Errorf("%d ready slots", got)
	}
	n.SetMemory(1 << 30)
	fillPools(t, n)
	if got := n.Pools()[0].Ready; got != 3 {
		t.Errorf("%d ready slots", got)
	}
}
