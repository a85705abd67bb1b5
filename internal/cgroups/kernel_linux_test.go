package cgroups

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

const helperEnv = "HEARTH_CGROUPS_HELPER"

// TestMain lets the test binary be the process inside the cgroup.
func TestMain(m *testing.M) {
	switch role := os.Getenv(helperEnv); role {
	case "":
		os.Exit(m.Run())
	case "sleep":
		time.Sleep(time.Minute)
	case "spin":
		for range runtime.NumCPU() {
			go func() {
				for spins := uint64(0); ; spins++ {
				}
			}()
		}
		time.Sleep(time.Minute)
	case "pulse":
		for {
			time.Sleep(270 * time.Millisecond)
			for until := time.Now().Add(30 * time.Millisecond); time.Now().Before(until); {
			}
		}
	case "eat":
		buf := bytes.Repeat([]byte{1}, 256<<20)
		time.Sleep(time.Minute)
		runtime.KeepAlive(buf)
	case "cache": // of the holes of a file: nothing need be written first
		f, err := os.Create(os.Getenv("HEARTH_CACHE_FILE"))
		if err == nil {
			err = f.Truncate(192 << 20)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, struct{ io.Reader }{f})
		}
		if err != nil {
			os.Exit(8)
		}
		time.Sleep(time.Minute)
	case "write":
		if err := writeDirect(os.Getenv("HEARTH_CACHE_FILE"), 3<<20); err != nil {
			os.Exit(8)
		}
		time.Sleep(time.Minute)
	case "hoard":
		os.Exit(hoard())
	case "fork":
		refused := 0
		for range 64 {
			if err := exec.Command("/bin/sleep", "60").Start(); errors.Is(err, unix.EAGAIN) {
				refused++
			}
		}
		fmt.Println("refused", refused)
		time.Sleep(time.Minute)
	}
	os.Exit(0)
}

func openTree(t testing.TB) *Tree {
	t.Helper()
	kerneltest.Require(t)
	root := "/hearth-test-" + strconv.Itoa(os.Getpid())
	tree, err := Open(Config{Root: root}, slog.New(slog.DiscardHandler))
	if errors.Is(err, env.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		slots, err := tree.List()
		if err != nil || len(slots) != 0 {
			t.Errorf("slots left behind: %v, %v", slots, err)
		}
		if err := tree.RemoveRoot(); err != nil {
			t.Error(err)
		}
		for _, r := range tree.roots {
			if _, err := os.Stat(r.path + root); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left behind", r.path+root)
			}
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree
}

func createGroup(t testing.TB, tree *Tree) *Group {
	t.Helper()
	g, err := tree.Create(env.NewSlotID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(timeout(t, 5*time.Second)); err != nil {
			t.Error(err)
		}
	})
	return g
}

