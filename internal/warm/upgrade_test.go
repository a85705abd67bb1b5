package warm

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"hearth/internal/env"
)

// released makes another release of a class, and gives it to the node.
func released(t *testing.T, n *Node, class *env.Class, edit func(*env.Class)) *env.Class {
	t.Helper()
	next := *class
	next.Revision += "+"
	if edit != nil {
		edit(&next)
	}
	if err := n.SetClasses(t.Context(), []*env.Class{&next}); err != nil {
		t.Fatal(err)
	}
	return &next
}

// outdated claims an environment of a class that has another release then.
func outdated(t *testing.T, b *bench, c Claim, edit func(*env.Class)) (*Node, Environment, *env.Class) {
	t.Helper()
	requireChown(t)
	n := b.open(sizedClass(0))
	c.Class = "demo"
	e := b.claim(n, c)
	return n, e, released(t, n, sizedClass(0), edit)
}

// only is what a world with so many environments has.
func (b *bench) only(environments int) {
	b.t.Helper()
	left := b.world.leftovers()
	for _, what := range []string{"containers", "cgroups", "islands", "processes", "bound", "watched"} {
		if left[what] != environments {
			b.t.Errorf("%d %s, want %d: %v", left[what], what, environments, left)
		}
	}
}

// at does something at the first call of a name, or at the second of "name#2", and
// so on.
func (b *bench) at(when string, do func() error) {
	name, which, several := strings.Cut(when, "#")
	if !several {
		which = "1"
	}
	left, err := strconv.Atoi(which)
	if err != nil {
		b.t.Fatal(err)
	}
	var count atomic.Int64
	count.Store(int64(left))
	b.world.failWith(func(call string) error {
		if call != name || count.Add(-1) != 0 {
			return nil
		}
		return do()
	})
}

// once fails one call.
func (b *bench) once(when string) {
	b.at(when, func() error { return errors.New("injected into " + when) })
}

// during does something at one call.
func (b *bench) during(when string, do func()) {
	b.at(when, func() error {
		do()
		return nil
	})
}

