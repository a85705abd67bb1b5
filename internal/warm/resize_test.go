package warm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

// SetLimits takes all or none, as the real one.
func (c *fakeCgroup) SetLimits(r env.Resources) error {
	if err := c.call("limits"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.MemoryBytes > 0 && c.used > r.MemoryBytes {
		return fmt.Errorf("%w: %d bytes are in use", env.ErrState, c.used)
	}
	if r.CPUMillis > 0 {
		c.limits.CPUMillis, c.limits.CPUBurstMillis = r.CPUMillis, r.CPUBurstMillis
	}
	if r.MemoryBytes > 0 {
		c.limits.MemoryBytes, c.limits.MemoryHighBytes = r.MemoryBytes, r.MemoryHighBytes
	}
	return nil
}

const mib = 1 << 20

// sizedClass has limits that claims can lower and raise; the bench's node has 1 GiB.
func sizedClass(slots int) *env.Class {
	c := demoClass(slots)
	c.Resources = env.Resources{CPUMillis: 1000, MemoryBytes: 128 * mib, MemoryHighBytes: 96 * mib, PIDs: 10}
	return c
}

func (w *world) limitsOf(slot env.SlotID) env.Resources {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cgroups[slot].limits
}

func (w *world) uses(slot env.SlotID, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cgroups[slot].used = bytes
}

func (b *bench) claimed(n *Node, c Claim) Environment {
	b.t.Helper()
	c.Class = "demo"
	a, err := n.Claim(b.t.Context(), c)
	if err != nil {
		b.t.Fatal(err)
	}
	return a.Environment
}

// wantLimits compares what the environment, the kernel and the budget say.
func (b *bench) wantLimits(n *Node, id env.ID, cpu, memory int64) {
	b.t.Helper()
	e, err := n.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	kernel := b.world.limitsOf(e.Slot)
	for who, r := range map[string]env.Resources{"the environment": e.Resources, "the kernel": kernel} {
		if r.CPUMillis != cpu || r.MemoryBytes != memory {
			b.t.Errorf("%s says %dm and %d MiB, want %dm and %d MiB", who, r.CPUMillis, r.MemoryBytes/mib, cpu, memory/mib)
		}
	}
	if got := n.Promised(); got != memory {
		b.t.Errorf("%d MiB are promised, want %d", got/mib, memory/mib)
	}
}

func TestAClaimHasLimitsOfItsOwnBeforeItRuns(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(1))
	fillPools(t, n)
	frozen := false
	b.world.failWith(func(call string) error {
		if call == "limits" {
			for id := range n.slots {
				frozen = b.world.isFrozen(id)
			}
		}
		return nil
	})
	a, err := n.Claim(t.Context(), Claim{Class: "demo", Limits: env.Limits{CPUMillis: 500, MemoryBytes: 64 * mib}})
	b.world.failWith(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Environment.Warm || !frozen {
		t.Errorf("warm %t, frozen while limits were set %t; want both", a.Environment.Warm, frozen)
	}
	if !slices.ContainsFunc(a.Phases, func(p PhaseTime) bool { return p.Name == "limits" }) {
		t.Errorf("phases = %+v, want one for limits", a.Phases)
	}
	b.wantLimits(n, a.Environment.ID, 500, 64*mib)
	if high := b.world.limitsOf(a.Environment.Slot).MemoryHighBytes; high != 48*mib {
		t.Errorf("the mark of memory is %d MiB, want its share", high/mib)
	}
}

func TestAClaimWithoutLimitsTouchesNone(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(1))
	fillPools(t, n)
	b.world.failWith(func(call string) error {
		if call == "limits" {
			return errors.New("limits were set")
		}
		return nil
	})
	for _, l := range []env.Limits{{}, {CPUMillis: 1000, MemoryBytes: 128 * mib}} {
		e := b.claimed(n, Claim{Limits: l})
		b.wantLimits(n, e.ID, 1000, 128*mib)
		if _, err := n.Release(t.Context(), e.ID, 0, false); err != nil {
			t.Fatal(err)
		}
		b.world.failWith(nil)
		fillPools(t, n)
	}
}

