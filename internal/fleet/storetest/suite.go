package storetest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Run checks a Store against its contract. Open opens the same store again and
// again: each time the one before was closed.
func Run(t *testing.T, open func(*testing.T) fleet.Store) {
	t.Helper()
	t.Run("a change is there after reopening, whole", func(t *testing.T) { survives(t, open) })
	t.Run("epochs rise over restarts", func(t *testing.T) { epochsRise(t, open) })
}

func full() fleet.State {
	now := time.Now().UTC().Round(0)
	return fleet.State{
		Records: []*fleet.Record{
			{Environment: &hearthv1.Environment{Id: "e-1", Tenant: "a", Generation: 3, Labels: map[string]string{"k": "v"}}, Changed: now,
				Stale: []fleet.Placement{{Node: "n1", Generation: 2}}, Snapshots: true, Ended: true},
			{Environment: &hearthv1.Environment{Id: "e-2"}, Changed: now},
		},
		Answers: []*fleet.Answer{
			{AnswerKey: fleet.AnswerKey{Tenant: "a", Key: "bc"}, Request: sha256.Sum256([]byte("1")), Environments: []env.ID{"e-1"}, Response: []byte{1, 2}, Expires: now},
			{AnswerKey: fleet.AnswerKey{Tenant: "ab", Key: "c"}, Request: sha256.Sum256([]byte("2")), Environments: []env.ID{"e-2"}, Expires: now},
		},
		APIKeys:    []fleet.APIKey{{ID: "k1", Tenant: "a", Hash: sha256.Sum256([]byte("3")), Created: now}, {ID: "k2", Admin: true, Created: now}},
		JoinTokens: []fleet.JoinToken{{Hash: sha256.Sum256([]byte("4")), Expires: now}, {Expires: now}},
	}
}

func survives(t *testing.T, open func(*testing.T) fleet.Store) {
	t.Helper()
	want := full()
	s := open(t)
	check(t, s, fleet.State{})
	save(t, s, fleet.Change{Op: "all", Put: want})
	check(t, s, want)
	s = reopen(t, s, open)
	check(t, s, want)

	changed := *want.Records[0]
	changed.Environment = &hearthv1.Environment{Id: "e-1", Tenant: "a", Generation: 4}
	changed.Stale = nil
	save(t, s, fleet.Change{
		Op: "mixed", Put: fleet.State{Records: []*fleet.Record{&changed}},
		DeleteRecords: []env.ID{"e-2", "e-unknown"}, DeleteAnswers: []fleet.AnswerKey{{Tenant: "a", Key: "bc"}, {Tenant: "", Key: "x"}},
		DeleteAPIKeys: []string{"k1"}, DeleteJoinTokens: []fleet.JoinToken{want.JoinTokens[0]},
	})
	want = fleet.State{Records: []*fleet.Record{&changed}, Answers: want.Answers[1:], APIKeys: want.APIKeys[1:], JoinTokens: want.JoinTokens[1:]}
	s = reopen(t, s, open)
	check(t, s, want)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func epochsRise(t *testing.T, open func(*testing.T) fleet.Store) {
	t.Helper()
	s := open(t)
	last := uint64(0)
	for range 3 {
		for range 2 {
			e, err := s.NextEpoch()
			if err != nil || e <= last {
				t.Fatalf("epoch %d after %d: %v", e, last, err)
			}
			last = e
		}
		s = reopen(t, s, open)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func save(t *testing.T, s fleet.Store, c fleet.Change) {
	t.Helper()
	if err := s.Save(c); err != nil {
		t.Fatal(err)
	}
}

func reopen(t *testing.T, s fleet.Store, open func(*testing.T) fleet.Store) fleet.Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t)
}

func check(t *testing.T, s fleet.Store, want fleet.State) {
	t.Helper()
	got, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(sorted(want), sorted(got), protocmp.Transform()); diff != "" {
		t.Errorf("store differs (-want +got):\n%s", diff)
	}
}

func sorted(s fleet.State) fleet.State {
	s.Records, s.Answers = slices.Clone(s.Records), slices.Clone(s.Answers)
	s.APIKeys, s.JoinTokens = slices.Clone(s.APIKeys), slices.Clone(s.JoinTokens)
	slices.SortFunc(s.Records, func(a, b *fleet.Record) int { return cmp.Compare(a.ID(), b.ID()) })
	slices.SortFunc(s.Answers, func(a, b *fleet.Answer) int { return strings.Compare(a.Tenant+"/"+a.Key, b.Tenant+"/"+b.Key) })
	slices.SortFunc(s.APIKeys, func(a, b fleet.APIKey) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(s.JoinTokens, func(a, b fleet.JoinToken) int { return bytes.Compare(a.Hash[:], b.Hash[:]) })
	return s
}
