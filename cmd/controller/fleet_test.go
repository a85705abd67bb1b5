package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func claimOf(key string) *hearthv1.ClaimRequest {
	return &hearthv1.ClaimRequest{IdempotencyKey: key, Spec: &hearthv1.ClaimSpec{Class: "small", Labels: map[string]string{"k": "v"}}}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}

func TestAClaimGoesToANodeAndItsLifeToItsEnd(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1"})
	api := c.client("a")
	ctx := t.Context()
	claimed, err := api.Claim(ctx, claimOf("k1"))
	ok(t, err)
	e := claimed.GetEnvironment()
	if e.GetTenant() != "a" || e.GetNode() != "n1" || e.GetGeneration() != 1 || !e.GetWarm() || claimed.GetAccess().GetToken() == "" {
		t.Errorf("claim = %v", claimed)
	}
	if len(claimed.GetPlacement()) != 1 || !strings.Contains(claimed.GetPlacement()[0], "chosen") {
		t.Errorf("placement = %q", claimed.GetPlacement())
	}
	paused, err := api.Pause(ctx, &hearthv1.PauseRequest{IdempotencyKey: "p", Environment: e.GetId()})
	ok(t, err)
	if paused.GetEnvironment().GetPhase() != hearthv1.Phase_PHASE_PAUSED {
		t.Errorf("pause = %v", paused)
	}
	list, err := api.List(ctx, &hearthv1.ListRequest{Class: "small"})
	ok(t, err)
	if len(list.GetEnvironments()) != 1 || list.GetEnvironments()[0].GetPhase() != hearthv1.Phase_PHASE_PAUSED {
		t.Errorf("list = %v", list)
	}
	_, err = api.Release(ctx, &hearthv1.ReleaseRequest{IdempotencyKey: "r", Environment: e.GetId()})
	ok(t, err)
	if got := n.has(); len(got) != 0 {
		t.Errorf("after the release the node has %v", got)
	}
	_, err = api.Pause(ctx, &hearthv1.PauseRequest{IdempotencyKey: "p2", Environment: e.GetId()})
	wantErr(t, err, env.ErrState)
	_, err = api.Token(ctx, &hearthv1.TokenRequest{Environment: string(env.NewID())})
	wantErr(t, err, env.ErrNotFound)
}

func TestAClaimGoesElsewhereWhenANodeRefuses(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	full := startNode(t, c, &fakeNode{name: "a-full", refuse: fmt.Errorf("%w: no slot", env.ErrExhausted)})
	good := startNode(t, c, &fakeNode{name: "b-good"})
	got, err := c.client("a").Claim(t.Context(), claimOf("k"))
	ok(t, err)
	if got.GetEnvironment().GetNode() != "b-good" {
		t.Errorf("claimed on %s", got.GetEnvironment().GetNode())
	}
	if full.count(&full.calls) != 1 || len(good.has()) != 1 {
		t.Errorf("calls to the full node = %d, environments on the good one = %v", full.count(&full.calls), good.has())
	}
	if !strings.Contains(got.GetPlacement()[0], "a-full: refused") {
		t.Errorf("placement = %q", got.GetPlacement())
	}
}

func TestAClaimThatEveryNodeRefusesSaysWhyAndLeavesNothing(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1", refuse: fmt.Errorf("%w: disk full", env.ErrExhausted)})
	time.Sleep(quick.LostAfter) // the time is over in which nodes are still expected
	api := c.client("a")
	_, err := api.Claim(t.Context(), claimOf("k"))
	wantErr(t, err, env.ErrExhausted)
	if err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error = %v, want the node's reason in it", err)
	}
	list, err := api.List(t.Context(), &hearthv1.ListRequest{})
	ok(t, err)
	if len(list.GetEnvironments()) != 0 {
		t.Errorf("list = %v", list)
	}
	n.set(func(n *fakeNode) { n.refuse = nil })
	eventually(t, "the same key claims", func() bool { _, err := api.Claim(t.Context(), claimOf("k")); return err == nil })
	_, err = api.Claim(t.Context(), &hearthv1.ClaimRequest{IdempotencyKey: "u", Spec: &hearthv1.ClaimSpec{Class: "unknown"}})
	wantErr(t, err, env.ErrNotFound)
}

