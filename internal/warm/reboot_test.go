package warm

import (
	"errors"
	"strings"
	"testing"
	"time"

	"hearth/internal/env"
)

// reboot leaves of the world what a machine finds on its disk: containers' records.
func (b *bench) reboot() {
	b.boots++
	b.world.mu.Lock()
	defer b.world.mu.Unlock()
	clear(b.world.alive)
	clear(b.world.cgroups)
	clear(b.world.islands)
	clear(b.world.bound)
	clear(b.world.watched)
}

func TestARebootLeavesTheFilesOfDurableEnvironmentsAndNothingElse(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	light := demoClass(0)
	light.Name, light.Ephemeral = "light", true
	classes := []*env.Class{demoClass(1), light}
	n := b.open(classes...)
	fillPools(t, n)
	claim := func(c Claim) Environment {
		t.Helper()
		a, err := n.Claim(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return a.Environment
	}
	running, paused, lost := claim(Claim{Class: "demo", TimeToLive: time.Hour}), claim(Claim{Class: "demo"}), claim(Claim{Class: "light"})
	if _, err := n.Pause(t.Context(), paused.ID); err != nil {
		t.Fatal(err)
	}
	fillPools(t, n)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	b.reboot()
	for range 2 { // and over a further restart
		n = b.open(classes...)
		for _, was := range []Environment{running, paused} {
			e, err := n.Get(was.ID)
			if err != nil || e.Phase != env.PhaseFailed || !strings.Contains(e.Message, "its node was restarted; release it") || e.PID != 0 || e.Address != "" {
				t.Errorf("after a reboot: %+v, %v", e, err)
			}
			if _, err := n.Snapshot(t.Context(), was.ID); err != nil {
				t.Errorf("snapshot of its files: %v", err)
			}
			if _, err := n.Resume(t.Context(), was.ID); !errors.Is(err, env.ErrState) {
				t.Errorf("resume: %v", err)
			}
		}
		if e, _ := n.Get(running.ID); !e.Expires.Equal(running.Expires) {
			t.Errorf("it ends at %s, and ended at %s", e.Expires, running.Expires)
		}
		if left := n.due(); len(left) > 0 {
			t.Errorf("%d environments are due an hour before their end", len(left))
		}
		if _, err := n.Get(lost.ID); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("an ephemeral environment: %v", err)
		}
		if pools := n.Pools(); pools[0].Ready != 0 {
			t.Errorf("a slot of the last boot is ready: %+v", pools)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	n = b.open(demoClass(0), light)
	for _, was := range []Environment{running, paused} {
		if _, err := n.Release(t.Context(), was.ID, 0, false); err != nil {
			t.Error(err)
		}
	}
	for what, count := range b.world.leftovers() {
		if count > 0 {
			t.Errorf("%d %s are left", count, what)
		}
	}
}

// An end that came while the machine was off is an end; its clock began anew.
func TestAnEndIsKeptOverAReboot(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo", TimeToLive: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	b.reboot()
	time.Sleep(time.Until(a.Environment.Expires) + 10*time.Millisecond)
	n = b.open(demoClass(0))
	if due := n.due(); len(due) != 1 {
		t.Fatalf("%d environments are due", len(due))
	}
	if err := n.expire(t.Context(), n.due()[0]); err != nil {
		t.Fatal(err)
	}
	if e, err := n.Get(a.Environment.ID); err != nil || e.Phase != env.PhaseReleased || e.Reason != reasonExpired {
		t.Errorf("afterwards: %+v, %v", e, err)
	}
}
