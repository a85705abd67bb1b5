package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// bootIDFile is what names a boot of the kernel.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// reboot takes from an instance what a reboot takes: every process, cgroup, mount,
// link and program in the kernel, /run, and the boot's name. The disk stays.
func (a *agent) reboot(t *testing.T, links int) {
	t.Helper()
	a.kill(t)
	containerd := a.containerdPID(t)
	ok(t, syscall.Kill(containerd, syscall.SIGKILL))
	ended(t, containerd, 10*time.Second)
	for _, shim := range a.shims() {
		if pid, err := strconv.Atoi(shim); err == nil {
			ok(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	for _, dir := range a.slotDirs() {
		ok(t, os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0))
	}
	a.unmountAll(t)
	ok(t, os.RemoveAll(a.RunDir()))
	ok(t, a.RemoveCgroups())
	ok(t, os.RemoveAll(filepath.Join("/sys/fs/bpf", a.Instance())))
	if out, err := exec.Command("nft", "delete", "table", "ip", "hearth-"+a.Instance()).CombinedOutput(); err != nil {
		t.Errorf("delete the nft table: %v: %s", err, out)
	}
	eventually(t, 20*time.Second, func() error { // they go with their namespaces
		if now := countLinks(t); now != links {
			return fmt.Errorf("%d links, before the instance there were %d", now, links)
		}
		return nil
	})
}

// upInNextBoot starts the agent with another name of the boot, which it asks for as
// it starts. Over a /proc with something mounted on it no environment could mount its
// own.
func (a *agent) upInNextBoot(t *testing.T) {
	t.Helper()
	other := filepath.Join(t.TempDir(), "boot_id")
	ok(t, os.WriteFile(other, []byte("11111111-2222-4333-8444-555555555555\n"), 0o444))
	ok(t, unix.Mount(other, bootIDFile, "", unix.MS_BIND, ""))
	defer func() { ok(t, unix.Unmount(bootIDFile, unix.MNT_DETACH)) }()
	a.up(t)
}

// unmountAll detaches what is mounted below the instance's directories.
func (a *agent) unmountAll(t *testing.T) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	ok(t, err)
	var points []string
	for line := range strings.Lines(string(info)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, a.Dir()+"/") || strings.HasPrefix(point, a.RunDir()+"/") {
			points = append(points, point)
		}
	}
	for _, point := range slices.Backward(points) {
		ok(t, unix.Unmount(point, unix.MNT_DETACH))
	}
}

// countLinks counts the links of the node.
func countLinks(t *testing.T) int {
	t.Helper()
	out, err := exec.Command("ip", "-o", "link").Output()
	ok(t, err)
	return strings.Count(string(out), "\n")
}

// The node is restarted: what ran is gone, and said to be; what was written is not.
func TestNodeRebootKeepsTheFilesAndSnapshotsOfEnvironments(t *testing.T) {
	require(t)
	s := newStage("").Beside(rebooted)
	links := countLinks(t)
	a := newAgent(t, s, 7461, map[string]string{
		"bare":     "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n",
		"fleeting": "  image: hearth.local/busybox:1\n  durability: ephemeral\n  resources: {memory: 64Mi}\n",
		"web":      "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n  warm: {slots: 2}\n",
	}, "")
	t.Cleanup(func() {
		if t.Failed() {
			a.tail(t)
		}
		remove(t, s)
		ok(t, os.RemoveAll(s.Dir()))
	})
	out, code := a.nodeagent("image", "import", a.Image())
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.up(t)
	a.release(t, a.claim(t, "bare")) // the image is unpacked on its first use
	a.leavesNothing(t)
	kept, paused, lost, dead := a.claim(t, "bare"), a.claim(t, "web"), a.claim(t, "fleeting"), a.claim(t, "bare")
	_, err := a.Hearthctl.Sh(kept, "echo first > /workspace/f; echo first > /root/f")
	ok(t, err)
	var first struct{ Snapshot struct{ ID string } }
	ok(t, a.Hearthctl.Decode(&first, "snapshot", "create", kept.ID()))
	_, err = a.Hearthctl.Sh(kept, "echo second > /workspace/f; echo second > /root/f; sync")
	ok(t, err)
	ok(t, second(a.Hearthctl.Run("pause", paused.ID())))
	ok(t, syscall.Kill(dead.Environment.PID, syscall.SIGKILL))
	a.failed(t, dead)
	a.poolFull(t)
	ready := a.readyInits(t)
	a.reboot(t, links)
	begun := time.Now()
	a.upInNextBoot(t)
	a.poolFull(t)
	t.Logf("ready with a full pool %d ms after the start", time.Since(begun).Milliseconds())

	for _, c := range []stage.Claimed{kept, paused} {
		e := a.get(t, c.ID())
		if e.GetPhase() != hearthv1.Phase_PHASE_FAILED || !strings.Contains(e.GetMessage(), "its node was restarted; release it, or restore a snapshot") || e.GetPid() != 0 {
			t.Errorf("%s is %s with pid %d: %q", c.ID(), e.GetPhase(), e.GetPid(), e.GetMessage())
		}
		a.refused(t, 125, []string{c.ID(), "failed", "restarted"}, "exec", c.ID(), "--", "true")
		a.refused(t, 3, []string{c.ID(), "failed"}, "resume", c.ID())
	}
	if e := a.get(t, dead.ID()); !strings.Contains(e.GetMessage(), "init ended") {
		t.Errorf("what had failed before is %s: %q", e.GetPhase(), e.GetMessage())
	}
	_, err = a.Node.Get(t.Context(), &hearthv1.NodeGetRequest{Environment: lost.ID()})
	fails(t, err, env.ErrNotFound, lost.ID())
	for _, pid := range a.readyInits(t) {
		if slices.Contains(ready, pid) {
			t.Errorf("ready slot %d is of the last boot", pid)
		}
	}
	var last struct{ Snapshot struct{ ID string } }
	ok(t, a.Hearthctl.Decode(&last, "snapshot", "create", kept.ID()))
	for _, want := range []struct{ snapshot, content string }{{first.Snapshot.ID, "first"}, {last.Snapshot.ID, "second"}} {
		again := a.claim(t, "bare", "--snapshot", want.snapshot)
		if got := a.says(t, again, "cat /workspace/f /root/f"); got != want.content+"\n"+want.content {
			t.Errorf("snapshot %s has %q, want %q", want.snapshot, got, want.content)
		}
		a.release(t, again)
	}
	a.kill(t) // once more, within the boot
	a.upInNextBoot(t)
	if e := a.get(t, kept.ID()); e.GetPhase() != hearthv1.Phase_PHASE_FAILED {
		t.Errorf("%s is %s after a further restart", kept.ID(), e.GetPhase())
	}
	for _, c := range []stage.Claimed{kept, paused, dead} {
		a.release(t, c)
	}
	a.forget(lost.ID(), lost.Environment.Slot)
}
