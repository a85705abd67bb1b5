package fleet

import (
	"sync"

	"hearth/internal/env"
)

// lanes make the reading, storing and showing of one record one step: those of the
// same record come one after the other, and those of different records pass each
// other while a store takes its time. Nobody who is in a lane enters another one.
type lanes struct {
	mu    sync.Mutex // guards inUse
	inUse map[env.ID]*lane
}

type lane struct {
	taken chan struct{} // has one element if somebody is in the lane
	users int           // in it or before it; guarded by lanes.mu
}

func newLanes() *lanes { return &lanes{inUse: map[env.ID]*lane{}} }

// enter waits until the record's lane is free, and takes it until leave is called.
func (l *lanes) enter(id env.ID) (leave func()) {
	l.mu.Lock()
	here := l.inUse[id]
	if here == nil {
		here = &lane{taken: make(chan struct{}, 1)}
		l.inUse[id] = here
	}
	here.users++
	l.mu.Unlock()
	here.taken <- struct{}{}
	return func() {
		<-here.taken
		l.mu.Lock()
		defer l.mu.Unlock()
		if here.users--; here.users == 0 {
			delete(l.inUse, id)
		}
	}
}
