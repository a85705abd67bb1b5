package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// A key whose answer only an earlier process had.
func TestARepeatedClaimKeyAfterARestart(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(w *world, id string) // with the first controller
		away   func(w *world, id string) // while there is none
		err    error
		token  string
	}{
		"runs: its node answers as before": {token: "same"},
		"came there otherwise: its node knows another key": {
			away: func(w *world, id string) { w.node.refuse = fmt.Errorf("%w: other request", env.ErrInvalid) }, token: "fresh of "},
		"was lost by its node: no empty one takes its place": {
			away: func(w *world, id string) { w.node.gone[id] = true }, err: env.ErrNotFound},
		"was released": {before: func(w *world, id string) { _ = w.release("r", id) }, err: env.ErrState},
		"failed": {
			before: func(w *world, id string) {
				w.report(&hearthv1.Environment{Id: id, Generation: 1, Phase: hearthv1.Phase_PHASE_FAILED, Message: "its init ended"})
			}, err: env.ErrState},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer func() { w.stop() }()
				w.report()
				first, err := w.claim("k")
				if err != nil {
					t.Fatal(err)
				}
				id := first.GetEnvironment().GetId()
				if tc.before != nil {
					tc.before(w, id)
				}
				w.restart()
				if tc.away != nil {
					tc.away(w, id)
				}
				shows := hearthv1.Phase_PHASE_RUNNING
				if name == "failed" {
					shows = hearthv1.Phase_PHASE_FAILED
				}
				w.report(&hearthv1.Environment{Id: id, Generation: 1, Phase: shows})
				again, err := w.claim("k")
				if tc.err != nil {
					if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), id) {
						t.Errorf("error = %v, want %v", err, tc.err)
					}
				} else if want := strings.Replace(tc.token, "same", first.GetAccess().GetToken(), 1); err != nil ||
					again.GetEnvironment().GetId() != id || !strings.HasPrefix(again.GetAccess().GetToken(), want) {
					t.Errorf("answer = %v, %v; want token %s", again, err, want)
				}
				if len(w.node.claims) != 1 {
					t.Errorf("the node made %d", len(w.node.claims))
				}
			})
		})
	}
}

func TestARepeatedForkKeyAfterARestart(t *testing.T) {
	for name, tc := range map[string]struct {
		fail     error // of the node's Fork after the restart
		release  int   // so many children are released before
		crash    bool  // what was posted is lost
		children int
		fresh    bool // with new tokens
		err      error
	}{
		"its node answers as before":                         {children: 3},
		"its node answers as before, and it was a crash":     {crash: true, children: 3},
		"its node was restarted too":                         {fail: fmt.Errorf("%w: other request", env.ErrInvalid), children: 3, fresh: true},
		"both, and it was a crash":                           {fail: fmt.Errorf("%w: other request", env.ErrInvalid), crash: true, children: 3, fresh: true},
		"its node has another fault: they are not ended":     {fail: errors.New("internal"), children: 3, fresh: true},
		"some were released":                                 {release: 1, err: env.ErrState},
		"all were released":                                  {release: 3, err: env.ErrState},
		"its node does not answer: nothing is done":          {fail: fmt.Errorf("%w: reset", env.ErrUnavailable), err: env.ErrUnavailable},
		"its node does not answer, and some were released":   {fail: fmt.Errorf("%w: reset", env.ErrUnavailable), release: 2, err: env.ErrState},
		"a newer controller leads, which the node obeys now": {fail: fmt.Errorf("fork: %w", env.ErrSuperseded), err: env.ErrSuperseded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, k, _ := forkWorld(t, nil)
				defer func() { w.stop() }()
				first, err := fork3(w)
				if err != nil {
					t.Fatal(err)
				}
				var left []string
				for i, c := range first.GetChildren() {
					id := c.GetEnvironment().GetId()
					if i < tc.release {
						if err := w.release(id, id); err != nil {
							t.Fatal(err)
						}
						w.node.gone[id] = true
					} else {
						left = append(left, id)
					}
				}
				if tc.crash {
					w.store.Crash()
				}
				w.restart()
				k.fail = func(int) error { return tc.fail }
				w.report(stillThere(w)...)
				again, err := fork3(w)
				var got []string
				for _, c := range again.GetChildren() {
					got = append(got, c.GetEnvironment().GetId())
					if fresh := strings.HasPrefix(c.GetAccess().GetToken(), "fresh of "); fresh != tc.fresh {
						t.Errorf("token %s, want a fresh one: %t", c.GetAccess().GetToken(), tc.fresh)
					}
				}
				if !errors.Is(err, tc.err) || len(got) != tc.children || (tc.children > 0 && !slices.Equal(got, left)) {
					t.Errorf("children %q, %v; want %q, %v", got, err, left, tc.err)
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				for _, id := range left {
					if slices.ContainsFunc(w.node.released, func(s string) bool { return strings.HasPrefix(s, id) }) {
						t.Errorf("%s was released", id)
					}
				}
			})
		})
	}
}