func TestANodeThatDiesMidClaimLeavesOneGeneration(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	dying := startNode(t, c, &fakeNode{name: "a-dying", cut: true})
	good := startNode(t, c, &fakeNode{name: "b-good"})
	got, err := c.client("a").Claim(t.Context(), claimOf("k"))
	ok(t, err)
	id := got.GetEnvironment().GetId()
	if n := got.GetEnvironment(); n.GetNode() != "b-good" || n.GetGeneration() != 2 {
		t.Errorf("claimed on %s, generation %d; want b-good, 2", n.GetNode(), n.GetGeneration())
	}
	if dying.count(&dying.calls) != 2 {
		t.Errorf("the dying node was asked %d times, want 2: once more with the same key", dying.count(&dying.calls))
	}
	// The dying node still reports, so the stale generation goes at once.
	eventually(t, "only generation 2 runs", func() bool { return len(dying.has()) == 0 })
	if diff := cmp.Diff(map[string]uint64{id: 2}, good.has()); diff != "" {
		t.Error(diff)
	}
}

func TestAStaleGenerationIsReleasedWhenItsNodeComesBack(t *testing.T) {
	dir := t.TempDir()
	c := startControl(t, dir, "127.0.0.1:0", quick, nil)
	slow := startNode(t, c, &fakeNode{name: "a-slow", slow: 1500 * time.Millisecond})
	good := startNode(t, c, &fakeNode{name: "b-good"})
	api := c.client("a")
	got, err := api.Claim(t.Context(), claimOf("k"))
	ok(t, err)
	if n := got.GetEnvironment(); n.GetNode() != "b-good" || n.GetGeneration() != 2 {
		t.Fatalf("claimed on %s, generation %d; want b-good, 2", n.GetNode(), n.GetGeneration())
	}
	// It claims after the sweep's release found nothing: the inventory shows it.
	eventually(t, "the slow node has claimed", func() bool { return len(slow.has()) == 1 || slow.count(&slow.releases) > 0 })
	c.stop()
	c2 := startControl(t, dir, c.addr, quick, nil)
	eventually(t, "both nodes are back", func() bool {
		up := 0
		for _, n := range c2.fleet.Nodes() {
			if n.Ready {
				up++
			}
		}
		return up == 2
	})
	eventually(t, "the stale generation is gone", func() bool { return len(slow.has()) == 0 })
	if diff := cmp.Diff(map[string]uint64{got.GetEnvironment().GetId(): 2}, good.has()); diff != "" {
		t.Error(diff)
	}
}

func TestRepeatingAKeyRepeatsTheAnswerOverRestarts(t *testing.T) {
	dir := t.TempDir()
	c := startControl(t, dir, "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1"})
	_, secret, err := c.fleet.CreateAPIKey("a", false)
	ok(t, err)
	first, err := c.clientWith(secret).Claim(t.Context(), claimOf("k"))
	ok(t, err)
	again, err := c.clientWith(secret).Claim(t.Context(), claimOf("k"))
	ok(t, err)
	if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	other := claimOf("k")
	other.Spec.Hostname = "other"
	_, err = c.clientWith(secret).Claim(t.Context(), other)
	wantErr(t, err, env.ErrExists)
	c.stop()
	c2 := startControl(t, dir, c.addr, quick, nil)
	again, err = c2.clientWith(secret).Claim(t.Context(), claimOf("k"))
	ok(t, err)
	if diff := cmp.Diff(first, again, protocmp.Transform(), protocmp.IgnoreFields(&hearthv1.ClaimResponse{}, "placement")); diff != "" {
		t.Error(diff)
	}
	if n.count(&n.calls) != 2 || n.made() != 1 { // the new controller has no answers, and asks
		t.Errorf("the node was asked %d times and made %d", n.count(&n.calls), n.made())
	}
	if c2.fleet.Epoch() != c.fleet.Epoch()+1 {
		t.Errorf("epochs = %d, %d", c.fleet.Epoch(), c2.fleet.Epoch())
	}
}

func TestConcurrentRepeatsOfAKeyMakeOneEnvironment(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1", slow: 50 * time.Millisecond})
	api := c.client("a")
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			r, err := api.Claim(context.Background(), claimOf("same"))
			if err == nil {
				ids[i] = r.GetEnvironment().GetId()
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("ids = %q", ids)
		}
	}
	if got := n.has(); len(got) != 1 || n.count(&n.calls) != 1 {
		t.Errorf("node has %v after %d calls", got, n.count(&n.calls))
	}
}

