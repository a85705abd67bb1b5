// Command probe stands in for an environment's pid 1 in tests: it writes what
// it sees and what it may do to /probe.json and sleeps.
package main

import (
	"encoding/json"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

type report struct {
	PID      int
	UID      int
	Hostname string
	Env      map[string]string
	Args     []string
	CapEff   string
	Status   string
	Mounts   string
	Links    []string
	Calls    map[string]string // "ok" or the error
	Files    map[string]string // what could be read
}

func main() {
	if os.Getenv("PROBE") == "exit" {
		os.Exit(7)
	}
	r := report{PID: os.Getpid(), UID: os.Getuid(), Args: os.Args, Env: map[string]string{}, Calls: map[string]string{}, Files: map[string]string{}}
	r.Hostname, _ = os.Hostname()
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		r.Env[k] = v
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "CapEff:\t"); ok {
			r.CapEff = strings.TrimSpace(v)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	r.Mounts = string(mounts)
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		r.Links = append(r.Links, i.Name)
	}
	for _, f := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/pids.max", "/proc/self/cgroup", "/proc/kcore"} {
		b, err := os.ReadFile(f)
		if err == nil {
			r.Files[f] = strings.TrimSpace(string(b[:min(len(b), 4096)]))
		}
	}
	calls(r.Calls)
	b, _ := json.MarshalIndent(r, "", " ")
	_ = os.WriteFile("/probe.tmp", b, 0o644)
	_ = os.Rename("/probe.tmp", "/probe.json")
	for {
		time.Sleep(time.Hour)
	}
}

func calls(out map[string]string) {
	say := func(name string, errno syscall.Errno) {
		if errno == 0 {
			out[name] = "ok"
		} else {
			out[name] = errno.Error()
		}
	}
	err := func(name string, err error) {
		if err == nil {
			out[name] = "ok"
		} else {
			out[name] = err.Error()
		}
	}
	for name, f := range map[string][3]uintptr{
		"socket unix": {1, 1, 0}, "socket inet": {2, 1, 0}, "socket inet6": {10, 1, 0}, "socket netlink": {16, 3, 0},
		"socket ping": {2, 2, 1}, "socket raw": {2, 3, 1},
		"socket vsock": {40, 1, 0}, "socket packet": {17, 3, 0}, "socket alg": {38, 5, 0}, "socket xdp": {44, 3, 0},
		"socket rds": {21, 5, 0}, "socket tipc": {30, 1, 0},
	} {
		_, _, e := syscall.RawSyscall(syscall.SYS_SOCKET, f[0], f[1], f[2])
		say(name, e)
	}
	var pair [2]int32
	for name, family := range map[string]uintptr{
		"socketpair unix": 1, "socketpair inet": 2, "socketpair vsock": 40, "socketpair rds": 21, "socketpair tipc": 30,
	} {
		_, _, e := syscall.RawSyscall6(syscall.SYS_SOCKETPAIR, family, 1, 0, uintptr(unsafe.Pointer(&pair)), 0, 0)
		say(name, e)
	}
	params := make([]byte, 256)
	for name, nr := range map[string]uintptr{"io_uring_setup": 425, "bpf": 321, "keyctl": 250, "userfaultfd": 323, "perf_event_open": 298} {
		_, _, e := syscall.RawSyscall(nr, 1, uintptr(unsafe.Pointer(&params[0])), 64)
		say(name, e)
	}
	if f, e := os.Create("/reserved"); e == nil {
		for name, mode := range map[string]uint32{"fallocate": 0, "fallocate keep size": 1, "fallocate zero": 0x10, "fallocate punch": 3} {
			err(name, syscall.Fallocate(int(f.Fd()), mode, 0, 4096))
		}
		_ = f.Close()
	}
	err("unshare user", syscall.Unshare(syscall.CLONE_NEWUSER))
	err("unshare mount", syscall.Unshare(syscall.CLONE_NEWNS))
	err("mount", syscall.Mount("t", "/mnt", "tmpfs", 0, ""))
	err("write file", os.WriteFile("/root-owned", []byte("x"), 0o600))
	err("chown", os.WriteFile("/user-owned", []byte("x"), 0o600))
	err("chown", os.Chown("/user-owned", 1000, 1000))
	err("lower file", os.Chmod("/etc/lower", 0o600))
	err("write init", os.WriteFile(os.Args[0], []byte("x"), 0o755))
	err("write identity", os.WriteFile("/run/hearth/x", []byte("x"), 0o600))
	err("write sysctl", os.WriteFile("/proc/sys/kernel/core_pattern", []byte("|/x"), 0))
	err("mknod", syscall.Mknod("/sda", syscall.S_IFBLK|0o600, 8<<8))
	err("sethostname", syscall.Sethostname([]byte("x")))
}
