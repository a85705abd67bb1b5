package stage

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

const cgroupMount = "/sys/fs/cgroup"

// cgroupTrees are the cgroups that an instance may have at the top of each
// hierarchy: one of its own, or a scope of systemd.
func (s *Stage) cgroupTrees() []string {
	own := append(globs(cgroupMount+"/*/"+s.instance), filepath.Join(cgroupMount, s.instance))
	return append(own, filepath.Join(cgroupMount, s.instance+".scope"))
}

// CgroupRoots are those in which slots have theirs, as far as they are there.
func (s *Stage) CgroupRoots() (out []string) {
	for _, root := range s.cgroupTrees() {
		if strings.HasSuffix(root, ".scope") {
			root = filepath.Join(root, "slots")
		}
		if _, err := os.Stat(root); err == nil {
			out = append(out, root)
		}
	}
	return out
}

// UnifiedCgroup is a file of a slot's cgroup in the v2 hierarchy.
func (s *Stage) UnifiedCgroup(slot, file string) string {
	for _, root := range s.CgroupRoots() {
		if _, err := os.Stat(filepath.Join(root, "cgroup.subtree_control")); err == nil {
			return filepath.Join(root, slot, file)
		}
	}
	return filepath.Join(cgroupMount, s.instance, slot, file)
}

// cgroupDirs lists the instance's cgroups in every hierarchy.
func (s *Stage) cgroupDirs() (out []string) {
	for _, root := range s.cgroupTrees() {
		out = append(out, tree(root)...)
	}
	return directories(out)
}

// RemoveCgroups removes all of the instance's, whose processes are ended first if
// they only keep a unit.
func (s *Stage) RemoveCgroups() error {
	keeper := filepath.Join(cgroupMount, s.instance+".scope", "keeper", "cgroup.kill")
	if f, err := os.OpenFile(keeper, os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString("1")
		_ = f.Close()
	}
	return Eventually(20*time.Second, func() error {
		dirs := s.cgroupDirs()
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := os.Remove(dirs[i]); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		return nil
	})
}

// inCgroup tells whether a process, named by its directory in /proc, is in one of
// the instance's.
func (s *Stage) inCgroup(proc string) bool {
	b, err := os.ReadFile(proc + "/cgroup")
	return err == nil && (strings.Contains(string(b), "/"+s.instance+"/") || strings.Contains(string(b), "/"+s.instance+".scope/"))
}
