package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// The tree belongs to a hostile root that may change it while it is read: it
// is walked by descriptors, one name at a time, and no step may leave the
// directory, follow a link or cross a mount.
const resolveBeneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// retryBusy is retry for opening a name: the kernel says EAGAIN when something
// was renamed meanwhile, and when a process holds a lease on the file, which
// the environment's may do for as long as they are frozen.
func retryBusy(ctx context.Context, f func() error) error {
	for waited := time.Duration(0); ; waited += busyStep {
		err := retry(f)
		if err != unix.EAGAIN {
			return err
		}
		if waited >= busyTime {
			return fmt.Errorf("%w: a process holds a lease on it, or moves it all the time", env.ErrUnavailable)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(busyStep):
		}
	}
}

const (
	busyStep = 5 * time.Millisecond
	busyTime = 500 * time.Millisecond
)

// openBeneath opens one name of a directory.
func openBeneath(dirfd int, name string, flags uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: resolveBeneath}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	err = retryBusy(context.Background(), func() error {
		fd, err = unix.Openat2(dirfd, name, &how)
		return err
	})
	return fd, err
}

func openDirBeneath(dirfd int, name string) (int, error) {
	return openBeneath(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY)
}

// openRootDir opens a directory that the caller names. Its last element must
// not be a link.
func openRootDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open directory %s: %w", path, err)
	}
	return fd, nil
}

// openRegular opens a regular file for reading. It looks before it opens:
// opening a device or a fifo does something. changed is true if the name is
// not a regular file (any more).
func openRegular(ctx context.Context, dirfd int, name string) (fd int, st statResult, changed bool, err error) {
	p, err := openBeneath(dirfd, name, unix.O_PATH)
	if err != nil {
		return -1, st, vanished(err), err
	}
	defer unix.Close(p)
	if st, err = statFD(p); err != nil {
		return -1, st, false, err
	}
	if st.kind != kindFile {
		return -1, st, true, fmt.Errorf("open %q: not a regular file any more", name)
	}
	path := "/proc/self/fd/" + strconv.Itoa(p)
	flags := unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY
	err = retryBusy(ctx, func() error {
		fd, err = unix.Open(path, flags|unix.O_NOATIME, 0)
		if err == unix.EPERM { // not the owner: the time of access will change
			fd, err = unix.Open(path, flags, 0)
		}
		return err
	})
	return fd, st, false, err
}

// vanished is true for the errors of a name that was replaced or removed after
// it was listed.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ESTALE)
}

// statResult is a fileStat and what else statx says.
type statResult struct {
	fileStat
	blocks uint64 // of 512 bytes
	dev    uint64
	mount  bool // the root of a mount
}

func statAt(dirfd int, name string) (statResult, error) {
	return statx(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
}

func statFD(fd int) (statResult, error) { return statx(fd, "", unix.AT_EMPTY_PATH) }

func statx(dirfd int, name string, flags int) (statResult, error) {
	var x unix.Statx_t
	if err := retry(func() error { return unix.Statx(dirfd, name, flags, unix.STATX_BASIC_STATS, &x) }); err != nil {
		return statResult{}, err
	}
	st := fileStat{
		mode: x.Mode & 0o7777, uid: x.Uid, gid: x.Gid, nlink: x.Nlink, ino: x.Ino, size: x.Size,
		ctime: timestamp{x.Ctime.Sec, x.Ctime.Nsec}, mtime: timestamp{x.Mtime.Sec, x.Mtime.Nsec},
	}
	switch x.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		st.kind = kindFile
	case unix.S_IFDIR:
		st.kind = kindDir
	case unix.S_IFLNK:
		st.kind = kindSymlink
	case unix.S_IFCHR:
		st.kind, st.major, st.minor = kindChar, x.Rdev_major, x.Rdev_minor
	case unix.S_IFBLK:
		st.kind, st.major, st.minor = kindBlock, x.Rdev_major, x.Rdev_minor
	case unix.S_IFIFO:
		st.kind = kindFifo
	}
	return statResult{
		fileStat: st, blocks: x.Blocks,
		dev:   unix.Mkdev(x.Dev_major, x.Dev_minor),
		mount: x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
	}, nil
}

// settleTime is how old a ctime must be when it is read, for a later change to
// be sure to move it: two of the longest ticks. Kernels from 6.13 tell finer.
const settleTime = 20 * time.Millisecond

func (t timestamp) settled(now time.Time) bool {
	return time.Unix(t.sec, int64(t.nsec)).Add(settleTime).Before(now)
}

// trustsTimes is true for file systems on which a store through a shared
// mapping moves the ctime when the page was written back before. On others, as
// tmpfs, it never does.
func trustsTimes(fd int) (bool, error) {
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return false, fmt.Errorf("statfs: %w", err)
	}
	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return true, nil
	}
	return false, nil
}

