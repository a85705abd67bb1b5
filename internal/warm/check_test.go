package warm

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"hearth/internal/env"
)

// checkedClass has its ready slots probed every minute.
func checkedClass(slots int) *env.Class {
	c := demoClass(slots)
	c.Warm.CheckEvery = time.Minute
	return c
}

// inBubble runs a test on a clock that moves when everything waits. Its node
// runs until the test ends.
func inBubble(t *testing.T, class *env.Class, test func(b *bench, n *Node)) {
	t.Helper()
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		n := b.open(class)
		stop := runNode(t, n)
		synctest.Wait()
		test(b, n)
		stop()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// runNode runs the node's pools until stop is called.
func runNode(t *testing.T, n *Node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// poolOf is the slots of the only pool.
func poolOf(n *Node) []env.SlotID {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []env.SlotID
	for _, s := range n.pools["demo"].ready {
		out = append(out, s.id)
	}
	return out
}

func TestOldSlotsAreProbedAndFrozenAgain(t *testing.T) {
	inBubble(t, checkedClass(2), func(b *bench, n *Node) {
		t := b.t
		before := poolOf(n)
		time.Sleep(2*time.Minute + time.Second)
		synctest.Wait()
		if got := testutil.ToFloat64(n.metrics.checks.WithLabelValues("demo", checkPassed)); got != 4 {
			t.Errorf("%v checks passed in two minutes, want 4 of 2 slots", got)
		}
		for _, id := range before {
			if !b.world.isFrozen(id) || b.world.island(id) != "locked" {
				t.Errorf("slot %s after its check: frozen %v, island %s", id, b.world.isFrozen(id), b.world.island(id))
			}
		}
		if got := len(poolOf(n)); got != 2 || b.world.leftovers()["containers"] != 2 {
			t.Errorf("%d ready, %v", got, b.world.leftovers())
		}
	})
}

func TestASlotThatIsNotReadyAnyMoreIsReplacedAndCounted(t *testing.T) {
	inBubble(t, checkedClass(2), func(b *bench, n *Node) {
		t := b.t
		before := poolOf(n)
		broken := true
		b.world.failWith(func(call string) error {
			if call == "ready" && broken {
				broken = false
				return errors.New("connection refused")
			}
			return nil
		})
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if got := testutil.ToFloat64(n.metrics.dead.WithLabelValues("demo", deadProbe)); got != 1 {
			t.Errorf("%v slots counted as dead", got)
		}
		after := poolOf(n)
		if len(after) != 2 || after[0] == before[0] && after[1] == before[1] {
			t.Errorf("pool before %v, after %v", before, after)
		}
		if left := b.world.leftovers(); left["containers"] != 2 || left["cgroups"] != 2 || left["islands"] != 2 {
			t.Errorf("left = %v", left)
		}
	})
}

// hangWhen makes the probes of ready slots hang until they are cancelled.
func (w *world) hangProbes(hang bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hangReady = hang
}

func TestAClaimTakesTheSlotThatIsBeingChecked(t *testing.T) {
	inBubble(t, checkedClass(1), func(b *bench, n *Node) {
		t := b.t
		b.world.hangProbes(true)
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if got := n.Pools()[0]; len(poolOf(n)) != 0 || got.Ready != 1 {
			t.Fatalf("pool = %+v: want its slot in a check, and counted as ready", got)
		}
		begun := time.Now()
		a, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true})
		if err != nil || time.Since(begun) > 0 {
			t.Fatalf("claim = %v after %s of waiting", err, time.Since(begun))
		}
		if !a.Environment.Warm || b.world.isFrozen(a.Environment.Slot) {
			t.Errorf("environment = %+v", a.Environment)
		}
		if got := testutil.ToFloat64(n.metrics.checks.WithLabelValues("demo", checkInterrupted)); got != 1 {
			t.Errorf("%v checks were interrupted", got)
		}
		b.world.hangProbes(false)
	})
}

