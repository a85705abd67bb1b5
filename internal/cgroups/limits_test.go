package cgroups

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

func TestLimitFilesCarryTheResourcesOfTheirVersion(t *testing.T) {
	r := env.Resources{CPUMillis: 1500, MemoryBytes: 1 << 30, PIDs: 512}
	want := map[int]map[string]string{
		2: {"cpu.max": "150000 100000", "cpu.weight": "150", "memory.max": "1073741824", "memory.swap.max": "0", "pids.max": "512"},
		1: {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000", "cpu.shares": "1536", "memory.limit_in_bytes": "1073741824", "memory.memsw.limit_in_bytes": "1073741824", "pids.max": "512"},
	}
	got := map[int]map[string]string{1: {}, 2: {}}
	for _, l := range limitTable {
		got[l.version][l.file] = l.value(r)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestZeroResourcesLeaveEveryFileAsItIs(t *testing.T) {
	for _, l := range limitTable {
		if v := l.value(env.Resources{}); v != "" {
			t.Errorf("%s = %q, want nothing", l.file, v)
		}
	}
}

func TestTinyCPULimitsAreRaisedToTheKernelsLeast(t *testing.T) {
	if got := cpuMax(env.Resources{CPUMillis: 1}); got != "1000 100000" {
		t.Errorf("cpu.max = %q", got)
	}
}

func TestNumberReadsFlatAndSingleFiles(t *testing.T) {
	tests := []struct {
		name, text, key string
		want            int64
		ok              bool
	}{
		{"single", "4096\n", "", 4096, true},
		{"keyed", "usage_usec 12\nuser_usec 7\n", "user_usec", 7, true},
		{"key is not a prefix", "anon_thp 5\nanon 9\n", "anon", 9, true},
		{"absent", "a 1\n", "b", 0, false},
		{"no number", "max\n", "", 0, false},
		{"empty", "", "", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := number(tt.text, tt.key)
			if got != tt.want || ok != tt.ok {
				t.Errorf("number = %d, %t; want %d, %t", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func FuzzNumber(f *testing.F) {
	f.Add("usage_usec 12\nuser_usec 7\n", "user_usec")
	f.Add("", "")
	f.Fuzz(func(_ *testing.T, text, key string) { number(text, key) })
}
