package ctrd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"hearth/internal/env"
)

// fail gives containerd's error its place in our vocabulary, the thing's name
// and, where there is one, the mend. containerd sends errors as text, so a full
// disk is known by its words.
func (r *Runtime) fail(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "no space left on device"):
		return fmt.Errorf("%s: %w: the disk of containerd's data (%s) is full; free space there, or remove unused images: %w", op, env.ErrExhausted, r.dataDir(), err)
	case errdefs.IsUnavailable(err) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %w", op, r.unreachable(err))
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errdefs.IsDeadlineExceeded(err):
		return fmt.Errorf("%s: %w: no answer from containerd at %s in time: %w", op, env.ErrUnavailable, r.cfg.Address, err)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%s: %w: %w", op, env.ErrNotFound, err)
	case errdefs.IsAlreadyExists(err):
		return fmt.Errorf("%s: %w: %w", op, env.ErrExists, err)
	default:
		return fmt.Errorf("%s: %w", op, err)
	}
}

// unreachable says that containerd does not answer, and what to look at.
func (r *Runtime) unreachable(err error) error {
	mend := "start it, or correct the configured address"
	if r.cfg.managed() {
		mend = "see its log " + r.logPath()
	}
	return fmt.Errorf("%w: containerd does not answer at %s; %s: %w", env.ErrUnavailable, r.cfg.Address, mend, err)
}

func (r *Runtime) dataDir() string {
	if r.cfg.managed() {
		return r.cfg.Root
	}
	return "root of the containerd at " + r.cfg.Address
}
