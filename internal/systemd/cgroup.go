package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"hearth/internal/env"
)

// clear removes a cgroup of the scope's name that no unit has any more: systemd
// would put the keeper into it, which the kernel refuses below handed-down
// controllers. What has slots stays.
func (s *Scope) clear(ctx context.Context) error {
	if !exists(s.dir()) {
		return nil
	}
	if held, err := s.held(); err != nil || held {
		return errors.Join(fmt.Errorf("%w: systemd has lost this unit, and slots are in its cgroup; it is made anew when they are released and the agent is started again", env.ErrState), err)
	}
	if err := s.endKeeper(); err != nil {
		return err
	}
	for {
		var errs []error
		for _, dir := range []string{s.path(KeeperDir), s.path(SlotsDir), s.dir()} {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		if len(errs) == 0 {
			return nil
		}
		if pause(ctx) != nil {
			return fmt.Errorf("%w: its cgroup is in use though it has no unit: %w", env.ErrState, errors.Join(errs...))
		}
	}
}

func (s *Scope) path(child string) string { return filepath.Join(s.dir(), child) }

// held tells whether slots have cgroups in the scope.
func (s *Scope) held() (bool, error) {
	entries, err := os.ReadDir(s.path(SlotsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	for _, e := range entries {
		if e.IsDir() {
			return true, nil
		}
	}
	return false, err
}

// endKeeper kills the keepers; what they leave is removed by whoever called.
func (s *Scope) endKeeper() error {
	err := put(s.path(KeeperDir), "cgroup.kill", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// keep moves what is in the scope's own cgroup, which can only be a keeper, to
// its place, and starts one if none is there.
func (s *Scope) keep() error {
	if err := os.Mkdir(s.path(KeeperDir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	strays, err := processes(s.dir())
	if err != nil {
		return err
	}
	for _, pid := range strays {
		if pid == 0 { // of a PID namespace that cannot be seen; written, it would mean this process
			return fmt.Errorf("%w: a process in %s is in no PID namespace of ours; run the agent in the node's (hostPID)", env.ErrState, s.dir())
		}
		if err := s.join(pid); err != nil {
			return err
		}
	}
	there, err := processes(s.path(KeeperDir))
	if err != nil || len(there) > 0 {
		return err
	}
	pid, err := s.startKeeper()
	if err != nil {
		return err
	}
	if err := s.join(pid); err != nil {
		s.drop(pid)
		return err
	}
	s.log.Warn("the scope's keeper had ended, another took its place", "unit", s.cfg.Name)
	return nil
}

// startKeeper reaps the keeper that it has started before: mostly it outlives this
// process, and needs nobody.
func (s *Scope) startKeeper() (pid int, err error) {
	pid, err = s.spawn(s.cfg.Keeper)
	if err != nil {
		return 0, err
	}
	if before := s.swapChild(pid); before != 0 {
		reap(before)
	}
	return pid, nil
}

// drop ends a keeper that has nothing to keep.
func (s *Scope) drop(pid int) {
	s.swapChild(0)
	end(pid)
}

func (s *Scope) swapChild(pid int) (before int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, s.child = s.child, pid
	return before
}

// join moves a process to the keepers; one that has ended is no error.
func (s *Scope) join(pid int) error {
	err := put(s.path(KeeperDir), "cgroup.procs", strconv.Itoa(pid))
	if isGone(err) {
		return nil
	}
	return err
}

// processes lists those of one cgroup, without those below it.
func processes(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", dir, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// put writes a control file, which must be there.
func put(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// exists tells whether a file is there that can be looked at.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollPause):
		return nil
	}
}
