package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// stuckDisk lies below the workspaces of an instance, and can stand still: who
// writes to it sleeps in the kernel, where no freezer and no signal reaches it.
type stuckDisk struct {
	dir    string
	frozen bool
}

func newStuckDisk(t *testing.T, dir string) *stuckDisk {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	ok(t, os.WriteFile(image, nil, 0o600))
	ok(t, os.Truncate(image, 64*mib))
	for _, args := range [][]string{
		{"mke2fs", "-q", "-t", "ext4", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	d := &stuckDisk{dir: dir}
	t.Cleanup(func() {
		d.goOn(t)
		eventually(t, 10*time.Second, func() error { return unix.Unmount(dir, 0) })
	})
	return d
}

// Of include/uapi/linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

func (d *stuckDisk) ioctl(t *testing.T, request uint) {
	t.Helper()
	f, err := os.Open(d.dir)
	ok(t, err)
	defer f.Close()
	ok(t, unix.IoctlSetInt(int(f.Fd()), request, 0))
}

func (d *stuckDisk) stand(t *testing.T) {
	t.Helper()
	d.ioctl(t, fiFreeze)
	d.frozen = true
}

func (d *stuckDisk) goOn(t *testing.T) {
	t.Helper()
	if d.frozen {
		d.ioctl(t, fiThaw)
		d.frozen = false
	}
}

// A process that sleeps in the kernel cannot be frozen, and not killed: a pause says
// which it is, and can be undone; a release is completed when it wakes.
func TestNodeAFreezeOrKillThatCannotCompleteIsNamedAndCompletedLater(t *testing.T) {
	require(t)
	s := newStage("").Beside(stuck)
	ok(t, os.MkdirAll(s.Path("state/slots"), 0o711))
	disk := newStuckDisk(t, s.Path("state/slots"))
	a := newAgent(t, s, 7441, map[string]string{
		"bare": "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n",
	}, "")
	t.Cleanup(func() {
		if t.Failed() {
			a.tail(t)
		}
		disk.goOn(t)
		ok(t, s.End("agent"))
		if out, code := a.nodeagent("cleanup"); code != 0 {
			t.Errorf("cleanup: exit %d: %s", code, out)
		}
	})
	out, code := a.nodeagent("image", "import", a.Image())
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.up(t)
	a.release(t, a.claim(t, "bare")) // the image is unpacked on its first use
	a.leavesNothing(t)
	c, neighbour := a.claim(t, "bare"), a.claim(t, "bare")
	writes := func() {
		t.Helper()
		disk.stand(t)
		_, err := a.Hearthctl.Sh(c, "setsid dd if=/dev/zero of=/workspace/f bs=4k count=1 >/dev/null 2>&1 & true")
		ok(t, err)
		eventually(t, 5*time.Second, func() error {
			if pids := a.sleepers(t, c); len(pids) == 0 {
				return errors.New("nobody sleeps in the kernel")
			}
			return nil
		})
	}
	writes()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := a.Node.Pause(ctx, &hearthv1.NodePauseRequest{Environment: c.ID()})
	t.Log("pause:", err)
	if err == nil || errors.Is(err, env.ErrNotFound) {
		t.Errorf("a pause that cannot complete: %v", err)
	}
	begun := time.Now()
	short, stop := context.WithTimeout(t.Context(), 40*time.Second)
	defer stop()
	if long() { // its own limit
		_, err = a.Node.Pause(short, &hearthv1.NodePauseRequest{Environment: c.ID()})
		t.Logf("pause, %d ms: %v", time.Since(begun).Milliseconds(), err)
		fails(t, err, env.ErrState, fmt.Sprint(a.sleepers(t, c)[0]))
	}
	if _, err := a.Hearthctl.Sh(neighbour, "true"); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
	_, err = a.Node.Resume(t.Context(), &hearthv1.NodeResumeRequest{Environment: c.ID()})
	ok(t, err)
	disk.goOn(t)
	a.alive(t, c)
	if got := a.says(t, c, "wc -c < /workspace/f"); got != "4096" {
		t.Errorf("what was written while it was to freeze has %s bytes", got)
	}

	writes()
	hurry, end := context.WithTimeout(t.Context(), time.Second)
	defer end()
	_, err = a.Node.Release(hurry, &hearthv1.NodeReleaseRequest{Environment: c.ID()})
	t.Log("release:", err)
	if err == nil {
		t.Error("a release was answered while a process lives")
	}
	a.forget(c.ID(), c.Environment.Slot)
	a.alive(t, neighbour)
	disk.goOn(t)
	eventually(t, 60*time.Second, func() error {
		if left := a.slotDirsOf(c.Environment.Slot); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	a.release(t, neighbour)
}

// sleepers are the processes of an environment that sleep uninterruptibly.
func (a *agent) sleepers(t *testing.T, c stage.Claimed) (pids []string) {
	t.Helper()
	procs, _ := filepath.Glob(filepath.Join(filepath.Dir(a.UnifiedCgroup(c.Environment.Slot, "cgroup.procs")), "*", "cgroup.procs"))
	for _, file := range append(procs, a.UnifiedCgroup(c.Environment.Slot, "cgroup.procs")) {
		b, _ := os.ReadFile(file)
		for _, pid := range strings.Fields(string(b)) {
			if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && strings.Contains(string(stat), ") D ") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