func TestATenantSeesOnlyItsOwn(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	startNode(t, c, &fakeNode{name: "n1"})
	a, b := c.client("a"), c.client("b")
	ctx := t.Context()
	got, err := a.Claim(ctx, claimOf("k"))
	ok(t, err)
	id := got.GetEnvironment().GetId()
	calls := map[string]func() error{
		"get": func() error { _, err := b.Get(ctx, &hearthv1.GetRequest{Environment: id}); return err },
		"pause": func() error {
			_, err := b.Pause(ctx, &hearthv1.PauseRequest{IdempotencyKey: "x", Environment: id})
			return err
		},
		"resume": func() error {
			_, err := b.Resume(ctx, &hearthv1.ResumeRequest{IdempotencyKey: "x", Environment: id})
			return err
		},
		"snapshot": func() error {
			_, err := b.Snapshot(ctx, &hearthv1.SnapshotRequest{IdempotencyKey: "x", Environment: id})
			return err
		},
		"snapshots": func() error {
			_, err := b.ListSnapshots(ctx, &hearthv1.ListSnapshotsRequest{Environment: id})
			return err
		},
		"fork": func() error {
			_, err := b.Fork(ctx, &hearthv1.ForkRequest{IdempotencyKey: "x", Environment: id, Count: 1})
			return err
		},
		"release": func() error {
			_, err := b.Release(ctx, &hearthv1.ReleaseRequest{IdempotencyKey: "x", Environment: id})
			return err
		},
		"token": func() error { _, err := b.Token(ctx, &hearthv1.TokenRequest{Environment: id}); return err },
		"restore": func() error {
			r := claimOf("restore")
			r.Spec.Snapshot = id + "/1"
			_, err := b.Claim(ctx, r)
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { wantErr(t, call(), env.ErrNotFound) })
	}
	list, err := b.List(ctx, &hearthv1.ListRequest{})
	ok(t, err)
	if len(list.GetEnvironments()) != 0 {
		t.Errorf("b sees %v", list)
	}
	foreign := claimOf("foreign")
	foreign.Spec.Tenant = "a"
	_, err = b.Claim(ctx, foreign)
	wantErr(t, err, env.ErrDenied)
	same, err := b.Claim(ctx, claimOf("k")) // the same key of another tenant is another key
	ok(t, err)
	if same.GetEnvironment().GetId() == id {
		t.Error("b was given a's answer")
	}
	_, err = c.clientWith("hearth_00000000_"+strings.Repeat("0", 64)).List(ctx, &hearthv1.ListRequest{})
	wantErr(t, err, env.ErrDenied)
}

func TestADeletedKeyIsRefusedAtOnce(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	k, secret, err := c.fleet.CreateAPIKey("a", false)
	ok(t, err)
	api := c.clientWith(secret)
	_, err = api.List(t.Context(), &hearthv1.ListRequest{})
	ok(t, err)
	ok(t, c.fleet.DeleteAPIKey(k.ID))
	_, err = api.List(t.Context(), &hearthv1.ListRequest{})
	wantErr(t, err, env.ErrDenied)
}

func TestForkMakesChildrenOnceAndRemembersThem(t *testing.T) {
	dir := t.TempDir()
	c := startControl(t, dir, "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1"})
	api := c.client("a")
	parent, err := api.Claim(t.Context(), claimOf("k"))
	ok(t, err)
	fork := &hearthv1.ForkRequest{IdempotencyKey: "f", Environment: parent.GetEnvironment().GetId(), Count: 3}
	first, err := api.Fork(t.Context(), fork)
	ok(t, err)
	again, err := api.Fork(t.Context(), fork)
	ok(t, err)
	if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if len(first.GetChildren()) != 3 || len(n.has()) != 4 {
		t.Errorf("fork = %v, node has %v", first, n.has())
	}
	fork.Count = 17
	_, err = api.Fork(t.Context(), fork)
	wantErr(t, err, env.ErrInvalid)
}

