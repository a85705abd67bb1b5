package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Every process of a cluster is in a cgroup below this one, in every hierarchy.
// Making the directory is also how two clusters on one machine find out about
// each other, and killing it ends whatever a cluster started, recorded or not.
const cgroupRoot = "/hearth-cluster"

// A hierarchy is one mounted cgroup file system.
type hierarchy struct {
	mount   string // where, as the anchor sees it
	kind    string // "cgroup" or "cgroup2"
	options string // what to mount it with once more
}

// machine is the machine's own view of its files: through the anchor, a process
// in the machine's mount namespace, or directly if anchor is 0. So a test that
// runs inside a node can do to the cluster what one outside can.
type machine struct{ anchor int }

func (m machine) path(p string) string {
	if m.anchor == 0 {
		return p
	}
	return filepath.Join("/proc", strconv.Itoa(m.anchor), "root") + p
}

func (m machine) hierarchies() ([]hierarchy, error) {
	who := "self"
	if m.anchor != 0 {
		who = strconv.Itoa(m.anchor)
	}
	f, err := os.Open(filepath.Join("/proc", who, "mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []hierarchy
	for s := bufio.NewScanner(f); s.Scan(); {
		if h, ok := parseHierarchy(s.Text()); ok {
			list = append(list, h)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	return list, nil
}

// parseHierarchy reads a line of proc_pid_mountinfo(5).
func parseHierarchy(line string) (hierarchy, bool) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 5 || len(r) < 3 || (r[0] != "cgroup" && r[0] != "cgroup2") {
		return hierarchy{}, false
	}
	h := hierarchy{mount: l[4], kind: r[0]}
	var options []string
	for _, o := range strings.Split(r[2], ",") {
		switch {
		case h.kind == "cgroup2" || o == "rw" || o == "ro" || o == "xattr" || strings.HasPrefix(o, "release_agent="):
		case strings.HasPrefix(o, "name="):
			options = append(options, "none", o)
		default:
			options = append(options, o)
		}
	}
	h.options = strings.Join(options, ",")
	return h, true
}

// makeCgroups makes the cluster's cgroup, and one for each name below it, in
// every hierarchy. It calls claimed as soon as the machine is this cluster's.
func (m machine) makeCgroups(names []string, claimed func() error) error {
	list, err := m.hierarchies()
	if err != nil {
		return err
	}
	first := m.path(list[0].mount + cgroupRoot)
	if err := os.Mkdir(first, 0o755); err != nil {
		return fmt.Errorf("another cluster runs on this machine, or was lost (`cluster down -force`): %w", err)
	}
	if err := claimed(); err != nil {
		return errors.Join(err, rmdir(first))
	}
	for _, h := range list {
		root := m.path(h.mount + cgroupRoot)
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
		if err := prepareCgroup(h, root); err != nil {
			return err
		}
		for _, name := range names {
			// Processes stay in a leaf, so that on pure cgroup v2 the node's
			// root can hand its controllers down.
			for _, dir := range []string{filepath.Join(root, name), filepath.Join(root, name, "init")} {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				if err := prepareCgroup(h, dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// prepareCgroup makes a new cgroup usable: a cpuset takes no process before it
// has processors and memory nodes, and version 2 hands controllers down only
// when told to.
func prepareCgroup(h hierarchy, dir string) error {
	if h.kind == "cgroup2" {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil || filepath.Base(dir) == "init" {
			return err
		}
		var enable []string
		for _, c := range strings.Fields(string(b)) {
			enable = append(enable, "+"+c)
		}
		return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(enable, " ")), 0)
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // another controller
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0); err != nil {
			return err
		}
	}
	return nil
}

// join moves the calling process into a cgroup in every hierarchy.
func (m machine) join(cgroup string) error {
	list, err := m.hierarchies()
	if err != nil {
		return err
	}
	for _, h := range list {
		procs := m.path(filepath.Join(h.mount, cgroup, "cgroup.procs"))
		if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return fmt.Errorf("join cgroup %s: %w", procs, err)
		}
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
