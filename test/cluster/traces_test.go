//go:build e2e

package cluster

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// traces looks at the machine itself: processes, mounts, loop devices, links,
// cgroups, sysctls and directories that a cluster could have made.
func traces(t *testing.T, o Options) (list []string) {
	t.Helper()
	list = append(list, processTraces(t, o)...)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		list = append(list, "mount "+strings.TrimSpace(line))
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range loops {
		list = append(list, "loop device "+l)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		list = append(list, "link "+l.Name)
	}
	for _, name := range sysctls {
		b, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("sysctl %s=%s", name, strings.TrimSpace(string(b))))
	}
	hierarchies, err := (machine{}).hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, h := range hierarchies {
		paths = append(paths, h.mount+cgroupRoot, h.mount+"/kubepods")
	}
	for _, p := range append(append(paths, private...), o.Dir, "/opt/containerd", "/opt/cni", "/var/run/nri", "/usr/libexec/kubernetes") {
		if _, err := os.Lstat(p); err == nil {
			list = append(list, "path "+p)
		}
	}
	slices.Sort(list)
	return list
}

// processTraces finds processes that are in a cluster's cgroup, run its
// programs, or see the files of its nodes.
func processTraces(t *testing.T, o Options) (list []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		cgroup, err := os.ReadFile(dir + "/cgroup")
		if err != nil {
			continue // ended meanwhile
		}
		exe, _ := os.Readlink(dir + "/exe")
		mounts, _ := os.ReadFile(dir + "/mounts")
		if strings.Contains(string(cgroup), cgroupRoot+"/") || strings.HasPrefix(exe, o.BinDir+"/") || strings.Contains(string(mounts), " /var/lib/kubelet ") {
			list = append(list, fmt.Sprintf("process %s %s", filepath.Base(dir), exe))
		}
	}
	return list
}
