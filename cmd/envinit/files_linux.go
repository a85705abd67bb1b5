package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// fileError words what went wrong with a path.
func fileError(op, name string, err error) error {
	code := wire.CodeUnavailable
	switch {
	case errors.Is(err, unix.ENOENT):
		code = wire.CodeNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		code = wire.CodeDenied
	case errors.Is(err, unix.EEXIST):
		code = wire.CodeExists
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENOMEM):
		code = wire.CodeExhausted
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELOOP),
		errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENXIO):
		code = wire.CodeInvalid
	}
	return wire.Errorf(code, "%s %.512q: %v", op, name, err)
}

func infoOf(name string, st *unix.Stat_t) wire.FileInfo {
	return wire.FileInfo{
		Name: []byte(name), Size: max(0, st.Size), Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Modified: st.Mtim.Nano(),
	}
}

func isLink(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFLNK }

func linkTarget(dirfd int, name string) []byte {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func statFile(p *peer, name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return fileError("stat", name, err)
	}
	info := infoOf(path.Base(name), &st)
	if isLink(&st) {
		info.Target = linkTarget(unix.AT_FDCWD, name)
	}
	return p.out.SendJSON(wire.KindReply, wire.StatReply{Version: wire.Version, Info: info})
}

// openRegular opens a regular file, and nothing that would wait or act on
// being opened: a fifo, a device, a terminal.
func openRegular(name string) (int, *unix.Stat_t, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return fd, &st, nil
	case unix.S_IFDIR:
		err = unix.EISDIR
	default:
		err = errNotRegular
	}
	_ = unix.Close(fd)
	return -1, nil, err
}

var errNotRegular = wire.Errorf(wire.CodeInvalid, "not a regular file")

func readFile(p *peer, req *wire.Read) error {
	name := string(req.Path)
	fd, st, err := openRegular(name)
	if errors.Is(err, errNotRegular) {
		return wire.Errorf(wire.CodeInvalid, "read %.512q: not a regular file", name)
	}
	if err != nil {
		return fileError("read", name, err)
	}
	defer unix.Close(fd)
	if req.Offset < 0 || req.Limit < 0 {
		return wire.Errorf(wire.CodeInvalid, "read %.512q: offset and limit must not be negative", name)
	}
	if err := p.out.SendJSON(wire.KindReply, wire.StatReply{Version: wire.Version, Info: infoOf(path.Base(name), st)}); err != nil {
		return nil // the node has gone
	}
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for at, left := req.Offset, req.Limit; ; {
		part := buf[:]
		if req.Limit > 0 {
			part = buf[:min(int64(len(buf)), left)]
		}
		n := 0
		if len(part) > 0 {
			if n, err = unix.Pread(fd, part, at); errors.Is(err, unix.EINTR) {
				continue
			} else if err != nil {
				return fileError("read", name, err)
			}
		}
		if n <= 0 {
			return p.out.SendJSON(wire.KindEnd, wire.End{})
		}
		if p.out.Send(wire.KindData, part[:n]) != nil {
			return nil
		}
		at, left = at+int64(n), left-int64(n)
	}
}

// listBatch is how much JSON goes into one frame, in bytes: an entry has at
// most 8 KiB, so the next one still fits.
const listBatch = 48 << 10

func listDir(p *peer, req *wire.List) error {
	name := string(req.Path)
	dir, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fileError("list", name, err)
	}
	defer dir.Close()
	limit := req.Limit
	if limit <= 0 || limit > wire.MaxEntries {
		limit = wire.MaxEntries
	}
	names, more, err := firstNames(dir, string(req.After), limit)
	if err != nil {
		return fileError("list", name, err)
	}
	if err := sendEntries(p, int(dir.Fd()), names); err != nil {
		return err
	}
	return p.out.SendJSON(wire.KindEnd, wire.End{More: more})
}

// namesReader is os.File's.
type namesReader interface {
	Readdirnames(n int) ([]string, error)
}

// firstNames returns the first names after the given one, sorted, and holds
// no more than twice the limit however large the directory is.
func firstNames(dir namesReader, after string, limit int) (names []string, more bool, err error) {
	for {
		batch, rerr := dir.Readdirnames(1024)
		for _, n := range batch {
			if n > after {
				names = append(names, n)
			}
		}
		if len(names) > limit && (rerr != nil || len(names) >= 2*limit) {
			slices.Sort(names)
			names, more = names[:limit], true
		}
		if errors.Is(rerr, io.EOF) {
			slices.Sort(names)
			return names, more, nil
		}
		if rerr != nil {
			return nil, false, rerr
		}
	}
}

func sendEntries(p *peer, dirfd int, names []string) error {
	var batch []byte
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := p.out.Send(wire.KindEntries, append(batch, ']'))
		batch = batch[:0]
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue // removed meanwhile
		}
		info := infoOf(name, &st)
		if isLink(&st) {
			info.Target = linkTarget(dirfd, name)
		}
		entry, err := json.Marshal(info)
		if err != nil {
			return err
		}
		sep := byte(',')
		if len(batch) == 0 {
			sep = '['
		}
		batch = append(append(batch, sep), entry...)
		if len(batch) > listBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
