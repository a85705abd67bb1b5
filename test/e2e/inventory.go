package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"hearth/test/stage"
)

// takeInventory lists everything of Hearth that exists on the node in whose
// namespaces it runs, by category: it asks the kernel, containerd and the disk,
// not the agent.
func takeInventory() stage.Inventory {
	inv := stage.Inventory{
		"cgroups":    {},
		"mounts":     {},
		"links":      lines("ip", "-br", "link", "show", "type", "veth"),
		"pins":       below("/sys/fs/bpf/hearth"),
		"files":      below("/var/lib/hearth/slots"),
		"containers": lines("ctr", "-n", "hearth", "containers", "list", "-q"),
		"tasks":      lines("ctr", "-n", "hearth", "tasks", "list", "-q"),
		"leases":     lines("ctr", "-n", "hearth", "leases", "list", "-q"),
		"nft":        lines("nft", "list", "tables"),
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/hearth") // the pattern is well formed
	for _, root := range append(roots, "/sys/fs/cgroup/hearth") {
		inv["cgroups"] = append(inv["cgroups"], directoriesBelow(root)...)
	}
	for _, l := range lines("ctr", "-n", "hearth", "snapshots", "list") {
		if f := strings.Fields(l); len(f) == 3 && f[2] == "Active" {
			inv["snapshots"] = append(inv["snapshots"], f[0])
		}
	}
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if p := f[4]; strings.HasPrefix(p, "/var/lib/hearth/") || strings.HasPrefix(p, "/run/hearth/") || strings.Contains(p, "io.containerd.runtime.v2.task/hearth/") {
			inv["mounts"] = append(inv["mounts"], p)
		}
	}
	// Links of pods come and go; an agent's begin with its prefix.
	inv["links"] = slices.DeleteFunc(inv["links"], func(l string) bool { return !strings.HasPrefix(l, "hth") })
	inv["nft"] = slices.DeleteFunc(inv["nft"], func(l string) bool { return !strings.Contains(l, "hearth") })
	for k := range inv {
		slices.Sort(inv[k])
	}
	return inv
}

func lines(command ...string) []string {
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil || len(out) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func below(root string) (out []string) {
	_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != root {
			out = append(out, path)
		}
		return nil
	})
	return out
}

func directoriesBelow(root string) (out []string) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			out = append(out, path)
		}
		return nil
	})
	return out
}

// inventory is takeInventory on a node of the cluster.
func (w *world) inventory(node string) (stage.Inventory, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := output(w.cluster.In(node, self, "inventory"))
	if err != nil {
		return nil, err
	}
	var inv stage.Inventory
	return inv, json.Unmarshal([]byte(out), &inv)
}
