package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"hearth/internal/cgroups"
	"hearth/internal/config"
	"hearth/internal/ctrd"
	"hearth/internal/disk"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/netpol"
	"hearth/internal/obs"
)

func cleanupCommand(e environment, load func() (config.Agent, error)) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every environment and slot of this instance from the node",
		Long: `Remove everything that runs for this instance: environments, slots, islands,
cgroups, pinned kernel programs, and the managed containerd. Images and
snapshots stay, unless --all removes them and the state directory too; of a given
containerd, --all removes the instance's namespace with its images.

It reads no state of the agent, only what the node has: damaged state does not
hinder it. It may be repeated, and says what it removed. The agent must not run.`,
		Example: `  nodeagent cleanup
  nodeagent cleanup --all`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			log, err := obs.NewLogger(e.stderr, cfg.Log.Format, cfg.Log.Level)
			if err != nil {
				return err
			}
			c := &cleaning{cfg: cfg, log: log, out: e.stdout}
			return c.run(cmd.Context(), all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove images, snapshots and all other state as well")
	return cmd
}

// cleaning removes what it can and says what, and what it could not.
type cleaning struct {
	cfg     config.Agent
	log     *slog.Logger
	out     io.Writer
	removed int
}

func (c *cleaning) say(what ...string) {
	for _, w := range what {
		c.removed++
		fmt.Fprintln(c.out, "removed", w)
	}
}

