package warm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// bench is one agent's life in a world.
type bench struct {
	t     *testing.T
	world *world
	dir   string
	work  string
	fault durable.Fault
	boots int // how often the kernel was started anew

	starts, queue int // of Config; 0 is 4 and 8
	mounts        map[string]MountRoot
}

func newBench(t *testing.T) *bench {
	t.Helper()
	root, err := os.MkdirTemp("", "warm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	return &bench{t: t, world: newWorld(), dir: root + "/state", work: root + "/work"}
}

func demoClass(slots int) *env.Class {
	return &env.Class{
		Name: "demo", Revision: "r1", Image: "busybox", Warm: env.WarmPolicy{Slots: slots},
		Resources: env.Resources{MemoryBytes: 1 << 20}, Ports: []env.Port{{Name: "web", Number: 80}},
	}
}

func (b *bench) open(classes ...*env.Class) *Node {
	b.t.Helper()
	n, err := b.start(classes)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// tryOpen reports why an agent does not start.
func (b *bench) tryOpen(classes ...*env.Class) error {
	b.t.Helper()
	n, err := b.start(classes)
	if err == nil {
		b.t.Cleanup(func() { n.Close() })
	}
	return err
}

func (b *bench) start(classes []*env.Class) (*Node, error) {
	b.t.Helper()
	dir, err := durable.OpenDir(b.dir, b.fault)
	if err != nil {
		b.t.Fatal(err)
	}
	cfg := Config{
		Node: "n1", Instance: "hearth", BootID: fmt.Sprintf("boot-%d", b.boots), IDBase: 65536, IDCount: 8, MaxSlots: 6, Memory: 1 << 30,
		ColdStarts: orElse(b.starts, 4), Queue: orElse(b.queue, 8),
		WorkDir: b.work, Mounts: b.mounts, PrepareTimeout: time.Minute, UndoTimeout: time.Minute,
	}
	return Open(b.t.Context(), cfg, dir, classes, b.world.parts(), slog.New(slog.DiscardHandler))
}

func orElse(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// fillPools steps until the pools have nothing to do.
func fillPools(t *testing.T, n *Node) {
	t.Helper()
	for range 100 {
		wait, err := n.step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if wait > rest {
			return
		}
		time.Sleep(wait) // none, or what is left of the rest after a claim
	}
	t.Fatal("the pools never came to rest")
}

func requireChown(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: workspaces are given to the slot's user")
	}
}

func TestClaimTakesAReadySlotAndRefillReplacesIt(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(2))
	fillPools(t, n)
	if got := n.Pools()[0]; got.Ready != 2 || got.Claimed != 0 {
		t.Fatalf("pool before = %+v", got)
	}
	answer, err := n.Claim(t.Context(), Claim{Class: "demo", Variables: map[string]string{"A": "it's"}, Metadata: []byte(`{"x":1}`)})
	if err != nil {
		t.Fatal(err)
	}
	e := answer.Environment
	if !e.Warm || e.Phase != env.PhaseRunning || e.Generation != 1 || len(e.Ports) != 1 {
		t.Errorf("environment = %+v", e)
	}
	want := map[string]string{
		"hostname": string(e.ID), EnvFile: "A='it'\\''s'\nHEARTH_ENVIRONMENT='" + string(e.ID) + "'\n",
		EnvJSONFile: `{"A":"it's","HEARTH_ENVIRONMENT":"` + string(e.ID) + `"}`, MetadataFile: `{"x":1}`,
	}
	if diff := cmp.Diff(want, b.world.identity(e.PID)); diff != "" {
		t.Errorf("identity (-want +got):\n%s", diff)
	}
	if got := b.world.island(e.Slot); got != "open" {
		t.Errorf("island is %q", got)
	}
	if _, err := n.Authorize(e.ID, answer.Token); err != nil {
		t.Errorf("Authorize: %v", err)
	}
	fillPools(t, n)
	if got := n.Pools()[0]; got.Ready != 2 || got.Claimed != 1 {
		t.Errorf("pool after = %+v", got)
	}
	if _, err := n.Release(t.Context(), e.ID, 0, false); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Get(e.ID); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("Get after release = %v", err)
	}
}

func TestClaimIsColdWhenThePoolIsEmpty(t *testing.T) {
	requireChown(t)
	n := newBench(t).open(demoClass(0))
	if _, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true}); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("warm-only claim = %v, want ErrExhausted", err)
	}
	answer, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil || answer.Environment.Warm {
		t.Fatalf("claim = %+v, %v", answer.Environment, err)
	}
}

func TestClaimsNeverPassTheNodesLimit(t *testing.T) {
	requireChown(t)
	n := newBench(t).open(demoClass(2))
	fillPools(t, n)
	granted := 0
	for range 10 {
		_, err := n.Claim(t.Context(), Claim{Class: "demo"})
		if err == nil {
			granted++
			fillPools(t, n)
		} else if !errors.Is(err, env.ErrExhausted) {
			t.Fatal(err)
		}
	}
	if granted != 6 {
		t.Errorf("%d claims granted, want 6", granted)
	}
}

