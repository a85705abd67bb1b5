package fleet

import "hearth/internal/env"

// Store keeps desired state.
//
// Save applies a whole Change or nothing, and when it returns nil the change
// survives a crash of the process and of the machine. After an error nothing
// of the change may be visible to a later Load. Load gives what was saved, in
// any order, as values that the store does not use again. NextEpoch returns a
// number higher than any before, over restarts too. One process uses a store at
// a time; the calls of one process may be concurrent.
//
// storetest.Run is the suite that every implementation passes.
type Store interface {
	NextEpoch() (uint64, error)
	Load() (State, error)
	Save(Change) error
	Close() error
}

// State is everything in a store.
type State struct {
	Records    []*Record
	Answers    []*Answer
	APIKeys    []APIKey
	JoinTokens []JoinToken
}

// Change is what one Save writes. What it puts replaces what has the same key;
// deleting what is not there is no error. Op names the change for fault
// injection and logs; it is not stored.
type Change struct {
	Op               string
	Put              State
	DeleteRecords    []env.ID
	DeleteAnswers    []AnswerKey
	DeleteAPIKeys    []string
	DeleteJoinTokens []JoinToken
}
