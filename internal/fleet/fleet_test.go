package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/storetest"
)

// node is a client of a node that keeps books. Only what a test calls is there.
type node struct {
	hearthv1connect.NodeServiceClient
	claims map[string]*hearthv1.NodeClaimResponse
	asked  []*hearthv1.NodeClaimRequest
	calls  int   // Claim, Token and Fork
	err    error // of a claim, after it was carried out
	refuse error // of a claim, before
	slow   time.Duration
	gone   map[string]bool
	// by lineage
	snapshots map[string][]*hearthv1.Snapshot
	listErr   error
	listed    int
	claim     sync.Mutex // guards all above while claims come at the same time
	fork      func(*hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error)

	mu       sync.Mutex // guards all below
	release  func(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error)
	released []string
}

func newNode() *node {
	return &node{claims: map[string]*hearthv1.NodeClaimResponse{}, gone: map[string]bool{}, snapshots: map[string][]*hearthv1.Snapshot{}}
}

func (n *node) Claim(_ context.Context, r *hearthv1.NodeClaimRequest) (*hearthv1.NodeClaimResponse, error) {
	if n.slow > 0 {
		time.Sleep(n.slow)
	}
	n.claim.Lock()
	defer n.claim.Unlock()
	n.calls++
	n.asked = append(n.asked, r)
	if n.refuse != nil {
		return nil, n.refuse
	}
	if n.claims[r.GetIdempotencyKey()] == nil {
		n.claims[r.GetIdempotencyKey()] = &hearthv1.NodeClaimResponse{
			Environment: &hearthv1.Environment{Id: r.GetEnvironment(), Generation: r.GetGeneration(), Phase: hearthv1.Phase_PHASE_RUNNING, Warm: true},
			Access:      &hearthv1.Access{Token: r.GetIdempotencyKey()},
		}
	}
	return n.claims[r.GetIdempotencyKey()], n.err
}

// Get knows what Claim and Fork made and nobody took away.
func (n *node) Get(_ context.Context, r *hearthv1.NodeGetRequest) (*hearthv1.NodeGetResponse, error) {
	n.claim.Lock()
	defer n.claim.Unlock()
	for _, c := range n.claims {
		if e := c.GetEnvironment(); e.GetId() == r.GetEnvironment() && !n.gone[e.GetId()] {
			return &hearthv1.NodeGetResponse{Environment: e}, nil
		}
	}
	return nil, fmt.Errorf("%w: environment %s", env.ErrNotFound, r.GetEnvironment())
}

func (n *node) Token(_ context.Context, r *hearthv1.NodeTokenRequest) (*hearthv1.NodeTokenResponse, error) {
	n.calls++
	return &hearthv1.NodeTokenResponse{Access: &hearthv1.Access{Token: "fresh of " + r.GetEnvironment()}}, nil
}

func (n *node) Release(ctx context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	n.mu.Lock()
	n.released = append(n.released, fmt.Sprintf("%s/%d", r.GetEnvironment(), r.GetGeneration()))
	release := n.release
	n.mu.Unlock()
	if release != nil {
		return release(ctx, r)
	}
	return &hearthv1.NodeReleaseResponse{}, nil
}

// did counts what the node has made and what it was asked to release, while others call.
func (n *node) did() (made, released int) {
	n.claim.Lock()
	defer n.claim.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.claims), len(n.released)
}

// onRelease sets what answers from now on; nil is success.
func (n *node) onRelease(f func(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.release = f
}

func (n *node) Fork(_ context.Context, r *hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error) {
	n.claim.Lock()
	defer n.claim.Unlock()
	n.calls++
	resp, err := n.fork(r)
	for _, c := range resp.GetChildren() {
		n.claims[c.GetAccess().GetToken()] = c
	}
	return resp, err
}

type world struct {
	t      *testing.T
	store  *storetest.Memory
	node   *node            // n1
	others map[string]*node // the rest, and n1 too if it is here
	cfg    fleet.Config
	fleet  *fleet.Fleet
	stop   func()
}

var alice = fleet.Principal{Tenant: "alice"}

// newWorld starts a fleet in a synctest bubble. The node reports once.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: storetest.NewMemory(), node: newNode(), others: map[string]*node{}}
	w.restart()
	return w
}

