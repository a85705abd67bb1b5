package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// Restore makes a snapshot's trees again. targets maps each root's name to an
// existing, empty directory that nothing else uses: in particular not the upper
// directory of a mounted overlay, which is refused where it can be seen. A root
// whose target is "" is left out. ids is the range of the environment that will own
// the files.
//
// Every record is checked before it is used; damage is env.ErrCorrupt and names
// pack, record and file. After an error the caller removes the targets. Nothing
// is fsync'd: what a crash of the node destroys is restored again.
func (s *Store) Restore(ctx context.Context, id ID, targets map[string]string, ids env.IDRange) (RestoreStats, error) {
	start := time.Now()
	r := &restorer{s: s, ids: idMap(ids), jobs: make(chan *restoreDir)}
	var info Info
	err := s.withSnapshot(id, func(_ *lineageDir, ref *refRecord, x *index) error {
		info = ref.Info
		return r.run(ctx, ref, x, targets)
	})
	if err != nil {
		return RestoreStats{}, fmt.Errorf("restore %s: %w", id, err)
	}
	return RestoreStats{Info: info, Files: r.files.Load(), Bytes: r.bytes.Load(), Took: time.Since(start)}, nil
}

// restorer is one run of Restore.
type restorer struct {
	s    *Store
	ctx  context.Context
	ids  idMap
	jobs chan *restoreDir // unbuffered: a directory goes to an idle worker or is made in place
	wg   sync.WaitGroup

	files, bytes atomic.Int64

	links links

	mu  sync.Mutex // guards err
	err error
}

// restoreDir is a directory that is being filled. Its times and mode are set
// when all below it are.
type restoreDir struct {
	parent *restoreDir // nil for a root
	root   int         // index of the root
	rootFD int
	path   string // with the root's name
	fd     int
	e      *entry
	open   atomic.Int64 // itself and its unfinished subdirectories
}

func (r *restorer) run(ctx context.Context, ref *refRecord, x *index, targets map[string]string) error {
	r.ctx, r.links.first = ctx, map[linkKey]linkFile{}
	if err := checkTargets(ref.Info.Roots, targets); err != nil {
		return err
	}
	var helpers sync.WaitGroup
	for range r.s.limits.Workers - 1 {
		rd := x.newReader(r.s.comp)
		helpers.Go(func() {
			for d := range r.jobs {
				r.fill(rd, d)
				r.wg.Done()
			}
		})
	}
	rd := x.newReader(r.s.comp)
	var roots []*restoreDir
	for i, name := range ref.Info.Roots {
		if targets[name] == "" {
			continue
		}
		d, err := r.openRoot(i, name, targets[name], ref.RootEntries[i])
		if err != nil {
			r.fail(err)
			break
		}
		defer unix.Close(d.rootFD)
		roots = append(roots, d)
		r.fill(rd, d)
	}
	r.wg.Wait()
	close(r.jobs)
	helpers.Wait()
	r.finish(roots)
	return r.fault()
}

func checkTargets(roots []string, targets map[string]string) error {
	for _, name := range roots {
		if _, named := targets[name]; !named {
			return fmt.Errorf("%w: no target for root %s", env.ErrInvalid, name)
		}
	}
	if len(targets) != len(roots) {
		return fmt.Errorf("%w: %d targets for the roots %s", env.ErrInvalid, len(targets), strings.Join(roots, ", "))
	}
	for name, path := range targets {
		if path == "" {
			continue
		}
		if err := checkUnmounted(path); err != nil {
			return fmt.Errorf("target of root %s: %w", name, err)
		}
	}
	return nil
}

// checkUnmounted refuses the upper directory of an overlay that this mount
// namespace sees: what is written there would be listed and not found.
func checkUnmounted(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	if real, err = filepath.Abs(real); err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if bytes.Contains(mounts, []byte("upperdir="+real+",")) {
		return fmt.Errorf("%w: %s is the upper directory of a mounted overlay; unmount it first", env.ErrState, path)
	}
	return nil
}

func (r *restorer) openRoot(i int, name, path string, encoded []byte) (*restoreDir, error) {
	e, err := decodeRootEntry(encoded)
	if err != nil {
		return nil, err
	}
	fd, err := openRootDir(path)
	if err != nil {
		return nil, err
	}
	names, err := listNames(fd, make([]byte, 64<<10), 1<<20, 1<<30)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%w: target %s is not empty: it has %.64q", env.ErrState, path, names[0])
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	_ = unix.Fremovexattr(fd, xattrACLDefault) // would be inherited; mostly there is none
	d := &restoreDir{root: i, rootFD: fd, path: name, fd: fd, e: e}
	d.open.Store(1)
	return d, nil
}

func (r *restorer) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

func (r *restorer) fault() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// fill makes what is in a directory, the directories below it included, here
// or by another worker.
func (r *restorer) fill(rd *reader, d *restoreDir) {
	defer r.leave(d)
	defer func() {
		if p := recover(); p != nil {
			r.fail(fmt.Errorf("%q: panic: %v\n%s", d.path, p, debug.Stack()))
		}
	}()
	entries, err := rd.entries(d.e.pages)
	if err != nil {
		r.fail(fmt.Errorf("%q: %w", d.path, err))
		return
	}
	r.files.Add(1)
	for _, e := range entries {
		if err := errors.Join(r.ctx.Err(), r.fault()); err != nil {
			r.fail(err)
			return
		}
		if err := r.entry(rd, d, e); err != nil {
			r.fail(fmt.Errorf("%q: %w", d.path+"/"+e.name, err))
			return
		}
	}
}

