package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"hearth/internal/config"
	"hearth/internal/lifecycle"
	"hearth/internal/obs"
)

// stopTimeout bounds an orderly stop. Kubernetes gives 30 s.
const stopTimeout = 20 * time.Second

func runCommand(e environment, load func() (config.Agent, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the agent until SIGTERM; environments live on",
		Long: `Run the agent until SIGTERM or SIGINT.

Environments and ready slots outlive the agent, whether it stops or dies: the
next start takes them back. To remove them, see "nodeagent cleanup".`,
		Example: `  nodeagent run
  nodeagent run --config ./nodeagent.yaml`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			return runAgent(cmd.Context(), cfg, e)
		},
	}
}

func runAgent(ctx context.Context, cfg config.Agent, e environment) error {
	log, err := obs.NewLogger(e.stderr, cfg.Log.Format, cfg.Log.Level)
	if err != nil {
		return err
	}
	log.Info("agent starting", "instance", cfg.Instance, "node", cfg.Node, "version", version)
	a, err := assemble(ctx, cfg, e, log)
	if err != nil {
		return fmt.Errorf("start agent of instance %s: %w", cfg.Instance, err)
	}
	defer a.close()
	group := lifecycle.NewGroup(log, stopTimeout)
	a.ready = group.Ready
	for _, p := range a.parts() {
		group.Add(p)
	}
	err = group.Run(ctx)
	log.Info("agent stopped; environments live on", "environments", len(a.node.List()))
	return err
}
