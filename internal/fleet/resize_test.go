package fleet_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Resize puts limits in force, and keeps them with what the environment was claimed
// with, as a node does.
func (n *peer) Resize(ctx context.Context, r *hearthv1.NodeResizeRequest) (out *hearthv1.NodeResizeResponse, err error) {
	return out, n.do(ctx, "Resize", r.GetEnvironment(), func() error {
		e, err := n.has(r.GetEnvironment())
		if err != nil {
			return err
		}
		spec := proto.CloneOf(e.spec)
		if spec.Resources == nil {
			spec.Resources = &hearthv1.Resources{}
		}
		if e.Resources == nil {
			e.Resources = &hearthv1.Resources{CpuMillis: 1000, MemoryBytes: 1 << 30}
		}
		proto.Merge(spec.Resources, r.GetResources())
		proto.Merge(e.Resources, r.GetResources())
		e.spec = spec
		out = &hearthv1.NodeResizeResponse{Environment: e.shown()}
		return nil
	})
}

func burst(millis uint64) *uint64 { return &millis }

func wantResources(t *testing.T, what string, want, got *hearthv1.Resources) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestResizedLimitsAreShownAndMoveAlong(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		want := &hearthv1.Resources{CpuMillis: 2000, MemoryBytes: 4 << 30, CpuBurstMillis: burst(500)}
		e, err := w.fleet.Resize(t.Context(), alice, "r1", id, want)
		if err != nil {
			t.Fatal(err)
		}
		wantResources(t, "the answer", want, e.GetResources())
		wantResources(t, "the record", want, w.record(id).GetResources())
		w.restart()
		for _, name := range []string{"a", "b"} {
			w.nodes[name].connect()
		}
		synctest.Wait()
		wantResources(t, "the record after a restart", want, w.record(id).GetResources())
		w.fleet.SetNodes(drain("a"))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := w.where()[id]; got != "b/2 running;" {
			t.Fatalf("it is at %q", got)
		}
		claims := w.nodes["b"].books().claims
		wantResources(t, "the claim at the new node", want, claims[len(claims)-1].GetSpec().GetResources())
	})
}

func TestLimitsThatANodeReportsAreBelieved(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		want := &hearthv1.Resources{CpuMillis: 300, MemoryBytes: 1 << 30}
		w.set(func() { w.nodes["a"].envs[id].Resources = want })
		w.nodes["a"].connect()
		time.Sleep(time.Second)
		wantResources(t, "the record", want, w.record(id).GetResources())
	})
}

func TestLimitsThatNothingCanHaveReachNoNode(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		wrong := &hearthv1.Resources{MemoryBytes: 1}
		if _, err := w.fleet.Resize(t.Context(), alice, "r", id, wrong); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("resize: %v, want ErrInvalid", err)
		}
		if _, err := w.fleet.Claim(t.Context(), alice, "c", &hearthv1.ClaimSpec{Class: "small", Resources: wrong}); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("claim: %v, want ErrInvalid", err)
		}
		if _, err := w.fleet.Resize(t.Context(), fleet.Principal{Tenant: "bob"}, "r", id, &hearthv1.Resources{CpuMillis: 500}); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("another tenant's: %v, want ErrNotFound", err)
		}
		if n := w.nodes["a"].called("Resize"); n != 0 {
			t.Errorf("the node was asked %d times", n)
		}
	})
}

func TestAnObjectDecidesTheLimitsOfItsEnvironment(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		id := env.NewID()
		ref := fleet.ObjectRef{Object: "alice/mine", UID: "u1", ID: id, Tenant: "alice", Spec: &hearthv1.ClaimSpec{Class: "small"}}
		if _, err := w.fleet.ClaimFor(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		want := &hearthv1.Resources{CpuMillis: 700, CpuBurstMillis: burst(0)}
		if _, err := w.fleet.Resize(t.Context(), alice, "r", string(id), want); !errors.Is(err, env.ErrState) {
			t.Errorf("resize by a call: %v, want ErrState", err)
		}
		for range 3 {
			if err := w.fleet.ResizeFor(t.Context(), id, want); err != nil {
				t.Fatal(err)
			}
		}
		if n := w.nodes["a"].called("Resize"); n != 1 {
			t.Errorf("the node was asked %d times for what it has", n)
		}
		if got := w.record(string(id)).GetResources().GetCpuMillis(); got != 700 {
			t.Errorf("cpu = %dm", got)
		}
		w.nodes["a"].onCall("Resize", always(env.ErrState), nil)
		if err := w.fleet.ResizeFor(t.Context(), id, &hearthv1.Resources{MemoryBytes: 64 << 20}); !errors.Is(err, env.ErrState) {
			t.Errorf("what the node refuses: %v, want ErrState", err)
		}
		if n := w.happened(fleet.ResizeRefused); n != 1 {
			t.Errorf("%d refusals were told", n)
		}
		if err := w.fleet.ResizeFor(t.Context(), env.NewID(), want); err != nil {
			t.Errorf("nothing that lives: %v", err)
		}
	})
}
