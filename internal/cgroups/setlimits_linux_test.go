package cgroups

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

// inForce reads every file that carries a limit, the slot's and its container's.
func inForce(t *testing.T, g *Group) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, path := range [][]string{{string(g.slot)}, {string(g.slot), containerName}} {
		for _, l := range limitTable {
			for _, root := range g.tree.roots {
				if root.version != l.version {
					continue
				}
				b, err := os.ReadFile(root.path + g.tree.root + "/" + strings.Join(path, "/") + "/" + l.file)
				if err == nil {
					got[strings.Join(path[1:], "/")+l.file] = strings.TrimSpace(string(b))
				}
			}
		}
	}
	return got
}

// wantInForce compares every file that r writes with what it stands at.
func wantInForce(t *testing.T, g *Group, r env.Resources) {
	t.Helper()
	got := inForce(t, g)
	for _, path := range [][]string{{string(g.slot)}, {string(g.slot), containerName}} {
		for _, w := range g.tree.writes(r, path) {
			have, ok := got[strings.Join(path[1:], "/")+w.file]
			if !ok && w.optional || w.perDevice {
				continue
			}
			if have != w.value {
				t.Errorf("%v %s = %q, want %s", path, w.file, have, w.value)
			}
		}
	}
}

func TestKernelLimitsRiseAndFallWithTheContainersOwn(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	start(t, g, "sleep", nil)
	for _, r := range []env.Resources{
		{CPUMillis: 1000, CPUBurstMillis: 1000, MemoryBytes: 256 << 20, PIDs: 100},
		{CPUMillis: 2000, CPUBurstMillis: 1500, MemoryBytes: 512 << 20, PIDs: 200},
		{CPUMillis: 500, CPUBurstMillis: 400, CPUWeight: 700, MemoryBytes: 128 << 20, PIDs: 50},
		{CPUMillis: 4000, CPUBurstMillis: 4000, MemoryBytes: 1 << 30, PIDs: 50},
		{CPUMillis: 100, MemoryBytes: 64 << 20, PIDs: 50},
		{CPUMillis: 300},
	} {
		if err := g.SetLimits(r); err != nil {
			t.Fatalf("set %+v: %v", r, err)
		}
		wantInForce(t, g, r)
	}
}

