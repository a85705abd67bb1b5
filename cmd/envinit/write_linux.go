package main

import (
	"encoding/hex"
	"fmt"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

const defaultMode = 0o644

// writeTimeout bounds the wait for the next part of a file's content.
const writeTimeout = 2 * time.Minute

// replacement is a file that is being written beside the one it replaces. The
// directory is held open, so that a directory swapped meanwhile cannot part
// the temporary file from the rename.
type replacement struct {
	name  string // as asked
	base  string
	dirfd int
	temp  string
	fd    int
	size  int64
}

func writeFile(p *peer, req *wire.Write) error {
	r, err := newReplacement(string(req.Path), req)
	if err != nil {
		return err
	}
	defer r.close()
	if err := p.out.SendJSON(wire.KindReply, wire.WriteReply{Version: wire.Version}); err != nil {
		return nil // the node has gone
	}
	if err := r.receive(p); err != nil {
		p.fail(err)
		p.discard()
		return nil
	}
	if err := r.commit(req); err != nil {
		return fileError("write", r.name, err)
	}
	return p.out.SendJSON(wire.KindReply, wire.WriteReply{Version: wire.Version, Size: r.size})
}

func newReplacement(name string, req *wire.Write) (*replacement, error) {
	base := path.Base(name)
	dir := path.Dir(name)
	if name == "" || name[0] != '/' || name[len(name)-1] == '/' || base == "." || base == ".." {
		return nil, wire.Errorf(wire.CodeInvalid, "write %.512q: not the absolute path of a file", name)
	}
	if req.Parents {
		if err := makeParents(dir, int(req.UID), int(req.GID)); err != nil {
			return nil, fileError("make directory", dir, err)
		}
	}
	dirfd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fileError("open directory", dir, err)
	}
	r := &replacement{name: name, base: base, dirfd: dirfd, fd: -1}
	if err := r.makeTemp(); err != nil {
		r.close()
		return nil, fileError("make temporary file beside", name, err)
	}
	return r, nil
}

// makeParents makes what is missing of a directory, owned like the file.
func makeParents(dir string, uid, gid int) error {
	var st unix.Stat_t
	if dir == "/" || unix.Stat(dir, &st) == nil {
		return nil
	}
	if err := makeParents(path.Dir(dir), uid, gid); err != nil {
		return err
	}
	err := unix.Mkdir(dir, 0o755)
	if err == unix.EEXIST {
		return nil // made meanwhile; if it is no directory, opening it will say so
	}
	if err != nil || uid == 0 && gid == 0 {
		return err
	}
	return unix.Lchown(dir, uid, gid)
}

func (r *replacement) makeTemp() error {
	for range 8 {
		var random [8]byte
		if _, err := unix.Getrandom(random[:], 0); err != nil {
			return err
		}
		temp := ".hearth-" + hex.EncodeToString(random[:])
		fd, err := unix.Openat(r.dirfd, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err == nil {
			r.temp, r.fd = temp, fd
			return nil
		}
		if err != unix.EEXIST {
			return err
		}
	}
	return unix.EEXIST
}

// receive writes content until its end.
func (r *replacement) receive(p *peer) error {
	for {
		_ = p.conn.SetReadDeadline(time.Now().Add(writeTimeout))
		f, err := p.in.Next()
		if err != nil {
			return wire.Errorf(wire.CodeInvalid, "write %.512q: content was cut short: %v", r.name, err)
		}
		switch f.Kind {
		case wire.KindEnd:
			return nil
		case wire.KindData:
			if err := r.write(f.Payload); err != nil {
				return fileError("write", r.name, err)
			}
		default:
			return wire.Errorf(wire.CodeInvalid, "write %.512q: frame of kind %d among content", r.name, f.Kind)
		}
	}
}

func (r *replacement) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(r.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("nothing was written")
		}
		r.size += int64(n)
		b = b[n:]
	}
	return nil
}

// commit gives the file its owner, then its mode (chown clears set-id bits),
// then its name.
func (r *replacement) commit(req *wire.Write) error {
	mode := req.Mode & 0o7777
	if req.Mode == 0 {
		mode = defaultMode
	}
	if err := unix.Fchown(r.fd, int(req.UID), int(req.GID)); err != nil {
		return err
	}
	if err := unix.Fchmod(r.fd, mode); err != nil {
		return err
	}
	if err := unix.Renameat(r.dirfd, r.temp, r.dirfd, r.base); err != nil {
		return err
	}
	r.temp = ""
	return nil
}

// close removes what was not committed.
func (r *replacement) close() {
	if r.temp != "" {
		_ = unix.Unlinkat(r.dirfd, r.temp, 0)
	}
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
	}
	_ = unix.Close(r.dirfd)
}

// discard reads on after a failure, for a while, so that the node gets to the
// error instead of a broken pipe.
func (p *peer) discard() {
	halfClose(p.conn)
	_ = p.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		if _, err := p.in.Next(); err != nil {
			return
		}
	}
}
