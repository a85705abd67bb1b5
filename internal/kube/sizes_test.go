package kube

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"k8s.io/apimachinery/pkg/api/resource"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func amounts(cpu, memory, burst string) *v1alpha1.EnvironmentResources {
	of := func(s string) *resource.Quantity {
		if s == "" {
			return nil
		}
		q := resource.MustParse(s)
		return &q
	}
	return &v1alpha1.EnvironmentResources{CPU: of(cpu), Memory: of(memory), CPUBurst: of(burst)}
}

// sized is an object that asks for want while have is in force.
func sized(phase env.Phase, want, have *v1alpha1.EnvironmentResources) func(*v1alpha1.Environment) {
	return func(o *v1alpha1.Environment) {
		o.Spec.Resources, o.Status.Resources, o.Status.Phase = want, have, v1alpha1.EnvironmentPhase(phase)
	}
}

func TestAnObjectsLimitsAreSetWhenTheyAreNotInForce(t *testing.T) {
	inForce := amounts("1", "1Gi", "")
	for name, tt := range map[string]struct {
		edit func(*v1alpha1.Environment)
		asks bool
	}{
		"nothing asked":       {sized(env.PhaseRunning, nil, inForce), false},
		"what it has":         {sized(env.PhaseRunning, amounts("1000m", "1024Mi", "0"), inForce), false},
		"less is named":       {sized(env.PhaseRunning, amounts("", "1Gi", ""), inForce), false},
		"more cpu":            {sized(env.PhaseRunning, amounts("2", "", ""), inForce), true},
		"a burst":             {sized(env.PhasePaused, amounts("", "", "500m"), inForce), true},
		"no burst any more":   {sized(env.PhaseStalled, amounts("", "", "0"), amounts("1", "1Gi", "1")), true},
		"while it is claimed": {sized(env.PhaseClaiming, amounts("2", "", ""), nil), false},
		"while it is fenced":  {sized(env.PhaseFenced, amounts("2", "", ""), inForce), false},
		"of an older agent":   {sized(env.PhaseRunning, amounts("2", "", ""), nil), true},
	} {
		t.Run(name, func(t *testing.T) {
			watching(t, func(t *testing.T, w *watched) {
				t.Helper()
				w.fleet.claim = func(context.Context, fleet.ObjectRef) error { return nil }
				w.see(nil, w.api.put("team", "mine", tt.edit))
				time.Sleep(time.Second)
				w.fleet.mu.Lock()
				defer w.fleet.mu.Unlock()
				if got := len(w.fleet.sizes) > 0; got != tt.asks {
					t.Errorf("asked %v, want %t", w.fleet.sizes, tt.asks)
				}
			})
		})
	}
}

func TestRefusedLimitsAreTriedAgainAfterAWhile(t *testing.T) {
	watching(t, func(t *testing.T, w *watched) {
		t.Helper()
		w.fleet.size = env.ErrExhausted
		w.see(nil, w.api.put("team", "mine", sized(env.PhaseRunning, amounts("2", "8Gi", "1"), amounts("1", "1Gi", ""))))
		time.Sleep(2*lookAgain + time.Second)
		w.fleet.mu.Lock()
		defer w.fleet.mu.Unlock()
		if n := len(w.fleet.sizes); n != 3 {
			t.Fatalf("tried %d times, want once and each minute", n)
		}
		one := uint64(1000)
		want := &hearthv1.Resources{CpuMillis: 2000, MemoryBytes: 8 << 30, CpuBurstMillis: &one}
		if diff := cmp.Diff(want, w.fleet.sizes[0], protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestLimitsInForceAreReadBackFromTheStatus(t *testing.T) {
	half := uint64(500)
	for name, r := range map[string]*hearthv1.Resources{
		"none": nil, "some": {CpuMillis: 1500, MemoryBytes: 3 << 30}, "all": {CpuMillis: 1500, MemoryBytes: 3 << 30, CpuBurstMillis: &half},
	} {
		if diff := cmp.Diff(r, resourcesFrom(resourcesStatus(r)), protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
