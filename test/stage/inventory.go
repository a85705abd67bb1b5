package stage

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	hearthv1 "hearth/api/hearth/v1"
)

// Inventory is everything of the demo's instance that exists, by category.
// Each entry is one thing's name.
type Inventory map[string][]string

// TakeInventory looks at the kernel, containerd and the disk themselves, not at
// what the agent says. It runs inside the demo's namespaces.
func (s *Stage) TakeInventory() Inventory {
	inv := Inventory{
		"cgroups":    s.cgroupDirs(),
		"mounts":     s.ourMounts(),
		"links":      names("ip", "-j", "link"),
		"namespaces": s.namespaces(),
		"processes":  s.cgroupProcesses(),
		"files":      s.stateFiles(),
		"pins":       tree(filepath.Join("/sys/fs/bpf", s.instance)),
		"bpf maps":   s.mapEntries(),
		"containers": s.containerd("containers", "list", "-q"),
		"tasks":      s.containerd("tasks", "list", "-q"),
		"snapshots":  s.containerdSnapshots(),
		"leases":     s.containerd("leases", "list", "-q"),
		"id ranges":  s.idRanges(),
	}
	for k := range inv {
		slices.Sort(inv[k])
	}
	return inv
}

// Compare says how the numbers of two inventories differ, and which names of
// gone slots the second still holds. Equal is "".
func Compare(before, after Inventory, gone []string) string {
	var diffs []string
	for _, kind := range sortedKeys(before) {
		if b, a := len(before[kind]), len(after[kind]); a != b {
			diffs = append(diffs, fmt.Sprintf("%s: %d before, %d after: %s", kind, b, a, strings.Join(difference(before[kind], after[kind]), " ")))
		}
		for _, name := range after[kind] {
			for _, id := range gone {
				if strings.Contains(name, id) {
					diffs = append(diffs, fmt.Sprintf("%s: %s is left", kind, name))
				}
			}
		}
	}
	return strings.Join(diffs, "; ")
}

// count is how many things there are in all.
func (i Inventory) Count() int {
	n := 0
	for _, list := range i {
		n += len(list)
	}
	return n
}

func difference(before, after []string) (out []string) {
	for _, n := range after {
		if !slices.Contains(before, n) {
			out = append(out, "+"+n)
		}
	}
	for _, n := range before {
		if !slices.Contains(after, n) {
			out = append(out, "-"+n)
		}
	}
	return out[:min(len(out), 12)]
}

// cgroupProcesses lists the slots' cgroups that have processes. How many may
// vary: a slot is frozen whenever its probe has passed, also while a service
// still ends the process that answered.
func (s *Stage) cgroupProcesses() (out []string) {
	for _, dir := range s.cgroupDirs() {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err == nil && strings.Contains(dir, "/s-") && len(b) > 0 {
			out = append(out, dir)
		}
	}
	return out
}

// ourMounts lists mounts below the state and run directories of the demo.
func (s *Stage) ourMounts() (out []string) {
	f, err := os.Open("/proc/self/mountinfo")
	must(err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		point := strings.Fields(lines.Text())[4]
		if strings.HasPrefix(point, s.dir) || strings.HasPrefix(point, s.runDir()) {
			out = append(out, point)
		}
	}
	return out
}

// namespaces lists the user and network namespaces of the stage's processes:
// those that see its mounts, or are in its cgroups.
func (s *Stage) namespaces() (out []string) {
	mounts, err := os.Readlink("/proc/self/ns/mnt")
	must(err)
	seen := map[string]bool{}
	for _, dir := range globs("/proc/[0-9]*") {
		own, err := os.Readlink(dir + "/ns/mnt")
		if err != nil || (own != mounts && !s.inCgroup(dir)) {
			continue
		}
		for _, kind := range []string{"user", "net"} {
			if name, err := os.Readlink(dir + "/ns/" + kind); err == nil && !seen[name] {
				seen[name] = true
				out = append(out, name)
			}
		}
	}
	return out
}

// idRanges has an entry for each block of user ids that the agent has given out.
func (s *Stage) idRanges() []string {
	resp, err := s.Node.Inventory(context.Background(), &hearthv1.InventoryRequest{})
	must(err)
	out := make([]string, resp.GetRoom().GetIdRangesUsed())
	for i := range out {
		out[i] = fmt.Sprintf("range %d", i)
	}
	return out
}

// stateFiles lists the agent's files that a slot may own.
func (s *Stage) stateFiles() []string {
	return append(tree(filepath.Join(s.dir, "state", "slots")), tree(filepath.Join(s.dir, "state", "containerd", "io.containerd.snapshotter.v1.overlayfs", "snapshots"))...)
}

// mapEntries has an entry for each one of every pinned map.
func (s *Stage) mapEntries() (out []string) {
	for _, pin := range tree(filepath.Join("/sys/fs/bpf", s.instance)) {
		if info, err := os.Stat(pin); err != nil || info.IsDir() {
			continue
		}
		m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			continue // a link or program
		}
		n := 0
		if m.Type() != ebpf.RingBuf {
			n = entriesOf(m)
		}
		must(m.Close())
		for i := range n {
			out = append(out, fmt.Sprintf("%s[%d]", filepath.Base(pin), i))
		}
	}
	return out
}

// entriesOf counts a map's keys, which may come and go meanwhile.
func entriesOf(m *ebpf.Map) (n int) {
	var key any // the first one follows none
	for uint32(n) < m.MaxEntries() {
		next, err := m.NextKeyBytes(key)
		must(err)
		if next == nil {
			break
		}
		key, n = next, n+1
	}
	return n
}

func (s *Stage) ctr(args ...string) *exec.Cmd {
	args = append([]string{"--address", filepath.Join(s.runDir(), "containerd", "containerd.sock"), "--namespace", s.instance}, args...)
	return exec.Command(filepath.Join(s.runtimeDir, "ctr"), args...)
}

func (s *Stage) containerd(args ...string) []string {
	b, err := s.ctr(args...).Output()
	must(err)
	return strings.Fields(string(b))
}

func (s *Stage) containerdSnapshots() (out []string) {
	b, err := s.ctr("snapshots", "list").Output()
	must(err)
	for _, line := range strings.Split(string(b), "\n")[1:] {
		if f := strings.Fields(line); len(f) > 0 {
			out = append(out, f[0])
		}
	}
	return out
}

// names runs a command that prints JSON and returns each object's name.
func names(command ...string) []string { return field("ifname", command...) }

func field(key string, command ...string) (out []string) {
	b, err := exec.Command(command[0], command[1:]...).Output()
	must(err)
	var list []map[string]any
	must(json.Unmarshal(b, &list))
	for _, o := range list {
		out = append(out, fmt.Sprint(o[key]))
	}
	return out
}

func tree(root string) (out []string) {
	_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			out = append(out, path)
		}
		return nil // what vanishes meanwhile is not there
	})
	return out
}

func directories(paths []string) (out []string) {
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && info.IsDir() {
			out = append(out, p)
		}
	}
	return out
}

func globs(pattern string) []string {
	out, err := filepath.Glob(pattern)
	must(err)
	return out
}

func sortedKeys(m Inventory) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
