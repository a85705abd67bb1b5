package node

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// claimSpec claims over the socket and returns what hearthctl would.
func (a *agent) claimSpec(t *testing.T, spec *hearthv1.ClaimSpec) stage.Claimed {
	t.Helper()
	resp, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Spec: spec})
	ok(t, err)
	return claimed(resp)
}

func claimed(r *hearthv1.NodeClaimResponse) (c stage.Claimed) {
	e := r.GetEnvironment()
	c.Environment.ID, c.Environment.Slot, c.Environment.Warm = e.GetId(), e.GetSlot(), e.GetWarm()
	c.Environment.PID, c.Environment.Address = int(e.GetPid()), e.GetAddress()
	c.Access.Address, c.Access.Token, c.Access.CAPEM = r.GetAccess().GetAddress(), r.GetAccess().GetToken(), r.GetAccess().GetCaPem()
	return c
}

func TestNodeRepeatedKeyGivesTheFirstAnswerAlsoAfterARestart(t *testing.T) {
	a := node(t)
	req := &hearthv1.NodeClaimRequest{IdempotencyKey: "key-" + t.Name(), Spec: &hearthv1.ClaimSpec{Class: "web", Variables: map[string]string{"GREETING": "once"}}}
	first, err := a.Node.Claim(t.Context(), req)
	ok(t, err)
	again := func() {
		t.Helper()
		second, err := a.Node.Claim(t.Context(), req)
		ok(t, err)
		if first.GetEnvironment().GetId() != second.GetEnvironment().GetId() || first.GetAccess().GetToken() != second.GetAccess().GetToken() {
			t.Errorf("the repetition gives %s, the first claim gave %s", second.GetEnvironment().GetId(), first.GetEnvironment().GetId())
		}
	}
	again()
	other := &hearthv1.NodeClaimRequest{IdempotencyKey: req.GetIdempotencyKey(), Spec: &hearthv1.ClaimSpec{Class: "web"}}
	_, err = a.Node.Claim(t.Context(), other)
	fails(t, err, env.ErrInvalid, "key-"+t.Name(), "use a new key")
	a.kill(t)
	a.up(t)
	again()
	_, err = a.Node.Claim(t.Context(), other)
	fails(t, err, env.ErrInvalid, "use a new key")
	a.alive(t, claimed(first))
	a.release(t, claimed(first))
	_, err = a.Node.Claim(t.Context(), req)
	fails(t, err, env.ErrState, first.GetEnvironment().GetId(), "was released")
}

