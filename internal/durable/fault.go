package durable

import (
	"errors"
	"fmt"
	"syscall"

	"hearth/internal/env"
)

// Fault is called before each named step; an error makes the step fail
// without being tried. Production passes nil. It may be called from several
// goroutines and while a log is locked, so it must not call this package.
type Fault func(op string) error

func (f Fault) step(op, step string) error {
	if f == nil {
		return nil
	}
	name := op + ":" + step
	if err := f(name); err != nil {
		return fmt.Errorf("step %s: %w", name, err)
	}
	return nil
}

// classify makes a full disk recognisable as env.ErrExhausted.
func classify(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("%w: no room on the file system: %w", env.ErrExhausted, err)
	}
	return err
}