func fork3(w *world) (*hearthv1.ForkResponse, error) {
	parent := w.node.asked[0].GetEnvironment()
	return w.fleet.Fork(context.Background(), alice, &hearthv1.ForkRequest{IdempotencyKey: "three", Environment: parent, Count: 3})
}

// stillThere are those that the node has not let go of.
func stillThere(w *world) []*hearthv1.Environment {
	return slices.DeleteFunc(running(w), func(e *hearthv1.Environment) bool { return w.node.gone[e.GetId()] })
}

// The controller died while it stored the children: the node was never asked for
// any, and the key makes others.
func TestAForkOfWhichOnlySomeChildrenWereStoredBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, _ := forkWorld(t, nil)
		defer func() { w.stop() }()
		k.fail = at(1, fmt.Errorf("%w: reset", env.ErrUnavailable))
		again := k.fail
		k.fail = func(call int) error {
			return errors.Join(again(call), at(2, fmt.Errorf("%w: reset", env.ErrUnavailable))(call))
		}
		if _, err := fork3(w); !errors.Is(err, env.ErrUnavailable) {
			t.Fatal(err)
		}
		first := k.asked[0].GetChildren()
		if err := w.store.Save(fleet.Change{Op: "never-stored", DeleteRecord: env.ID(first[2].GetEnvironment())}); err != nil {
			t.Fatal(err)
		}
		w.restart()
		w.report(running(w)...)
		got, err := fork3(w)
		if err != nil || len(got.GetChildren()) != 3 {
			t.Fatalf("fork = %v, %v", got, err)
		}
		for _, c := range got.GetChildren() {
			for _, f := range first {
				if c.GetEnvironment().GetId() == f.GetEnvironment() {
					t.Errorf("child %s is of the set that was not whole", f.GetEnvironment())
				}
			}
		}
		for _, e := range w.fleet.List(alice, "", "") {
			if e.GetPhase() == hearthv1.Phase_PHASE_CLAIMING {
				t.Errorf("left: %v", e)
			}
		}
	})
}

// A refused fork's Save may fail for one child: the others go again.
func TestAForkThatCannotBeStoredAsksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, _ := forkWorld(t, nil)
		defer w.stop()
		for name, fault := range map[string]error{"the disk is full": errors.New("no space"), "the store is down": fmt.Errorf("%w: down", env.ErrUnavailable)} {
			var n atomic.Int32
			w.store.Fault = func(op string) error {
				if op == "fork-place" && n.Add(1) == 2 {
					return fault
				}
				return nil
			}
			if _, err := fork3(w); !errors.Is(err, fault) {
				t.Errorf("%s: error = %v", name, err)
			}
			if len(k.asked) != 0 || len(w.fleet.List(alice, "", "")) != 1 || len(w.records()) != 1 {
				t.Errorf("%s: the node was asked %d times; stored: %v", name, len(k.asked), w.records())
			}
		}
		w.store.Fault = nil
		if got, err := fork3(w); err != nil || len(got.GetChildren()) != 3 {
			t.Errorf("repeated: %v, %v", got, err)
		}
	})
}
