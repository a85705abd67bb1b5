package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// reportPools makes the world's node report these classes, the rest of it as it is.
func (w *world) reportPools(pools []*hearthv1.Pool, envs ...*hearthv1.Environment) *fleet.Session {
	w.t.Helper()
	s := w.fleet.Connect("n1", "h:1")
	inv := &hearthv1.InventoryResponse{Pools: pools, Room: &hearthv1.Room{SlotsMax: 1000}, Environments: envs}
	if _, err := s.Inventory(inv); err != nil {
		w.t.Fatal(err)
	}
	return s
}

var ephemeral = []*hearthv1.Pool{{Class: "small", Ready: 50, Ephemeral: true}}

func (w *world) release(key, id string) error {
	_, err := w.fleet.Release(context.Background(), alice, key, id, false)
	return err
}

func TestADurableClaimIsOneSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		got, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]int{"claim-place": 1}, w.store.Saves()); diff != "" {
			t.Errorf("saves of a claim: %s", diff)
		}
		if diff := cmp.Diff(map[string]int{"claim-done": 1}, w.store.Posts()); diff != "" {
			t.Errorf("posts of a claim: %s", diff)
		}
		id := got.GetEnvironment().GetId()
		ctx := context.Background()
		for range 3 {
			if _, err := w.fleet.Get(ctx, alice, id); err != nil {
				t.Error(err)
			}
			if _, err := w.fleet.Token(ctx, alice, id); err != nil {
				t.Error(err)
			}
			if _, err := w.claim("k"); err != nil {
				t.Error(err)
			}
		}
		if diff := cmp.Diff(map[string]int{"claim-place": 1}, w.store.Saves()); diff != "" {
			t.Errorf("saves after calls that decide nothing: %s", diff)
		}
		if err := w.release("r", id); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]int{"claim-place": 1, "release": 1}, w.store.Saves()); diff != "" {
			t.Errorf("saves of a claim and a release: %s", diff)
		}
	})
}

func TestAnEphemeralEnvironmentIsNeverStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		time.Sleep(3 * time.Second) // the controller is not young
		w.reportPools(ephemeral)
		k := &forks{}
		w.node.fork = k.answer
		got, err := w.claim("k")
		if err != nil || !got.GetEnvironment().GetEphemeral() {
			t.Fatalf("claim = %v, %v", got, err)
		}
		id := got.GetEnvironment().GetId()
		fork, err := w.fleet.Fork(context.Background(), alice, &hearthv1.ForkRequest{IdempotencyKey: "f", Environment: id, Count: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range fork.GetChildren() {
			if err := w.release("r"+c.GetEnvironment().GetId(), c.GetEnvironment().GetId()); err != nil {
				t.Error(err)
			}
		}
		if err := w.release("r", id); err != nil {
			t.Error(err)
		}
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if n := len(w.fleet.List(alice, "", "")); n != 0 {
			t.Errorf("%d are listed", n)
		}
		if len(w.store.Saves())+len(w.store.Posts()) != 0 {
			t.Errorf("saves %v, posts %v", w.store.Saves(), w.store.Posts())
		}
	})
}

// The node keeps the key's digest with the environment, so that a controller that
// has stored nothing knows the call again.
func TestARepeatedKeyOfAnEphemeralClaimIsKnownAfterARestart(t *testing.T) {
	for name, after := range map[string]time.Duration{"the node reports at once": 0, "the node reports a second later": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer func() { w.stop() }()
				w.reportPools(ephemeral)
				first, err := w.claim("k")
				if err != nil {
					t.Fatal(err)
				}
				asked := w.node.asked[len(w.node.asked)-1]
				shown := w.node.claims[asked.GetIdempotencyKey()].GetEnvironment()
				shown.Ephemeral, shown.ClaimKey, shown.ClaimRequest = true, asked.GetClaimKey(), asked.GetClaimRequest()
				shown.Tenant, shown.Class = "alice", "small"
				if len(shown.ClaimKey) != 32 || len(shown.ClaimRequest) != 32 {
					t.Fatalf("the node was told %x, %x", shown.ClaimKey, shown.ClaimRequest)
				}
				w.restart()
				go func() {
					time.Sleep(after)
					w.reportPools(ephemeral, shown)
				}()
				again, err := w.claim("k")
				if err != nil || again.GetEnvironment().GetId() != first.GetEnvironment().GetId() || again.GetAccess().GetToken() != first.GetAccess().GetToken() {
					t.Errorf("repeated: %v, %v", again, err)
				}
				if e := again.GetEnvironment(); len(e.GetClaimKey())+len(e.GetClaimRequest()) != 0 {
					t.Errorf("a caller is shown %v", e)
				}
				if _, err := w.fleet.Claim(context.Background(), alice, "k", &hearthv1.ClaimSpec{Class: "small", Hostname: "other"}); !errors.Is(err, env.ErrExists) {
					t.Errorf("the key with another request: %v", err)
				}
				if len(w.store.Saves())+len(w.node.claims) != 1 {
					t.Errorf("saves %v, claims %v", w.store.Saves(), w.node.claims)
				}
			})
		})
	}
}

