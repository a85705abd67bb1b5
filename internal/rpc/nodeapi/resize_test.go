package nodeapi

import (
	"errors"
	"math"
	"testing"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func TestLimitsComeBackAsTheyWereSent(t *testing.T) {
	for name, l := range map[string]env.Limits{
		"none":          {},
		"all":           {CPUMillis: 1500, MemoryBytes: 1 << 31, CPUBurstMillis: 500},
		"no burst":      {CPUMillis: 1500, CPUBurstMillis: env.NoBurst},
		"only no burst": {CPUBurstMillis: env.NoBurst},
	} {
		if got, err := limitsOf(limitsProto(l)); got != l || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, l)
		}
	}
	if got, err := limitsOf(&hearthv1.Resources{MemoryBytes: math.MaxUint64}); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("a number that is none of ours: %+v, %v; want ErrInvalid", got, err)
	}
}
