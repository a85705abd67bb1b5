package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// capture is one run of Capture.
type capture struct {
	ctx        context.Context // ends the cutting of a long file
	s          *Store
	src        *Source
	*addition  // nil until it is open
	workers    []*worker
	roots      []openedRoot
	trustTimes bool

	info   Info
	frozen time.Duration
	stage  *stage
	mu     sync.Mutex // guards items
	items  []*staged

	result     *refRecord // what publish makes a reference of
	cacheRoots []*node    // nil if the cache is still right

	reads, redone, foreign, dropped atomic.Int64
	read                            atomic.Int64 // bytes, of one pass
}

// Capture records what the roots hold and returns when that is on stable
// storage. With a freezer the snapshot is one moment of the environment, the
// one in which it was frozen; without, each file is read until it held still,
// and different files may be of different moments.
//
// What is already in the store costs a statx and no read, if nothing that the
// kernel would have told has happened to it. An error leaves the lineage as it
// was, and the environment thawed.
func (s *Store) Capture(ctx context.Context, src Source, freezer freezer) (Info, error) {
	start := time.Now()
	if err := errors.Join(s.writable(), src.check(), ctx.Err()); err != nil {
		return Info{}, err
	}
	unlock, err := s.locks.lock(ctx, src.Lineage)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	c := &capture{ctx: ctx, s: s, src: &src}
	defer c.close()
	err = c.open()
	if err == nil {
		err = c.run(ctx, freezer)
	}
	var info Info
	if err == nil {
		c.info.Took = time.Since(start)
		info, err = c.publish()
	}
	if err != nil {
		if c.addition != nil {
			c.discard()
		}
		return Info{}, fmt.Errorf("capture %s: %w", src.Lineage, err)
	}
	info.Took = time.Since(start)
	return info, nil
}

