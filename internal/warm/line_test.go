package warm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"hearth/internal/env"
)

// queued is a class whose claims wait.
func queued(slots int, wait time.Duration) *env.Class {
	c := demoClass(slots)
	c.Warm.Wait = wait
	return c
}

// slowly lets each container take a second to be made.
func (b *bench) slowly() {
	b.world.failWith(func(call string) error {
		if call == "create" {
			time.Sleep(time.Second)
		}
		return nil
	})
}

// lined is a node in a bubble whose containers take a second each.
func lined(t *testing.T, starts, queue int, class *env.Class, test func(b *bench, n *Node)) {
	t.Helper()
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.starts, b.queue = starts, queue
		b.slowly()
		n := b.open(class)
		stop := runNode(t, n)
		time.Sleep(10 * time.Second) // until the pool is full
		test(b, n)
		synctest.Wait()
		n.nobodyWaits(t)
		stop()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// nobodyWaits is what must hold when no claim is under way.
func (n *Node) nobodyWaits(t *testing.T) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.line)+len(n.pending)+n.starting+n.claiming != 0 {
		t.Errorf("no claim is under way, and %d wait, %d are pending, %d start, %d are counted", len(n.line), len(n.pending), n.starting, n.claiming)
	}
	making := 0
	for _, p := range n.pools {
		making += p.making + p.laying
	}
	if n.reserved > making {
		t.Errorf("%d places are reserved, for %d slots that are being made", n.reserved, making)
	}
}

// claims are claims that run beside each other, in the order in which they ended.
type claims struct {
	node *Node
	work sync.WaitGroup

	mu    sync.Mutex // guards ended
	ended []string
	envs  []Environment
}

// begin claims beside the caller, who goes on when the claim has got as far as it
// can by itself.
func (c *claims) begin(ctx context.Context, name string, claim Claim) {
	c.work.Go(func() {
		begun := time.Now()
		a, err := c.node.Claim(ctx, claim)
		how := a.Environment.Served
		if err != nil {
			how = "failed"
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ended = append(c.ended, fmt.Sprintf("%s %s after %s", name, how, time.Since(begun).Round(100*time.Millisecond)))
		if err == nil {
			c.envs = append(c.envs, a.Environment)
		}
	})
	synctest.Wait()
}

func (c *claims) answered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.envs)
}

func (c *claims) want(t *testing.T, want ...string) {
	t.Helper()
	c.work.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if diff := cmp.Diff(want, c.ended); diff != "" {
		t.Errorf("claims in the order of their ends (-want +got):\n%s", diff)
	}
}

func TestAClaimWaitsForTheSlotThatIsNearlyReady(t *testing.T) {
	lined(t, 4, 8, queued(1, 10*time.Second), func(b *bench, n *Node) {
		t := b.t
		c := &claims{node: n}
		c.begin(t.Context(), "first", Claim{Class: "demo"})
		time.Sleep(500 * time.Millisecond)
		if got := n.Pools()[0]; got.Ready != 0 || got.Preparing != 1 {
			t.Fatalf("pool = %+v", got)
		}
		made := b.world.count("create")
		c.begin(t.Context(), "second", Claim{Class: "demo"})
		if got := n.Pools()[0]; got.Waiting != 1 {
			t.Errorf("pool = %+v, one claim waits", got)
		}
		c.want(t, "first warm after 0s", "second queued after 500ms")
		if got := b.world.count("create"); got != made {
			t.Errorf("%d containers were made for the claim that waited", got-made)
		}
		second := c.envs[1]
		if !second.Warm || second.Waited < 400*time.Millisecond || second.Waited > 600*time.Millisecond {
			t.Errorf("second = warm %t, waited %s", second.Warm, second.Waited)
		}
		if got := testutil.CollectAndCount(n.metrics.phaseSeconds); got == 0 {
			t.Error("no phase of a warm claim was counted")
		}
		for _, p := range n.ClaimProfile() {
			if p.Claims != 1 {
				t.Errorf("profile = %+v, of warm claims only", p)
			}
		}
	})
}

