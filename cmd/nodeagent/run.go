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
	var succeed bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent until SIGTERM; environments live on",
		Long: `Run the agent until SIGTERM or SIGINT.

Environments and ready slots outlive the agent, whether it stops or dies: the
next start takes them back. To remove them, see "nodeagent cleanup".

SIGHUP reads classes and rules again. With --take-over an agent of this instance
that runs is asked to hand over, and ends a minute later at most.`,
		Example: `  nodeagent run
  nodeagent run --config ./nodeagent.yaml
  nodeagent run --take-over`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			return runAgent(cmd.Context(), cfg, e, succeed)
		},
	}
	cmd.Flags().BoolVar(&succeed, "take-over", false, "ask an agent that runs to hand over, instead of failing")
	return cmd
}

func runAgent(ctx context.Context, cfg config.Agent, e environment, succeed bool) error {
	log, err := obs.NewLogger(e.stderr, cfg.Log.Format, cfg.Log.Level)
	if err != nil {
		return err
	}
	log.Info("agent starting", "instance", cfg.Instance, "node", cfg.Node, "version", version)
	a, err := assemble(ctx, cfg, e, log, succeed)
	if err != nil {
		return fmt.Errorf("start agent of instance %s: %w", cfg.Instance, err)
	}
	defer a.close()
	ctx, a.stop = context.WithCancel(ctx)
	defer a.stop()
	a.group = lifecycle.NewGroup(log, stopTimeout)
	for _, p := range a.parts(succeed) {
		a.group.Add(p)
	}
	err = a.group.Run(ctx)
	log.Info("agent stopped; environments live on", "environments", len(a.node.List()))
	return err
}
