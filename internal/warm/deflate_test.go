package warm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"hearth/internal/env"
)

func deflatedClass(slots int) *env.Class {
	c := checkedClass(slots)
	c.Warm.Deflate = true
	return c
}

// swappable counts the slots whose memory may be swapped out.
func (w *world) swappable() (count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.cgroups {
		if c.swappable {
			count++
		}
	}
	return count
}

func (w *world) maySwap(slot env.SlotID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cgroups[slot].swappable
}

func (w *world) hangDeflations(hang bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hangDeflate = hang
}

func TestReadySlotsAreDeflatedOnceAndAgainAfterACheck(t *testing.T) {
	inBubble(t, deflatedClass(2), func(b *bench, n *Node) {
		t := b.t
		if got := b.world.swappable(); got != 2 || b.world.count("deflate") != 2 {
			t.Fatalf("%d of 2 slots may swap after %d deflations", got, b.world.count("deflate"))
		}
		if got := testutil.CollectAndCount(n.metrics.deflation); got != 2 { // before and after
			t.Errorf("%d series of memory", got)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if got := b.world.count("deflate"); got != 4 {
			t.Errorf("%d deflations, want two more after the checks", got)
		}
	})
}

func TestAClaimEndsSwappingBeforeItWritesSecrets(t *testing.T) {
	inBubble(t, deflatedClass(1), func(b *bench, n *Node) {
		t := b.t
		b.world.failWith(func(call string) error {
			if call == "identity" && b.world.swappable() > 0 {
				t.Error("the identity was written while its memory could be swapped out")
			}
			return nil
		})
		a, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true, Variables: map[string]string{"A": "secret"}})
		if err != nil {
			t.Fatal(err)
		}
		if b.world.count("inflate") != 1 || b.world.isFrozen(a.Environment.Slot) {
			t.Errorf("inflated %d times", b.world.count("inflate"))
		}
	})
}

func TestAClaimWhoseSlotCannotBeInflatedFails(t *testing.T) {
	inBubble(t, deflatedClass(1), func(b *bench, n *Node) {
		t := b.t
		id := poolOf(n)[0]
		b.world.failWith(func(call string) error {
			if call == "inflate" {
				return errors.New("injected")
			}
			return nil
		})
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true}); err == nil {
			t.Fatal("a claim got a slot whose secrets could be swapped out")
		}
		synctest.Wait()
		for _, ready := range poolOf(n) {
			if ready == id {
				t.Error("the slot is back in its pool")
			}
		}
	})
}

func TestAClaimTakesTheSlotThatIsBeingDeflated(t *testing.T) {
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.world.hangDeflations(true)
		n := b.open(deflatedClass(1))
		defer n.Close()
		stop := runNode(t, n)
		defer stop()
		synctest.Wait()
		if len(poolOf(n)) != 0 || n.Pools()[0].Ready != 1 {
			t.Fatalf("pool = %+v, want its slot being deflated", n.Pools()[0])
		}
		begun := time.Now()
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true}); err != nil || time.Since(begun) > 0 {
			t.Errorf("claim = %v after %s", err, time.Since(begun))
		}
		if b.world.swappable() != 0 {
			t.Error("the environment may swap")
		}
		b.world.hangDeflations(false)
	})
}

func TestANodeThatCannotDeflateSaysSoOnceAndServes(t *testing.T) {
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.world.failWith(func(call string) error {
			if call == "deflate" {
				return &env.UnsupportedError{Feature: "warm.deflate", Needs: "a swap area"}
			}
			return nil
		})
		n := b.open(deflatedClass(2))
		defer n.Close()
		stop := runNode(t, n)
		defer stop()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := n.Pools()[0]; got.Ready != 2 || !strings.Contains(got.Message, "needs a swap area") {
			t.Errorf("pool = %+v", got)
		}
		if got := b.world.count("deflate"); got != 1 {
			t.Errorf("asked %d times", got)
		}
		if n.mu.Lock(); n.pools["demo"].ready[0].state.Swappable || n.pools["demo"].ready[1].state.Swappable {
			t.Error("the journal says that a slot may swap")
		}
		n.mu.Unlock()
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true}); err != nil {
			t.Error(err)
		}
	})
}

// Whatever instruction of a deflation is the agent's last, the next one ends what
// the slot may swap before it gives the slot away.
func TestDeathDuringADeflationLeavesNoEnvironmentThatSwaps(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := demoClass(1)
	n := b.open(class)
	fillPools(t, n)
	died := errors.New("the agent is dead")
	dead := false
	b.fault = func(op string) error {
		if dead {
			return died
		}
		return nil
	}
	n.attend(t.Context(), poolOf(n)[0], func(ctx context.Context, c *check) error {
		err := n.deflate(ctx, c)
		dead = true
		return err
	})
	n.work.Wait()
	if b.world.swappable() != 1 {
		t.Fatal("nothing was deflated")
	}
	b.fault = nil
	n = b.open(class) // which does not ask for it any more
	defer n.Close()
	if _, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true}); err != nil {
		t.Fatal(err)
	}
	if b.world.swappable() != 0 {
		t.Error("the environment may swap")
	}
}
