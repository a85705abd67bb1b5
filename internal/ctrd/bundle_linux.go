package ctrd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// tasksDir is where containerd keeps a bundle for each task, below its state
// directory and the namespace (core/runtime/v2).
const tasksDir = "io.containerd.runtime.v2.task"

// bundleGrace is how long containerd may take to tidy up after a shim that died.
const bundleGrace = 2 * time.Second

// removeBundle removes what a shim leaves that dies while its task is deleted, and
// that nobody knows of afterwards: the mounted root file system, and what the
// runtime noted of the container. Mostly nothing is there. What another program's
// containerd leaves is its own.
func (r *Runtime) removeBundle(ctx context.Context, slot env.SlotID) error {
	if !r.cfg.managed() {
		return nil
	}
	namespace := r.cfg.Namespace
	bundle := filepath.Join(r.cfg.State, tasksDir, namespace, string(slot))
	noted := filepath.Join(r.cfg.runcRoot(), namespace, string(slot))
	for begun := time.Now(); ; {
		if isMissing(bundle) && isMissing(noted) {
			return nil
		}
		if time.Since(begun) > bundleGrace {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.log.Warn("remove what a dead shim left", "slot", slot, "bundle", bundle)
	err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted, not there
		return fmt.Errorf("unmount %s: %w", bundle, err)
	}
	return errors.Join(durable.RemoveAll(ctx, bundle), durable.RemoveAll(ctx, noted))
}

func isMissing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}
