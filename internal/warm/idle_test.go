package warm

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

func (c *fakeCgroup) CPUTime() (time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cpu[c.slot], nil
}

func (w fakeIslands) Packets(slot env.SlotID) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.packets[slot], nil
}

func TestQuietIsWhereNothingHappensInAnyPiece(t *testing.T) {
	const s = time.Second
	type look = usage
	for name, tc := range map[string]struct {
		looks []look
		want  time.Duration // of the last look
	}{
		"nothing at all":              {[]look{{at: 10 * s}, {at: 20 * s}, {at: 30 * s}}, 30 * s},
		"an idle daemon":              {[]look{{at: 10 * s, cpu: 100 * time.Millisecond}, {at: 20 * s, cpu: 200 * time.Millisecond}}, 20 * s},
		"work, a while ago":           {[]look{{at: 10 * s, cpu: s}, {at: 20 * s, cpu: s}}, 10 * s},
		"work just now":               {[]look{{at: 10 * s}, {at: 20 * s, cpu: s}}, 0},
		"keep-alives":                 {[]look{{at: 10 * s, packets: 10}, {at: 20 * s, packets: 20}}, 20 * s},
		"traffic":                     {[]look{{at: 10 * s, packets: 11}, {at: 20 * s, packets: 11}}, 10 * s},
		"somebody is there":           {[]look{{at: 10 * s, users: 1}, {at: 20 * s, users: 1}}, 0},
		"somebody was there":          {[]look{{at: 10 * s}, {at: 20 * s, used: 15 * s}, {at: 30 * s, used: 15 * s}}, 10 * s},
		"counters that fell: unknown": {[]look{{at: 10 * s, packets: 5}, {at: 20 * s}, {at: 30 * s}}, 10 * s},
	} {
		t.Run(name, func(t *testing.T) {
			w := newIdleness(usage{}, false)
			var got time.Duration
			for _, u := range tc.looks {
				got = w.note(u)
			}
			if got != tc.want {
				t.Errorf("quiet for %s, want %s", got, tc.want)
			}
		})
	}
	// It may be in use through the agent before this one.
	w := newIdleness(usage{}, true)
	if got := w.note(usage{at: lingering}); got != 0 {
		t.Errorf("taken back, it is quiet for %s after a minute", got)
	}
}

const window = time.Minute

func idleClass() *env.Class { return mortalClass(env.Lifetime{PauseWhenIdle: window}) }

// running runs a node's lifetimes until the returned function.
func running(t *testing.T, n *Node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.RunLifetimes(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.work.Wait()
	}
}

// idleNode plays with one node whose clock is the test's.
func idleNode(t *testing.T, play func(t *testing.T, b *bench, n *Node)) {
	t.Helper()
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		n := b.open(idleClass())
		start := time.Now()
		n.now = func() time.Duration { return time.Minute + time.Since(start) }
		stop := running(t, n)
		play(t, b, n)
		stop()
	})
}

func wantIdle(t *testing.T, b *bench, n *Node, id env.ID, want bool) {
	t.Helper()
	e, err := n.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	if idle := e.Phase == env.PhasePaused && e.Idle() && e.Message == idleMessage && b.world.isFrozen(e.Slot); idle != want {
		t.Errorf("environment is %s %q (%s), frozen %t; want idle %t", e.Phase, e.Reason, e.Message, b.world.isFrozen(e.Slot), want)
	}
}

func TestAnIdleEnvironmentIsPausedAndGoesOnWhenItIsUsed(t *testing.T) {
	idleNode(t, func(t *testing.T, b *bench, n *Node) {
		t.Helper()
		id := b.claim(n, Claim{Class: "demo"}).ID
		time.Sleep(window - 2*lifeTick)
		wantIdle(t, b, n, id, false)
		time.Sleep(window / 2)
		wantIdle(t, b, n, id, true)
		thaws := b.world.count("thaw")
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				done, err := n.Use(t.Context(), id)
				if err != nil {
					t.Error(err)
					return
				}
				done()
				done() // twice does nothing
			})
		}
		all.Wait()
		wantIs(t, n, id, env.PhaseRunning)
		if got := b.world.count("thaw") - thaws; got != 1 {
			t.Errorf("20 callers thawed %d times, want once", got)
		}
		time.Sleep(2 * window)
		wantIdle(t, b, n, id, true)
	})
}

