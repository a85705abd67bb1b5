package detect

import (
	"sync"
	"time"

	"hearth/internal/detect/flow"
	"hearth/internal/env"
)

// finding is a rule's match before anything is done about it.
type finding struct {
	subject  *bound
	rule     string
	severity env.Severity
	ceiling  env.Response
	detail   string
	key      *flow.Key // of a flow; nil for other events
	pid      int       // known for execs and connects
	command  string
	at       time.Duration // CLOCK_MONOTONIC of the event
}

type caseKey struct {
	slot env.SlotID
	rule string
}

// openCase stands for all findings of one rule in one slot in a window.
type openCase struct {
	opened  time.Duration
	retryAt time.Duration // when a response that did not work may be tried again; 0: never
	busy    bool          // a worker has it
	waiting uint64        // findings that came before there was a detection to count them
	kept    *kept
}

// desk decides which findings are news. It is a pure core: time goes in.
type desk struct {
	window time.Duration

	mu    sync.Mutex // guards cases and their fields
	cases map[caseKey]*openCase
}

// retryAfter is the time before a response that failed is tried again.
const retryAfter = time.Second

// receive counts a finding and reports whether it needs a worker.
func (d *desk) receive(slot env.SlotID, rule string, now time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := caseKey{slot, rule}
	c := d.cases[key]
	if c != nil && !c.busy && now-c.opened >= d.window {
		c = nil
	}
	if c == nil {
		d.cases[key] = &openCase{opened: now, busy: true}
		return true
	}
	if c.kept != nil {
		c.kept.count.Add(1)
	} else {
		c.waiting++
	}
	if !c.busy && c.retryAt != 0 && now >= c.retryAt {
		c.busy = true
		return true
	}
	return false
}

// settle records what a worker made of a finding: its detection, and whether
// the response is to be tried again at the next finding.
func (d *desk) settle(slot env.SlotID, rule string, k *kept, failed bool, now time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.cases[caseKey{slot, rule}]
	if c == nil { // unbound meanwhile
		return
	}
	c.busy = false
	k.count.Add(c.waiting)
	c.waiting, c.kept, c.retryAt = 0, k, 0
	if failed {
		c.retryAt = now + retryAfter
	}
}

// abandon closes a case that nobody could take up, so that the next finding
// opens it again.
func (d *desk) abandon(slot env.SlotID, rule string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.cases, caseKey{slot, rule})
}

// sweep forgets the cases whose window is over.
func (d *desk) sweep(now time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, c := range d.cases {
		if !c.busy && now-c.opened >= d.window {
			delete(d.cases, key)
		}
	}
}

// forget drops a slot's cases.
func (d *desk) forget(slot env.SlotID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key := range d.cases {
		if key.slot == slot {
			delete(d.cases, key)
		}
	}
}
