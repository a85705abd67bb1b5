package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/test/stage"
)

// gone is the instance that TestNodeCleanup… removes.
const gone = "hearthgone"

// What a killed agent left, its state damaged, its directories mount points as
// in a pod: cleanup removes everything, says so, and finds nothing the second
// time.
func TestNodeCleanupRemovesEverythingWhateverTheStateSays(t *testing.T) {
	require(t)
	s := newStage("").Beside(gone)
	state := s.Path("state")
	for _, dir := range []string{state, s.RunDir()} {
		ok(t, os.MkdirAll(dir, 0o711))
		ok(t, syscall.Mount(dir, dir, "", syscall.MS_BIND, ""))
	}
	a := newAgent(t, s, 7431, map[string]string{
		"bare": "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n  warm: {slots: 2}\n",
	}, "")
	t.Cleanup(func() {
		if t.Failed() {
			a.tail(t)
		}
		ok(t, s.End("agent"))
		a.nodeagent("cleanup", "--all")
		for _, dir := range []string{state, s.RunDir()} {
			if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
				t.Error("unmount:", err)
			}
			_ = os.Remove(dir)
		}
		ok(t, os.RemoveAll(s.Dir()))
	})
	out, code := a.nodeagent("image", "import", a.Image())
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.up(t)
	failed, running := a.succeeded(t, "bare")
	frozen := a.claim(t, "bare")
	_, err := a.Hearthctl.Run("pause", frozen.ID())
	ok(t, err)
	_, err = a.Hearthctl.Sh(running, "mkdir -p /workspace/a && echo x > /workspace/a/b")
	ok(t, err)
	a.kill(t)
	for _, name := range []string{"agent/journal", "agent/token.key", "snapshots/format"} {
		ok(t, os.WriteFile(filepath.Join(state, name), []byte("damaged"), 0o600))
	}
	ok(t, os.RemoveAll(filepath.Join("/sys/fs/bpf", gone, "maps"))) // islands are out of sight

	out, code = a.nodeagent("cleanup", "--all")
	if code != 0 {
		t.Fatalf("cleanup: exit %d: %s", code, out)
	}
	if strings.Contains(out, "lost shim") {
		t.Errorf("a shim was killed that ends by itself: %s", out)
	}
	holds(t, out, "removed slot "+running.Environment.Slot, "removed slot "+frozen.Environment.Slot, "removed slot "+failed.Environment.Slot,
		"removed nft table ip hearth-"+gone, "removed pins in", "removed "+state)
	for _, c := range []stage.Claimed{running, frozen} {
		if runs(c.Environment.PID) {
			t.Errorf("init %d of %s lives", c.Environment.PID, c.ID())
		}
	}
	a.nothing(t)
	out, code = a.nodeagent("cleanup", "--all")
	if code != 0 || !strings.Contains(out, "nothing is left of instance "+gone) || strings.Contains(out, "removed ") {
		t.Errorf("cleanup of nothing: exit %d: %s", code, out)
	}
	a.nothing(t)
}

// succeeded claims two environments: the first failed as its shim was killed; the
// second is in the shim that was started in its place, and whose name is of a slot
// that is gone.
func (a *agent) succeeded(t *testing.T, class string) (failed, running stage.Claimed) {
	t.Helper()
	a.poolFull(t)
	failed = a.claim(t, class)
	ok(t, syscall.Kill(shimOf(t, failed), syscall.SIGKILL))
	eventually(t, 20*time.Second, func() error {
		if e := a.get(t, failed.ID()); e.GetPhase() != hearthv1.Phase_PHASE_FAILED {
			return fmt.Errorf("environment %s of the dead shim is %s", failed.ID(), e.GetPhase())
		}
		return nil
	})
	a.poolFull(t)
	first, second := a.claim(t, class), a.claim(t, class)
	shim := shimOf(t, first)
	if other := shimOf(t, second); other != shim {
		t.Fatalf("two slots are in shims %d and %d", shim, other)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", shim))
	ok(t, err)
	named := func(c stage.Claimed) bool { return strings.Contains(string(cmdline), c.Environment.Slot) }
	if named(second) {
		first, second = second, first
	}
	if !named(first) || named(second) {
		t.Fatalf("shim %q of slots %s and %s", cmdline, first.Environment.Slot, second.Environment.Slot)
	}
	a.release(t, first)
	return failed, second
}

// nothing looks for whatever carries the instance's name.
func (a *agent) nothing(t *testing.T) {
	t.Helper()
	inv := a.OuterInventory()
	for _, kind := range []string{"cgroups", "processes"} {
		if len(inv[kind]) > 0 {
			t.Errorf("%s are left: %v", kind, inv[kind])
		}
	}
	for _, dir := range []string{a.Path("state"), a.RunDir()} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: %v, %v", dir, entries, err)
		}
	}
	for what, args := range map[string][]string{"links": {"ip", "-o", "link"}, "rules": {"nft", "list", "tables"}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		ok(t, err)
		if strings.Contains(string(out), gone) {
			t.Errorf("%s are left: %s", what, out)
		}
	}
	if _, err := os.Stat("/sys/fs/bpf/" + gone); err == nil {
		t.Error("pins are left")
	}
}
