package ctrd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

func TestNodeRootInsideIsNobodyOutside(t *testing.T) { eachRuntime(t, rootInsideIsNobodyOutside) }

func rootInsideIsNobodyOutside(t *testing.T, n *node) {
	t.Helper()
	a, b := n.run(), n.run()
	rep := n.report(a)
	n.report(b)
	if rep.UID != 0 || rep.PID != 1 || rep.Hostname != "box" || !slices.Equal(rep.Args, []string{InitTarget}) {
		t.Errorf("inside: uid %d, pid %d, host %q, args %q", rep.UID, rep.PID, rep.Hostname, rep.Args)
	}
	if rep.Env["FROM"] != "class" || rep.Env["IMAGE"] != "1" || rep.Env["PATH"] != "/bin" {
		t.Errorf("variables: %v", rep.Env)
	}
	if !slices.Equal(rep.Links, []string{"lo"}) {
		t.Errorf("links: %v", rep.Links)
	}
	owners := map[string]uint32{"root-owned": 0, "user-owned": 1000, "etc/lower": 0}
	for file, inside := range owners {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(a.fs.Upper, file), &st); err != nil || st.Uid != a.spec.IDs.Base+inside {
			t.Errorf("%s: uid %d outside, %v; want %d", file, st.Uid, err, a.spec.IDs.Base+inside)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", a.pid), &st); err != nil || st.Uid != a.spec.IDs.Base {
		t.Errorf("pid 1 runs as %d outside, %v", st.Uid, err)
	}
	for _, c := range []string{"write init", "write sysctl", "mknod"} {
		if rep.Calls[c] == "ok" {
			t.Errorf("%s: allowed", c)
		}
	}
	if rep.Calls["write identity"] != "ok" || !strings.Contains(rep.Mounts, " /run/hearth ") || rep.Files["/proc/kcore"] != "" {
		t.Errorf("identity %q, mounts:\n%s", rep.Calls["write identity"], rep.Mounts)
	}
	if _, err := os.Stat(filepath.Join(a.fs.Upper, ".hearth")); err == nil {
		t.Error("init's mount point is in the writable layer")
	}
	n.release(a)
	n.release(b)
}

func TestNodeSeccompAndCapabilitiesRefuse(t *testing.T) { eachRuntime(t, seccompAndCapabilitiesRefuse) }

func seccompAndCapabilitiesRefuse(t *testing.T, n *node) {
	t.Helper()
	m := n.run()
	rep := n.report(m)
	for _, c := range []string{"socket unix", "socket inet", "socket inet6", "socket netlink", "socket ping", "socketpair unix", "write file", "chown", "lower file", "fallocate punch"} {
		if rep.Calls[c] != "ok" {
			t.Errorf("%s: %s, want ok", c, rep.Calls[c])
		}
	}
	refused := unix.EPERM.Error()
	for _, c := range []string{
		"socketpair inet", "socketpair vsock", "socketpair rds", "socketpair tipc", "socket raw", "socket vsock", "socket packet", "socket alg", "socket xdp", "socket rds", "socket tipc",
		"io_uring_setup", "bpf", "keyctl", "userfaultfd", "perf_event_open", "unshare user", "unshare mount", "mount", "sethostname",
	} {
		if rep.Calls[c] != refused {
			t.Errorf("%s: %s, want %s", c, rep.Calls[c], refused)
		}
	}
	for _, c := range []string{"fallocate", "fallocate keep size", "fallocate zero"} {
		if rep.Calls[c] != unix.EOPNOTSUPP.Error() {
			t.Errorf("%s: %s, want %s", c, rep.Calls[c], unix.EOPNOTSUPP)
		}
	}
	var want uint64
	for _, bit := range []uint{29, 0, 1, 3, 4, 5, 10, 31, 6, 8, 7, 18} { // include/uapi/linux/capability.h
		want |= 1 << bit
	}
	if got, _ := strconv.ParseUint(rep.CapEff, 16, 64); got != want {
		t.Errorf("effective capabilities %x, want %x", got, want)
	}
	n.release(m)
}

// 32-bit programs have system calls of their own, and socketcall, whose
// arguments no filter can see.
func TestNodeSeccompHoldsFor32BitProgramsToo(t *testing.T) {
	eachRuntime(t, seccompHoldsFor32BitProgramsToo)
}

func seccompHoldsFor32BitProgramsToo(t *testing.T, n *node) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("32-bit calls are tried on amd64 only")
	}
	n.init = buildProbe(t, n.dir, "probe32", "386")
	if b, err := exec.Command(n.init).CombinedOutput(); err != nil {
		t.Skipf("kerneltest: skip: the kernel runs no 32-bit programs: %v\n%s", err, b)
	}
	m := n.run()
	rep := n.report(m)
	for _, c := range []string{"socket unix", "socketpair unix"} {
		if rep.Calls[c] != "ok" {
			t.Errorf("%s: %s, want ok", c, rep.Calls[c])
		}
	}
	for call, got := range rep.Calls {
		want := unix.EPERM
		switch {
		case strings.HasPrefix(call, "socketcall "):
			want = unix.ENOSYS // of every family
		case call == "fallocate":
			want = unix.EOPNOTSUPP
		case strings.HasSuffix(call, " unix"):
			continue
		}
		if got != want.Error() {
			t.Errorf("%s: %s, want %s", call, got, want.Error())
		}
	}
	n.release(m)
}

func TestNodeLimitsAreThoseOfTheClass(t *testing.T) { eachRuntime(t, limitsAreThoseOfTheClass) }

