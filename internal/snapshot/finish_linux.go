package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
)

// finish stores what was staged and the tree, and makes all of it durable.
func (c *capture) finish(roots []*node) error {
	if err := c.storeStaged(); err != nil {
		return err
	}
	entries, changed, err := c.storeTree(roots)
	if err != nil {
		return err
	}
	total, next, err := c.packs.close()
	if err != nil {
		return err
	}
	c.info.NewBytes = total
	c.result = &refRecord{RootEntries: entries, NextPack: next}
	c.cacheRoots = nil
	if changed {
		c.cacheRoots = roots
	}
	return nil
}

// storeStaged cuts and stores the staged files, a few at once.
func (c *capture) storeStaged() error {
	next := atomic.Int64{}
	errs := make([]error, len(c.workers))
	var wg sync.WaitGroup
	for i, w := range c.workers {
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					errs[i] = fmt.Errorf("store: panic: %v\n%s", r, debug.Stack())
				}
			}()
			for errs[i] == nil {
				k := next.Add(1) - 1
				if k >= int64(len(c.items)) {
					return
				}
				it := c.items[k]
				if err := w.storeContent(it.n.e, it.reader(c.stage.fd), it.size, it.regions); err != nil {
					errs[i] = fmt.Errorf("store %q: %w", it.n.name, err)
				}
				it.data = nil
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// storeTree stores the directories and returns the roots' entries. changed is
// true if the cache of the snapshot before does not describe this one.
func (c *capture) storeTree(roots []*node) (entries [][]byte, changed bool, err error) {
	b := &builder{put: c.workers[0].put, reader: c.index.newReader(c.s.comp)}
	for i, r := range roots {
		if r.pages, err = b.dir(r); err != nil {
			return nil, false, fmt.Errorf("store root %s: %w", c.src.Roots[i].Name, err)
		}
		e := r.e
		if e == nil {
			if e, err = decodeRootEntry(c.head.RootEntries[i]); err != nil {
				return nil, false, err
			}
		}
		root := *e
		root.pages = r.pages
		entries = append(entries, encodeRootEntry(&root))
	}
	c.info.Files, c.info.Bytes, c.info.Racy = b.files, b.bytes, b.racy
	same := c.head != nil && slices.EqualFunc(entries, c.head.RootEntries, bytes.Equal)
	return entries, !same || b.visited > 0, nil
}

// publish creates the reference, then renews the cache.
func (c *capture) publish() (Info, error) {
	c.info.Lineage, c.info.Seq, c.info.Base = c.src.Lineage, 1, c.src.Base
	c.info.Tenant = c.src.Tenant
	c.info.Labels = c.src.Labels
	if c.head != nil {
		c.info.Seq, c.info.Parent = c.head.Info.Seq+1, c.head.Info.ID
	}
	c.info.ID = MakeID(c.info.Lineage, c.info.Seq)
	for _, r := range c.src.Roots {
		c.info.Roots = append(c.info.Roots, r.Name)
	}
	c.info.FreezeTime = c.frozen
	c.info.Read, c.info.Redone = c.reads.Load(), c.redone.Load()
	c.info.Foreign, c.info.XAttrs = c.foreign.Load(), c.dropped.Load()
	c.result.Info = c.info
	b, err := encodeRef(c.lin.keys, c.result)
	if err != nil {
		return Info{}, err
	}
	c.result.Info.NewBytes += int64(len(b))
	info, err := c.s.publish(c.lin, c.result)
	if err != nil {
		return Info{}, err
	}
	if c.cacheRoots != nil && c.trustTimes {
		b := encodeCache(c.cacheKey(c.result.RootEntries), c.cacheRoots)
		if err := c.lin.dir.WriteFile("cache", cacheName, b, 0o600); err != nil {
			c.s.log.Warn("write cache; the next capture reads everything", "lineage", c.src.Lineage, "error", err)
		}
	}
	return info, nil
}
