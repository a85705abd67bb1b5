package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// A claim of a pool that is just empty waits for the slot that is on its way, and
// says so.
func TestNodeAClaimWaitsForTheSlotThatIsNearlyReady(t *testing.T) {
	a := node(t)
	a.beginClass(t, "single", `  image: hearth.local/busybox:1
  readiness: {command: [sh, -c, "sleep 1"], timeout: 20s}
  resources: {memory: 64Mi}
  warm: {slots: 1}
`)
	before := len(a.slotDirs())
	first := a.claim(t, "single")
	eventually(t, 10*time.Second, func() error {
		if p := a.pool(t, "single"); p.GetPreparing() != 1 {
			return fmt.Errorf("pool %v", p)
		}
		return nil
	})
	out, stderr, code := a.Hearthctl.Try("claim", "--class", "single", "-o", "name")
	if id := strings.TrimSpace(out); code != 0 || !strings.Contains(stderr, "claimed "+id+" queued in ") || !strings.Contains(stderr, "of which it waited ") {
		t.Fatalf("exit code %d, output %q, %q", code, out, stderr)
	}
	second := a.get(t, strings.TrimSpace(out))
	if !second.GetWarm() || second.GetServed() != "queued" || second.GetWaited().AsDuration() <= 0 {
		t.Errorf("second claim: warm %t, served %q, waited %s", second.GetWarm(), second.GetServed(), second.GetWaited().AsDuration())
	}
	if e := a.get(t, first.ID()); e.GetServed() != "warm" || e.GetWaited() != nil {
		t.Errorf("first claim: served %q, waited %s", e.GetServed(), e.GetWaited())
	}
	if n := len(a.slotDirs()); n > before+2 { // the two, and the pool's next
		t.Errorf("%d slots exist, %d did before: one was made for the claim that waited", n, before)
	}
	if got := a.series(t, `hearth_claim_wait_seconds_count{outcome="slot"}`); got < 1 {
		t.Errorf("%v waits were counted", got)
	}
	for _, id := range []string{first.ID(), second.GetId()} {
		slot := a.get(t, id).GetSlot()
		_, err := a.Node.Release(t.Context(), &hearthv1.NodeReleaseRequest{Environment: id})
		ok(t, err)
		a.forget(id, slot)
	}
}

// Claims beyond what a node makes at once take their turns; those whose time is over
// are told so, those whose callers go away leave nothing, and neither does an agent
// that is killed meanwhile.
func TestNodeClaimsTakeTurnsAndNothingOfThoseThatWaitedIsLeft(t *testing.T) {
	a := node(t)
	a.beginClass(t, "turns", "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n  warm: {wait: 30s}\n")
	a.beginClass(t, "stuck", "  image: hearth.local/busybox:1\n  readiness: {command: [test, -e, /never], timeout: 6s}\n  resources: {memory: 64Mi}\n  warm: {wait: 1s}\n")

	var wg sync.WaitGroup
	var mu sync.Mutex
	var served []*hearthv1.NodeClaimResponse
	for range 10 {
		wg.Go(func() {
			resp, err := a.Node.Claim(context.Background(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "turns"}})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			served = append(served, resp)
		})
	}
	wg.Wait()
	waited := 0
	for _, r := range served {
		if r.GetEnvironment().GetServed() != "cold" {
			t.Errorf("served %q, the class has no pool", r.GetEnvironment().GetServed())
		}
		if r.GetEnvironment().GetWaited().AsDuration() > 0 {
			waited++
		}
		a.release(t, claimed(r))
	}
	if waited < 4 || waited > 6 {
		t.Errorf("%d of 10 claims waited, the node makes 4 slots at once", waited)
	}

	// Four that do not come up, one that waits in vain, one whose caller goes away.
	failures := make(chan error, 4)
	for range 4 {
		go func() {
			_, err := a.Node.Claim(context.Background(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "stuck"}})
			failures <- err
		}()
	}
	eventually(t, 5*time.Second, func() error {
		if n := len(a.slotDirs()); n < warm+4 {
			return fmt.Errorf("%d slots", n)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := a.Node.Claim(ctx, &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "turns"}}); err == nil {
		t.Error("a claim was answered whose caller had gone")
	}
	_, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "stuck"}})
	fails(t, err, env.ErrExhausted, "had no slot for 1", "4 made for claims", "warm.wait", "claims.coldStarts")
	for range 4 {
		if err := <-failures; err == nil || errors.Is(err, env.ErrExhausted) {
			t.Errorf("a claim whose probe never passes: %v", err)
		}
	}

	// Killed while ten wait and some start.
	answers := make(chan error, 10)
	for range 10 {
		go func() {
			_, err := a.Node.Claim(context.Background(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "stuck"}})
			answers <- err
		}()
	}
	time.Sleep(300 * time.Millisecond)
	a.kill(t)
	for range 10 {
		if err := <-answers; err == nil {
			t.Error("a claim was answered by a dead agent")
		}
	}
	a.up(t)
	a.poolFull(t)
	list, err := a.Node.List(t.Context(), &hearthv1.NodeListRequest{})
	ok(t, err)
	if len(list.GetEnvironments()) != 0 {
		t.Errorf("environments: %v", list.GetEnvironments())
	}
}

