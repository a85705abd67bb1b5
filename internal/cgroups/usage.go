package cgroups

import (
	"strconv"
	"strings"
	"time"
)

// reading is one number of Usage in one file of one controller.
type reading struct {
	controller string
	version    int
	file       string
	key        string // the line's first word in a "key value" file; "" is a file with one number
	// local readings are not summed by the kernel over descendants: the
	// container's own is added to the slot's.
	local bool
	// summedBy names a file beside it that only kernels have which do sum the
	// reading over descendants, although it is local on the others.
	summedBy string
	put      func(*Usage, int64)
}

func micros(v int64) time.Duration { return time.Duration(v) * time.Microsecond }

var usageTable = []reading{
	{"cpu", 2, "cpu.stat", "usage_usec", false, "", func(u *Usage, v int64) { u.CPU += micros(v) }},
	{"cpu", 2, "cpu.stat", "throttled_usec", false, "", func(u *Usage, v int64) { u.Throttled += micros(v) }},
	{"memory", 2, "memory.current", "", false, "", func(u *Usage, v int64) { u.MemoryBytes += v }},
	{"memory", 2, "memory.peak", "", false, "", func(u *Usage, v int64) { u.MemoryPeak += v }},
	{"memory", 2, "memory.stat", "anon", false, "", func(u *Usage, v int64) { u.AnonBytes += v }},
	{"memory", 2, "memory.events", "oom_kill", false, "", func(u *Usage, v int64) { u.OOMKills += v }},
	{"pids", 2, "pids.current", "", false, "", func(u *Usage, v int64) { u.PIDs += v }},
	// Before Linux 6.11 (kernel/cgroup/pids.c) a refused fork is counted in the
	// cgroup of the process that forked, whosever limit it hit; since then in the
	// cgroup whose limit it hit and all above, and pids.events.local is there.
	{"pids", 2, "pids.events", "max", true, "pids.events.local", func(u *Usage, v int64) { u.PIDsRefused += v }},

	{"cpuacct", 1, "cpuacct.usage", "", false, "", func(u *Usage, v int64) { u.CPU += time.Duration(v) }},
	{"cpu", 1, "cpu.stat", "throttled_time", true, "", func(u *Usage, v int64) { u.Throttled += time.Duration(v) }},
	{"memory", 1, "memory.usage_in_bytes", "", false, "", func(u *Usage, v int64) { u.MemoryBytes += v }},
	{"memory", 1, "memory.max_usage_in_bytes", "", false, "", func(u *Usage, v int64) { u.MemoryPeak += v }},
	{"memory", 1, "memory.stat", "total_rss", false, "", func(u *Usage, v int64) { u.AnonBytes += v }},
	{"memory", 1, "memory.oom_control", "oom_kill", true, "", func(u *Usage, v int64) { u.OOMKills += v }},
	{"pids", 1, "pids.current", "", false, "", func(u *Usage, v int64) { u.PIDs += v }},
	{"pids", 1, "pids.events", "max", true, "", func(u *Usage, v int64) { u.PIDsRefused += v }},
}

// number finds key's value in a flat keyed file, or the only number of a file
// if key is empty. It reports false if there is none.
func number(text, key string) (int64, bool) {
	for line := range strings.Lines(text) {
		name, value, keyed := strings.Cut(strings.TrimSpace(line), " ")
		if key == "" {
			name, value, keyed = "", name, true
		}
		if !keyed || name != key {
			continue
		}
		v, err := strconv.ParseInt(value, 10, 64)
		return v, err == nil
	}
	return 0, false
}