func TestRepeatedKeyGetsTheFirstAnswerAlsoAfterARestart(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	first, err := n.Claim(t.Context(), Claim{Key: "k", Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	check := func(n *Node) {
		t.Helper()
		again, err := n.Claim(t.Context(), Claim{Key: "k", Class: "demo"})
		if err != nil || again.Environment.ID != first.Environment.ID || again.Token != first.Token {
			t.Errorf("repeated claim = %s %v, want %s", again.Environment.ID, err, first.Environment.ID)
		}
		if _, err := n.Claim(t.Context(), Claim{Key: "k", Class: "demo", Hostname: "other"}); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("same key, other request = %v, want ErrInvalid", err)
		}
	}
	check(n)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	check(b.open(demoClass(1)))
}

func TestRestartKeepsEnvironmentsAndReadySlots(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(2))
	fillPools(t, n)
	running, _ := n.Claim(t.Context(), Claim{Class: "demo"})
	fillPools(t, n)
	paused, _ := n.Claim(t.Context(), Claim{Class: "demo"})
	if _, err := n.Pause(t.Context(), paused.Environment.ID); err != nil {
		t.Fatal(err)
	}
	// The agent died in the freeze of a snapshot, and in the middle of a pause.
	b.world.setFrozen(running.Environment.Slot, true)
	b.world.setFrozen(paused.Environment.Slot, false)
	before := n.List()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open(demoClass(2))
	if diff := cmp.Diff(before, n.List()); diff != "" {
		t.Errorf("environments (-before +after):\n%s", diff)
	}
	if b.world.isFrozen(running.Environment.Slot) {
		t.Error("the running environment stayed frozen")
	}
	if !b.world.isFrozen(paused.Environment.Slot) {
		t.Error("the paused environment runs")
	}
	if _, err := n.Authorize(running.Environment.ID, running.Token); err != nil {
		t.Errorf("token after restart: %v", err)
	}
	fillPools(t, n)
	if got := n.Pools()[0]; got.Ready != 2 {
		t.Errorf("pool after = %+v", got)
	}
}

// Every call that a claim or a preparation makes fails once; whatever happens,
// a later claim works and a release leaves nothing.
func TestNoFaultLeaksOrLosesASlot(t *testing.T) {
	requireChown(t)
	for _, call := range []string{
		"image", "prepare", "island", "cgroup", "bind", "connect", "create", "open", "identity-open", "start", "dial",
		"configure", "ready", "policy", "freeze", "identity", "unlock", "thaw", "kill", "delete", "rmisland", "rmcgroup", "bound", "unbound",
	} {
		t.Run(call, func(t *testing.T) {
			b := newBench(t)
			n := b.open(boundedClass(1))
			failed := false
			b.world.failWith(func(c string) error {
				if c == call && !failed {
					failed = true
					return fmt.Errorf("injected at %s", c)
				}
				return nil
			})
			var ids []env.ID
			for range 3 {
				if a, err := n.Claim(t.Context(), Claim{Class: "demo"}); err == nil {
					ids = append(ids, a.Environment.ID)
				}
			}
			for _, id := range ids {
				_, _ = n.Release(t.Context(), id, 0, false) // an injected failure here is tried again below
			}
			n.work.Wait()
			n.mu.Lock()
			n.doomedAt = time.Time{}
			n.classes["demo"].Warm.Slots = 0
			n.mu.Unlock()
			fillPools(t, n)
			if !failed {
				t.Fatalf("%s was never called", call)
			}
			if len(ids) < 2 {
				t.Errorf("%d of 3 claims worked", len(ids))
			}
			want := map[string]int{"containers": 0, "cgroups": 0, "islands": 0, "processes": 0, "bound": 0, "watched": 0, "quotas": 0}
			if diff := cmp.Diff(want, b.world.leftovers()); diff != "" {
				t.Errorf("left over (-want +got):\n%s", diff)
			}
		})
	}
}

