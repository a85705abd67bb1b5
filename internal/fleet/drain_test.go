package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// inBubble runs fn with a fleet of nodes. The first claims go to node a, since
// equal nodes are taken by name.
func inBubble(t *testing.T, names []string, fn func(w *peers)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newPeers(t, fleet.Config{}, names...)
		defer w.close()
		fn(w)
	})
}

func drain(node string) map[string]fleet.NodeWish {
	return map[string]fleet.NodeWish{node: {Cordoned: true, Drain: true, Reason: "kubectl drain"}}
}

func TestACordonedNodeGetsNoClaims(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		w.fleet.SetNodes(map[string]fleet.NodeWish{"a": {Cordoned: true, Reason: "maintenance"}, "unknown": {Drain: true}})
		for range 2 {
			resp, err := w.fleet.Claim(context.Background(), alice, fmt.Sprint(time.Now()), &hearthv1.ClaimSpec{Class: "small"})
			if err != nil || resp.GetEnvironment().GetNode() != "b" || !strings.Contains(fmt.Sprint(resp.GetPlacement()), "a: cordoned: maintenance") {
				t.Fatalf("claim = %v, %v", resp, err)
			}
			w.nodes["a"].connect() // it stays cordoned
			time.Sleep(5 * time.Second)
		}
		n := w.fleet.Nodes()[0]
		if !n.Ready || !n.Cordoned || n.Draining || n.Message != "cordoned: maintenance" {
			t.Errorf("node = %+v", n)
		}
		if got := w.where(); len(got) != 2 {
			t.Errorf("cordoning moved something: %v", got)
		}
		w.fleet.SetNodes(nil)
		if id := w.claim("again"); !strings.HasPrefix(w.where()[id], "a/") {
			t.Errorf("after the cordon it is at %s", w.where()[id])
		}
	})
}

func TestADrainMovesWhatRunsThere(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		ids := []string{w.claim("k1"), w.claim("k2"), w.claim("k3")}
		w.fleet.SetNodes(drain("a"))
		time.Sleep(time.Second)
		synctest.Wait()
		for _, id := range ids {
			if got := w.where()[id]; got != "b/2 running;" {
				t.Errorf("%s is at %q", id, got)
			}
			if r := w.record(id); r.GetNode() != "b" || r.GetGeneration() != 2 || r.GetPhase() != hearthv1.Phase_PHASE_RUNNING || r.GetMessage() != "" {
				t.Errorf("record = %v", r)
			}
		}
		left, moving, message := w.fleet.DrainStatus("a")
		if left != 0 || moving != 0 || message != "no environment is left" {
			t.Errorf("drain: %d left, %d moving, %q", left, moving, message)
		}
		time.Sleep(3 * time.Second)
		for k, n := range map[fleet.Kind]int{fleet.Draining: 1, fleet.Moving: 3, fleet.Moved: 3, fleet.Drained: 1, fleet.MoveFailed: 0} {
			if got := w.happened(k); got != n {
				t.Errorf("%s happened %d times, want %d", k, got, n)
			}
		}
		for _, r := range w.nodes["b"].books().claims {
			id := r.GetEnvironment()
			want := &hearthv1.FetchFrom{Node: "a", Address: "a:1"}
			if diff := cmp.Diff(want, r.GetFetch(), protocmp.Transform()); diff != "" {
				t.Errorf("%s: fetch: %s", id, diff)
			}
			s := r.GetSpec()
			if !strings.HasPrefix(s.GetSnapshot(), id+"/") || s.GetVariables()["KEY"] == "" || s.GetEgress().GetMode() != hearthv1.EgressPolicy_MODE_NONE || s.GetLabels()["for"] == "" || s.GetTenant() != "alice" {
				t.Errorf("%s: claimed with %v", id, s)
			}
			if len(r.GetClaimKey()) != 32 || len(r.GetClaimRequest()) != 32 {
				t.Errorf("%s: the key of the call was not passed on", id)
			}
		}
		access, err := w.fleet.Token(context.Background(), alice, ids[0])
		if err != nil || access.GetAddress() != "b" {
			t.Errorf("access = %v, %v", access, err)
		}
		// The caller repeats its claim: the same environment, with a new token.
		again, err := w.fleet.Claim(context.Background(), alice, "k1", &hearthv1.ClaimSpec{Class: "small"})
		if !errors.Is(err, env.ErrExists) {
			t.Errorf("another request with the key: %v, %v", again, err)
		}
	})
}

