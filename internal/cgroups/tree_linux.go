package cgroups

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// Tree is our root cgroup in every hierarchy of this node. It is safe for
// concurrent use.
type Tree struct {
	root   string
	layout Layout
	log    *slog.Logger
	parent parent // nil if all of root is made here
	// roots are our root in each hierarchy, the cgroup2 one first.
	roots []treeRoot
	// devices hold environments' files, as "major:minor"; noDevices says why there
	// are none.
	devices   []string
	noDevices string

	remaking sync.Mutex // held while our root is made again, and by SetBudget
	budget   Budget     // guarded by remaking: what holds
	weight   int64      // guarded by remaking: what parent was told last
}

type treeRoot struct {
	hierarchy
	dir *os.File
}

// Open finds out the layout and makes our root cgroup in every hierarchy. In
// cgroup2 it hands the controllers cpu, memory, pids and io down, as far as
// they are there. A parent must have made what our root is in.
func Open(cfg Config, log *slog.Logger) (*Tree, error) {
	clean := path.Clean(cfg.Root)
	if !path.IsAbs(clean) || clean == "/" || strings.Contains(cfg.Root, "..") {
		return nil, fmt.Errorf("%w: cgroup root %q: want an absolute path below the mount, such as /hearth", env.ErrInvalid, cfg.Root)
	}
	layout, hs, err := detect(orDefault(cfg.Mount))
	if err != nil {
		return nil, err
	}
	t := &Tree{root: clean, layout: layout, log: log, parent: cfg.Parent}
	t.devices, t.noDevices = devicesOf(cfg.Files, sysBlock)
	for _, h := range hs {
		dir, err := t.makeRoot(h)
		if err != nil {
			_ = t.Close()
			return nil, err
		}
		t.roots = append(t.roots, treeRoot{hierarchy: h, dir: dir})
	}
	return t, nil
}

func (t *Tree) makeRoot(h hierarchy) (*os.File, error) {
	dir, err := makeRoot(h, t.root, t.parent != nil)
	if err != nil {
		return nil, fmt.Errorf("make cgroup root %s: %w", h.path+t.root, err)
	}
	return dir, nil
}

// Layout says how this node mounts its cgroups.
func (t *Tree) Layout() Layout { return t.layout }

// Close releases the descriptors. Groups stay usable, except for Remove,
// SetLimits and Usage.
func (t *Tree) Close() error {
	var errs []error
	for _, r := range t.roots {
		errs = append(errs, r.dir.Close())
	}
	return errors.Join(errs...)
}

// Create makes the slot's cgroup in every hierarchy, or in none. The slot must
// be new: env.ErrExists otherwise. Where our root is gone, it is made again.
func (t *Tree) Create(slot env.SlotID) (*Group, error) {
	g, err := t.obtain(slot, func(dir *os.File) error {
		return fmt.Errorf("%w: cgroup %s/%s", env.ErrExists, dir.Name(), slot)
	})
	if err != nil {
		return nil, fmt.Errorf("create cgroup of slot %s: %w", slot, err)
	}
	return g, nil
}

// Adopt opens the cgroup of a slot that an earlier agent made. Hierarchies in
// which it is missing get it, empty: that agent may have died while it made the
// cgroup, or removed it.
func (t *Tree) Adopt(slot env.SlotID) (*Group, error) {
	g, err := t.obtain(slot, func(*os.File) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("adopt cgroup of slot %s: %w", slot, err)
	}
	return g, nil
}

// obtain makes the slot's cgroup wherever it is missing and opens it. There says
// what it means that it is in one hierarchy already. After an error nothing is left
// of what was made.
func (t *Tree) obtain(slot env.SlotID, there func(dir *os.File) error) (*Group, error) {
	if _, err := env.ParseSlotID(string(slot)); err != nil {
		return nil, err
	}
	made, err := t.makeSlot(slot, there)
	if errors.Is(err, unix.ENOENT) { // our root is gone, and with it all that was in it
		if err = t.remake(); err == nil {
			made, err = t.makeSlot(slot, there)
		}
	}
	if err != nil {
		return nil, err
	}
	g, err := t.open(slot)
	if err == nil && slices.Contains(made, t.roots[0].dir) {
		err = g.prepare()
	}
	if err != nil {
		if g != nil {
			_ = g.Close()
		}
		t.undo(slot, made)
		return nil, err
	}
	return g, nil
}

// makeSlot makes the slot's cgroup wherever it is missing, the cgroup2 one first,
// or nowhere.
func (t *Tree) makeSlot(slot env.SlotID, there func(dir *os.File) error) (made []*os.File, err error) {
	for _, r := range t.roots {
		fresh, err := mkdirAt(r.dir, string(slot))
		if err == nil && !fresh {
			err = there(r.dir)
		}
		if err != nil {
			t.undo(slot, made)
			return nil, err
		}
		if fresh {
			made = append(made, r.dir)
		}
	}
	return made, nil
}

// undo removes the slot's empty cgroup from the roots in which it was made.
func (t *Tree) undo(slot env.SlotID, made []*os.File) {
	for _, root := range slices.Backward(made) {
		if err := unix.Unlinkat(int(root.Fd()), string(slot), unix.AT_REMOVEDIR); vanished(err) != nil {
			t.log.Warn("half-made cgroup stays until the next sweep", "path", root.Name(), "slot", slot, "err", err)
		}
	}
}

// Remove kills what is left of a slot and removes its cgroup in every hierarchy,
// wherever it still has one.
func (t *Tree) Remove(ctx context.Context, slot env.SlotID) error {
	if _, err := env.ParseSlotID(string(slot)); err != nil {
		return err
	}
	g, err := t.open(slot)
	if errors.Is(err, env.ErrNotFound) {
		g, err = &Group{tree: t, slot: slot}, nil
	}
	if err != nil {
		return err
	}
	return g.Remove(ctx)
}

// List names every slot that has a cgroup in any hierarchy, sorted.
func (t *Tree) List() ([]env.SlotID, error) {
	var slots []env.SlotID
	for _, r := range t.roots {
		names, err := children(r.dir)
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, n := range names {
			if s, err := env.ParseSlotID(n); err == nil {
				slots = append(slots, s)
			}
		}
	}
	slices.Sort(slots)
	return slices.Compact(slots), nil
}

// RemoveRoot removes our root cgroup everywhere. While slots have cgroups it
// refuses with env.ErrState. The tree is of no use afterwards but for Close.
func (t *Tree) RemoveRoot() error {
	slots, err := t.List()
	if vanished(err) != nil {
		return err
	}
	if len(slots) > 0 {
		return fmt.Errorf("%w: remove cgroup root %s: %d slots are in it; release them first", env.ErrState, t.root, len(slots))
	}
	var errs []error
	for _, r := range t.roots {
		if err := vanished(unix.Rmdir(r.path + t.root)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup root %s: %w", r.path+t.root, err))
		}
	}
	return errors.Join(errs...)
}
