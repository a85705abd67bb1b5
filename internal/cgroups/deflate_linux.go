package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

const (
	fileSwapMax = "memory.swap.max"
	fileReclaim = "memory.reclaim"
	// reclaimStep is what the kernel is asked for at once, in bytes: between two
	// steps a caller's end is seen.
	reclaimStep = 4 << 20
	// reclaimPatience is how many steps may bring next to nothing.
	reclaimPatience = 4
)

// swapsFile lists the node's swap areas.
const swapsFile = "/proc/swaps"

// CanDeflate says with an env.UnsupportedError what this node lacks to swap
// slots' memory out.
func (t *Tree) CanDeflate() error {
	root := t.roots[0].dir
	for _, file := range []string{fileSwapMax, fileReclaim} {
		// The root of all cgroups has neither: ours is below.
		if unix.Faccessat(int(root.Fd()), file, unix.F_OK, 0) != nil {
			return &env.UnsupportedError{Feature: "warm.deflate", Needs: "Linux 5.19 with the memory controller in cgroup v2, and swap in the kernel"}
		}
	}
	text, err := os.ReadFile(swapsFile)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("read swap areas: %w", err)
	}
	if strings.Count(string(text), "\n") < 2 { // the heading
		return &env.UnsupportedError{Feature: "warm.deflate", Needs: "a swap area: a partition, a file or zram (swapon)"}
	}
	return nil
}

// Deflate lets the slot's memory go to swap, whatever its limits say, and takes
// back what the kernel gives, in steps, until ctx ends: then the error is ctx's,
// and the figures are of what was done. They are bytes of memory in use. Inflate
// must come before anything secret enters the slot. The slot should be frozen,
// or it takes back at once what it needs.
func (g *Group) Deflate(ctx context.Context) (before, after int64, err error) {
	if err := g.tree.CanDeflate(); err != nil {
		return 0, 0, err
	}
	if err := g.setSwapMax("max"); err != nil {
		return 0, 0, err
	}
	if before, err = g.inUse(); err != nil {
		return 0, 0, err
	}
	after = before
	for asked, vain := int64(0), 0; asked < before && vain < reclaimPatience && after > 0; asked += reclaimStep {
		if ctx.Err() != nil {
			return before, after, context.Cause(ctx)
		}
		if err := g.Reclaim(min(reclaimStep, after)); err != nil {
			return before, after, fmt.Errorf("deflate slot %s: %w", g.slot, err)
		}
		now, err := g.inUse()
		if err != nil {
			return before, after, err
		}
		if vain++; after-now >= reclaimStep/8 {
			vain = 0
		}
		after = now
	}
	return before, after, nil
}

// Inflate ends Deflate: nothing more of the slot is swapped out than limits
// allow. What has been swapped out comes back as it is used. It is part of a
// claim, and writes two files. Where the layout has no such limit nothing was
// deflated, and it does nothing.
func (g *Group) Inflate(limits env.Resources) error {
	err := g.setSwapMax(itoa(max(limits.SwapBytes, 0)))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// setSwapMax sets the slot's own limit first, which holds for all below it.
func (g *Group) setSwapMax(value string) error {
	g.limiting.Lock()
	defer g.limiting.Unlock()
	if err := writeAt(g.dir, fileSwapMax, value); err != nil {
		return fmt.Errorf("set swap of slot %s: %w", g.slot, err)
	}
	err := withDir(g.dir, []string{containerName}, func(dir *os.File) error { return writeAt(dir, fileSwapMax, value) })
	if vanished(err) != nil {
		return fmt.Errorf("set swap of slot %s: %w", g.slot, err)
	}
	return nil
}

func (g *Group) inUse() (int64, error) {
	u, err := g.usage([]string{"memory"})
	return u.MemoryBytes, err
}
