package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func objectOf(id env.ID) fleet.ObjectRef {
	return fleet.ObjectRef{Object: "alice/mine", UID: "uid-1", ID: id, Tenant: "alice", Labels: map[string]string{"a": "b"},
		Spec: &hearthv1.ClaimSpec{Class: "small", Hostname: "h"}}
}

func (w *world) records() []*fleet.Record {
	w.t.Helper()
	st, err := w.store.Load()
	if err != nil {
		w.t.Fatal(err)
	}
	return st.Records
}

func TestAnObjectsClaimIsOneSaveAndMayBeAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.reportPools(ephemeral) // the object is there whatever the class says
		ctx, id := context.Background(), env.NewID()
		for range 3 {
			got, err := w.fleet.ClaimFor(ctx, objectOf(id))
			if e := got.GetEnvironment(); err != nil || e.GetId() != string(id) || e.GetPhase() != hearthv1.Phase_PHASE_RUNNING || e.GetTenant() != "alice" || e.GetLabels()["a"] != "b" {
				t.Fatalf("claim = %v, %v", got, err)
			}
		}
		if diff := cmp.Diff(map[string]int{"claim-place": 1}, w.store.Saves()); diff != "" || len(w.node.asked) != 1 {
			t.Errorf("the node was asked %d times; saves: %s", len(w.node.asked), diff)
		}
		if r := w.records(); len(r) != 1 || r[0].Object != "alice/mine" || r[0].UID != "uid-1" || r[0].Ephemeral {
			t.Errorf("records = %v", r)
		}
		if a := w.node.asked[0]; len(a.GetClaimKey()) != 0 || a.GetSpec().GetHostname() != "h" {
			t.Errorf("the node was asked %v", a)
		}
	})
}

func TestAnObjectsClaimGoesOnAfterACrash(t *testing.T) {
	for name, made := range map[string]bool{"that came after the node had claimed": true, "that came before": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer func() { w.stop() }()
				w.report()
				id := env.NewID()
				if _, err := w.fleet.ClaimFor(context.Background(), objectOf(id)); err != nil {
					t.Fatal(err)
				}
				if !made {
					clear(w.node.claims)
				}
				w.store.Crash()
				w.restart()
				w.report()
				got, err := w.fleet.ClaimFor(context.Background(), objectOf(id))
				if err != nil || got.GetEnvironment().GetGeneration() != 1 || got.GetEnvironment().GetPhase() != hearthv1.Phase_PHASE_RUNNING {
					t.Errorf("claim = %v, %v", got, err)
				}
				if len(w.node.claims) != 1 || w.store.Saves()["claim-place"] != 1 {
					t.Errorf("claims %v, saves %v", w.node.claims, w.store.Saves())
				}
			})
		})
	}
}

// There is no room for long: the object is asked for again and again, and is never
// given up.
func TestAnObjectsClaimThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.report()
		ctx, id := context.Background(), env.NewID()
		w.node.refuse = fmt.Errorf("%w: disk full", env.ErrExhausted)
		for range 3 {
			if _, err := w.fleet.ClaimFor(ctx, objectOf(id)); !errors.Is(err, env.ErrExhausted) {
				t.Fatalf("error = %v", err)
			}
			time.Sleep(time.Hour)
			w.report()
		}
		w.node.refuse = nil
		w.report()
		got, err := w.fleet.ClaimFor(ctx, objectOf(id))
		if err != nil || got.GetEnvironment().GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("claim = %v, %v", got, err)
		}
		if r := w.records(); len(r) != 1 {
			t.Errorf("records = %v", r)
		}
	})
}

func TestTheEndOfAnObjectEndsItsEnvironment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.report()
		ctx, id := context.Background(), env.NewID()
		if _, err := w.fleet.ClaimFor(ctx, objectOf(id)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.fleet.End(ctx, id); err != nil {
				t.Error(err)
			}
		}
		if err := w.fleet.End(ctx, env.NewID()); err != nil {
			t.Errorf("the end of what never was: %v", err)
		}
		if want := []string{string(id) + "/1"}; !slices.Equal(w.node.released, want) {
			t.Errorf("released %q, want %q", w.node.released, want)
		}
		if r := w.records(); len(r) != 1 || !r[0].Ended || len(r[0].Stale) != 0 {
			t.Errorf("records = %v", r)
		}
		if _, err := w.fleet.ClaimFor(ctx, objectOf(id)); !errors.Is(err, env.ErrState) {
			t.Errorf("a claim after the end: %v", err)
		}
		time.Sleep(24*time.Hour + time.Minute)
		synctest.Wait()
		if r := w.records(); len(r) != 0 {
			t.Errorf("after a day: %v", r)
		}
	})
}

// The object is deleted at the very moment at which its claim is being placed.
func TestAnObjectThatGoesWhileItIsClaimedLeavesNothing(t *testing.T) {
	for name, at := range map[string]time.Duration{
		"before it is placed":      500 * time.Millisecond,
		"while it is being stored": 1500 * time.Millisecond,
		"while the node claims":    2500 * time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				w.store.Fault = func(op string) error {
					if op == "claim-place" {
						time.Sleep(time.Second)
					}
					return nil
				}
				w.node.slow = time.Second
				go func() {
					time.Sleep(time.Second) // until then the claim waits for a node
					w.report()
				}()
				id := env.NewID()
				done := make(chan error)
				go func() {
					_, err := w.fleet.ClaimFor(context.Background(), objectOf(id))
					done <- err
				}()
				time.Sleep(at)
				if err := w.fleet.End(context.Background(), id); err != nil {
					t.Error(err)
				}
				if err := <-done; !errors.Is(err, env.ErrState) {
					t.Errorf("the claim: %v", err)
				}
				// Late, the node shows what it made.
				w.report(running(w)...)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				for _, r := range w.records() {
					if !r.Ended || len(r.Stale) != 0 {
						t.Errorf("record %v, stale %v", r.Environment, r.Stale)
					}
				}
				if made, released := w.node.did(); made > 0 && released == 0 {
					t.Errorf("the node made %d and was asked to release %d", made, released)
				}
			})
		})
	}
}

// An environment that failed by itself stays for as long as its object does.
func TestAnObjectsEnvironmentThatFailedIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		id := env.NewID()
		if _, err := w.fleet.ClaimFor(context.Background(), objectOf(id)); err != nil {
			t.Fatal(err)
		}
		w.report(&hearthv1.Environment{Id: string(id), Class: "small", Generation: 1, Phase: hearthv1.Phase_PHASE_FAILED, Message: "its init ended"})
		time.Sleep(50 * time.Hour)
		synctest.Wait()
		r := w.records()
		if len(r) != 1 || r[0].Environment.GetPhase() != hearthv1.Phase_PHASE_FAILED {
			t.Errorf("records = %v", r)
		}
	})
}