// The agent dies at each journal write of a claim. What was not answered is
// gone after the restart, and a slot is never handed out twice.
func TestDeathAtAnyJournalWriteLeavesNoHalfClaim(t *testing.T) {
	requireChown(t)
	for at := 1; at <= 4; at++ { // preparing, ready, claiming, running
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			b := newBench(t)
			writes, dead, opened := 0, false, false
			b.fault = func(op string) error {
				if opened && op == opJournal+":write" {
					writes++
				}
				if writes >= at {
					dead = true
				}
				if dead {
					return errors.New("the agent is dead")
				}
				return nil
			}
			n := b.open(demoClass(1))
			opened = true
			b.world.failWith(func(string) error {
				if dead {
					return errors.New("the agent is dead")
				}
				return nil
			})
			_, _ = n.step(t.Context())
			_, claimErr := n.Claim(t.Context(), Claim{Key: "k", Class: "demo"})
			n.work.Wait()
			b.fault = nil
			b.world.failWith(nil)
			n = b.open(demoClass(1))
			n.work.Wait()
			if got := len(n.List()); claimErr != nil && got != 0 {
				t.Errorf("claim failed with %v, yet %d environments run", claimErr, got)
			}
			fillPools(t, n)
			if _, err := n.Claim(t.Context(), Claim{Key: "k", Class: "demo"}); err != nil {
				t.Errorf("claim after restart: %v", err)
			}
			if got := b.world.leftovers()["cgroups"]; got > 2 {
				t.Errorf("%d cgroups for one environment and one ready slot", got)
			}
		})
	}
}

func TestRefillRestsAfterAClaimButNotForThoseThatFollowClosely(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(2))
	fillPools(t, n)
	claim := func() {
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", WarmOnly: true}); err != nil {
			t.Fatal(err)
		}
	}
	claim()
	till := n.restTill
	if act := n.decide(till.Add(-1)); act.prepare != nil || !act.until.Equal(till) {
		t.Errorf("while resting: %+v, want to wait until %s", act, till)
	}
	if act := n.decide(till); act.prepare == nil {
		t.Errorf("after the rest: %+v, want a slot prepared", act)
	}
	n.restTill = time.Now().Add(time.Hour)
	till = n.restTill
	claim()
	if !n.restTill.Equal(till) {
		t.Errorf("a claim while resting moved the end of the rest by %s", n.restTill.Sub(till))
	}
}

func TestDeadReadySlotIsReplacedAndNeverHandedOut(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	for pid := range b.world.alive {
		b.world.die(pid)
	}
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil || a.Environment.Warm {
		t.Fatalf("claim = %+v %v, want a cold one", a.Environment, err)
	}
	n.work.Wait()
	fillPools(t, n)
	if got := n.Pools()[0]; got.Ready != 1 {
		t.Errorf("pool = %+v", got)
	}
}

func TestQuarantineFreezesLocksAndRefusesResume(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	e := a.Environment
	if err := n.Quarantine(t.Context(), e.Slot, "mining.stratum"); err != nil {
		t.Fatal(err)
	}
	if !b.world.isFrozen(e.Slot) || b.world.island(e.Slot) != "locked" {
		t.Error("the environment runs or its island is open")
	}
	if _, err := n.Resume(t.Context(), e.ID); !errors.Is(err, env.ErrState) {
		t.Errorf("Resume = %v, want ErrState", err)
	}
	if got, _ := n.Get(e.ID); got.Phase != env.PhaseQuarantined || !strings.Contains(got.Message, "mining") {
		t.Errorf("environment = %+v", got)
	}
}

func TestForkClaimsCopiesFromOneSnapshot(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	parent, err := n.Claim(t.Context(), Claim{Class: "demo", Tenant: "t"})
	if err != nil {
		t.Fatal(err)
	}
	snap, children, err := n.Fork(t.Context(), parent.Environment.ID, make([]Claim, 3))
	if err != nil || len(children) != 3 {
		t.Fatalf("fork = %d children, %v", len(children), err)
	}
	for _, c := range children {
		if e := c.Environment; e.Snapshot != snap.ID || e.Tenant != "t" || e.Phase != env.PhaseRunning {
			t.Errorf("child = %+v", e)
		}
	}
}

func TestClaimRefusesBadInput(t *testing.T) {
	n := newBench(t).open(demoClass(0))
	for name, c := range map[string]Claim{
		"no class":       {},
		"long hostname":  {Class: "demo", Hostname: strings.Repeat("a", 64)},
		"odd hostname":   {Class: "demo", Hostname: "a/b"},
		"NUL":            {Class: "demo", Variables: map[string]string{"A": "x\x00"}},
		"name with =":    {Class: "demo", Variables: map[string]string{"A=B": "x"}},
		"variables":      {Class: "demo", Variables: map[string]string{"A": strings.Repeat("x", MaxVariablesBytes)}},
		"metadata":       {Class: "demo", Metadata: []byte("{")},
		"long metadata":  {Class: "demo", Metadata: []byte(`"` + strings.Repeat("x", MaxMetadataBytes) + `"`)},
		"environment id": {Class: "demo", ID: "../../x"},
	} {
		if _, err := n.Claim(context.Background(), c); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := n.Claim(context.Background(), Claim{Class: "nope"}); !errors.Is(err, env.ErrNotFound) || !strings.Contains(err.Error(), "demo") {
		t.Errorf("unknown class: %v, want ErrNotFound naming the classes", err)
	}
}
