package warm

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"hearth/internal/env"
)

// answered is what callers were told in the life of one agent.
type answered struct {
	first, second Answer // of claims
	phase         env.Phase
	ends          time.Duration // as extended
	token         string
	released      bool
}

// wholeLife is one agent's life: pools, claims, and one of everything that is written
// down. Whatever fails, fails because the agent is dead.
func wholeLife(b *bench, n *Node) (told answered) {
	ctx := b.t.Context()
	for range 20 {
		if wait, err := n.step(ctx); err != nil || wait > rest {
			break
		}
	}
	var err error
	if told.first, err = n.Claim(ctx, Claim{Key: "first", Class: "demo", TimeToLive: time.Hour}); err != nil {
		return told
	}
	id := told.first.Environment.ID
	told.phase, told.token = env.PhaseRunning, told.first.Token
	if _, err := n.Pause(ctx, id); err == nil {
		told.phase = env.PhasePaused
	}
	if _, err := n.Resume(ctx, id); err == nil {
		told.phase = env.PhaseRunning
	}
	if e, err := n.Extend(ctx, id, Extension{By: 2 * time.Hour}); err == nil {
		told.ends = time.Until(e.Expires)
	}
	if token, err := n.Token(ctx, id); err == nil {
		told.token = token
	}
	if n.Fence(ctx) == nil {
		told.phase = env.PhaseFenced
		if n.Unfence(ctx, nil) == nil {
			told.phase = env.PhaseRunning
		}
	}
	if told.second, err = n.Claim(ctx, Claim{Key: "second", Class: "demo"}); err == nil {
		_, err = n.Release(ctx, told.second.Environment.ID, 0, false)
		told.released = err == nil
	}
	return told
}

// The agent dies before each step of everything that it writes down: its key, its
// classes, its journal, that it is fenced. What was answered holds, what was not is
// done or not, and nothing is there twice.
func TestDeathAtAnyDurableStepKeepsWhatWasAnswered(t *testing.T) {
	requireChown(t)
	steps := map[string]int{}
	total := dieAt(t, 0, steps)
	for _, op := range []string{opKey, opArchive, opJournal, opFence} {
		seen := false
		for step := range steps {
			seen = seen || len(step) > len(op) && step[:len(op)] == op
		}
		if !seen {
			t.Errorf("no step of %s in %v", op, steps)
		}
	}
	for at := 1; at <= total; at++ {
		t.Run(fmt.Sprint(at), func(t *testing.T) { dieAt(t, at, map[string]int{}) })
	}
}

// dieAt lets an agent live until the step of that number, and looks at the next one.
// It returns how many steps there were.
func dieAt(t *testing.T, at int, steps map[string]int) (count int) {
	t.Helper()
	b := newBench(t)
	var mu sync.Mutex // guards all below, and count
	dead, last, errDead := false, "", errors.New("the agent is dead")
	b.fault = func(step string) error {
		mu.Lock()
		defer mu.Unlock()
		if !dead {
			count++
			steps[step]++
			last, dead = step, count == at
		}
		if dead {
			return errDead
		}
		return nil
	}
	b.world.failWith(func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if dead {
			return errDead
		}
		return nil
	})
	class := demoClass(1)
	var told answered
	if n, err := b.start([]*env.Class{class}); err == nil {
		told = wholeLife(b, n)
		n.work.Wait()
		_ = n.Close()
	} else if at == 0 {
		t.Fatal(err)
	}
	b.fault = nil
	b.world.failWith(nil)
	n := b.open(class)
	defer n.Close()
	if at > 0 && t.Failed() {
		return count
	}
	if n.Fenced() { // until its controller answers
		if err := n.Unfence(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if told.phase == env.PhaseFenced {
			told.phase = env.PhaseRunning
		}
	}
	list := n.List()
	if told.first.Environment.ID == "" {
		if len(list) > 0 {
			t.Errorf("before step %s nothing was answered, and %d environments are there", last, len(list))
		}
	} else {
		compareLife(t, n, told, last)
	}
	if told.released {
		if _, err := n.Get(told.second.Environment.ID); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("before step %s: a released environment: %v", last, err)
		}
	}
	for _, e := range list {
		if _, err := n.Release(t.Context(), e.ID, 0, false); err != nil {
			t.Error(err)
		}
	}
	for range 20 {
		if wait, err := n.step(t.Context()); err != nil || wait > rest {
			break
		}
	}
	n.work.Wait()
	if left := b.world.leftovers(); left["containers"] != 1 || left["cgroups"] != 1 || left["islands"] != 1 || left["processes"] != 1 {
		t.Errorf("before step %s: beside one ready slot is left %v", last, left)
	}
	return count
}

// compareLife looks for what was answered. What the last call was about may have
// come about, or not.
func compareLife(t *testing.T, n *Node, told answered, last string) {
	t.Helper()
	id := told.first.Environment.ID
	e, err := n.Get(id)
	if err != nil {
		t.Errorf("before step %s: an answered claim: %v", last, err)
		return
	}
	again, err := n.Claim(t.Context(), Claim{Key: "first", Class: "demo", TimeToLive: time.Hour})
	if err != nil || again.Environment.ID != id {
		t.Errorf("before step %s: the repeated key gives %s, %v", last, again.Environment.ID, err)
	}
	if e.Phase != env.PhaseRunning && e.Phase != env.PhasePaused {
		t.Errorf("before step %s: it is %s", last, e.Phase)
	}
	if told.ends > 0 && time.Until(e.Expires) < told.ends-time.Minute {
		t.Errorf("before step %s: it ends in %s, extended to %s", last, time.Until(e.Expires), told.ends)
	}
	if _, err := n.Authorize(id, told.token); err != nil && told.token != told.first.Token {
		t.Errorf("before step %s: the new token: %v", last, err)
	}
}
