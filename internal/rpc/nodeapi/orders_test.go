package nodeapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/warm"
)

// heard notes the orders that pass.
type heard struct{ calls []string }

func (h *heard) SetClasses(context.Context, string, [][]byte) error {
	h.calls = append(h.calls, "classes")
	return nil
}
func (h *heard) ClassesRevision() string { return "7" }
func (h *heard) SetBudget(context.Context, uint64, uint64) error {
	h.calls = append(h.calls, "budget")
	return nil
}
func (h *heard) HandOver(context.Context) error { h.calls = append(h.calls, "hand over"); return nil }
func (h *heard) Served() error                  { h.calls = append(h.calls, "served"); return nil }

func TestOrdersThatCannotBeMeantArePassedToNobody(t *testing.T) {
	h := &heard{}
	s := New(Info{}, nil, nil, nil, nil, h)
	for name, test := range map[string]struct {
		call func() error
		want error
	}{
		"too many classes": {func() error {
			_, err := s.SetClasses(t.Context(), &hearthv1.SetClassesRequest{Revision: "1", Manifests: make([][]byte, maxClasses+1)})
			return err
		}, env.ErrInvalid},
		"classes without a revision": {func() error {
			_, err := s.SetClasses(t.Context(), &hearthv1.SetClassesRequest{})
			return err
		}, env.ErrInvalid},
		"a long revision": {func() error {
			_, err := s.SetClasses(t.Context(), &hearthv1.SetClassesRequest{Revision: strings.Repeat("x", maxClassRevision+1)})
			return err
		}, env.ErrInvalid},
		"a hand-over that is not asked on the node": {func() error {
			_, err := s.HandOver(t.Context(), &hearthv1.HandOverRequest{})
			return err
		}, env.ErrDenied},
		"its end neither": {func() error {
			_, err := s.HandOver(t.Context(), &hearthv1.HandOverRequest{Serving: true})
			return err
		}, env.ErrDenied},
	} {
		if err := test.call(); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if len(h.calls) != 0 {
		t.Errorf("passed: %v", h.calls)
	}
	if _, err := s.SetBudget(t.Context(), &hearthv1.SetBudgetRequest{MemoryBytes: 1}); err != nil || len(h.calls) != 1 {
		t.Errorf("budget: %v, %v", err, h.calls)
	}
}

func TestAnEnvironmentIsToldWithTheKeysOfItsClaim(t *testing.T) {
	s := New(Info{Node: "n"}, nil, nil, nil, nil, &heard{})
	claimed := time.Unix(1700000000, 0)
	got := s.environment(warm.Environment{
		ID: "e-1", Class: "c", Phase: env.PhaseFenced, Message: "lost", Claimed: claimed,
		Ephemeral: true, ClaimKey: []byte{1}, ClaimRequest: []byte{2},
	})
	want := &hearthv1.Environment{
		Id: "e-1", Class: "c", Phase: hearthv1.Phase_PHASE_FENCED, Message: "lost", Node: "n", ClaimedAt: timestamppb.New(claimed),
		Ephemeral: true, ClaimKey: []byte{1}, ClaimRequest: []byte{2},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	c, err := claimOf(&hearthv1.NodeClaimRequest{ClaimKey: []byte{1}, ClaimRequest: []byte{2}})
	if err != nil || string(c.ClaimKey) != "\x01" || string(c.ClaimRequest) != "\x02" {
		t.Errorf("claim = %+v, %v", c, err)
	}
	if !poolOf(warm.PoolView{Ephemeral: true}).GetEphemeral() {
		t.Error("the pool does not tell that its class is ephemeral")
	}
}

// Every phase that an environment can have is told.
func TestEveryPhaseHasAWordOnTheWire(t *testing.T) {
	for _, p := range []env.Phase{env.PhaseClaiming, env.PhaseRunning, env.PhasePaused, env.PhaseQuarantined, env.PhaseFenced, env.PhaseReleased, env.PhaseFailed} {
		if phases[p] == hearthv1.Phase_PHASE_UNSPECIFIED {
			t.Errorf("phase %s has none", p)
		}
	}
}
