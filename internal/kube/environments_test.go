package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/tools/cache"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// tenants is a fleet that notes what is asked of it.
type tenants struct {
	mu     sync.Mutex // guards all below
	claims []fleet.ObjectRef
	ended  []env.ID
	lives  []time.Duration
	sizes  []*hearthv1.Resources
	size   error
	live   func(time.Duration) error
	claim  func(context.Context, fleet.ObjectRef) error
	end    func(context.Context, env.ID) error
}

func (f *tenants) ClaimFor(ctx context.Context, o fleet.ObjectRef) (*hearthv1.ClaimResponse, error) {
	f.mu.Lock()
	f.claims = append(f.claims, o)
	claim := f.claim
	f.mu.Unlock()
	return &hearthv1.ClaimResponse{}, claim(ctx, o)
}

func (f *tenants) End(ctx context.Context, id env.ID) error {
	f.mu.Lock()
	f.ended = append(f.ended, id)
	end := f.end
	f.mu.Unlock()
	if end == nil {
		return nil
	}
	return end(ctx, id)
}

func (f *tenants) SetTimeToLive(_ context.Context, _ env.ID, ttl time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lives = append(f.lives, ttl)
	if f.live == nil {
		return nil
	}
	return f.live(ttl)
}

func (f *tenants) ResizeFor(_ context.Context, _ env.ID, r *hearthv1.Resources) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sizes = append(f.sizes, r)
	return f.size
}

func (f *tenants) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.claims)
}

func (f *tenants) ends() []env.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ended)
}

// watched are Environments of which the test is the informer.
type watched struct {
	*Environments
	api   *fakeAPI
	fleet *tenants
}

func (w *watched) see(before, o *v1alpha1.Environment) {
	_ = w.w.environments.GetStore().Add(o)
	w.changed(before, o, false)
}

func watching(t *testing.T, play func(*testing.T, *watched)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, f := newFakeAPI(), &tenants{}
		s := a.store(t, a.client(t))
		watches := &Watches{environments: informer(&cache.ListWatch{}, nil, &v1alpha1.Environment{})}
		w := &watched{NewEnvironments(slog.New(slog.DiscardHandler), watches, s, f), a, f}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		play(t, w)
		cancel()
		<-done
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAClaimThatFailsIsTriedWithBackOffThoughEachTryIsWritten(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		t.Helper()
		generation := int64(0)
		w.fleet.claim = func(context.Context, fleet.ObjectRef) error {
			if w.fleet.asked() > 500 {
				return nil // it would never end
			}
			// The next node is written into the object, which comes back by the watch.
			generation++
			before := w.api.get("team/mine")
			w.api.edit("team/mine", func(o *v1alpha1.Environment) {
				o.Spec.Placement = &v1alpha1.Placement{NodeName: "n1", Generation: generation}
			})
			w.see(before, w.api.get("team/mine"))
			return fmt.Errorf("%w: node n1 refused generation %d", env.ErrExhausted, generation)
		}
		w.see(nil, w.api.put("team", "mine", nil))
		time.Sleep(5 * time.Minute)
		// 50 ms doubled to 15 s, and then each 15 s.
		if n := w.fleet.asked(); n < 20 || n > 40 {
			t.Errorf("tried %d times in 5 minutes", n)
		}
		before := w.api.get("team/mine")
		after := before.DeepCopy()
		after.Labels = map[string]string{"app": "x"}
		w.fleet.mu.Lock()
		w.fleet.claim = func(context.Context, fleet.ObjectRef) error { return nil }
		n := len(w.fleet.claims)
		w.fleet.mu.Unlock()
		w.see(before, after)
		time.Sleep(time.Millisecond)
		if w.fleet.asked() != n+1 {
			t.Error("what its maker changed is not tried at once")
		}
	})
}

func TestAnObjectIsLookedAtAgainOfWhichNothingWasWanted(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		t.Helper()
		w.fleet.claim = func(context.Context, fleet.ObjectRef) error { return fmt.Errorf("%w: was given up", env.ErrState) }
		w.see(nil, w.api.put("team", "mine", nil))
		time.Sleep(3*lookAgain + time.Second)
		if n := w.fleet.asked(); n != 4 {
			t.Errorf("looked at %d times", n)
		}
	})
}

