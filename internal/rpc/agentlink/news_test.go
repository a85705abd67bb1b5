package agentlink

import (
	"testing"

	hearthv1 "hearth/api/hearth/v1"
)

// What no call has done to an environment has its inventory sent early, once.
func TestWhatNoCallHasDoneIsNews(t *testing.T) {
	inventory := func(e *hearthv1.Environment) *hearthv1.InventoryResponse {
		e.Id, e.Generation = "e-1", 1
		return &hearthv1.InventoryResponse{Environments: []*hearthv1.Environment{e}}
	}
	quiet := byThemselves(inventory(&hearthv1.Environment{}))
	seen := map[string]string{quiet: "nothing"}
	for name, e := range map[string]*hearthv1.Environment{
		"paused":            {Reason: "idle"},
		"ended":             {Reason: "expired"},
		"outdated":          {Outdated: true},
		"outdated, asleep":  {Outdated: true, Reason: "idle"},
		"another's release": {Outdated: true, Reason: "expired"},
	} {
		news := byThemselves(inventory(e))
		if as := seen[news]; as != "" {
			t.Errorf("%s is told as %s is", name, as)
		}
		seen[news] = name
		if news != byThemselves(inventory(e)) {
			t.Errorf("%s is news twice", name)
		}
	}
	if byThemselves(inventory(&hearthv1.Environment{Phase: hearthv1.Phase_PHASE_PAUSED, Revision: "r2"})) != quiet {
		t.Error("what a call does is news")
	}
}
