package cgroups

import (
	"context"
	"testing"
	"time"
)

func TestKernelCPUTimeCountsWhatRunsAndRests(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	spent := func() time.Duration {
		t.Helper()
		d, err := g.CPUTime()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if got := spent(); got != 0 {
		t.Errorf("an empty slot has used %s", got)
	}
	start(t, g, "spin", nil)
	eventually(t, "a spinner's time is counted", func() bool { return spent() > 50*time.Millisecond })
	if err := g.Freeze(timeout(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	before := spent()
	time.Sleep(100 * time.Millisecond)
	if after := spent(); after != before {
		t.Errorf("a frozen slot has used %s", after-before)
	}
	if err := g.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.CPUTime(); err == nil {
		t.Error("a slot that is gone has used something")
	}
}

// One look at an environment that may be idle reads this, once a second at most.
func BenchmarkKernelCPUTime(b *testing.B) {
	tree := openTree(b)
	g := createGroup(b, tree)
	start(b, g, "spin", nil)
	for b.Loop() {
		if _, err := g.CPUTime(); err != nil {
			b.Fatal(err)
		}
	}
}