// The end of an ephemeral environment would be forgotten with this process, and
// its node would bring it back.
func TestTheEndOfAnEphemeralEnvironmentIsNotPromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.reportPools(ephemeral)
		got, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		w.node.onRelease(func(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
			return nil, fmt.Errorf("%w: connection reset", env.ErrUnavailable)
		})
		id := got.GetEnvironment().GetId()
		for range 2 {
			if err := w.release("r", id); !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "repeat until it succeeds") {
				t.Errorf("error = %v", err)
			}
		}
		w.node.onRelease(nil)
		if err := w.release("r", id); err != nil {
			t.Error(err)
		}
	})
}

func TestAStoreThatIsDownStopsOnlyWhatMustBeStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		time.Sleep(3 * time.Second)
		w.reportPools([]*hearthv1.Pool{{Class: "small", Ready: 50}, {Class: "brief", Ready: 50, Ephemeral: true}})
		got, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		id, ctx := got.GetEnvironment().GetId(), context.Background()
		w.store.Fault = func(string) error { return fmt.Errorf("%w: the API server does not answer", env.ErrUnavailable) }

		made := len(w.node.claims)
		if _, err := w.claim("other"); !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "API server") {
			t.Errorf("durable claim: %v", err)
		}
		if len(w.node.claims) != made {
			t.Error("the node was asked for what could not be stored")
		}
		brief, err := w.fleet.Claim(ctx, alice, "b", &hearthv1.ClaimSpec{Class: "brief"})
		if err != nil {
			t.Errorf("ephemeral claim: %v", err)
		}
		if err := w.release("rb", brief.GetEnvironment().GetId()); err != nil {
			t.Errorf("ephemeral release: %v", err)
		}
		if _, err := w.fleet.Get(ctx, alice, id); err != nil {
			t.Errorf("get: %v", err)
		}
		if _, err := w.fleet.Token(ctx, alice, id); err != nil {
			t.Errorf("token: %v", err)
		}
		if err := w.release("r", id); !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("release: %v", err)
		}
		if len(w.node.released) != 1 {
			t.Errorf("the node was asked to release %q", w.node.released)
		}
		if e, err := w.fleet.Get(ctx, alice, id); err != nil || e.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("after the refused release: %v, %v", e, err)
		}

		w.store.Fault = nil
		if _, err := w.claim("other"); err != nil {
			t.Errorf("once it answers: %v", err)
		}
		if err := w.release("r", id); err != nil {
			t.Errorf("once it answers: %v", err)
		}
	})
}

// A claim whose Save was carried out though it said that it does not know leaves
// nothing for the next start.
func TestAPlacementOfWhichTheStoreIsNotSureIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.report()
		w.store.Fault = func(string) error { return fmt.Errorf("%w: timed out", env.ErrUnavailable) }
		if _, err := w.claim("k"); err == nil {
			t.Fatal("claimed")
		}
		w.store.Fault = nil
		if n := w.store.Posts()["claim-undo"]; n != 1 {
			t.Errorf("posts = %v", w.store.Posts())
		}
		if _, err := w.claim("k"); err != nil {
			t.Error(err)
		}
		st, err := w.store.Load()
		if err != nil || len(st.Records) != 1 {
			t.Errorf("%d records, %v", len(st.Records), err)
		}
	})
}

func TestWritesOfDifferentRecordsPassEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.reportPools([]*hearthv1.Pool{{Class: "small", Ready: 50}})
		w.store.Fault = func(string) error { time.Sleep(5 * time.Millisecond); return nil }
		begun := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if _, err := w.claim(fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begun); took != 5*time.Millisecond {
			t.Errorf("20 claims over a store of 5 ms a write took %s", took)
		}
	})
}

func TestWhatIsNotStoredIsNotShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		w.store.Fault = func(string) error { time.Sleep(time.Second); return nil }
		done := make(chan string)
		go func() {
			got, err := w.claim("k")
			if err != nil {
				t.Error(err)
			}
			done <- got.GetEnvironment().GetId()
		}()
		time.Sleep(999 * time.Millisecond)
		made, _ := w.node.did()
		if n := len(w.fleet.List(alice, "", "")); n != 0 || made != 0 {
			t.Errorf("before it is stored %d are listed, and the node has %d", n, made)
		}
		id := <-done
		go func() { _ = w.release("r", id); done <- "" }()
		time.Sleep(999 * time.Millisecond)
		_, released := w.node.did()
		if l := w.fleet.List(alice, "", ""); len(l) != 1 || l[0].GetPhase() != hearthv1.Phase_PHASE_RUNNING || released != 0 {
			t.Errorf("before its end is stored: %v, released %d", l, released)
		}
		<-done
	})
}
