package guesttest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearth/internal/guest"
	"hearth/internal/kerneltest"
)

// idBase is where the environment's ids begin on the host.
const idBase = 1_500_000_000

// prebuilt names the directory of programs that were built beforehand, for a
// machine without Go, by their names: envinit, peer.
const prebuilt = "HEARTH_TEST_PREBUILT"

// busybox is Debian's busybox-static.
const busybox = "/bin/busybox"

// Machine is a running envinit.
type Machine struct {
	PID    int    // on the host
	Root   string // its root directory on the host
	Client *guest.Client

	cmd    *exec.Cmd
	stderr *lockedBuffer
	ended  chan struct{}
}

// prepare runs inside the new namespaces as their root, and becomes envinit.
const prepare = `set -e
cd "$1"
busybox mount -t proc proc proc
busybox mount -t tmpfs -o size=1m,mode=755 tmpfs run/hearth
busybox mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
busybox mount -o bind /dev/null dev/null
exec busybox chroot . /sbin/envinit
`

// built is what this test binary has built.
var built struct {
	mu  sync.Mutex // guards dir and what is being made in it
	dir string
}

// Binary is an envinit, built once per test binary.
func Binary(t testing.TB) string {
	t.Helper()
	return buildOnce(t, "envinit", "hearth/cmd/envinit")
}

// shared is a copy of the program that root directories link to, in the ids of
// the environment: its pages stay those that an emulator has translated.
func shared(t testing.TB, program string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	path := filepath.Join(workDir(t), filepath.Base(program)+".shared")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	copyFile(t, program, path)
	must(t, os.Lchown(path, idBase, idBase))
	return path
}

// workDir goes with Clean. The caller holds built.mu.
func workDir(t testing.TB) string {
	t.Helper()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "guesttest-*")
		must(t, err)
		built.dir = dir
	}
	return built.dir
}

// Peer is a program that asks envinit for its status and succeeds if it is
// refused.
func Peer(t testing.TB) string {
	t.Helper()
	return buildOnce(t, "peer", "hearth/internal/guest/guesttest/testdata/peer")
}

func buildOnce(t testing.TB, name, pkg string) string {
	t.Helper()
	if dir := os.Getenv(prebuilt); dir != "" {
		return filepath.Join(dir, name)
	}
	built.mu.Lock()
	defer built.mu.Unlock()
	path := filepath.Join(workDir(t), name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// Clean removes what was built. Call it at the end of TestMain.
func Clean() {
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
}

// Start makes a machine that ends with the test.
func Start(t testing.TB) *Machine {
	t.Helper()
	kerneltest.Require(t)
	if _, err := os.Stat(busybox); err != nil {
		t.Fatalf("%s is missing: install busybox-static", busybox)
	}
	m := &Machine{Root: makeRoot(t), stderr: &lockedBuffer{}, ended: make(chan struct{})}
	m.cmd = exec.Command(busybox, "sh", "-c", prepare, "sh", m.Root)
	m.cmd.Stderr = m.stderr
	m.cmd.Env = []string{"PATH=/bin"}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: idBase, Size: 65536}}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS |
			syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
		Setsid:     true,
		Pdeathsig:  syscall.SIGKILL, // a test binary that panics leaves nothing behind
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatalf("start namespaces: %v", err)
	}
	m.PID = m.cmd.Process.Pid
	m.Client = guest.New(guest.Target{PID: m.PID})
	go func() {
		_ = m.cmd.Wait()
		close(m.ended)
	}()
	t.Cleanup(func() {
		_ = m.cmd.Process.Kill()
		<-m.ended
		if t.Failed() {
			t.Logf("envinit said: %s", m.stderr)
		}
	})
	m.awaitInit(t)
	return m
}

func (m *Machine) awaitInit(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		_, err := m.Client.Status(ctx)
		if err == nil {
			return
		}
		select {
		case <-m.ended:
			t.Fatalf("envinit ended: %s", m.stderr)
		case <-ctx.Done():
			t.Fatalf("envinit does not answer: %v; it said: %s", err, m.stderr)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Patience is d, and several times d on a machine that HEARTH_SLOW_MACHINE says
// is slow, such as an emulated one: for what must happen before a limit that the
// test itself sets.
func Patience(d time.Duration) time.Duration {
	if slow() {
		return 8 * d
	}
	return d
}

// Tries is n, and a tenth of it on a slow machine: for races that are tried
// again and again.
func Tries(n int) int {
	if slow() {
		return max(1, n/10)
	}
	return n
}

func slow() bool { return os.Getenv("HEARTH_SLOW_MACHINE") != "" }

// Ended is closed when pid 1 has gone.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// makeRoot makes a root directory: envinit as the machine's /sbin/envinit, busybox under its usual names.
func makeRoot(t testing.TB) string {
	t.Helper()
	root, err := os.MkdirTemp("", "guest-*") // not below t.TempDir, which the mapped root may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	for _, dir := range []string{"bin", "sbin", "proc", "run/hearth", "dev/pts", "etc", "tmp", "root", "workspace"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(t, os.Link(shared(t, busybox), filepath.Join(root, "bin/busybox")))
	must(t, os.Link(shared(t, Binary(t)), filepath.Join(root, "sbin/envinit")))
	applets, err := exec.Command(busybox, "--list").Output()
	must(t, err)
	for _, name := range bytes.Fields(applets) {
		if string(name) != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(root, "bin", string(name))))
		}
	}
	must(t, os.Symlink("pts/ptmx", filepath.Join(root, "dev/ptmx")))
	must(t, os.Symlink("/proc/self/fd", filepath.Join(root, "dev/fd")))
	must(t, os.WriteFile(filepath.Join(root, "dev/null"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/workspace:/bin/sh\n"), 0o644))
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, idBase, idBase)
	}))
	must(t, os.Chmod(root, 0o755))
	must(t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	return root
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o755))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lockedBuffer is a buffer for two goroutines.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
