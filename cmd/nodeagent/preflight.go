package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"hearth/internal/config"
	"hearth/internal/env"
	"hearth/internal/preflight"
)

func preflightCommand(e environment, load func() (config.Agent, error)) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "preflight",
		Short: "Say what this node can do, tier by tier",
		Long: `Try what the agent needs of kernel, cgroups, filesystem, network and containerd.
Nothing is left behind. The exit code is 0 if all that is required is there,
else 3; every row that is not ok says how to mend it.`,
		Example: `  nodeagent preflight
  nodeagent preflight -o json | jq '.rows[] | select(.state != "ok")'`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			report := preflight.Check(cmd.Context(), preflightInput(cfg))
			switch output {
			case "table":
				fmt.Fprint(e.stdout, report.Table())
			case "json":
				b, err := report.JSON()
				if err != nil {
					return err
				}
				fmt.Fprintf(e.stdout, "%s", b)
			default:
				return fmt.Errorf("output %q: table or json: %w", output, errUsage)
			}
			if code := report.ExitCode(); code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func preflightInput(cfg config.Agent) preflight.Input {
	in := preflight.Input{
		StateDir: cfg.StateDir, RunDir: cfg.RunDir, BPFDir: "/sys/fs/bpf",
		ContainerdSock: cfg.Containerd.Address, RuncBin: cfg.Containerd.Runtime,
		Runtimes: cfg.Containerd.Runtimes, RuntimePath: os.Getenv("PATH"),
		IDBase: cfg.IDs.Base, IDCount: cfg.IDs.Count * env.IDRangeSize,
		Listen: []string{cfg.API.Listen, cfg.API.Metrics}, Sockets: []string{cfg.API.Socket},
		CgroupTree: describeTree(cfg),
	}
	if cfg.Containerd.Managed() {
		in.ContainerdBin = filepath.Join(cfg.Containerd.BinDir, "containerd")
		if in.RuncBin == "" {
			in.RuncBin = filepath.Join(cfg.Containerd.BinDir, "runc")
		}
		in.RuntimePath = cfg.Containerd.BinDir + ":" + in.RuntimePath // as the managed containerd has it
	}
	return in
}