func TestClaimsAreServedInTheOrderInWhichTheyCame(t *testing.T) {
	lined(t, 2, 8, queued(1, 10*time.Second), func(b *bench, n *Node) {
		c := &claims{node: n}
		for _, name := range []string{"1", "2", "3"} {
			c.begin(b.t.Context(), name, Claim{Class: "demo"})
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // the pool prepares its next
		for _, name := range []string{"4", "5", "6"} {
			c.begin(b.t.Context(), name, Claim{Class: "demo"})
			time.Sleep(time.Millisecond)
		}
		c.want(b.t, "1 warm after 0s", "2 cold after 1s", "3 cold after 1s", "4 queued after 1s", "5 cold after 2s", "6 cold after 2s")
	})
}

func TestNoMoreSlotsAreMadeForClaimsAtOnceThanConfigured(t *testing.T) {
	lined(t, 2, 8, queued(0, 10*time.Second), func(b *bench, n *Node) {
		making, most := 0, 0
		var mu sync.Mutex
		b.world.failWith(func(call string) error {
			if call == "create" {
				mu.Lock()
				making++
				most = max(most, making)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				making--
				mu.Unlock()
			}
			return nil
		})
		c := &claims{node: n}
		for i := range 6 {
			c.begin(b.t.Context(), fmt.Sprint(i), Claim{Class: "demo"})
			time.Sleep(time.Millisecond)
		}
		c.want(b.t, "0 cold after 1s", "1 cold after 1s", "2 cold after 2s", "3 cold after 2s", "4 cold after 3s", "5 cold after 3s")
		if most != 2 {
			b.t.Errorf("%d slots were made at once, want 2", most)
		}
	})
}

func TestAClaimThatWaitedInVainSaysHowLongHowManyWaitAndWhatHelps(t *testing.T) {
	lined(t, 1, 8, queued(0, 700*time.Millisecond), func(b *bench, n *Node) {
		t := b.t
		c := &claims{node: n}
		c.begin(t.Context(), "first", Claim{Class: "demo"})
		time.Sleep(100 * time.Millisecond)
		errs := make(chan error, 1)
		go func() {
			_, err := n.Claim(t.Context(), Claim{Class: "demo"})
			errs <- err
		}()
		time.Sleep(time.Millisecond)
		c.begin(t.Context(), "third", Claim{Class: "demo"})
		err := <-errs
		for _, want := range []string{"for 700ms", "1 more claims wait", "1 made for claims", "warm.slots", "warm.wait", "claims.coldStarts"} {
			if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), want) {
				t.Errorf("error = %v, want %q", err, want)
			}
		}
		c.want(t, "third failed after 700ms", "first cold after 1s")
		if got := testutil.CollectAndCount(n.metrics.waits); got != 1 {
			t.Errorf("%d outcomes of waits, want expired alone", got)
		}
	})
}

func TestTheCallersDeadlineEndsTheWaitAsTheClassesDoes(t *testing.T) {
	lined(t, 1, 8, queued(0, 10*time.Second), func(b *bench, n *Node) {
		t := b.t
		c := &claims{node: n}
		c.begin(t.Context(), "first", Claim{Class: "demo"})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := n.Claim(ctx, Claim{Class: "demo"})
		if !errors.Is(err, env.ErrExhausted) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "300ms") {
			t.Errorf("error = %v", err)
		}
		c.want(t, "first cold after 1s")
	})
}

func TestAFullLineAndAClassThatDoesNotWaitRefuseAtOnce(t *testing.T) {
	for name, test := range map[string]struct {
		wait time.Duration
		want string
	}{
		"a full line":              {10 * time.Second, "claims.queue"},
		"a class that has no time": {0, "warm.wait"},
	} {
		t.Run(name, func(t *testing.T) {
			lined(t, 1, 1, queued(0, test.wait), func(b *bench, n *Node) {
				c := &claims{node: n}
				c.begin(b.t.Context(), "first", Claim{Class: "demo"})
				if test.wait > 0 {
					c.begin(b.t.Context(), "second", Claim{Class: "demo"})
				}
				begun := time.Now()
				_, err := n.Claim(b.t.Context(), Claim{Class: "demo"})
				if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), test.want) || time.Since(begun) > 0 {
					b.t.Errorf("error = %v after %s, want one that names %s, at once", err, time.Since(begun), test.want)
				}
				c.work.Wait()
			})
		})
	}
}