func limitsAreThoseOfTheClass(t *testing.T, n *node) {
	t.Helper()
	m := n.run()
	n.report(m)
	found := 0
	for _, f := range []struct{ path, want string }{
		{"/sys/fs/cgroup/memory%s/memory.limit_in_bytes", "134217728"},
		{"/sys/fs/cgroup/pids%s/pids.max", "64"},
		{"/sys/fs/cgroup/cpu%s/cpu.cfs_quota_us", "50000"},
		{"/sys/fs/cgroup%s/memory.max", "134217728"},
		{"/sys/fs/cgroup%s/pids.max", "64"},
		{"/sys/fs/cgroup%s/cpu.max", "50000 100000"},
	} {
		b, err := os.ReadFile(fmt.Sprintf(f.path, m.spec.CgroupsPath))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		found++
		if got := strings.TrimSpace(string(b)); err != nil || got != f.want {
			t.Errorf("%s = %q, %v; want %s", f.path, got, err, f.want)
		}
	}
	if found != 3 {
		t.Errorf("%d limits found, want 3", found)
	}
	if err := m.g.SetLimits(env.Resources{CPUMillis: 250, MemoryBytes: 96 << 20, PIDs: 32}); err != nil {
		t.Error(err)
	}
	n.release(m)
}

func TestNodeFrozenSlotIsListedRunningKilledAndDeleted(t *testing.T) {
	eachRuntime(t, frozenSlotIsListedRunningKilledAndDeleted)
}

func frozenSlotIsListedRunningKilledAndDeleted(t *testing.T, n *node) {
	t.Helper()
	m := n.run()
	n.report(m)
	if err := m.g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := n.r.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Slot != m.spec.Slot || list[0].PID != m.pid || list[0].Status != StatusRunning || list[0].Labels["class"] != "c" {
		t.Errorf("list = %+v, %v", list, err)
	}
	n.release(m)
	n.checkEmpty(t.Context())
}

func TestNodeUpperFilledBeforeCreateIsSeenInside(t *testing.T) {
	eachRuntime(t, upperFilledBeforeCreateIsSeenInside)
}

func upperFilledBeforeCreateIsSeenInside(t *testing.T, n *node) {
	t.Helper()
	m := n.prepare()
	if err := os.WriteFile(filepath.Join(m.fs.Upper, "restored"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := n.r.Rootfs(t.Context(), m.spec.Slot); err != nil || again.Upper != m.fs.Upper {
		t.Errorf("rootfs = %+v, %v", again, err)
	}
	n.create(m)
	if err := n.r.Start(t.Context(), m.spec.Slot); err != nil {
		t.Fatal(err)
	}
	n.report(m)
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/restored", m.pid)); err != nil {
		t.Error(err)
	}
	mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", m.pid))
	root := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			root = line
		}
	}
	if !strings.Contains(root, "redirect_dir=nofollow") || strings.Contains(root, "metacopy=on") {
		t.Errorf("root mount: %s", root)
	}
	n.release(m)
}

func TestNodeMountSourcesMayLieBelowAClosedDirectory(t *testing.T) {
	n := startNode(t)
	closed := filepath.Join(n.dir, "closed")
	work := filepath.Join(closed, "work")
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	m := n.prepare()
	if err := errors.Join(os.Chmod(closed, 0o700), os.Rename(n.init, closed+"/init"), os.WriteFile(work+"/f", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	m.spec.InitPath = closed + "/init"
	m.spec.Mounts = []Mount{{Source: work, Target: "/workspace"}}
	n.create(m)
	if err := n.r.Start(t.Context(), m.spec.Slot); err != nil {
		t.Fatal(err)
	}
	n.report(m)
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/workspace/f", m.pid)); err != nil {
		t.Error(err)
	}
	n.release(m)
}

func TestNodeDeleteWorksAtEveryStage(t *testing.T) {
	n := startNode(t)
	stages := map[string]func() env.SlotID{
		"nothing":  env.NewSlotID,
		"prepared": func() env.SlotID { m := n.prepare(); m.free(); return m.spec.Slot },
		"created":  func() env.SlotID { m := n.prepare(); n.create(m); return m.spec.Slot },
		"running":  func() env.SlotID { return n.run().spec.Slot },
		"create failed": func() env.SlotID {
			m := n.prepare()
			defer m.free()
			m.spec.InitPath = "/nonexistent"
			if _, err := n.r.Create(t.Context(), m.spec); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
				t.Errorf("create without init = %v", err)
			}
			return m.spec.Slot
		},
	}
	for name, stage := range stages {
		t.Run(name, func(t *testing.T) {
			slot := stage()
			for range 2 {
				if err := n.r.Delete(t.Context(), slot); err != nil {
					t.Error(err)
				}
			}
			n.checkEmpty(t.Context())
		})
	}
}

func BenchmarkNodeCreateStartDelete(b *testing.B) {
	n := startNode(b)
	var up, down []time.Duration
	for b.Loop() {
		m := n.prepare()
		at := time.Now()
		n.create(m)
		if err := n.r.Start(b.Context(), m.spec.Slot); err != nil {
			b.Fatal(err)
		}
		up = append(up, time.Since(at))
		if err := m.g.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
		at = time.Now()
		if err := n.r.Delete(b.Context(), m.spec.Slot); err != nil {
			b.Fatal(err)
		}
		down = append(down, time.Since(at))
		if err := m.g.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	for name, ds := range map[string][]time.Duration{"create-start": up, "delete": down} {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[len(ds)/2])/1e6, name+"-p50-ms")
		b.ReportMetric(float64(ds[len(ds)*99/100])/1e6, name+"-p99-ms")
	}
}
