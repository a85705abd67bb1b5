package warm

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

func TestAnEnvironmentWhoseTimeHasComeIsReleasedAndSaysWhy(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(mortalClass(env.Lifetime{TimeToLive: time.Hour}))
	at := b.mortal(n)
	e := b.claim(n, Claim{Class: "demo"})
	forever := b.claim(n, Claim{Class: "demo", Lifetime: &Lifetime{}})
	at.pass(time.Hour - 1)
	liveOn(t, n)
	wantIs(t, n, e.ID, env.PhaseRunning)
	at.pass(1)
	liveOn(t, n)
	got, err := n.Get(e.ID)
	if err != nil || got.Phase != env.PhaseReleased || got.Reason != "expired" || got.Message != expiredMessage {
		t.Errorf("environment = %+v, %v", got, err)
	}
	if past := n.Past(); len(past) != 1 || past[0].ID != e.ID {
		t.Errorf("past = %+v", past)
	}
	wantIs(t, n, forever.ID, env.PhaseRunning)
	if list := n.List(); len(list) != 1 {
		t.Errorf("list = %+v", list)
	}
	if _, err := n.Release(t.Context(), forever.ID, 0, false); err != nil {
		t.Fatal(err)
	}
	for what, left := range b.world.leftovers() {
		if left != 0 {
			t.Errorf("%d %s are left", left, what)
		}
	}
}

func TestAnEndTakesTheSnapshotOfItsClassAndIsKeptWithoutIt(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := mortalClass(env.Lifetime{TimeToLive: time.Hour})
	class.Snapshot.OnRelease = true
	n := b.open(class)
	at := b.mortal(n)
	e := b.claim(n, Claim{Class: "demo"})
	at.pass(2 * time.Hour)
	b.world.failWith(func(call string) error {
		if call == "capture" {
			return env.ErrExhausted
		}
		return nil
	})
	k := newKeeper(n)
	once := func() {
		k.endDue(t.Context())
		k.work.Wait()
	}
	once()
	wantIs(t, n, e.ID, env.PhaseRunning)
	b.world.failWith(nil)
	once() // too early: it failed a moment ago
	wantIs(t, n, e.ID, env.PhaseRunning)
	at.pass(endingFirst)
	once()
	got, _ := n.Get(e.ID)
	if got.Phase != env.PhaseReleased || !strings.Contains(got.Message, "snapshot "+string(e.ID)+"/1") {
		t.Errorf("environment = %+v", got)
	}
}

// What may run elsewhere, and what is evidence, waits for whoever ends that state.
func TestWhatIsHeldFencedOrQuarantinedOutlivesItsTime(t *testing.T) {
	for name, tc := range map[string]struct {
		stop, undo func(*Node, Environment) error
		phase      env.Phase
		stays      bool
	}{
		"held": {
			stop:  func(n *Node, e Environment) error { _, err := n.SnapshotAndHold(t.Context(), e.ID); return err },
			undo:  func(n *Node, e Environment) error { _, err := n.Resume(t.Context(), e.ID); return err },
			phase: env.PhasePaused,
		},
		"fenced": {
			stop:  func(n *Node, _ Environment) error { return n.Fence(t.Context()) },
			undo:  func(n *Node, _ Environment) error { return n.Unfence(t.Context(), nil) },
			phase: env.PhaseFenced,
		},
		"quarantined": {
			stop:  func(n *Node, e Environment) error { return n.Quarantine(t.Context(), e.Slot, "mining") },
			undo:  func(*Node, Environment) error { return nil },
			phase: env.PhaseQuarantined, stays: true,
		},
		"stalled": {
			stop:  func(n *Node, e Environment) error { return n.Stall(t.Context(), e.Slot, "the disk is short") },
			undo:  func(*Node, Environment) error { return nil },
			phase: env.PhaseReleased,
		},
		"paused": {
			stop:  func(n *Node, e Environment) error { _, err := n.Pause(t.Context(), e.ID); return err },
			undo:  func(*Node, Environment) error { return nil },
			phase: env.PhaseReleased,
		},
		"failed": {
			stop: func(n *Node, e Environment) error {
				n.parts.Runtime.(fakeRuntime).die(e.PID)
				n.InitEnded(e.Slot)
				return nil
			},
			undo:  func(*Node, Environment) error { return nil },
			phase: env.PhaseReleased,
		},
	} {
		t.Run(name, func(t *testing.T) {
			requireChown(t)
			b := newBench(t)
			n := b.open(mortalClass(env.Lifetime{TimeToLive: time.Hour}))
			at := b.mortal(n)
			e := b.claim(n, Claim{Class: "demo"})
			if err := tc.stop(n, e); err != nil {
				t.Fatal(err)
			}
			at.pass(2 * time.Hour)
			liveOn(t, n)
			wantIs(t, n, e.ID, tc.phase)
			if err := tc.undo(n, e); err != nil {
				t.Fatal(err)
			}
			liveOn(t, n)
			want := env.PhaseReleased
			if tc.stays {
				want = tc.phase
			}
			wantIs(t, n, e.ID, want)
		})
	}
}

