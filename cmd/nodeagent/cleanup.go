package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"hearth/internal/cgroups"
	"hearth/internal/config"
	"hearth/internal/ctrd"
	"hearth/internal/durable"
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
		Args: cobra.NoArgs,
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
	errs := []error{removeContainers(ctx, cfg, log)}
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

// removeContainers kills and deletes every slot, then stops the managed
// containerd.
func removeContainers(ctx context.Context, cfg config.Agent, log *slog.Logger) error {
	tree, err := cgroups.Open(cgroups.Config{Root: cfg.Cgroup.Root}, log)
	if err != nil {
		return err
	}
	defer tree.Close()
	slots, err := tree.List()
	errs := []error{err}
	for _, slot := range slots {
		if g, err := tree.Adopt(slot); err == nil {
			errs = append(errs, g.Kill(ctx), g.Close())
		}
	}
	runtime, err := ctrd.Open(ctx, runtimeConfig(cfg), log)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer runtime.Close()
	list, err := runtime.List(ctx)
	errs = append(errs, err)
	for _, c := range list {
		log.Info("slot removed", "slot", c.Slot)
		errs = append(errs, runtime.Delete(ctx, c.Slot))
	}
	for _, slot := range slots {
		if g, err := tree.Adopt(slot); err == nil {
			errs = append(errs, g.Remove(ctx))
		}
	}
	errs = append(errs, tree.RemoveRoot())
	if cfg.Containerd.Managed() {
		errs = append(errs, runtime.StopManaged(ctx))
	}
	return errors.Join(errs...)
}