func TestADrainTakesFewAtATime(t *testing.T) {
	inBubble(t, []string{"a", "b", "c", "d"}, func(w *peers) {
		t := w.t
		for i := range 12 {
			w.claim(fmt.Sprint(i))
		}
		w.fleet.SetNodes(map[string]fleet.NodeWish{"b": {Cordoned: true}, "c": {Cordoned: true}, "d": {Cordoned: true}})
		most := map[string]int{}
		slow := func(method string) func() error {
			now := 0
			return func() error {
				w.set(func() { now++; most[method] = max(most[method], now) })
				time.Sleep(10 * time.Second)
				w.set(func() { now-- })
				return nil
			}
		}
		total := 0
		for _, n := range []string{"a", "b", "c", "d"} {
			total += w.nodes[n].books().envs
			w.nodes[n].onCall("Snapshot", slow("Snapshot "+n), nil)
			w.nodes[n].onCall("Claim", slow("Claim "+n), nil)
		}
		wishes := drain("a")
		wishes["b"], wishes["c"] = wishes["a"], wishes["a"]
		w.fleet.SetNodes(wishes)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := w.nodes["d"].books().envs; got != total {
			t.Errorf("%d of %d arrived: %v", got, total, w.where())
		}
		w.set(func() {
			for what, n := range most {
				if n > 4 {
					t.Errorf("%s: %d at once", what, n)
				}
			}
		})
	})
}

func TestAPausedEnvironmentMovesAndStaysPaused(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		if _, err := w.fleet.Pause(context.Background(), alice, "p", id); err != nil {
			t.Fatal(err)
		}
		w.fleet.SetNodes(drain("a"))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.where()[id]; got != "b/2 paused;" {
			t.Errorf("it is at %q", got)
		}
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_PAUSED {
			t.Errorf("record = %v", r)
		}
	})
}

// Only the disk of its node keeps a stalled environment; elsewhere it runs.
func TestAStalledEnvironmentIsToldOfMovesAndRuns(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		a := w.nodes["a"]
		w.mu.Lock()
		a.envs[id].Phase = hearthv1.Phase_PHASE_STALLED
		w.mu.Unlock()
		a.connect() // its next inventory says so
		synctest.Wait()
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_STALLED || w.happened(fleet.Stalled) != 1 {
			t.Errorf("record = %v, events = %v", r, w.told())
		}
		w.fleet.SetNodes(drain("a"))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.where()[id]; got != "b/2 running;" {
			t.Errorf("it is at %q", got)
		}
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("record = %v", r)
		}
	})
}

func TestADrainLeavesWhatCannotMoveAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPeers(t, fleet.Config{}, "a", "b")
		defer w.close()
		bad := w.claim("quarantined")
		for _, n := range w.nodes {
			n.classes = append(n.classes, &hearthv1.Pool{Class: "brief", Ready: 5, Ephemeral: true})
			n.connect()
		}
		brief, err := w.fleet.Claim(context.Background(), alice, "brief", &hearthv1.ClaimSpec{Class: "brief"})
		if err != nil || brief.GetEnvironment().GetNode() != "a" {
			t.Fatal(brief, err)
		}
		w.set(func() { w.nodes["a"].envs[bad].Phase = hearthv1.Phase_PHASE_QUARANTINED })
		w.nodes["a"].connect()
		w.fleet.SetNodes(drain("a"))
		time.Sleep(time.Minute)
		left, moving, message := w.fleet.DrainStatus("a")
		if left != 2 || moving != 0 || !strings.Contains(message, "1 ephemeral") || !strings.Contains(message, "1 quarantined") {
			t.Errorf("%d left, %d moving: %s", left, moving, message)
		}
		if w.happened(fleet.Drained) != 0 || w.nodes["a"].books().envs != 2 {
			t.Errorf("at %v", w.where())
		}
		for _, id := range []string{bad, brief.GetEnvironment().GetId()} {
			if _, err := w.fleet.Release(context.Background(), alice, id, id, false); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		if left, _, _ := w.fleet.DrainStatus("a"); left != 0 || w.happened(fleet.Drained) != 1 {
			t.Errorf("%d left, events %v", left, w.told())
		}
	})
}

