package warm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// identity is the door to a slot's name and identity files, opened while only
// the runtime's own init lives in the slot, so that nothing inside can have
// moved what the descriptors point to.
type identity struct {
	dir  *os.File // the tmpfs on /run/hearth
	uts  *os.File // the UTS namespace
	home *home
	ids  env.IDRange
}

// openIdentity opens a created, not yet started container by its init's pid.
func openIdentity(pid int, ids env.IDRange) (*identity, error) {
	home, err := homeOf()
	if err != nil {
		return nil, err
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root of init %d: %w", pid, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, "run/hearth", &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open /run/hearth of init %d: %w", pid, err)
	}
	dir := os.NewFile(uintptr(fd), "/run/hearth")
	uts, err := os.Open(fmt.Sprintf("/proc/%d/ns/uts", pid))
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("open uts namespace of init %d: %w", pid, err)
	}
	return &identity{dir: dir, uts: uts, home: home, ids: ids}, nil
}

func (i *identity) close() {
	i.dir.Close()
	i.uts.Close()
}

// write replaces the identity files and sets the host's name. The tmpfs
// belongs to the slot's user namespace, where the host's root has no id, so
// the thread writes with the file-system ids of the slot's root.
func (i *identity) write(files []IdentityFile, hostname string) error {
	return onThread(func() error {
		if err := setHostname(i.uts, i.home.uts, hostname); err != nil {
			return err
		}
		return asRootOf(i.ids, func() error {
			for _, f := range files {
				if err := i.replace(f); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// replace writes a new file and renames it over the old one. Whatever lies
// there, link or directory, is never followed.
func (i *identity) replace(f IdentityFile) error {
	tmp := ".hearth-" + f.Name
	how := unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Mode:    f.Mode,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	dir := int(i.dir.Fd())
	fd, err := unix.Openat2(dir, tmp, &how)
	if err != nil {
		return fmt.Errorf("create identity file %s: %w", f.Name, err)
	}
	defer unix.Close(fd)
	if err := writeAll(fd, f.Data); err != nil {
		return fmt.Errorf("write identity file %s: %w", f.Name, err)
	}
	if err := unix.Renameat(dir, tmp, dir, f.Name); err != nil {
		return fmt.Errorf("rename identity file %s: %w", f.Name, err)
	}
	return nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// asRootOf runs f with the file-system ids of a slot's root, on a thread that is
// locked.
func asRootOf(ids env.IDRange, f func() error) error {
	if err := setFSIDs(int(ids.Base)); err != nil {
		return errors.Join(err, errAbroad)
	}
	err := f()
	if back := setFSIDs(0); back != nil {
		return errors.Join(err, back, errAbroad)
	}
	return err
}

// setFSIDs sets the calling thread's file-system user and group, and checks
// it: the system calls report no error.
func setFSIDs(id int) error {
	for _, set := range []func(int) (int, error){unix.SetfsgidRetGid, unix.SetfsuidRetUid} {
		if _, err := set(id); err != nil {
			return fmt.Errorf("set file-system id %d: %w", id, err)
		}
		if now, err := set(-1); err != nil || now != id {
			return fmt.Errorf("set file-system id %d: kernel says %d (%v)", id, now, err)
		}
	}
	return nil
}

// setHostname enters the slot's UTS namespace, names it, and comes back.
func setHostname(uts, home *os.File, hostname string) error {
	if err := unix.Setns(int(uts.Fd()), unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("enter uts namespace: %w", err)
	}
	name := unix.Sethostname([]byte(hostname))
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("leave uts namespace: %w: %w", errAbroad, err)
	}
	if name != nil {
		return fmt.Errorf("set hostname %q: %w", hostname, name)
	}
	return nil
}
