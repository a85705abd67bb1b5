package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

func rmdir(path string) error {
	if err := syscall.Rmdir(path); err != nil {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}

// Enter moves the calling process into a cgroup, as the anchor sees it, and
// becomes argv. It is how everything of a cluster starts.
func Enter(anchor int, cgroup string, argv []string) error {
	if len(argv) == 0 {
		return errors.New("enter: no command")
	}
	if err := (machine{anchor}).join(cgroup); err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// HoldNode makes the calling process the keeper of a node's namespaces, which
// unshare(1) has just made, and returns when they are furnished. It moves into
// the leaf of its cgroup only now, so that the node's cgroup namespace begins
// at the node's own cgroup.
func HoldNode(dir, name string) error {
	o, err := loadOptions(dir)
	if err != nil {
		return err
	}
	n, err := o.node(name)
	if err != nil {
		return err
	}
	hierarchies, err := (machine{}).hierarchies()
	if err != nil {
		return err
	}
	if err := n.mountKernelFiles(hierarchies); err != nil {
		return err
	}
	if err := (machine{}).join("/init"); err != nil {
		return err
	}
	if err := n.mountDisk(); err != nil {
		return err
	}
	if err := n.mountPrivate(); err != nil {
		return err
	}
	// Shared inside only: unshare has cut the tree off from the machine's.
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(n.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

// mountKernelFiles mounts the kernel's file systems anew: a sysfs that shows
// the node's links, its cgroups as the roots of their hierarchies, a bpffs and
// a tracefs.
func (n Node) mountKernelFiles(hierarchies []hierarchy) error {
	// Out with the machine's view, in this mount namespace only: programs look
	// for a hierarchy's first mount, hidden or not.
	if err := syscall.Unmount("/sys", syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	if err := mount("sysfs", "/sys", "sysfs", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return err
	}
	if len(hierarchies) > 1 {
		if err := mount("tmpfs", "/sys/fs/cgroup", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range hierarchies {
		if err := os.MkdirAll(h.mount, 0o755); err != nil {
			return err
		}
		if err := mount(h.kind, h.mount, h.kind, syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, h.options); err != nil {
			return err
		}
	}
	for kind, target := range map[string]string{"bpf": "/sys/fs/bpf", "tracefs": "/sys/kernel/tracing", "securityfs": "/sys/kernel/security"} {
		if err := mount(kind, target, kind, 0, ""); err != nil {
			return err
		}
	}
	return nil
}

// mountPrivate gives the node its own directories where programs expect them.
func (n Node) mountPrivate() error {
	if err := mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/containerd", "/run/netns", "/run/lock", "/run/hearth"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, target := range private {
		source := n.path("root" + target)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := mount(source, target, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, name := range []string{"resolv.conf", "hosts"} {
		// A link into /run has lost its end.
		target, err := filepath.EvalSymlinks("/etc/" + name)
		if err != nil {
			continue
		}
		if err := mount(n.path(name), target, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := syscall.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s %s (%s): %w", kind, target, options, err)
	}
	return nil
}

// nsenter is the beginning of a command in the namespaces of a process.
func nsenter(pid int, wd string, namespaces ...string) []string {
	argv := append([]string{"nsenter", "--target", strconv.Itoa(pid)}, namespaces...)
	return append(argv, "--wdns="+wd, "--")
}
