package fleet

import (
	"crypto/sha256"
	"fmt"

	"hearth/internal/env"
)

// Store keeps desired state. storetest.Run is the suite that every
// implementation passes; this comment is its specification.
//
// A Change is about one record or one key, so that a store of separate objects
// needs no transaction: each of them is replaced whole, and neither a crash nor a
// concurrent Save leaves half of one.
//
// A record has two parts. What is decided: id, class, tenant, labels,
// RestoredFrom, node and generation in Environment, and Stale, Next, Ended,
// ClaimKey, ClaimRequest, Count, Object, UID. What is observed: everything else,
// of which a store keeps at least the phase and its message.
//
//   - Save. When it returns nil, what is decided survives a crash of the process
//     and of the machine; what is observed is written no later than by Post. After
//     an error nothing was written, unless the error is env.ErrUnavailable: then
//     it may have been, and the next Save or Post of the same record settles it.
//     Save bounds its own time: a peer that does not answer is env.ErrUnavailable
//     after at most half a minute.
//   - Post returns at once and fails silently: what is observed is written behind,
//     within about a second while the store works, and at Close. Of several posts
//     of one record only the last need be written. A post never overtakes a later
//     Save or Post of the same record, in whatever order they come to be written.
//     What is decided in a posted record was saved before, but for Stale, which a
//     store may write or leave. A deletion, and a record that is Ended and has no
//     Stale, are tried until they are done or superseded by a later Save.
//   - A crash loses posts, each as a whole. A record whose observed part is lost is
//     loaded with the phase that it was saved with, or PHASE_CLAIMING.
//   - Deleting what is not there is no error. A store may drop a record by itself
//     once it is Ended and has no Stale: nothing is left to be done for it.
//   - A record with an Object is about something that somebody else makes and
//     deletes. Saving it when the object is gone, or has another UID, makes
//     nothing: it is env.ErrNotFound, or no error for a record that is Ended.
//     Deleting the record leaves the object to its owner.
//   - Load gives everything, in any order, as values that the store does not use
//     again. It is called before anything is written, and only then.
//   - NextEpoch returns a number higher than any before, over restarts too.
//   - A store that cannot keep join tokens refuses to save them with
//     env.ErrUnsupported.
//
// One process uses a store at a time; calls of one process may be concurrent. The
// Fleet orders those about one record: it begins none before the one before has
// returned. Those about different records do not wait for each other longer than
// a write takes. The Fleet gives no ephemeral record to a store.
type Store interface {
	NextEpoch() (uint64, error)
	Load() (State, error)
	Save(Change) error
	Post(Change)
	Close() error
}

// State is everything in a store.
type State struct {
	Records    []*Record
	APIKeys    []APIKey
	JoinTokens []JoinToken
}

// Change is what one Save or Post writes: exactly one of its fields but Op is set.
// What is put replaces what has the same id or hash. Only records are posted. Op
// names the change for fault injection and logs; it is not stored.
type Change struct {
	Op              string
	Record          *Record
	DeleteRecord    env.ID
	APIKey          *APIKey
	DeleteAPIKey    string // its id
	JoinToken       *JoinToken
	DeleteJoinToken *[sha256.Size]byte // its hash
}

// ID is the record's that the change is about; empty if it is about none.
func (c Change) ID() env.ID {
	if c.Record != nil {
		return c.Record.ID()
	}
	return c.DeleteRecord
}

// Validate refuses a change that is not about exactly one thing.
func (c Change) Validate() error {
	n := 0
	for _, set := range []bool{
		c.Record != nil, c.DeleteRecord != "", c.APIKey != nil, c.DeleteAPIKey != "", c.JoinToken != nil, c.DeleteJoinToken != nil,
	} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%w: change %s is about %d things; a store writes one at a time", env.ErrInvalid, c.Op, n)
	}
	return nil
}