func TestABusyEnvironmentIsNotPaused(t *testing.T) {
	idleNode(t, func(t *testing.T, b *bench, n *Node) {
		t.Helper()
		works, talks, used := b.claim(n, Claim{Class: "demo"}), b.claim(n, Claim{Class: "demo"}), b.claim(n, Claim{Class: "demo"})
		done, err := n.Use(t.Context(), used.ID)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			time.Sleep(5 * time.Second)
			b.world.mu.Lock()
			b.world.cpu[works.Slot] += 100 * time.Millisecond
			b.world.packets[talks.Slot] += 10
			b.world.mu.Unlock()
		}
		for _, e := range []Environment{works, talks, used} {
			wantIs(t, n, e.ID, env.PhaseRunning)
		}
		done()
		time.Sleep(2 * window)
		wantIdle(t, b, n, used.ID, true)
	})
}

func TestWhatItsOwnerPausedDoesNotGoOnByItself(t *testing.T) {
	idleNode(t, func(t *testing.T, b *bench, n *Node) {
		t.Helper()
		id := b.claim(n, Claim{Class: "demo"}).ID
		time.Sleep(2 * window)
		wantIdle(t, b, n, id, true)
		if e, err := n.Pause(t.Context(), id); err != nil || e.Idle() || e.Message != "" {
			t.Fatalf("pause = %+v, %v", e, err)
		}
		if _, err := n.Use(t.Context(), id); !errors.Is(err, env.ErrState) {
			t.Errorf("use = %v, want ErrState", err)
		}
		if _, err := n.Resume(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		wantIs(t, n, id, env.PhaseRunning)
	})
}

func TestAnIdleEnvironmentKeepsItsSleepThroughWhatElseHappens(t *testing.T) {
	for name, do := range map[string]func(*testing.T, *Node, Environment) error{
		"a fence": func(t *testing.T, n *Node, e Environment) error {
			t.Helper()
			if err := n.Fence(t.Context()); err != nil {
				return err
			}
			if _, err := n.Use(t.Context(), e.ID); !errors.Is(err, env.ErrState) {
				t.Errorf("use of a fenced one = %v, want ErrState", err)
			}
			return n.Unfence(t.Context(), nil)
		},
		"a move that came to nothing": func(t *testing.T, n *Node, e Environment) error {
			t.Helper()
			if _, err := n.SnapshotAndHold(t.Context(), e.ID); err != nil {
				return err
			}
			if _, err := n.Use(t.Context(), e.ID); !errors.Is(err, env.ErrState) {
				t.Errorf("use of a held one = %v, want ErrState", err)
			}
			_, err := n.Resume(t.Context(), e.ID)
			return err
		},
		"a snapshot": func(t *testing.T, n *Node, e Environment) error {
			t.Helper()
			_, err := n.Snapshot(t.Context(), e.ID)
			return err
		},
		"a stall": func(t *testing.T, n *Node, e Environment) error {
			t.Helper()
			if err := n.Stall(t.Context(), e.Slot, "short"); !errors.Is(err, env.ErrState) {
				t.Errorf("stall = %v, want ErrState: it writes nothing", err)
			}
			return n.Relieve(t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			idleNode(t, func(t *testing.T, b *bench, n *Node) {
				t.Helper()
				e := b.claim(n, Claim{Class: "demo"})
				time.Sleep(2 * window)
				wantIdle(t, b, n, e.ID, true)
				if err := do(t, n, e); err != nil {
					t.Fatal(err)
				}
				wantIdle(t, b, n, e.ID, true)
				done, err := n.Use(t.Context(), e.ID)
				if err != nil {
					t.Fatal(err)
				}
				done()
				wantIs(t, n, e.ID, env.PhaseRunning)
			})
		})
	}
}

func TestAQuarantinedEnvironmentIsNotWoken(t *testing.T) {
	idleNode(t, func(t *testing.T, b *bench, n *Node) {
		t.Helper()
		e := b.claim(n, Claim{Class: "demo"})
		time.Sleep(2 * window)
		if err := n.Quarantine(t.Context(), e.Slot, "mining"); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Use(t.Context(), e.ID); !errors.Is(err, env.ErrState) {
			t.Errorf("use = %v, want ErrState", err)
		}
		if got, _ := n.Get(e.ID); got.Reason != "" {
			t.Errorf("reason = %q", got.Reason)
		}
	})
}

func TestAReleaseOfAnIdleEnvironmentLeavesNothing(t *testing.T) {
	idleNode(t, func(t *testing.T, b *bench, n *Node) {
		t.Helper()
		e := b.claim(n, Claim{Class: "demo"})
		time.Sleep(2 * window)
		wantIdle(t, b, n, e.ID, true)
		if _, err := n.Release(t.Context(), e.ID, 0, true); err != nil {
			t.Fatal(err)
		}
		for what, left := range b.world.leftovers() {
			if left != 0 {
				t.Errorf("%d %s are left", left, what)
			}
		}
	})
}

// Whoever comes while it is being paused must find it running, or wake it.
func TestACallerWhoComesDuringThePauseIsNotLeftFrozen(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(idleClass())
	e := b.claim(n, Claim{Class: "demo"})
	var done func()
	came := make(chan struct{})
	b.world.failWith(func(call string) error {
		if call != "freeze" {
			return nil
		}
		b.world.failWith(nil)
		go func() {
			defer close(came)
			var err error
			if done, err = n.Use(context.Background(), e.ID); err != nil {
				t.Error(err)
			}
		}()
		for !n.inUse(n.envs[e.ID]) { // it is counted as used before it is frozen
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	if err := n.pauseIdle(t.Context(), n.envs[e.ID]); err != nil {
		t.Fatal(err)
	}
	<-came
	wantIs(t, n, e.ID, env.PhaseRunning)
	if b.world.isFrozen(e.Slot) {
		t.Error("it is frozen")
	}
	if err := n.pauseIdle(t.Context(), n.envs[e.ID]); !errors.Is(err, errInUse) {
		t.Errorf("pause of one in use = %v", err)
	}
	done()
	if err := n.pauseIdle(t.Context(), n.envs[e.ID]); err != nil {
		t.Error(err)
	}
}

func TestWhatSleepsThoughSomebodyUsesItIsWoken(t *testing.T) {
	idleNode(t, func(t *testing.T, b *bench, n *Node) {
		t.Helper()
		e := b.claim(n, Claim{Class: "demo"})
		done, err := n.Use(t.Context(), e.ID)
		if err != nil {
			t.Fatal(err)
		}
		// As a fence leaves it that comes between the caller and the pause.
		s := n.envs[e.ID]
		if err := n.change(s, func(st *slotState) { st.Env.Phase, st.Env.Idle = env.PhasePaused, true }); err != nil {
			t.Fatal(err)
		}
		if err := n.settle(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * lifeTick)
		wantIs(t, n, e.ID, env.PhaseRunning)
		if b.world.isFrozen(e.Slot) {
			t.Error("it is frozen")
		}
		done()
	})
}

func TestAPauseThatDoesNotCompleteIsUndone(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(idleClass())
	e := b.claim(n, Claim{Class: "demo"})
	b.world.failWith(func(call string) error {
		if call == "freeze" {
			return errors.New("injected")
		}
		return nil
	})
	if err := n.pauseIdle(t.Context(), n.envs[e.ID]); err == nil {
		t.Error("it says that it was paused")
	}
	b.world.failWith(nil)
	wantIs(t, n, e.ID, env.PhaseRunning)
	if b.world.isFrozen(e.Slot) {
		t.Error("it is frozen")
	}
}

func TestAnIdleEnvironmentSleepsOnOverARestart(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(idleClass())
	e := b.claim(n, Claim{Class: "demo"})
	if err := n.pauseIdle(t.Context(), n.envs[e.ID]); err != nil {
		t.Fatal(err)
	}
	again := b.open(idleClass())
	wantIdle(t, b, again, e.ID, true)
	done, err := again.Use(t.Context(), e.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	wantIs(t, again, e.ID, env.PhaseRunning)
}