func TestAnUpgradeMovesTheEnvironmentWithAllThatItIs(t *testing.T) {
	b := newBench(t)
	n, before, class := outdated(t, b, Claim{
		Key: "claim", Tenant: "acme", Variables: map[string]string{"A": "it's"}, Metadata: []byte(`{"x":1}`), Hostname: "box", Generation: 7,
		Labels: map[string]string{"team": "red"}, Egress: &env.EgressPolicy{Mode: env.EgressNone}, Limits: env.Limits{CPUMillis: 500},
		TimeToLive: time.Hour, ClaimKey: []byte("k"), ClaimRequest: []byte("r"),
	}, func(c *env.Class) {
		c.Resources.MemoryBytes, c.Ports = 256*mib, []env.Port{{Name: "new", Number: 90}}
		c.Warm.Created = 1
	})
	if e, _ := n.Get(before.ID); !e.Outdated || e.Revision != "r1" {
		t.Errorf("before: %+v", e)
	}
	token, err := n.repeat("claim", before.ID)
	if err != nil {
		t.Fatal(err)
	}
	fillPools(t, n) // which makes a created slot
	b.world.forget()
	u, err := n.Upgrade(t.Context(), before.ID, "k1", KeepAll)
	if err != nil {
		t.Fatal(err)
	}
	n.work.Wait()
	after := u.Environment
	want := before
	want.Slot, want.PID, want.Revision, want.Ports = after.Slot, after.PID, class.Revision, class.Ports
	want.Resources.MemoryBytes, want.Resources.MemoryHighBytes = 256*mib, after.Resources.MemoryHighBytes
	if diff := cmp.Diff(want, after); diff != "" || after.Slot == before.Slot || after.PID == before.PID {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(b.world.identity(before.PID), b.world.identity(after.PID)); diff != "" {
		t.Errorf("identity (-want +got):\n%s", diff)
	}
	if got := b.world.identity(after.PID)["hostname"]; got != "box" {
		t.Errorf("hostname = %q", got)
	}
	if got := b.phaseOf(n, before.ID); got != "running thawed open" {
		t.Errorf("it is %s", got)
	}
	b.wantLimits(n, before.ID, 500, 256*mib)
	if a, err := n.Authorize(before.ID, token.Token); err != nil || a.Environment.Slot != after.Slot {
		t.Errorf("its token reaches %+v, %v", a.Environment, err)
	}
	if snap, err := b.world.parts().Snapshots.Get(u.Snapshot.ID); err != nil || snap.Base != "sha256:busybox" {
		t.Errorf("its files of before: %+v, %v", snap, err)
	}
	if files := b.world.restored; len(files) != 1 || files[0].Upper == "" || files[0].Workspace != n.workspace(after.Slot) {
		t.Errorf("restored: %+v", files)
	}
	if slices.Contains(b.world.told(), "prepare") {
		t.Error("the created slot was not used")
	}
	if n.claiming != 0 || n.starting != 0 || n.reserved != 0 {
		t.Errorf("%d claims, %d starts, %d reservations are left", n.claiming, n.starting, n.reserved)
	}
	b.only(1)
	if got, err := n.Claim(t.Context(), Claim{Key: "claim", Class: "demo"}); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("the key of its claim is free: %+v, %v", got.Environment, err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open(class)
	if e, err := n.Get(before.ID); err != nil || e.Slot != after.Slot || e.Outdated {
		t.Errorf("after a restart: %+v, %v", e, err)
	}
	if got := b.phaseOf(n, before.ID); got != "running thawed open" {
		t.Errorf("after a restart it is %s", got)
	}
}

func TestARepeatedUpgradeIsAnsweredAgainAndDoneOnce(t *testing.T) {
	b := newBench(t)
	n, e, class := outdated(t, b, Claim{}, nil)
	first, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{upgradeDone: 1, upgradeUndone: 0, upgradeRefused: 2}
	for range 2 {
		again, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
		if err != nil || again.Environment.Slot != first.Environment.Slot || again.Snapshot.ID != first.Snapshot.ID {
			t.Errorf("repeated: %+v, %v, want %+v", again, err, first)
		}
		for _, key := range []string{"", "other"} {
			if _, err := n.Upgrade(t.Context(), e.ID, key, KeepAll); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "newest release") {
				t.Errorf("by another key %q: %v, want ErrState", key, err)
			}
		}
		n.work.Wait()
		results := map[string]float64{}
		for _, result := range []string{upgradeDone, upgradeUndone, upgradeRefused} {
			results[result] = testutil.ToFloat64(n.metrics.upgrades.WithLabelValues(result))
		}
		if diff := cmp.Diff(want, results); diff != "" {
			t.Errorf("counted (-want +got):\n%s", diff)
		}
		want[upgradeDone] = 0 // by another agent
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		n = b.open(class) // it is known after a restart, too
	}
	b.only(1)
	if len(b.world.restored) != 1 {
		t.Errorf("%d restores", len(b.world.restored))
	}
}

func TestAnUpgradeThatFailsGivesTheEnvironmentBackAsItWas(t *testing.T) {
	for _, failing := range []string{
		"admit", "image", "image#2", "prepare", "island", "cgroup", "bind", "watch", "policy", "capture", "capture#2", "lock", "freeze", "freeze#2", "freeze#3", "freeze#4",
		"restore", "create", "open", "identity-open", "start", "dial", "configure", "ready", "limits", "identity", "identity-recall",
	} {
		t.Run(failing, func(t *testing.T) {
			b := newBench(t)
			n, e, class := outdated(t, b, Claim{Limits: env.Limits{CPUMillis: 300}}, nil)
			b.once(failing)
			_, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
			b.world.failWith(nil)
			n.work.Wait()
			if err == nil || !strings.Contains(err.Error(), "injected") || !strings.Contains(err.Error(), string(e.ID)) {
				t.Fatalf("upgrade: %v", err)
			}
			got, err := n.Get(e.ID)
			if err != nil || got.Slot != e.Slot || got.Message != "" || !b.world.lives(e.PID) {
				t.Errorf("it is %+v, %v", got, err)
			}
			if got := b.phaseOf(n, e.ID); got != "running thawed open" {
				t.Errorf("it is %s", got)
			}
			b.only(1)
			if n.claiming != 0 || n.starting != 0 || n.reserved != 0 {
				t.Errorf("%d claims, %d starts, %d reservations are left", n.claiming, n.starting, n.reserved)
			}
			u, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
			if err != nil || u.Environment.Revision != class.Revision {
				t.Errorf("tried again: %+v, %v", u.Environment, err)
			}
		})
	}
}

// After its record is written an upgrade is done, whatever fails then.
func TestAnUpgradeThatCannotGoOnIsDoneAndTriedAgain(t *testing.T) {
	for _, failing := range []string{"unlock", "thaw#2"} { // the first thaw is of the capture while it runs
		b := newBench(t)
		n, e, class := outdated(t, b, Claim{}, nil)
		b.once(failing)
		_, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
		if err == nil || !strings.Contains(err.Error(), "resume it") {
			t.Errorf("%s: upgrade: %v", failing, err)
		}
		if got, _ := n.Get(e.ID); got.Revision != class.Revision {
			t.Errorf("%s: it is %+v", failing, got)
		}
		if _, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll); err != nil {
			t.Errorf("%s: tried again: %v", failing, err)
		}
		if got := b.phaseOf(n, e.ID); got != "running thawed open" {
			t.Errorf("%s: it is %s", failing, got)
		}
		n.work.Wait()
		b.only(1)
	}
}

