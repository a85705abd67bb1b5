package fleet_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// beat tells the fleet of one node with one slot.
func beat(t *testing.T, s *fleet.Session, pool *hearthv1.Pool) {
	t.Helper()
	pool.Class = "small"
	if err := s.Heartbeat(&hearthv1.Heartbeat{Pools: []*hearthv1.Pool{pool}, Room: &hearthv1.Room{SlotsMax: 1, SlotsUsed: 1}}); err != nil {
		t.Fatal(err)
	}
}

// What a controller knows of a pool is older than the pool. It refuses no claim that
// the node would serve.
func TestAClaimIsNotRefusedForWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		s := w.report()
		beat(t, s, &hearthv1.Pool{Ready: 1, Want: 1})
		first, err := w.claim("1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.claim("2"); !errors.Is(err, env.ErrExhausted) {
			t.Fatalf("a full node: %v", err)
		}
		calls := w.node.calls
		beat(t, s, &hearthv1.Pool{Want: 1, Preparing: 1})
		if _, err := w.claim("3"); err != nil {
			t.Errorf("while a slot is being prepared: %v", err)
		}
		if _, err := w.claim("4"); !errors.Is(err, env.ErrExhausted) || w.node.calls != calls+1 {
			t.Errorf("while it is spoken for: %v after %d calls", err, w.node.calls-calls)
		}
		beat(t, s, &hearthv1.Pool{Want: 1, Ready: 1})
		if _, err := w.claim("5"); err != nil {
			t.Errorf("when it is ready: %v", err)
		}
		beat(t, s, &hearthv1.Pool{Want: 1})
		if _, err := w.fleet.Release(context.Background(), alice, "r", first.GetEnvironment().GetId(), false); err != nil {
			t.Fatal(err)
		}
		if _, err := w.claim("6"); err != nil {
			t.Errorf("right after a release: %v", err)
		}
		if _, err := w.claim("7"); !errors.Is(err, env.ErrExhausted) {
			t.Errorf("the room of the release was given twice: %v", err)
		}
	})
}

// A node that refuses what the controller hoped for is not asked again for it.
func TestAHopeThatFailsCostsOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		beat(t, w.report(), &hearthv1.Pool{Want: 3, Preparing: 3})
		w.node.refuse = env.ErrExhausted
		for _, key := range []string{"1", "2"} {
			if _, err := w.claim(key); !errors.Is(err, env.ErrExhausted) {
				t.Errorf("claim = %v", err)
			}
		}
		if w.node.calls != 1 {
			t.Errorf("the node was asked %d times", w.node.calls)
		}
	})
}