// timeout does not end with the test, so that clean-ups may use it.
func timeout(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// containerDirs makes the container's cgroup in every hierarchy, as runc does.
func containerDirs(t testing.TB, g *Group) []string {
	t.Helper()
	var dirs []string
	for _, r := range g.tree.roots {
		dir := r.path + g.ContainerPath()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(r.controllers, "cpuset") && r.version == 1 {
			at := r.path
			for _, name := range components(g.ContainerPath()) {
				at += "/" + name
				for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
					v, _ := os.ReadFile(r.path + "/" + f)
					_ = os.WriteFile(at+"/"+f, v, 0)
				}
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// start runs this binary in a role inside the container's cgroup. A shell
// joins first, so that nothing happens outside.
func start(t testing.TB, g *Group, role string, stdout *os.File) *exec.Cmd {
	t.Helper()
	script := ""
	for _, d := range containerDirs(t, g) {
		script += "echo $$ > " + d + "/cgroup.procs || exit 9\n"
	}
	cmd := exec.Command("/bin/sh", "-c", script+"echo in >&2; exec "+os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+role)
	ready, joined, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = stdout, joined
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = joined.Close()
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = g.Thaw(timeout(t, time.Second)); <-done })
	buf := make([]byte, 256)
	n, _ := ready.Read(buf)
	_ = ready.Close()
	if said := string(buf[:n]); said != "in\n" {
		t.Fatalf("process did not join its cgroup: %s", said)
	}
	return cmd
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestKernelSlotIsMadeInEveryHierarchyAndLeavesNothing(t *testing.T) {
	tree := openTree(t)
	g, err := tree.Create(env.NewSlotID())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range tree.roots {
		if _, err := os.Stat(r.path + tree.root + "/" + string(g.Slot())); err != nil {
			t.Error(err)
		}
	}
	if _, err := tree.Create(g.Slot()); !errors.Is(err, env.ErrExists) {
		t.Errorf("second create: %v, want ErrExists", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(tree.roots[0].path+tree.root+"/"+string(g.Slot()), &st); err != nil || st.Ino != g.ID() {
		t.Errorf("id %d, inode %d, %v", g.ID(), st.Ino, err)
	}
	if err := tree.RemoveRoot(); !errors.Is(err, env.ErrState) {
		t.Errorf("remove a root in use: %v, want ErrState", err)
	}
	for range 2 {
		if err := g.Remove(timeout(t, time.Second)); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if slots, err := tree.List(); err != nil || len(slots) != 0 {
		t.Errorf("slots that are left: %v, %v", slots, err)
	}
}

// An agent that is killed while it makes or removes a slot's cgroup leaves it in
// some hierarchies.
func TestKernelHalfASlotIsAdoptedAndRemoved(t *testing.T) {
	tree := openTree(t)
	half := func(missing ...treeRoot) {
		before := createGroup(t, tree)
		for _, r := range missing {
			if err := removeTree(r.dir, string(before.Slot()), 0); err != nil {
				t.Fatal(err)
			}
		}
		g, err := tree.Adopt(before.Slot())
		if err != nil {
			t.Fatal(err)
		}
		if populated, err := g.Populated(); err != nil || populated {
			t.Errorf("populated %t, %v", populated, err)
		}
		for _, r := range tree.roots {
			if _, err := os.Stat(r.path + tree.root + "/" + string(g.Slot())); err != nil {
				t.Error(err)
			}
		}
		if err := g.Remove(timeout(t, 5*time.Second)); err != nil {
			t.Error(err)
		}
	}
	for _, r := range tree.roots {
		half(r)
		half(tree.roots[0], r)
	}
	if slots, err := tree.List(); err != nil || len(slots) != 0 {
		t.Errorf("slots that are left: %v, %v", slots, err)
	}
}

func TestKernelFailedCreateLeavesNoHierarchyBehind(t *testing.T) {
	tree := openTree(t)
	if len(tree.roots) < 2 {
		t.Skip("needs the hybrid layout: one hierarchy cannot be half made")
	}
	slot := env.NewSlotID()
	last := tree.roots[len(tree.roots)-1]
	if _, err := mkdirAt(last.dir, string(slot)); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Create(slot); !errors.Is(err, env.ErrExists) {
		t.Fatalf("create = %v, want ErrExists", err)
	}
	for _, r := range tree.roots[:len(tree.roots)-1] {
		if _, err := os.Stat(r.path + tree.root + "/" + string(slot)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s has the slot", r.path)
		}
	}
	slots, err := tree.List()
	if diff := cmp.Diff([]env.SlotID{slot}, slots); diff != "" || err != nil {
		t.Errorf("the orphan is not listed: %v\n%s", err, diff)
	}
	if err := removeTree(last.dir, string(slot), 0); err != nil {
		t.Fatal(err)
	}
}

func TestKernelFreezeStopsAndThawRuns(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	cmd := start(t, g, "spin", nil)
	ctx := timeout(t, 10*time.Second)
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if ok, err := g.Frozen(); !ok || err != nil {
		t.Fatalf("frozen = %t, %v", ok, err)
	}
	ticks := func() string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(b))[13:15], " ")
	}
	before := ticks()
	time.Sleep(100 * time.Millisecond)
	if after := ticks(); after != before {
		t.Errorf("a frozen process used CPU: %s, then %s", before, after)
	}
	if err := g.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a thawed spinner uses CPU", func() bool { return ticks() != before })
}

func TestKernelFrozenSlotIsAdoptedKilledAndRemoved(t *testing.T) {
	tree := openTree(t)
	first := createGroup(t, tree)
	cmd := start(t, first, "sleep", nil)
	if err := first.Freeze(timeout(t, time.Second)); err != nil {
		t.Fatal(err)
	}
	g, err := tree.Adopt(first.Slot())
	if err != nil {
		t.Fatal(err)
	}
	if g.ID() != first.ID() {
		t.Errorf("adopted id %d, want %d", g.ID(), first.ID())
	}
	pids, err := g.Pids()
	if diff := cmp.Diff([]int{cmd.Process.Pid}, pids); diff != "" || err != nil {
		t.Errorf("pids: %v\n%s", err, diff)
	}
	if err := g.Kill(timeout(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if ok, err := g.Populated(); ok || err != nil {
		t.Errorf("populated = %t, %v", ok, err)
	}
	for range 2 {
		if err := g.Remove(timeout(t, 5*time.Second)); err != nil {
			t.Error(err)
		}
	}
}

func TestKernelFreezeThatDoesNotCompleteInTimeNamesTheProcess(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	cmd := start(t, g, "spin", nil)
	over, cancel := context.WithCancel(context.Background())
	cancel() // the freeze has no time but for one look
	var freezing *FreezingError
	eventually(t, "a running process has not stopped at the first look", func() bool {
		err := g.Freeze(over)
		if terr := g.Thaw(timeout(t, 5*time.Second)); terr != nil {
			t.Fatal(terr)
		}
		return errors.As(err, &freezing)
	})
	if diff := cmp.Diff([]int{cmd.Process.Pid}, freezing.PIDs); diff != "" || freezing.Slot != g.Slot() || !errors.Is(freezing, env.ErrState) {
		t.Errorf("%v\n%s", freezing, diff)
	}
}

func TestKernelMemoryLimitKillsAndIsCounted(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	if err := g.SetLimits(env.Resources{MemoryBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	start(t, g, "eat", nil)
	eventually(t, "an OOM kill is counted", func() bool {
		u, err := g.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return u.OOMKills == 1
	})
}

func TestKernelPIDLimitRefusesForksAndIsCounted(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	if err := g.SetLimits(env.Resources{PIDs: 32}); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, g, "fork", w)
	_ = w.Close()
	buf := make([]byte, 64)
	n, _ := r.Read(buf)
	_ = r.Close()
	if out := string(buf[:n]); !strings.HasPrefix(out, "refused ") || out == "refused 0\n" {
		t.Errorf("helper said %q", out)
	}
	u, err := g.Usage()
	if err != nil || u.PIDsRefused == 0 || u.PIDs == 0 || u.PIDs > 32 {
		t.Errorf("usage = %+v, %v", u, err)
	}
	if err := g.Kill(timeout(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
}

func TestKernelFreezeAndThawAllocateNothing(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	start(t, g, "sleep", nil)
	ctx := timeout(t, 20*time.Second)
	allocs := testing.AllocsPerRun(50, func() {
		if g.Freeze(ctx) != nil || g.Thaw(ctx) != nil {
			panic("freeze or thaw")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per freeze and thaw", allocs)
	}
}

func BenchmarkFreezeThaw(b *testing.B) {
	tree := openTree(b)
	g := createGroup(b, tree)
	start(b, g, "sleep", nil)
	ctx := context.Background()
	var freeze, thaw []time.Duration
	for b.Loop() {
		at := time.Now()
		if err := g.Freeze(ctx); err != nil {
			b.Fatal(err)
		}
		mid := time.Now()
		if err := g.Thaw(ctx); err != nil {
			b.Fatal(err)
		}
		freeze, thaw = append(freeze, mid.Sub(at)), append(thaw, time.Since(mid))
	}
	for name, ds := range map[string][]time.Duration{"freeze": freeze, "thaw": thaw} {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[len(ds)/2])/1e6, name+"-p50-ms")
		b.ReportMetric(float64(ds[len(ds)*99/100])/1e6, name+"-p99-ms")
	}
}