func TestARefusedForkLeavesNoChildAndItsKeyForksLater(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1", halfFork: true})
	api := c.client("a")
	parent, err := api.Claim(t.Context(), claimOf("k"))
	ok(t, err)
	id := parent.GetEnvironment().GetId()
	fork := &hearthv1.ForkRequest{IdempotencyKey: "f", Environment: id, Count: 3}
	_, err = api.Fork(t.Context(), fork)
	wantErr(t, err, env.ErrExhausted)
	if n.made() != 2 {
		t.Fatalf("the node made %d environments, want the parent and one child", n.made())
	}
	eventually(t, "the child that was made is released", func() bool { return cmp.Equal(n.has(), map[string]uint64{id: 1}) })
	list, err := api.List(t.Context(), &hearthv1.ListRequest{})
	ok(t, err)
	for _, e := range list.GetEnvironments() {
		if e.GetId() != id && (e.GetPhase() != hearthv1.Phase_PHASE_FAILED || !strings.Contains(e.GetMessage(), "no slot for child 2")) {
			t.Errorf("left: %v", e)
		}
	}
	n.set(func(n *fakeNode) { n.halfFork = false })
	got, err := api.Fork(t.Context(), fork)
	ok(t, err)
	if len(got.GetChildren()) != 3 || len(n.has()) != 4 {
		t.Errorf("the repeated fork = %v; the node has %v", got, n.has())
	}
}

func TestWhatANodeNoLongerHasIsFailedAndWhatNobodyKnowsIsAdopted(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1"})
	api := c.client("a")
	got, err := api.Claim(t.Context(), claimOf("k"))
	ok(t, err)
	id, stranger := got.GetEnvironment().GetId(), string(env.NewID())
	n.set(func(n *fakeNode) {
		delete(n.envs, id)
		n.envs[stranger] = &hearthv1.Environment{Id: stranger, Class: "small", Tenant: "a", Generation: 7, Phase: hearthv1.Phase_PHASE_RUNNING}
	})
	eventually(t, "the lost one is failed", func() bool {
		e, err := api.Get(t.Context(), &hearthv1.GetRequest{Environment: id})
		return err == nil && e.GetEnvironment().GetPhase() == hearthv1.Phase_PHASE_FAILED && e.GetEnvironment().GetMessage() != ""
	})
	eventually(t, "the stranger is adopted", func() bool {
		e, err := api.Get(t.Context(), &hearthv1.GetRequest{Environment: stranger})
		return err == nil && e.GetEnvironment().GetGeneration() == 7 && e.GetEnvironment().GetNode() == "n1"
	})
}

func TestAReleaseWaitsForASilentNodeAndThenHappens(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1"})
	api := c.client("a")
	got, err := api.Claim(t.Context(), claimOf("k"))
	ok(t, err)
	held := n.has()
	n.stop()
	_, err = api.Release(t.Context(), &hearthv1.ReleaseRequest{IdempotencyKey: "s", Environment: got.GetEnvironment().GetId(), Snapshot: true})
	wantErr(t, err, env.ErrUnavailable) // a snapshot cannot wait: nothing is lost silently
	_, err = api.Release(t.Context(), &hearthv1.ReleaseRequest{IdempotencyKey: "r", Environment: got.GetEnvironment().GetId()})
	ok(t, err)
	back := &fakeNode{name: "n1"}
	eventually(t, "the controller noticed", func() bool { return !c.fleet.Reporting("n1") })
	startNode(t, c, back)
	back.set(func(n *fakeNode) {
		for id, g := range held {
			n.envs[id] = &hearthv1.Environment{Id: id, Class: "small", Tenant: "a", Generation: g, Phase: hearthv1.Phase_PHASE_RUNNING}
		}
	})
	eventually(t, "the node has let go", func() bool { return len(back.has()) == 0 })
}

func TestASilentNodeGetsNoClaims(t *testing.T) {
	c := startControl(t, t.TempDir(), "127.0.0.1:0", quick, nil)
	n := startNode(t, c, &fakeNode{name: "n1"})
	n.stop()
	eventually(t, "the node is not placeable", func() bool { return !c.fleet.Nodes()[0].Ready })
	time.Sleep(quick.LostAfter)
	_, err := c.client("a").Claim(t.Context(), claimOf("k"))
	wantErr(t, err, env.ErrExhausted)
	if err == nil || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("error = %v", err)
	}
}
