package warm

import (
	"errors"
	"slices"
	"testing"

	"hearth/internal/env"
)

func TestAClaimFetchesASnapshotThatIsNotHere(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	claim := Claim{
		ID: env.NewID(), Class: "demo", Tenant: "acme", Generation: 2, Key: "k",
		Fetch: &FetchFrom{Node: "other", Address: "192.0.2.1:7401"},
	}
	claim.Snapshot = env.SnapshotID(string(claim.ID) + "/4")
	a, err := n.Claim(t.Context(), claim)
	if err != nil {
		t.Fatal(err)
	}
	if a.Environment.Snapshot != claim.Snapshot || b.world.forked() != 0 {
		t.Errorf("environment = %+v, %d lineages begun", a.Environment, b.world.forked())
	}
	// Repeated, it names another source, and is answered as before.
	claim.Fetch = nil
	if again, err := n.Claim(t.Context(), claim); err != nil || again.Token != a.Token {
		t.Errorf("repeated: %v", err)
	}
	// A snapshot that is here is not fetched.
	other := Claim{Class: "demo", Tenant: "acme", Snapshot: claim.Snapshot, Fetch: &FetchFrom{Node: "third"}}
	if _, err := n.Claim(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if !b.world.called("fetch other") || b.world.called("fetch third") {
		t.Error("fetched from the wrong node")
	}
}

func TestAFetchThatFailsLeavesNothing(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	b.world.failWith(func(c string) error {
		if c == "fetch other" {
			return env.ErrUnavailable
		}
		return nil
	})
	claim := Claim{Class: "demo", Snapshot: "e-gone/1", Fetch: &FetchFrom{Node: "other"}}
	if _, err := n.Claim(t.Context(), claim); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("error = %v", err)
	}
	if room := n.Room(); room.SlotsUsed != 0 || n.reserved != 0 || b.world.called("image") {
		t.Errorf("room = %+v, %d reserved", room, n.reserved)
	}
}

func TestASnapshotOfAnotherTenantIsNotClaimed(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	a, err := n.Claim(t.Context(), Claim{Class: "demo", Tenant: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := n.Snapshot(t.Context(), a.Environment.ID)
	if err != nil || snap.Tenant != "acme" {
		t.Fatalf("snapshot = %+v, %v", snap, err)
	}
	for _, tenant := range []string{"", "other"} {
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", Tenant: tenant, Snapshot: snap.ID}); !errors.Is(err, env.ErrDenied) {
			t.Errorf("tenant %q: %v", tenant, err)
		}
	}
	if b.world.forked() != 0 {
		t.Error("a lineage was begun")
	}
}

// called reports whether the node made this call.
func (w *world) called(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.calls, name)
}

// The target of a move may have captured it again by the time that the source
// is released: the source must not add to the lineage any more.
func TestAHeldEnvironmentIsNotCapturedAgainByItsRelease(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := demoClass(0)
	class.Snapshot.OnRelease = true
	n := b.open(class)
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	id := a.Environment.ID
	if _, err := n.SnapshotAndHold(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	captures := func() (count int) {
		b.world.mu.Lock()
		defer b.world.mu.Unlock()
		for _, c := range b.world.calls {
			if c == "capture" {
				count++
			}
		}
		return count
	}
	// Resumed, it changes, and held again it is captured again.
	if _, err := n.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	held, err := n.SnapshotAndHold(t.Context(), id)
	if err != nil || captures() != 2 {
		t.Fatalf("%d captures, %v", captures(), err)
	}
	snap, err := n.Release(t.Context(), id, 0, false)
	if err != nil || snap.ID != held.ID || captures() != 2 {
		t.Errorf("released with %s after %d captures, held at %s: %v", snap.ID, captures(), held.ID, err)
	}
}
