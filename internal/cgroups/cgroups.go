package cgroups

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/env"
)

// Config says where the tree is.
type Config struct {
	Root  string // our root below each hierarchy: "/hearth"
	Mount string // "" is /sys/fs/cgroup
	// Files are paths on the file systems that hold environments' files, for the
	// limits of input and output; empty is none.
	Files []string
	// Parent, if set, has made the cgroup that Root is in, and shares out what is
	// beside it; without one all of Root is made here.
	Parent parent
}

// parent is the manager of the cgroup above our root.
type parent interface {
	// Ensure makes that cgroup unless it is there.
	Ensure(ctx context.Context) error
	// SetWeight is its share of the CPU beside others, as cpu.weight has it.
	SetWeight(ctx context.Context, weight int64) error
}

// Layout is how this node mounts its cgroups.
type Layout string

// The layouts.
const (
	LayoutUnified Layout = "unified" // pure cgroup v2
	LayoutHybrid  Layout = "hybrid"  // v1 controllers, cgroup2 beside them for the core files
)

// containerName is the child of a slot's cgroup that the container lives in.
const containerName = "ctr"

// Usage is what a slot uses now, its descendants included. A field that this
// kernel does not tell is zero.
type Usage struct {
	CPU         time.Duration // since the cgroup was made
	Throttled   time.Duration // time that the CPU limit held processes back
	MemoryBytes int64         // page cache included
	MemoryPeak  int64
	AnonBytes   int64 // memory that cannot be dropped
	PIDs        int64
	OOMKills    int64 // processes killed for the memory limit
	// PIDsRefused is how often the process limit refused a fork. In cgroup v1,
	// and in v2 before Linux 6.11, forks in cgroups that the environment itself
	// made below its container's are not counted.
	PIDsRefused int64
}

// FreezingError says that a freeze did not complete in time: the named
// processes have not stopped. It matches env.ErrState. The cgroup is left
// freezing; Thaw undoes it.
type FreezingError struct {
	Slot env.SlotID
	PIDs []int // at most 16; those seen in uninterruptible sleep or running, else all
}

func (e *FreezingError) Error() string {
	return fmt.Sprintf("slot %s is still freezing: processes %v have not stopped; thaw it, or kill it if they hang in the kernel", e.Slot, e.PIDs)
}

// Is makes errors.Is(err, env.ErrState) true.
func (e *FreezingError) Is(target error) bool { return target == env.ErrState }
