package cgroups

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"hearth/internal/env"
)

// cpuPeriod is the CFS period in microseconds; the kernel's default.
const cpuPeriod = 100_000

// minQuota is the smallest CFS quota that the kernel takes (1 ms).
const minQuota = 1_000

// limit is one file of one controller. The files of a version are written in
// the table's order where limits rise, and in the opposite one where they fall: then
// the kernel takes those that depend on each other.
type limit struct {
	controller string
	version    int
	file       string
	optional   bool // the kernel may be built without it
	value      func(env.Resources) string
	// perDevice files are written once for each device that holds environments'
	// files, with its number before the value.
	perDevice bool
}

// limitTable says which file carries which limit. A value of "" leaves the
// file as it is. Sources: Documentation/admin-guide/cgroup-v2.rst,
// cgroup-v1/ and Documentation/scheduler/sched-bwc.rst.
var limitTable = []limit{
	{"cpu", 2, "cpu.max", false, cpuMax, false},
	{"cpu", 2, "cpu.max.burst", true, cpuBurst, false},
	{"cpu", 2, "cpu.weight", true, cpuWeight, false},
	{"memory", 2, "memory.max", false, memoryMax, false},
	{"memory", 2, fileMemoryHigh, false, memoryHigh, false},
	{"memory", 2, "memory.swap.max", true, swapMax, false},
	{"pids", 2, "pids.max", false, pidsMax, false},
	{"io", 2, "io.max", true, ioMax, true},

	{"cpu", 1, "cpu.cfs_period_us", false, cpuPeriodV1, false},
	{"cpu", 1, "cpu.cfs_quota_us", false, cpuQuotaV1, false},
	{"cpu", 1, "cpu.cfs_burst_us", true, cpuBurst, false},
	{"cpu", 1, "cpu.shares", true, cpuSharesV1, false},
	{"memory", 1, "memory.memsw.limit_in_bytes", true, memoryMax, false},
	{"memory", 1, "memory.limit_in_bytes", false, memoryMax, false},
	{"pids", 1, "pids.max", false, pidsMax, false},
	{"blkio", 1, "blkio.throttle.read_bps_device", true, ioV1(func(l env.IOLimits) int64 { return l.ReadBytes }), true},
	{"blkio", 1, "blkio.throttle.write_bps_device", true, ioV1(func(l env.IOLimits) int64 { return l.WriteBytes }), true},
	{"blkio", 1, "blkio.throttle.read_iops_device", true, ioV1(func(l env.IOLimits) int64 { return l.ReadOps }), true},
	{"blkio", 1, "blkio.throttle.write_iops_device", true, ioV1(func(l env.IOLimits) int64 { return l.WriteOps }), true},
}

const fileMemoryHigh = "memory.high"

// need is a limit that not every node can set, and what carries it. A limit that
// was asked for and cannot be set is an error, never left out.
type need struct {
	feature string
	asked   func(env.Resources) bool
	files   []string // the first that the node has carries it; "" in a controller's own name
	needs   string
}

// needTable names a file as "controller/version/file"; an empty file is satisfied
// by the controller alone.
var needTable = []need{
	{"cgroup controller cpu", func(r env.Resources) bool { return r.CPUMillis > 0 || r.CPUWeight > 0 }, []string{"cpu/2/", "cpu/1/"}, needsController},
	{"cgroup controller memory", func(r env.Resources) bool { return r.MemoryBytes > 0 }, []string{"memory/2/", "memory/1/"}, needsController},
	{"cgroup controller pids", func(r env.Resources) bool { return r.PIDs > 0 }, []string{"pids/2/", "pids/1/"}, needsController},
	{"resources.cpuBurst", func(r env.Resources) bool { return r.CPUBurstMillis > 0 }, []string{"cpu/2/cpu.max.burst", "cpu/1/cpu.cfs_burst_us"}, "Linux 5.14 with CONFIG_CFS_BANDWIDTH"},
	{"resources.memoryHigh", func(r env.Resources) bool { return r.MemoryHighBytes > 0 }, []string{"memory/2/"}, "the memory controller in cgroup v2"},
	{"resources.swap", func(r env.Resources) bool { return r.SwapBytes > 0 }, []string{"memory/2/memory.swap.max"}, "the memory controller in cgroup v2, in a kernel with swap"},
	{"resources.io", func(r env.Resources) bool { return r.IO != (env.IOLimits{}) }, []string{"io/2/io.max", "blkio/1/blkio.throttle.read_bps_device"}, "the controller io (in cgroup v1: blkio) in a kernel with CONFIG_BLK_DEV_THROTTLING"},
}

