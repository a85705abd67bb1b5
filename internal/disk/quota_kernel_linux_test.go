package disk

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

// Where the filesystem does not count by project, that is said; where it does, no
// slot takes more than its own, whatever it is that takes.
func TestKernelAQuotaBoundsWhatOneSlotTakes(t *testing.T) {
	kerneltest.Require(t)
	var quotas Quotas
	upper, work, other := t.TempDir(), t.TempDir(), t.TempDir()
	mine, theirs := ProjectOf(env.IDRange{Base: 5 * env.IDRangeSize}), ProjectOf(env.IDRange{Base: 6 * env.IDRangeSize})
	const limit = 4 * mb
	err := quotas.Set(mine, limit, upper, work)
	if errors.Is(err, env.ErrUnsupported) {
		t.Log(err)
		if used, _, err := quotas.Used(mine, upper); !errors.Is(err, env.ErrUnsupported) {
			t.Errorf("used = %d, %v where nothing is counted", used, err)
		}
		if err := quotas.Clear(mine, upper); err != nil {
			t.Error(err)
		}
		return
	}
	if err == nil {
		err = quotas.Set(theirs, limit, other)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(upper), 0o711); err != nil { // of all of this test
		t.Fatal(err)
	}
	below := filepath.Join(upper, "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	// The limit is of both directories together, and of what another process writes
	// without any capability.
	fill(t, work, 2*mb)
	if wrote, said := takes(t, below); wrote < mb || wrote > 2*mb || !strings.Contains(said, "quota") && !strings.Contains(said, "no space") {
		t.Errorf("beside %d bytes %d fitted below a limit of %d: %s", 2*mb, wrote, limit, said)
	}
	used, most, err := quotas.Used(mine, work)
	if err != nil || most != limit || used < 3*mb || used > limit {
		t.Errorf("used = %d of %d, %v", used, most, err)
	}
	// A neighbour has room of its own.
	if wrote, said := takes(t, other); wrote < 3*mb || wrote > limit {
		t.Errorf("the neighbour wrote %d bytes below %d: %s", wrote, limit, said)
	}
	// A file of one slot does not become another's.
	if err := os.Link(filepath.Join(work, "file"), filepath.Join(other, "link")); !errors.Is(err, unix.EXDEV) {
		t.Errorf("link into another project = %v", err)
	}
	if err := errors.Join(quotas.Clear(mine, upper), quotas.Clear(theirs, upper)); err != nil {
		t.Error(err)
	}
	if _, most, err := quotas.Used(mine, upper); err != nil || most != 0 {
		t.Errorf("a limit of %d is left: %v", most, err)
	}
}

func fill(t *testing.T, dir string, size int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
}

// takes plays an environment that writes 8 MiB: a process without capabilities, which
// quotas hold. It reports how much there was room for, and what the process said.
func takes(t *testing.T, dir string) (wrote int64, said string) {
	t.Helper()
	const somebody = 5 * env.IDRangeSize
	if err := os.Chown(dir, somebody, somebody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), "DISK_TEST_ROLE=write")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: somebody, Gid: somebody}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "write"))
	if err != nil {
		t.Fatal(err, string(out))
	}
	return info.Size(), string(out)
}