// direntHead is the most that a name takes in a listing beside its bytes (struct
// linux_dirent64, padded).
const direntHead = 32

// listNames returns the names in a directory, sorted. It stops at a limit of names,
// and of their bytes.
func listNames(fd int, buf []byte, limit, bytes int64) ([]string, error) {
	var names []string
	var held int64
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.ReadDirent(fd, buf)
			return err
		})
		if err == unix.ENOENT { // removed after it was opened
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list directory: %w", err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
		if int64(len(names)) > limit {
			return nil, fmt.Errorf("%w: more than %d names", env.ErrExhausted, limit)
		}
		if held += int64(n); held > bytes+limit*direntHead {
			return nil, fmt.Errorf("%w: more than %d bytes of names in one directory", env.ErrExhausted, bytes)
		}
	}
	slices.Sort(names)
	return names, nil
}

func readLink(dirfd int, name string) (string, error) {
	buf := make([]byte, maxTarget+1)
	var n int
	err := retry(func() (err error) {
		n, err = unix.Readlinkat(dirfd, name, buf)
		return err
	})
	if err == nil && n > maxTarget {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// flush writes the file's dirty pages back. Whoever stores into a shared
// mapping afterwards takes a fault first, and that moves the ctime. With all
// three flags it waits for every page (Linux 5.2, fs/sync.c).
func flush(ctx context.Context, fd int, size int64) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	const step = 64 << 20 // what is written back before ctx is looked at
	for off := int64(0); ; off += step {
		n := int64(step)
		if off+n >= size {
			n = 0 // to the end, wherever that is
		}
		if err := retry(func() error { return unix.SyncFileRange(fd, off, n, all) }); err != nil {
			return fmt.Errorf("write back: %w", err)
		}
		if n == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// region is a run of a file that has data.
type region struct{ off, length int64 }

const maxRegions = 1 << 16

// dataRegions finds the data between the holes. A file with a hostile number
// of them is taken as full from there on.
func dataRegions(fd int, st statResult) ([]region, error) {
	size := int64(st.size)
	if size == 0 {
		return nil, nil
	}
	if st.blocks*512 >= st.size {
		return []region{{0, size}}, nil
	}
	var all []region
	for off := int64(0); off < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // a hole to the end
		}
		if err != nil {
			return nil, fmt.Errorf("find data: %w", err)
		}
		if data >= size {
			break
		}
		hole := size
		if len(all) < maxRegions {
			if hole, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
				return nil, fmt.Errorf("find hole: %w", err)
			}
		}
		hole = min(hole, size)
		all = append(all, region{data, hole - data})
		off = hole
	}
	return all, nil
}

// xattrTarget is where attributes are read from or written to: a descriptor,
// or a path whose last element is not followed.
type xattrTarget struct {
	fd   int
	path string
}

func xattrsOfFD(fd int) xattrTarget { return xattrTarget{fd: fd} }

func xattrsAt(dirfd int, name string) xattrTarget {
	return xattrTarget{fd: -1, path: "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name}
}

func (x xattrTarget) list(buf []byte) (int, error) {
	if x.fd >= 0 {
		return unix.Flistxattr(x.fd, buf)
	}
	return unix.Llistxattr(x.path, buf)
}

func (x xattrTarget) get(name string, buf []byte) (int, error) {
	if x.fd >= 0 {
		return unix.Fgetxattr(x.fd, name, buf)
	}
	return unix.Lgetxattr(x.path, name, buf)
}

func (x xattrTarget) set(name, value string) error {
	if x.fd >= 0 {
		return unix.Fsetxattr(x.fd, name, []byte(value), 0)
	}
	return unix.Lsetxattr(x.path, name, []byte(value), 0)
}

// read returns the attributes that are kept and how many others there are.
// buf has at least 64 KiB, the kernel's bound of a list and of a value.
func (x xattrTarget) read(buf []byte) (kept []xattr, dropped int64, err error) {
	n, err := x.list(buf)
	if err == unix.EOPNOTSUPP || n == 0 && err == nil {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("list attributes: %w", err)
	}
	total := 0
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		keep, err := keepXattr(name)
		if err != nil {
			return nil, 0, err
		}
		if !keep {
			dropped++
			continue
		}
		n, err := x.get(name, buf)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("read attribute %q: %w", name, err)
		}
		if total += len(name) + n; total > maxXattrs {
			return nil, 0, fmt.Errorf("%w: attributes of more than %d bytes", env.ErrExhausted, maxXattrs)
		}
		kept = append(kept, xattr{name, string(buf[:n])})
	}
	sortXattrs(kept)
	return kept, dropped, nil
}

// full makes a full file system recognisable.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%w: no room on the file system: %w", env.ErrExhausted, err)
	}
	return err
}