func (w *world) restart() {
	w.t.Helper()
	if w.stop != nil {
		w.stop()
	}
	f, err := fleet.New(slog.New(slog.DiscardHandler), w.store,
		w.dial, w.cfg, fleet.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	w.fleet, w.stop = f, func() { cancel(); <-done }
}

func (w *world) dial(name, _ string) hearthv1connect.NodeServiceClient {
	if n := w.others[name]; n != nil {
		return n
	}
	return w.node
}

func (w *world) report(envs ...*hearthv1.Environment) *fleet.Session {
	w.t.Helper()
	s := w.fleet.Connect("n1", "h:1")
	inv := &hearthv1.InventoryResponse{Pools: []*hearthv1.Pool{{Class: "small", Ready: 5}}, Room: &hearthv1.Room{SlotsMax: 10}, Environments: envs}
	if _, err := s.Inventory(inv); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) claim(key string) (*hearthv1.ClaimResponse, error) {
	return w.fleet.Claim(context.Background(), alice, key, &hearthv1.ClaimSpec{Class: "small"})
}

func TestASilentNodeIsNotPlaceableUntilItSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		s := w.report()
		time.Sleep(13 * time.Second)
		synctest.Wait()
		if n := w.fleet.Nodes()[0]; n.Ready || !strings.Contains(n.Message, "silent for") {
			t.Errorf("node = %+v", n)
		}
		_, err := w.claim("k")
		if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), "silent") {
			t.Errorf("error = %v", err)
		}
		if err := s.Heartbeat(&hearthv1.Heartbeat{Pools: []*hearthv1.Pool{{Class: "small", Ready: 5}}, Room: &hearthv1.Room{SlotsMax: 10}}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.claim("k"); err != nil {
			t.Error(err)
		}
	})
}

func TestANewerStreamFencesTheOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		old := w.report()
		fresh := w.report()
		if err := old.Heartbeat(&hearthv1.Heartbeat{}); !errors.Is(err, env.ErrFenced) {
			t.Errorf("error = %v", err)
		}
		old.Close() // must not take the newer one down
		if !w.fleet.Reporting("n1") {
			t.Error("the newer stream was closed")
		}
		fresh.Close()
		if w.fleet.Reporting("n1") {
			t.Error("still reporting")
		}
	})
}

func TestAClaimThatCannotBeStoredIsNotMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		full := errors.New("no space left")
		w.store.Fault = func(string) error { return full }
		if _, err := w.claim("k"); !errors.Is(err, full) {
			t.Errorf("error = %v", err)
		}
		if len(w.node.claims) != 0 {
			t.Errorf("the node made %v", w.node.claims)
		}
		w.store.Fault = nil
		got, err := w.claim("k")
		if err != nil || got.GetEnvironment().GetGeneration() != 1 {
			t.Errorf("repeated: %v, %v", got, err)
		}
	})
}

// crashed is a world whose controller died while a claim was at its node, with
// nothing of it but its placement on disk. Made says whether the node carried it
// out, and so perhaps the answer was given.
func crashed(t *testing.T, made bool, cfg fleet.Config) (w *world, id string) {
	t.Helper()
	w = newWorld(t)
	w.cfg = cfg
	w.report()
	if _, err := w.claim("k"); err != nil {
		t.Fatal(err)
	}
	if !made {
		clear(w.node.claims)
	}
	w.store.Crash()
	w.restart()
	list := w.fleet.List(alice, "", "")
	if len(list) != 1 || list[0].GetPhase() != hearthv1.Phase_PHASE_CLAIMING {
		t.Fatalf("list = %v", list)
	}
	return w, list[0].GetId()
}

func TestAClaimThatMayHaveBeenAnsweredIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, id := crashed(t, true, fleet.Config{})
		defer func() { w.stop() }()
		s := w.report(running(w)...)
		if got := w.fleet.List(alice, "", ""); len(got) != 1 || got[0].GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("after the inventory: %v", got)
		}
		for range 1000 {
			time.Sleep(2 * time.Second)
			if err := s.Heartbeat(&hearthv1.Heartbeat{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if len(w.node.released) != 0 {
			t.Errorf("released %q", w.node.released)
		}
		got, err := w.claim("k")
		if err != nil || got.GetEnvironment().GetId() != id {
			t.Errorf("repeated: %v, %v", got, err)
		}
	})
}

