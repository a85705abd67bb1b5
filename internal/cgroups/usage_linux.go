package cgroups

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

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
