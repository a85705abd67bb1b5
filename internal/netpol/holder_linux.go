package netpol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// A holder is the short-lived child in whose new user and network namespaces
// the environment will run. Both are made by one clone, so that the user
// namespace owns the network namespace.
type holder struct {
	cmd   *exec.Cmd
	stdin io.Closer
	once  sync.Once
	err   error
}

// hold starts `path hold` and waits for its one byte, which says that it runs.
func hold(ctx context.Context, path string, ids env.IDRange) (*holder, error) {
	cmd := exec.Command(path, "hold")
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(ids.Base), Size: int(ids.Size)}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings:                mapping,
		GidMappings:                mapping,
		GidMappingsEnableSetgroups: true, // the range is the environment's own
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("hold namespaces: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hold namespaces: %w", err), stdin.Close())
	}
	if err := cmd.Start(); err != nil {
		_ = stdin.Close()
		_ = stdout.Close()
		return nil, fmt.Errorf("start %s hold in new namespaces: %w: is it there, executable, and may this node make user namespaces?", path, err)
	}
	h := &holder{cmd: cmd, stdin: stdin}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	_, err = io.ReadFull(stdout, make([]byte, 1))
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for %s hold: %w", path, err), h.release())
	}
	return h, nil
}

func (h *holder) pid() int { return h.cmd.Process.Pid }

func (h *holder) path(namespace string) string {
	return "/proc/" + strconv.Itoa(h.pid()) + "/ns/" + namespace
}

// release ends the child. A child that ignores its closed stdin is killed: it
// has nothing to lose.
func (h *holder) release() error {
	h.once.Do(func() {
		h.err = h.stdin.Close()
		_ = unix.Kill(h.pid(), unix.SIGKILL) // not yet waited for, so the pid is its own
		var exit *exec.ExitError
		if err := h.cmd.Wait(); err != nil && !errors.As(err, &exit) {
			h.err = fmt.Errorf("wait for namespace holder: %w", err)
		}
	})
	return h.err
}
