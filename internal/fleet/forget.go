package fleet

import (
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// forgetBatch bounds what one transaction deletes and one hold of the lock
// looks at, so that claims pass in between.
const forgetBatch = 256

// dueAt is when a record is to be forgotten, or its claim given up; never, while
// it lives, while a placement is to be released, and while it says whose
// snapshots are whose.
func (f *Fleet) dueAt(r *Record) (time.Time, bool) {
	switch p := r.Environment.GetPhase(); {
	case p == hearthv1.Phase_PHASE_CLAIMING:
		return r.Changed.Add(f.cfg.AbandonAfter), true
	case !r.final() || len(r.Stale) > 0 || r.Snapshots:
		return time.Time{}, false
	case p == hearthv1.Phase_PHASE_FAILED && r.Ended:
		// Nobody was told of it. It is kept as long as a call to a node may last
		// and make it after all, so that it is then released and not adopted.
		return r.Changed.Add(f.cfg.SnapshotTimeout), true
	default:
		return r.Changed.Add(f.cfg.KeepAnswers), true
	}
}

// forget deletes what has been kept long enough, and gives up claims that were
// interrupted and never repeated.
func (f *Fleet) forget() {
	now := time.Now()
	for {
		c, abandoned, early := f.expired(now)
		deleted := len(c.DeleteAnswers) + len(c.DeleteRecords) + len(c.DeleteJoinTokens)
		if deleted > 0 {
			if err := f.put(c); err != nil {
				f.log.Warn("old state not deleted", "error", err)
				return
			}
		}
		if early > 0 {
			f.metrics.dropped.Add(float64(early))
			f.log.Warn("idempotency keys forgotten before their time: more than are kept", "count", early)
		}
		for _, id := range abandoned {
			if err := f.abandon(id, now); err != nil && !isNotFound(err) {
				f.log.Warn("claim not given up", "environment", id, "error", err)
				return
			}
		}
		if max(len(c.DeleteAnswers), len(c.DeleteRecords)+len(abandoned)) < forgetBatch {
			return
		}
	}
}

func (f *Fleet) abandon(id env.ID, now time.Time) error {
	_, err := f.update("claim-abandon", id, nil, func(r *Record) (bool, error) {
		if r.Environment.GetPhase() != hearthv1.Phase_PHASE_CLAIMING || now.Sub(r.Changed) < f.cfg.AbandonAfter {
			return false, nil
		}
		r.end(hearthv1.Phase_PHASE_FAILED, "the claim was interrupted and never repeated")
		return true, nil
	})
	return err
}

// expired lists a batch of what is to be forgotten and given up. Early counts
// the answers among it that are forgotten for want of room.
func (f *Fleet) expired(now time.Time) (c Change, abandoned []env.ID, early int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.Op = "forget"
	underWay := map[env.ID]bool{}
	for k := range f.busy {
		for _, id := range f.answers.get(k).environments() {
			underWay[id] = true
		}
	}
	c.DeleteAnswers, early = f.answers.old(now, f.cfg.MaxAnswers, f.cfg.MaxAnswerBytes, func(k AnswerKey) bool { return f.busy[k] != nil })
	for _, t := range f.joins {
		if t.Expires.Before(now) {
			c.DeleteJoinTokens = append(c.DeleteJoinTokens, t)
		}
	}
	for _, id := range f.due.oldest(forgetBatch, func(id env.ID, at time.Time) (list, more bool) {
		return !at.After(now) && !underWay[id], !at.After(now)
	}) {
		if f.records[id].final() {
			c.DeleteRecords = append(c.DeleteRecords, id)
		} else {
			abandoned = append(abandoned, id)
		}
	}
	return c, abandoned, early
}
