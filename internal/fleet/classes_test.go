package fleet_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func TestNodesAreGivenTheClassesThatTheyLack(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		time.Sleep(10 * time.Second)
		if w.nodes["a"].called("SetClasses") != 0 || w.nodes["a"].called("SetBudget") != 0 {
			t.Error("a node was given classes that nobody set")
		}
		w.set(func() { w.nodes["b"].revision = "r1" })
		w.nodes["b"].connect()
		w.fleet.SetClasses("r1", [][]byte{[]byte(`{"kind":"EnvironmentClass"}`)})
		synctest.Wait()
		if n := w.nodes["a"].books(); n.revision != "r1" || len(n.manifests) != 1 || w.nodes["a"].called("SetClasses") != 1 {
			t.Errorf("node a has %+v after %d calls", n, w.nodes["a"].called("SetClasses"))
		}
		if w.nodes["b"].called("SetClasses") != 0 {
			t.Error("node b was given what it has")
		}
		w.fleet.SetClasses("r2", nil)
		time.Sleep(5 * time.Minute) // inventories say the same
		for name, n := range w.nodes {
			if got := n.books().revision; got != "r2" {
				t.Errorf("node %s has %q", name, got)
			}
		}
		if n := w.nodes["a"].called("SetClasses"); n != 2 {
			t.Errorf("node a was called %d times, want 2", n)
		}
		// Its disk is lost, and it starts with nothing.
		w.set(func() { w.nodes["a"].revision = "" })
		w.nodes["a"].connect()
		synctest.Wait()
		if w.nodes["a"].books().revision != "r2" {
			t.Error("it was not given them again")
		}
	})
}

func TestANodeThatRefusesItsClassesIsToldOf(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		a := w.nodes["a"]
		a.onCall("SetClasses", always(fmt.Errorf("%w: class base: unknown field", env.ErrInvalid)), nil)
		w.fleet.SetClasses("r1", nil)
		time.Sleep(10 * time.Minute)
		n := w.fleet.Nodes()[0]
		if !n.Ready || !strings.Contains(n.Message, "classes r1") || !strings.Contains(n.Message, "unknown field") {
			t.Errorf("node = %+v", n)
		}
		if calls := a.called("SetClasses"); calls < 10 || calls > 20 {
			t.Errorf("tried %d times in ten minutes, want about 14", calls)
		}
		a.onCall("SetClasses", nil, nil)
		w.fleet.SetClasses("r2", nil) // at once
		synctest.Wait()
		if n := w.fleet.Nodes()[0]; n.Message != "" || a.books().revision != "r2" {
			t.Errorf("node = %+v, has %q", n, a.books().revision)
		}
	})
}

func TestANodeGetsOneSettingAtATime(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		now, most := 0, 0
		a := w.nodes["a"]
		a.onCall("SetClasses", func() error {
			w.set(func() { now++; most = max(most, now) })
			time.Sleep(5 * time.Second)
			w.set(func() { now-- })
			return nil
		}, nil)
		for i := range 10 {
			w.fleet.SetClasses(fmt.Sprint("r", i), nil)
			time.Sleep(time.Second)
		}
		time.Sleep(20 * time.Second)
		w.set(func() {
			if most != 1 || a.revision != "r9" {
				t.Errorf("%d at once; it has %q", most, a.revision)
			}
		})
		if n := a.called("SetClasses"); n > 4 {
			t.Errorf("called %d times: revisions that are past are left out", n)
		}
	})
}

func TestBudgetsAreGivenOnceAStream(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		b := fleet.Budget{MemoryBytes: 8 << 30, CPUMillis: 4000}
		w.fleet.SetBudgets(map[string]fleet.Budget{"a": b, "unknown": b})
		time.Sleep(5 * time.Minute)
		a := w.nodes["a"]
		if a.books().budget != b || a.called("SetBudget") != 1 || w.nodes["b"].called("SetBudget") != 0 {
			t.Errorf("budget = %+v after %d calls", a.books().budget, a.called("SetBudget"))
		}
		a.connect() // perhaps another agent, that does not know
		synctest.Wait()
		if a.called("SetBudget") != 2 {
			t.Errorf("%d calls", a.called("SetBudget"))
		}
		a.onCall("SetBudget", once(errCut), nil)
		b.MemoryBytes = 4 << 30
		w.fleet.SetBudgets(map[string]fleet.Budget{"a": b})
		time.Sleep(10 * time.Second)
		if a.books().budget != b {
			t.Errorf("budget = %+v", a.books().budget)
		}
	})
}

func TestADetectionIsToldWithItsEnvironment(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["a"].disconnect()
		s := w.fleet.Connect("a", "a:1")
		if _, err := s.Inventory(w.nodes["a"].inventory()); err != nil {
			t.Fatal(err)
		}
		if err := s.Detection(&hearthv1.Detection{Rule: "mining.stratum", Severity: "critical", Environment: id, Response: "freeze"}); err != nil {
			t.Fatal(err)
		}
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_QUARANTINED {
			t.Errorf("record = %v", r)
		}
		if w.happened(fleet.Detected) != 1 || w.happened(fleet.Quarantined) != 1 {
			t.Errorf("events = %v", w.told())
		}
		// A node cannot speak of another node's.
		if err := s.Detection(&hearthv1.Detection{Rule: "x", Environment: string(env.NewID()), Response: "freeze"}); err != nil {
			t.Fatal(err)
		}
		for _, e := range w.events[len(w.told())-1:] {
			if e.Kind != fleet.Detected || e.Environment != nil {
				t.Errorf("event = %+v", e)
			}
		}
		if _, err := w.fleet.Release(context.Background(), alice, "r", id, false); err != nil {
			t.Error(err)
		}
	})
}
