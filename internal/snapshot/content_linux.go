package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// worker holds what one thread of a capture needs.
type worker struct {
	c        *capture
	hash     *hasher
	dirBuf   []byte
	xattrBuf []byte
	splitBuf []byte
	zbuf     []byte
}

func newWorker(c *capture) *worker {
	return &worker{
		c: c, hash: c.lin.keys.newHasher(),
		dirBuf: make([]byte, 64<<10), xattrBuf: make([]byte, 64<<10), splitBuf: make([]byte, 4*chunkMax),
	}
}

// put stores a record, if nobody has it yet.
func (w *worker) put(kind recordKind, data []byte) (chunkID, error) {
	if err := w.c.ctx.Err(); err != nil {
		return chunkID{}, err
	}
	id := w.hash.id(kind, data)
	if !w.c.packs.claim(id) {
		return id, nil
	}
	payload, codec := w.c.s.comp.shrink(data, w.zbuf)
	if codec == codecZstd {
		w.zbuf = payload
	}
	return id, w.c.packs.put(location{id: id, raw: uint32(len(data)), kind: kind, codec: codec}, payload)
}

// fdReader reads a descriptor that others may be reading too.
type fdReader int

func (f fdReader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		var m int
		err := retry(func() (err error) {
			m, err = unix.Pread(int(f), p[n:], off+int64(n))
			return err
		})
		if err != nil {
			return n, fmt.Errorf("read: %w", err)
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// storeContent cuts and stores a file's data, and sets the entry's size and
// pieces. The file may be shorter than the regions say: its size is then what
// was there.
func (w *worker) storeContent(e *entry, r io.ReaderAt, size int64, regions []region) error {
	e.size, e.segments, e.lists = 0, nil, nil
	var segs []segment
	add := func(s segment) {
		if s.length > 0 {
			segs = append(segs, s)
			e.size += s.length
		}
	}
	cut, err := w.chooseCutter(r, size, regions)
	if err != nil {
		return err
	}
	for _, reg := range regions {
		add(segment{length: uint64(reg.off) - e.size})
		n, err := split(r, reg.off, reg.length, cut, w.splitBuf, func(chunk []byte) error {
			id, err := w.put(kindData, chunk)
			add(segment{length: uint64(len(chunk)), id: id})
			return err
		})
		if err != nil {
			return err
		}
		if n < reg.length {
			return w.setSegments(e, segs)
		}
	}
	add(segment{length: uint64(size) - e.size})
	return w.setSegments(e, segs)
}

func (w *worker) chooseCutter(r io.ReaderAt, size int64, regions []region) (cutter, error) {
	var head [len(sqliteMagic)]byte
	if size > wholeFile && len(regions) > 0 && regions[0].off == 0 {
		if _, err := r.ReadAt(head[:], 0); err != nil && err != io.EOF {
			return nil, err
		}
	}
	return w.c.lin.keys.gear.cutterFor(size, head[:]), nil
}

// setSegments puts the pieces into the entry, or into lists if they are many.
func (w *worker) setSegments(e *entry, segs []segment) error {
	if len(segs) <= inlineMax {
		e.segments = segs
		return nil
	}
	for len(segs) > 0 {
		n := min(len(segs), listSegments)
		id, err := w.put(kindList, encodeList(segs[:n]))
		if err != nil {
			return err
		}
		e.lists = append(e.lists, id)
		segs = segs[n:]
	}
	return nil
}

// errChanging is what reading a file that never holds still ends with.
var errChanging = errors.New("it changes while it is read")

const readTries = 3

// readFile opens a regular file, has use read it, and repeats that if the file
// changed meanwhile. Its times are read before it is written back, and that
// before it is read: if they are the same later, so is the content, even if it
// is stored to through a mapping. gone is true if the name is not a regular
// file any more. errChanging leaves n with what was read last.
func (w *worker) readFile(ctx context.Context, dirfd int, n *node, use func(fd int, st statResult) error) (gone bool, err error) {
	for range readTries {
		before := time.Now()
		fd, st, changed, err := openRegular(ctx, dirfd, n.name)
		if changed {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("open: %w", err)
		}
		same, err := w.readOnce(ctx, fd, st, use)
		unix.Close(fd)
		if err != nil {
			return false, err
		}
		w.c.reads.Add(1)
		n.st = st.fileStat
		if same {
			n.trusted = w.c.trustTimes && st.ctime.settled(before)
			return false, nil
		}
		w.c.redone.Add(1)
	}
	n.trusted = false
	return false, errChanging
}

func (w *worker) readOnce(ctx context.Context, fd int, st statResult, use func(fd int, st statResult) error) (same bool, err error) {
	if st.size > uint64(w.c.s.limits.FileBytes) {
		return false, fmt.Errorf("%w: %d bytes long, the limit is %d", env.ErrExhausted, st.size, w.c.s.limits.FileBytes)
	}
	if err := flush(ctx, fd, int64(st.size)); err != nil {
		return false, err
	}
	if err := use(fd, st); err != nil {
		return false, err
	}
	after, err := statFD(fd)
	if err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	return after.fileStat == st.fileStat, nil
}

// readMeta makes the entry of a node without its content: ids as the
// environment sees them, attributes, a link's target.
func (w *worker) readMeta(dirfd int, n *node, from xattrTarget) (e *entry, err error) {
	ids := idMap(w.c.src.IDs)
	e = &entry{
		name: n.name, kind: n.st.kind, mode: n.st.mode, sec: n.st.mtime.sec, nsec: n.st.mtime.nsec,
		major: n.st.major, minor: n.st.minor,
	}
	var uok, gok bool
	e.uid, uok = ids.in(n.st.uid)
	e.gid, gok = ids.in(n.st.gid)
	for _, ok := range []bool{uok, gok} {
		if !ok {
			w.c.foreign.Add(1)
		}
	}
	if n.st.nlink > 1 && n.st.kind != kindDir {
		e.link = n.st.ino
	}
	if n.st.kind == kindSymlink {
		if e.target, err = readLink(dirfd, n.name); err != nil {
			return nil, fmt.Errorf("read link: %w", err)
		}
	}
	kept, dropped, err := from.read(w.xattrBuf)
	if err != nil {
		return nil, err
	}
	w.c.dropped.Add(dropped)
	for i, x := range kept {
		var foreign int64
		if kept[i], foreign, err = ids.xattrIn(x); err != nil {
			return nil, fmt.Errorf("attribute %q: %w", x.name, err)
		}
		w.c.foreign.Add(foreign)
	}
	e.xattrs = kept
	return e, nil
}

// visitOther reads a name that is not a regular file.
func (w *worker) visitOther(dirfd int, n *node) (gone bool, err error) {
	before := time.Now()
	from := xattrsAt(dirfd, n.name)
	if n.name == "" { // a root: dirfd is the directory itself
		from = xattrsOfFD(dirfd)
	}
	n.e, err = w.readMeta(dirfd, n, from)
	if vanished(err) || errors.Is(err, unix.EINVAL) { // EINVAL: no longer a symbolic link
		return true, nil
	}
	if err != nil {
		return false, err
	}
	n.trusted = w.c.trustTimes && n.st.ctime.settled(before)
	return false, nil
}
