package config

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

func quantity(s string) *resource.Quantity {
	if s == "" {
		return nil
	}
	q := resource.MustParse(s)
	return &q
}

func TestAnEnvironmentsOwnLimitsComeBackAsTheyWereWritten(t *testing.T) {
	for name, tt := range map[string]struct {
		cpu, memory, burst string
		want               env.Limits
	}{
		"nothing":       {},
		"cpu":           {cpu: "500m", want: env.Limits{CPUMillis: 500}},
		"all":           {cpu: "2", memory: "4Gi", burst: "1", want: env.Limits{CPUMillis: 2000, MemoryBytes: 4 << 30, CPUBurstMillis: 1000}},
		"no burst more": {burst: "0", want: env.Limits{CPUBurstMillis: env.NoBurst}},
	} {
		got, err := LimitsOf(&v1alpha1.EnvironmentResources{CPU: quantity(tt.cpu), Memory: quantity(tt.memory), CPUBurst: quantity(tt.burst)})
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		if tt.want.CPUBurstMillis == env.NoBurst {
			continue
		}
		if back, err := LimitsOf(ResourcesOf(got)); back != got || err != nil {
			t.Errorf("%s: comes back as %+v, %v", name, back, err)
		}
	}
}

func TestLimitsThatNothingCanHaveAreRefused(t *testing.T) {
	for name, r := range map[string]v1alpha1.EnvironmentResources{
		"no cpu":         {CPU: quantity("0")},
		"tiny cpu":       {CPU: quantity("1m")},
		"negative":       {Memory: quantity("-1Gi")},
		"tiny memory":    {Memory: quantity("1Mi")},
		"negative burst": {CPUBurst: quantity("-1")},
		"one less":       {CPUBurst: quantity("-1m")},
	} {
		if got, err := LimitsOf(&r); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%s: %+v, %v; want ErrInvalid", name, got, err)
		}
	}
}