func (src *Source) check() error {
	if err := errors.Join(src.Lineage.check(), checkTenant(src.Tenant)); err != nil {
		return err
	}
	if len(src.Roots) == 0 {
		return fmt.Errorf("%w: capture of %s names no root", env.ErrInvalid, src.Lineage)
	}
	for i, r := range src.Roots {
		if Lineage(r.Name).check() != nil || slices.ContainsFunc(src.Roots[:i], func(o Root) bool { return o.Name == r.Name }) {
			return fmt.Errorf("%w: root name %.64q", env.ErrInvalid, r.Name)
		}
		for _, x := range r.Exclude {
			if x != filepath.Clean(x) || x == "." || filepath.IsAbs(x) || strings.HasPrefix(x, "..") {
				return fmt.Errorf("%w: excluded path %.128q of root %s: give it clean and relative to the root", env.ErrInvalid, x, r.Name)
			}
		}
	}
	if err := checkLabels(src.Labels); err != nil {
		return err
	}
	if uint64(src.IDs.Base)+uint64(src.IDs.Size) > 1<<32-1 {
		return fmt.Errorf("%w: id range %d+%d", env.ErrInvalid, src.IDs.Base, src.IDs.Size)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	const most, longest = 16, 256
	if len(labels) > most {
		return fmt.Errorf("%w: %d labels, at most %d", env.ErrInvalid, len(labels), most)
	}
	for k, v := range labels {
		if k == "" || len(k) > longest || len(v) > longest {
			return fmt.Errorf("%w: label %.64q: key and value have at most %d bytes", env.ErrInvalid, k, longest)
		}
	}
	return nil
}

// open reads the lineage and opens the roots.
func (c *capture) open() (err error) {
	if err := c.openRoots(); err != nil {
		return err
	}
	if c.addition, err = c.s.openAddition(c.src.Lineage, newOwner(c.src.Tenant)); err != nil {
		return err
	}
	if c.head != nil && c.head.Info.Seq == maxSeq {
		return fmt.Errorf("%w: %s is the last number of its lineage; fork it", env.ErrExhausted, c.head.Info.ID)
	}
	c.stage = newStage(c.lin.dir.Path(), c.s.limits.StageMemory)
	for range c.s.limits.Workers {
		c.workers = append(c.workers, newWorker(c))
	}
	return nil
}

func (c *capture) openRoots() error {
	c.trustTimes = true
	for _, r := range c.src.Roots {
		fd, err := openRootDir(r.Path)
		if err != nil {
			return fmt.Errorf("root %s: %w", r.Name, err)
		}
		root := openedRoot{name: r.Name, fd: fd, exclude: map[string]bool{}}
		c.roots = append(c.roots, root)
		for _, x := range r.Exclude {
			root.exclude[x] = true
		}
		st, err := statFD(fd)
		if err != nil {
			return fmt.Errorf("root %s: stat: %w", r.Name, err)
		}
		c.roots[len(c.roots)-1].dev = st.dev
		trusted, err := trustsTimes(fd)
		if err != nil {
			return fmt.Errorf("root %s: %w", r.Name, err)
		}
		c.trustTimes = c.trustTimes && trusted
	}
	return nil
}

func (c *capture) close() {
	if c.stage != nil {
		c.stage.close()
	}
	for _, r := range c.roots {
		unix.Close(r.fd)
	}
	if c.addition != nil {
		c.addition.close()
	}
}

// loadCache returns the walk behind the newest snapshot, or nothing.
func (c *capture) loadCache() []*node {
	none := make([]*node, len(c.roots))
	if c.head == nil || !c.trustTimes {
		return none
	}
	b, err := c.lin.dir.ReadFile(cacheName, maxCache)
	if err != nil {
		return none
	}
	roots, err := decodeCache(b, c.cacheKey(c.head.RootEntries), len(c.roots), c.s.limits.Depth)
	if err != nil {
		c.s.log.Debug("reading everything", "lineage", c.src.Lineage, "reason", err)
		return none
	}
	for _, r := range roots {
		r.setBase()
	}
	return roots
}

func (n *node) setBase() {
	n.base = n
	for _, k := range n.kids {
		k.setBase()
	}
}

func (c *capture) cacheKey(rootEntries [][]byte) [32]byte {
	devs := make([]uint64, len(c.roots))
	for i, r := range c.roots {
		devs[i] = r.dev
	}
	return cacheKey(c.src, devs, rootEntries)
}

// Rounds of copying while the environment runs, before it is frozen: another
// if the one before read much, so that the freeze finds little to do.
const (
	maxRounds   = 3
	roundBytes  = 8 << 20
	freezeTries = 3
)

func (c *capture) run(ctx context.Context, freezer freezer) error {
	c.info.Time = time.Now()
	prev := c.loadCache()
	if prev[0] == nil {
		if err := c.syncAll(); err != nil {
			return err
		}
	}
	if freezer == nil {
		roots, err := c.runningPass(ctx, prev)
		if err != nil {
			return err
		}
		return c.finish(roots)
	}
	for try := 1; ; try++ {
		var err error
		if prev, err = c.runningRounds(ctx, prev); err != nil {
			return err
		}
		roots, err := c.frozenPass(ctx, freezer, prev)
		if err == nil {
			return c.finish(roots)
		}
		if !errors.Is(err, errFreezeTooLong) || try == freezeTries {
			return err
		}
		c.redone.Add(1)
		c.drop()
	}
}

// runningRounds copies while the environment runs. Where times say nothing,
// what it finds could not be used: the freeze has to read everything.
func (c *capture) runningRounds(ctx context.Context, prev []*node) ([]*node, error) {
	if !c.trustTimes {
		return prev, nil
	}
	for range maxRounds {
		roots, err := c.runningPass(ctx, prev)
		if err != nil {
			return nil, err
		}
		prev = roots
		if c.read.Load() < roundBytes {
			break
		}
	}
	return prev, nil
}

// syncAll is for a capture that will read everything: one flush of the file
// system is much cheaper than one for each file.
func (c *capture) syncAll() error {
	for _, r := range c.roots {
		if err := unix.Syncfs(r.fd); err != nil {
			return fmt.Errorf("sync file system of root %s: %w", r.name, err)
		}
	}
	return nil
}
