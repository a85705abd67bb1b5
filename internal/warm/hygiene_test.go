package warm

import (
	"slices"
	"testing"

	"hearth/internal/env"
)

func TestAForkIsAnotherMachineAndAMoveTheSame(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := demoClass(0)
	class.Hygiene.Keep = []env.Trait{env.TraitHosts}
	n := b.open(class)
	defer n.Close()
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	if kept := b.world.hygieneOf(a.Environment.Slot).Keep; !slices.Equal(kept, class.Hygiene.Keep) {
		t.Errorf("a claim from the image keeps %v", kept)
	}
	snap, err := n.Snapshot(t.Context(), a.Environment.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Release(t.Context(), a.Environment.ID, 0, false); err != nil {
		t.Fatal(err)
	}
	fork, err := n.Claim(t.Context(), Claim{Class: "demo", Snapshot: snap.ID})
	if err != nil {
		t.Fatal(err)
	}
	if kept := b.world.hygieneOf(fork.Environment.Slot).Keep; !slices.Equal(kept, class.Hygiene.Keep) {
		t.Errorf("a fork keeps %v", kept)
	}
	back, err := n.Claim(t.Context(), Claim{Class: "demo", Snapshot: snap.ID, ID: a.Environment.ID, Generation: 2})
	if err != nil {
		t.Fatal(err)
	}
	want := []env.Trait{env.TraitMachineID, env.TraitSSHHostKeys, env.TraitRandomSeed, env.TraitHosts}
	if kept := b.world.hygieneOf(back.Environment.Slot).Keep; !slices.Equal(kept, want) {
		t.Errorf("an environment that comes back keeps %v, want %v", kept, want)
	}
	if len(class.Hygiene.Keep) != 1 {
		t.Errorf("the class itself keeps %v now", class.Hygiene.Keep)
	}
}
