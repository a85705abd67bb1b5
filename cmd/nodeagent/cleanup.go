package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"hearth/internal/cgroups"
	"hearth/internal/config"
	"hearth/internal/ctrd"
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
snapshots stay, unless --all removes the state directory too.

The agent must not run.`,
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
			return cleanup(cmd.Context(), cfg, all, log)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove images, snapshots and all other state as well")
	return cmd
}

// cleanup removes what it can and says what it could not.
func cleanup(ctx context.Context, cfg config.Agent, all bool, log *slog.Logger) (err error) {
	if _, err := os.Stat(cfg.StateDir); errors.Is(err, os.ErrNotExist) {
		log.Info("nothing to clean up", "state_dir", cfg.StateDir)
		return nil
	}
	lock, err := durable.Lock(lockPath(cfg))
	if err != nil {
		return fmt.Errorf("stop the agent first: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	// While a slot is left, so is what its containerd needs to remove it.
	if err := removeContainers(ctx, cfg, log); err != nil {
		return err
	}
	var errs []error
	if islands, err := netpol.Open(islandConfig(cfg), log); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, islands.Cleanup(ctx))
	}
	errs = append(errs, os.RemoveAll(workDir(cfg)), os.RemoveAll(cfg.RunDir))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if all {
		return os.RemoveAll(cfg.StateDir)
	}
	return nil
}

// slotTimeout bounds the removal of one slot.
const slotTimeout = 30 * time.Second

// removeContainers kills and deletes every slot, then stops the managed
// containerd. It goes on after an error, but leaves containerd then.
func removeContainers(ctx context.Context, cfg config.Agent, log *slog.Logger) error {
	tree, err := cgroups.Open(cgroups.Config{Root: cfg.Cgroup.Root}, log)
	if err != nil {
		return err
	}
	defer tree.Close()
	runtime, err := ctrd.Open(ctx, runtimeConfig(cfg), log)
	if err != nil {
		return err
	}
	defer runtime.Close()
	slots, err := slotsOf(ctx, tree, runtime)
	errs := []error{err}
	for slot := range slots {
		if err := removeSlot(ctx, tree, runtime, slot); err != nil {
			errs = append(errs, fmt.Errorf("remove slot %s: %w", slot, err))
			continue
		}
		log.Info("slot removed", "slot", slot)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := tree.RemoveRoot(); err != nil {
		return err
	}
	if !cfg.Containerd.Managed() {
		return nil
	}
	return runtime.StopManaged(ctx)
}

// slotsOf lists what has a cgroup or a container.
func slotsOf(ctx context.Context, tree *cgroups.Tree, runtime *ctrd.Runtime) (map[env.SlotID]bool, error) {
	slots := map[env.SlotID]bool{}
	ids, err := tree.List()
	for _, id := range ids {
		slots[id] = true
	}
	containers, listErr := runtime.List(ctx)
	for _, c := range containers {
		slots[c.Slot] = true
	}
	return slots, errors.Join(err, listErr)
}

func removeSlot(ctx context.Context, tree *cgroups.Tree, runtime *ctrd.Runtime, slot env.SlotID) error {
	ctx, cancel := context.WithTimeout(ctx, slotTimeout)
	defer cancel()
	group, err := tree.Adopt(slot)
	if errors.Is(err, env.ErrNotFound) {
		return runtime.Delete(ctx, slot)
	}
	if err != nil {
		return err
	}
	defer group.Close()
	if err := group.Kill(ctx); err != nil {
		return err
	}
	if err := runtime.Delete(ctx, slot); err != nil {
		return err
	}
	return group.Remove(ctx)
}