func TestNothingIsHeldWhileThereIsNoTarget(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.fleet.SetNodes(drain("a"))
		time.Sleep(30 * time.Second)
		if got := w.where()[id]; got != "a/1 running;" || w.nodes["a"].called("Snapshot") != 0 {
			t.Errorf("it is at %q", got)
		}
		_, _, message := w.fleet.DrainStatus("a")
		if !strings.Contains(message, "none of 1 nodes can take it") || w.happened(fleet.MoveFailed) != 1 {
			t.Errorf("message %q, events %v", message, w.told())
		}
		w.set(func() {
			w.nodes["b"] = &peer{w: w, name: "b", envs: map[string]*peerEnv{}, fail: map[string]func() error{}, after: map[string]func() error{}, classes: w.nodes["a"].classes}
		})
		w.nodes["b"].connect()
		time.Sleep(time.Minute)
		if got := w.where()[id]; got != "b/2 running;" {
			t.Errorf("then it is at %q", got)
		}
	})
}

func TestATargetThatRefusesIsReplaced(t *testing.T) {
	inBubble(t, []string{"a", "b", "c"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["b"].onCall("Claim", always(fmt.Errorf("%w: disk full", env.ErrExhausted)), nil)
		w.fleet.SetNodes(drain("a"))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.where()[id]; got != "c/3 running;" {
			t.Errorf("it is at %q", got)
		}
	})
}

func TestAMoveThatNoTargetTakesGoesBackAndIsTriedAgain(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["b"].onCall("Claim", always(errors.New("cannot restore")), nil)
		w.fleet.SetNodes(drain("a"))
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if got := w.where()[id]; got != "a/1 running;" {
			t.Errorf("it is at %q", got)
		}
		if r := w.record(id); r.GetNode() != "a" || r.GetGeneration() != 1 || r.GetMessage() != "" {
			t.Errorf("record = %v", r)
		}
		if _, _, message := w.fleet.DrainStatus("a"); !strings.Contains(message, "cannot restore") && !strings.Contains(message, "none of") {
			t.Errorf("message %q", message)
		}
		if w.happened(fleet.MoveFailed) != 1 {
			t.Errorf("events = %v", w.told())
		}
		w.nodes["b"].onCall("Claim", nil, nil)
		time.Sleep(2 * time.Minute)
		if got := w.where()[id]; !strings.HasPrefix(got, "b/") || strings.Contains(got, "a/") {
			t.Errorf("then it is at %q", got)
		}
	})
}

func TestASourceThatCannotCaptureKeepsItRunning(t *testing.T) {
	for name, err := range map[string]error{"full disk": env.ErrExhausted, "a fault": errors.New("walk"), "an old agent": env.ErrUnsupported} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, []string{"a", "b"}, func(w *peers) {
				t := w.t
				id := w.claim("k")
				w.nodes["a"].onCall("Snapshot", always(err), nil)
				w.fleet.SetNodes(drain("a"))
				time.Sleep(10 * time.Second)
				if got := w.where()[id]; got != "a/1 running;" {
					t.Errorf("it is at %q", got)
				}
				if w.happened(fleet.MoveFailed) == 0 || w.nodes["b"].called("Claim") != 0 {
					t.Errorf("events = %v", w.told())
				}
			})
		})
	}
}

// Lies are not followed: the environment stays where it is.
func TestASourceThatLiesIsNotBelieved(t *testing.T) {
	lies := map[string]func(*hearthv1.NodeSnapshotResponse){
		"of another environment": func(r *hearthv1.NodeSnapshotResponse) { r.Snapshot.Environment = string(env.NewID()) },
		"of another tenant":      func(r *hearthv1.NodeSnapshotResponse) { r.Snapshot.Tenant = "mallory" },
		"of no snapshot":         func(r *hearthv1.NodeSnapshotResponse) { r.Snapshot = nil },
		"of another class":       func(r *hearthv1.NodeSnapshotResponse) { r.Spec.Class = "large" },
		"without a claim":        func(r *hearthv1.NodeSnapshotResponse) { r.Spec = nil },
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			inBubble(t, []string{"a", "b"}, func(w *peers) {
				t := w.t
				id := w.claim("k")
				w.set(func() { w.nodes["a"].lie = lie })
				w.fleet.SetNodes(drain("a"))
				time.Sleep(10 * time.Second)
				if got := w.where()[id]; got != "a/1 running;" || w.nodes["b"].called("Claim") != 0 {
					t.Errorf("it is at %q", got)
				}
			})
		})
	}
}

