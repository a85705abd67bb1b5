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
	err    error // of a claim, after it was carried out
	fork   func(*hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error)

	mu       sync.Mutex // guards all below
	release  func(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error)
	released []string
}

func (n *node) Claim(_ context.Context, r *hearthv1.NodeClaimRequest) (*hearthv1.NodeClaimResponse, error) {
	if n.claims[r.GetIdempotencyKey()] == nil {
		n.claims[r.GetIdempotencyKey()] = &hearthv1.NodeClaimResponse{
			Environment: &hearthv1.Environment{Id: r.GetEnvironment(), Generation: r.GetGeneration(), Phase: hearthv1.Phase_PHASE_RUNNING, Warm: true},
			Access:      &hearthv1.Access{Token: r.GetIdempotencyKey()},
		}
	}
	return n.claims[r.GetIdempotencyKey()], n.err
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

// onRelease sets what answers from now on; nil is success.
func (n *node) onRelease(f func(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.release = f
}

func (n *node) Fork(_ context.Context, r *hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error) {
	return n.fork(r)
}

type world struct {
	t     *testing.T
	store *storetest.Memory
	node  *node
	cfg   fleet.Config
	fleet *fleet.Fleet
	stop  func()
}

var alice = fleet.Principal{Tenant: "alice"}

// newWorld starts a fleet in a synctest bubble. The node reports once.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: storetest.NewMemory(), node: &node{claims: map[string]*hearthv1.NodeClaimResponse{}}}
	w.restart()
	return w
}

func (w *world) restart() {
	w.t.Helper()
	if w.stop != nil {
		w.stop()
	}
	f, err := fleet.New(slog.New(slog.DiscardHandler), w.store,
		func(string, string) hearthv1connect.NodeServiceClient { return w.node }, w.cfg, fleet.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	w.fleet, w.stop = f, func() { cancel(); <-done }
}

func (w *world) report(envs ...*hearthv1.Environment) *fleet.Session {
	w.t.Helper()
	s := w.fleet.Connect("n1", "h:1")
	inv := &hearthv1.InventoryResponse{Pools: []*hearthv1.Pool{{Class: "small", Ready: 5}}, Room: &hearthv1.Room{SlotsMax: 10}, Environments: envs}
	if err := s.Inventory(inv); err != nil {
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

func TestAnAnswerThatCannotBeStoredIsNotGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		full := errors.New("no space left")
		for _, op := range []string{"claim-place", "claim-done"} {
			w.store.Fault = func(at string) error {
				if at == op {
					return full
				}
				return nil
			}
			if _, err := w.claim(op); !errors.Is(err, full) {
				t.Errorf("%s: error = %v", op, err)
			}
			before := len(w.node.claims)
			if (op == "claim-place") != (before == 0) {
				t.Errorf("%s: the node made %d", op, before)
			}
			w.store.Fault = nil
			got, err := w.claim(op)
			if err != nil || got.GetEnvironment().GetGeneration() != 1 {
				t.Errorf("%s: repeated: %v, %v", op, got, err)
			}
			if op == "claim-done" && len(w.node.claims) != before {
				t.Errorf("the repeat made another environment")
			}
			clear(w.node.claims)
		}
	})
}

func TestAClaimThatNobodyRepeatsIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.report()
		crash := errors.New("crash")
		w.store.Fault = func(at string) error {
			if at == "claim-done" {
				return crash
			}
			return nil
		}
		if _, err := w.claim("k"); !errors.Is(err, crash) {
			t.Fatal(err)
		}
		w.store.Fault = nil
		w.restart()
		defer func() { w.stop() }()
		list := w.fleet.List(alice, "", "")
		if len(list) != 1 || list[0].GetPhase() != hearthv1.Phase_PHASE_CLAIMING {
			t.Fatalf("list = %v", list)
		}
		s := w.report(&hearthv1.Environment{Id: list[0].GetId(), Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING})
		for range 310 { // ten minutes and a little
			time.Sleep(2 * time.Second)
			if err := s.Heartbeat(&hearthv1.Heartbeat{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if want := []string{list[0].GetId() + "/1"}; !cmp.Equal(w.node.released, want) {
			t.Errorf("released %q, want %q", w.node.released, want)
		}
		list = w.fleet.List(alice, "", "")
		if len(list) != 1 || list[0].GetPhase() != hearthv1.Phase_PHASE_FAILED {
			t.Errorf("list = %v", list)
		}
	})
}

func TestKeysAndFinalEnvironmentsAreForgottenAfterADay(t *testing.T) {
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
		if err != nil || len(st.Records) != 0 || len(st.Answers) != 0 {
			t.Errorf("left: %d records, %d answers, %v", len(st.Records), len(st.Answers), err)
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
