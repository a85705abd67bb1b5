package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

const mb = 1 << 20

// TestMain lets the test binary play an environment that writes.
func TestMain(m *testing.M) {
	if role := os.Getenv("DISK_TEST_ROLE"); role != "" {
		if err := play(role, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	kerneltest.Main(m)
}

// play writes 8 MiB below dir in one of the ways there are, or makes 200 files.
func play(role, dir string) error {
	const size = 8 * mb
	block := make([]byte, mb)
	name := filepath.Join(dir, role)
	switch role {
	case "write", "direct", "forever":
		flags := os.O_WRONLY | os.O_CREATE
		if role == "direct" {
			flags |= unix.O_DIRECT
			var err error
			if block, err = unix.Mmap(-1, 0, mb, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(name, flags, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		for n := 0; n < size/mb || role == "forever"; n++ {
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
		return nil
	case "mapped":
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			return err
		}
		m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		for i := 0; i < len(m); i += os.Getpagesize() {
			m[i] = 1
		}
		return unix.Munmap(m)
	case "rewrite":
		return playRewrite(dir)
	case "files":
		for i := range 200 {
			if err := os.WriteFile(fmt.Sprintf("%s-%d", name, i), nil, 0o600); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("no role %q", role)
}

// cgroup is one below cgroup2, removed with the test.
type cgroup struct {
	dir *os.File
	id  uint64
}

func newCgroup(t testing.TB, name string) cgroup {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup2" {
			continue
		}
		path := filepath.Join(f[1], fmt.Sprintf("disktest-%d-%s", os.Getpid(), name))
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
			for range 100 {
				if err = unix.Rmdir(path); err == nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Error("remove cgroup:", err)
		})
		dir, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		var st unix.Stat_t
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return cgroup{dir, st.Ino}
	}
	t.Fatal("cgroup2 is not mounted")
	return cgroup{}
}

// command is the test binary in a role, in the cgroup from its first instruction.
func (c cgroup) command(role, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), "DISK_TEST_ROLE="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: int(c.dir.Fd())}
	return cmd
}

// diskDir is a directory on a filesystem that is no memory.
func diskDir(t testing.TB) string {
	t.Helper()
	beside, err := os.MkdirTemp(".", ".test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(beside) })
	for _, dir := range []string{t.TempDir(), beside} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC {
			dir, err := filepath.Abs(dir)
			if err != nil {
				t.Fatal(err)
			}
			return dir
		}
	}
	t.Skip("kerneltest: skip: disk: neither the temporary directory nor this one is on ext4 or xfs")
	return ""
}

func TestKernelCountsWhatASlotWritesHoweverItWrites(t *testing.T) {
	kerneltest.Require(t, kerneltest.BPF())
	kerneltest.NoLeaks(t)
	disk := diskDir(t)
	g, err := Open(Config{Paths: []string{disk}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	idle := newCgroup(t, "idle")
	if err := g.Watch("idle", idle.id, "demo"); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"write", "direct", "mapped", "files"} {
		c := newCgroup(t, role)
		if err := g.Watch(env.SlotID(role), c.id, "demo"); err != nil {
			t.Fatal(err)
		}
		if err := c.command(role, disk).Run(); err != nil {
			t.Fatalf("%s: %v", role, err)
		}
		got, err := g.kernel.read(c.id)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %+v", role, got)
		if role == "files" {
			if got.Files < 200 || got.Files > 210 || got.Bytes > mb {
				t.Errorf("200 empty files are counted as %+v", got)
			}
			continue
		}
		if got.Bytes < 8*mb || got.Bytes > 10*mb || got.Files != 1 {
			t.Errorf("%s of 8 MiB to one file is counted as %+v", role, got)
		}
	}
	if got, err := g.kernel.read(idle.id); err != nil || got != (Written{}) {
		t.Errorf("the idle neighbour wrote %+v, %v", got, err)
	}
	g.Unwatch("idle")
	if _, err := g.kernel.read(idle.id); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("after unwatch: %v", err)
	}
}

// A filler as fast as the machine is, with a freezer behind the guard: it gets
// no further below the mark than it writes between two looks.
func TestKernelGuardStopsAFillerAtTheMark(t *testing.T) {
	kerneltest.Require(t, kerneltest.BPF())
	kerneltest.NoLeaks(t)
	const room = 128 * mb
	disk := diskDir(t)
	space, err := statfs(disk)
	if err != nil {
		t.Fatal(err)
	}
	if space.FreeBytes < 8*room {
		t.Fatalf("%d bytes are free at %s: too few for this test", space.FreeBytes, disk)
	}
	c := newCgroup(t, "filler")
	frozen := make(chan string, 100)
	freeze := func(state string) error {
		return os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/cgroup.freeze", c.dir.Fd()), []byte(state), 0)
	}
	g, err := Open(Config{
		Paths: []string{disk, filepath.Dir(disk)}, KeepFree: Mark{Amount: space.FreeBytes - room},
		Stall: func(_ context.Context, slot env.SlotID, why string) error {
			err := freeze("1")
			frozen <- string(slot) + " " + why
			return err
		},
		Relieve: func(context.Context) error { return nil },
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if got := len(g.cfg.Paths); got != 1 {
		t.Errorf("%d paths of one filesystem are looked at", got)
	}
	if err := g.Watch("filler", c.id, "demo"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- g.Run(ctx) }()
	cmd := c.command("forever", disk)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case what := <-frozen:
		if !strings.HasPrefix(what, "filler this node's disk at "+disk) {
			t.Errorf("stalled %q", what)
		}
	case <-time.After(2 * time.Minute):
		t.Error("nothing stopped the filler")
	}
	size := func() int64 {
		st, err := os.Stat(filepath.Join(disk, "forever"))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	time.Sleep(5 * lookEvery)
	wrote := size()
	time.Sleep(5 * lookEvery)
	if later := size(); later != wrote {
		t.Errorf("it still writes: %d bytes, then %d", wrote, later)
	}
	t.Logf("stopped after %d MiB, with room for %d", wrote/mb, room/mb)
	if wrote == 0 || wrote > 8*room {
		t.Errorf("it wrote %d bytes", wrote)
	}
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	_ = cmd.Process.Kill()
	_ = freeze("0")
	_ = cmd.Wait()
}
