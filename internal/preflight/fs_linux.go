package preflight

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// existing is path or its nearest parent that exists; "" is the temporary
// directory.
func existing(path string) string {
	if path == "" {
		return os.TempDir()
	}
	for {
		if _, err := os.Stat(path); err == nil || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}

// withDir calls f with a directory of the probe's own on path's file system.
func withDir(path string, f func(dir string) error) error {
	dir, err := os.MkdirTemp(existing(path), ".preflight-")
	if err != nil {
		return err
	}
	return errors.Join(f(dir), os.RemoveAll(dir))
}

// layers makes the directories of an overlay below dir.
func layers(dir string) error {
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "lower", "file"), []byte("x"), 0o644)
}

func mountOverlay(dir, lower, extra string) error {
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work%s", lower, dir, dir, extra)
	if err := unix.Mount("overlay", filepath.Join(dir, "merged"), "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// haveOverlay mounts one with our options and copies a file up in it.
func haveOverlay(state string) result {
	return orMissing(withDir(state, func(dir string) error {
		return inNamespace(unix.CLONE_NEWNS, func() error {
			if err := layers(dir); err != nil {
				return err
			}
			if err := mountOverlay(dir, filepath.Join(dir, "lower"), ",redirect_dir=nofollow,metacopy=off"); err != nil {
				return err
			}
			err := os.WriteFile(filepath.Join(dir, "merged", "file"), []byte("y"), 0o644)
			return errors.Join(err, unix.Unmount(filepath.Join(dir, "merged"), 0))
		})
	}), "load the module overlay; put the state directory on ext4, xfs or btrfs; run as root")
}

// haveIDMappedOverlay shifts a lower layer into a user namespace, mounts the
// overlay on it and looks at the owner.
func haveIDMappedOverlay(state string) result {
	const base = 1 << 30
	err := withDir(state, func(dir string) error {
		return withUserNS(base, func(ns *os.File) error {
			return inNamespace(unix.CLONE_NEWNS, func() error { return idmapped(dir, ns, base) })
		})
	})
	return orMissing(err, "boot Linux 5.19 or newer; put the state directory on a file system with idmapped mounts (ext4, xfs, btrfs); run as root")
}

func idmapped(dir string, ns *os.File, base uint32) error {
	if err := layers(dir); err != nil {
		return err
	}
	lower := filepath.Join(dir, "lower")
	tree, err := unix.OpenTree(unix.AT_FDCWD, lower, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd()),
	}); err != nil {
		return fmt.Errorf("idmap the layer: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, lower, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	defer func() { _ = unix.Unmount(lower, unix.MNT_DETACH) }()
	if err := mountOverlay(dir, lower, ""); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(filepath.Join(dir, "merged"), unix.MNT_DETACH) }()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "merged", "file"), &st); err != nil {
		return err
	}
	if st.Uid != base {
		return fmt.Errorf("root's file shows uid %d, not %d", st.Uid, base)
	}
	return nil
}

func haveNoSwap() result {
	return orDegraded(withDir("", func(dir string) error {
		return inNamespace(unix.CLONE_NEWNS, func() error {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,noswap"); err != nil {
				return fmt.Errorf("mount tmpfs with noswap: %w", err)
			}
			return unix.Unmount(dir, 0)
		})
	}), "boot Linux 6.3 or newer, or turn swap off")
}

var magicNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs",
}

// minFree is what the state directory should have at the least.
const minFree = 1 << 30

func stateDirectory(state string) result {
	dir := existing(state)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return no(err, "make the directory")
	}
	name, known := magicNames[st.Type]
	if !known {
		name = fmt.Sprintf("type %#x", st.Type)
	}
	free := st.Bavail * uint64(st.Bsize)
	detail := fmt.Sprintf("%s on %s, %.1f GiB free", name, dir, float64(free)/(1<<30))
	res := result{state: OK, tier: name, detail: detail}
	switch {
	case st.Type == unix.OVERLAYFS_SUPER_MAGIC || st.Type == unix.NFS_SUPER_MAGIC:
		res.state, res.mend = Missing, "put it on a local disk: an overlay's upper layer cannot be on "+name
	case st.Type == unix.TMPFS_MAGIC:
		res.state, res.mend = Degraded, "put it on a disk: nothing there survives a reboot"
	case free < minFree:
		res.state, res.mend = Degraded, "free at least 1 GiB"
	}
	return res
}

// runDirectory should be emptied by a reboot, as what it names is.
func runDirectory(run string) result {
	dir := existing(run)
	if fsMagic(dir) == unix.TMPFS_MAGIC {
		return yes("tmpfs on " + dir)
	}
	return orDegraded(fmt.Errorf("%s is not on a tmpfs", dir), "put it below /run: stale sockets and pid files stay after a reboot")
}

func haveReflink(state string) result {
	return orDegraded(withDir(state, func(dir string) error {
		src, err := os.Create(filepath.Join(dir, "a"))
		if err != nil {
			return err
		}
		defer func() { _ = src.Close() }()
		if _, err := src.Write(make([]byte, 4096)); err != nil {
			return err
		}
		dst, err := os.Create(filepath.Join(dir, "b"))
		if err != nil {
			return err
		}
		defer func() { _ = dst.Close() }()
		if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
			return fmt.Errorf("clone a file: %w", err)
		}
		return nil
	}), "put the state directory on xfs or btrfs: big files are copied while an environment is frozen")
}

// haveProjectQuota looks at the mount's options: trying would need a quota of
// the file system's own to be changed.
func haveProjectQuota(state string) result {
	const mend = "mount the file system with prjquota to limit disk use by the kernel"
	dir, best, opts := existing(state), "", ""
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return orDegraded(err, mend)
	}
	for line := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if !ok || len(f) < 5 {
			continue
		}
		at := f[4]
		if (dir == at || at == "/" || strings.HasPrefix(dir, at+"/")) && len(at) >= len(best) {
			best, opts = at, right
		}
	}
	if !strings.Contains(opts, "prjquota") && !strings.Contains(opts, "pquota") {
		return orDegraded(fmt.Errorf("%s is mounted without project quota", best), mend)
	}
	return yes(best)
}