func TestAnUpgradeNeedsTheRoomOfTwo(t *testing.T) {
	for name, fill := range map[string]func(*bench, *Node){
		"limits.slots": func(b *bench, n *Node) {
			for range 5 {
				b.claim(n, Claim{Class: "demo"})
			}
		},
		"limits.memory": func(_ *bench, n *Node) { n.SetMemory(200 * mib) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			n, e, _ := outdated(t, b, Claim{}, nil)
			fill(b, n)
			b.world.forget()
			if _, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll); !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), name) {
				t.Errorf("upgrade: %v, want ErrExhausted that names %s", err, name)
			}
			if told := b.world.told(); slices.Contains(told, "freeze") || slices.Contains(told, "capture") {
				t.Errorf("it was stopped for nothing: %v", told)
			}
			if got := b.phaseOf(n, e.ID); got != "running thawed open" {
				t.Errorf("it is %s", got)
			}
		})
	}
}

func TestAnotherImageTakesTheWorkspaceOnly(t *testing.T) {
	b := newBench(t)
	n, e, class := outdated(t, b, Claim{}, func(c *env.Class) { c.Image = "debian" })
	b.world.forget()
	_, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
	if !errors.Is(err, env.ErrInvalid) {
		t.Errorf("upgrade: %v, want ErrInvalid", err)
	}
	for _, word := range []string{"sha256:busybox", "sha256:debian", "--keep workspace"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not name %s", err, word)
		}
	}
	if slices.Contains(b.world.told(), "freeze") {
		t.Error("it was stopped for nothing")
	}
	u, err := n.Upgrade(t.Context(), e.ID, "k2", KeepWorkspace)
	if err != nil {
		t.Fatal(err)
	}
	n.work.Wait()
	if files := b.world.restored; len(files) != 1 || files[0].Upper != "" || files[0].Workspace != n.workspace(u.Environment.Slot) {
		t.Errorf("restored: %+v", files)
	}
	if u.Snapshot.Base != "sha256:busybox" || u.Snapshot.Lineage != e.ID {
		t.Errorf("its files of before: %+v", u.Snapshot)
	}
	if kept := b.world.hygieneOf(u.Environment.Slot).Keep; len(kept) != 0 {
		t.Errorf("a new disk kept %v", kept)
	}
	snap, err := n.Snapshot(t.Context(), e.ID)
	if err != nil || snap.Base != "sha256:debian" || snap.Lineage != e.ID || snap.ID == u.Snapshot.ID {
		t.Errorf("its next snapshot: %+v, %v", snap, err)
	}
	b.only(1)
	class = released(t, n, class, nil)
	if _, err := n.Upgrade(t.Context(), e.ID, "k3", KeepAll); err != nil {
		t.Errorf("onto the same image again: %v", err)
	}
	if got, _ := n.Get(e.ID); got.Revision != class.Revision || len(b.world.hygieneOf(got.Slot).Keep) == 0 {
		t.Errorf("it is %+v, and its disk is another machine's", got)
	}
}

