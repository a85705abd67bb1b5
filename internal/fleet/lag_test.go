package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
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

// What every node forbids is told as that, once; one that is full may yet allow it.
func TestAClaimThatEveryNodeForbidsIsDenied(t *testing.T) {
	denial := fmt.Errorf("%w: class small lets claims mount nothing", env.ErrDenied)
	for name, tc := range map[string]struct {
		second *hearthv1.Pool // of another node; nil is none
		want   error
	}{
		"the only node": {nil, env.ErrDenied},
		"both nodes":    {&hearthv1.Pool{Class: "small", Ready: 5}, env.ErrDenied},
		"one is full":   {&hearthv1.Pool{Class: "small"}, env.ErrExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				w.report()
				w.node.refuse = denial
				if tc.second != nil {
					w.others["n2"] = newNode()
					w.others["n2"].refuse = denial
					if _, err := w.fleet.Connect("n2", "h:2").Inventory(&hearthv1.InventoryResponse{Pools: []*hearthv1.Pool{tc.second}, Room: &hearthv1.Room{}}); err != nil {
						t.Fatal(err)
					}
				}
				_, err := w.claim("k")
				if !errors.Is(err, tc.want) {
					t.Fatalf("claim = %v, want %v", err, tc.want)
				}
				if errors.Is(err, env.ErrDenied) && strings.Count(err.Error(), "mount nothing") != 1 {
					t.Errorf("said more than once: %v", err)
				}
			})
		})
	}
}
