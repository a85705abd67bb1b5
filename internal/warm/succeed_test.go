package warm

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

func TestWhatCanBeUpgraded(t *testing.T) {
	newest := &env.Class{Name: "demo", Revision: "r2", Resources: env.Resources{CPUMillis: 1000, MemoryBytes: 128 * mib}}
	running := func(edit func(*envState)) *envState {
		e := &envState{ID: "e-1", Phase: env.PhaseRunning}
		if edit != nil {
			edit(e)
		}
		return e
	}
	for name, tt := range map[string]struct {
		e        *envState
		revision string
		newest   *env.Class
		want     error
		words    string
	}{
		"one that runs":          {running(nil), "r1", newest, nil, ""},
		"one that is paused":     {running(func(e *envState) { e.Phase = env.PhasePaused }), "r1", newest, nil, ""},
		"one that sleeps":        {running(func(e *envState) { e.Phase, e.Idle = env.PhasePaused, true }), "r1", newest, nil, ""},
		"one that is stalled":    {running(func(e *envState) { e.Phase = env.PhaseStalled }), "r1", newest, nil, ""},
		"of the newest":          {running(nil), "r2", newest, env.ErrState, "newest release"},
		"of a class that went":   {running(nil), "r1", nil, env.ErrNotFound, "demo"},
		"held for a move":        {running(func(e *envState) { e.Phase, e.Held = env.PhasePaused, env.PhaseRunning }), "r1", newest, env.ErrState, "move"},
		"in another upgrade":     {running(func(e *envState) { e.Phase, e.Held, e.Upgrading = env.PhasePaused, env.PhaseRunning, true }), "r1", newest, env.ErrUnavailable, "under way"},
		"quarantined":            {running(func(e *envState) { e.Phase = env.PhaseQuarantined }), "r1", newest, env.ErrState, "quarantined"},
		"fenced":                 {running(func(e *envState) { e.Phase = env.PhaseFenced }), "r1", newest, env.ErrState, "fenced"},
		"failed":                 {running(func(e *envState) { e.Phase = env.PhaseFailed }), "r1", newest, env.ErrState, "failed"},
		"with limits that fit":   {running(func(e *envState) { e.Limits = env.Limits{CPUMillis: 500, CPUBurstMillis: 500} }), "r1", newest, nil, ""},
		"with limits too little": {running(func(e *envState) { e.Limits = env.Limits{CPUBurstMillis: 1500} }), "r1", newest, env.ErrInvalid, "resize it first"},
	} {
		err := slotState{Class: "demo", Revision: tt.revision, Env: tt.e}.upgradable(tt.newest)
		if !errors.Is(err, tt.want) || tt.want != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v, want %v with %q", name, err, tt.want, tt.words)
		}
	}
}

func TestAnUpgradeThatEndsLeavesWhatWasDecidedMeanwhile(t *testing.T) {
	for name, tt := range map[string]struct{ held, want envState }{
		"ran":     {envState{Phase: env.PhasePaused, Held: env.PhaseRunning, Message: upgradeMessage}, envState{Phase: env.PhaseRunning}},
		"paused":  {envState{Phase: env.PhasePaused, Held: env.PhasePaused, Message: upgradeMessage}, envState{Phase: env.PhasePaused}},
		"slept":   {envState{Phase: env.PhasePaused, Held: env.PhasePaused, Idle: true, Message: upgradeMessage}, envState{Phase: env.PhasePaused, Idle: true, Message: idleMessage}},
		"stalled": {envState{Phase: env.PhasePaused, Held: env.PhaseStalled, Message: upgradeMessage}, envState{Phase: env.PhaseStalled, Message: stalledMessage}},
		"fenced meanwhile": {
			envState{Phase: env.PhaseFenced, Before: env.PhasePaused, Held: env.PhaseRunning, Message: fencedMessage},
			envState{Phase: env.PhaseFenced, Before: env.PhaseRunning, Message: fencedMessage},
		},
		"quarantined meanwhile": {envState{Phase: env.PhaseQuarantined, Message: "mining"}, envState{Phase: env.PhaseQuarantined, Message: "mining"}},
		"failed meanwhile": {
			envState{Phase: env.PhaseFailed, Held: env.PhaseRunning, Message: initEndedMessage},
			envState{Phase: env.PhaseFailed, Message: initEndedMessage},
		},
		"resumed": {envState{Phase: env.PhaseRunning}, envState{Phase: env.PhaseRunning}},
	} {
		e := tt.held
		e.Upgrading = true
		if tt.held.Held != "" {
			e.HeldAt = "e-1/1"
		}
		e.stay()
		if diff := cmp.Diff(tt.want, e); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	move := envState{Phase: env.PhasePaused, Held: env.PhaseRunning, HeldAt: "e-1/1", Message: heldMessage}
	kept := move
	if kept.stay(); !cmp.Equal(move, kept) {
		t.Errorf("one that is held for a move became %+v", kept)
	}
}

func TestTheJournalKnowsWhatWasReplacedWhateverItsOwnRecordsSay(t *testing.T) {
	old := slotState{ID: env.NewSlotID(), Phase: env.SlotClaimed, Env: &envState{ID: "e-1", Phase: env.PhaseRunning}}
	next := slotState{ID: env.NewSlotID(), Phase: env.SlotClaimed, Replaces: old.ID, Env: &envState{ID: "e-1", Phase: env.PhaseRunning}}
	r := newReplay("boot")
	for _, rec := range []struct {
		st   slotState
		gone bool
	}{{old, false}, {next, false}, {next, true}} { // released before the old slot was removed
		b, err := encodeRecord("boot", rec.st, rec.gone)
		if err == nil {
			err = r.visit(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, there := r.slots[old.ID]; !there || !r.replaced[old.ID] || r.replaced[next.ID] {
		t.Errorf("slots %v, replaced %v", r.slots, r.replaced)
	}
}
