package fleet_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// The controller ends before and after each thing that a move stores and asks.
func TestAMoveSurvivesItsController(t *testing.T) {
	steps := []string{"move-begin", "move-arrive", "Snapshot before", "Snapshot after", "Claim before", "Claim after"}
	for _, at := range steps {
		for _, next := range []string{"drained on", "drained no more"} {
			t.Run(at+" "+next, func(t *testing.T) {
				inBubble(t, []string{"a", "b"}, func(w *peers) {
					t := w.t
					id := w.claim("k")
					time.Sleep(time.Second)
					died := w.dieAt(at)
					w.fleet.SetNodes(drain("a"))
					<-died
					w.restart()
					for _, n := range w.nodes {
						w.set(func() { clear(n.fail); clear(n.after) })
						n.connect()
					}
					if next == "drained on" {
						w.fleet.SetNodes(drain("a"))
					}
					time.Sleep(5 * time.Minute)
					got := w.where()[id]
					r := w.record(id)
					if next == "drained on" && !strings.HasPrefix(got, "b/") {
						t.Errorf("it is at %q", got)
					}
					if strings.Count(got, ";") != 1 || !strings.HasSuffix(got, " running;") || !strings.HasPrefix(got, fmt.Sprintf("%s/%d ", r.GetNode(), r.GetGeneration())) {
						t.Errorf("it is at %q, the record says %v", got, r)
					}
					if r.GetPhase() != hearthv1.Phase_PHASE_RUNNING || len(stalePeers(t, w)) != 0 {
						t.Errorf("record = %v, stale %v", r, stalePeers(t, w))
					}
				})
			})
		}
	}
}

// dieAt makes the controller do nothing more once it has come to a step: its store
// and its nodes do not answer it.
func (w *peers) dieAt(at string) <-chan struct{} {
	died := make(chan struct{})
	hang := func() error {
		select {
		case <-died:
		default:
			close(died)
		}
		return errCut
	}
	method, when, call := strings.Cut(at, " ")
	if !call {
		w.store.Fault = func(op string) error {
			select {
			case <-died:
				return nil
			default:
			}
			if op == at {
				return hang()
			}
			return nil
		}
		return died
	}
	for _, n := range w.nodes {
		if when == "before" {
			n.onCall(method, hang, nil)
		} else {
			n.onCall(method, nil, hang)
		}
	}
	return died
}

func TestATargetThatGoesSilentIsWaitedForUntilItHasFenced(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		b := w.nodes["b"]
		b.onCall("Claim", nil, func() error { b.disconnect(); return errCut })
		b.onCall("Get", always(errCut), nil)
		b.onCall("Release", always(errCut), nil)
		w.fleet.SetNodes(drain("a"))
		time.Sleep(5*time.Minute + 30*time.Second)
		if got := w.where()[id]; got != "a/1 running held;b/2 running;" {
			t.Errorf("before it has fenced: %q", got)
		}
		b.fence()
		time.Sleep(time.Minute)
		if got := w.where()[id]; got != "a/1 running;b/2 running fenced;" {
			t.Errorf("then: %q", got)
		}
		// It comes back: what it has is stale, and is not thawed.
		w.set(func() { clear(b.fail); clear(b.after) })
		w.fleet.SetNodes(nil)
		b.connect()
		if !cmp.Equal(b.books().stale, []string{id}) {
			t.Errorf("stale = %v", b.books().stale)
		}
		time.Sleep(10 * time.Second)
		if got := w.where()[id]; got != "a/1 running;" {
			t.Errorf("in the end: %q", got)
		}
	})
}

func TestASourceThatDiesWhileItMoves(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["b"].onCall("Claim", func() error {
			w.nodes["a"].disconnect()
			w.set(func() { delete(w.nodes["a"].envs, id) })
			return fmt.Errorf("%w: the source does not answer", env.ErrExhausted)
		}, nil)
		w.fleet.SetNodes(drain("a"))
		time.Sleep(10 * time.Minute)
		if r := w.record(id); r.GetNode() != "a" || w.where()[id] != "" {
			t.Errorf("record = %v, at %v", r, w.where())
		}
		// The node comes back without it.
		w.nodes["a"].connect()
		time.Sleep(2 * time.Minute)
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_FAILED || !strings.Contains(r.GetMessage(), "no longer has it") {
			t.Errorf("record = %v", r)
		}
	})
}
