package warm

import (
	"fmt"

	"hearth/internal/env"
)

// idRanges hands out blocks of env.IDRangeSize host ids. It is guarded by the
// Node's mutex.
type idRanges struct {
	base uint32 // of the lowest block
	used []bool
	next int // where the search goes on: a freed block rests as long as possible
}

func newIDRanges(base uint32, count int) *idRanges {
	return &idRanges{base: base, used: make([]bool, count)}
}

func (r *idRanges) take() (env.IDRange, error) {
	for i := range r.used {
		n := (r.next + i) % len(r.used)
		if !r.used[n] {
			r.used[n] = true
			r.next = n + 1
			return env.IDRange{Base: r.base + uint32(n)*env.IDRangeSize, Size: env.IDRangeSize}, nil
		}
	}
	return env.IDRange{}, fmt.Errorf("%w: all %d blocks of user ids are in use; raise ids.count", env.ErrExhausted, len(r.used))
}

// adopt marks a block that a kept slot uses. A block outside of the configured
// range (the configuration changed) needs no mark.
func (r *idRanges) adopt(ids env.IDRange) {
	if n, ok := r.index(ids); ok {
		r.used[n] = true
	}
}

func (r *idRanges) put(ids env.IDRange) {
	if n, ok := r.index(ids); ok {
		r.used[n] = false
	}
}

// inUse is how many blocks are taken.
func (r *idRanges) inUse() int {
	n := 0
	for _, used := range r.used {
		if used {
			n++
		}
	}
	return n
}

func (r *idRanges) index(ids env.IDRange) (int, bool) {
	if ids.Base < r.base || (ids.Base-r.base)%env.IDRangeSize != 0 {
		return 0, false
	}
	n := int((ids.Base - r.base) / env.IDRangeSize)
	return n, n < len(r.used)
}