// The slots that wait for restores are used by them, cost no process of the image,
// and end with their agent.
func TestNodeForksUseCreatedSlotsWhichEndWithTheAgent(t *testing.T) {
	a := node(t)
	a.beginClass(t, "laid", "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n  warm: {created: 2}\n")
	a.created(t, "laid", 2)
	plain := a.slotDirs() // the pool of web, and the two
	parent := a.claim(t, "laid")
	if !slices.Contains(names(plain), parent.Environment.Slot) {
		t.Errorf("a cold claim got slot %s, created were some of %v", parent.Environment.Slot, names(plain))
	}
	a.says(t, parent, "echo mine > /etc/mark; echo ours > /workspace/mark")
	a.created(t, "laid", 2)
	before := names(a.slotDirs())
	forked, err := a.Node.Fork(t.Context(), &hearthv1.NodeForkRequest{Environment: parent.ID(), Children: []*hearthv1.NodeClaimRequest{{}, {}}})
	ok(t, err)
	for _, r := range forked.GetChildren() {
		child := claimed(r)
		if !slices.Contains(before, child.Environment.Slot) {
			t.Errorf("a fork got slot %s, which was not there before", child.Environment.Slot)
		}
		if got := a.says(t, child, "cat /etc/mark /workspace/mark; hostname; id -u"); got != "mine\nours\n"+child.ID()+"\n0" {
			t.Errorf("a fork in a created slot has %q", got)
		}
		a.alive(t, child)
		a.release(t, child)
	}
	a.created(t, "laid", 2)
	old := names(a.slotDirs())
	a.kill(t)
	a.up(t)
	a.alive(t, parent)
	a.created(t, "laid", 2)
	after := names(a.slotDirs())
	same := func(slot string) bool { return slices.Contains(after, slot) }
	gone := slices.DeleteFunc(slices.Clone(old), same)
	if len(gone) != 2 || len(after) != len(old) {
		t.Errorf("of slots %v there are %v: created ones end with the agent, and others are made", old, after)
	}
	a.forget(gone...)
	a.release(t, parent)
}

// created waits until the class has so many created slots.
func (a *agent) created(t *testing.T, class string, want uint32) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if p := a.pool(t, class); p.GetCreated() != want || p.GetPreparing() != 0 {
			return fmt.Errorf("pool %v", p)
		}
		return nil
	})
}

// names are the slots of their cgroups.
func names(dirs []string) []string {
	out := make([]string, len(dirs))
	for i, dir := range dirs {
		out[i] = filepath.Base(dir)
	}
	return out
}
