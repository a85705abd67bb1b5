package fleet

import (
	"sync"
	"time"
)

// asideTime bounds how long a node waits for the answer to a report. What waits for
// the store longer goes on by itself: a node that gets no answers would fence
// itself.
const asideTime = 5 * time.Second

// aside runs fn in so many goroutines, and waits until they have ended, or for a
// time. Run waits for them to the end.
func (f *Fleet) aside(wait time.Duration, workers int, fn func()) (done bool) {
	f.mu.Lock()
	f.asides++
	f.mu.Unlock()
	ended := make(chan struct{})
	var all sync.WaitGroup
	for range workers {
		all.Go(fn)
	}
	go func() {
		defer f.asideEnded()
		all.Wait()
		close(ended)
	}()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ended:
		return true
	case <-t.C:
		return false
	}
}

func (f *Fleet) asideEnded() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asides--; f.asides == 0 && f.noAsides != nil {
		close(f.noAsides)
		f.noAsides = nil
	}
}

// awaitAsides waits until no aside runs.
func (f *Fleet) awaitAsides() {
	f.mu.Lock()
	if f.asides == 0 {
		f.mu.Unlock()
		return
	}
	if f.noAsides == nil {
		f.noAsides = make(chan struct{})
	}
	done := f.noAsides
	f.mu.Unlock()
	<-done
}