// leave is called once for a directory and once for each below it. The last
// call finishes it.
func (r *restorer) leave(d *restoreDir) {
	for d != nil && d.open.Add(-1) == 0 {
		if d.parent == nil {
			return // a root: finish does it
		}
		if r.fault() == nil {
			if err := r.attributes(xattrsOfFD(d.fd), d.fd, d.e); err != nil {
				r.fail(fmt.Errorf("%q: %w", d.path, err))
			}
		}
		unix.Close(d.fd)
		d = d.parent
	}
}

// finish makes the hard links that were left over and finishes the roots.
func (r *restorer) finish(roots []*restoreDir) {
	if r.fault() == nil {
		r.linkAll()
	}
	for _, d := range roots {
		if r.fault() != nil {
			return
		}
		if err := r.attributes(xattrsOfFD(d.fd), d.fd, d.e); err != nil {
			r.fail(fmt.Errorf("%q: %w", d.path, err))
		}
	}
}

func (r *restorer) entry(rd *reader, d *restoreDir, e *entry) error {
	if e.kind == kindDir {
		return r.directory(rd, d, e)
	}
	r.files.Add(1)
	if e.link != 0 && r.links.later(d, e) {
		return nil
	}
	switch e.kind {
	case kindFile:
		return r.file(rd, d, e)
	case kindSymlink:
		if err := unix.Symlinkat(e.target, d.fd, e.name); err != nil {
			return fmt.Errorf("make link: %w", full(err))
		}
	default:
		mode, dev := uint32(unix.S_IFIFO), 0
		if e.kind != kindFifo {
			dev = int(unix.Mkdev(e.major, e.minor))
			mode = unix.S_IFCHR
			if e.kind == kindBlock {
				mode = unix.S_IFBLK
			}
		}
		if err := unix.Mknodat(d.fd, e.name, mode|0o600, dev); err != nil {
			return fmt.Errorf("make node: %w", full(err))
		}
	}
	return r.attributes(xattrsAt(d.fd, e.name), d.fd, e)
}

func (r *restorer) directory(rd *reader, d *restoreDir, e *entry) error {
	if err := unix.Mkdirat(d.fd, e.name, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", full(err))
	}
	fd, err := openDirBeneath(d.fd, e.name)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	sub := &restoreDir{parent: d, root: d.root, rootFD: d.rootFD, path: d.path + "/" + e.name, fd: fd, e: e}
	sub.open.Store(1)
	d.open.Add(1)
	r.wg.Add(1)
	select {
	case r.jobs <- sub:
		return nil
	default:
	}
	r.wg.Done()
	r.fill(rd, sub)
	return nil
}

func (r *restorer) file(rd *reader, d *restoreDir, e *entry) error {
	fd, err := openBeneath(d.fd, e.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return fmt.Errorf("create: %w", full(err))
	}
	defer unix.Close(fd)
	end := uint64(0)
	err = rd.segments(e, func(off uint64, s segment) error {
		if s.hole() {
			return nil
		}
		data, err := rd.read(s.id, kindData)
		if err != nil {
			return err
		}
		if uint64(len(data)) != s.length {
			return pieceLength(s.id, uint64(len(data)), s.length)
		}
		end = off + s.length
		r.bytes.Add(int64(len(data)))
		return errors.Join(r.ctx.Err(), writeAt(fd, data, int64(off)))
	})
	if err != nil {
		return err
	}
	if end < e.size { // ends in a hole
		if err := unix.Ftruncate(fd, int64(e.size)); err != nil {
			return fmt.Errorf("set size: %w", full(err))
		}
	}
	return r.attributes(xattrsOfFD(fd), fd, e)
}

// attributes sets owner, attributes, mode and time, in this order: a change of
// owner clears setuid and capabilities, and writing moves times. fd is the
// file itself for files and directories, else its directory.
func (r *restorer) attributes(to xattrTarget, fd int, e *entry) error {
	uid, err := r.ids.out(e.uid)
	if err != nil {
		return err
	}
	gid, err := r.ids.out(e.gid)
	if err != nil {
		return err
	}
	self := e.kind == kindFile || e.kind == kindDir
	if self {
		err = unix.Fchown(fd, int(uid), int(gid))
	} else {
		err = unix.Fchownat(fd, e.name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("set owner %d:%d: %w", uid, gid, err)
	}
	for _, x := range e.xattrs {
		value, err := r.ids.xattrOut(x)
		if err == nil {
			err = to.set(x.name, value)
		}
		if err != nil {
			return fmt.Errorf("set attribute %q: %w", x.name, full(err))
		}
	}
	switch {
	case self:
		err = unix.Fchmod(fd, uint32(e.mode))
	case e.kind != kindSymlink: // a link has no mode
		err = unix.Fchmodat(fd, e.name, uint32(e.mode), 0)
	}
	if err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return setTime(fd, e, self)
}

func setTime(fd int, e *entry, self bool) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: e.sec, Nsec: int64(e.nsec)}}
	path, flags := "", unix.AT_EMPTY_PATH
	if !self {
		path, flags = e.name, unix.AT_SYMLINK_NOFOLLOW
	}
	if err := unix.UtimesNanoAt(fd, path, times, flags); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}
