package fleet_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Upgrade gives the environment another slot of the class's newest revision. Which
// keys it came with is noted as a call.
func (n *peer) Upgrade(ctx context.Context, r *hearthv1.NodeUpgradeRequest) (out *hearthv1.NodeUpgradeResponse, err error) {
	return out, n.do(ctx, "Upgrade", r.GetEnvironment(), func() error {
		e, err := n.has(r.GetEnvironment())
		if err != nil {
			return err
		}
		if !e.GetOutdated() {
			return env.ErrState
		}
		n.calls = append(n.calls, "upgraded by "+r.GetIdempotencyKey())
		e.Revision, e.Outdated, e.Slot, e.Pid = "r2", false, e.GetSlot()+"+", e.GetPid()+1
		e.Ports = []*hearthv1.Port{{Name: r.GetKeep().String(), Number: 90}}
		out = &hearthv1.NodeUpgradeResponse{Environment: e.shown(), Snapshot: &hearthv1.Snapshot{Id: e.Id + "/1"}}
		return nil
	})
}

// outdate makes the node's environment one whose class has another revision.
func (w *peers) outdate(node, id string) {
	w.set(func() { w.nodes[node].envs[id].Revision, w.nodes[node].envs[id].Outdated = "r1", true })
	w.nodes[node].connect()
	synctest.Wait()
}

func upgradeRequest(key, id string) *hearthv1.UpgradeRequest {
	return &hearthv1.UpgradeRequest{IdempotencyKey: key, Environment: id, Keep: hearthv1.Keep_KEEP_WORKSPACE}
}

func TestAnUpgradeIsItsNodesAndIsKnownAtOnce(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t, n := w.t, w.nodes["a"]
		id := w.claim("k")
		w.outdate("a", id)
		if r := w.record(id); r.GetRevision() != "r1" || !r.GetOutdated() {
			t.Errorf("before: %v", r)
		}
		resp, err := w.fleet.Upgrade(t.Context(), alice, upgradeRequest("u", id))
		if err != nil || resp.GetSnapshot().GetId() != id+"/1" {
			t.Fatalf("upgrade = %v, %v", resp, err)
		}
		for what, e := range map[string]*hearthv1.Environment{"the answer": resp.GetEnvironment(), "the record": w.record(id)} {
			if e.GetRevision() != "r2" || e.GetOutdated() || e.GetSlot() != "+" || e.GetPid() != 1 || e.GetGeneration() != 1 ||
				len(e.GetPorts()) != 1 || e.GetPorts()[0].GetName() != "KEEP_WORKSPACE" {
				t.Errorf("%s: %v", what, e)
			}
		}
		w.outdate("a", id) // for another one with the same key: the node decides what that is
		if _, err := w.fleet.Upgrade(t.Context(), alice, upgradeRequest("u", id)); err != nil {
			t.Fatal(err)
		}
		keys := map[string]bool{}
		w.set(func() {
			for _, c := range n.calls {
				if key, ok := strings.CutPrefix(c, "upgraded by "); ok {
					keys[key] = true
				}
			}
		})
		if len(keys) != 1 || keys["u"] {
			t.Errorf("the node was asked with the keys %v, want one of its own", keys)
		}
		w.restart()
		n.connect()
		time.Sleep(time.Second)
		if r := w.record(id); r.GetRevision() != "r2" || r.GetSlot() != "++" {
			t.Errorf("after a restart: %v", r)
		}
	})
}

func TestAnUpgradeIsAnOrderAlsoForAnObjectsEnvironment(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		id := env.NewID()
		ref := fleet.ObjectRef{Object: "alice/mine", UID: "u1", ID: id, Tenant: "alice", Spec: &hearthv1.ClaimSpec{Class: "small"}}
		if _, err := w.fleet.ClaimFor(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		w.outdate("a", string(id))
		if resp, err := w.fleet.Upgrade(t.Context(), alice, upgradeRequest("u", string(id))); err != nil || resp.GetEnvironment().GetRevision() != "r2" {
			t.Errorf("upgrade = %v, %v", resp, err)
		}
	})
}

func TestAnUpgradeThatCannotBeSaysWhy(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t, n := w.t, w.nodes["a"]
		id := w.claim("k")
		odd := upgradeRequest("u", id)
		odd.Keep = 77
		for what, tc := range map[string]struct {
			who   fleet.Principal
			req   *hearthv1.UpgradeRequest
			want  error
			words string
		}{
			"no key":              {alice, upgradeRequest("", id), env.ErrInvalid, "idempotency key"},
			"to keep what":        {alice, odd, env.ErrInvalid, "all or workspace"},
			"of another's tenant": {fleet.Principal{Tenant: "bob"}, upgradeRequest("u", id), env.ErrNotFound, id},
			"of nothing":          {alice, upgradeRequest("u", string(env.NewID())), env.ErrNotFound, "environment"},
		} {
			if _, err := w.fleet.Upgrade(t.Context(), tc.who, tc.req); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.words) {
				t.Errorf("%s: %v, want %v with %q", what, err, tc.want, tc.words)
			}
		}
		if got := n.called("Upgrade"); got != 0 {
			t.Errorf("the node was asked %d times", got)
		}
		if _, err := w.fleet.Upgrade(t.Context(), alice, upgradeRequest("u", id)); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "node a") {
			t.Errorf("one of the newest: %v, want ErrState of node a", err)
		}
		n.onCall("Upgrade", always(env.ErrUnsupported), nil)
		if _, err := w.fleet.Upgrade(t.Context(), alice, upgradeRequest("u", id)); !errors.Is(err, env.ErrUnsupported) || !strings.Contains(err.Error(), "update the agent") {
			t.Errorf("an agent that cannot: %v, want ErrUnsupported", err)
		}
	})
}

// A move does not begin beneath an upgrade, and an upgrade waits for a move.
func TestAnUpgradeAndAMoveWaitForEachOther(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		from := "a"
		if w.nodes["a"].envs[id] == nil {
			from = "b"
		}
		w.outdate(from, id)
		w.nodes[from].onCall("Upgrade", func() error {
			w.fleet.SetNodes(drain(from))
			time.Sleep(30 * time.Second)
			if held := w.nodes[from].called("Snapshot"); held != 0 {
				t.Errorf("it was captured %d times for a move meanwhile", held)
			}
			return nil
		}, nil)
		if _, err := w.fleet.Upgrade(t.Context(), alice, upgradeRequest("u", id)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.where()[id]; strings.HasPrefix(got, from) {
			t.Errorf("it is at %s, want it moved", got)
		}
	})
}
