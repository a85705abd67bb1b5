package cgroups

import (
	"testing"
	"time"

	"hearth/internal/env"
)

// limitOf reads our root's own memory limit.
func limitOf(t *testing.T, tree *Tree) int64 {
	t.Helper()
	r, ok := tree.controller("memory")
	if !ok {
		t.Skip("no memory controller here")
	}
	file := "memory.max"
	if r.version == 1 {
		file = "memory.limit_in_bytes"
	}
	v, err := readNumber(r.dir, file)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestKernelABudgetBelowWhatIsUsedKillsNothingAndComesLater(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	const large, small = 1 << 30, 64 << 20
	if done, err := tree.SetBudget(Budget{MemoryBytes: large, CPUMillis: 1500, PIDs: 1000}); err != nil || !done {
		t.Fatalf("set budget = %t, %v", done, err)
	}
	if got := limitOf(t, tree); got != large {
		t.Errorf("limit = %d, want %d", got, large)
	}
	start(t, g, "eat", nil)
	eventually(t, "the process has its memory", func() bool {
		u, err := g.Usage()
		return err == nil && u.AnonBytes > 200<<20
	})
	if done, err := tree.SetBudget(Budget{MemoryBytes: small}); err != nil || done {
		t.Errorf("a budget below the usage = %t, %v; want neither", done, err)
	}
	if got := limitOf(t, tree); got != large {
		t.Errorf("limit = %d, want it as it was", got)
	}
	if u, err := g.Usage(); err != nil || u.OOMKills != 0 {
		t.Errorf("usage = %+v, %v; nothing may be killed", u, err)
	}
	if err := g.Kill(timeout(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the smaller budget holds", func() bool {
		done, err := tree.SetBudget(Budget{MemoryBytes: small})
		return err == nil && done
	})
	if got := limitOf(t, tree); got != small {
		t.Errorf("limit = %d, want %d", got, small)
	}
	if done, err := tree.SetBudget(Budget{MemoryBytes: large}); err != nil || !done {
		t.Errorf("a larger budget = %t, %v", done, err)
	}
	share, err := shareOf(tree)
	if err != nil || share == 0 {
		t.Errorf("share = %d, %v", share, err)
	}
}

func shareOf(tree *Tree) (int64, error) {
	r, ok := tree.controller("cpu")
	if !ok {
		return 0, env.ErrNotFound
	}
	if r.version == 1 {
		v, err := readNumber(r.dir, "cpu.shares")
		if v != sharesOf(1500) {
			return 0, err
		}
		return v, err
	}
	v, err := readNumber(r.dir, "cpu.weight")
	if v != weightOf(1500) {
		return 0, err
	}
	return v, err
}