const needsDevice = "environments' files on a block device: "

const needsController = "the controller enabled in the kernel and handed down to the agent"

// supports refuses what of r this node cannot set. has tells whether a controller
// of a version is there, with a file if that is not empty; devices are those that
// hold environments' files, or the reason why there are none.
func supports(r env.Resources, has func(controller string, version int, file string) bool, devices []string, noDevices string) error {
	for _, n := range needTable {
		there := func(f string) bool {
			p := strings.SplitN(f, "/", 3)
			return has(p[0], int(p[1][0]-'0'), p[2])
		}
		if n.asked(r) && !slices.ContainsFunc(n.files, there) {
			return &env.UnsupportedError{Feature: n.feature, Needs: n.needs}
		}
	}
	if r.IO != (env.IOLimits{}) && len(devices) == 0 {
		return &env.UnsupportedError{Feature: "resources.io", Needs: needsDevice + noDevices}
	}
	return nil
}

func cpuQuota(r env.Resources) int64 { return max(r.CPUMillis*cpuPeriod/1000, minQuota) }

func cpuMax(r env.Resources) string {
	if r.CPUMillis <= 0 {
		return ""
	}
	return itoa(cpuQuota(r)) + " " + itoa(cpuPeriod)
}

// cpuBurst is in microseconds, as the quota; the kernel takes none above it.
func cpuBurst(r env.Resources) string {
	if r.CPUMillis <= 0 {
		return ""
	}
	return itoa(min(max(r.CPUBurstMillis, 0)*cpuPeriod/1000, cpuQuota(r)))
}

// cpuWeight makes one CPU weigh 100, the default, unless the class says more.
func cpuWeight(r env.Resources) string {
	switch {
	case r.CPUWeight > 0:
		return itoa(min(r.CPUWeight, 10_000))
	case r.CPUMillis <= 0:
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

// cpuSharesV1 makes one CPU weigh 1024, the default.
func cpuSharesV1(r env.Resources) string {
	switch {
	case r.CPUWeight > 0:
		return itoa(max(min(r.CPUWeight, 10_000)*1024/100, 2))
	case r.CPUMillis <= 0:
		return ""
	}
	return itoa(max(r.CPUMillis*1024/1000, 2))
}

func memoryMax(r env.Resources) string { return positive(r.MemoryBytes) }
func pidsMax(r env.Resources) string   { return positive(r.PIDs) }

func memoryHigh(r env.Resources) string {
	switch {
	case r.MemoryBytes <= 0:
		return ""
	case r.MemoryHighBytes <= 0:
		return "max"
	}
	return itoa(min(r.MemoryHighBytes, r.MemoryBytes))
}

// swapMax is none unless the class asks for some: a limit that swap extends is
// another limit, and an environment's memory holds secrets.
func swapMax(r env.Resources) string {
	if r.MemoryBytes <= 0 {
		return ""
	}
	return itoa(max(r.SwapBytes, 0))
}

func ioMax(r env.Resources) string {
	if r.IO == (env.IOLimits{}) {
		return ""
	}
	rate := func(v int64) string {
		if v <= 0 {
			return "max"
		}
		return itoa(v)
	}
	return fmt.Sprintf("rbps=%s wbps=%s riops=%s wiops=%s", rate(r.IO.ReadBytes), rate(r.IO.WriteBytes), rate(r.IO.ReadOps), rate(r.IO.WriteOps))
}

func ioV1(of func(env.IOLimits) int64) func(env.Resources) string {
	return func(r env.Resources) string { return positive(of(r.IO)) }
}

func positive(v int64) string {
	if v <= 0 {
		return ""
	}
	return itoa(v)
}

func itoa(v int64) string { return strconv.FormatInt(v, 10) }
