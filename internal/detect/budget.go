package detect

import (
	"fmt"
	"sync"

	"hearth/internal/env"
)

// budgetWatch follows the kernel's counts of every slot.
type budgetWatch struct {
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
		now, err := e.kernel.counts(b.CgroupID)
		if err != nil { // unbound meanwhile
			continue
		}
		delta := e.budget.advance(b.CgroupID, now)
		for i, d := range delta {
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
