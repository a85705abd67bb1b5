package storetest

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func recordSurvives(s *suite) {
	s.want()
	plain := placed(TenantA)
	full := with(placed(TenantB), func(r *fleet.Record) {
		r.Environment.Generation, r.Environment.RestoredFrom = 7, string(env.NewID())+"/12"
		r.Environment.Labels = map[string]string{"team": "x", "app": "y"}
		r.Stale = []fleet.Placement{{Node: NodeB, Generation: 6}}
		r.Next = fleet.Placement{Node: NodeB, Generation: 8}
		r.Count = 3
		phase(hearthv1.Phase_PHASE_QUARANTINED, "frozen by rule x")(r)
	})
	s.saveRecord(plain)
	s.saveRecord(full)
	s.want(plain, full)
	s.want(plain, full)
}

func savedSurvivesCrash(s *suite) {
	r := placed(TenantA)
	s.saveRecord(r)
	s.crash()
	s.want(r)
}

func recordReplaced(s *suite) {
	r, other := placed(TenantA), placed(TenantB)
	s.saveRecord(r)
	s.saveRecord(other)
	moved := with(r, func(r *fleet.Record) {
		r.Environment.Node, r.Environment.Generation = NodeB, 2
		r.Stale = []fleet.Placement{{Node: NodeA, Generation: 1}}
	})
	s.saveRecord(moved)
	s.crash()
	s.want(moved, other)
	clean := with(moved, func(r *fleet.Record) { r.Stale = nil; running(r) })
	s.saveRecord(clean)
	s.want(clean, other)
}

func recordDeleted(s *suite) {
	r, other := placed(TenantA), placed(TenantA)
	s.saveRecord(r)
	s.saveRecord(other)
	s.save(fleet.Change{Op: "suite", DeleteRecord: r.ID()})
	s.save(fleet.Change{Op: "suite", DeleteRecord: env.NewID()}) // never there: no error
	s.crash()
	s.want(other)
}

// over is what the controller has ended.
func over(r *fleet.Record) {
	phase(hearthv1.Phase_PHASE_RELEASED, "")(r)
	r.Ended = true
	r.Stale = []fleet.Placement{{Node: r.Environment.GetNode(), Generation: env.Generation(r.Environment.GetGeneration())}}
}

func overMayGo(s *suite) {
	r := placed(TenantA)
	s.saveRecord(r)
	ended := with(r, over)
	s.saveRecord(ended)
	s.crash()
	st := s.load()
	if len(st.Records) != 1 || !st.Records[0].Ended || !slices.Equal(st.Records[0].Stale, ended.Stale) {
		s.Fatalf("records = %v, want the one that ended and is to be released", st.Records)
	}
	s.saveRecord(with(ended, func(r *fleet.Record) { r.Stale = nil }))
	if st := s.load(); len(st.Records) > 1 || (len(st.Records) == 1 && (!st.Records[0].Ended || len(st.Records[0].Stale) != 0)) {
		s.Errorf("records = %v, want none or the one that is over", st.Records)
	}
	// The same by posts only, as after a release that took a snapshot.
	q := placed(TenantA)
	s.saveRecord(q)
	s.post(with(q, func(r *fleet.Record) { over(r); r.Stale = nil }))
	for _, r := range s.load().Records {
		if r.ID() == q.ID() && !r.Ended {
			s.Errorf("the end of %s was posted and is not there", r.ID())
		}
	}
}

func keysKept(s *suite) {
	now := time.Now().UTC().Truncate(time.Second)
	keys := []fleet.APIKey{
		{ID: "0001", Tenant: TenantA, Hash: sha256.Sum256([]byte("3")), Created: now},
		{ID: "0002", Admin: true, Hash: sha256.Sum256([]byte("4")), Created: now},
	}
	for _, k := range keys {
		s.save(fleet.Change{Op: "suite", APIKey: &k})
	}
	s.crash()
	if diff := gocmp.Diff(keys, s.load().APIKeys); diff != "" {
		s.Error(diff)
	}
	s.save(fleet.Change{Op: "suite", DeleteAPIKey: "0001"})
	s.save(fleet.Change{Op: "suite", DeleteAPIKey: "unknown"})
	if diff := gocmp.Diff(keys[1:], s.load().APIKeys); diff != "" {
		s.Error(diff)
	}
}

func tokensKept(s *suite) {
	tokens := []fleet.JoinToken{
		{Expires: time.Now().UTC().Truncate(time.Second)},
		{Hash: [32]byte{1}, Expires: time.Now().UTC().Truncate(time.Second)},
	}
	if s.o.NoJoinTokens {
		wantErr(s.T, s.store.Save(fleet.Change{Op: "suite", JoinToken: &tokens[0]}), env.ErrUnsupported)
		return
	}
	for _, k := range tokens {
		s.save(fleet.Change{Op: "suite", JoinToken: &k})
	}
	s.crash()
	if diff := gocmp.Diff(tokens, s.load().JoinTokens); diff != "" {
		s.Error(diff)
	}
	s.save(fleet.Change{Op: "suite", DeleteJoinToken: &tokens[0].Hash})
	if diff := gocmp.Diff(tokens[1:], s.load().JoinTokens); diff != "" {
		s.Error(diff)
	}
}

func oneThing(s *suite) {
	r := placed(TenantA)
	wantErr(s.T, s.store.Save(fleet.Change{Op: "suite"}), env.ErrInvalid)
	wantErr(s.T, s.store.Save(fleet.Change{Op: "suite", Record: r, DeleteRecord: env.NewID()}), env.ErrInvalid)
	s.want()
}

