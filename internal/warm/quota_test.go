package warm

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

func boundedClass(slots int) *env.Class {
	c := demoClass(slots)
	c.Resources.DiskBytes = 1 << 30
	return c
}

func TestADiskLimitIsThereBeforeTheContainerAndGoesWithIt(t *testing.T) {
	inBubble(t, boundedClass(1), func(b *bench, n *Node) {
		t := b.t
		b.world.failWith(func(call string) error {
			if call == "create" && len(b.world.limited()) == 0 {
				t.Error("a container was made whose files nothing bounds")
			}
			return nil
		})
		a, err := n.Claim(t.Context(), Claim{Class: "demo"})
		if err != nil {
			t.Fatal(err)
		}
		if got := b.world.limited(); len(got) == 0 || got[0] != 1<<30 {
			t.Errorf("limits in force: %v", got)
		}
		if _, err := n.Release(t.Context(), a.Environment.ID, 0, false); err != nil {
			t.Error(err)
		}
	})
}

func TestANodeThatCannotBoundFilesPreparesNoSlotAndSaysWhy(t *testing.T) {
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.world.failWith(func(call string) error {
			if call == "bound" {
				return &env.UnsupportedError{Feature: "resources.disk", Needs: "project quotas"}
			}
			return nil
		})
		n := b.open(boundedClass(1))
		defer n.Close()
		stop := runNode(t, n)
		defer stop()
		time.Sleep(time.Second)
		if p := n.Pools()[0]; p.Ready != 0 || !strings.Contains(p.Message, "project quotas") {
			t.Errorf("pool = %+v", p)
		}
		if _, err := n.Claim(t.Context(), Claim{Class: "demo"}); !errors.Is(err, env.ErrUnsupported) {
			t.Errorf("claim = %v", err)
		}
	})
}

// limited are the limits in force on files.
func (w *world) limited() []int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.quotas))
}