func TestAClaimTakesAnotherSlotThanOneThatUsesTooMuch(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(3))
	fillPools(t, n)
	oldest := n.pools["demo"].ready[0]
	b.world.uses(oldest.id, 100*mib)
	e := b.claimed(n, Claim{Limits: env.Limits{MemoryBytes: 64 * mib}})
	if !e.Warm || e.Slot == oldest.id {
		t.Errorf("environment %+v has slot %s, want another warm one", e, oldest.id)
	}
	if got := n.Pools()[0]; got.Ready != 2 || got.Claimed != 1 {
		t.Errorf("pool = %+v, want the large slot back", got)
	}
	if st := n.stateOf(oldest); st.Phase != env.SlotReady || st.Env != nil || !b.world.isFrozen(oldest.id) || b.world.island(oldest.id) != "locked" {
		t.Errorf("slot that was put back: %+v", st)
	}
	if _, touched := b.world.identity(oldest.init.PID())[EnvFile]; touched {
		t.Error("the slot that was put back has an identity")
	}
	for _, s := range n.pools["demo"].ready {
		b.world.uses(s.id, 100*mib)
	}
	_, err := n.Claim(t.Context(), Claim{Class: "demo", Limits: env.Limits{MemoryBytes: 64 * mib}})
	if !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "ask for more") {
		t.Errorf("a claim that no slot is small enough for: %v, want ErrState with a mend", err)
	}
	if got := n.Pools()[0]; got.Ready != 2 {
		t.Errorf("pool = %+v: a claim that is refused costs no slot", got)
	}
	if e := b.claimed(n, Claim{}); !e.Warm || e.Slot != oldest.id {
		t.Errorf("a claim of the class's limits got %+v, want the oldest slot", e)
	}
}

func TestAColdClaimIsMadeWithNoLessThanItsClassAndEndsWithItsOwn(t *testing.T) {
	requireChown(t)
	for name, l := range map[string]env.Limits{
		"more": {CPUMillis: 3000, MemoryBytes: 512 * mib}, "less": {CPUMillis: 300, MemoryBytes: 64 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			n := b.open(sizedClass(0))
			var atStart env.Resources
			b.world.failWith(func(call string) error {
				if call == "start" {
					for id := range n.slots {
						atStart = b.world.limitsOf(id)
					}
				}
				return nil
			})
			e := b.claimed(n, Claim{Limits: l})
			b.world.failWith(nil)
			if atStart.CPUMillis != max(l.CPUMillis, 1000) || atStart.MemoryBytes != max(l.MemoryBytes, 128*mib) {
				t.Errorf("its services started with %+v", atStart)
			}
			b.wantLimits(n, e.ID, l.CPUMillis, l.MemoryBytes)
		})
	}
}

