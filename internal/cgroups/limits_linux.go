package cgroups

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// write is one value for one control file.
type write struct {
	limit
	root  treeRoot
	path  []string // below root
	value string
}

// writes lists what r asks for in the cgroup at path below our root.
func (t *Tree) writes(r env.Resources, path []string) []write {
	var ws []write
	for _, l := range limitTable {
		v := l.value(r)
		if v == "" {
			continue
		}
		for _, root := range t.roots {
			if root.version == l.version && slices.Contains(root.controllers, l.controller) {
				ws = append(ws, write{limit: l, root: root, path: path, value: v})
			}
		}
	}
	return ws
}

func (w write) do() error {
	err := withDir(w.root.dir, w.path, func(dir *os.File) error { return writeAt(dir, w.file, w.value) })
	if errors.Is(err, unix.ENOENT) && w.optional {
		return nil
	}
	return err
}

// withDir calls f with the directory at path below root, opened one component
// at a time.
func withDir(root *os.File, path []string, f func(*os.File) error) error {
	if len(path) == 0 {
		return f(root)
	}
	dir, err := openAt(root, path[0], dirFlags)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return withDir(dir, path[1:], f)
}

// supported says which of r's limits this node cannot set.
func (t *Tree) supported(r env.Resources) error {
	for controller, asked := range map[string]int64{"cpu": r.CPUMillis, "memory": r.MemoryBytes, "pids": r.PIDs} {
		if asked <= 0 {
			continue
		}
		has := func(root treeRoot) bool { return slices.Contains(root.controllers, controller) }
		if !slices.ContainsFunc(t.roots, has) {
			return &env.UnsupportedError{Feature: "cgroup controller " + controller, Needs: "the controller enabled in the kernel and handed down to " + t.root}
		}
	}
	return nil
}

// SetLimits sets the slot's hard limits, and those of its container if that
// exists, so that programs inside see them. Zero leaves a limit as it is. A
// memory limit below what the slot uses now is refused with env.ErrState,
// since the kernel would kill for it.
func (g *Group) SetLimits(r env.Resources) error {
	if err := g.tree.supported(r); err != nil {
		return fmt.Errorf("set limits of slot %s: %w", g.slot, err)
	}
	if r.MemoryBytes > 0 {
		u, err := g.usage([]string{"memory"})
		if err != nil {
			return err
		}
		if u.MemoryBytes > r.MemoryBytes {
			return fmt.Errorf("%w: set memory limit of slot %s to %d bytes: it uses %d", env.ErrState, g.slot, r.MemoryBytes, u.MemoryBytes)
		}
	}
	slot := []string{string(g.slot)}
	ws := g.tree.writes(r, slot)
	for _, w := range g.tree.writes(r, append(slot, containerName)) {
		w.optional = true // no container yet
		ws = append(ws, w)
	}
	return g.apply(ws)
}

// apply writes in order, then once more what was refused: v1 wants a child's
// CPU quota below its parent's and memory below memory+swap at every moment,
// so the order depends on whether limits rise or fall.
func (g *Group) apply(ws []write) error {
	var refused []write
	for _, w := range ws {
		switch err := w.do(); {
		case errors.Is(err, unix.EINVAL):
			refused = append(refused, w)
		case err != nil:
			return fmt.Errorf("set %s of slot %s: %w", w.file, g.slot, err)
		}
	}
	for _, w := range refused {
		if err := w.do(); err != nil {
			return fmt.Errorf("set %s of slot %s: %w", w.file, g.slot, err)
		}
	}
	return nil
}

// Usage reads what the slot uses now. Files that this kernel does not have
// leave their fields zero.
func (g *Group) Usage() (Usage, error) {
	return g.usage([]string{"cpu", "cpuacct", "memory", "pids"})
}

func (g *Group) usage(controllers []string) (Usage, error) {
	var u Usage
	for _, root := range g.tree.roots {
		has := func(c string) bool { return slices.Contains(root.controllers, c) }
		if !slices.ContainsFunc(controllers, has) {
			continue // saves the opening
		}
		if err := g.readUsage(root, []string{string(g.slot)}, false, &u); err != nil {
			return Usage{}, fmt.Errorf("read usage of slot %s: %w", g.slot, err)
		}
		err := g.readUsage(root, []string{string(g.slot), containerName}, true, &u)
		if vanished(err) != nil {
			return Usage{}, fmt.Errorf("read usage of slot %s: %w", g.slot, err)
		}
	}
	return u, nil
}

func (g *Group) readUsage(root treeRoot, path []string, localOnly bool, u *Usage) error {
	return withDir(root.dir, path, func(dir *os.File) error {
		cached, text := "", ""
		for _, r := range usageTable {
			if r.version != root.version || !slices.Contains(root.controllers, r.controller) || localOnly && !isLocal(dir, r) {
				continue
			}
			if r.file != cached {
				var err error
				if text, err = readAt(dir, r.file); vanished(err) != nil {
					return err
				}
				cached = r.file
			}
			if v, ok := number(text, r.key); ok {
				r.put(u, v)
			}
		}
		return nil
	})
}

// isLocal says whether dir's reading leaves out what its descendants did.
func isLocal(dir *os.File, r reading) bool {
	if !r.local || r.summedBy == "" {
		return r.local
	}
	return unix.Faccessat(int(dir.Fd()), r.summedBy, unix.F_OK, 0) != nil
}

// Reclaim asks the kernel to take up to n bytes of the slot's memory back. It
// returns nil also if less could be taken.
func (g *Group) Reclaim(n int64) error {
	err := writeAt(g.dir, "memory.reclaim", itoa(n))
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil
	case errors.Is(err, unix.ENOENT):
		return &env.UnsupportedError{Feature: "memory.reclaim", Needs: "Linux 5.19 with the memory controller in cgroup v2"}
	default:
		return err
	}
}
