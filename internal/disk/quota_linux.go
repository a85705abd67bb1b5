package disk

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// Quotas bound what the files of one slot take, where the filesystem counts by
// project (ext4 and xfs with the mount option prjquota; Documentation/filesystems,
// quotactl_fd(2)). The kernel refuses what goes beyond with ENOSPC or EDQUOT at the
// write itself; nobody inside can leave the project, since its number is changed
// from the initial user namespace only (fs/ioctl.c, fileattr_set_prepare).
//
// A project is one slot's, by the number of its id range. The numbers lie above
// those that the kubelet gives to volumes (from 1,048,577 on).
type Quotas struct{}

// firstProject is above what anybody else counts up to.
const firstProject = 1 << 30

// ProjectOf is the project of the slot with the id range.
func ProjectOf(ids env.IDRange) uint32 { return firstProject + ids.Base/env.IDRangeSize }

// Set bounds what lies below the directories, which are empty and on any
// filesystems; of those on one the sum counts. One that does not count by project is
// an env.UnsupportedError, and then nothing is bounded.
func (Quotas) Set(project uint32, bytes int64, dirs ...string) error {
	for _, dir := range dirs {
		if err := inDir(dir, func(fd int) error { return limitProject(fd, project, bytes) }); err != nil {
			return fmt.Errorf("bound what %s takes: %w", dir, err)
		}
	}
	for _, dir := range dirs {
		if err := inDir(dir, func(fd int) error { return joinProject(fd, project) }); err != nil {
			return fmt.Errorf("bound what %s takes: %w", dir, err)
		}
	}
	return nil
}

// Clear takes the limits of a project away, on the filesystems of the directories.
// Those that do not count, and directories that are gone, have none.
func (Quotas) Clear(project uint32, dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		err := inDir(dir, func(fd int) error { return limitProject(fd, project, 0) })
		if err != nil && !errors.Is(err, env.ErrUnsupported) && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unbound what %s takes: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// Used is how many bytes the files of a project take on the directory's filesystem,
// and how many they may; 0 is no limit.
func (Quotas) Used(project uint32, dir string) (used, limit int64, err error) {
	err = inDir(dir, func(fd int) error {
		q, err := getQuota(fd, project)
		used, limit = int64(q.Space), int64(q.BlockHard)*quotaBlock
		return err
	})
	return used, limit, err
}

func inDir(dir string, f func(fd int) error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Close(fd))
}

// fsxattr is struct fsxattr (include/uapi/linux/fs.h).
type fsxattr struct {
	Flags, ExtentSize, Extents, Project, CopyExtentSize uint32
	_                                                   [8]byte
}

const (
	fsGetXattr     = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr     = 0x401c5820 // FS_IOC_FSSETXATTR
	projectInherit = 0x00000200 // FS_XFLAG_PROJINHERIT
)

// joinProject makes a directory and all that is made below it part of the project.
func joinProject(fd int, project uint32) error {
	var x fsxattr
	if err := ioctl(fd, fsGetXattr, &x); err != nil {
		return noQuota(err)
	}
	x.Project, x.Flags = project, x.Flags|projectInherit
	if err := ioctl(fd, fsSetXattr, &x); err != nil {
		return noQuota(err)
	}
	return nil
}

func ioctl(fd int, op uintptr, x *fsxattr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(unsafe.Pointer(x))); errno != 0 {
		return errno
	}
	return nil
}

// quota is struct if_dqblk (include/uapi/linux/quota.h).
type quota struct {
	BlockHard, BlockSoft, Space, FilesHard, FilesSoft, Files, BlockTime, FileTime uint64
	Valid                                                                         uint32
	_                                                                             uint32
}

const (
	getQuotaCmd  = 0x800007<<8 | 2 // QCMD(Q_GETQUOTA, PRJQUOTA)
	setQuotaCmd  = 0x800008<<8 | 2 // QCMD(Q_SETQUOTA, PRJQUOTA)
	blocksValid  = 1               // QIF_BLIMITS
	quotaBlock   = 1024            // QIF_DQBLKSIZE
	maxQuotaSize = 1 << 60         // bytes; above that kernels overflow
)

func limitProject(fd int, project uint32, bytes int64) error {
	blocks := (uint64(min(max(bytes, 0), maxQuotaSize)) + quotaBlock - 1) / quotaBlock
	q := quota{BlockHard: blocks, BlockSoft: blocks, Valid: blocksValid}
	return quotactl(fd, setQuotaCmd, project, &q)
}

func getQuota(fd int, project uint32) (q quota, err error) {
	err = quotactl(fd, getQuotaCmd, project, &q)
	return q, err
}

func quotactl(fd int, cmd uintptr, project uint32, q *quota) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), cmd, uintptr(project), uintptr(unsafe.Pointer(q)), 0, 0)
	if errno != 0 {
		return noQuota(errno)
	}
	return nil
}

// noQuota tells a filesystem that does not count by project from one that fails.
func noQuota(err error) error {
	for _, lacks := range []error{unix.ESRCH, unix.ENOSYS, unix.ENOTTY, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOTBLK, unix.ENODEV} {
		if errors.Is(err, lacks) {
			return fmt.Errorf("%w (%w)", &env.UnsupportedError{Feature: "resources.disk", Needs: "environments' files on ext4 or xfs with project quotas (mount option prjquota)"}, err)
		}
	}
	return err
}
