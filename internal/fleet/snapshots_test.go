package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func (n *node) ListSnapshots(_ context.Context, r *hearthv1.NodeListSnapshotsRequest) (*hearthv1.NodeListSnapshotsResponse, error) {
	n.claim.Lock()
	defer n.claim.Unlock()
	n.listed++
	return &hearthv1.NodeListSnapshotsResponse{Snapshots: n.snapshots[r.GetEnvironment()]}, n.listErr
}

// keeps makes the node keep snapshots 1 to last of the lineage.
func (n *node) keeps(tenant string, lineage env.ID, last int) {
	for i := range last {
		n.snapshots[string(lineage)] = append(n.snapshots[string(lineage)], &hearthv1.Snapshot{
			Id: fmt.Sprintf("%s/%d", lineage, i+1), Environment: string(lineage), Tenant: tenant})
	}
}

// The environment's record is long gone: the nodes know whose its snapshots are,
// and which of them has the one that is wanted.
func TestASnapshotOfAForgottenEnvironmentIsFoundOnItsNode(t *testing.T) {
	lineage := env.NewID()
	for name, tc := range map[string]struct {
		tenant string
		at     map[string]int // how many each node keeps
		quiet  string
		want   string
		err    error
	}{
		"one node keeps it":                            {tenant: "alice", at: map[string]int{"n2": 3}, want: "n2"},
		"another was copied before it was taken":       {tenant: "alice", at: map[string]int{"n1": 2, "n3": 3}, want: "n3"},
		"two keep it: the one with newer ones":         {tenant: "alice", at: map[string]int{"n1": 3, "n3": 4}, want: "n3"},
		"another tenant's is not found":                {tenant: "bob", at: map[string]int{"n2": 3}, err: env.ErrNotFound},
		"one whose tenant nobody knows is not found":   {tenant: "", at: map[string]int{"n2": 3}, err: env.ErrNotFound},
		"nobody keeps it":                              {tenant: "alice", err: env.ErrNotFound},
		"the number is not there":                      {tenant: "alice", at: map[string]int{"n2": 2}, err: env.ErrNotFound},
		"a node that may have it does not answer":      {tenant: "alice", quiet: "n2", err: env.ErrUnavailable},
		"a node that need not have it does not answer": {tenant: "alice", at: map[string]int{"n1": 3}, quiet: "n2", want: "n1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				for _, n := range []string{"n1", "n2", "n3"} {
					other := newNode()
					other.keeps(tc.tenant, lineage, tc.at[n])
					if n == tc.quiet {
						other.listErr = fmt.Errorf("%w: reset", env.ErrUnavailable)
					}
					w.others[n] = other
					s := w.fleet.Connect(n, "h:1")
					if _, err := s.Inventory(&hearthv1.InventoryResponse{Pools: []*hearthv1.Pool{{Class: "small"}}, Room: &hearthv1.Room{SlotsMax: 10}}); err != nil {
						t.Fatal(err)
					}
				}
				got, err := w.fleet.Claim(context.Background(), alice, "k", &hearthv1.ClaimSpec{Class: "small", Snapshot: string(lineage) + "/3"})
				if !errors.Is(err, tc.err) || got.GetEnvironment().GetNode() != tc.want {
					t.Errorf("claimed on %q, %v; want %q, %v", got.GetEnvironment().GetNode(), err, tc.want, tc.err)
				}
				list, err := w.fleet.ListSnapshots(context.Background(), alice, string(lineage))
				if wantNone := tc.err != nil && len(tc.at) == 0 || tc.tenant != "alice"; wantNone != (err != nil) || wantNone != (len(list) == 0) {
					t.Errorf("list = %v, %v", list, err)
				}
			})
		})
	}
}

func TestASnapshotOfAKnownEnvironmentIsLookedForNowhereElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		time.Sleep(10 * time.Second)
		w.report()
		got, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		id := got.GetEnvironment().GetId()
		if _, err := w.fleet.Claim(context.Background(), alice, "l", &hearthv1.ClaimSpec{Class: "small", Snapshot: id + "/1"}); err != nil {
			t.Error(err)
		}
		if _, err := w.fleet.Claim(context.Background(), fleet.Principal{Tenant: "bob"}, "l", &hearthv1.ClaimSpec{Class: "small", Snapshot: id + "/1"}); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("another tenant: %v", err)
		}
		if w.node.listed != 0 {
			t.Errorf("nodes were asked %d times", w.node.listed)
		}
	})
}

func TestASnapshotIsLookedForOnNodesThatReportLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		lineage := env.NewID()
		for i, name := range []string{"n1", "n2", "n3"} {
			n := newNode()
			w.others[name] = n
			if name == "n3" {
				n.keeps("alice", lineage, 1)
			}
			go func() {
				for range 5 {
					time.Sleep(time.Duration(i+1) * time.Second)
					s := w.fleet.Connect(name, "h:1")
					_, _ = s.Inventory(&hearthv1.InventoryResponse{Pools: []*hearthv1.Pool{{Class: "small"}}, Room: &hearthv1.Room{SlotsMax: 10}})
				}
			}()
		}
		got, err := w.fleet.Claim(context.Background(), alice, "k", &hearthv1.ClaimSpec{Class: "small", Snapshot: string(lineage) + "/1"})
		if err != nil || got.GetEnvironment().GetNode() != "n3" {
			t.Errorf("claim = %v, %v", got, err)
		}
		if listed := w.others["n1"].listed; listed != 1 {
			t.Errorf("n1 was asked %d times", listed)
		}
		synctest.Wait()
		time.Sleep(time.Minute)
	})
}
