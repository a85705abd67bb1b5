package preflight

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/kerneltest"
)

// leftovers lists what only a probe can have made: other tests may run on this
// machine meanwhile.
func leftovers(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"/sys/fs/cgroup/hearth-preflight-*", "/sys/fs/cgroup/*/hearth-preflight-*", os.TempDir() + "/.preflight-*"} {
		m, _ := filepath.Glob(pattern)
		out = append(out, m...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, ".preflight-") {
			out = append(out, line)
		}
	}
	return out
}

func TestKernelCheckTriesEverythingAndLeavesNothing(t *testing.T) {
	kerneltest.Require(t)
	state := t.TempDir()
	r := Check(t.Context(), Input{StateDir: filepath.Join(state, "not", "yet"), IDBase: 1_900_000_000, IDCount: 655360})
	t.Log("\n" + r.Table())
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("the probes left %q", left)
	}
	if left, _ := os.ReadDir(state); len(left) > 0 {
		t.Errorf("left in the state directory: %v", left)
	}
	if n, _ := unix.Wait4(-1, nil, unix.WNOHANG, nil); n > 0 {
		t.Errorf("child %d was not reaped", n)
	}
	// Whatever this machine is, these run the other packages' tests on it.
	for _, row := range r.Rows {
		switch row.Area + " " + row.Feature {
		case "kernel version", "kernel user namespaces", "cgroup freeze", "cgroup kill", "cgroup controllers",
			"bpf BTF", "bpf tp_btf", "bpf ring buffer", "bpf LPM trie", "network veth", "network nftables masquerade",
			"filesystem overlay", "filesystem idmapped overlay":
			if row.State != OK {
				t.Errorf("%s %s: %+v", row.Area, row.Feature, row)
			}
		}
	}
}

func TestKernelProbesSayNoWhereTheFeatureCannotBe(t *testing.T) {
	kerneltest.Require(t)
	if res := haveReflink("/dev/shm"); res.state == OK && fsMagic("/dev/shm") == unix.TMPFS_MAGIC {
		t.Errorf("tmpfs clones files: %+v", res)
	}
	if res := haveOverlay("/proc"); res.state != Missing {
		t.Errorf("an overlay's upper on proc: %+v", res)
	}
	if res := haveBPFFS(t.TempDir()); res.state != Missing {
		t.Errorf("a directory is a bpffs: %+v", res)
	}
	if res := cgroupFreeze(t.TempDir()); res.state != Missing {
		t.Errorf("a directory is a cgroup tree: %+v", res)
	}
	if err := traced("hearth_no_such_tracepoint"); err == nil {
		t.Error("a tracepoint that does not exist was attached to")
	}
	if err := request(unix.NETLINK_ROUTE, message(1, unix.RTM_NEWLINK, create, make([]byte, unix.SizeofIfInfomsg),
		nest(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, text("nokind")))), 1); err == nil {
		t.Error("a link of an unknown kind was made")
	}
}

func TestFavoredChangesAreReadFromTheFileSystemsOptions(t *testing.T) {
	const plain = "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
	for text, want := range map[string]bool{
		plain: false,
		"31 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,favordynmods\n": true,
		plain + "32 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,favordynmods\n":     false,
		"33 24 0:29 / /a\\040-\\040cgroup2 rw,favordynmods - tmpfs tmpfs rw\n":                 false,
		"broken - cgroup2\n": false,
		"":                   false,
	} {
		if got := favorsDynamic(text); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
}
