package cgroups

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

// fakeParent makes the parent's cgroup as an init system would.
type fakeParent struct {
	dirs    []string
	ensured int
	weights []int64
	fault   error
}

func (p *fakeParent) Ensure(context.Context) error {
	if p.fault != nil {
		return p.fault
	}
	p.ensured++
	for _, dir := range p.dirs {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func (p *fakeParent) SetWeight(_ context.Context, weight int64) error {
	p.weights = append(p.weights, weight)
	return p.fault
}

// openBelow opens a tree in a parent's cgroup.
func openBelow(t *testing.T) (*Tree, *fakeParent) {
	t.Helper()
	kerneltest.Require(t)
	name := "hearth-test-" + strconv.Itoa(os.Getpid()) + ".scope"
	_, hs, err := detect("/sys/fs/cgroup")
	if errors.Is(err, env.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	parent := &fakeParent{}
	for _, h := range hs {
		parent.dirs = append(parent.dirs, filepath.Join(h.path, name))
	}
	t.Cleanup(func() {
		for _, dir := range parent.dirs {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				t.Errorf("remove %s: %v", dir, err)
			}
		}
	})
	if err := parent.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	tree, err := Open(Config{Root: "/" + name + "/slots", Parent: parent}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tree.RemoveRoot(), tree.Close()); err != nil {
			t.Error(err)
		}
	})
	return tree, parent
}

func TestKernelARootThatIsGoneIsMadeAgainWithItsBudget(t *testing.T) {
	tree, parent := openBelow(t)
	if done, err := tree.SetBudget(Budget{MemoryBytes: 1 << 30, CPUMillis: 2000, PIDs: 500}); err != nil || !done {
		t.Fatalf("set budget: %t, %v", done, err)
	}
	before := createGroup(t, tree)
	if err := before.Remove(timeout(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := tree.RemoveRoot(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range parent.dirs {
		if err := unix.Rmdir(dir); err != nil {
			t.Fatal(err)
		}
	}
	g := createGroup(t, tree)
	start(t, g, "sleep", nil)
	if populated, err := g.Populated(); err != nil || !populated {
		t.Errorf("populated = %t, %v", populated, err)
	}
	if parent.ensured != 2 {
		t.Errorf("the parent was asked %d times, want at first and again", parent.ensured)
	}
	if got := limitOf(t, tree); got != 1<<30 {
		t.Errorf("limit of the new root is %d", got)
	}
}

func TestKernelAParentThatIsGoneIsNotMadeHere(t *testing.T) {
	tree, parent := openBelow(t)
	if err := tree.RemoveRoot(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range parent.dirs {
		if err := unix.Rmdir(dir); err != nil {
			t.Fatal(err)
		}
	}
	parent.fault = errors.New("the bus is away")
	if g, err := tree.Create(env.NewSlotID()); !errors.Is(err, parent.fault) {
		t.Errorf("create: %v, %v, want the parent's fault", g, err)
	}
	if _, err := Open(Config{Root: tree.root, Parent: parent}, slog.New(slog.DiscardHandler)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open below a parent that is not there: %v", err)
	}
	for _, dir := range parent.dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was made: %v", dir, err)
		}
	}
}

func TestKernelTheShareOfATreeIsItsParents(t *testing.T) {
	tree, parent := openBelow(t)
	if _, ok := tree.controller("cpu"); !ok {
		t.Skip("no cpu controller here")
	}
	for range 2 {
		if _, err := tree.SetBudget(Budget{CPUMillis: 2000}); err != nil {
			t.Fatal(err)
		}
	}
	if len(parent.weights) != 1 || parent.weights[0] != weightOf(2000) {
		t.Errorf("the parent was told %v, want %d once", parent.weights, weightOf(2000))
	}
}

func TestKernelLookCountsSlotsAndMakesNothing(t *testing.T) {
	tree := openTree(t)
	for want := range 3 {
		found, slots, err := Look(Config{Root: tree.root})
		if err != nil || !found || slots != want {
			t.Errorf("look = %t, %d, %v, want %d slots", found, slots, err, want)
		}
		createGroup(t, tree)
	}
	found, slots, err := Look(Config{Root: tree.root + "-none"})
	if err != nil || found || slots != 0 {
		t.Errorf("look where nothing is = %t, %d, %v", found, slots, err)
	}
	if _, err := os.Stat(tree.roots[0].path + tree.root + "-none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}
