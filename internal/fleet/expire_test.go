package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Extend allows an hour ahead.
func (n *peer) Extend(ctx context.Context, r *hearthv1.NodeExtendRequest) (out *hearthv1.NodeExtendResponse, err error) {
	return out, n.do(ctx, "Extend", r.GetEnvironment(), func() error {
		e, err := n.has(r.GetEnvironment())
		if err != nil {
			return err
		}
		until := r.GetExpiresAt().AsTime()
		switch r.GetEnd().(type) {
		case *hearthv1.NodeExtendRequest_Duration:
			until = time.Now().Add(r.GetDuration().AsDuration())
		case *hearthv1.NodeExtendRequest_TimeToLive:
			until = time.Now().Add(r.GetTimeToLive().AsDuration())
		}
		if time.Until(until) > time.Hour {
			return fmt.Errorf("%w: class small allows 1h0m0s", env.ErrInvalid)
		}
		e.ExpiresAt = timestamppb.New(until)
		if ttl := r.GetTimeToLive(); ttl.AsDuration() != 0 {
			e.TimeToLive = ttl
		}
		out = &hearthv1.NodeExtendResponse{Environment: e.shown()}
		return nil
	})
}

func TestWhatItsNodeReleasedAtItsEndIsReleasedAndNotFailed(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t, n := w.t, w.nodes["a"]
		told, idle := w.claim("k1"), w.claim("k2")
		w.set(func() {
			e := n.envs[told]
			e.Phase, e.Reason, e.Message = hearthv1.Phase_PHASE_RELEASED, "expired", "its time to live ended"
			e = n.envs[idle]
			e.Phase, e.Reason, e.Message = hearthv1.Phase_PHASE_PAUSED, "idle", "paused because it did nothing"
		})
		n.connect()
		synctest.Wait()
		if r := w.record(told); r.GetPhase() != hearthv1.Phase_PHASE_RELEASED || r.GetReason() != "expired" || r.GetMessage() != "its time to live ended" {
			t.Errorf("record = %v", r)
		}
		if r := w.record(idle); r.GetPhase() != hearthv1.Phase_PHASE_PAUSED || r.GetReason() != "idle" {
			t.Errorf("record = %v", r)
		}
		time.Sleep(3 * time.Minute) // further inventories say the same
		for k, want := range map[fleet.Kind]int{fleet.Expired: 1, fleet.IdlePaused: 1, fleet.Failed: 0, fleet.Released: 0} {
			if got := w.happened(k); got != want {
				t.Errorf("%s happened %d times, want %d", k, got, want)
			}
		}
		if got := n.called("Release"); got != 0 {
			t.Errorf("the node was asked %d times to release what it had released", got)
		}
		w.restart()
		if r := w.record(told); r.GetPhase() != hearthv1.Phase_PHASE_RELEASED {
			t.Errorf("after a crash: %v", r)
		}
		n.connect()
	})
}

func TestAnEnvironmentThatItsNodeDeniesHasExpiredOnlyIfItsTimeHadCome(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t, n := w.t, w.nodes["a"]
		over, early := w.claim("k1"), w.claim("k2")
		w.set(func() {
			n.envs[over].ExpiresAt = timestamppb.New(time.Now().Add(30 * time.Second))
			n.envs[early].ExpiresAt = timestamppb.New(time.Now().Add(3 * time.Hour))
		})
		n.connect()
		synctest.Wait()
		if r := w.record(over); !r.GetExpiresAt().IsValid() {
			t.Fatalf("the end was not observed: %v", r)
		}
		time.Sleep(40 * time.Second)
		w.set(func() { clear(n.envs) })
		time.Sleep(time.Minute)
		if r := w.record(over); r.GetPhase() != hearthv1.Phase_PHASE_RELEASED || r.GetReason() != "expired" {
			t.Errorf("record = %v", r)
		}
		if r := w.record(early); r.GetPhase() != hearthv1.Phase_PHASE_FAILED {
			t.Errorf("record = %v", r)
		}
	})
}

