package fleet

import (
	"crypto/sha256"
	"time"
)

// answer is what a call was answered. It holds access tokens, so it is in memory
// only: when it is gone, the node that gave the answer is asked again.
type answer struct {
	key      ClaimKey
	request  [sha256.Size]byte
	response []byte // encoded
	expires  time.Time
}

// answerBook keeps the answers that a repeated idempotency key gets, in the
// order in which they end. Fleet.mu guards it.
type answerBook struct {
	byKey map[ClaimKey]*answer
	ends  *schedule[ClaimKey]
	bytes int // of all, as size counts
}

func newAnswerBook() answerBook {
	return answerBook{byKey: map[ClaimKey]*answer{}, ends: newSchedule[ClaimKey]()}
}

// get is nil for a key that is not known.
func (b *answerBook) get(k ClaimKey) *answer { return b.byKey[k] }

func (b *answerBook) put(a *answer) {
	b.remove(a.key)
	b.byKey[a.key] = a
	b.ends.set(a.key, a.expires)
	b.bytes += a.size()
}

func (b *answerBook) remove(k ClaimKey) {
	if have := b.byKey[k]; have != nil {
		b.bytes -= have.size()
		b.ends.drop(k)
		delete(b.byKey, k)
	}
}

// old lists a batch of the answers that have ended, and of the oldest beyond
// most answers or mostBytes; early counts the latter. Those that are in use are
// left out.
func (b *answerBook) old(now time.Time, most, mostBytes int, inUse func(ClaimKey) bool) (keys []ClaimKey, early int) {
	count, bytes := len(b.byKey), b.bytes
	keys = b.ends.oldest(forgetBatch, func(k ClaimKey, at time.Time) (list, more bool) {
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

// answerOverhead is about what an answer takes in memory besides its bytes.
const answerOverhead = 400

func (a *answer) size() int { return answerOverhead + len(a.response) }
