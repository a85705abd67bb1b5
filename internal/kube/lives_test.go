package kube

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func hours(n int) *metav1.Duration { return &metav1.Duration{Duration: time.Duration(n) * time.Hour} }

func TestAChangedTimeToLiveIsBroughtToTheEnvironment(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		t.Helper()
		w.fleet.claim = func(context.Context, fleet.ObjectRef) error { return nil }
		w.see(nil, w.api.put("team", "mine", nil))
		edit := func(f func(*v1alpha1.Environment)) {
			before := w.api.get("team/mine")
			w.api.edit("team/mine", f)
			w.see(before, w.api.get("team/mine"))
			time.Sleep(time.Second)
		}
		asked := func() []time.Duration {
			w.fleet.mu.Lock()
			defer w.fleet.mu.Unlock()
			return slices.Clone(w.fleet.lives)
		}
		edit(func(o *v1alpha1.Environment) { o.Spec.TimeToLive = hours(2) }) // nothing lives yet: its claim says so
		edit(func(o *v1alpha1.Environment) { o.Status.Phase, o.Status.TimeToLive = "running", hours(2) })
		if got := asked(); len(got) != 0 {
			t.Errorf("asked for %v though it is in force", got)
		}
		edit(func(o *v1alpha1.Environment) { o.Spec.TimeToLive = hours(3) })
		if got := asked(); len(got) != 1 || got[0] != 3*time.Hour {
			t.Errorf("asked for %v, want 3h", got)
		}
		edit(func(o *v1alpha1.Environment) { o.Status.TimeToLive = hours(3) })
		edit(func(o *v1alpha1.Environment) { o.Spec.TimeToLive = nil })
		if got := asked(); len(got) != 2 || got[1] != 0 {
			t.Errorf("asked for %v, want none in the end: what the class says", got)
		}
		w.fleet.mu.Lock()
		w.fleet.live = func(time.Duration) error { return env.ErrInvalid }
		w.fleet.mu.Unlock()
		edit(func(o *v1alpha1.Environment) { o.Status.TimeToLive, o.Spec.TimeToLive = nil, hours(100) })
		time.Sleep(10 * time.Minute)
		if got := asked(); len(got) != 3 {
			t.Errorf("what the class does not allow was asked for %d times", len(got)-2)
		}
		w.fleet.mu.Lock()
		w.fleet.live = func(time.Duration) error { return env.ErrUnavailable }
		w.fleet.mu.Unlock()
		edit(func(o *v1alpha1.Environment) { o.Spec.TimeToLive = hours(4) })
		time.Sleep(time.Minute)
		if got := asked(); len(got) < 6 {
			t.Errorf("a node that does not answer was asked %d times", len(got)-3)
		}
		edit(func(o *v1alpha1.Environment) { o.Status.Phase = "released" })
		time.Sleep(time.Minute)
		n := len(asked())
		time.Sleep(time.Minute)
		if got := len(asked()); got != n {
			t.Error("one that is gone is asked for again and again")
		}
	})
}

func TestAnEndAndASleepAreInTheStatusAndReadBack(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	r := &fleet.Record{Environment: &hearthv1.Environment{
		Id: "e-00000000000000000000000001", Class: "base", Tenant: "team", Generation: 1, Node: "n1", Phase: hearthv1.Phase_PHASE_PAUSED, Reason: "idle",
		Message: "paused because it did nothing", ExpiresAt: timestamppb.New(at), TimeToLive: durationpb.New(2 * time.Hour),
	}}
	k := sealer("key")
	o := k.objectOf("e-00000000000000000000000001", r)
	if o.Spec.TimeToLive == nil || o.Spec.TimeToLive.Duration != 2*time.Hour {
		t.Errorf("spec.timeToLive = %v: the next controller would take the claim's away", o.Spec.TimeToLive)
	}
	o.Status = statusOf(r, "n1:7401", 1, nil, at)
	if o.Status.Reason != "idle" || !o.Status.ExpiresAt.Time.Equal(at) || o.Status.TimeToLive.Duration != 2*time.Hour || wantsLife(o) {
		t.Errorf("status = %+v", o.Status)
	}
	e := k.recordOf(o).Environment
	if e.GetReason() != "idle" || !e.GetExpiresAt().AsTime().Equal(at) || e.GetTimeToLive().AsDuration() != 2*time.Hour {
		t.Errorf("read back: %v", e)
	}
	spec, err := specOf(o)
	if err != nil || spec.GetTimeToLive().AsDuration() != 2*time.Hour {
		t.Errorf("claimed with %v, %v", spec, err)
	}
}
