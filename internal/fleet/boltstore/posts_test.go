package boltstore

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func record(p hearthv1.Phase) *fleet.Record {
	return &fleet.Record{Changed: time.Now(), Environment: &hearthv1.Environment{Id: string(env.NewID()), Phase: p}}
}

func phaseOf(t *testing.T, s *Store, id env.ID) hearthv1.Phase {
	t.Helper()
	st, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range st.Records {
		if r.ID() == id {
			return r.Environment.GetPhase()
		}
	}
	return hearthv1.Phase_PHASE_UNSPECIFIED
}

func TestAPostIsWrittenWithinASecondOrTwo(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "fleet.db"))
	defer s.Close()
	r := record(hearthv1.Phase_PHASE_RUNNING)
	s.Post(fleet.Change{Op: "x", Record: r})
	for end := time.Now().Add(5 * time.Second); phaseOf(t, s, r.ID()) != hearthv1.Phase_PHASE_RUNNING; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it was not written")
		}
	}
}

func TestAPostRidesWithTheNextSave(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "fleet.db"))
	defer s.Close()
	r := record(hearthv1.Phase_PHASE_RUNNING)
	s.Post(fleet.Change{Op: "x", Record: r})
	if err := s.Save(fleet.Change{Op: "x", APIKey: &fleet.APIKey{ID: "k"}}); err != nil {
		t.Fatal(err)
	}
	if p := phaseOf(t, s, r.ID()); p != hearthv1.Phase_PHASE_RUNNING {
		t.Errorf("phase = %s", p)
	}
}

// A Save that fails takes the posts down with its transaction, also the one that
// it was to replace. They wait for the next.
func TestAPostThatCannotBeWrittenWaits(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "fleet.db"))
	defer s.Close()
	r, other := record(hearthv1.Phase_PHASE_RUNNING), record(hearthv1.Phase_PHASE_PAUSED)
	s.Post(fleet.Change{Op: "x", Record: r})
	s.Post(fleet.Change{Op: "x", Record: other})
	s.mu.Lock()
	s.writing = true // so that the next two come into one transaction
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range []fleet.Change{
		{Op: "x", DeleteRecord: r.ID()},
		{Op: "x", APIKey: &fleet.APIKey{ID: strings.Repeat("k", bolt.MaxKeySize+1)}},
	} {
		wg.Go(func() {
			if err := s.Save(c); err == nil {
				t.Error("a transaction with a key that is too large was written")
			}
		})
	}
	for waiting := 0; waiting < 2; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		waiting = len(s.waiting)
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.writing = false
	first := s.waiting[0]
	first.lead = true
	close(first.done)
	s.mu.Unlock()
	wg.Wait()
	if phaseOf(t, s, r.ID()) != 0 || phaseOf(t, s, other.ID()) != 0 {
		t.Fatal("half of the transaction was written")
	}
	if err := s.Save(fleet.Change{Op: "x", APIKey: &fleet.APIKey{ID: "k"}}); err != nil {
		t.Fatal(err)
	}
	if phaseOf(t, s, r.ID()) != hearthv1.Phase_PHASE_RUNNING || phaseOf(t, s, other.ID()) != hearthv1.Phase_PHASE_PAUSED {
		t.Error("the posts are lost")
	}
}
