package snapshot

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// walker lists trees with a few threads. It hands each name that is not known
// to be unchanged to visit.
type walker struct {
	ctx    context.Context
	limits *Limits
	// visit reads what the node stands for. dirfd is its directory. keep is
	// false if the name is gone.
	visit func(ctx context.Context, w *worker, dirfd int, path string, n *node) (keep bool, err error)
	jobs  chan walkJob // unbuffered: a directory goes to an idle worker or is walked in place
	wg    sync.WaitGroup

	entries, nameBytes, bytes, sockets, mounts atomic.Int64

	mu  sync.Mutex // guards err
	err error
}

type walkJob struct {
	fd      int
	path    string
	n, prev *node
	exclude map[string]bool
	depth   int
}

// openedRoot is a root directory that a capture holds open.
type openedRoot struct {
	name    string
	fd      int
	dev     uint64
	exclude map[string]bool
}

// walkRoots walks all roots. prev has, for each, what an earlier walk found;
// its nodes may be nil.
func walkRoots(ctx context.Context, limits *Limits, roots []openedRoot, prev []*node, workers []*worker,
	visit func(ctx context.Context, w *worker, dirfd int, path string, n *node) (bool, error),
) (found []*node, counts *walker, err error) {
	w := &walker{ctx: ctx, limits: limits, visit: visit, jobs: make(chan walkJob)}
	var helpers sync.WaitGroup
	for _, wk := range workers[1:] {
		helpers.Go(func() {
			for j := range w.jobs {
				w.run(wk, j)
				w.wg.Done()
			}
		})
	}
	for i, r := range roots {
		n := &node{}
		w.run(workers[0], walkJob{fd: r.fd, path: r.name, n: n, prev: prev[i], exclude: r.exclude, depth: 0})
		found = append(found, n)
	}
	w.wg.Wait()
	close(w.jobs)
	helpers.Wait()
	return found, w, w.fault()
}

// run walks one directory and what it keeps of those below. A panic becomes an
// error: the environment may be frozen, and its thaw is the caller's.
func (w *walker) run(wk *worker, j walkJob) {
	defer func() {
		if r := recover(); r != nil {
			w.fail(fmt.Errorf("walk %q: panic: %v\n%s", j.path, r, debug.Stack()))
		}
	}()
	if j.depth > 0 {
		defer unix.Close(j.fd)
	} else if err := w.root(wk, j); err != nil {
		w.fail(err)
		return
	}
	if err := w.dir(wk, j); err != nil {
		w.fail(err)
	}
}

func (w *walker) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

func (w *walker) fault() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// root looks at the root directory itself.
func (w *walker) root(wk *worker, j walkJob) error {
	st, err := statFD(j.fd)
	if err != nil {
		return fmt.Errorf("stat %q: %w", j.path, err)
	}
	j.n.st = st.fileStat
	w.entries.Add(1)
	_, err = w.compare(wk, j.fd, j.path, j.n, j.prev)
	return err
}

// compare takes over what is known of a name that did not change, or visits it.
func (w *walker) compare(wk *worker, dirfd int, path string, n, prev *node) (keep bool, err error) {
	if prev != nil {
		n.base = prev.base
		if prev.trusted && prev.st == n.st {
			n.e, n.trusted = prev.e, true
			return true, nil
		}
	}
	keep, err = w.visit(w.ctx, wk, dirfd, path, n)
	if err == nil && n.e != nil {
		held := len(n.e.target)
		for _, x := range n.e.xattrs {
			held += len(x.name) + len(x.value)
		}
		err = w.hold(path, held)
	}
	return keep, err
}

// hold counts what is kept in memory of a name beside the entry itself, which is as
// long as somebody inside chose.
func (w *walker) hold(path string, bytes int) error {
	if w.nameBytes.Add(int64(bytes)) > w.limits.NameBytes {
		return fmt.Errorf("walk %q: %w: more than %d bytes of names, links and attributes", path, env.ErrExhausted, w.limits.NameBytes)
	}
	return nil
}

func (w *walker) dir(wk *worker, j walkJob) error {
	if j.depth > w.limits.Depth {
		return fmt.Errorf("walk %.512q: %w: more than %d directories below each other", j.path, env.ErrExhausted, w.limits.Depth)
	}
	if _, err := unix.Seek(j.fd, 0, unix.SEEK_SET); err != nil { // a root is listed more than once
		return fmt.Errorf("walk %q: %w", j.path, err)
	}
	names, err := listNames(j.fd, wk.dirBuf, w.limits.Entries, w.limits.NameBytes)
	if err != nil {
		return fmt.Errorf("walk %q: %w", j.path, err)
	}
	from := 0
	for _, name := range names {
		if err := errors.Join(w.ctx.Err(), w.fault()); err != nil {
			return err
		}
		var prev *node
		if j.prev != nil {
			prev, from = child(j.prev.kids, from, name)
		}
		if err := w.name(wk, j, name, prev); err != nil {
			return err
		}
	}
	return nil
}

// name looks at one name and, if it is a directory, below it.
func (w *walker) name(wk *worker, j walkJob, name string, prev *node) error {
	path := j.path + "/" + name
	if len(j.exclude) > 0 && j.exclude[path[strings.IndexByte(path, '/')+1:]] {
		return nil
	}
	st, err := statAt(j.fd, name)
	if vanished(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stat %q: %w", path, err)
	}
	if st.kind == 0 {
		w.sockets.Add(1)
		return nil
	}
	if st.mount {
		w.mounts.Add(1)
		if st.kind != kindDir {
			return nil
		}
	}
	if err := errors.Join(w.count(path, st), w.hold(path, len(name))); err != nil {
		return err
	}
	n := &node{name: name, st: st.fileStat}
	keep, err := w.compare(wk, j.fd, path, n, prev)
	if err != nil || !keep {
		return err
	}
	if n.st.kind == kindDir && !st.mount {
		keep, err = w.below(wk, j, path, n, prev)
		if err != nil || !keep {
			return err
		}
	}
	j.n.kids = append(j.n.kids, n)
	return nil
}

// below walks a directory, by another worker if one waits.
func (w *walker) below(wk *worker, j walkJob, path string, n, prev *node) (keep bool, err error) {
	fd, err := openDirBeneath(j.fd, n.name)
	if vanished(err) {
		return false, nil
	}
	if errors.Is(err, unix.EXDEV) { // mounted after we looked
		w.mounts.Add(1)
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %q: %w", path, err)
	}
	if prev != nil && prev.st.kind != kindDir {
		prev = nil
	}
	job := walkJob{fd: fd, path: path, n: n, prev: prev, exclude: j.exclude, depth: j.depth + 1}
	w.wg.Add(1)
	select {
	case w.jobs <- job:
		return true, nil
	default:
	}
	w.wg.Done()
	w.run(wk, job)
	return true, nil
}

func (w *walker) count(path string, st statResult) error {
	if n := w.entries.Add(1); n > w.limits.Entries {
		return fmt.Errorf("walk %q: %w: more than %d names", path, env.ErrExhausted, w.limits.Entries)
	}
	if st.kind != kindFile {
		return nil
	}
	if st.size > uint64(w.limits.FileBytes) {
		return fmt.Errorf("%q: %w: %d bytes long, the limit is %d", path, env.ErrExhausted, st.size, w.limits.FileBytes)
	}
	if n := w.bytes.Add(int64(min(st.size, st.blocks*512))); n > w.limits.Bytes {
		return fmt.Errorf("walk %q: %w: more than %d bytes of data", path, env.ErrExhausted, w.limits.Bytes)
	}
	return nil
}
