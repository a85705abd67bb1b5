package env

import (
	"fmt"
	"math/bits"
)

// Resources are the limits of one environment. Of CPU, memory and PIDs zero
// means the default of the node's configuration, never "unlimited". The others
// are a class's to ask for: zero is what their comments say.
type Resources struct {
	CPUMillis int64 // thousandths of one CPU
	// CPUBurstMillis may be used beyond CPUMillis for short times, out of what was
	// left unused before; at most CPUMillis. 0 is none.
	CPUBurstMillis int64 `json:",omitempty"`
	// CPUWeight is the share beside other environments on a busy node, 1 to
	// 10,000; 0 follows from CPUMillis: 100 for one CPU.
	CPUWeight int64 `json:",omitempty"`

	MemoryBytes int64
	// MemoryHighBytes slows an environment down that uses more, and takes memory
	// back from it; at most MemoryBytes. 0 is no such mark.
	MemoryHighBytes int64 `json:",omitempty"`
	SwapBytes       int64 `json:",omitempty"` // beside MemoryBytes; 0 is none

	PIDs int64
	IO   IOLimits `json:",omitzero"`
	// DiskBytes bounds what the environment's own files take, on each filesystem that
	// holds some. 0 is no bound.
	DiskBytes int64 `json:",omitempty"`
	// OpenFiles bounds the descriptors of each process; 0 is as many as the agent
	// may give.
	OpenFiles int64 `json:",omitempty"`
}

// IOLimits bound what an environment reads from and writes to each block device
// that holds environments' files. Zero is no limit.
type IOLimits struct {
	ReadBytes, WriteBytes int64 // a second
	ReadOps, WriteOps     int64 // a second
}

// Limits are those of its resources that one environment may have otherwise than
// its class. Zero leaves what is there.
type Limits struct {
	CPUMillis      int64 `json:"cpuMillis,omitempty"`
	MemoryBytes    int64 `json:"memoryBytes,omitempty"`
	CPUBurstMillis int64 `json:"cpuBurstMillis,omitempty"` // NoBurst takes it away
}

// NoBurst is a Limits' burst for none at all.
const NoBurst = -1

// Bounds of CPU and memory limits. The lower ones are what envinit and one shell
// need.
const (
	MinCPUMillis   = 10
	MaxCPUMillis   = 4096 * 1000
	MinMemoryBytes = 16 << 20
	MaxMemoryBytes = 1 << 50
)

// Merge is l with what n says in place of its own.
func (l Limits) Merge(n Limits) Limits {
	if n.CPUMillis != 0 {
		l.CPUMillis = n.CPUMillis
	}
	if n.MemoryBytes != 0 {
		l.MemoryBytes = n.MemoryBytes
	}
	if n.CPUBurstMillis != 0 {
		l.CPUBurstMillis = n.CPUBurstMillis
	}
	return l
}

// Check refuses with ErrInvalid what no environment can have.
func (l Limits) Check() error {
	switch {
	case l.CPUMillis != 0 && (l.CPUMillis < MinCPUMillis || l.CPUMillis > MaxCPUMillis):
		return fmt.Errorf("%w: cpu of %dm: want %dm to %dm (thousandths of a CPU)", ErrInvalid, l.CPUMillis, MinCPUMillis, MaxCPUMillis)
	case l.MemoryBytes != 0 && (l.MemoryBytes < MinMemoryBytes || l.MemoryBytes > MaxMemoryBytes):
		return fmt.Errorf("%w: memory of %d bytes: want %d to %d", ErrInvalid, l.MemoryBytes, int64(MinMemoryBytes), int64(MaxMemoryBytes))
	case l.CPUBurstMillis < NoBurst || l.CPUBurstMillis > MaxCPUMillis:
		return fmt.Errorf("%w: cpu burst of %dm: want 0m to %dm (thousandths of a CPU)", ErrInvalid, l.CPUBurstMillis, MaxCPUMillis)
	}
	return nil
}

// With is r as l changes it. The mark of memory keeps its share of the limit. A
// burst that nobody asked for now shrinks with the CPU; one that l asks for and
// that is above the CPU is ErrInvalid.
func (r Resources) With(l Limits) (Resources, error) {
	if l.CPUMillis != 0 {
		r.CPUMillis = l.CPUMillis
	}
	switch {
	case l.CPUBurstMillis == NoBurst:
		r.CPUBurstMillis = 0
	case l.CPUBurstMillis > r.CPUMillis:
		return Resources{}, fmt.Errorf("%w: cpu burst of %dm is above the cpu of %dm: the kernel lets at most as much be saved; raise the cpu, or ask for less", ErrInvalid, l.CPUBurstMillis, r.CPUMillis)
	case l.CPUBurstMillis != 0:
		r.CPUBurstMillis = l.CPUBurstMillis
	}
	r.CPUBurstMillis = min(r.CPUBurstMillis, r.CPUMillis)
	if l.MemoryBytes != 0 {
		r.MemoryHighBytes = scaled(r.MemoryHighBytes, l.MemoryBytes, r.MemoryBytes)
		r.MemoryBytes = l.MemoryBytes
	}
	return r, nil
}

// scaled is v*to/from without overflow.
func scaled(v, to, from int64) int64 {
	if v <= 0 || from <= 0 {
		return v
	}
	v = min(v, from)
	hi, lo := bits.Mul64(uint64(v), uint64(to))
	q, _ := bits.Div64(hi, lo, uint64(from)) // v <= from, so that it fits
	return int64(q)
}

// Resized is what have becomes when want is asked for, and what r is by that. A
// burst that want does not name shrinks with the CPU.
func (r Resources) Resized(have, want Limits) (Limits, Resources, error) {
	l := have.Merge(want)
	cpu := l.CPUMillis
	if cpu == 0 {
		cpu = r.CPUMillis
	}
	if want.CPUBurstMillis == 0 {
		l.CPUBurstMillis = min(l.CPUBurstMillis, cpu)
	}
	out, err := r.With(l)
	return l, out, err
}
