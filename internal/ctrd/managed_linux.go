package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// The managed containerd's files below Config.State.
const (
	configName = "containerd.toml"
	pidName    = "containerd.pid"
	logName    = "containerd.log"
	shimDir    = "s" // sockets
	runcDir    = "runc"
)

func (r *Runtime) managedPath(name string) string { return filepath.Join(r.cfg.State, name) }

// ensureManaged starts our containerd unless one answers, and waits for its
// first answer.
func (r *Runtime) ensureManaged(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.StartTimeout)
	defer cancel()
	if r.answers(ctx) == nil {
		return nil
	}
	pid, _ := r.managedPID()
	if pid == 0 {
		var err error
		if pid, err = r.startManaged(); err != nil {
			return fmt.Errorf("start containerd: %w", err)
		}
		r.log.Info("containerd started", "pid", pid, "address", r.cfg.Address)
	}
	for {
		err := r.answers(ctx)
		if err == nil {
			return nil
		}
		if reaped(pid) {
			return fmt.Errorf("%w; its last words: %s", r.unreachable(err), lastLine(r.managedPath(logName)))
		}
		select {
		case <-ctx.Done():
			return r.unreachable(errors.Join(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// answers asks containerd for its version on a connection of its own.
func (r *Runtime) answers(ctx context.Context) error {
	if _, err := os.Stat(r.cfg.Address); err != nil {
		return err // client.New would wait for it
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := client.New(r.cfg.Address, client.WithTimeout(2*time.Second))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_, err = c.Version(ctx)
	return err
}

// startManaged runs containerd in a session of its own, so that it outlives
// us, a terminal's hang-up included.
func (r *Runtime) startManaged() (int, error) {
	bin := filepath.Join(r.cfg.BinDir, "containerd")
	for _, need := range []string{bin, filepath.Join(r.cfg.BinDir, "containerd-shim-runc-v2")} {
		if _, err := os.Stat(need); err != nil {
			return 0, fmt.Errorf("%w: %s is not there; install it, or configure the directory of the binaries", env.ErrNotFound, need)
		}
	}
	if err := os.MkdirAll(r.cfg.Root, 0o711); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(r.cfg.State, 0o711); err != nil {
		return 0, err
	}
	if err := passable(r.cfg.State); err != nil {
		return 0, err
	}
	if err := os.WriteFile(r.managedPath(configName), []byte(managedConfig(r.cfg)), 0o600); err != nil {
		return 0, fmt.Errorf("write configuration: %w", err)
	}
	log, err := os.OpenFile(r.managedPath(logName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(bin, "--config", r.managedPath(configName))
	cmd.Env = append(os.Environ(), "PATH="+r.cfg.BinDir+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // reaped by its pid: see reaped
	return pid, os.WriteFile(r.managedPath(pidName), []byte(strconv.Itoa(pid)+"\n"), 0o600)
}

// passable refuses a state directory that the mapped root of a container cannot
// reach its bundle through: runc would say "permission denied" much later.
func passable(dir string) error {
	for {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("%w: directory %s has mode %#o: the root of a user namespace must pass through it; run chmod o+x on it", env.ErrInvalid, dir, st.Mode().Perm())
		}
		if dir == "/" {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// managedConfig keeps what slots need: overlay, runc tasks, images, transfer.
func managedConfig(c Config) string {
	return fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.grpc.v1.sandbox-controllers",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.nri.v1.nri",
  "io.containerd.monitor.container.v1.restart",
  "io.containerd.http.v1.pprof",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.image-verifier.v1.bindir",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.native",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.differ.v1.erofs",
]

[grpc]
  address = %q
  uid = 0
  gid = 0

[ttrpc]
  address = %q

[debug]
  level = "info"
`, c.Root, c.State, c.Address, c.Address+".ttrpc") + shimSockets(c)
}

// maxShimDir is the longest directory that containerd takes for shim sockets
// (core/runtime/v2/socket_linux.go).
const maxShimDir = 42

// shimSockets keeps the shims' sockets below State, if that is short enough:
// grouped shims leave theirs behind, and StopManaged can then remove them.
func shimSockets(c Config) string {
	dir := filepath.Join(c.State, shimDir)
	if len(dir) > maxShimDir {
		return ""
	}
	return fmt.Sprintf(`
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %q
`, dir)
}

// managedPID finds our running containerd; 0 if there is none. The pid file
// alone proves nothing, since pids are reused: the process must have been
// started with our configuration.
func (r *Runtime) managedPID() (int, error) {
	b, err := os.ReadFile(r.managedPath(pidName))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%w: pid file %s", env.ErrCorrupt, r.managedPath(pidName))
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("read command line of process %d: %w", pid, err)
	}
	if !strings.Contains(string(cmdline), "\x00"+r.managedPath(configName)+"\x00") {
		return 0, nil
	}
	return pid, nil
}

// Run keeps the managed containerd alive until ctx ends: one that dies is
// started again, with back-off; containers go on meanwhile. With a given
// containerd it only waits.
func (r *Runtime) Run(ctx context.Context) error {
	if r.cfg.managed() {
		r.keepAlive(ctx)
	}
	<-ctx.Done()
	return nil
}

func (r *Runtime) keepAlive(ctx context.Context) {
	backoff := minBackoff
	for ctx.Err() == nil {
		began := time.Now()
		if pid, _ := r.managedPID(); pid != 0 {
			awaitExit(ctx, pid)
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 2*maxBackoff {
			backoff = minBackoff
		}
		r.log.Error("containerd is not running, starting it again", "address", r.cfg.Address, "log", r.managedPath(logName))
		if err := r.ensureManaged(ctx); err != nil {
			r.log.Error("containerd does not start", "err", err, "backoff", backoff)
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// awaitExit waits until the process has ended, which it reports, or ctx has. If
// it is our child it is reaped; another's may stay a zombie for a while.
func awaitExit(ctx context.Context, pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return true // gone
	}
	defer func() { _ = unix.Close(fd) }()
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 100); n > 0 {
			reaped(pid)
			return true
		}
	}
	return false
}

// reaped reports whether the process has ended, and reaps it if it is our child.
func reaped(pid int) bool {
	if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err == nil && got == pid {
		return true
	}
	return errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// StopManaged ends our containerd and removes what it had below State. While
// containers exist it refuses with env.ErrState. Config.Root keeps the images.
func (r *Runtime) StopManaged(ctx context.Context) error {
	if !r.cfg.managed() {
		return fmt.Errorf("%w: stop containerd: the one at %s is not ours", env.ErrInvalid, r.cfg.Address)
	}
	left, err := r.List(ctx)
	if err == nil && len(left) > 0 {
		return fmt.Errorf("%w: stop containerd: %d slots are in it; release them first", env.ErrState, len(left))
	}
	pid, _ := r.managedPID()
	if pid != 0 {
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop containerd: %w", err)
		}
		if !awaitExit(ctx, pid) {
			return fmt.Errorf("stop containerd: process %d does not end: %w", pid, ctx.Err())
		}
	}
	var errs []error
	for _, p := range []string{r.managedPath(pidName), r.managedPath(configName), r.cfg.Address, r.cfg.Address + ".ttrpc"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, d := range []string{shimDir, runcDir} {
		errs = append(errs, os.RemoveAll(r.managedPath(d)))
	}
	return errors.Join(errs...)
}

func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b[max(0, len(b)-4096):])), "\n")
	return lines[len(lines)-1]
}