func TestATenantsSlowClaimsKeepNobodyElsesAway(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		t.Helper()
		busy, most := 0, 0
		w.fleet.claim = func(_ context.Context, o fleet.ObjectRef) error {
			if o.Tenant != "slow" {
				return nil
			}
			w.fleet.mu.Lock()
			busy++
			most = max(most, busy)
			w.fleet.mu.Unlock()
			time.Sleep(time.Minute)
			w.fleet.mu.Lock()
			busy--
			w.fleet.mu.Unlock()
			return nil
		}
		const objects = 400
		for i := range objects {
			w.see(nil, w.api.put("slow", fmt.Sprint("e", i), nil))
		}
		time.Sleep(time.Second)
		begun := w.fleet.asked()
		w.see(nil, w.api.put("team", "mine", nil))
		time.Sleep(time.Second)
		if w.fleet.asked() != begun+1 {
			t.Error("another tenant's claim waits")
		}
		time.Sleep(time.Hour)
		w.turns.mu.Lock()
		kept := len(w.turns.tenants)
		w.turns.mu.Unlock()
		w.fleet.mu.Lock()
		defer w.fleet.mu.Unlock()
		if n := len(w.fleet.claims); n != objects+1 || most != tenantClaims || kept != 0 {
			t.Errorf("%d claims in the end, %d at once; turns of %d tenants are kept", n, most, kept)
		}
	})
}

func TestEndsOfANodeThatDoesNotAnswerKeepNobodyElsesAway(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		t.Helper()
		w.fleet.end = func(ctx context.Context, _ env.ID) error {
			select {
			case <-ctx.Done(): // the end is decided, and the fleet goes on asking
			case <-time.After(15 * time.Minute):
			}
			return nil
		}
		for i := range 2 * endWorkers {
			o := w.api.put("team", fmt.Sprint("e", i), nil)
			w.changed(nil, o, true)
		}
		last := w.api.put("other", "last", nil)
		w.changed(nil, last, true)
		time.Sleep(30 * time.Second)
		if !slices.Contains(w.fleet.ends(), w.store.idOf(last)) {
			t.Error("another's end waits")
		}
	})
}

func TestACopyOfAnObjectEndsNothing(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		t.Helper()
		r := recordAt("n1", 1, nil)
		save(t, w.store, r)
		true1 := w.api.get(objectName(r))
		// What has its name, its seal and another UID: what was there before, or a
		// copy that somebody made.
		copied := true1.DeepCopy()
		copied.UID = "another"
		w.changed(nil, copied, true)
		deleting := copied.DeepCopy()
		now := deleting.CreationTimestamp
		deleting.DeletionTimestamp = &now
		_ = w.w.environments.GetStore().Add(deleting)
		w.changed(copied, deleting, false)
		time.Sleep(time.Minute)
		if ended := w.fleet.ends(); len(ended) != 0 || w.api.get(objectName(r)) == nil {
			t.Errorf("ended %v", ended)
		}
		w.api.vanish(objectName(r))
		_ = w.w.environments.GetStore().Delete(deleting)
		w.changed(nil, true1, true)
		time.Sleep(time.Second)
		if ended := w.fleet.ends(); !slices.Equal(ended, []env.ID{r.ID()}) {
			t.Errorf("ended %v", ended)
		}
	})
}

func TestWorkThatIsQueuedIsNotDoneAfterTheEnd(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		t.Helper()
		w.fleet.end = func(ctx context.Context, _ env.ID) error {
			<-ctx.Done()
			time.Sleep(10 * time.Second) // a store that does not answer
			return ctx.Err()
		}
		for i := range 20 * endWorkers {
			w.changed(nil, w.api.put("team", fmt.Sprint("e", i), nil), true)
		}
		time.Sleep(time.Second)
		t.Cleanup(func() {
			if n := len(w.fleet.ends()); n > endWorkers {
				t.Errorf("%d were ended, %d of them after the end", n, n-endWorkers)
			}
		})
	})
}
