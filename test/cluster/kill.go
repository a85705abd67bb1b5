package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// killCgroups ends every process of the cluster and removes its cgroups. It
// goes round all hierarchies until nothing is left: a process that a version 1
// freezer holds dies when it is thawed.
func (m machine) killCgroups() error {
	list, err := m.hierarchies()
	if err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var errs []error
		for _, h := range list {
			errs = append(errs, killTree(h, m.path(h.mount+cgroupRoot)))
		}
		for _, h := range list {
			errs = append(errs, removeTree(m.path(h.mount+cgroupRoot)))
		}
		if err := errors.Join(errs...); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// killTree kills what is in one hierarchy; version 2 does it as one act.
func killTree(h hierarchy, root string) error {
	if h.kind == "cgroup2" {
		return ignoreGone(os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0))
	}
	return killEach(root)
}

// killEach thaws and kills those that a version 1 hierarchy lists.
func killEach(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignoreGone(err)
		}
		switch d.Name() {
		case "freezer.state":
			_ = os.WriteFile(path, []byte("THAWED"), 0) // the next round tries again
		case "cgroup.procs":
			b, err := os.ReadFile(path)
			if err != nil {
				return ignoreGone(err)
			}
			for _, f := range strings.Fields(string(b)) {
				if err := killMember(f); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// killMember kills a process if it is in the cluster's cgroup: the descriptor
// that os.FindProcess opens pins it before that is read.
func killMember(pid string) error {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	p, err := os.FindProcess(n)
	if err != nil {
		return nil // gone
	}
	defer func() { _ = p.Release() }()
	b, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err == nil && strings.Contains(string(b), ":"+cgroupRoot+"/") {
		err = p.Kill()
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return ignoreGone(err)
}

// removeTree removes the cgroups bottom up; the files in them are the kernel's.
func removeTree(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(root, e.Name())); err != nil {
				return err
			}
		}
	}
	// Not os.Remove, which says "not a directory" when rmdir says why.
	return ignoreGone(rmdir(root))
}
