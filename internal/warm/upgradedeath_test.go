package warm

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"hearth/internal/env"
)

// A dead agent does nothing more: see the same of a resize.
func TestDeathAtAnyStepOfAnUpgradeLeavesOneEnvironment(t *testing.T) {
	steps, upgraded := 0, 0
	for step := 1; ; step++ {
		b := newBench(t)
		left, died := 1<<30, false
		var mu sync.Mutex // guards both: limits are set beside the rest
		die := func() error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left < 0 {
				died = true
				return errors.New("dead")
			}
			return nil
		}
		b.fault = func(string) error { return die() }
		n, e, class := outdated(t, b, Claim{Variables: map[string]string{"A": "1"}, Limits: env.Limits{CPUMillis: 300}}, nil)
		token, err := n.Token(t.Context(), e.ID)
		if err != nil {
			t.Fatal(err)
		}
		b.world.failWith(func(string) error { return die() })
		left = step - 1
		_, answered := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
		n.work.Wait() // the old slot's removal
		b.world.failWith(nil)
		b.fault = nil

		n = b.open(class)
		n.work.Wait()
		got, err := n.Get(e.ID)
		if err != nil {
			t.Fatalf("dead at step %d (answered %v): %v", step, answered, err)
		}
		isOld, isNew := got.Slot == e.Slot && got.Revision == "r1", got.Slot != e.Slot && got.Revision == class.Revision
		if !isOld && !isNew || answered == nil && !isNew || !b.world.lives(got.PID) || got.Message != "" {
			t.Errorf("dead at step %d (answered %v): %+v", step, answered, got)
		}
		if at := b.phaseOf(n, e.ID); at != "running thawed open" {
			t.Errorf("dead at step %d: it is %s", step, at)
		}
		if _, err := n.Authorize(e.ID, token); err != nil {
			t.Errorf("dead at step %d: %v", step, err)
		}
		if vars := b.world.identity(got.PID)[EnvJSONFile]; !strings.Contains(vars, `"A":"1"`) {
			t.Errorf("dead at step %d: variables %q", step, vars)
		}
		b.only(1)
		if len(n.List()) != 1 || n.Promised() != got.Resources.MemoryBytes {
			t.Errorf("dead at step %d: %d environments, %d bytes promised", step, len(n.List()), n.Promised())
		}
		if isNew {
			upgraded++
		}
		if !died {
			break
		}
		steps++
	}
	if steps < 25 || upgraded < 5 || upgraded > steps-15 {
		t.Errorf("%d steps, after %d of them it was upgraded: the test does not see the upgrade", steps, upgraded)
	}
}

// What is journalled and what is not must agree, also where only the journal fails.
func TestAJournalThatFailsOnceGivesTheEnvironmentBack(t *testing.T) {
	for at := 1; ; at++ {
		b := newBench(t)
		count := -1 << 30
		b.fault = func(op string) error {
			if op == opJournal+":write" {
				if count++; count == at {
					return fmt.Errorf("%w: no space left on device", env.ErrExhausted)
				}
			}
			return nil
		}
		n, e, class := outdated(t, b, Claim{}, nil)
		count = 0
		_, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
		n.work.Wait()
		if got := b.phaseOf(n, e.ID); got != "running thawed open" {
			t.Errorf("write %d: it is %s", at, got)
		}
		if got, _ := n.Get(e.ID); (err == nil) != (got.Revision == class.Revision) {
			t.Errorf("write %d: %v, and it is %+v", at, err, got)
		}
		if count < at {
			if at < 5 {
				t.Errorf("only %d writes were tried", at-1)
			}
			break
		}
	}
}

// An environment that was filled is nobody else's, whenever its agent dies.
func TestDeathAtAnyStepOfARestoreLeavesNoFilledSlotInAPool(t *testing.T) {
	requireChown(t)
	for step := 1; ; step++ {
		b := newBench(t)
		var mu sync.Mutex // of left and died: a link and a container are made side by side
		left, died := 1<<30, false
		die := func() error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left < 0 {
				died = true
				return errors.New("dead")
			}
			return nil
		}
		b.fault = func(string) error { return die() }
		n := b.open(demoClass(0))
		e := b.claim(n, Claim{Class: "demo", Tenant: "acme"})
		snap, err := n.Snapshot(t.Context(), e.ID)
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		left = step - 1
		mu.Unlock()
		b.world.failWith(func(string) error { return die() })
		_, answered := n.Claim(t.Context(), Claim{Class: "demo", Tenant: "acme", Snapshot: snap.ID})
		n.work.Wait()
		b.world.failWith(nil)
		b.fault = nil
		n = b.open(demoClass(0))
		n.work.Wait()
		if got := n.Pools()[0].Ready; got != 0 {
			t.Errorf("dead at step %d (answered %v): %d slots in the pool", step, answered, got)
		}
		if !died {
			break
		}
	}
}

func TestAnUpgradeIsNotInterruptedByAReboot(t *testing.T) {
	b := newBench(t)
	n, e, class := outdated(t, b, Claim{}, nil)
	full := errors.New("dead")
	b.world.failWith(func(call string) error { // between its record and the removal of the old slot
		if call == "kill" || call == "delete" {
			return full
		}
		return nil
	})
	u, err := n.Upgrade(t.Context(), e.ID, "k", KeepAll)
	if err != nil {
		t.Fatal(err)
	}
	n.work.Wait()
	b.world.failWith(nil)
	b.boots++
	n = b.open(class)
	n.work.Wait()
	got, err := n.Get(e.ID)
	if err != nil || got.Slot != u.Environment.Slot || got.Phase != env.PhaseFailed || len(n.slots) != 1 {
		t.Errorf("after a reboot: %+v, %v, %d slots", got, err, len(n.slots))
	}
}
