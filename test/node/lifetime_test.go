package node

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// sleeps waits until the node has paused the environment because it did nothing.
func (a *agent) sleeps(t *testing.T, c stage.Claimed) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		e := a.get(t, c.ID())
		// The phase is there a moment before the freeze is complete.
		if frozen := a.frozen(t, c); e.GetPhase() != hearthv1.Phase_PHASE_PAUSED || e.GetReason() != "idle" || !frozen {
			return fmt.Errorf("environment %s is %s %q, frozen %t", c.ID(), e.GetPhase(), e.GetReason(), frozen)
		}
		return nil
	})
}

// woken checks that it runs again.
func (a *agent) woken(t *testing.T, c stage.Claimed, by string) {
	t.Helper()
	if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_RUNNING || e.GetReason() != "" || e.GetMessage() != "" || a.frozen(t, c) {
		t.Errorf("after %s it is %s %q (%s), frozen %t", by, e.GetPhase(), e.GetReason(), e.GetMessage(), a.frozen(t, c))
	}
}

func TestNodeAnIdleEnvironmentSleepsAndWakesWhenItIsUsed(t *testing.T) {
	a := node(t)
	idle, busy, open := a.claim(t, "sleepy"), a.claim(t, "sleepy"), a.claim(t, "sleepy")
	_, err := a.Hearthctl.Sh(busy, "while :; do :; done >/dev/null 2>&1 </dev/null &")
	ok(t, err)
	session := a.Hearthctl.Command("exec", open.ID(), "--", "sleep", "1000")
	ok(t, session.Start())
	defer func() { _ = session.Process.Kill(); _ = session.Wait() }()

	a.sleeps(t, idle)
	begun := time.Now()
	out, err := a.Hearthctl.Sh(idle, "echo awake")
	if err != nil || strings.TrimSpace(out) != "awake" {
		t.Errorf("exec in one that slept: %q, %v", out, err)
	}
	t.Logf("exec in one that slept, hearthctl's start included: %s", time.Since(begun))
	a.woken(t, idle, "an exec")

	a.sleeps(t, idle)
	if _, err := idle.Get(7777, "/"); err == nil {
		t.Error("a port that is not listed answers")
	}
	if e := a.get(t, idle.ID()); e.GetPhase() != hearthv1.Phase_PHASE_PAUSED {
		t.Error("a port that is not listed has woken it")
	}
	begun = time.Now()
	page, err := idle.Get(8000, "/index.html")
	if err != nil || !strings.Contains(page, "ready") {
		t.Errorf("a listed port of one that slept: %q, %v", page, err)
	}
	t.Logf("a page of one that slept: %s", time.Since(begun))
	a.woken(t, idle, "a connection to a listed port")

	a.sleeps(t, idle)
	if _, err := guest(t, idle, idle.ID(), idle.Access.Token).ListDir(t.Context(), &hearthv1.ListDirRequest{Path: "/"}); err != nil {
		t.Error(err)
	}
	a.woken(t, idle, "a file call")

	for name, c := range map[string]stage.Claimed{"that works": busy, "that somebody uses": open} {
		if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("one %s is %s: %s", name, e.GetPhase(), e.GetMessage())
		}
	}

	for _, name := range []string{"hearth_environment_idle_resume_seconds_sum", "hearth_environment_idle_resume_seconds_count"} {
		v, err := stage.Metric(name)
		t.Logf("%s %s %v", name, v, err)
	}

	// What its owner pauses stays paused.
	a.sleeps(t, idle)
	_, err = a.Node.Pause(t.Context(), &hearthv1.NodePauseRequest{Environment: idle.ID()})
	ok(t, err)
	_, err = guest(t, idle, idle.ID(), idle.Access.Token).ListDir(t.Context(), &hearthv1.ListDirRequest{Path: "/"})
	fails(t, err, env.ErrState, "resume it first")
	for _, c := range []stage.Claimed{idle, busy, open} {
		a.release(t, c)
	}
}

func TestNodeATimeToLiveReleasesAndAnExtensionHoldsOverKill9(t *testing.T) {
	a := node(t)
	claimFor := func(class string, d time.Duration) stage.Claimed {
		return a.claimSpec(t, &hearthv1.ClaimSpec{Class: class, TimeToLive: durationpb.New(d)})
	}
	extended, short, away := claimFor("brief", 10*time.Second), claimFor("brief", 2*time.Second), claimFor("brief", 10*time.Second)
	a.forget(short.ID(), short.Environment.Slot, away.ID(), away.Environment.Slot)
	eventually(t, 10*time.Second, func() error { return a.expired(short) })
	_, err := a.Node.Extend(t.Context(), &hearthv1.NodeExtendRequest{
		Environment: extended.ID(), End: &hearthv1.NodeExtendRequest_Duration{Duration: durationpb.New(2 * time.Hour)},
	})
	fails(t, err, env.ErrInvalid, "class brief allows 1h0m0s")
	resp, err := a.Node.Extend(t.Context(), &hearthv1.NodeExtendRequest{
		Environment: extended.ID(), End: &hearthv1.NodeExtendRequest_Duration{Duration: durationpb.New(time.Hour)},
	})
	ok(t, err)
	a.kill(t)
	time.Sleep(11 * time.Second)
	a.up(t)
	eventually(t, 10*time.Second, func() error { return a.expired(away) })
	a.alive(t, extended)
	if got, want := a.get(t, extended.ID()).GetExpiresAt().AsTime(), resp.GetEnvironment().GetExpiresAt().AsTime(); !got.Equal(want) {
		t.Errorf("it ends at %s, was extended until %s", got, want)
	}
	if err := a.expired(short); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	_, err = a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "brief", TimeToLive: durationpb.New(2 * time.Hour)}})
	fails(t, err, env.ErrInvalid, "lifetime.maxTimeToLive")
	a.release(t, extended)
}

// expired is nil if the node has released the environment and says why.
func (a *agent) expired(c stage.Claimed) error {
	resp, err := a.Node.Get(context.Background(), &hearthv1.NodeGetRequest{Environment: c.ID()})
	if e := resp.GetEnvironment(); err != nil || e.GetPhase() != hearthv1.Phase_PHASE_RELEASED || e.GetReason() != "expired" {
		return fmt.Errorf("environment %s is %s %q, %w", c.ID(), e.GetPhase(), e.GetReason(), err)
	}
	return nil
}
