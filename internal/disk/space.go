package disk

import "fmt"

// Space is what a filesystem has, as statfs(2) tells it.
type Space struct {
	Bytes     uint64 // its size
	FreeBytes uint64 // available to ordinary users
	Files     uint64 // how many it can have; 0 if it sets no bound
	FreeFiles uint64
}

// Mark is how much is kept free: a part of the whole, or an amount.
type Mark struct {
	Percent int    // of the whole; 0 if Amount counts
	Amount  uint64 // bytes or files
}

// of is the mark on a whole.
func (m Mark) of(whole uint64) uint64 {
	if m.Percent > 0 {
		return whole/100*uint64(m.Percent) + whole%100*uint64(m.Percent)/100
	}
	return m.Amount
}

// resource is what a filesystem can be short of.
type resource int

const (
	bytes resource = iota
	files
)

func (r resource) String() string {
	if r == files {
		return "inodes"
	}
	return "bytes"
}

// level is one resource of one filesystem.
type level struct {
	path        string // of the filesystem, as configured
	resource    resource
	whole, free uint64
	keep        uint64
	soon        uint64 // what slots will have taken by the next look, as fast as they are
}

// levelsOf are what there is to judge of a filesystem.
func levelsOf(path string, s Space, keepBytes, keepFiles Mark) []level {
	out := []level{{path: path, resource: bytes, whole: s.Bytes, free: s.FreeBytes, keep: keepBytes.of(s.Bytes)}}
	if s.Files > 0 {
		out = append(out, level{path: path, resource: files, whole: s.Files, free: s.FreeFiles, keep: keepFiles.of(s.Files)})
	}
	return out
}

// short reports whether too little is free, or will be before the next look. Once
// it was, an eighth of the mark more must be free before it no longer is.
func (l level) short(was bool) bool {
	if l.keep == 0 {
		return false
	}
	if was {
		return l.near()
	}
	return l.free < l.keep+l.soon
}

// near reports whether it may be short soon.
func (l level) near() bool { return l.free < l.keep+l.keep/8 }

// tolerated is how much may be written each second while it is short: within the
// first half of a sixteenth below the mark, what uses up the rest of that half in
// a minute, or in an hour if nothing is left of it; nothing in the last quarter.
func (l level) tolerated() float64 {
	half := l.keep / 32
	slow, none := l.keep-half, l.keep-half-half/2
	switch trickle := float64(half) / 3600; {
	case l.free < none:
		return 0
	case l.free < slow:
		return trickle
	default:
		return max(float64(l.free-slow)/60, trickle)
	}
}

// ratio is the available part of the whole.
func (l level) ratio() float64 {
	if l.whole == 0 {
		return 0
	}
	return float64(l.free) / float64(l.whole)
}

// without is the level after so many bytes were written.
func (l level) without(n uint64) level {
	if l.resource == bytes {
		l.free -= min(n, l.free)
	}
	return l
}

func (l level) String() string {
	return fmt.Sprintf("this node's disk at %s has %.1f%% of its %s available, and %.1f%% is kept free; release environments, delete snapshots, or lower disk.%s",
		l.path, 100*l.ratio(), l.resource, 100*float64(l.keep)/float64(max(l.whole, 1)), l.setting())
}

func (l level) setting() string {
	if l.resource == files {
		return "keepFreeInodes"
	}
	return "keepFree"
}
