package guesttest

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// requireVM skips outside the VM: these tests are about the VM itself.
func requireVM(t *testing.T) {
	t.Helper()
	if os.Getenv("HEARTH_VM") == "" {
		t.Skip("not in the VM of make test-vm")
	}
}

func TestKernelIsTheFloorOrNewer(t *testing.T) {
	requireVM(t)
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(string(release), ".", 3)
	major, _ := strconv.Atoi(parts[0])
	minor, _ := strconv.Atoi(parts[1])
	if major < 6 || major == 6 && minor < 1 {
		t.Errorf("kernel %s, want 6.1 or newer", release)
	}
}

func TestKernelHasPureCgroup2(t *testing.T) {
	requireVM(t)
	const cgroup2Magic = 0x63677270 // linux/magic.h
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/sys/fs/cgroup", &fs); err != nil || fs.Type != cgroup2Magic {
		t.Errorf("/sys/fs/cgroup has type %#x, %v; want cgroup2", fs.Type, err)
	}
	handed, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	if err != nil {
		t.Fatal(err)
	}
	for _, controller := range []string{"cpu", "io", "memory", "pids"} {
		if !slices.Contains(strings.Fields(string(handed)), controller) {
			t.Errorf("controller %s is not handed down: %s", controller, handed)
		}
	}
}

func TestKernelHasBPFLSM(t *testing.T) {
	requireVM(t)
	active, err := os.ReadFile("/sys/kernel/security/lsm")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(strings.Split(strings.TrimSpace(string(active)), ","), "bpf") {
		t.Errorf("security modules %s, want bpf among them", active)
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Error(err)
	}
}

func TestKernelLoadsTheModulesOfANode(t *testing.T) {
	requireVM(t)
	modules, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"overlay", "veth", "sch_ingress", "cls_bpf", "nf_tables", "nft_masq"} {
		if !strings.Contains("\n"+string(modules), "\n"+module+" ") {
			t.Errorf("module %s is not loaded", module)
		}
	}
	if out, err := exec.Command("ip", "link", "add", "probe0", "type", "veth", "peer", "name", "probe1").CombinedOutput(); err != nil {
		t.Errorf("make a veth pair: %v: %s", err, out)
	} else if out, err := exec.Command("ip", "link", "del", "probe0").CombinedOutput(); err != nil {
		t.Errorf("delete it: %v: %s", err, out)
	}
}
