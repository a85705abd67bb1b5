package ctrd

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

func slotNamed(i int) env.SlotID { return env.SlotID(fmt.Sprintf("s-%d", i)) }

func TestContainersShareShims(t *testing.T) {
	s := newShims(3)
	var got []env.SlotID
	for i := range 7 {
		leader, made := s.join(slotNamed(i), "runc")
		made(true)
		got = append(got, leader)
	}
	want := []env.SlotID{"s-0", "s-0", "s-0", "s-3", "s-3", "s-3", "s-6"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("leaders %v, want %v", got, want)
	}
	if err := s.leave(t.Context(), "s-0"); err != nil { // the leader goes first
		t.Fatal(err)
	}
	if leader, made := s.join("s-7", "runc"); leader != "s-0" {
		t.Errorf("the free place is in shim %s, not s-0", leader)
	} else {
		made(true)
	}
	if !s.serves("s-0") || s.leaderOf("s-7") != "s-0" || s.leaderOf("s-0") != "" {
		t.Error("a shim that has outlived its leader is not known")
	}
}

func TestOfTwoShimsTheFullerOneIsJoined(t *testing.T) {
	s := newShims(8)
	for i := range 3 {
		s.adopt(slotNamed(i), "s-0", "runc")
	}
	s.adopt("s-9", "s-9", "runc")
	for range 20 { // maps have no order
		leader, made := s.join("s-10", "runc")
		made(true)
		if err := s.leave(t.Context(), "s-10"); err != nil || leader != "s-0" {
			t.Fatal(leader, err)
		}
	}
}

func TestContainersOfDifferentRuntimesShareNoShim(t *testing.T) {
	s := newShims(8)
	s.adopt("s-0", "s-0", "runc")
	for i, runtime := range []string{"crun", "runc", "crun"} {
		leader, made := s.join(slotNamed(i+1), runtime)
		made(true)
		if want := map[string]env.SlotID{"runc": "s-0", "crun": "s-1"}[runtime]; leader != want {
			t.Errorf("a container of %s joins shim %s, want %s", runtime, leader, want)
		}
	}
}

func TestNobodyJoinsAShimThatMayNotRun(t *testing.T) {
	s := newShims(8)
	_, made := s.join("s-0", "runc")
	if leader, _ := s.join("s-1", "runc"); leader != "s-1" {
		t.Errorf("beside a shim that is being started, s-1 joins %s", leader)
	}
	made(false)
	if leader, _ := s.join("s-2", "runc"); leader != "s-2" {
		t.Errorf("s-2 joins %s, which did not start", leader)
	}
	if err := s.leave(t.Context(), "s-0"); err != nil || s.serves("s-0") {
		t.Errorf("what was never made is still served: %v", err)
	}
}

func TestAFailureClosesAShimForOthers(t *testing.T) {
	s := newShims(8)
	_, made := s.join("s-0", "runc")
	made(true)
	_, made = s.join("s-1", "runc")
	made(false)
	if leader, _ := s.join("s-2", "runc"); leader != "s-2" {
		t.Errorf("s-2 joins %s, in which one could not be made", leader)
	}
}

func TestAShimThatHasFailedStaysClosed(t *testing.T) {
	s := newShims(8)
	_, made := s.join("s-0", "runc")
	made(true)
	_, fails := s.join("s-1", "runc")
	_, works := s.join("s-2", "runc")
	fails(false)
	works(true)
	if leader, _ := s.join("s-3", "runc"); leader != "s-3" {
		t.Errorf("s-3 joins %s, in which one could not be made", leader)
	}
}

func TestTheLastContainerWaitsForThoseThatComeIntoItsShim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShims(8)
		_, made := s.join("s-0", "runc")
		made(true)
		leader, made := s.join("s-1", "runc")
		if leader != "s-0" {
			t.Fatal(leader)
		}
		left := make(chan error, 1)
		go func() { left <- s.leave(t.Context(), "s-0") }()
		synctest.Wait()
		select {
		case err := <-left:
			t.Fatalf("the shim was left to end under a container that comes: %v", err)
		default:
		}
		made(true)
		if err := <-left; err != nil {
			t.Error(err)
		}
		if !s.serves("s-0") {
			t.Error("the shim is said to be empty")
		}

		_, late := s.join("s-2", "runc")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.leave(ctx, "s-1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the wait for one that does not come = %v", err)
		}
		late(false)
		if err := s.leave(t.Context(), "s-2"); err != nil || s.serves("s-0") {
			t.Errorf("an empty shim serves: %v", err)
		}
	})
}

func TestAGroupIsInTheSpecification(t *testing.T) {
	spec := testSpec()
	spec.shim = "s-0"
	if got := ociSpec(spec, limits{noFile: 4096}).Annotations[annotationShim]; got != "s-0" {
		t.Errorf("annotation %q", got)
	}
}
