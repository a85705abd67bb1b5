package warm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

// The image may change while the slot is being made.
func TestAnImageThatChangesMeanwhileIsRefused(t *testing.T) {
	b := newBench(t)
	n, e, _ := outdated(t, b, Claim{}, nil)
	b.during("image", func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		other := *n.classes["demo"]
		other.Image, other.Revision = "debian", "r3"
		n.classes["demo"] = &other
	})
	_, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
	b.world.failWith(nil)
	if !errors.Is(err, env.ErrInvalid) {
		t.Errorf("upgrade: %v, want ErrInvalid", err)
	}
	if got := b.phaseOf(n, e.ID); got != "running thawed open" {
		t.Errorf("it is %s", got)
	}
	b.only(1)
}

func TestAQuarantineMeanwhileHolds(t *testing.T) {
	for name, tt := range map[string]struct {
		at string
		// next quarantines the new slot, not the old one.
		next     bool
		upgraded bool
		want     string
	}{
		"before it is stopped":             {"capture", false, false, "quarantined frozen locked"},
		"while it is captured":             {"capture#2", false, false, "quarantined frozen locked"},
		"while its files are restored":     {"restore", false, false, "quarantined frozen locked"},
		"before its record":                {"identity", false, false, "quarantined frozen locked"},
		"after its record":                 {"unlock", false, true, "quarantined frozen locked"},
		"what its new processes did first": {"ready", true, false, "running thawed open"},
		"what they did then":               {"identity", true, false, "running thawed open"},
		"what they did after the record":   {"unlock", true, true, "quarantined frozen locked"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			n, e, class := outdated(t, b, Claim{}, nil)
			b.during(tt.at, func() {
				slot := e.Slot
				n.mu.Lock()
				for id, s := range n.slots {
					if tt.next && s.succeeds {
						slot = id
					}
				}
				n.mu.Unlock()
				if err := n.Quarantine(t.Context(), slot, "mining"); err != nil {
					t.Errorf("quarantine of %s: %v", slot, err)
				}
			})
			_, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
			b.world.failWith(nil)
			n.work.Wait()
			if (err == nil) != tt.upgraded {
				t.Errorf("upgrade: %v", err)
			}
			got, gone := n.Get(e.ID)
			if gone != nil || (got.Revision == class.Revision) != tt.upgraded {
				t.Errorf("it is %+v, %v", got, gone)
			}
			if at := b.phaseOf(n, e.ID); at != tt.want {
				t.Errorf("it is %s, want %s", at, tt.want)
			}
			b.only(1)
			if strings.HasPrefix(tt.want, "quarantined") && got.Message != "mining" {
				t.Errorf("message = %q", got.Message)
			}
		})
	}
}

func TestAFenceMeanwhileHoldsUntilItEnds(t *testing.T) {
	for at, upgraded := range map[string]bool{"capture": false, "capture#2": false, "restore": false, "identity": false, "unlock": true} {
		t.Run(at, func(t *testing.T) {
			b := newBench(t)
			n, e, class := outdated(t, b, Claim{}, nil)
			b.during(at, func() {
				if err := n.Fence(t.Context()); err != nil {
					t.Error(err)
				}
			})
			_, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
			b.world.failWith(nil)
			n.work.Wait()
			got, _ := n.Get(e.ID)
			if (err == nil) != upgraded || (got.Revision == class.Revision) != upgraded {
				t.Errorf("upgrade: %v; it is %+v", err, got)
			}
			if got := b.phaseOf(n, e.ID); got != "fenced frozen locked" {
				t.Errorf("it is %s", got)
			}
			if _, err := n.Upgrade(t.Context(), e.ID, "other", KeepAll); !errors.Is(err, env.ErrUnavailable) {
				t.Errorf("upgrade at a fenced node: %v, want ErrUnavailable", err)
			}
			if err := n.Unfence(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if got := b.phaseOf(n, e.ID); got != "running thawed open" {
				t.Errorf("then it is %s", got)
			}
			b.only(1)
		})
	}
}

// A fence that has looked which environments there are fences the old slot.
func TestAFenceThatMissesTheNewSlotIsMadeUpFor(t *testing.T) {
	b := newBench(t)
	n, e, class := outdated(t, b, Claim{}, nil)
	old := n.envs[e.ID]
	b.during("identity", func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.fenced = true
	})
	if _, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll); err != nil {
		t.Fatal(err)
	}
	b.world.failWith(nil)
	if err := n.fence(t.Context(), old, fencedMessage); err != nil && !errors.Is(err, env.ErrNotFound) { // or it is being removed
		t.Error(err)
	}
	n.work.Wait()
	if got, _ := n.Get(e.ID); got.Revision != class.Revision {
		t.Errorf("it is %+v", got)
	}
	if got := b.phaseOf(n, e.ID); got != "fenced frozen locked" {
		t.Errorf("it is %s", got)
	}
	if err := n.Unfence(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := b.phaseOf(n, e.ID); got != "running thawed open" {
		t.Errorf("then it is %s", got)
	}
}