func epochsRise(s *suite) {
	last := uint64(0)
	for i := range 3 {
		for range 2 {
			e, err := s.store.NextEpoch()
			if err != nil || e <= last {
				s.Fatalf("epoch %d after %d: %v", e, last, err)
			}
			last = e
		}
		if i == 1 {
			s.crash()
		} else {
			s.reopen()
		}
	}
}

func postWritten(s *suite) {
	r := placed(TenantA)
	s.saveRecord(r)
	now := with(r, running)
	s.post(now)
	s.want(now)
}

func lastPostCounts(s *suite) {
	r := placed(TenantA)
	s.saveRecord(r)
	var last *fleet.Record
	for i := range 200 {
		last = with(r, phase(hearthv1.Phase_PHASE_QUARANTINED, fmt.Sprint(i)))
		s.post(last)
	}
	s.want(last)
}

func saveWins(s *suite) {
	var want []*fleet.Record
	for range 5 {
		r := placed(TenantA)
		s.saveRecord(r)
		s.post(with(r, running))
		moved := with(r, func(r *fleet.Record) {
			r.Environment.Node, r.Environment.Generation = NodeB, 2
			phase(hearthv1.Phase_PHASE_PAUSED, "later")(r)
		})
		s.saveRecord(moved)
		want = append(want, moved)
	}
	s.want(want...)
}

func postAfterSave(s *suite) {
	r := placed(TenantA)
	s.saveRecord(r)
	s.post(with(r, running))
	s.saveRecord(with(r, func(r *fleet.Record) { r.Environment.Generation = 2 }))
	last := with(r, func(r *fleet.Record) {
		r.Environment.Generation = 2
		phase(hearthv1.Phase_PHASE_PAUSED, "")(r)
	})
	s.post(last)
	s.want(last)
}

func postedDeletion(s *suite) {
	r, never := placed(TenantA), placed(TenantA)
	s.saveRecord(r)
	s.post(with(r, running))
	s.store.Post(fleet.Change{Op: "suite", DeleteRecord: r.ID()})
	s.store.Post(fleet.Change{Op: "suite", DeleteRecord: never.ID()})
	s.want()
}

func saveAfterDeletion(s *suite) {
	r := placed(TenantA)
	s.store.Post(fleet.Change{Op: "suite", DeleteRecord: r.ID()})
	s.saveRecord(r)
	s.want(r)
}

// Each record is posted over and over and the process dies at some moment: what is
// there is one of the records that were given, with the phase and the message of
// the same one.
func crashLosesWhole(s *suite) {
	const n = 10
	var records []*fleet.Record
	for range n {
		r := placed(TenantA)
		s.saveRecord(r)
		records = append(records, r)
	}
	for i := range 100 {
		p := hearthv1.Phase_PHASE_RUNNING
		if i%2 == 1 {
			p = hearthv1.Phase_PHASE_PAUSED
		}
		for _, r := range records {
			s.post(with(r, phase(p, fmt.Sprintf("%s %d", p, i))))
		}
		time.Sleep(time.Millisecond)
	}
	s.crash()
	st := s.load()
	if len(st.Records) != n {
		s.Fatalf("%d records are there, want %d", len(st.Records), n)
	}
	for _, r := range st.Records {
		e := r.Environment
		whole := e.GetMessage() == "" && e.GetPhase() == hearthv1.Phase_PHASE_CLAIMING
		for i := range 100 {
			whole = whole || e.GetMessage() == fmt.Sprintf("%s %d", e.GetPhase(), i)
		}
		if !whole || e.GetNode() != NodeA || r.Count != 1 {
			s.Errorf("record %v", e)
		}
	}
}

func concurrentSaves(s *suite) {
	const n = 32
	var wg sync.WaitGroup
	var want []*fleet.Record
	errs := make([]error, n)
	for i := range n {
		r := placed(TenantA)
		other := with(r, func(r *fleet.Record) { r.Environment.Generation = 2 })
		last := with(other, running)
		want = append(want, last)
		wg.Go(func() {
			errs[i] = s.store.Save(fleet.Change{Op: "suite", Record: r})
			s.post(with(r, running))
			if errs[i] == nil {
				errs[i] = s.store.Save(fleet.Change{Op: "suite", Record: other})
			}
			s.post(last)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			s.Fatal(err)
		}
	}
	s.want(want...)
}

func objectRecord(s *suite) {
	r := s.forObject()
	s.saveRecord(r)
	s.crash()
	s.want(r)
	now := with(r, running)
	s.post(now)
	s.want(now)
}

func (s *suite) forObject() *fleet.Record {
	r := placed(TenantA)
	r.ClaimKey, r.ClaimRequest, r.Object, r.UID = fleet.ClaimKey{}, [sha256.Size]byte{}, TenantA+"/mine", "1234"
	r.Environment.Labels = nil
	if s.o.NewObject != nil {
		object, uid, id := s.o.NewObject(s.T, TenantA, Class)
		r.Object, r.UID, r.Environment.Id = object, uid, string(id)
	}
	return r
}

func objectGone(s *suite) {
	r := s.forObject()
	s.saveRecord(r)
	s.o.Gone(s.T, r.Object)
	s.saveRecord(with(r, over))
	s.saveRecord(with(r, func(r *fleet.Record) { over(r); r.Stale = nil }))
	s.want()
	fresh := s.forObject()
	s.o.Gone(s.T, fresh.Object)
	wantErr(s.T, s.store.Save(fleet.Change{Op: "suite", Record: fresh}), env.ErrNotFound)
	s.want()
}
