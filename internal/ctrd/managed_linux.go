package ctrd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// The managed containerd's files below Config.State.
const (
	configName = "containerd.toml"
	pidName    = "containerd.pid" // for the operator: nothing here reads it
	lockName   = "containerd.lock"
	shimDir    = "s" // sockets
	runcDir    = "runc"
)

const pollInterval = 20 * time.Millisecond

func (r *Runtime) managedPath(name string) string { return filepath.Join(r.cfg.State, name) }

// logPath is below Root: State is often memory.
func (r *Runtime) logPath() string { return filepath.Join(r.cfg.Root, "containerd.log") }

// ensureManaged starts our containerd unless one answers, and waits for its
// first answer. No two processes do so at once: an image import may begin beside
// a starting agent, and two containerds on one root wait for each other.
func (r *Runtime) ensureManaged(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.StartTimeout)
	defer cancel()
	unlock, err := r.lockManaged(ctx)
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	defer unlock()
	if err := boundLog(r.logPath()); err != nil {
		r.log.Warn("containerd's log is not cut", "err", err)
	}
	if r.answers(ctx) == nil {
		return nil
	}
	pid, err := r.managedPID()
	if err == nil && pid == 0 {
		pid, err = r.startManaged()
	}
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	return r.awaitAnswer(ctx, pid)
}

// lockManaged waits for the right to start or stop our containerd. The kernel
// drops it when this process ends; containerd does not inherit it.
func (r *Runtime) lockManaged(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(r.cfg.State, 0o711); err != nil {
		return nil, err
	}
	for {
		lock, err := durable.Lock(r.managedPath(lockName))
		if err == nil {
			return func() { _ = lock.Unlock() }, nil
		}
		if !errors.Is(err, env.ErrState) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(pollInterval):
		}
	}
}

func (r *Runtime) awaitAnswer(ctx context.Context, pid int) error {
	for {
		err := r.answers(ctx)
		if err == nil {
			return nil
		}
		if reaped(pid) {
			return fmt.Errorf("%w; its last words: %s", r.unreachable(err), lastLine(r.logPath()))
		}
		select {
		case <-ctx.Done():
			return r.unreachable(errors.Join(err, ctx.Err()))
		case <-time.After(pollInterval):
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
	if err := passable(r.cfg.State); err != nil {
		return 0, err
	}
	if err := os.WriteFile(r.managedPath(configName), []byte(managedConfig(r.cfg)), 0o600); err != nil {
		return 0, fmt.Errorf("write configuration: %w", err)
	}
	log, err := os.OpenFile(r.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
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
	r.log.Info("containerd started", "pid", pid, "address", r.cfg.Address)
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
			r.watchManaged(ctx, pid)
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 2*maxBackoff {
			backoff = minBackoff
		}
		r.log.Error("containerd is not running, starting it again", "address", r.cfg.Address, "log", r.logPath())
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

// watchManaged waits until containerd has ended, or ctx has, and keeps its log
// small meanwhile.
func (r *Runtime) watchManaged(ctx context.Context, pid int) {
	for ctx.Err() == nil {
		hour, cancel := context.WithTimeout(ctx, logInterval)
		ended := awaitExit(hour, pid)
		cancel()
		if ended {
			return
		}
		if err := boundLog(r.logPath()); err != nil {
			r.log.Warn("containerd's log is not cut", "err", err)
		}
	}
}

// StopManaged ends our containerd and removes what it had below State. While
// containers exist it refuses with env.ErrState. Config.Root keeps the images.
func (r *Runtime) StopManaged(ctx context.Context) error {
	if !r.cfg.managed() {
		return fmt.Errorf("%w: stop containerd: the one at %s is not ours", env.ErrInvalid, r.cfg.Address)
	}
	if left := r.countLeft(ctx); left > 0 {
		return fmt.Errorf("%w: stop containerd: %d slots are in it; release them first", env.ErrState, left)
	}
	unlock, err := r.lockManaged(ctx)
	if err != nil {
		return fmt.Errorf("stop containerd: %w", err)
	}
	defer unlock()
	pid, err := r.managedPID()
	if err != nil {
		return fmt.Errorf("stop containerd: %w", err)
	}
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

// countLeft counts what would lose its containerd: our slots, and containers of
// another instance in the namespace. One that does not answer counts as empty.
func (r *Runtime) countLeft(ctx context.Context) int {
	ours, err := r.List(ctx)
	if err != nil {
		return 0
	}
	all, _ := r.client.ContainerService().List(r.namespaced(ctx))
	return max(len(ours), len(all))
}