func TestResizeGoesUpAndDownInEveryPhaseThatItsOwnerDecides(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(1))
	fillPools(t, n)
	e := b.claimed(n, Claim{})
	resize := func(l env.Limits) {
		t.Helper()
		if _, err := n.Resize(t.Context(), e.ID, l); err != nil {
			t.Fatal(err)
		}
	}
	resize(env.Limits{CPUMillis: 2000, MemoryBytes: 512 * mib, CPUBurstMillis: 1500})
	b.wantLimits(n, e.ID, 2000, 512*mib)
	if burst := b.world.limitsOf(e.Slot).CPUBurstMillis; burst != 1500 {
		t.Errorf("burst = %dm", burst)
	}
	if _, err := n.Pause(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	resize(env.Limits{CPUMillis: 400})
	b.wantLimits(n, e.ID, 400, 512*mib)
	if burst := b.world.limitsOf(e.Slot).CPUBurstMillis; burst != 400 {
		t.Errorf("burst = %dm, want it to shrink with the CPU", burst)
	}
	if !b.world.isFrozen(e.Slot) {
		t.Error("resizing has thawed a paused environment")
	}
	if _, err := n.Resume(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	if err := n.Stall(t.Context(), e.Slot, "the disk is full"); err != nil {
		t.Fatal(err)
	}
	resize(env.Limits{MemoryBytes: 64 * mib, CPUBurstMillis: env.NoBurst})
	b.wantLimits(n, e.ID, 400, 64*mib)
	if burst := b.world.limitsOf(e.Slot).CPUBurstMillis; burst != 0 {
		t.Errorf("burst = %dm, want none", burst)
	}
	if err := n.Quarantine(t.Context(), e.Slot, "mining"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Resize(t.Context(), e.ID, env.Limits{CPUMillis: 4000}); !errors.Is(err, env.ErrState) {
		t.Errorf("resize of a quarantined environment: %v, want ErrState", err)
	}
}

func TestAResizeThatCannotBeChangesNothing(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(0))
	e := b.claimed(n, Claim{Limits: env.Limits{MemoryBytes: 256 * mib}})
	b.world.uses(e.Slot, 100*mib)
	full := errors.New("no space left on device")
	for name, tt := range map[string]struct {
		l    env.Limits
		fail string
		want error
	}{
		"nothing asked":                {want: env.ErrInvalid},
		"tiny memory":                  {l: env.Limits{MemoryBytes: 1}, want: env.ErrInvalid},
		"burst above the cpu":          {l: env.Limits{CPUBurstMillis: 1500}, want: env.ErrInvalid},
		"less than is used":            {l: env.Limits{CPUMillis: 500, MemoryBytes: 64 * mib}, want: env.ErrState},
		"more than the node has":       {l: env.Limits{CPUMillis: 500, MemoryBytes: 2 << 30}, want: env.ErrExhausted},
		"a kernel that refuses a rise": {l: env.Limits{MemoryBytes: 512 * mib}, fail: "limits", want: full},
		"a kernel that refuses a fall": {l: env.Limits{MemoryBytes: 128 * mib}, fail: "limits", want: full},
	} {
		b.world.failWith(func(call string) error {
			if tt.fail == call {
				return full
			}
			return nil
		})
		if _, err := n.Resize(t.Context(), e.ID, tt.l); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		b.world.failWith(nil)
		b.wantLimits(n, e.ID, 1000, 256*mib)
	}
}

func TestAJournalThatCannotBeWrittenLeavesTheOldLimits(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	full := false
	b.fault = func(op string) error {
		if full && strings.HasPrefix(op, opJournal) {
			return fmt.Errorf("%w: no space left on device", env.ErrExhausted)
		}
		return nil
	}
	n := b.open(sizedClass(0))
	e := b.claimed(n, Claim{})
	full = true
	for _, bytes := range []int64{64 * mib, 512 * mib} {
		if _, err := n.Resize(t.Context(), e.ID, env.Limits{MemoryBytes: bytes}); !errors.Is(err, env.ErrExhausted) {
			t.Errorf("resize without a journal: %v, want ErrExhausted", err)
		}
		b.wantLimits(n, e.ID, 1000, 128*mib)
	}
}

func TestARestartPutsTheLimitsOfTheJournalInForce(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(0))
	e := b.claimed(n, Claim{Limits: env.Limits{CPUMillis: 700}})
	if _, err := n.Resize(t.Context(), e.ID, env.Limits{MemoryBytes: 512 * mib}); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// As if the agent had died between kernel and journal.
	b.world.mu.Lock()
	b.world.cgroups[e.Slot].limits = env.Resources{CPUMillis: 1, MemoryBytes: 64 * mib}
	b.world.mu.Unlock()
	n = b.open(sizedClass(0))
	b.wantLimits(n, e.ID, 700, 512*mib)
	if room := n.Room(); room.MemoryReserved != 512*mib {
		t.Errorf("reserved = %d MiB, want what the environment has", room.MemoryReserved/mib)
	}
}

