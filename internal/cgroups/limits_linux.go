package cgroups

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

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
			if root.version != l.version || !slices.Contains(root.controllers, l.controller) {
				continue
			}
			if !l.perDevice {
				ws = append(ws, write{limit: l, root: root, path: path, value: v})
				continue
			}
			for _, d := range t.devices {
				ws = append(ws, write{limit: l, root: root, path: path, value: d + " " + v})
			}
		}
	}
	return ws
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

// Supports says which of r's limits this node cannot set, with an
// env.UnsupportedError.
func (t *Tree) Supports(r env.Resources) error {
	return supports(r, func(controller string, version int, file string) bool {
		return slices.ContainsFunc(t.roots, func(root treeRoot) bool {
			return root.version == version && slices.Contains(root.controllers, controller) &&
				(file == "" || unix.Faccessat(int(root.dir.Fd()), file, unix.F_OK, 0) == nil)
		})
	}, t.devices, t.noDevices)
}

// SetLimits sets the slot's limits, and those of its container if that exists, so
// that programs inside see them: all of them or none. Zero leaves a limit as it
// is, but for what hangs on another: burst and weight on CPU, mark and swap on
// memory. A memory limit below what the slot uses and the kernel cannot take back
// is refused with env.ErrState, since the kernel would kill for it.
func (g *Group) SetLimits(r env.Resources) error {
	err := g.tree.Supports(r)
	if err == nil {
		g.limiting.Lock()
		defer g.limiting.Unlock()
		err = g.setLimits(r)
	}
	if err != nil {
		return fmt.Errorf("set limits of slot %s: %w", g.slot, err)
	}
	return nil
}

func (g *Group) setLimits(r env.Resources) error {
	slot := []string{string(g.slot)}
	asked := g.tree.writes(r, slot)
	for _, w := range g.tree.writes(r, append(slot, containerName)) {
		w.optional = true // no container yet
		asked = append(asked, w)
	}
	files, err := openFiles(g.news(asked), g.said)
	defer files.close()
	if err != nil {
		return err
	}
	if err = g.makeRoom(r, files); err == nil {
		err = files.apply()
	}
	if err != nil {
		clear(g.said)
		return errors.Join(err, files.undo())
	}
	for _, f := range files.list {
		g.said[f.key()] = f.value
	}
	return nil
}

// news leaves out what the files say already: nobody but this process writes them.
// Those of memory hang on each other in ways that take all of them, see makeRoom.
func (g *Group) news(asked []write) []write {
	same := func(w write) bool { return g.said[w.key()] == w.value }
	memory := slices.ContainsFunc(asked, func(w write) bool { return w.controller == "memory" && !same(w) })
	return slices.DeleteFunc(asked, func(w write) bool {
		return same(w) && !(memory && w.controller == "memory")
	})
}

// limitKey is one control file, or one device's value in it.
type limitKey struct{ controller, dir, file, device string }

func (w write) key() limitKey {
	k := limitKey{controller: w.controller, dir: w.path[len(w.path)-1], file: w.file}
	if w.perDevice {
		k.device, _, _ = strings.Cut(w.value, " ")
	}
	return k
}

// makeRoom lets the kernel take memory back before the limit falls below what is
// used, and sees to it that not much is added meanwhile. In cgroup v1 the limit
// itself does that, and does not kill.
func (g *Group) makeRoom(r env.Resources, files limitFiles) error {
	at := slices.IndexFunc(files.list, func(f *limitFile) bool {
		return f.controller == "memory" && (f.file == "memory.max" || f.file == "memory.limit_in_bytes")
	})
	if r.MemoryBytes <= 0 || at < 0 || !above(files.list[at].was, r.MemoryBytes) {
		return nil
	}
	limit := files.list[at].write
	return withDir(limit.root.dir, limit.path, func(dir *os.File) error {
		used, err := readNumber(dir, usedFile[limit.version])
		if err != nil || used <= r.MemoryBytes/2 {
			return err // far below
		}
		if used > r.MemoryBytes && r.SwapBytes <= 0 {
			u, err := g.usage([]string{"memory"})
			if err != nil {
				return err
			}
			if u.AnonBytes > r.MemoryBytes { // saves the attempt, which costs the page cache
				return tooLarge(r, u.AnonBytes)
			}
		}
		if limit.version == 1 {
			return nil
		}
		// Whoever goes above this mark is slowed down, and waits until the kernel has
		// taken back what it can (mm/memcontrol.c, memory_high_write).
		if err := writeAt(dir, fileMemoryHigh, itoa(r.MemoryBytes)); err != nil {
			return fmt.Errorf("write %s: %w", fileMemoryHigh, err)
		}
		files.touch(fileMemoryHigh)
		used, err = readNumber(dir, usedFile[limit.version])
		if err == nil && used > r.MemoryBytes {
			err = tooLarge(r, used)
		}
		return err
	})
}

// usedFile has what a cgroup of a version uses of memory.
var usedFile = map[int]string{1: "memory.usage_in_bytes", 2: "memory.current"}

func tooLarge(r env.Resources, used int64) error {
	return fmt.Errorf("%w: memory limit of %d bytes is less than what is in use and cannot be taken back, %d bytes; free some inside first, or ask for more", env.ErrState, r.MemoryBytes, used)
}

// above tells whether a control file's value is more than v.
func above(value string, v int64) bool {
	n, ok := number(value, "")
	return !ok || n > v // "max"
}
