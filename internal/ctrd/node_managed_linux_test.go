package ctrd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/kerneltest"
)

// managedNode is a configuration below a directory of its own, with nothing
// running.
func managedNode(t *testing.T) Config {
	t.Helper()
	kerneltest.Require(t)
	bin := binDir(t)
	dir, err := os.MkdirTemp("/tmp", "hctrd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range processesNaming(dir) {
			t.Errorf("process left: %s", p)
			var pid int
			if _, err := fmt.Sscanf(p, "/proc/%d/", &pid); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
				awaitExit(t.Context(), pid)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return Config{Instance: "hearth", BinDir: bin, Root: dir + "/root", State: dir + "/state"}
}

func open(t *testing.T, cfg Config) *Runtime {
	t.Helper()
	r, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// checkOneRuns looks more than once: between fork and exec a child shows its
// parent's command line.
func checkOneRuns(t *testing.T, cfg Config) {
	t.Helper()
	var got []string
	for range 20 {
		if got = processesNaming(filepath.Join(cfg.State, configName)); len(got) == 1 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%d containerds run: %q", len(got), got)
}

func TestNodeContainerdIsFoundWithoutItsPidFile(t *testing.T) {
	cfg := managedNode(t)
	first := open(t, cfg)
	want, err := first.managedPID()
	if err != nil || want == 0 {
		t.Fatalf("pid = %d, %v", want, err)
	}
	// An agent that died right after it had started containerd.
	if err := os.Remove(first.managedPath(pidName)); err != nil {
		t.Fatal(err)
	}
	second := open(t, cfg)
	if got, err := second.managedPID(); got != want || err != nil {
		t.Errorf("pid = %d, %v; want %d", got, err, want)
	}
	if err := second.StopManaged(t.Context()); err != nil {
		t.Error(err)
	}
	if pid, err := second.managedPID(); pid != 0 || err != nil {
		t.Errorf("after its end: pid = %d, %v", pid, err)
	}
}

func TestNodeContainerdThatDoesNotListenYetIsNotStartedTwice(t *testing.T) {
	cfg := managedNode(t)
	first := open(t, cfg)
	if err := first.StopManaged(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first.managedPath(configName), []byte(managedConfig(first.cfg)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(cfg.BinDir, "containerd"), "--config", first.managedPath(configName))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first.cfg.Address); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("stopped too late: %v", err)
	}
	resume := time.AfterFunc(500*time.Millisecond, func() { _ = cmd.Process.Signal(unix.SIGCONT) })
	defer resume.Stop()
	second := open(t, cfg)
	checkOneRuns(t, cfg)
	if pid, err := second.managedPID(); pid != cmd.Process.Pid || err != nil {
		t.Errorf("pid = %d, %v; want %d", pid, err, cmd.Process.Pid)
	}
	if err := second.StopManaged(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNodeManyWhoOpenAtOnceStartOneContainerd(t *testing.T) {
	cfg := managedNode(t)
	runtimes := make([]*Runtime, 4)
	var wg sync.WaitGroup
	for i := range runtimes {
		wg.Go(func() {
			r, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
				return
			}
			runtimes[i] = r
		})
	}
	wg.Wait()
	checkOneRuns(t, cfg)
	if t.Failed() {
		return
	}
	if err := runtimes[0].StopManaged(t.Context()); err != nil {
		t.Error(err)
	}
	for _, r := range runtimes {
		_ = r.Close()
	}
}

func TestNodeLogIsSmallOnDiskAndCutWhenLarge(t *testing.T) {
	cfg := managedNode(t)
	if err := os.MkdirAll(cfg.Root, 0o711); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(cfg.Root, "containerd.log")
	if err := os.WriteFile(log, []byte(strings.Repeat("an old line\n", maxLog/10)), 0o600); err != nil {
		t.Fatal(err)
	}
	r := open(t, cfg)
	if st, err := os.Stat(log); err != nil || st.Size() > 2*keptLog {
		t.Errorf("log: %v, %v", st, err)
	}
	if b, _ := os.ReadFile(log); strings.Contains(string(b), "level=info") {
		t.Errorf("the log has lines of level info")
	}
	if _, err := os.Stat(filepath.Join(cfg.State, "containerd.log")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a log in State: %v", err)
	}
	// It is cut while containerd has it open, too.
	if err := os.Truncate(log, 2*maxLog); err != nil {
		t.Fatal(err)
	}
	again := open(t, cfg)
	if st, err := os.Stat(log); err != nil || st.Size() > 2*keptLog {
		t.Errorf("log: %v, %v", st, err)
	}
	if pid, _ := r.managedPID(); pid == 0 {
		t.Error("containerd is gone")
	}
	if err := again.StopManaged(t.Context()); err != nil {
		t.Error(err)
	}
}
