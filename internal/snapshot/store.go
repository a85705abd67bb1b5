package snapshot

import "time"

// Config sets up a store. Zero limits mean the defaults of DefaultLimits.
type Config struct {
	Dir string
	// ReadOnly opens the store beside the process that owns it: nothing is
	// locked, swept or changed.
	ReadOnly bool
	Limits   Limits
}

// Limits bound what one capture takes from a hostile tree and how long it may
// hold it frozen.
type Limits struct {
	Entries   int64 // names in all roots
	NameBytes int64 // of names, links' targets and attributes, which are held in memory
	Bytes     int64 // data of all files
	FileBytes int64 // length of one file
	Depth     int   // directories below each other

	// Freeze is the longest time that one freeze may take; a capture that
	// needs more thaws, copies again while running, and gives up after three.
	Freeze time.Duration
	// StageMemory is how much changed data is held in memory between the
	// freeze and the thaw; the rest goes to staging files.
	StageMemory int64
	// Workers is the number of threads of a walk, a capture or a restore.
	Workers int
}

// DefaultLimits are the limits of a node whose configuration says nothing.
func DefaultLimits() Limits {
	return Limits{
		Entries:     2_000_000,
		NameBytes:   128 << 20,
		Bytes:       256 << 30,
		FileBytes:   64 << 30,
		Depth:       256,
		Freeze:      2 * time.Second,
		StageMemory: 32 << 20,
		Workers:     2,
	}
}

// Limits beyond these limit nothing, and sums with them would overflow.
const (
	mostEntries = 1 << 40
	mostBytes   = 1 << 60
)

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	set := func(v *int64, def int64) {
		if *v <= 0 {
			*v = def
		}
	}
	set(&l.Entries, d.Entries)
	set(&l.NameBytes, d.NameBytes)
	set(&l.Bytes, d.Bytes)
	set(&l.FileBytes, d.FileBytes)
	set(&l.StageMemory, d.StageMemory)
	l.Entries, l.Bytes = min(l.Entries, mostEntries), min(l.Bytes, mostBytes)
	if l.Depth <= 0 {
		l.Depth = d.Depth
	}
	if l.Freeze <= 0 {
		l.Freeze = d.Freeze
	}
	if l.Workers <= 0 {
		l.Workers = d.Workers
	}
	return l
}
