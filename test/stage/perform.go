package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Alone keeps a second run from clearing the stage of the first. The lock ends
// with the file's descriptor.
func (s *Stage) Alone() (*os.File, error) {
	path := s.dir + ".lock"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another run holds %s; wait for it: %w", path, err)
	}
	return f, nil
}

// Perform sets the stage, runs this program anew on it, with its own arguments
// and further variables, and clears the stage, whatever happens between. It
// returns the copy's exit code, and fails if the machine is not as before.
// prepare is called in between, outside, and what it returns at the end.
func (s *Stage) Perform(ctx context.Context, prepare func() (end func() error, err error), env ...string) (code int, err error) {
	if err := s.TearDown(); err != nil { // of a run that was killed
		return 1, err
	}
	before := s.OuterInventory()
	code, err = s.perform(ctx, prepare, env)
	if code != 0 || err != nil {
		s.ShowLogs()
	}
	unchanged := func() error {
		if diff := Compare(before, s.OuterInventory(), nil); diff != "" {
			return fmt.Errorf("the machine is not as before: %s", diff)
		}
		return nil
	}
	err = errors.Join(err, s.TearDown(), Eventually(10*time.Second, unchanged))
	if err != nil {
		code = max(code, 1)
	}
	return code, err
}

func (s *Stage) perform(ctx context.Context, prepare func() (func() error, error), env []string) (code int, err error) {
	if err := s.SetUp(); err != nil {
		return 1, err
	}
	end, err := prepare()
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, end()) }()
	return s.Rerun(ctx, env...)
}

// Rerun runs this program anew on the stage, with its own arguments and further
// variables, and returns its exit code.
func (s *Stage) Rerun(ctx context.Context, env ...string) (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	cmd := s.Inside(append([]string{self}, os.Args[1:]...)...)
	cmd.Args = append(cmd.Args[:1], append([]string{"--wd=" + wd}, cmd.Args[1:]...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	undo := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) })
	err = cmd.Wait()
	undo()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}
