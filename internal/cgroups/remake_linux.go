package cgroups

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// remake makes our root again where it is gone: an operator may have stopped the
// unit that it is in, or removed it while it was empty. The descriptors that
// everybody uses lead to the new one at once (dup3(2)), and its budget holds
// before anything enters it.
func (t *Tree) remake() error {
	t.remaking.Lock()
	defer t.remaking.Unlock()
	if t.parent != nil {
		if err := t.parent.Ensure(context.Background()); err != nil {
			return err
		}
	}
	for _, r := range t.roots {
		if unix.Faccessat(int(r.dir.Fd()), "cgroup.procs", unix.F_OK, 0) == nil {
			continue // somebody else has made it meanwhile
		}
		dir, err := t.makeRoot(r.hierarchy)
		if err != nil {
			return err
		}
		err = unix.Dup3(int(dir.Fd()), int(r.dir.Fd()), unix.O_CLOEXEC)
		if err := errors.Join(err, dir.Close()); err != nil {
			return fmt.Errorf("make cgroup root %s again: %w", r.dir.Name(), err)
		}
		t.log.Warn("the cgroup root was gone and is made again", "path", r.dir.Name())
	}
	t.weight = 0
	_, err := t.setBudget(t.budget)
	return err
}
