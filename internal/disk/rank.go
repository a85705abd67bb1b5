package disk

import (
	"cmp"
	"slices"
	"time"

	"hearth/internal/env"
)

// Written is what a slot has written since it is watched.
type Written struct {
	Bytes uint64 // of pages made dirty and direct writes
	Files uint64 // made
}

// rate is how fast a slot takes what is short, each second.
type rate struct {
	slot env.SlotID
	pace float64
}

// fileBytes is what a file takes of the disk beside its content: its inode and
// its place in a directory, or, for a directory, a block.
const fileBytes = 4096

// rates compares two readings that are so far apart. A slot without an earlier
// reading began with nothing.
func rates(before, now map[env.SlotID]Written, apart time.Duration, r resource) []rate {
	out := make([]rate, 0, len(now))
	for slot, n := range now {
		b := before[slot]
		took := float64(n.Files - min(b.Files, n.Files))
		if r == bytes {
			took = float64(n.Bytes-min(b.Bytes, n.Bytes)) + fileBytes*took
		}
		if took > 0 {
			out = append(out, rate{slot, took / max(apart.Seconds(), 1e-3)})
		}
	}
	slices.SortFunc(out, func(a, b rate) int {
		return cmp.Or(cmp.Compare(b.pace, a.pace), cmp.Compare(a.slot, b.slot))
	})
	return out
}

// total is how fast all take it together.
func total(ranking []rate) (sum float64) {
	for _, r := range ranking {
		sum += r.pace
	}
	return sum
}

// excess are the fastest, without whom the others keep to what is tolerated.
// The ranking is by falling pace.
func excess(ranking []rate, tolerated float64) []rate {
	sum := total(ranking)
	for i, r := range ranking {
		if sum <= tolerated {
			return ranking[:i]
		}
		sum -= r.pace
	}
	return ranking
}
