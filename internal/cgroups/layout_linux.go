package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// hierarchy is one mounted cgroup tree.
type hierarchy struct {
	path        string
	version     int      // 1 or 2
	controllers []string // that can be used here
}

// detect finds the hierarchies below mount. The cgroup2 one comes first.
func detect(mount string) (Layout, []hierarchy, error) {
	if magic(mount) == unix.CGROUP2_SUPER_MAGIC {
		h, err := unified(mount)
		return LayoutUnified, []hierarchy{h}, err
	}
	core := filepath.Join(mount, "unified")
	if magic(core) != unix.CGROUP2_SUPER_MAGIC {
		return "", nil, fmt.Errorf("find cgroup2 at %s or %s: %w", mount, core,
			&env.UnsupportedError{Feature: "cgroup v2", Needs: "a cgroup2 mount at " + mount})
	}
	h, err := unified(core)
	if err != nil {
		return "", nil, err
	}
	hs := []hierarchy{h}
	entries, err := os.ReadDir(mount)
	if err != nil {
		return "", nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(mount, e.Name())
		// The usual links (cpu -> cpu,cpuacct) name a mount that is listed itself.
		if e.IsDir() && magic(path) == unix.CGROUP_SUPER_MAGIC {
			hs = append(hs, hierarchy{path: path, version: 1, controllers: strings.Split(e.Name(), ",")})
		}
	}
	return LayoutHybrid, hs, nil
}

// LayoutOf says how a node mounts its cgroups; mount "" is /sys/fs/cgroup.
func LayoutOf(mount string) (Layout, error) {
	layout, _, err := detect(orDefault(mount))
	return layout, err
}

// Look says whether there is a cgroup root in any hierarchy, and how many slots
// it has. It makes nothing.
func Look(cfg Config) (found bool, slots int, err error) {
	_, hs, err := detect(orDefault(cfg.Mount))
	if err != nil {
		return false, 0, err
	}
	named := map[string]bool{}
	for _, h := range hs {
		entries, err := os.ReadDir(filepath.Join(h.path, filepath.Clean("/"+cfg.Root)))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return false, 0, fmt.Errorf("look for cgroups of slots: %w", err)
		}
		found = true
		for _, e := range entries {
			if _, err := env.ParseSlotID(e.Name()); err == nil && e.IsDir() {
				named[e.Name()] = true
			}
		}
	}
	return found, len(named), nil
}

func orDefault(mount string) string {
	if mount == "" {
		return "/sys/fs/cgroup"
	}
	return mount
}

func unified(path string) (hierarchy, error) {
	b, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return hierarchy{}, fmt.Errorf("read controllers: %w", err)
	}
	return hierarchy{path: path, version: 2, controllers: strings.Fields(string(b))}, nil
}

func magic(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 0
	}
	return st.Type
}

// wanted are the v2 controllers that slots use.
var wanted = []string{"cpu", "memory", "pids", "io"}

// makeRoot makes root in h and, in cgroup2, hands the wanted controllers down
// to it and to its children. What a parent has made is not made again. It
// returns root's directory.
func makeRoot(h hierarchy, root string, given bool) (*os.File, error) {
	dir, err := openDir(h.path)
	if err != nil {
		return nil, err
	}
	names := components(root)
	for i, name := range names {
		next, err := descend(h, dir, name, given && i < len(names)-1)
		_ = dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	if err := enable(h, dir); err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

func descend(h hierarchy, dir *os.File, name string, given bool) (*os.File, error) {
	if err := enable(h, dir); err != nil {
		return nil, err
	}
	if !given {
		if _, err := mkdirAt(dir, name); err != nil {
			return nil, err
		}
	}
	return openAt(dir, name, dirFlags)
}

// enable hands the wanted controllers that dir has to its children.
func enable(h hierarchy, dir *os.File) error {
	if h.version != 2 {
		return nil
	}
	have, err := readAt(dir, "cgroup.controllers")
	if err != nil {
		return err
	}
	on, err := readAt(dir, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	for _, c := range wanted {
		if !slices.Contains(strings.Fields(have), c) || slices.Contains(strings.Fields(on), c) {
			continue
		}
		if err := writeAt(dir, "cgroup.subtree_control", "+"+c); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("enable controller %s below %s: it holds processes itself; configure a root that holds none: %w", c, dir.Name(), err)
			}
			return fmt.Errorf("enable controller %s below %s: %w", c, dir.Name(), err)
		}
	}
	return nil
}
