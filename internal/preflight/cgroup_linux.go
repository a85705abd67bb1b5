package preflight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMend = "mount cgroup2 at /sys/fs/cgroup (boot with systemd.unified_cgroup_hierarchy=1)"

func fsMagic(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 0
	}
	return st.Type
}

// core finds the cgroup2 mount.
func core(mount string) (path string, hybrid bool, err error) {
	if fsMagic(mount) == unix.CGROUP2_SUPER_MAGIC {
		return mount, false, nil
	}
	if path := filepath.Join(mount, "unified"); fsMagic(path) == unix.CGROUP2_SUPER_MAGIC {
		return path, true, nil
	}
	return "", false, fmt.Errorf("no cgroup2 at %s or below it", mount)
}

func cgroupLayout(mount string) result {
	_, hybrid, err := core(mount)
	switch {
	case err != nil:
		return no(err, cgroupMend)
	case hybrid:
		return result{state: Degraded, tier: "hybrid", detail: "limits by v1 controllers; for development", mend: cgroupMend}
	default:
		return result{state: OK, tier: "unified"}
	}
}

// cgroupTree takes the agent's own word: what it would choose now.
func cgroupTree(ctx context.Context, choose func(context.Context) (string, error)) result {
	where, err := choose(ctx)
	switch {
	case where == "":
		return no(err, cgroupMend)
	case err != nil:
		return result{state: Degraded, detail: where, mend: err.Error()}
	default:
		return yes(where)
	}
}

// withCgroup calls f with a cgroup of the probe's own, and removes it.
func withCgroup(mount string, f func(dir string) error) (err error) {
	path, _, err := core(mount)
	if err != nil {
		return err
	}
	dir := filepath.Join(path, "hearth-preflight-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Rmdir(dir)) }()
	return f(dir)
}

func cgroupFreeze(mount string) result {
	const mend = "boot Linux 5.2 or newer; run as root with the cgroup tree writable"
	return orMissing(withCgroup(mount, func(dir string) error {
		for _, want := range []string{"1", "0"} {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte(want), 0); err != nil {
				return err
			}
			if err := awaitEvent(dir, "frozen "+want); err != nil {
				return err
			}
		}
		return nil
	}), mend)
}

func awaitEvent(dir, line string) error {
	for deadline := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil || strings.Contains(string(b), line+"\n") {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup.events never said %q", line)
		}
	}
}

// cgroupFile writes "1" to a file of an empty cgroup.
func cgroupFile(mount, name, since string) result {
	return orMissing(withCgroup(mount, func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("1")
		return errors.Join(err, f.Close())
	}), "boot "+since+" or newer")
}

func cgroupControllers(mount string) result {
	path, hybrid, err := core(mount)
	if err != nil {
		return no(err, cgroupMend)
	}
	b, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return no(err, cgroupMend)
	}
	have := " " + strings.TrimSpace(string(b)) + " "
	var missing []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		v1 := hybrid && fsMagic(filepath.Join(mount, c)) == unix.CGROUP_SUPER_MAGIC
		if !v1 && !strings.Contains(have, " "+c+" ") {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return no(fmt.Errorf("not available: %s", strings.Join(missing, " ")), "enable them in the kernel (cgroup_enable=memory) and delegate them to the agent's unit")
	}
	return yes("cpu memory pids")
}

func cgroupReclaim(mount string) result {
	path, hybrid, err := core(mount)
	if err != nil {
		return no(err, cgroupMend)
	}
	if hybrid {
		return result{state: Missing, detail: "hybrid layout: ready slots keep their memory", mend: cgroupMend}
	}
	// The root cgroup has the file on some kernels, a child only if its parent
	// hands the controller down. Nothing is changed to find out.
	root, _ := filepath.Glob(filepath.Join(path, "memory.reclaim"))
	children, _ := filepath.Glob(filepath.Join(path, "*", "memory.reclaim"))
	if len(root)+len(children) == 0 {
		return no(errors.New("no cgroup has memory.reclaim"), "boot Linux 5.19 or newer; ready slots keep their memory")
	}
	return yes("")
}

// cgroupDynamic looks whether the cgroup2 mount favours changes, as cgroup-v2.rst of
// the kernel has it: otherwise a process that is moved into a cgroup waits for a grace
// period of RCU, and whoever thaws another cgroup waits for it.
func cgroupDynamic(mount string) result {
	path, _, err := core(mount)
	if err != nil {
		return no(err, cgroupMend)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	switch {
	case err != nil:
		return no(err, "mount proc at /proc")
	case favorsDynamic(string(mounts)):
		return yes("favordynmods")
	default:
		return result{
			state: Degraded, detail: "a claim that meets a container being made waits some 10 ms more",
			mend: "mount -o remount,favordynmods " + path + " (Linux 5.19 or newer, until the next boot)",
		}
	}
}

// favorsDynamic reads mountinfo (proc_pid_mountinfo(5)): a line's last field has the
// options of the file system, which all mounts of cgroup2 share.
func favorsDynamic(mountinfo string) bool {
	for line := range strings.Lines(mountinfo) {
		_, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(after)
		if len(fields) >= 3 && fields[0] == "cgroup2" && slices.Contains(strings.Split(fields[len(fields)-1], ","), "favordynmods") {
			return true
		}
	}
	return false
}
