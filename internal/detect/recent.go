package detect

import (
	"context"
	"sync"
	"sync/atomic"

	"hearth/internal/env"
)

// kept is a detection whose count still rises.
type kept struct {
	detection env.Detection
	count     atomic.Uint64
}

func (k *kept) value() env.Detection {
	d := k.detection
	d.Count = k.count.Load()
	return d
}

// recent holds the last detections and tells new ones to subscribers.
type recent struct {
	size    int
	dropped atomic.Uint64 // by slow subscribers

	mu   sync.Mutex // guards all below
	ring []*kept    // the oldest first
	subs map[chan env.Detection]struct{}
}

func newRecent(size int) *recent {
	return &recent{size: size, subs: map[chan env.Detection]struct{}{}}
}

func (r *recent) add(k *kept) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ring) == r.size {
		r.ring = append(r.ring[:0], r.ring[1:]...)
	}
	r.ring = append(r.ring, k)
	d := k.value()
	for ch := range r.subs {
		// Never blocks: a subscriber that is behind loses this one.
		select {
		case ch <- d:
		default:
			r.dropped.Add(1)
		}
	}
}

func (r *recent) last(n int) []env.Detection {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n <= 0 || n > len(r.ring) {
		n = len(r.ring)
	}
	out := make([]env.Detection, n)
	for i, k := range r.ring[len(r.ring)-n:] {
		out[i] = k.value()
	}
	return out
}

// subscriberBacklog is how far a subscriber may be behind.
const subscriberBacklog = 64

func (r *recent) subscribe(ctx context.Context) <-chan env.Detection {
	ch := make(chan env.Detection, subscriberBacklog)
	r.mu.Lock()
	r.subs[ch] = struct{}{}
	r.mu.Unlock()
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		delete(r.subs, ch)
		r.mu.Unlock()
		close(ch) // nobody sends to what is not in subs
	})
	return ch
}
