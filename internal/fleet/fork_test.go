package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// forks is a node's side of forks. Fail, if set, gives the error of a call.
type forks struct {
	asked []*hearthv1.NodeForkRequest
	fail  func(call int) error
}

func (k *forks) answer(r *hearthv1.NodeForkRequest) (*hearthv1.NodeForkResponse, error) {
	k.asked = append(k.asked, r)
	if k.fail != nil {
		if err := k.fail(len(k.asked)); err != nil {
			return nil, err
		}
	}
	resp := &hearthv1.NodeForkResponse{Snapshot: &hearthv1.Snapshot{Id: r.GetEnvironment() + "/1"}}
	for _, c := range r.GetChildren() {
		resp.Children = append(resp.Children, &hearthv1.NodeClaimResponse{
			Environment: &hearthv1.Environment{Id: c.GetEnvironment(), Generation: c.GetGeneration(), Phase: hearthv1.Phase_PHASE_RUNNING},
			Access:      &hearthv1.Access{Token: c.GetIdempotencyKey()},
		})
	}
	return resp, nil
}

// keys are all that one call names to the node.
func (k *forks) keys(call int) []string {
	r := k.asked[call-1]
	keys := []string{r.GetIdempotencyKey()}
	for _, c := range r.GetChildren() {
		keys = append(keys, c.GetEnvironment(), c.GetIdempotencyKey())
	}
	return keys
}

// forkWorld has a parent, and forks into two with the returned function.
func forkWorld(t *testing.T, fail func(call int) error) (*world, *forks, func() (*hearthv1.ForkResponse, error)) {
	t.Helper()
	w, k := newWorld(t), &forks{fail: fail}
	w.node.fork = k.answer
	w.report()
	parent, err := w.claim("k")
	if err != nil {
		t.Fatal(err)
	}
	return w, k, func() (*hearthv1.ForkResponse, error) {
		return w.fleet.Fork(context.Background(), alice, &hearthv1.ForkRequest{IdempotencyKey: "f", Environment: parent.GetEnvironment().GetId(), Count: 2})
	}
}

func at(call int, err error) func(int) error {
	return func(n int) error {
		if n == call {
			return err
		}
		return nil
	}
}

func wantFresh(t *testing.T, k *forks, a, b int) {
	t.Helper()
	for _, key := range k.keys(a) {
		if slices.Contains(k.keys(b), key) {
			t.Errorf("call %d names %s, as call %d did", b, key, a)
		}
	}
}

func TestAChildThatANodeShowsAfterItsForkWasRefusedIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, fork := forkWorld(t, at(1, fmt.Errorf("%w: disk full", env.ErrExhausted)))
		defer w.stop()
		// It has none of the children yet; the first is still being made.
		w.node.onRelease(func(context.Context, *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
			return nil, fmt.Errorf("%w: no such environment", env.ErrNotFound)
		})
		if _, err := fork(); !errors.Is(err, env.ErrExhausted) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		child := k.asked[0].GetChildren()[0].GetEnvironment()
		w.node.mu.Lock()
		w.node.released = nil
		w.node.mu.Unlock()
		w.node.onRelease(nil)
		w.report(&hearthv1.Environment{Id: k.asked[0].GetEnvironment(), Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING},
			&hearthv1.Environment{Id: child, Class: "small", Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if want := []string{child + "/1"}; !cmp.Equal(w.node.released, want) {
			t.Errorf("released %q, want %q", w.node.released, want)
		}
		for _, e := range w.fleet.List(alice, "", "") {
			if e.GetId() == child && e.GetPhase() != hearthv1.Phase_PHASE_FAILED {
				t.Errorf("adopted: %v", e)
			}
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if n := len(w.fleet.List(alice, "", "")); n != 1 {
			t.Errorf("%d environments are listed; children that nobody was told of are to be forgotten", n)
		}
	})
}

func TestARefusedForkIsRetriedWithFreshChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k, fork := forkWorld(t, at(1, errors.New("internal: overlay")))
		defer w.stop()
		if _, err := fork(); err == nil || !strings.Contains(err.Error(), "overlay") {
			t.Fatal(err)
		}
		got, err := fork()
		if err != nil || len(got.GetChildren()) != 2 || len(k.asked) != 2 {
			t.Fatalf("the repeated fork after %d calls: %v, %v", len(k.asked), got, err)
		}
		wantFresh(t, k, 1, 2)
	})
}

// The agent has forgotten its answer, made a new snapshot, and refuses the keys
// of the children, which came with the first.
func TestAForkThatTheNodeForgotBeginsAnew(t *testing.T) {
	cut := fmt.Errorf("%w: connection reset", env.ErrUnavailable)
	other := fmt.Errorf("%w: idempotency key came with another request before", env.ErrInvalid)
	for name, tc := range map[string]struct {
		errs  []error
		forks int // calls of the caller
		fresh [2]int
	}{
		"while it is asked again":      {[]error{cut, other}, 1, [2]int{2, 3}},
		"before the key was repeated":  {[]error{cut, cut, other}, 2, [2]int{3, 4}},
		"and the child was claimed":    {[]error{cut, cut, fmt.Errorf("%w: it was released", env.ErrState)}, 2, [2]int{3, 4}},
		"and is full at the next call": {[]error{cut, cut, other, fmt.Errorf("%w: full", env.ErrExhausted)}, 3, [2]int{4, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, k, fork := forkWorld(t, func(call int) error {
					if call <= len(tc.errs) {
						return tc.errs[call-1]
					}
					return nil
				})
				defer w.stop()
				var got *hearthv1.ForkResponse
				var err error
				for i := range tc.forks {
					if i > 0 && err == nil {
						t.Fatalf("call %d succeeded early", i)
					}
					got, err = fork()
				}
				if err != nil || len(got.GetChildren()) != 2 || len(k.asked) != len(tc.errs)+1 {
					t.Fatalf("after %d calls to the node: %v, %v", len(k.asked), got, err)
				}
				if !cmp.Equal(k.keys(1), k.keys(2)) {
					t.Error("a silent node was asked for other children")
				}
				wantFresh(t, k, tc.fresh[0], tc.fresh[1])
				time.Sleep(3 * time.Second)
				synctest.Wait()
				for i := range len(k.asked) - 1 {
					for _, c := range k.asked[i].GetChildren() {
						if !slices.Contains(w.node.released, c.GetEnvironment()+"/1") {
							t.Errorf("child %s of an attempt that ended was not released: %q", c.GetEnvironment(), w.node.released)
						}
					}
				}
			})
		})
	}
}
