package fleet

import (
	"time"

	"hearth/internal/env"
)

// answerBook keeps the answers that a repeated idempotency key gets, in the
// order in which they end. Fleet.mu guards it.
type answerBook struct {
	byKey map[AnswerKey]*Answer
	ends  *schedule[AnswerKey]
	bytes int // of all, as size counts
}

func newAnswerBook() answerBook {
	return answerBook{byKey: map[AnswerKey]*Answer{}, ends: newSchedule[AnswerKey]()}
}

// get is nil for a key that is not known.
func (b *answerBook) get(k AnswerKey) *Answer { return b.byKey[k] }

func (b *answerBook) put(a *Answer) {
	b.remove(a.AnswerKey)
	b.byKey[a.AnswerKey] = a
	b.ends.set(a.AnswerKey, a.Expires)
	b.bytes += a.size()
}

func (b *answerBook) remove(k AnswerKey) {
	if have := b.byKey[k]; have != nil {
		b.bytes -= have.size()
		b.ends.drop(k)
		delete(b.byKey, k)
	}
}

// old lists a batch of the answers that have ended, and of the oldest beyond
// most answers or mostBytes; early counts the latter. Those that are in use are
// left out.
func (b *answerBook) old(now time.Time, most, mostBytes int, inUse func(AnswerKey) bool) (keys []AnswerKey, early int) {
	count, bytes := len(b.byKey), b.bytes
	keys = b.ends.oldest(forgetBatch, func(k AnswerKey, at time.Time) (list, more bool) {
		ended := at.Before(now)
		switch {
		case !ended && count <= most && bytes <= mostBytes:
			return false, false
		case inUse(k):
			return false, true
		case !ended:
			early++
		}
		count--
		bytes -= b.byKey[k].size()
		return true, true
	})
	return keys, early
}

// answerOverhead is about what an answer takes in memory besides its texts.
const answerOverhead = 400

func (a *Answer) size() int {
	n := answerOverhead + len(a.Tenant) + len(a.Key) + len(a.Response)
	for _, id := range a.Environments {
		n += len(id)
	}
	return n
}

// environments are those of an answer that may be nil.
func (a *Answer) environments() []env.ID {
	if a == nil {
		return nil
	}
	return a.Environments
}