func TestAnAgentThatWasAwayReleasesWhatHasEndedMeanwhileAndStillSaysWhy(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := mortalClass(env.Lifetime{TimeToLive: time.Hour})
	n := b.open(class)
	at := b.mortal(n)
	e := b.claim(n, Claim{Class: "demo"})
	again := b.open(class)
	later := b.mortal(again)
	later.at = at.at + 2*time.Hour
	liveOn(t, again)
	wantIs(t, again, e.ID, env.PhaseReleased)
	if err := again.compact(); err != nil {
		t.Fatal(err)
	}
	third := b.open(class)
	if got, err := third.Get(e.ID); err != nil || got.Phase != env.PhaseReleased || got.Reason != "expired" {
		t.Errorf("after another restart: %+v, %v", got, err)
	}
	if got := third.Room().SlotsUsed; got != 0 {
		t.Errorf("%d slots are in use", got)
	}
}

func TestADeathDuringAnEndIsCompletedByTheNextAgent(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := mortalClass(env.Lifetime{TimeToLive: time.Hour})
	n := b.open(class)
	at := b.mortal(n)
	e := b.claim(n, Claim{Class: "demo"})
	at.pass(time.Hour)
	b.world.failWith(func(call string) error { // the agent dies while it removes
		if call == "delete" {
			return env.ErrUnavailable
		}
		return nil
	})
	liveOn(t, n)
	b.world.failWith(nil)
	again := b.open(class)
	got, err := again.Get(e.ID)
	if err != nil || got.Phase != env.PhaseReleased || got.Reason != "expired" {
		t.Errorf("environment = %+v, %v", got, err)
	}
	for what, left := range b.world.leftovers() {
		if left != 0 {
			t.Errorf("%d %s are left", left, what)
		}
	}
}

func TestTheWallClockDecidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requireChown(t)
		b := newBench(t)
		n := b.open(mortalClass(env.Lifetime{TimeToLive: time.Hour}))
		at := b.mortal(n)
		e := b.claim(n, Claim{Class: "demo"})
		time.Sleep(48 * time.Hour) // as if somebody set the clock
		liveOn(t, n)
		wantIs(t, n, e.ID, env.PhaseRunning)
		at.pass(time.Hour)
		liveOn(t, n)
		wantIs(t, n, e.ID, env.PhaseReleased)
	})
}

func TestRunLifetimesEndsWithItsContextAndWithinATickOfEachEnd(t *testing.T) {
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		n := b.open(mortalClass(env.Lifetime{TimeToLive: time.Hour}))
		start := time.Now()
		n.now = func() time.Duration { return time.Minute + time.Since(start) }
		e := b.claim(n, Claim{Class: "demo"})
		stop := running(t, n)
		time.Sleep(time.Hour - 2*lifeTick)
		wantIs(t, n, e.ID, env.PhaseRunning)
		time.Sleep(3 * lifeTick)
		wantIs(t, n, e.ID, env.PhaseReleased)
		stop()
	})
}