func TestABrokenConnectionIsTriedAgainWithTheSameKey(t *testing.T) {
	for _, at := range []string{"Snapshot", "Claim", "Get", "Release"} {
		for _, when := range []string{"before", "after"} {
			t.Run(at+" "+when, func(t *testing.T) {
				inBubble(t, []string{"a", "b"}, func(w *peers) {
					t := w.t
					id := w.claim("k")
					for _, n := range w.nodes {
						if when == "before" {
							n.onCall(at, once(errCut), nil)
						} else {
							n.onCall(at, nil, once(errCut))
						}
					}
					w.fleet.SetNodes(drain("a"))
					time.Sleep(30 * time.Second)
					if got := w.where()[id]; got != "b/2 running;" {
						t.Errorf("it is at %q", got)
					}
				})
			})
		}
	}
}

func TestADrainThatIsCalledOffLeavesItWhereItIs(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["a"].onCall("Snapshot", nil, func() error { w.fleet.SetNodes(nil); return nil })
		w.fleet.SetNodes(drain("a"))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.where()[id]; got != "a/1 running;" || w.nodes["b"].called("Claim") != 0 {
			t.Errorf("it is at %q", got)
		}
		if r := w.record(id); r.GetMessage() != "" || r.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("record = %v", r)
		}
	})
}

func TestACallWaitsForTheMoveAndGoesToTheNewNode(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["b"].onCall("Claim", func() error { time.Sleep(5 * time.Second); return nil }, nil)
		w.fleet.SetNodes(drain("a"))
		time.Sleep(time.Second)
		e, err := w.fleet.Get(context.Background(), alice, id)
		if err != nil || e.GetMessage() != "moving from node a to node b" || e.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("get = %v, %v", e, err)
		}
		begun := time.Now()
		paused, err := w.fleet.Pause(context.Background(), alice, "p", id)
		if err != nil || paused.GetNode() != "b" || time.Since(begun) != 4*time.Second {
			t.Errorf("pause = %v, %v after %s", paused, err, time.Since(begun))
		}
	})
}

func TestACallGivesUpOnAMoveThatTakesLong(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["b"].onCall("Claim", func() error { time.Sleep(time.Minute); return nil }, nil)
		w.fleet.SetNodes(drain("a"))
		time.Sleep(time.Second)
		_, err := w.fleet.Token(context.Background(), alice, id)
		if !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "moves from node a") {
			t.Errorf("error = %v", err)
		}
		time.Sleep(2 * time.Minute)
	})
}

// A resume that is on its way to the source when the drain begins must not let it
// run beside the target.
func TestAResumeUnderWayIsWaitedFor(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["a"].onCall("Resume", func() error { time.Sleep(5 * time.Second); return nil }, nil)
		go func() { _, _ = w.fleet.Resume(context.Background(), alice, "r", id) }()
		time.Sleep(time.Second)
		w.fleet.SetNodes(drain("a"))
		time.Sleep(2 * time.Second)
		if w.nodes["a"].called("Snapshot") != 0 {
			t.Error("it was held while a resume was under way")
		}
		time.Sleep(10 * time.Second)
		if got := w.where()[id]; got != "b/2 running;" {
			t.Errorf("it is at %q", got)
		}
	})
}

func TestAReleaseDuringAMoveEndsBoth(t *testing.T) {
	for _, at := range []string{"Snapshot", "Claim"} {
		t.Run(at, func(t *testing.T) {
			inBubble(t, []string{"a", "b"}, func(w *peers) {
				t := w.t
				id := w.claim("k")
				for _, n := range w.nodes {
					n.onCall(at, func() error { time.Sleep(5 * time.Second); return nil }, nil)
				}
				w.fleet.SetNodes(drain("a"))
				time.Sleep(time.Second)
				if _, err := w.fleet.Release(context.Background(), alice, "r", id, false); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if got := w.where(); len(got) != 0 || len(stalePeers(t, w)) != 0 {
					t.Errorf("left: %v, stale %v", got, stalePeers(t, w))
				}
			})
		})
	}
}

func stalePeers(t *testing.T, w *peers) []string {
	t.Helper()
	st, err := w.store.Load()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range st.Records {
		for _, p := range r.Stale {
			out = append(out, fmt.Sprintf("%s/%d", p.Node, p.Generation))
		}
	}
	return out
}
