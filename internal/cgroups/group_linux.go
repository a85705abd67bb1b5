package cgroups

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// maxPIDs bounds what Pids returns.
const maxPIDs = 1 << 16

// Bounds on the cgroups that an environment may make below its own, if the
// class delegates it. They keep walks and removals short.
const (
	maxNestedDepth  = "24"
	maxNestedGroups = "1024"
)

// Group is one slot's cgroup. It is safe for concurrent use, Close included.
type Group struct {
	tree *Tree
	slot env.SlotID
	id   uint64

	dir    *os.File // the slot's directory in cgroup2
	freeze *os.File // its cgroup.freeze, for writing
	events *os.File // its cgroup.events

	limiting sync.Mutex          // guards the limit files, so that what one call undoes is its own, and said
	said     map[limitKey]string // what the files say, as far as it is known

	mu  sync.Mutex // guards buf, for the length of one read
	buf [128]byte  // "populated 1\nfrozen 1\n" and room for later keys
}

// open opens a slot's cgroup in cgroup2.
func (t *Tree) open(slot env.SlotID) (*Group, error) {
	dir, err := openAt(t.roots[0].dir, string(slot), dirFlags)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("%w: no cgroup %s/%s", env.ErrNotFound, t.root, slot)
	}
	if err != nil {
		return nil, err
	}
	g := &Group{tree: t, slot: slot, dir: dir, said: map[limitKey]string{}}
	if g.freeze, err = openAt(dir, "cgroup.freeze", unix.O_WRONLY); err == nil {
		g.events, err = openAt(dir, "cgroup.events", unix.O_RDONLY)
	}
	if err == nil {
		g.id, err = cgroupID(dir)
	}
	if err != nil {
		_ = g.Close()
		return nil, err
	}
	return g, nil
}

// cgroupID is the kernfs id, as bpf_get_current_ancestor_cgroup_id gives it.
func cgroupID(dir *os.File) (uint64, error) {
	h, _, err := unix.NameToHandleAt(int(dir.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return 0, fmt.Errorf("read cgroup id of %s: %w", dir.Name(), err)
	}
	if h.Size() != 8 {
		return 0, fmt.Errorf("read cgroup id of %s: handle of %d bytes", dir.Name(), h.Size())
	}
	return binary.NativeEndian.Uint64(h.Bytes()), nil
}

// prepare readies a new slot's cgroup for its container.
func (g *Group) prepare() error {
	if err := writeAt(g.dir, "cgroup.max.depth", maxNestedDepth); err != nil {
		return err
	}
	if err := writeAt(g.dir, "cgroup.max.descendants", maxNestedGroups); err != nil {
		return err
	}
	return enable(g.tree.roots[0].hierarchy, g.dir)
}

// Slot is whose cgroup it is.
func (g *Group) Slot() env.SlotID { return g.slot }

// ID is the kernel's id of the slot's cgroup in cgroup2.
func (g *Group) ID() uint64 { return g.id }

// ContainerPath is the container's cgroup, for OCI's linux.cgroupsPath with
// the cgroupfs driver.
func (g *Group) ContainerPath() string {
	return g.tree.root + "/" + string(g.slot) + "/" + containerName
}

// Close releases the descriptors and leaves the cgroup as it is.
func (g *Group) Close() error {
	var errs []error
	for _, f := range []*os.File{g.dir, g.freeze, g.events} {
		if f == nil {
			continue
		}
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Populated reports whether a process is in the slot.
func (g *Group) Populated() (bool, error) {
	s, err := g.state()
	return s.populated, err
}

// Pids lists the slot's processes as this process's PID namespace knows them,
// sorted; at most 65,536.
func (g *Group) Pids() ([]int, error) {
	var pids []int
	err := walk(g.dir, 0, func(d *os.File) error {
		text, err := readAt(d, "cgroup.procs")
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // a threaded cgroup: its domain lists the processes
		}
		for line := range strings.Lines(text) {
			pid, perr := strconv.Atoi(strings.TrimSpace(line))
			if perr == nil && len(pids) < maxPIDs {
				pids = append(pids, pid)
			}
		}
		return vanished(err)
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// Kill ends every process of the slot, frozen ones too, and returns when none
// is left or ctx ends. A process that was forked meanwhile dies with the rest.
func (g *Group) Kill(ctx context.Context) error {
	// Not by g.dir: Remove may be repeated after Close.
	err := withDir(g.tree.roots[0].dir, []string{string(g.slot)}, func(dir *os.File) error {
		return writeAt(dir, "cgroup.kill", "1")
	})
	switch {
	case err == nil:
	case vanished(err) == nil:
		return nil // the cgroup is gone, so are its processes
	default:
		return fmt.Errorf("kill slot %s: %w", g.slot, err)
	}
	err = g.await(ctx, func(s state) bool { return !s.populated })
	if errors.Is(err, env.ErrNotFound) {
		return nil
	}
	if err != nil {
		pids, _ := g.Pids()
		return fmt.Errorf("kill slot %s: processes %v do not die: %w", g.slot, head(pids), err)
	}
	return nil
}

// Remove kills what is left, removes the slot's cgroup in every hierarchy and
// closes the group. It may be repeated, also on a group that is closed.
func (g *Group) Remove(ctx context.Context) error {
	if err := g.Kill(ctx); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	var errs []error
	for _, r := range slices.Backward(g.tree.roots) { // what was made first goes last
		if err := removeSlot(ctx, r.dir, g.slot); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup of slot %s: %w", g.slot, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return g.Close()
}

// removeSlot repeats on EBUSY: a dead process leaves its v1 cgroups a moment
// after cgroup2 says that none is left.
func removeSlot(ctx context.Context, root *os.File, slot env.SlotID) error {
	pause := 100 * time.Microsecond
	for {
		err := removeTree(root, string(slot), 0)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pause):
			pause = min(2*pause, 20*time.Millisecond)
		}
	}
}

func head(pids []int) []int { return pids[:min(len(pids), 16)] }
