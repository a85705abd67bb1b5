package fleet

import (
	"crypto/sha256"
	"time"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// Record is one environment as the controller wants and knows it. A Record in
// memory or in a Store is never changed: a change is a new one.
type Record struct {
	// Environment is what callers are shown. Its node and generation are the
	// current placement's; both are empty before the first.
	Environment *hearthv1.Environment
	// Changed is when the record was last written.
	Changed time.Time
	// Stale are placements that must be released and are not confirmed to be.
	Stale []Placement
	// Snapshots is true if the environment may have left snapshots on its node.
	// Such a record outlives the environment: it says whose they are.
	Snapshots bool
	// Ended is true once the controller has decided the end: whatever of the
	// environment a node shows from then on is released. An environment that
	// failed by itself, or that its node denied, is not ended.
	Ended bool
}

// Placement is one generation of an environment on one node.
type Placement struct {
	Node       string         `json:"node"`
	Generation env.Generation `json:"generation"`
}

// ID is the environment's id.
func (r *Record) ID() env.ID { return env.ID(r.Environment.GetId()) }

// Phase is the environment's phase.
func (r *Record) Phase() env.Phase { return phaseWord[r.Environment.GetPhase()] }

// Generation is the current placement's.
func (r *Record) Generation() env.Generation { return env.Generation(r.Environment.GetGeneration()) }

func (r *Record) clone() *Record {
	c := *r
	c.Environment = proto.CloneOf(r.Environment)
	c.Stale = append([]Placement(nil), r.Stale...)
	return &c
}

// final reports whether nothing of the environment shall run.
func (r *Record) final() bool {
	p := r.Environment.GetPhase()
	return p == hearthv1.Phase_PHASE_RELEASED || p == hearthv1.Phase_PHASE_FAILED
}

// end makes the record final and its placement stale.
func (r *Record) end(p hearthv1.Phase, message string) {
	r.makeStale()
	r.Environment.Phase, r.Environment.Message, r.Ended = p, message, true
}

// giveUp ends what nobody was told of, and whose placements that may exist are
// stale already.
func (r *Record) giveUp(message string) {
	r.Environment.Phase, r.Environment.Message, r.Ended = hearthv1.Phase_PHASE_FAILED, message, true
}

// makeStale remembers the current placement as one to be released.
func (r *Record) makeStale() {
	if r.Environment.GetNode() == "" {
		return
	}
	r.addStale(Placement{r.Environment.GetNode(), r.Generation()})
}

func (r *Record) addStale(p Placement) {
	for i, have := range r.Stale {
		if have.Node == p.Node {
			r.Stale[i].Generation = max(have.Generation, p.Generation)
			return
		}
	}
	r.Stale = append(r.Stale, p)
}

func (r *Record) isStale(node string) bool {
	for _, p := range r.Stale {
		if p.Node == node {
			return true
		}
	}
	return false
}

func (r *Record) dropStale(p Placement) {
	kept := r.Stale[:0]
	for _, have := range r.Stale {
		if have != p {
			kept = append(kept, have)
		}
	}
	r.Stale = kept
}

// phaseWord maps the wire's phases to the vocabulary.
var phaseWord = map[hearthv1.Phase]env.Phase{
	hearthv1.Phase_PHASE_CLAIMING:    env.PhaseClaiming,
	hearthv1.Phase_PHASE_RUNNING:     env.PhaseRunning,
	hearthv1.Phase_PHASE_PAUSED:      env.PhasePaused,
	hearthv1.Phase_PHASE_QUARANTINED: env.PhaseQuarantined,
	hearthv1.Phase_PHASE_RELEASED:    env.PhaseReleased,
	hearthv1.Phase_PHASE_FAILED:      env.PhaseFailed,
}

// AnswerKey names a call that may be repeated.
type AnswerKey struct {
	Tenant string
	Key    string // the caller's idempotency key
}

// Answer is what a call was answered, or, while Response is nil, that it has begun.
type Answer struct {
	AnswerKey
	// Request is a digest of the method and the request, so that a key that is
	// used for something else is noticed.
	Request [sha256.Size]byte
	// Environments are those that the call makes.
	Environments []env.ID
	// Response is the encoded answer. It holds access tokens: a Store keeps it
	// as it keeps private keys.
	Response []byte
	Expires  time.Time
}

// APIKey lets callers in. The key itself is stored nowhere.
type APIKey struct {
	ID      string
	Tenant  string // empty only for an administrator's
	Admin   bool
	Hash    [sha256.Size]byte
	Created time.Time
}

// JoinToken lets agents join until it ends.
type JoinToken struct {
	Hash    [sha256.Size]byte
	Expires time.Time
}
