package warm

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

func TestReplayKeepsTheNewestStateOfEachSlot(t *testing.T) {
	a, b, c := env.NewSlotID(), env.NewSlotID(), env.NewSlotID()
	r := newReplay("boot-2")
	visit := func(boot string, s slotState, gone bool) {
		t.Helper()
		rec, err := encodeRecord(boot, s, gone)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.visit(rec); err != nil {
			t.Fatal(err)
		}
	}
	visit("boot-1", slotState{ID: c, Phase: env.SlotReady}, false)
	visit("boot-2", slotState{ID: a, Phase: env.SlotPreparing}, false)
	visit("boot-2", slotState{ID: b, Phase: env.SlotReady}, false)
	visit("boot-2", slotState{ID: a, Phase: env.SlotReady, PID: 7}, false)
	visit("boot-2", slotState{ID: b}, true)
	if diff := cmp.Diff(map[env.SlotID]slotState{a: {ID: a, Phase: env.SlotReady, PID: 7}}, r.slots); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
	if _, ok := r.stale[c]; !ok || len(r.stale) != 1 {
		t.Errorf("slots of an earlier boot = %v", r.stale)
	}
}

func TestReplayRefusesWhatItCannotRead(t *testing.T) {
	for name, test := range map[string]struct {
		rec  string
		want error
	}{
		"no JSON":       {"{", env.ErrCorrupt},
		"newer version": {`{"v":2,"slot":{"id":"s-00000000000000000000000000"}}`, env.ErrUnsupported},
		"foreign id":    {`{"v":1,"slot":{"id":"../x"}}`, env.ErrCorrupt},
	} {
		if err := newReplay("b").visit([]byte(test.rec)); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

func FuzzReplayVisit(f *testing.F) {
	rec, _ := encodeRecord("b", slotState{ID: env.NewSlotID(), Made: time.Unix(1, 0), Env: &envState{ID: env.NewID()}}, false)
	f.Add(rec)
	f.Add([]byte(`{"v":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newReplay("b")
		if err := r.visit(b); err != nil {
			return
		}
		for id := range r.slots {
			if _, err := env.ParseSlotID(string(id)); err != nil {
				t.Errorf("accepted slot id %q", id)
			}
		}
	})
}

func TestJudgeKeepsOnlyWhatIsCertain(t *testing.T) {
	dead := finding{island: true}
	whole := finding{initAlive: true, island: true}
	frozen := finding{initAlive: true, island: true, frozen: true}
	claimed := func(p env.Phase) slotState {
		return slotState{Phase: env.SlotClaimed, Env: &envState{Phase: p}}
	}
	for name, test := range map[string]struct {
		state slotState
		found finding
		want  fate
	}{
		"being prepared":        {slotState{Phase: env.SlotPreparing}, frozen, destroy},
		"ready":                 {slotState{Phase: env.SlotReady}, frozen, keepReady},
		"ready but running":     {slotState{Phase: env.SlotReady}, whole, destroy},
		"failed":                {slotState{Phase: env.SlotClaimed, Env: &envState{Phase: env.PhaseFailed}}, dead, keepFailed},
		"died with the agent":   {slotState{Phase: env.SlotClaimed, Env: &envState{Phase: env.PhaseRunning}}, finding{}, keepFailed},
		"died in its claim":     {slotState{Phase: env.SlotClaimed, Env: &envState{Phase: env.PhaseClaiming}}, dead, destroy},
		"died in its release":   {slotState{Phase: env.SlotClaimed, Env: &envState{Phase: env.PhaseReleased}}, dead, destroy},
		"ready without island":  {slotState{Phase: env.SlotReady}, finding{initAlive: true, frozen: true}, destroy},
		"claim under way":       {claimed(env.PhaseClaiming), whole, destroy},
		"running":               {claimed(env.PhaseRunning), whole, keepEnvironment},
		"frozen by a snapshot":  {claimed(env.PhaseRunning), frozen, keepEnvironment},
		"paused":                {claimed(env.PhasePaused), frozen, keepEnvironment},
		"quarantined":           {claimed(env.PhaseQuarantined), frozen, keepEnvironment},
		"init gone":             {claimed(env.PhaseRunning), finding{island: true}, keepFailed},
		"island gone":           {claimed(env.PhaseRunning), finding{initAlive: true}, keepFailed},
		"failed before":         {claimed(env.PhaseFailed), finding{}, keepFailed},
		"ready without init":    {slotState{Phase: env.SlotReady}, finding{island: true, frozen: true}, destroy},
		"release under way":     {claimed(env.PhaseReleased), frozen, destroy},
		"claimed without owner": {slotState{Phase: env.SlotClaimed}, frozen, destroy},
		"filled for a claim":    {slotState{Phase: env.SlotReady, Filled: true}, frozen, destroy},
		"claimed after that":    {slotState{Phase: env.SlotClaimed, Filled: true, Env: &envState{Phase: env.PhaseRunning}}, whole, keepEnvironment},
		"replaced":              {claimed(env.PhaseRunning), finding{initAlive: true, island: true, replaced: true}, destroy},
		"replaced, and failed":  {claimed(env.PhaseFailed), finding{replaced: true}, destroy},
	} {
		got, why := judge(test.state, test.found)
		if kept := got == keepReady || got == keepEnvironment; got != test.want || kept == (why != "") {
			t.Errorf("%s: judge = %v %q, want %v", name, got, why, test.want)
		}
	}
}

func TestTokensEndWithTheirEpochGenerationAndNode(t *testing.T) {
	key := tokens{key: []byte(strings.Repeat("k", tokenKeySize))}
	id := env.NewID()
	token := key.of(id, 1, 1)
	if !key.valid(token, id, 1, 1) {
		t.Error("a fresh token is refused")
	}
	other := tokens{key: []byte(strings.Repeat("x", tokenKeySize))}
	if key.valid(token, id, 1, 2) || key.valid(token, id, 2, 1) || key.valid(token, env.NewID(), 1, 1) || other.valid(token, id, 1, 1) || key.valid("", id, 1, 1) {
		t.Error("a token is valid beyond its environment, epoch, generation or node")
	}
}

func FuzzShellAssignments(f *testing.F) {
	f.Add("A", "it's")
	f.Add("A B", "x")
	f.Fuzz(func(t *testing.T, name, value string) {
		got := string(shellAssignments(map[string]string{name: value}))
		if !shellName(name) {
			if got != "" {
				t.Errorf("%q is no shell name, got %q", name, got)
			}
			return
		}
		body := strings.TrimSuffix(strings.TrimPrefix(got, name+"='"), "'\n")
		if unquoted := strings.ReplaceAll(body, `'\''`, "'"); unquoted != value {
			t.Errorf("%q reads back as %q", value, unquoted)
		}
	})
}