func TestAnExtensionIsItsNodesAndIsKnownAtOnce(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t, n := w.t, w.nodes["a"]
		id := w.claim("k")
		ctx := context.Background()
		by := func(d time.Duration) *hearthv1.ExtendRequest {
			return &hearthv1.ExtendRequest{IdempotencyKey: fmt.Sprint(d), Environment: id, End: &hearthv1.ExtendRequest_Duration{Duration: durationpb.New(d)}}
		}
		e, err := w.fleet.Extend(ctx, alice, by(time.Minute))
		want := timestamppb.New(time.Now().Add(time.Minute))
		if err != nil || cmp.Diff(want, e.GetExpiresAt(), protocmp.Transform()) != "" {
			t.Errorf("extended = %v, %v", e, err)
		}
		if d := cmp.Diff(want, w.record(id).GetExpiresAt(), protocmp.Transform()); d != "" {
			t.Errorf("record: %s", d)
		}
		at := &hearthv1.ExtendRequest{IdempotencyKey: "at", Environment: id, End: &hearthv1.ExtendRequest_ExpiresAt{ExpiresAt: want}}
		if _, err := w.fleet.Extend(ctx, alice, at); err != nil {
			t.Error(err)
		}
		for what, tc := range map[string]struct {
			who  fleet.Principal
			req  *hearthv1.ExtendRequest
			want error
		}{
			"too far ahead":       {alice, by(2 * time.Hour), env.ErrInvalid},
			"no end":              {alice, &hearthv1.ExtendRequest{IdempotencyKey: "k", Environment: id}, env.ErrInvalid},
			"no key":              {alice, &hearthv1.ExtendRequest{Environment: id, End: at.GetEnd()}, env.ErrInvalid},
			"of another's tenant": {fleet.Principal{Tenant: "bob"}, by(time.Second), env.ErrNotFound},
		} {
			if _, err := w.fleet.Extend(ctx, tc.who, tc.req); !errors.Is(err, tc.want) {
				t.Errorf("%s: %v, want %v", what, err, tc.want)
			}
		}

		for range 2 {
			if err := w.fleet.SetTimeToLive(ctx, env.ID(id), 30*time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		if got := n.called("Extend"); got != 4 { // two above, the refused one, and one of these
			t.Errorf("the node was asked %d times", got)
		}
		if err := w.fleet.SetTimeToLive(ctx, env.ID(id), 2*time.Hour); !errors.Is(err, env.ErrInvalid) || w.happened(fleet.ExtendRefused) != 1 {
			t.Errorf("too long: %v, told %d times", err, w.happened(fleet.ExtendRefused))
		}
		if err := w.fleet.SetTimeToLive(ctx, env.NewID(), time.Hour); err != nil {
			t.Errorf("one that is not there: %v", err)
		}
	})
}

func TestAMovedEnvironmentTakesItsLifeAlongAndWakes(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		life := &hearthv1.Lifetime{Lived: durationpb.New(time.Hour), Left: durationpb.New(time.Minute), TimeToLive: durationpb.New(2 * time.Hour)}
		w.set(func() {
			e := w.nodes["a"].envs[id]
			e.Phase, e.Reason = hearthv1.Phase_PHASE_PAUSED, "idle"
			w.nodes["a"].lie = func(r *hearthv1.NodeSnapshotResponse) { r.Lifetime = life }
		})
		w.nodes["a"].connect()
		synctest.Wait()
		w.fleet.SetNodes(drain("a"))
		time.Sleep(5 * time.Second)
		if got := w.where()[id]; got != "b/2 running;" {
			t.Fatalf("it is at %q", got)
		}
		if d := cmp.Diff(life, w.nodes["b"].books().claims[0].GetLifetime(), protocmp.Transform()); d != "" {
			t.Errorf("lifetime: %s", d)
		}
		if got := w.nodes["b"].called("Pause"); got != 0 {
			t.Error("the target was asked to pause what only slept: it would never wake by itself")
		}
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_RUNNING || r.GetReason() != "" {
			t.Errorf("record = %v", r)
		}
	})
}
