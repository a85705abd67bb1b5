package config

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/resource"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

func resourcesOf(r v1alpha1.Resources) env.Resources {
	out := env.Resources{
		CPUMillis: millisOf(r.CPU), CPUBurstMillis: millisOf(r.CPUBurst), CPUWeight: valueOf(r.CPUWeight),
		MemoryBytes: bytesOf(r.Memory), MemoryHighBytes: bytesOf(r.MemoryHigh), SwapBytes: bytesOf(r.Swap),
		PIDs: valueOf(r.PIDs), DiskBytes: bytesOf(r.Disk), OpenFiles: valueOf(r.OpenFiles),
	}
	if io := r.IO; io != nil {
		out.IO = env.IOLimits{
			ReadBytes: bytesOf(io.ReadBytes), WriteBytes: bytesOf(io.WriteBytes),
			ReadOps: valueOf(io.ReadOps), WriteOps: valueOf(io.WriteOps),
		}
	}
	return out
}

func millisOf(q *resource.Quantity) int64 {
	if q == nil {
		return 0
	}
	return q.MilliValue()
}

func bytesOf(q *resource.Quantity) int64 {
	if q == nil {
		return 0
	}
	return q.Value()
}

func valueOf(v *int64) int64 {
	if v == nil {
		return 0
	}
	return *v
}

// LimitsOf are the limits that an Environment asks for, env.ErrInvalid if nothing
// can have them.
func LimitsOf(r *v1alpha1.EnvironmentResources) (env.Limits, error) {
	if r == nil {
		return env.Limits{}, nil
	}
	l := env.Limits{CPUMillis: millisOf(r.CPU), MemoryBytes: bytesOf(r.Memory), CPUBurstMillis: millisOf(r.CPUBurst)}
	if l.CPUBurstMillis == 0 && r.CPUBurst != nil {
		l.CPUBurstMillis = env.NoBurst
	}
	for name, q := range map[string]*resource.Quantity{"cpu": r.CPU, "memory": r.Memory} {
		if q != nil && q.Sign() <= 0 {
			return env.Limits{}, fmt.Errorf("%w: resources.%s of %s: leave it out for the class's", env.ErrInvalid, name, q)
		}
	}
	if r.CPUBurst != nil && r.CPUBurst.Sign() < 0 {
		return env.Limits{}, fmt.Errorf("%w: resources.cpuBurst of %s", env.ErrInvalid, r.CPUBurst)
	}
	return l, l.Check()
}

// ResourcesOf is what an Environment's status says of limits in force.
func ResourcesOf(l env.Limits) *v1alpha1.EnvironmentResources {
	if l == (env.Limits{}) {
		return nil
	}
	out := &v1alpha1.EnvironmentResources{}
	if l.CPUMillis > 0 {
		out.CPU = resource.NewMilliQuantity(l.CPUMillis, resource.DecimalSI)
	}
	if l.MemoryBytes > 0 {
		out.Memory = resource.NewQuantity(l.MemoryBytes, resource.BinarySI)
	}
	if l.CPUBurstMillis > 0 {
		out.CPUBurst = resource.NewMilliQuantity(l.CPUBurstMillis, resource.DecimalSI)
	}
	return out
}

// Bounds of what only classes ask for.
const (
	minOpenFiles = 64
	maxOpenFiles = 1 << 20 // fs.nr_open's default, fs/file.c
	maxWeight    = 10_000  // CGROUP_WEIGHT_MAX, include/linux/cgroup.h
	minIOBytes   = 64 << 10
	minDisk      = 16 << 20
	maxIOOps     = 1<<32 - 1
)

// checkResources is told the manifest's own words, since absent and zero differ.
func checkResources(l *faultList, r v1alpha1.Resources) {
	const at = "spec.resources"
	got := resourcesOf(r)
	if r.CPU != nil {
		checkCPU(l, at+".cpu", got.CPUMillis)
	}
	if r.Memory != nil {
		checkMemory(l, at+".memory", got.MemoryBytes)
	}
	if r.PIDs != nil {
		checkPIDs(l, at+".pids", got.PIDs)
	}
	part := func(name string, q *resource.Quantity, got int64, of string, whole *resource.Quantity, most int64, unit string) {
		switch {
		case q == nil:
		case whole == nil:
			l.addf(at+"."+name, "needs %s.%s beside it, of which it is at most the whole", at, of)
		case got < 1 || got > most:
			l.addf(at+"."+name, "%d%s: want 1%s to what %s is, %d%s", got, unit, unit, of, most, unit)
		}
	}
	part("cpuBurst", r.CPUBurst, got.CPUBurstMillis, "cpu", r.CPU, got.CPUMillis, "m")
	part("memoryHigh", r.MemoryHigh, got.MemoryHighBytes, "memory", r.Memory, got.MemoryBytes, " bytes")
	between := func(name string, v *int64, lo, hi int64) {
		if v != nil && (*v < lo || *v > hi) {
			l.addf(at+"."+name, "%d: want %d to %d", *v, lo, hi)
		}
	}
	between("cpuWeight", r.CPUWeight, 1, maxWeight)
	between("openFiles", r.OpenFiles, minOpenFiles, maxOpenFiles)
	if r.Swap != nil && (r.Swap.Sign() < 0 || got.SwapBytes > maxMemory) {
		l.addf(at+".swap", "%s: want 0 to %dTi", r.Swap, maxMemory>>40)
	}
	if r.Disk != nil && (got.DiskBytes < minDisk || got.DiskBytes > maxMemory) {
		l.addf(at+".disk", "%s: want %dMi to %dTi", r.Disk, minDisk>>20, maxMemory>>40)
	}
	checkIO(l, at+".io", r.IO)
}

func checkIO(l *faultList, at string, io *v1alpha1.IO) {
	if io == nil {
		return
	}
	if *io == (v1alpha1.IO{}) {
		l.addf(at, "is empty: say readBytes, writeBytes, readOps or writeOps, or leave it out")
	}
	for name, q := range map[string]*resource.Quantity{"readBytes": io.ReadBytes, "writeBytes": io.WriteBytes} {
		if q != nil && (q.Value() < minIOBytes || q.Value() > maxMemory) {
			l.addf(at+"."+name, "%s a second: want %dKi to %dTi", q, minIOBytes>>10, maxMemory>>40)
		}
	}
	for name, v := range map[string]*int64{"readOps": io.ReadOps, "writeOps": io.WriteOps} {
		if v != nil && (*v < 1 || *v > maxIOOps) {
			l.addf(at+"."+name, "%d a second: want 1 to %d", *v, int64(maxIOOps))
		}
	}
}
