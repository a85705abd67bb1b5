package cgroups

import (
	"strconv"

	"hearth/internal/env"
)

// cpuPeriod is the CFS period in microseconds; the kernel's default.
const cpuPeriod = 100_000

// minQuota is the smallest CFS quota that the kernel takes (1 ms).
const minQuota = 1_000

// limit is one file of one controller. The files of a version are written in
// the table's order; see Group.SetLimits for those that depend on each other.
type limit struct {
	controller string
	version    int
	file       string
	optional   bool // the kernel may be built without it
	value      func(env.Resources) string
}

// limitTable says which file carries which limit. A value of "" leaves the
// file as it is. Sources: Documentation/admin-guide/cgroup-v2.rst and
// cgroup-v1/.
var limitTable = []limit{
	{"cpu", 2, "cpu.max", false, cpuMax},
	{"cpu", 2, "cpu.weight", true, cpuWeight},
	{"memory", 2, "memory.max", false, memoryMax},
	{"memory", 2, "memory.swap.max", true, noSwap},
	{"pids", 2, "pids.max", false, pidsMax},

	{"cpu", 1, "cpu.cfs_period_us", false, cpuPeriodV1},
	{"cpu", 1, "cpu.cfs_quota_us", false, cpuQuotaV1},
	{"cpu", 1, "cpu.shares", true, cpuSharesV1},
	{"memory", 1, "memory.limit_in_bytes", false, memoryMax},
	{"memory", 1, "memory.memsw.limit_in_bytes", true, memoryMax},
	{"pids", 1, "pids.max", false, pidsMax},
}

func cpuQuota(r env.Resources) int64 { return max(r.CPUMillis*cpuPeriod/1000, minQuota) }

func cpuMax(r env.Resources) string {
	if r.CPUMillis <= 0 {
		return ""
	}
	return itoa(cpuQuota(r)) + " " + itoa(cpuPeriod)
}

// cpuWeight makes one CPU weigh 100, the default.
func cpuWeight(r env.Resources) string {
	if r.CPUMillis <= 0 {
		return ""
	}
	return itoa(min(max(r.CPUMillis/10, 1), 10_000))
}

func cpuPeriodV1(r env.Resources) string {
	if r.CPUMillis <= 0 {
		return ""
	}
	return itoa(cpuPeriod)
}

func cpuQuotaV1(r env.Resources) string {
	if r.CPUMillis <= 0 {
		return ""
	}
	return itoa(cpuQuota(r))
}

func cpuSharesV1(r env.Resources) string {
	if r.CPUMillis <= 0 {
		return ""
	}
	return itoa(max(r.CPUMillis*1024/1000, 2))
}

func memoryMax(r env.Resources) string { return positive(r.MemoryBytes) }
func pidsMax(r env.Resources) string   { return positive(r.PIDs) }

// noSwap: a limit that swap extends is no limit, and an environment's memory
// holds secrets.
func noSwap(r env.Resources) string {
	if r.MemoryBytes <= 0 {
		return ""
	}
	return "0"
}

func positive(v int64) string {
	if v <= 0 {
		return ""
	}
	return itoa(v)
}

func itoa(v int64) string { return strconv.FormatInt(v, 10) }