func TestAClaimWhosePoolCannotPrepareIsMadeCold(t *testing.T) {
	lined(t, 1, 8, queued(1, 10*time.Second), func(b *bench, n *Node) {
		c := &claims{node: n}
		c.begin(b.t.Context(), "first", Claim{Class: "demo"})
		time.Sleep(100 * time.Millisecond) // the pool prepares its next
		begun, failed := time.Now(), false
		b.world.failWith(func(call string) error {
			if call == "create" {
				time.Sleep(time.Second)
			}
			if call == "ready" && !failed && time.Since(begun) < 2*time.Second {
				failed = true
				return errors.New("a service does not come up")
			}
			return nil
		})
		c.begin(b.t.Context(), "second", Claim{Class: "demo"})
		c.want(b.t, "first warm after 0s", "second cold after 1.9s")
	})
}

func TestAStartThatTakesLongKeepsNobodyWaiting(t *testing.T) {
	lined(t, 1, 8, queued(0, 10*time.Second), func(b *bench, n *Node) {
		first := true
		b.world.failWith(func(call string) error {
			if call == "ready" && first {
				first = false
				time.Sleep(20 * time.Second)
				return errors.New("a service does not come up")
			}
			return nil
		})
		c := &claims{node: n}
		c.begin(b.t.Context(), "first", Claim{Class: "demo"})
		time.Sleep(time.Second)
		c.begin(b.t.Context(), "second", Claim{Class: "demo"})
		c.want(b.t, "second cold after 4s", "first failed after 20s")
	})
}

func TestAFullNodeRefusesAtOnceUnlessSomethingIsBeingRemoved(t *testing.T) {
	lined(t, 6, 8, queued(0, 10*time.Second), func(b *bench, n *Node) {
		t := b.t
		c := &claims{node: n}
		for i := range 6 {
			c.begin(t.Context(), fmt.Sprint(i), Claim{Class: "demo"})
		}
		c.work.Wait()
		begun := time.Now()
		_, err := n.Claim(t.Context(), Claim{Class: "demo"})
		if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), "limits.slots") || time.Since(begun) > 0 {
			t.Errorf("a full node: %v after %s", err, time.Since(begun))
		}
		b.world.failWith(func(call string) error {
			if call == "delete" {
				time.Sleep(time.Second)
			}
			return nil
		})
		released := make(chan error, 1)
		go func() {
			_, err := n.Release(t.Context(), c.envs[0].ID, 0, false)
			released <- err
		}()
		time.Sleep(500 * time.Millisecond)
		a, err := n.Claim(t.Context(), Claim{Class: "demo"})
		if err != nil || a.Environment.Served != ServedCold || a.Environment.Waited != 500*time.Millisecond {
			t.Errorf("claim beside a release = %+v, %v", a.Environment, err)
		}
		if err := <-released; err != nil {
			t.Error(err)
		}
	})
}

func TestRestoresWaitForTheirTurnAndMovesArePatient(t *testing.T) {
	lined(t, 1, 8, queued(0, 500*time.Millisecond), func(b *bench, n *Node) {
		t := b.t
		from := &FetchFrom{Node: "n2", Address: "n2:7401"}
		moved, forked := env.NewID(), env.NewID()
		c := &claims{node: n}
		c.begin(t.Context(), "first", Claim{Class: "demo"})
		c.begin(t.Context(), "move", Claim{Class: "demo", ID: moved, Snapshot: env.SnapshotID(moved) + "/1", Fetch: from})
		c.begin(t.Context(), "fork", Claim{Class: "demo", ID: forked, Snapshot: env.SnapshotID(moved) + "/1", Fetch: from})
		c.want(t, "fork failed after 500ms", "first cold after 1s", "move cold after 2s")
		if b.world.forked() != 0 {
			t.Error("the fork that waited in vain left a lineage")
		}
	})
}
