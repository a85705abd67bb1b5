package fleet

import (
	"crypto/sha256"
	"strings"
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
	// Next is where the environment is on its way to while it moves; see move.go.
	// Its node is empty otherwise, and its generation then the highest that was
	// ever meant for a node, if that is not the Environment's.
	Next Placement
	// Ended is true once the controller has decided the end: whatever of the
	// environment a node shows from then on is released. An environment that
	// failed by itself, or that its node denied, is not ended.
	Ended bool
	// ClaimKey and ClaimRequest are of the call that made it, so that a call that
	// is repeated is known again. Both are zero if it was made for an object.
	// ClaimRequest alone is zero if it is not known: then any request fits.
	ClaimKey     ClaimKey
	ClaimRequest [sha256.Size]byte
	// Count is how many environments that call made; 0 is not known.
	Count int
	// Ephemeral records are kept in memory only.
	Ephemeral bool
	// Object is the store's name of the object that somebody else made and that
	// this environment is for, and UID its identity; empty if there is none.
	// Whoever made it ends the environment, by ending the object: see End.
	Object, UID string
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

// merged is what the node says of the environment, but for what is decided
// elsewhere.
func (r *Record) merged(e *hearthv1.Environment) *hearthv1.Environment {
	have := r.Environment
	e = shown(e)
	e.Node, e.Class, e.Tenant, e.Labels = have.GetNode(), have.GetClass(), have.GetTenant(), have.GetLabels()
	e.RestoredFrom, e.Ephemeral = have.GetRestoredFrom(), r.Ephemeral
	return e
}

func (r *Record) setEphemeral(is bool) { r.Ephemeral, r.Environment.Ephemeral = is, is }

func byID(a, b *Record) int { return strings.Compare(string(a.ID()), string(b.ID())) }

// because is ": " and the record's message, or nothing.
func because(r *Record) string {
	if m := r.Environment.GetMessage(); m != "" {
		return ": " + m
	}
	return ""
}

// adopt believes the node about everything but whose the environment is. What a
// record was made by is taken from it only if it is not known yet.
func (r *Record) adopt(node string, e *hearthv1.Environment) {
	tenant, stored := r.Environment.GetTenant(), r.Environment.GetId() != "" && !r.Ephemeral
	r.Environment = shown(e)
	r.Environment.Node, r.Environment.Tenant = node, tenant
	r.setEphemeral(e.GetEphemeral() && !stored) // what is stored once stays so
	if r.ClaimKey == (ClaimKey{}) && r.Object == "" && len(e.GetClaimKey()) == len(r.ClaimKey) && len(e.GetClaimRequest()) == len(r.ClaimRequest) {
		copy(r.ClaimKey[:], e.GetClaimKey())
		copy(r.ClaimRequest[:], e.GetClaimRequest())
	}
}

// shown is a copy of what a node says, for callers: without what only controllers
// need.
func shown(e *hearthv1.Environment) *hearthv1.Environment {
	e = proto.CloneOf(e)
	e.ClaimKey, e.ClaimRequest = nil, nil
	return e
}

// end makes the record final and its placement stale, and the one that it was on
// its way to.
func (r *Record) end(p hearthv1.Phase, message string) {
	r.makeStale()
	if r.moving() && r.Next.Node != r.Environment.GetNode() {
		r.addStale(r.Next)
	}
	r.Next.Node = ""
	r.Environment.Phase, r.Environment.Message, r.Environment.Reason, r.Ended = p, message, "", true
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
	hearthv1.Phase_PHASE_STALLED:     env.PhaseStalled,
	hearthv1.Phase_PHASE_QUARANTINED: env.PhaseQuarantined,
	hearthv1.Phase_PHASE_RELEASED:    env.PhaseReleased,
	hearthv1.Phase_PHASE_FAILED:      env.PhaseFailed,
	hearthv1.Phase_PHASE_FENCED:      env.PhaseFenced,
}

// ClaimKey names a call that may be repeated: the SHA-256 of tenant, a zero byte
// and the caller's idempotency key.
type ClaimKey [sha256.Size]byte

// claimKey is never that of another tenant's key, since no tenant's name holds a
// zero byte.
func claimKey(tenant, key string) ClaimKey {
	return sha256.Sum256([]byte(tenant + "\x00" + key))
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