func (c *cleaning) run(ctx context.Context, all bool) (err error) {
	// The lock needs the directory, which may be what somebody has removed.
	if err := os.MkdirAll(c.cfg.StateDir, 0o700); err != nil {
		return err
	}
	lock, err := durable.Lock(lockPath(c.cfg))
	if err != nil {
		return fmt.Errorf("stop the agent first: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	// While a slot is left, so is what its containerd needs to remove it.
	if err := c.containers(ctx, all); err != nil {
		return err
	}
	islands, err := netpol.Remove(ctx, islandConfig(c.cfg), c.log)
	c.say(islands...)
	errs := []error{err, c.directory(ctx, workDir(c.cfg)), c.directory(ctx, c.cfg.RunDir)}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if all {
		if err := c.directory(ctx, c.cfg.StateDir); err != nil {
			return err
		}
	}
	if c.removed == 0 {
		fmt.Fprintln(c.out, "nothing is left of instance", c.cfg.Instance)
	}
	return nil
}

// directory removes a directory with all below it. In a pod it may be a mount
// point, which stays, empty.
func (c *cleaning) directory(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, durable.RemoveAll(ctx, filepath.Join(dir, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	_ = os.Remove(dir)                                                                  // a mount point stays
	ownLock := len(entries) == 1 && entries[0].Name() == filepath.Base(lockPath(c.cfg)) // made just now
	if len(entries) > 0 && !ownLock {
		c.say(dir)
	}
	return nil
}

// slotTimeout bounds the removal of one slot.
const slotTimeout = 30 * time.Second

// containers kills and deletes every slot, then stops the managed containerd, or
// takes our namespace out of a given one. Processes are ended even where
// containerd does not answer. After an error containerd is left as it is.
func (c *cleaning) containers(ctx context.Context, all bool) error {
	trees, err := openTrees(c.cfg, c.log)
	if err != nil {
		return err
	}
	defer func() {
		for _, tree := range trees {
			_ = tree.Close()
		}
	}()
	for _, tree := range trees {
		if err := c.kill(ctx, tree); err != nil {
			return err
		}
	}
	if c.neverRan() {
		return c.groups(ctx, trees)
	}
	runtime, err := ctrd.Open(ctx, runtimeConfig(c.cfg), c.log)
	if err != nil {
		return fmt.Errorf("every process was ended, but containerd's records stay: %w", err)
	}
	defer runtime.Close()
	if err := c.records(ctx, runtime); err != nil {
		return err
	}
	if err := c.quotas(ctx, runtime); err != nil {
		return err
	}
	if err := c.groups(ctx, trees); err != nil {
		return err
	}
	switch {
	case c.cfg.Containerd.Managed():
		return runtime.StopManaged(ctx)
	case all:
		images, err := runtime.Forget(ctx)
		for _, name := range images {
			c.say("image " + name)
		}
		return err
	}
	return nil
}

// neverRan reports whether the managed containerd has no data: then it is not
// started to be asked.
func (c *cleaning) neverRan() bool {
	return c.cfg.Containerd.Managed() && isMissing(runtimeConfig(c.cfg).Root)
}

// kill ends every process of every slot.
func (c *cleaning) kill(ctx context.Context, tree *cgroups.Tree) error {
	return c.each(ctx, tree, func(ctx context.Context, slot env.SlotID) error {
		g, err := tree.Adopt(slot)
		if err != nil {
			return err
		}
		defer g.Close()
		return g.Kill(ctx)
	})
}

// groups removes the slots' cgroups, the roots of all, and the unit that systemd
// has of them.
func (c *cleaning) groups(ctx context.Context, trees []*cgroups.Tree) error {
	var errs []error
	for _, tree := range trees {
		err := c.each(ctx, tree, func(ctx context.Context, slot env.SlotID) error {
			err := tree.Remove(ctx, slot)
			if err == nil {
				c.say("cgroup of slot " + string(slot))
			}
			return err
		})
		errs = append(errs, err, tree.RemoveRoot())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	removed, err := scopeOf(c.cfg, "", c.log).Remove(ctx)
	if removed {
		c.say("unit " + c.cfg.Instance + ".scope of systemd")
	}
	return err
}

// each goes through the slots that have a cgroup anywhere, also after an error.
func (c *cleaning) each(ctx context.Context, tree *cgroups.Tree, f func(context.Context, env.SlotID) error) error {
	slots, err := tree.List()
	errs := []error{err}
	for _, slot := range slots {
		errs = append(errs, c.bounded(ctx, func(ctx context.Context) error { return f(ctx, slot) }))
	}
	return errors.Join(errs...)
}

// records deletes what containerd has of every slot, and then ends the shims that
// are left: one that is killed before, with dead containers in it, has containerd
// tidy up after it for longer than containerd itself is there.
func (c *cleaning) records(ctx context.Context, runtime *ctrd.Runtime) error {
	list, err := runtime.List(ctx)
	errs := []error{err}
	for _, container := range list {
		err := c.bounded(ctx, func(ctx context.Context) error { return runtime.Delete(ctx, container.Slot) })
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.say("slot " + string(container.Slot))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	shims := &shims{namespace: c.cfg.Containerd.Namespace, address: containerdSocket(c.cfg)}
	shims.look()
	for _, slot := range shims.slots() {
		if shims.end(slot) {
			c.say("lost shim of slot " + string(slot))
		}
	}
	return nil
}

// quotas takes the limits away that slots had of the disks.
func (c *cleaning) quotas(ctx context.Context, runtime *ctrd.Runtime) error {
	root, err := runtime.Root(ctx)
	if err != nil {
		return err
	}
	var quotas disk.Quotas
	for _, dir := range []string{root, c.cfg.StateDir} {
		for i := range c.cfg.IDs.Count {
			project := disk.ProjectOf(env.IDRange{Base: c.cfg.IDs.Base + i*env.IDRangeSize, Size: env.IDRangeSize})
			_, limit, err := quotas.Used(project, dir)
			if errors.Is(err, env.ErrUnsupported) {
				break // nothing is counted there
			}
			if err == nil && limit > 0 {
				err = quotas.Clear(project, dir)
				c.say(fmt.Sprintf("disk limit of project %d in %s", project, dir))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cleaning) bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, slotTimeout)
	defer cancel()
	return f(ctx)
}
