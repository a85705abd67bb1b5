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

func (m Mark) String() string {
	if m.Percent > 0 {
		return fmt.Sprintf("%d%%", m.Percent)
	}
	return fmt.Sprint(m.Amount)
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
}

// levelsOf are what there is to judge of a filesystem.
func levelsOf(path string, s Space, keepBytes, keepFiles Mark) []level {
	out := []level{{path, bytes, s.Bytes, s.FreeBytes, keepBytes.of(s.Bytes)}}
	if s.Files > 0 {
		out = append(out, level{path, files, s.Files, s.FreeFiles, keepFiles.of(s.Files)})
	}
	return out
}

// short reports whether too little is free. Once it was, an eighth of the mark
// more must be free before it no longer is.
func (l level) short(was bool) bool {
	keep := l.keep
	if was {
		keep += keep / 8
	}
	return l.free < keep
}

// margin is the part of the mark within which slow writers are let be.
func (l level) margin() uint64 { return l.keep / 32 }

// tolerated is how much may be written each second: what uses up the rest of
// the margin in a minute.
func (l level) tolerated() float64 {
	floor := l.keep - l.margin()
	if l.free <= floor {
		return 0
	}
	return float64(l.free-floor) / 60
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