func TestAProbeThatHangsCostsItsSlotAndNothingElse(t *testing.T) {
	inBubble(t, checkedClass(3), func(b *bench, n *Node) {
		t := b.t
		b.world.hangProbes(true)
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if got := n.Pools()[0]; got.Ready != 3 || len(poolOf(n)) != 2 {
			t.Fatalf("pool = %+v, want one of three in a check", got)
		}
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true}); err != nil {
			t.Fatal(err)
		}
		b.world.hangProbes(false) // of those that come
		time.Sleep(checkMost + time.Second)
		synctest.Wait()
		if got := testutil.ToFloat64(n.metrics.dead.WithLabelValues("demo", deadProbe)); got != 1 {
			t.Errorf("%v slots counted as dead", got)
		}
		if got := n.Pools()[0]; got.Ready != 3 {
			t.Errorf("pool = %+v", got)
		}
	})
}

func TestWhatASlotDoesInItsCheckEndsIt(t *testing.T) {
	for name, suspect := range map[string]func(n *Node, id env.SlotID) error{
		"quarantine": func(n *Node, id env.SlotID) error { return n.Quarantine(context.Background(), id, "mining") },
		"stall":      func(n *Node, id env.SlotID) error { return n.Stall(context.Background(), id, "the disk is short") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, checkedClass(1), func(b *bench, n *Node) {
				t := b.t
				id := poolOf(n)[0]
				b.world.hangProbes(true)
				time.Sleep(time.Minute + time.Second)
				synctest.Wait()
				if err := suspect(n, id); err != nil {
					t.Fatal(err)
				}
				b.world.hangProbes(false)
				synctest.Wait()
				time.Sleep(time.Second)
				synctest.Wait()
				if got := poolOf(n); len(got) != 1 || got[0] == id {
					t.Errorf("pool = %v, want another than %s", got, id)
				}
			})
		})
	}
}

func TestAStoppingAgentFreezesTheSlotThatItChecks(t *testing.T) {
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		n := b.open(checkedClass(1))
		stop := runNode(t, n)
		synctest.Wait()
		id := poolOf(n)[0]
		b.world.hangProbes(true)
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if b.world.isFrozen(id) {
			t.Fatal("no check is under way")
		}
		stop()
		if !b.world.isFrozen(id) || len(poolOf(n)) != 1 {
			t.Errorf("frozen %v, pool %v", b.world.isFrozen(id), poolOf(n))
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Whatever instruction of a check is the agent's last, the next agent finds the
// slot frozen in its pool, or nothing of it.
func TestDeathAtAnyPointOfACheckLeavesAReadySlotOrNone(t *testing.T) {
	requireChown(t)
	for _, point := range []string{"journal 1", "thaw", "ready", "freeze", "journal 2"} {
		t.Run(point, func(t *testing.T) {
			b := newBench(t)
			dead, writes, armed := false, 0, false
			died := errors.New("the agent is dead")
			b.fault = func(op string) error {
				if armed && op == opJournal+":write" {
					writes++
					dead = dead || point == "journal 1" && writes == 1 || point == "journal 2" && writes == 2
				}
				if dead {
					return died
				}
				return nil
			}
			n := b.open(checkedClass(1))
			fillPools(t, n)
			id := poolOf(n)[0]
			b.world.failWith(func(call string) error {
				dead = dead || armed && call == point
				if dead {
					return died
				}
				return nil
			})
			armed = true
			n.attend(t.Context(), id, n.prove)
			n.work.Wait()
			wasThawed := !b.world.isFrozen(id)
			b.fault, armed, dead = nil, false, false
			b.world.failWith(nil)

			n = b.open(checkedClass(1))
			n.work.Wait()
			if got := poolOf(n); len(got) != 1 || got[0] != id || !b.world.isFrozen(id) || b.world.island(id) != "locked" {
				t.Errorf("thawed at death %v; pool %v, frozen %v", wasThawed, got, b.world.isFrozen(id))
			}
			if want := point == "ready" || point == "freeze"; wasThawed != want {
				t.Errorf("at its death the slot was thawed: %v, want %v", wasThawed, want)
			}
			a, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true})
			if err != nil || a.Environment.Slot != id {
				t.Errorf("claim = %+v, %v", a, err)
			}
		})
	}
}
