package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hearth/internal/env"
)

func (c *capture) runningPass(ctx context.Context, prev []*node) ([]*node, error) {
	c.read.Store(0)
	roots, counts, err := walkRoots(ctx, &c.s.limits, c.roots, prev, c.workers, c.visitRunning)
	c.count(counts)
	return roots, err
}

func (c *capture) count(w *walker) {
	c.info.Sockets, c.info.Mounts = w.sockets.Load(), w.mounts.Load()
}

// visitRunning reads and stores one name at once.
func (c *capture) visitRunning(ctx context.Context, w *worker, dirfd int, path string, n *node) (keep bool, err error) {
	if n.st.kind != kindFile {
		gone, err := w.visitOther(dirfd, n)
		if err != nil {
			return false, fmt.Errorf("read %q: %w", path, err)
		}
		return !gone, nil
	}
	gone, err := w.readFile(ctx, dirfd, n, func(fd int, st statResult) error {
		n.st = st.fileStat
		regions, err := dataRegions(fd, st)
		if err != nil {
			return err
		}
		if n.e, err = w.readMeta(dirfd, n, xattrsOfFD(fd)); err != nil {
			return err
		}
		c.read.Add(int64(st.size))
		return w.storeContent(n.e, fdReader(fd), int64(st.size), regions)
	})
	if err != nil && !errors.Is(err, errChanging) { // a later round, or the freeze, reads it again
		return false, fmt.Errorf("read %q: %w", path, err)
	}
	return !gone, nil
}

var errFreezeTooLong = fmt.Errorf("%w: the environment changes faster than it can be copied in the time it may be frozen; snapshot it when it is quieter, or raise the limit", env.ErrUnavailable)

const thawTimeout = 30 * time.Second

// frozenPass freezes, walks everything again, takes over what changed, and
// thaws, whatever happens in between.
func (c *capture) frozenPass(ctx context.Context, freezer freezer, prev []*node) (roots []*node, err error) {
	fctx, cancel := context.WithTimeout(ctx, c.s.limits.Freeze)
	defer cancel()
	start := time.Now()
	defer func() {
		tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
		defer cancel()
		if terr := freezer.Thaw(tctx); terr != nil {
			err = errors.Join(err, fmt.Errorf("thaw: %w", terr))
		}
		c.frozen = max(c.frozen, time.Since(start))
	}()
	if err := freezer.Freeze(fctx); err != nil {
		return nil, fmt.Errorf("freeze: %w", err)
	}
	c.info.Time = time.Now()
	roots, counts, err := walkRoots(fctx, &c.s.limits, c.roots, prev, c.workers, c.visitFrozen)
	c.count(counts)
	if err != nil && ctx.Err() == nil && fctx.Err() != nil {
		return nil, errFreezeTooLong
	}
	return roots, err
}

// visitFrozen takes over one name without cutting or storing anything.
func (c *capture) visitFrozen(ctx context.Context, w *worker, dirfd int, path string, n *node) (keep bool, err error) {
	if n.st.kind != kindFile {
		gone, err := w.visitOther(dirfd, n)
		if err == nil && gone {
			err = errChanging
		}
		if err != nil {
			return false, fmt.Errorf("read %q in the freeze: %w", path, err)
		}
		return true, nil
	}
	var it *staged
	gone, err := w.readFile(ctx, dirfd, n, func(fd int, st statResult) (err error) {
		n.st = st.fileStat
		if n.e, err = w.readMeta(dirfd, n, xattrsOfFD(fd)); err != nil {
			return err
		}
		it, err = c.stage.add(ctx, n, fd, st)
		return err
	})
	if err == nil && gone {
		err = errChanging
	}
	if errors.Is(err, errChanging) {
		err = fmt.Errorf("%w: %w, though the environment is frozen: something outside of it writes there", env.ErrUnavailable, err)
	}
	if err != nil {
		return false, fmt.Errorf("read %q in the freeze: %w", path, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.items = append(c.items, it)
	return true, nil
}

// drop forgets what a freeze that failed has staged.
func (c *capture) drop() {
	c.stage.close()
	c.stage = newStage(c.lin.dir.Path(), c.s.limits.StageMemory)
	c.items = nil
}
