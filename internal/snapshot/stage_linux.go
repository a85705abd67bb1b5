package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// stage holds what is read while the environment is frozen until it is cut and
// stored after the thaw.
type stage struct {
	dir    string
	budget int64 // of memory, in bytes

	mu     sync.Mutex // guards all below
	memory int64
	fd     int // staging file, -1 until it is needed; fixed then
	end    int64
	clones bool // the file systems share extents
}

type staged struct {
	n       *node
	data    []byte // or
	off     int64  // in the staging file
	inFile  bool
	size    int64
	regions []region
}

const (
	stageSmall = 256 << 10 // a longer file goes to the staging file
	stageAlign = 64 << 10  // a multiple of every block size
)

func (s *staged) reader(stageFD int) io.ReaderAt {
	if s.inFile {
		return offsetReader{fdReader(stageFD), s.off}
	}
	return memReader(s.data)
}

type offsetReader struct {
	r   io.ReaderAt
	off int64
}

func (o offsetReader) ReadAt(p []byte, off int64) (int, error) { return o.r.ReadAt(p, o.off+off) }

type memReader []byte

func (m memReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// newStage is empty; dir is on the store's file system.
func newStage(dir string, memory int64) *stage {
	return &stage{dir: dir, budget: memory, fd: -1, clones: true}
}

func (s *stage) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
}

// add takes over a file's content. A small one is read into memory, a longer
// one cloned, which costs its extents, or where the file systems cannot, copied.
func (s *stage) add(ctx context.Context, n *node, fd int, st statResult) (*staged, error) {
	regions, err := dataRegions(fd, st)
	if err != nil {
		return nil, err
	}
	it := &staged{n: n, size: int64(st.size), regions: regions}
	if it.size <= stageSmall && s.reserve(it.size) {
		it.data = make([]byte, it.size)
		m, err := fdReader(fd).ReadAt(it.data, 0)
		if err != nil && err != io.EOF {
			return nil, err
		}
		it.data = it.data[:m]
		return it, nil
	}
	it.inFile = true
	if err := s.place(it); err != nil {
		return nil, err
	}
	return it, s.fill(ctx, it, fd)
}

// reserve is true if the data may be held in memory.
func (s *stage) reserve(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memory+n > s.budget {
		return false
	}
	s.memory += n
	return true
}

// place gives the item its part of the staging file, which has no name.
func (s *stage) place(it *staged) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		path := filepath.Join(s.dir, ".tmp-stage")
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return fmt.Errorf("create staging file: %w", err)
		}
		s.fd = fd
		if err := unix.Unlink(path); err != nil {
			return fmt.Errorf("unlink staging file: %w", err)
		}
	}
	it.off = s.end
	s.end += (it.size + stageAlign - 1) / stageAlign * stageAlign
	return nil
}

func (s *stage) fill(ctx context.Context, it *staged, fd int) error {
	s.mu.Lock()
	clones := s.clones
	s.mu.Unlock()
	if clones && it.size > 0 {
		err := unix.IoctlFileCloneRange(s.fd, &unix.FileCloneRange{Src_fd: int64(fd), Dest_offset: uint64(it.off)})
		if err == nil {
			return nil
		}
		s.mu.Lock()
		s.clones = false
		s.mu.Unlock()
	}
	for _, r := range it.regions {
		if err := copyRange(ctx, s.fd, it.off+r.off, fd, r.off, r.length); err != nil {
			return fmt.Errorf("copy to staging file: %w", err)
		}
	}
	return nil
}

// copyStep is how much is copied before ctx is looked at: the environment may
// be frozen meanwhile.
const copyStep = 8 << 20

// copyRange copies inside the kernel. A source that ends early leaves zeros.
func copyRange(ctx context.Context, dst int, dstOff int64, src int, srcOff, length int64) error {
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		var n int
		err := retry(func() (err error) {
			n, err = unix.CopyFileRange(src, &srcOff, dst, &dstOff, int(min(length, copyStep)), 0)
			return err
		})
		switch {
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return copyBytes(ctx, dst, dstOff, src, srcOff, length)
		case err != nil:
			return full(err)
		case n == 0:
			return nil
		}
		length -= int64(n)
	}
	return nil
}

func copyBytes(ctx context.Context, dst int, dstOff int64, src int, srcOff, length int64) error {
	buf := make([]byte, 1<<20)
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := fdReader(src).ReadAt(buf[:min(length, int64(len(buf)))], srcOff)
		if err != nil && err != io.EOF {
			return err
		}
		if werr := writeAt(dst, buf[:n], dstOff); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		srcOff, dstOff, length = srcOff+int64(n), dstOff+int64(n), length-int64(n)
	}
	return nil
}

func writeAt(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Pwrite(fd, p, off)
			return err
		})
		if err != nil {
			return full(err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