func TestAnInitThatEndsMeanwhileIsSeen(t *testing.T) {
	for name, next := range map[string]bool{"the old one": false, "the new one": true} {
		b := newBench(t)
		n, e, _ := outdated(t, b, Claim{}, nil)
		b.during("identity", func() {
			n.mu.Lock()
			pid, slot := e.PID, e.Slot
			for id, s := range n.slots {
				if next && s.succeeds {
					pid, slot = s.init.PID(), id
				}
			}
			n.mu.Unlock()
			b.world.die(pid)
			n.InitEnded(slot)
		})
		if _, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll); err == nil {
			t.Errorf("%s: it was upgraded", name)
		}
		b.world.failWith(nil)
		n.work.Wait()
		want := map[bool]string{false: "failed", true: "running thawed open"}[next]
		if got := b.phaseOf(n, e.ID); !strings.HasPrefix(got, want) {
			t.Errorf("%s: it is %s, want %s", name, got, want)
		}
	}
}

func TestACallerWhoGoesAwayEndsTheUpgrade(t *testing.T) {
	for _, at := range []string{"image", "capture", "capture#2", "restore", "ready", "identity"} {
		b := newBench(t)
		n, e, _ := outdated(t, b, Claim{}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		b.during(at, cancel)
		_, err := n.Upgrade(ctx, e.ID, "k", KeepAll)
		b.world.failWith(nil)
		n.work.Wait()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want canceled", at, err)
		}
		if got := b.phaseOf(n, e.ID); got != "running thawed open" {
			t.Errorf("%s: it is %s", at, got)
		}
		b.only(1)
	}
}

// What is asked of the environment meanwhile is done to what it has become.
func TestOperationsWaitForAnUpgradeAndFollowIt(t *testing.T) {
	requireChown(t)
	synctest.Test(t, operationsWait)
}

func operationsWait(t *testing.T) {
	b := newBench(t)
	n, e, class := outdated(t, b, Claim{}, nil)
	paused := make(chan error, 1)
	b.during("restore", func() {
		if _, err := n.Use(t.Context(), e.ID); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "resume it first") && !strings.Contains(err.Error(), "newest release") {
			t.Errorf("use meanwhile: %v", err)
		}
		if got, _ := n.Get(e.ID); got.Phase != env.PhasePaused || got.Message != upgradeMessage {
			t.Errorf("meanwhile it is %+v", got)
		}
		if _, err := n.Upgrade(t.Context(), e.ID, "other", KeepAll); !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("another upgrade meanwhile: %v, want ErrUnavailable", err)
		}
		go func() {
			_, err := n.Pause(t.Context(), e.ID)
			paused <- err
		}()
		synctest.Wait() // until it waits
	})
	if _, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll); err != nil {
		t.Fatal(err)
	}
	if err := <-paused; err != nil {
		t.Errorf("pause: %v", err)
	}
	n.work.Wait()
	if got, _ := n.Get(e.ID); got.Revision != class.Revision {
		t.Errorf("it is %+v", got)
	}
	if got := b.phaseOf(n, e.ID); got != "paused frozen open" {
		t.Errorf("it is %s", got)
	}
	if _, err := n.Release(t.Context(), e.ID, 0, false); err != nil {
		t.Fatal(err)
	}
	b.only(0)
}

func TestTwoUpgradesAtOnceAreOne(t *testing.T) {
	b := newBench(t)
	n, e, _ := outdated(t, b, Claim{}, nil)
	other := make(chan error, 1)
	b.during("prepare", func() { // both have looked before either stops it
		go func() {
			_, err := n.Upgrade(t.Context(), e.ID, "other", KeepAll)
			other <- err
		}()
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if n.Room().SlotsUsed == 3 || len(other) > 0 {
				return
			}
		}
		t.Error("the other upgrade does not begin")
	})
	_, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
	errs := []error{err, <-other}
	n.work.Wait()
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
		} else if !errors.Is(err, env.ErrState) && !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("upgrade: %v", err)
		}
	}
	if done != 1 {
		t.Errorf("%d upgrades: %v", done, errs)
	}
	if got := b.phaseOf(n, e.ID); got != "running thawed open" {
		t.Errorf("it is %s", got)
	}
	b.only(1)
}
