package warm

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAClaimProfileHasThePhasesInTheirOrder(t *testing.T) {
	var p profile
	for i := range 100 {
		laps := []PhaseTime{{"take", 1}, {"journal", time.Duration(i + 1)}, {"thaw", 10}}
		if i == 50 { // the only one with a policy and limits
			laps = []PhaseTime{{"policy", 7}, {"take", 1}, {"journal", 51}, {"limits", 5}, {"thaw", 10}}
		}
		p.add(laps)
	}
	want := []PhaseProfile{
		{Name: "policy", Claims: 1, P50: 7, P90: 7, P99: 7, Max: 7},
		{Name: "take", Claims: 100, P50: 1, P90: 1, P99: 1, Max: 1},
		{Name: "journal", Claims: 100, P50: 50, P90: 90, P99: 99, Max: 100},
		{Name: "limits", Claims: 1, P50: 5, P90: 5, P99: 5, Max: 5},
		{Name: "thaw", Claims: 100, P50: 10, P90: 10, P99: 10, Max: 10},
		{Name: "total", Claims: 100, P50: 61, P90: 101, P99: 110, Max: 111},
	}
	if d := cmp.Diff(want, p.phases()); d != "" {
		t.Error(d)
	}
}

func TestAClaimProfileForgetsTheOldest(t *testing.T) {
	var p profile
	if got := p.phases(); len(got) != 0 {
		t.Errorf("without claims: %v", got)
	}
	for range profileSize {
		p.add([]PhaseTime{{"take", time.Hour}})
	}
	for range profileSize {
		p.add([]PhaseTime{{"take", time.Millisecond}})
	}
	if got := p.phases()[0]; got.Claims != profileSize || got.Max != time.Millisecond {
		t.Errorf("%+v", got)
	}
}
