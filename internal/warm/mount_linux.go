package warm

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// below resolves what others may have written: over no link, and never out.
const below = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openMount opens the directory that a mount names. What lies below the root may
// have been written by environments: no link is followed there.
func openMount(root MountRoot, tenant string, m env.Mount) (*os.File, error) {
	dir, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	at := "."
	if root.PerTenant {
		at = tenant
		if err := unix.Mkdirat(int(dir.Fd()), tenant, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make directory of tenant %s: %w", tenant, err)
		}
	}
	at = path.Join(at, m.Directory)
	fd, err := unix.Openat2(int(dir.Fd()), at, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: below})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%w: directory %.80q in it", env.ErrNotFound, m.Directory)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return nil, fmt.Errorf("%w: %.80q in it is no directory, or lies behind a link", env.ErrInvalid, m.Directory)
	case err != nil:
		return nil, fmt.Errorf("open directory %.80q in it: %w", m.Directory, err)
	}
	return os.NewFile(uintptr(fd), at), nil
}

// openRoot opens a directory for mounts. One that environments write to must be
// closed to the node's other users, or on a filesystem without setuid programs:
// root inside leaves files of uid 0 there.
func openRoot(root MountRoot) (*os.File, error) {
	fd, err := unix.Open(root.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: directory for mounts %s: %w", env.ErrUnavailable, root.Path, err)
	}
	dir := os.NewFile(uintptr(fd), root.Path)
	if !root.Writable {
		return dir, nil
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
		dir.Close()
		return nil, fmt.Errorf("look at directory for mounts %s: %w", root.Path, err)
	}
	if st.Mode&0o077 != 0 && fs.Flags&unix.ST_NOSUID == 0 {
		dir.Close()
		return nil, fmt.Errorf("%w: environments may write to %s, whose other users could run what one leaves there as root: chmod 700 it, or mount its filesystem with nosuid",
			env.ErrUnavailable, root.Path)
	}
	return dir, nil
}

// Mount mounts directories of the node into the slot, in their order. Their ids there
// are the slot's, and none of their programs gains rights by setuid. The slot should
// be frozen.
func (p *process) Mount(binds []Bind) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.identity == nil {
		return fmt.Errorf("%w: identity of init %d is not open", env.ErrState, p.pid)
	}
	user, err := unix.IoctlRetInt(int(p.identity.uts.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return fmt.Errorf("open user namespace of init %d: %w", p.pid, err)
	}
	v := &visit{init: p.fd, user: user, ids: p.identity.ids}
	defer v.close()
	return onThread(func() error { return v.mount(binds, p.identity.home) })
}

// visit is how a thread mounts into a slot.
type visit struct {
	init  int // its pidfd, which stands for its namespaces
	user  int // its user namespace
	ids   env.IDRange
	trees []int
}

func (v *visit) close() {
	for _, fd := range append(v.trees, v.user) {
		unix.Close(fd)
	}
}

func (v *visit) mount(binds []Bind, back *home) error {
	for _, b := range binds {
		if err := v.clone(b); err != nil {
			return fmt.Errorf("mount %s on %s: %w", b.Name, b.Path, err)
		}
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // root and working directory, with other threads
		return fmt.Errorf("leave the process's root: %w", err)
	}
	if err := unix.Setns(v.init, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	err := v.attachAll(binds)
	if lost := back.comeHome(); lost != nil {
		return errors.Join(err, lost, errAbroad)
	}
	return err
}

func (v *visit) attachAll(binds []Bind) error {
	for i, b := range binds {
		if err := v.attach(v.trees[i], b.Path); err != nil {
			return fmt.Errorf("mount %s on %s: %w", b.Name, b.Path, err)
		}
	}
	return nil
}

// clone makes a tree that is mounted nowhere yet.
func (v *visit) clone(b Bind) error {
	tree, err := unix.OpenTree(int(b.Dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("clone its mount: %w", err)
	}
	v.trees = append(v.trees, tree)
	attr := unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Userns_fd: uint64(v.user),
	}
	if b.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: its filesystem cannot show its files under other ids, or does so already: %w", env.ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("map its ids: %w", err)
	}
	return nil
}

// attach moves a tree to its place, and makes that if nothing is there.
func (v *visit) attach(tree int, at string) error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	defer unix.Close(root)
	place, err := openInside(root, at)
	if errors.Is(err, unix.ENOENT) {
		place, err = v.makePlace(root, at)
	}
	if err != nil {
		return fmt.Errorf("%w: no directory can be there: %w", env.ErrInvalid, err)
	}
	defer unix.Close(place)
	if err := unix.MoveMount(tree, "", place, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move it there: %w", err)
	}
	return nil
}

// openInside opens a directory of the slot. Its links lead where they lead for
// the slot's own processes.
func openInside(root int, at string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	return unix.Openat2(root, at, &how)
}

// makePlace makes a directory and those above it that are missing, which belong
// to the slot's root.
func (v *visit) makePlace(root int, at string) (place int, err error) {
	err = asRootOf(v.ids, func() error {
		place, err = makeDirs(root, strings.Split(strings.TrimPrefix(at, "/"), "/"))
		return err
	})
	return place, err
}

// makeDirs opens the directory of the names below root, each one made that is not
// there.
func makeDirs(root int, names []string) (int, error) {
	place := root
	for i := range names {
		at := path.Join(names[:i+1]...)
		next, err := openInside(root, at)
		if errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(place, names[i], 0o755); err == nil {
				next, err = openInside(root, at)
			}
		}
		if place != root {
			unix.Close(place)
		}
		if err != nil {
			return -1, fmt.Errorf("make directory %s: %w", at, err)
		}
		place = next
	}
	return place, nil
}