// Twenty claims at once, with a pool of four: the rest starts cold, and the
// node's limit holds at every moment. The one beyond the limit is told why.
func TestNodeTwentyClaimsAtOnceStayWithinTheLimit(t *testing.T) {
	a := node(t)
	const many = 20
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		all     []stage.Claimed
		errs    []error
		stop    = make(chan struct{})
		watched = make(chan int)
	)
	go func() { watched <- a.mostSlots(stop) }()
	for range many {
		wg.Go(func() {
			resp, err := a.Node.Claim(context.Background(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "web"}})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			all = append(all, claimed(resp))
		})
	}
	wg.Wait()
	ok(t, errors.Join(errs...))
	ids, warmOnes := map[string]bool{}, 0
	for _, c := range all {
		ids[c.ID()], ids[c.Environment.Slot], ids[c.Environment.Address] = true, true, true
		if c.Environment.Warm {
			warmOnes++
		}
	}
	if len(ids) != 3*many {
		t.Errorf("%d claims have %d ids, slots and addresses in all, want %d", many, len(ids), 3*many)
	}
	if warmOnes < warm || warmOnes == many {
		t.Errorf("%d of %d claims were warm, with a pool of %d", warmOnes, many, warm)
	}
	for _, c := range all {
		a.alive(t, c)
	}
	a.poolFull(t)
	for range slots - many { // takes what the pool holds
		all = append(all, a.claim(t, "web"))
	}
	a.refused(t, 3, []string{sprintf("all %d slots", slots), "release environments or raise limits.slots"}, "claim", "--class", "web")
	close(stop)
	if most := <-watched; most > slots {
		t.Errorf("%d slots existed at once, the limit is %d", most, slots)
	}
	for _, c := range all {
		wg.Go(func() {
			_, err := a.Node.Release(context.Background(), &hearthv1.NodeReleaseRequest{Environment: c.ID()})
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
		a.forget(c.ID(), c.Environment.Slot)
	}
	wg.Wait()
	ok(t, errors.Join(errs...))
}

// mostSlots counts the slots' cgroups until stop.
func (a *agent) mostSlots(stop <-chan struct{}) (most int) {
	for {
		most = max(most, len(a.slotDirs()))
		select {
		case <-stop:
			return most
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// A policy of a claim's own lives in the kernel as long as an environment has it.
func TestNodePoliciesOfClaimsAreForgotten(t *testing.T) {
	a := node(t)
	count := func() (n int) {
		for _, entry := range a.TakeInventory()["bpf maps"] {
			if isPolicy(entry) {
				n++
			}
		}
		return n
	}
	cycle := func(i int) (during int) {
		c := a.claimSpec(t, &hearthv1.ClaimSpec{Class: "bare", Egress: &hearthv1.EgressPolicy{
			Mode: hearthv1.EgressPolicy_MODE_INTERNET,
			Deny: []*hearthv1.EgressRule{{Cidr: sprintf("93.184.%d.0/24", i)}},
		}})
		during = count()
		a.release(t, c)
		return during
	}
	cycle(0)
	before := count()
	for i := range 8 {
		if during := cycle(i + 1); during <= before {
			t.Fatalf("a policy of a claim's own has no entries: %d before, %d with it", before, during)
		}
	}
	// They are kept for claims alike until a sweep, which each start does too.
	a.kill(t)
	a.up(t)
	a.poolFull(t)
	if after := count(); after > before {
		t.Errorf("%d entries of policies before eight claims with one of their own, %d after", before, after)
	}
}

func (a *agent) descriptors(t *testing.T) int {
	t.Helper()
	pid, err := a.PID("agent")
	ok(t, err)
	list, err := os.ReadDir(sprintf("/proc/%d/fd", pid))
	ok(t, err)
	return len(list)
}

func TestNodePauseStopsEverythingUntilResume(t *testing.T) {
	a := node(t)
	c := a.claim(t, "web")
	_, err := a.Hearthctl.Sh(c, "(i=0; while :; do i=$((i+1)); echo $i >> /tmp/now; sleep 0.01; done) >/dev/null 2>&1 &")
	ok(t, err)
	for range 2 { // pausing twice is no error
		_, err = a.Hearthctl.Run("pause", c.ID())
		ok(t, err)
	}
	if !a.frozen(t, c) {
		t.Error("a paused environment is not frozen")
	}
	now := func() string {
		b, err := os.ReadFile(sprintf("/proc/%d/root/tmp/now", c.Environment.PID))
		ok(t, err)
		return string(b)
	}
	then := now()
	time.Sleep(200 * time.Millisecond)
	if now() != then {
		t.Error("a process of a paused environment ran")
	}
	_, stderr, code := a.Hearthctl.Try("exec", c.ID(), "--", "true")
	if code != 125 {
		t.Errorf("exec in a paused environment: exit %d, want 125", code)
	}
	holds(t, stderr, c.ID(), "paused", "resume it first")
	if _, err := c.Get(8000, "/index.html"); err == nil || !strings.Contains(err.Error(), "paused") {
		t.Errorf("a port of a paused environment: %v", err)
	}
	var snap struct{ Snapshot struct{ ID string } }
	ok(t, a.Hearthctl.Decode(&snap, "snapshot", "create", c.ID()))
	if !a.frozen(t, c) {
		t.Error("a snapshot thawed a paused environment")
	}
	for range 2 {
		_, err = a.Hearthctl.Run("resume", c.ID())
		ok(t, err)
	}
	a.alive(t, c)
	time.Sleep(stage.Slow(100 * time.Millisecond))
	if now() == then {
		t.Error("the process did not go on")
	}
	a.release(t, c)
}