// The node is away when the controller starts: nobody knows whether the claim was
// answered, so that nothing is done that would end it.
func TestAClaimInDoubtWaitsForItsNode(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  fleet.Config
		away time.Duration
	}{
		"for minutes":                        {fleet.Config{}, 4 * time.Minute},
		"for hours, where nodes never fence": {fleet.Config{FenceAfter: -1}, 5 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, id := crashed(t, true, tc.cfg)
				defer func() { w.stop() }()
				time.Sleep(tc.away)
				if _, err := w.claim("k"); !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "repeat") {
					t.Errorf("repeated while the node is away: %v", err)
				}
				if _, err := w.fleet.Token(context.Background(), alice, id); !errors.Is(err, env.ErrUnavailable) {
					t.Errorf("token while the node is away: %v", err)
				}
				w.report(running(w)...)
				synctest.Wait()
				got, err := w.claim("k")
				if err != nil || got.GetEnvironment().GetId() != id || got.GetEnvironment().GetGeneration() != 1 {
					t.Errorf("repeated: %v, %v", got, err)
				}
				if len(w.node.released) != 0 || len(w.node.claims) != 1 {
					t.Errorf("released %q, made %d", w.node.released, len(w.node.claims))
				}
			})
		})
	}
}

func TestAClaimThatNobodyRepeatsIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := crashed(t, false, fleet.Config{})
		defer func() { w.stop() }()
		s := w.report()
		for range 310 { // ten minutes and a little
			time.Sleep(2 * time.Second)
			if err := s.Heartbeat(&hearthv1.Heartbeat{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		list := w.fleet.List(alice, "", "")
		if len(list) != 1 || list[0].GetPhase() != hearthv1.Phase_PHASE_FAILED || !strings.Contains(list[0].GetMessage(), "n1") {
			t.Errorf("list = %v", list)
		}
	})
}

func TestFinalEnvironmentsAreForgottenAfterADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		first, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.fleet.Release(context.Background(), alice, "r", first.GetEnvironment().GetId(), false); err != nil {
			t.Fatal(err)
		}
		again, err := w.claim("k")
		if err != nil || !cmp.Equal(first, again, protocmp.Transform()) {
			t.Errorf("the repeated claim: %v, %v", again, err)
		}
		time.Sleep(24*time.Hour + 5*time.Second)
		synctest.Wait()
		st, err := w.store.Load()
		if err != nil || len(st.Records) != 0 || len(w.fleet.List(alice, "", "")) != 0 {
			t.Errorf("left: %d records, %v", len(st.Records), err)
		}
	})
}

func TestAClaimAfterAStartWaitsForNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		go func() {
			time.Sleep(3 * time.Second)
			w.report()
		}()
		begun := time.Now()
		if _, err := w.claim("k"); err != nil || time.Since(begun) != 3*time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
	})
}

func TestAFleetWithoutNodesSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		if _, err := w.claim("k"); !errors.Is(err, env.ErrNotFound) || !strings.Contains(err.Error(), "no node of 0 has it") {
			t.Errorf("error = %v", err)
		}
	})
}

func TestAClaimThatGotNoAnswerIsReleasedThoughNoInventoryShowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		s := w.report()
		w.node.err = errors.New("connection reset")
		if _, err := w.claim("k"); !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), "connection reset") {
			t.Errorf("error = %v", err)
		}
		if err := s.Heartbeat(&hearthv1.Heartbeat{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		var want []string
		for _, c := range w.node.claims {
			want = append(want, c.GetEnvironment().GetId()+"/1")
		}
		if len(want) != 1 || !cmp.Equal(w.node.released, want) {
			t.Errorf("released %q, want %q", w.node.released, want)
		}
		for _, e := range w.fleet.List(alice, "", "") {
			if e.GetPhase() != hearthv1.Phase_PHASE_FAILED {
				t.Errorf("left: %v", e)
			}
		}
	})
}
