package ctrd

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"hearth/internal/env"
)

// limits are what this process may give to others.
type limits struct{ noFile uint64 }

const (
	minShm       = 64 << 20
	defaultPath  = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	cpuPeriod    = 100_000 // microseconds
	oomScoreAdj  = 500     // an environment dies before a daemon of the node
	softNoFile   = 65_536
	maxNoFile    = 1 << 20
	identitySize = "1m"
)

// capabilities hold in the container's own user namespace. They are what
// package managers, useradd, su, sudo and databases need. Not given: NET_RAW
// (ping works by net.ipv4.ping_group_range; packet sockets are the island's
// enemy), NET_ADMIN (the island's addresses and routes are ours), MKNOD
// (devices are refused in a user namespace anyway), SYS_ADMIN and the rest.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYS_CHROOT",
}

var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
	"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
	"/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
}

var readonlyPaths = []string{
	"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
}

// ociSpec is the whole container. It is pure: the same input, the same spec.
func ociSpec(s Spec, l limits) specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: s.IDs.Base, Size: s.IDs.Size}}
	spec := specs.Spec{
		Version:  specVersion(s.Class.Resources),
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: s.Hostname,
		Process:  process(s, l),
		Mounts:   mounts(s),
		Linux: &specs.Linux{
			CgroupsPath: s.CgroupsPath,
			// The maps must be in the spec although the namespace exists:
			// containerd opens the bundle to the mapped root only then.
			UIDMappings: ids,
			GIDMappings: ids,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace, Path: s.UserNS},
				{Type: specs.NetworkNamespace, Path: s.NetNS},
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.CgroupNamespace},
			},
			Resources:         resources(s.Class.Resources),
			MaskedPaths:       slices.Clone(maskedPaths),
			ReadonlyPaths:     slices.Clone(readonlyPaths),
			RootfsPropagation: "private",
			Sysctl: map[string]string{
				"net.ipv4.ping_group_range": fmt.Sprintf("0 %d", s.IDs.Size-1),
			},
		},
	}
	if s.shim != "" {
		spec.Annotations = map[string]string{annotationShim: string(s.shim)}
	}
	spec.Linux.Seccomp = seccompProfile(&spec)
	return spec
}

// specVersion is the least version of the runtime specification that has all that
// is said: older runtimes refuse newer ones, even for what they know.
func specVersion(r env.Resources) string {
	if r.CPUBurstMillis > 0 {
		return "1.1.0"
	}
	return "1.0.2"
}

func process(s Spec, l limits) *specs.Process {
	hard := min(l.noFile, maxNoFile)
	if n := s.Class.Resources.OpenFiles; n > 0 {
		hard = min(hard, uint64(n)) // limits.refuse has seen that it is not less
	}
	score := oomScoreAdj
	return &specs.Process{
		Args: []string{InitTarget},
		Env:  environment(s),
		Cwd:  "/",
		User: specs.User{},
		// sudo and su inside must work. Gaining privileges inside means gaining
		// those of this user namespace's root, which pid 1 has already.
		NoNewPrivileges: false,
		Capabilities: &specs.LinuxCapabilities{
			Bounding:  slices.Clone(capabilities),
			Effective: slices.Clone(capabilities),
			Permitted: slices.Clone(capabilities),
		},
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: min(softNoFile, hard), Hard: hard},
			{Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, // a core file would fill the writable layer
		},
		OOMScoreAdj: &score,
	}
}

// environment merges the variables: the class's win over the image's. The
// result is sorted.
func environment(s Spec) []string {
	vars := map[string]string{"PATH": defaultPath, "HOME": "/root"}
	for _, kv := range s.Image.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			vars[k] = v
		}
	}
	maps.Copy(vars, s.Class.Env)
	out := make([]string, 0, len(vars))
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, k+"="+vars[k])
	}
	return out
}

func mounts(s Spec) []specs.Mount {
	shm := fmt.Sprintf("size=%d", max(s.Class.Resources.MemoryBytes/2, minShm))
	ms := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", shm}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=755", "size=64m"}},
		// The kernel refuses noswap in a user namespace (mm/shmem.c); the slot's
		// cgroup may not swap instead.
		{Destination: IdentityTarget, Type: "tmpfs", Source: "hearth", Options: []string{"nosuid", "nodev", "noexec", "mode=755", "size=" + identitySize}},
		{Destination: InitTarget, Type: "bind", Source: s.InitPath, Options: []string{"bind", "ro", "nosuid", "nodev"}},
	}
	for _, m := range s.Mounts {
		ms = append(ms, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: []string{"rbind", "rw", "nosuid", "nodev"}})
	}
	return ms
}

// refuse says what of the class this process cannot give.
func (l limits) refuse(r env.Resources) error {
	if r.OpenFiles > 0 && uint64(r.OpenFiles) > l.noFile {
		return &env.UnsupportedError{Feature: fmt.Sprintf("resources.openFiles of %d", r.OpenFiles), Needs: fmt.Sprintf("an agent that may open as many: its own limit is %d (LimitNOFILE= of its unit)", l.noFile)}
	}
	return nil
}

// resources are the limits of the container's own cgroup, so that programs inside
// see them. Those that this format cannot say are set once the container is made.
func resources(r env.Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{
		// runc adds null, zero, full, random, urandom, tty and the terminals.
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	if r.CPUMillis > 0 {
		quota, period := max(r.CPUMillis*cpuPeriod/1000, 1000), uint64(cpuPeriod)
		shares := uint64(max(r.CPUMillis*1024/1000, 2))
		if r.CPUWeight > 0 {
			shares = uint64(max(r.CPUWeight*1024/100, 2))
		}
		out.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares}
		if r.CPUBurstMillis > 0 {
			burst := uint64(min(r.CPUBurstMillis*cpuPeriod/1000, quota))
			out.CPU.Burst = &burst
		}
	}
	if r.MemoryBytes > 0 {
		out.Memory = &specs.LinuxMemory{Limit: &r.MemoryBytes}
	}
	if r.PIDs > 0 {
		out.Pids = &specs.LinuxPids{Limit: &r.PIDs}
	}
	return out
}