func TestAnUpgradeKeepsThePhase(t *testing.T) {
	late := func(c *env.Class) {
		c.Services = []env.Service{{Name: "late", Command: []string{"true"}, Start: env.StartAfterClaim}}
	}
	for name, tt := range map[string]struct {
		phase func(*Node, Environment) error
		want  string
		idle  bool
	}{
		"paused":  {func(n *Node, e Environment) error { _, err := n.Pause(t.Context(), e.ID); return err }, "paused frozen open", false},
		"asleep":  {func(n *Node, e Environment) error { return n.pauseIdle(t.Context(), n.envs[e.ID]) }, "paused frozen open", true},
		"stalled": {func(n *Node, e Environment) error { return n.Stall(t.Context(), e.Slot, "the disk is full") }, "stalled frozen open", false},
		"running": {func(*Node, Environment) error { return nil }, "running thawed open", false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			n, e, _ := outdated(t, b, Claim{}, late)
			if err := tt.phase(n, e); err != nil {
				t.Fatal(err)
			}
			b.world.forget()
			u, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
			if err != nil {
				t.Fatal(err)
			}
			n.work.Wait()
			if got := b.phaseOf(n, e.ID); got != tt.want || u.Environment.Idle() != tt.idle {
				t.Errorf("it is %s, idle %t; want %s", got, u.Environment.Idle(), tt.want)
			}
			told := b.world.told()
			late := slices.Index(told, "claimed")
			if late < 0 {
				t.Fatal("its late service was not started")
			}
			if name != "running" && !slices.Equal(told[late-1:late+2], []string{"thaw", "claimed", "freeze"}) {
				t.Errorf("its late service was started by %v, want it to run meanwhile and no longer", told)
			}
			if tt.idle {
				done, err := n.Use(t.Context(), e.ID)
				if err != nil {
					t.Fatal(err)
				}
				done()
			} else if _, err := n.Resume(t.Context(), e.ID); err != nil {
				t.Fatal(err)
			}
			if got := b.phaseOf(n, e.ID); got != "running thawed open" {
				t.Errorf("then it is %s", got)
			}
			b.only(1)
		})
	}
}

func TestAnUpgradeTakesTheMountsAlong(t *testing.T) {
	mountingNode(t, func(b *bench, n *Node) {
		t := b.t
		e := b.claim(n, Claim{Class: "demo", Tenant: "acme", Mounts: []env.Mount{{Name: "homes", Path: "/home/agent"}}})
		want := b.world.mountsOf(e.PID)
		// What was allowed at the claim is its own.
		class := released(t, n, n.classes["demo"], func(c *env.Class) { c.Mounts = nil })
		b.once("mount")
		if _, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll); err == nil {
			t.Error("upgraded without its mounts")
		}
		b.world.failWith(nil)
		n.work.Wait()
		if got := b.phaseOf(n, e.ID); got != "running thawed open" {
			t.Errorf("it is %s", got)
		}
		u, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
		if err != nil || u.Environment.Revision != class.Revision {
			t.Fatalf("upgrade: %+v, %v", u.Environment, err)
		}
		if diff := cmp.Diff(want, b.world.mountsOf(u.Environment.PID), cmpopts.IgnoreFields(Bind{}, "Dir")); diff != "" || len(want) != 1 {
			t.Errorf("mounts (-want +got):\n%s", diff)
		}
		n.work.Wait()
	})
}