func TestClaimsAndResizesShareTheNodesMemory(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(1))
	fillPools(t, n)
	if _, err := n.Claim(t.Context(), Claim{Class: "demo", Limits: env.Limits{MemoryBytes: 2 << 30}}); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("a claim of more than the node has: %v, want ErrExhausted", err)
	}
	if got := n.Pools()[0].Ready; got != 1 {
		t.Errorf("%d ready slots, want the one that was not large enough", got)
	}
	e := b.claimed(n, Claim{Limits: env.Limits{MemoryBytes: 900 * mib}})
	if _, err := n.Claim(t.Context(), Claim{Class: "demo"}); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("a claim beside it: %v, want ErrExhausted", err)
	}
	if _, err := n.Resize(t.Context(), e.ID, env.Limits{MemoryBytes: 512 * mib}); err != nil {
		t.Fatal(err)
	}
	b.claimed(n, Claim{})
	if got := n.Promised(); got != 640*mib {
		t.Errorf("promised = %d MiB", got/mib)
	}
}

func TestOriginAndForkKeepTheLimits(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(0))
	want := env.Limits{CPUMillis: 500, MemoryBytes: 64 * mib}
	e := b.claimed(n, Claim{Limits: want})
	origin, err := n.Origin(e.ID)
	if diff := cmp.Diff(want, origin.Limits); diff != "" || err != nil {
		t.Errorf("origin: %v\n%s", err, diff)
	}
	_, children, err := n.Fork(t.Context(), e.ID, []Claim{{}, {Limits: env.Limits{CPUMillis: 100}}})
	if err != nil {
		t.Fatal(err)
	}
	for i, cpu := range []int64{500, 100} {
		if got := b.world.limitsOf(children[i].Environment.Slot).CPUMillis; got != cpu {
			t.Errorf("child %d has %dm, want %dm", i, got, cpu)
		}
	}
}

func TestAHeldEnvironmentIsNotResized(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(sizedClass(0))
	e := b.claimed(n, Claim{})
	if _, err := n.SnapshotAndHold(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Resize(t.Context(), e.ID, env.Limits{CPUMillis: 500}); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "move") {
		t.Errorf("resize of a held environment: %v, want ErrState", err)
	}
	b.wantLimits(n, e.ID, 1000, 128*mib)
}

// A dead agent does nothing more: from some step on, neither the journal nor the
// kernel takes anything, the undoing of what was done before included.
func TestDeathAtAnyStepOfAResizeLeavesOldOrNewLimits(t *testing.T) {
	requireChown(t)
	const before = 256 * mib
	for _, after := range []int64{64 * mib, 512 * mib} {
		for step := 1; ; step++ {
			b := newBench(t)
			left := 1 << 30 // steps that it lives for
			died := false
			die := func() error {
				if left--; left < 0 {
					died = true
					return errors.New("dead")
				}
				return nil
			}
			b.fault = func(string) error { return die() }
			n := b.open(sizedClass(0))
			e := b.claimed(n, Claim{Limits: env.Limits{CPUMillis: 500, MemoryBytes: before}})
			n.work.Wait()
			b.world.failWith(func(string) error { return die() })
			left = step - 1
			_, err := n.Resize(t.Context(), e.ID, env.Limits{CPUMillis: 700, MemoryBytes: after})
			b.world.failWith(nil)
			b.fault = nil
			// Without an agent, it uses all that the kernel lets it have.
			b.world.uses(e.Slot, b.world.limitsOf(e.Slot).MemoryBytes)
			n = b.open(sizedClass(0))
			got, gerr := n.Get(e.ID)
			if gerr != nil {
				t.Fatal(gerr)
			}
			isOld := got.Resources.CPUMillis == 500 && got.Resources.MemoryBytes == before
			isNew := got.Resources.CPUMillis == 700 && got.Resources.MemoryBytes == after
			if !isOld && !isNew || err == nil && !isNew {
				t.Errorf("to %d MiB, dead at step %d (answered %v): %+v", after/mib, step, err, got.Resources)
			}
			b.wantLimits(n, e.ID, got.Resources.CPUMillis, got.Resources.MemoryBytes)
			if !died {
				if step < 3 {
					t.Errorf("to %d MiB: only %d steps were tried", after/mib, step-1)
				}
				break
			}
		}
	}
}