func TestKernelARefusedMemoryLimitChangesNothing(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	if err := g.SetLimits(env.Resources{CPUMillis: 1000, CPUBurstMillis: 500, MemoryBytes: 1 << 30, PIDs: 64}); err != nil {
		t.Fatal(err)
	}
	start(t, g, "eat", nil) // 256 MiB, and as much again under the race detector
	last := int64(0)
	eventually(t, "the process has its memory", func() bool {
		time.Sleep(100 * time.Millisecond)
		u, err := g.Usage()
		grown := u.AnonBytes - last
		last = u.AnonBytes
		return err == nil && u.AnonBytes > 250<<20 && grown == 0
	})
	before := inForce(t, g)
	for _, frozen := range []bool{false, true} {
		if frozen {
			if err := g.Freeze(timeout(t, time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		err := g.SetLimits(env.Resources{CPUMillis: 2000, CPUBurstMillis: 2000, MemoryBytes: 128 << 20})
		if !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "in use") {
			t.Errorf("limit below what is used: %v, want ErrState", err)
		}
		if diff := cmp.Diff(before, inForce(t, g)); diff != "" {
			t.Errorf("limits have changed (-before +after):\n%s", diff)
		}
	}
	u, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.SetLimits(env.Resources{CPUMillis: 200, MemoryBytes: u.MemoryBytes + 32<<20}); err != nil {
		t.Errorf("a limit above what is used: %v", err)
	}
	if u, err := g.Usage(); err != nil || u.OOMKills != 0 {
		t.Errorf("usage = %+v, %v; nothing may be killed", u, err)
	}
	if err := g.Thaw(timeout(t, time.Second)); err != nil {
		t.Error(err)
	}
}

// A file that was read or written counts as used memory until the kernel wants it
// back: that is no reason to refuse a lower limit.
func TestKernelPageCacheMakesRoomForALowerLimit(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	if err := g.SetLimits(env.Resources{MemoryBytes: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HEARTH_CACHE_FILE", filepath.Join(t.TempDir(), "file"))
	start(t, g, "cache", nil) // 192 MiB
	eventually(t, "the page cache is counted", func() bool {
		u, err := g.Usage()
		return err == nil && u.MemoryBytes > 180<<20
	})
	const limit = 96 << 20
	if err := g.SetLimits(env.Resources{MemoryBytes: limit}); err != nil {
		t.Fatal(err)
	}
	u, err := g.Usage()
	if err != nil || u.MemoryBytes > limit || u.OOMKills != 0 {
		t.Errorf("usage = %+v, %v; want at most %d bytes and nothing killed", u, err, limit)
	}
}

func TestKernelABurstLetsASavedQuotaBeUsed(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	start(t, g, "pulse", nil) // 30 ms of CPU in 300
	limits := env.Resources{CPUMillis: 200, CPUBurstMillis: 200}
	if err := g.SetLimits(limits); err != nil {
		t.Fatal(err)
	}
	wantInForce(t, g, limits)
	cpu, _ := tree.controller("cpu")
	eventually(t, "a burst is counted", func() bool {
		b, err := os.ReadFile(cpu.path + tree.root + "/" + string(g.slot) + "/cpu.stat")
		n, ok := number(string(b), "nr_bursts")
		if err != nil || !ok {
			t.Fatalf("cpu.stat says nothing of bursts: %v\n%s", err, b)
		}
		return n > 0
	})
}

func TestKernelALowerQuotaHoldsBack(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	start(t, g, "spin", nil)
	if err := g.SetLimits(env.Resources{CPUMillis: 200, CPUBurstMillis: 200}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a spinner is held back", func() bool {
		u, err := g.Usage()
		return err == nil && u.Throttled > 0
	})
	if err := g.SetLimits(env.Resources{CPUMillis: 100}); err != nil {
		t.Fatal(err)
	}
	wantInForce(t, g, env.Resources{CPUMillis: 100})
	used := func() time.Duration {
		u, err := g.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return u.CPU
	}
	from, at := used(), time.Now()
	time.Sleep(2 * time.Second)
	if share := float64(used()-from) / float64(time.Since(at)); share > 0.2 {
		t.Errorf("a spinner with a tenth of a CPU used %.2f of one", share)
	}
}

func TestKernelIOLimitsAreOfTheWholeDisk(t *testing.T) {
	kerneltest.Require(t)
	dir := t.TempDir()
	devices, why := devicesOf([]string{dir, "/"}, sysBlock)
	if len(devices) == 0 {
		t.Skip("no block device below the tests' files: " + why)
	}
	tree := openTree(t)
	tree.devices, tree.noDevices = devices, ""
	g := createGroup(t, tree)
	r := env.Resources{IO: env.IOLimits{WriteBytes: 1 << 20, ReadOps: 100}}
	if err := tree.Supports(r); err != nil {
		t.Skip(err)
	}
	if err := g.SetLimits(r); err != nil {
		t.Fatal(err)
	}
	got := inForce(t, g)
	v2, v1 := got["io.max"], got["blkio.throttle.write_bps_device"]
	if !strings.Contains(v2, devices[0]) && !strings.Contains(v1, devices[0]+" 1048576") {
		t.Errorf("io.max %q, write_bps_device %q; want a limit of %s", v2, v1, devices[0])
	}
	containerDirs(t, g)
	if err := g.SetLimits(r); err != nil { // once the container is there
		t.Fatal(err)
	}
	t.Setenv("HEARTH_CACHE_FILE", filepath.Join(dir, "file"))
	begun := time.Now()
	start(t, g, "write", nil) // 3 MiB past the page cache
	eventually(t, "the file is written", func() bool {
		st, err := os.Stat(filepath.Join(dir, "file.done"))
		return err == nil && st != nil
	})
	if took := time.Since(begun); took < 1500*time.Millisecond {
		t.Errorf("3 MiB at 1 MiB a second took %s", took)
	}
}

func TestAPartitionsLimitIsItsDisks(t *testing.T) {
	sys := t.TempDir()
	disk := filepath.Join(sys, "devices", "sda")
	for path, text := range map[string]string{"dev": "8:0\n", "sda1/dev": "8:1\n", "sda1/partition": "1\n"} {
		p := filepath.Join(disk, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for number, dir := range map[string]string{"8:0": disk, "8:1": filepath.Join(disk, "sda1")} {
		if err := os.Symlink(dir, filepath.Join(sys, number)); err != nil {
			t.Fatal(err)
		}
		if got, err := wholeDevice("/x", number, sys); got != "8:0" || err != nil {
			t.Errorf("disk of %s = %q, %v", number, got, err)
		}
	}
	if _, err := wholeDevice("/x", "0:44", sys); err == nil || !strings.Contains(err.Error(), "/x") {
		t.Errorf("a file system without a device: %v", err)
	}
	if d, why := devicesOf([]string{"/proc"}, sysBlock); len(d) != 0 || !strings.Contains(why, "/proc") {
		t.Errorf("devices of /proc = %v, %q", d, why)
	}
}

func TestKernelALimitThatNoNodeHasIsRefusedAndChangesNothing(t *testing.T) {
	kerneltest.Require(t)
	root := "/hearth-test-none-" + filepath.Base(t.TempDir())
	tree, err := Open(Config{Root: root, Files: []string{"/proc"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tree.RemoveRoot(), tree.Close()); err != nil {
			t.Error(err)
		}
	})
	g := createGroup(t, tree)
	before := inForce(t, g)
	err = g.SetLimits(env.Resources{CPUMillis: 100, IO: env.IOLimits{ReadBytes: 1}})
	if !errors.Is(err, env.ErrUnsupported) || !strings.Contains(err.Error(), "/proc") {
		t.Errorf("io limits without a device: %v, want ErrUnsupported that names the path", err)
	}
	if diff := cmp.Diff(before, inForce(t, g)); diff != "" {
		t.Errorf("limits have changed:\n%s", diff)
	}
}

// writeDirect writes n bytes past the page cache.
func writeDirect(path string, n int) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	buf, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	for ; n > 0; n -= len(buf) {
		if _, err := unix.Write(fd, buf); err != nil {
			return err
		}
	}
	return os.WriteFile(path+".done", nil, 0o600)
}

// BenchmarkSetLimits is what a claim with limits of its own waits for.
func BenchmarkSetLimits(b *testing.B) {
	tree := openTree(b)
	g := createGroup(b, tree)
	start(b, g, "sleep", nil)
	if err := g.Freeze(timeout(b, time.Second)); err != nil {
		b.Fatal(err)
	}
	sizes := []env.Resources{{CPUMillis: 1000, MemoryBytes: 512 << 20}, {CPUMillis: 500, MemoryBytes: 128 << 20}}
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		at := time.Now()
		if err := g.SetLimits(sizes[i%2]); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100])/1e6, "p99-ms")
}

func TestOnlyLimitsThatChangeAreOpened(t *testing.T) {
	tree := &Tree{roots: []treeRoot{{hierarchy: hierarchy{version: 2, controllers: []string{"cpu", "memory", "pids", "io"}}}}, devices: []string{"8:0", "8:16"}}
	before := env.Resources{CPUMillis: 1000, MemoryBytes: 1 << 30, PIDs: 100, IO: env.IOLimits{ReadBytes: 1 << 20}}
	g := &Group{tree: tree, said: map[limitKey]string{}}
	for _, w := range tree.writes(before, []string{"slot"}) {
		g.said[w.key()] = w.value
	}
	for name, tc := range map[string]struct {
		change func(*env.Resources)
		want   []string
	}{
		"nothing": {func(*env.Resources) {}, nil},
		"pids":    {func(r *env.Resources) { r.PIDs = 200 }, []string{"pids.max"}},
		"weight":  {func(r *env.Resources) { r.CPUWeight = 50 }, []string{"cpu.weight"}},
		"swap":    {func(r *env.Resources) { r.SwapBytes = 1 << 20 }, []string{"memory.max", "memory.high", "memory.swap.max"}},
		"io":      {func(r *env.Resources) { r.IO.WriteOps = 9 }, []string{"io.max", "io.max"}},
	} {
		r := before
		tc.change(&r)
		var got []string
		for _, w := range g.news(tree.writes(r, []string{"slot"})) {
			got = append(got, w.file)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		elsewhere := tree.writes(before, []string{"slot", containerName})
		if n := len(g.news(slices.Clone(elsewhere))); n != len(elsewhere) {
			t.Errorf("%s: of %d files of another cgroup %d are opened", name, len(elsewhere), n)
		}
	}
}
