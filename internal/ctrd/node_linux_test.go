package ctrd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/cgroups"
	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

const testRef = "localhost/probe:1"

// node is a real containerd of the test's own, with a cgroup tree.
type node struct {
	t    testing.TB
	dir  string
	cfg  Config
	r    *Runtime
	tree *cgroups.Tree
	init string
	// runtime makes the containers; "" is runc.
	runtime string
	next    atomic.Uint32 // id ranges given out
}

func binDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("HEARTH_TEST_BIN")
	if dir == "" {
		dir = "../../.bin"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "containerd")); err != nil {
		t.Skipf("kerneltest: skip: containerd: %s has none; run make deps", dir)
	}
	return dir
}

func startNode(t testing.TB) *node {
	t.Helper()
	kerneltest.Require(t)
	bin := binDir(t)
	// Not t.TempDir: a socket's path is at most 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "hctrd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, init: buildProbe(t, dir, "probe", runtime.GOARCH), cfg: Config{
		Instance: "hearth", BinDir: bin, Root: dir + "/root", State: dir + "/state",
		RuntimeBinary: filepath.Join(bin, "runc"), Runtimes: map[string]string{"crun": "crun"},
	}}
	t.Cleanup(func() { n.cleanUp() })
	n.tree, err = cgroups.Open(cgroups.Config{Root: "/hctrd-" + strconv.Itoa(os.Getpid())}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n.r, err = Open(t.Context(), n.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if refs, err := n.r.Import(t.Context(), bytes.NewReader(ociArchive(t, testRef, nil))); err != nil || !slices.Equal(refs, []string{testRef}) {
		t.Fatalf("import = %v, %v", refs, err)
	}
	return n
}

// eachRuntime runs a test of what containers are on every runtime that make deps
// installs. The subtests say which really ran.
func eachRuntime(t *testing.T, test func(t *testing.T, n *node)) {
	t.Helper()
	for _, name := range []string{env.DefaultRuntime, "crun"} {
		t.Run(name, func(t *testing.T) {
			n := startNode(t)
			if n.runtime = name; name == "crun" {
				kerneltest.HideUnifiedControllers(t)
			}
			test(t, n)
		})
	}
}

func buildProbe(t testing.TB, dir, name, arch string) string {
	t.Helper()
	out := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-o", out, "./testdata/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, b)
	}
	return out
}

// cleanUp deletes what the test left and fails if anything stays on the machine.
func (n *node) cleanUp() {
	t := n.t
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if n.r != nil {
		left, err := n.r.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, c := range left {
			if err := n.r.Delete(ctx, c.Slot); err != nil {
				t.Error(err)
			}
		}
		n.checkEmpty(ctx)
		if err := n.r.StopManaged(ctx); err != nil {
			t.Error(err)
		}
		_ = n.r.Close()
	}
	if n.tree != nil {
		slots, _ := n.tree.List()
		for _, s := range slots {
			if g, err := n.tree.Adopt(s); err == nil {
				_ = g.Remove(ctx)
			}
		}
		if err := errors.Join(n.tree.RemoveRoot(), n.tree.Close()); err != nil {
			t.Error(err)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), n.dir) {
		t.Errorf("mounts are left below %s:\n%s", n.dir, mounts)
		return // removing would reach through them
	}
	for _, p := range processesNaming(n.dir) {
		t.Errorf("process left: %s", p)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		t.Error(err)
	}
}

func (n *node) checkEmpty(ctx context.Context) {
	n.t.Helper()
	if left, err := n.r.List(ctx); err != nil || len(left) > 0 {
		n.t.Errorf("left in containerd: %+v, %v", left, err)
	}
}

// processesNaming lists processes, shims among them, whose command line names s.
func processesNaming(s string) []string {
	var out []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range paths {
		b, _ := os.ReadFile(p)
		if strings.Contains(string(b), s) {
			out = append(out, p+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

// machine is one slot with all that its container needs.
type machine struct {
	spec Spec
	g    *cgroups.Group
	fs   Rootfs
	pid  int
	free func() // ends the namespaces' child and closes the descriptor
}

func (n *node) prepare() *machine {
	n.t.Helper()
	slot := env.NewSlotID()
	ids := env.IDRange{Base: 1_900_000_000 + n.next.Add(1)*env.IDRangeSize, Size: env.IDRangeSize}
	ctx := n.t.Context()
	img, err := n.r.Image(ctx, testRef)
	if err != nil {
		n.t.Fatal(err)
	}
	fs, err := n.r.Prepare(ctx, slot, img, ids)
	if err != nil {
		n.t.Fatal(err)
	}
	g, err := n.tree.Create(slot)
	if err != nil {
		n.t.Fatal(err)
	}
	child, netns := namespacesFor(n.t, ids)
	return &machine{g: g, fs: fs, spec: Spec{
		Slot: slot, Image: img, IDs: ids,
		Class:  env.Class{Runtime: n.runtime, Env: map[string]string{"FROM": "class"}, Resources: env.Resources{CPUMillis: 500, MemoryBytes: 128 << 20, PIDs: 64}},
		UserNS: fmt.Sprintf("/proc/%d/ns/user", child.Process.Pid), NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), netns.Fd()),
		CgroupsPath: g.ContainerPath(), InitPath: n.init, Hostname: "box", Labels: map[string]string{"class": "c"},
	}, free: func() { _ = child.Process.Kill(); _ = child.Wait(); _ = netns.Close() }}
}

// namespacesFor makes a user and a network namespace together, as islands are.
func namespacesFor(t testing.TB, ids env.IDRange) (*exec.Cmd, *os.File) {
	t.Helper()
	child := exec.Command("/bin/sleep", "60")
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(ids.Base), Size: int(ids.Size)}}
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true, Pdeathsig: 0}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	netns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", child.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return child, netns
}

func (n *node) create(m *machine) {
	n.t.Helper()
	defer m.free()
	pid, err := n.r.Create(n.t.Context(), m.spec)
	if err != nil {
		n.t.Fatal(err)
	}
	m.pid = pid
}

func (n *node) run() *machine {
	n.t.Helper()
	m := n.prepare()
	n.create(m)
	if err := n.r.Start(n.t.Context(), m.spec.Slot); err != nil {
		n.t.Fatal(err)
	}
	return m
}

func (n *node) release(m *machine) {
	n.t.Helper()
	ctx := n.t.Context()
	if err := m.g.Kill(ctx); err != nil {
		n.t.Error(err)
	}
	for range 2 {
		if err := n.r.Delete(ctx, m.spec.Slot); err != nil {
			n.t.Error(err)
		}
	}
	if err := m.g.Remove(ctx); err != nil {
		n.t.Error(err)
	}
	if _, err := os.Stat(m.fs.Upper); !errors.Is(err, os.ErrNotExist) {
		n.t.Errorf("%s is left behind", m.fs.Upper)
	}
}

type probeReport struct {
	PID, UID         int
	Hostname, CapEff string
	Env              map[string]string
	Args, Links      []string
	Mounts           string
	Calls, Files     map[string]string
}

func (n *node) report(m *machine) probeReport {
	n.t.Helper()
	var rep probeReport
	await(n.t, "the probe's report", func() bool {
		b, err := os.ReadFile(filepath.Join(m.fs.Upper, "probe.json"))
		return err == nil && json.Unmarshal(b, &rep) == nil
	})
	return rep
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}
