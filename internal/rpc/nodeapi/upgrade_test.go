package nodeapi

import (
	"errors"
	"testing"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/warm"
)

func TestWhatAnUpgradeKeepsIsReadAndNonsenseIsRefused(t *testing.T) {
	for k, want := range map[hearthv1.Keep]warm.Keep{
		hearthv1.Keep_KEEP_UNSPECIFIED: warm.KeepAll,
		hearthv1.Keep_KEEP_ALL:         warm.KeepAll,
		hearthv1.Keep_KEEP_WORKSPACE:   warm.KeepWorkspace,
	} {
		if got, err := keepOf(k); got != want || err != nil {
			t.Errorf("%s: %v, %v", k, got, err)
		}
	}
	if got, err := keepOf(77); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("a newer caller's word: %v, %v, want ErrInvalid", got, err)
	}
}
