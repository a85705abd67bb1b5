package fleet

import (
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// forgetBatch bounds what one hold of the lock looks at, so that claims pass in
// between.
const forgetBatch = 256

// dueAt is when a record is to be forgotten, or its claim given up; never, while
// it lives, while a placement is to be released, and while somebody else's object
// says that it is wanted.
func (f *Fleet) dueAt(r *Record) (time.Time, bool) {
	switch p := r.Environment.GetPhase(); {
	case r.moving():
		return time.Time{}, false
	case p == hearthv1.Phase_PHASE_CLAIMING && r.Object == "":
		return later(r.Changed, f.started).Add(f.cfg.AbandonAfter), true
	case !r.final() || len(r.Stale) > 0 || (r.Object != "" && !r.Ended):
		return time.Time{}, false
	case r.Ended && (p == hearthv1.Phase_PHASE_FAILED || r.Object != ""):
		// Nobody was told of it, or its object is gone. It is kept as long as a
		// call to a node may last and make it after all, so that it is then
		// released and not adopted.
		return r.Changed.Add(f.cfg.SnapshotTimeout), true
	default:
		return r.Changed.Add(f.cfg.KeepAnswers), true
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// forget deletes what has been kept long enough, and gives up claims that were
// interrupted and never repeated.
func (f *Fleet) forget() {
	now := time.Now()
	if err := f.forgetJoinTokens(now); err != nil {
		f.log.Warn("old join tokens not deleted", "error", err)
	}
	for {
		answers, early := f.forgetAnswers(now)
		if early > 0 {
			f.metrics.dropped.Add(float64(early))
			f.log.Warn("idempotency keys forgotten before their time: more than are kept", "count", early)
		}
		final, abandoned := f.expired(now)
		for _, id := range final {
			f.forgetRecord(id, now)
		}
		for _, id := range abandoned {
			if err := f.abandon(id, now); err != nil && !isNotFound(err) {
				f.log.Warn("claim not given up", "environment", id, "error", err)
				return
			}
		}
		if max(answers, len(final)+len(abandoned)) < forgetBatch {
			return
		}
	}
}

func (f *Fleet) forgetAnswers(now time.Time) (count, early int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys, early := f.answers.old(now, f.cfg.MaxAnswers, f.cfg.MaxAnswerBytes, func(k ClaimKey) bool { return f.busy[k] != nil })
	for _, k := range keys {
		f.answers.remove(k)
	}
	return len(keys), early
}

func (f *Fleet) forgetRecord(id env.ID, now time.Time) {
	defer f.lanes.enter(id)()
	r := f.record(id)
	if r == nil {
		return
	}
	if at, ok := f.dueAt(r); ok && r.final() && !at.After(now) {
		f.drop("forget", r)
	}
}

// abandon ends a claim whose call has ended in this process and was not repeated.
func (f *Fleet) abandon(id env.ID, now time.Time) error {
	_, err := f.update("claim-abandon", id, func(r *Record) (bool, error) {
		if at, ok := f.dueAt(r); !ok || r.final() || at.After(now) || f.isUnderWay(id) {
			return false, nil
		}
		r.end(hearthv1.Phase_PHASE_FAILED, "the claim was interrupted and never repeated")
		return true, nil
	})
	return err
}

// expired lists a batch of what is to be forgotten and given up. A claim that an
// earlier process may have answered is not given up: its node is asked.
func (f *Fleet) expired(now time.Time) (final, abandoned []env.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	due := f.due.oldest(forgetBatch, func(id env.ID, at time.Time) (list, more bool) {
		return !at.After(now) && f.underWay[id] == nil, !at.After(now)
	})
	for _, id := range due {
		r := f.records[id]
		_, doubtful := f.doubtful[id]
		switch {
		case r.final():
			final = append(final, id)
		case doubtful:
			f.due.set(id, now.Add(f.cfg.AbandonAfter))
			if n := f.nodes[r.Environment.GetNode()]; n != nil && n.session != 0 {
				n.missing[id] = struct{}{}
			}
		default:
			abandoned = append(abandoned, id)
		}
	}
	return final, abandoned
}
