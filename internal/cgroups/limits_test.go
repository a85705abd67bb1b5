package cgroups

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

// valuesOf has what every file gets, by version.
func valuesOf(r env.Resources) map[int]map[string]string {
	got := map[int]map[string]string{1: {}, 2: {}}
	for _, l := range limitTable {
		if v := l.value(r); v != "" {
			got[l.version][l.file] = v
		}
	}
	return got
}

func TestLimitFilesCarryTheResourcesOfTheirVersion(t *testing.T) {
	plain := env.Resources{CPUMillis: 1500, MemoryBytes: 1 << 30, PIDs: 512}
	full := plain
	full.CPUBurstMillis, full.CPUWeight, full.MemoryHighBytes, full.SwapBytes = 500, 300, 900<<20, 64<<20
	full.IO = env.IOLimits{ReadBytes: 10, WriteOps: 7}
	for name, tt := range map[string]struct {
		in   env.Resources
		want map[int]map[string]string
	}{
		"plain": {plain, map[int]map[string]string{
			2: {"cpu.max": "150000 100000", "cpu.max.burst": "0", "cpu.weight": "150", "memory.max": "1073741824", "memory.high": "max", "memory.swap.max": "0", "pids.max": "512"},
			1: {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000", "cpu.cfs_burst_us": "0", "cpu.shares": "1536", "memory.limit_in_bytes": "1073741824", "memory.memsw.limit_in_bytes": "1073741824", "pids.max": "512"},
		}},
		"full": {full, map[int]map[string]string{
			2: {
				"cpu.max": "150000 100000", "cpu.max.burst": "50000", "cpu.weight": "300", "memory.max": "1073741824", "memory.high": "943718400", "memory.swap.max": "67108864", "pids.max": "512",
				"io.max": "rbps=10 wbps=max riops=max wiops=7",
			},
			1: {
				"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000", "cpu.cfs_burst_us": "50000", "cpu.shares": "3072", "memory.limit_in_bytes": "1073741824", "memory.memsw.limit_in_bytes": "1073741824", "pids.max": "512",
				"blkio.throttle.read_bps_device": "10", "blkio.throttle.write_iops_device": "7",
			},
		}},
	} {
		if diff := cmp.Diff(tt.want, valuesOf(tt.in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestABurstIsNeverAboveItsQuota(t *testing.T) {
	if got := cpuBurst(env.Resources{CPUMillis: 500, CPUBurstMillis: 900}); got != "50000" {
		t.Errorf("burst = %q, want the quota", got)
	}
}

func TestWhatWasAskedForAndCannotBeSetIsNamed(t *testing.T) {
	v1 := []string{"cpu", "memory", "pids", "blkio"}
	for name, tt := range map[string]struct {
		r       env.Resources
		version int
		missing string // a file
		devices []string
		want    string // feature; "" is none
	}{
		"all on v2":                {r: env.Resources{CPUMillis: 1, CPUBurstMillis: 1, MemoryBytes: 2, MemoryHighBytes: 1, SwapBytes: 1, PIDs: 1, IO: env.IOLimits{ReadOps: 1}}, version: 2, devices: []string{"8:0"}},
		"plain on v1":              {r: env.Resources{CPUMillis: 1, MemoryBytes: 2, PIDs: 1, IO: env.IOLimits{ReadOps: 1}}, version: 1, devices: []string{"8:0"}},
		"mark of memory on v1":     {r: env.Resources{MemoryHighBytes: 1}, version: 1, want: "resources.memoryHigh"},
		"swap on v1":               {r: env.Resources{SwapBytes: 1}, version: 1, want: "resources.swap"},
		"swap without swap":        {r: env.Resources{SwapBytes: 1}, version: 2, missing: "memory.swap.max", want: "resources.swap"},
		"burst of an old kernel":   {r: env.Resources{CPUMillis: 1, CPUBurstMillis: 1}, version: 2, missing: "cpu.max.burst", want: "resources.cpuBurst"},
		"no burst is no need":      {r: env.Resources{CPUMillis: 1}, version: 2, missing: "cpu.max.burst"},
		"io without a device":      {r: env.Resources{IO: env.IOLimits{WriteBytes: 1}}, version: 2, want: "resources.io"},
		"io without the file":      {r: env.Resources{IO: env.IOLimits{WriteBytes: 1}}, version: 2, missing: "io.max", devices: []string{"8:0"}, want: "resources.io"},
		"nothing asked, no device": {version: 2},
	} {
		err := supports(tt.r, func(controller string, version int, file string) bool {
			known := version == 2 || slices.Contains(v1, controller)
			return version == tt.version && known && (file == "" || file != tt.missing)
		}, tt.devices, "the test has none")
		var missing *env.UnsupportedError
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.want != "" && (!errors.As(err, &missing) || missing.Feature != tt.want || missing.Needs == ""):
			t.Errorf("%s: %v, want %s to be missing", name, err, tt.want)
		}
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
