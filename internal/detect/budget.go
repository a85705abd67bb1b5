package detect

import (
	"fmt"
	"sync"

	"hearth/internal/env"
)

// budgetWatch follows the kernel's counts of every slot.
type budgetWatch struct {
	// round is held while one slot's counts are read and noted, so that none is
	// noted again after its slot has gone. It guards nothing; mu is taken under it.
	round sync.Mutex

	mu    sync.Mutex // guards all below
	last  map[uint64]sensorCounts
	total sensorCounts // of slots that are gone and, up to last, of the others
}

// advance notes a slot's counts and returns what is new in them.
func (w *budgetWatch) advance(cgroup uint64, now sensorCounts) (delta sensorCounts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == nil {
		w.last = map[uint64]sensorCounts{}
	}
	was := w.last[cgroup]
	for i := range now {
		delta[i] = fates{
			emitted: now[i].emitted - was[i].emitted,
			shed:    now[i].shed - was[i].shed,
			lost:    now[i].lost - was[i].lost,
		}
		w.total[i].emitted += delta[i].emitted
		w.total[i].shed += delta[i].shed
		w.total[i].lost += delta[i].lost
	}
	w.last[cgroup] = now
	return delta
}

func (w *budgetWatch) closed(cgroup uint64, final sensorCounts) {
	w.advance(cgroup, final)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.last, cgroup)
}

func (w *budgetWatch) totals() sensorCounts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

// checkBudgets makes a finding of every slot that lost events since the last
// time.
func (e *Engine) checkBudgets() {
	for _, b := range e.subjects.list() {
		for i, d := range e.newCounts(b) {
			if d.shed+d.lost == 0 {
				continue
			}
			e.report(finding{
				subject: b, rule: ruleFlood, severity: env.SeverityMedium, ceiling: env.ResponseAlert,
				detail: fmt.Sprintf("%s events not seen: %d over the budget, %d lost", sensorNames[i], d.shed, d.lost),
				at:     e.mono(),
			})
		}
	}
}

// newCounts is what a slot's counts have grown by; nothing for one that was
// unbound meanwhile.
func (e *Engine) newCounts(b *bound) (delta sensorCounts) {
	e.budget.round.Lock()
	defer e.budget.round.Unlock()
	if e.subjects.cgroup(b.CgroupID) != b {
		return delta
	}
	now, err := e.kernel.counts(b.CgroupID)
	if err != nil {
		return delta
	}
	return e.budget.advance(b.CgroupID, now)
}

// lastCounts notes what a slot that was unbound has counted since.
func (e *Engine) lastCounts(b *bound) {
	e.budget.round.Lock()
	defer e.budget.round.Unlock()
	if c, err := e.kernel.counts(b.CgroupID); err == nil {
		e.budget.closed(b.CgroupID, c)
	}
}
