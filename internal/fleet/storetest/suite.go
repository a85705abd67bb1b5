package storetest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Options say how a Store is reached, and what it need not do.
type Options struct {
	// Open opens the same store again and again in one subtest: each time the one
	// before was closed, or crashed. In another subtest it is another, empty one.
	Open func(*testing.T) fleet.Store
	// Crash ends a store as the death of its process would: what was posted and
	// not written yet is lost.
	Crash func(*testing.T, fleet.Store)
	// NoJoinTokens says that the store keeps none, and refuses them.
	NoJoinTokens bool
	// NewObject makes an object that an environment is wanted for, and Gone deletes
	// it, with nobody's leave. Nil is a store that knows no objects.
	NewObject func(t *testing.T, tenant, class string) (object, uid string, id env.ID)
	Gone      func(t *testing.T, object string)
}

// The tenants and the class of the suite's records, and the node names. A store
// that needs them makes them beforehand.
const (
	TenantA, TenantB = "suite-a", "suite-b"
	Class            = "small"
	NodeA, NodeB     = "node-a", "node-b"
)

// Run checks a Store against its contract.
func Run(t *testing.T, o Options) {
	t.Helper()
	checks := map[string]func(*suite){
		"a record is there after reopening, whole":                  recordSurvives,
		"a saved record survives a crash":                           savedSurvivesCrash,
		"a record that changes is replaced":                         recordReplaced,
		"a record that is deleted is gone":                          recordDeleted,
		"a record that is over need not stay":                       overMayGo,
		"API keys are kept":                                         keysKept,
		"join tokens are kept, or refused":                          tokensKept,
		"a change is about one thing":                               oneThing,
		"epochs rise over restarts":                                 epochsRise,
		"a post is written behind, and at the latest by closing":    postWritten,
		"the last of many posts counts":                             lastPostCounts,
		"a later save wins over a post":                             saveWins,
		"a post after a save is not lost":                           postAfterSave,
		"a posted deletion happens":                                 postedDeletion,
		"a save after a posted deletion brings it back":             saveAfterDeletion,
		"a crash loses posts and never half of one":                 crashLosesWhole,
		"saves of different records at the same time are all there": concurrentSaves,
		"an object's record comes back, and only while it is there": objectRecord,
	}
	if o.Gone != nil { // objects are the store's own, and so can go by themselves
		checks["what ends is not lost, though its object is gone by itself"] = objectGone
	}
	for name, check := range checks {
		t.Run(name, func(t *testing.T) {
			s := &suite{T: t, o: o}
			s.store = o.Open(t)
			check(s)
			if err := s.store.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// suite is one subtest's store.
type suite struct {
	*testing.T
	o     Options
	store fleet.Store
}

func (s *suite) save(c fleet.Change) {
	s.Helper()
	if err := s.store.Save(c); err != nil {
		s.Fatal(err)
	}
}

func (s *suite) saveRecord(r *fleet.Record) {
	s.Helper()
	s.save(fleet.Change{Op: "suite", Record: r})
}

func (s *suite) post(r *fleet.Record) { s.store.Post(fleet.Change{Op: "suite", Record: r}) }

func (s *suite) reopen() {
	s.Helper()
	if err := s.store.Close(); err != nil {
		s.Fatal(err)
	}
	s.store = s.o.Open(s.T)
}

func (s *suite) crash() {
	s.Helper()
	s.o.Crash(s.T, s.store)
	s.store = s.o.Open(s.T)
}

// load opens the store again and gives what it holds.
func (s *suite) load() fleet.State {
	s.Helper()
	s.reopen()
	st, err := s.store.Load()
	if err != nil {
		s.Fatal(err)
	}
	slices.SortFunc(st.Records, func(a, b *fleet.Record) int { return cmp.Compare(a.ID(), b.ID()) })
	slices.SortFunc(st.APIKeys, func(a, b fleet.APIKey) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(st.JoinTokens, func(a, b fleet.JoinToken) int { return bytes.Compare(a.Hash[:], b.Hash[:]) })
	return st
}

// line is what a store keeps of a record at least.
type line struct {
	ID, Class, Tenant, Node, Restored string
	Generation                        uint64
	Labels                            map[string]string
	Stale                             []fleet.Placement
	Next                              fleet.Placement
	Ended                             bool
	Key                               fleet.ClaimKey
	Request                           [sha256.Size]byte
	Count                             int
	Object, UID                       string
	Phase                             hearthv1.Phase
	Message                           string
}

func lineOf(r *fleet.Record) line {
	e := r.Environment
	l := line{
		ID: e.GetId(), Class: e.GetClass(), Tenant: e.GetTenant(), Node: e.GetNode(), Restored: e.GetRestoredFrom(), Generation: e.GetGeneration(),
		Labels: e.GetLabels(), Stale: r.Stale, Next: r.Next, Ended: r.Ended, Key: r.ClaimKey, Request: r.ClaimRequest, Count: r.Count,
		Object: r.Object, UID: r.UID, Phase: e.GetPhase(), Message: e.GetMessage(),
	}
	if len(l.Labels) == 0 {
		l.Labels = nil
	}
	if len(l.Stale) == 0 {
		l.Stale = nil
	}
	return l
}

func (s *suite) want(records ...*fleet.Record) {
	s.Helper()
	got := s.load().Records
	var have, want []line
	for _, r := range got {
		have = append(have, lineOf(r))
		if r.Changed.IsZero() || r.Ephemeral {
			s.Errorf("record %s: changed %s, ephemeral %t", r.ID(), r.Changed, r.Ephemeral)
		}
	}
	for _, r := range records {
		want = append(want, lineOf(r))
	}
	slices.SortFunc(want, func(a, b line) int { return cmp.Compare(a.ID, b.ID) })
	if diff := gocmp.Diff(want, have); diff != "" {
		s.Errorf("store differs (-want +got):\n%s", diff)
	}
}

// placed is a claim that was placed.
func placed(tenant string) *fleet.Record {
	id := env.NewID()
	return &fleet.Record{
		Changed: time.Now(), ClaimKey: sha256.Sum256([]byte(tenant + string(id))), ClaimRequest: sha256.Sum256([]byte(id)), Count: 1,
		Environment: &hearthv1.Environment{
			Id: string(id), Class: Class, Tenant: tenant, Node: NodeA, Generation: 1,
			Phase: hearthv1.Phase_PHASE_CLAIMING, Labels: map[string]string{"team": "x"},
		},
	}
}

// with is a copy of r that edit changed.
func with(r *fleet.Record, edit func(*fleet.Record)) *fleet.Record {
	c := *r
	c.Stale = slices.Clone(r.Stale)
	c.Environment = &hearthv1.Environment{
		Id: r.Environment.GetId(), Class: r.Environment.GetClass(), Tenant: r.Environment.GetTenant(), Node: r.Environment.GetNode(),
		Generation: r.Environment.GetGeneration(), Phase: r.Environment.GetPhase(), Message: r.Environment.GetMessage(),
		Labels: r.Environment.GetLabels(), RestoredFrom: r.Environment.GetRestoredFrom(),
	}
	c.Changed = time.Now()
	edit(&c)
	return &c
}

func running(r *fleet.Record) { r.Environment.Phase = hearthv1.Phase_PHASE_RUNNING }

func phase(p hearthv1.Phase, message string) func(*fleet.Record) {
	return func(r *fleet.Record) { r.Environment.Phase, r.Environment.Message = p, message }
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}
