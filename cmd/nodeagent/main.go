// Command nodeagent keeps environments on one node: warm slots, islands,
// detection and snapshots. See `nodeagent --help`.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"hearth/internal/config"
	"hearth/internal/env"
)

// version is set by the linker.
var version = "devel"

// environment is what the program sees of its process, so that tests run the
// real thing.
type environment struct {
	stdout, stderr io.Writer
	getenv         func(string) string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], environment{os.Stdout, os.Stderr, os.Getenv})
	stop()
	os.Exit(code)
}

// Exit codes.
const (
	exitFailed       = 1
	exitUsage        = 2 // usage or configuration
	exitPrecondition = 3 // the node or the thing asked for is not in a state for it
	exitUnreachable  = 4
)

func run(ctx context.Context, args []string, e environment) int {
	root := rootCommand(e)
	root.SetArgs(args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintf(e.stderr, "nodeagent: %v\n", err)
	switch {
	case errors.Is(err, env.ErrInvalid), errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, env.ErrState), errors.Is(err, env.ErrUnsupported), errors.Is(err, env.ErrExists):
		return exitPrecondition
	case errors.Is(err, env.ErrUnavailable):
		return exitUnreachable
	}
	return exitFailed
}

// exitError ends the program with a code and no further message.
type exitError int

func (c exitError) Error() string { return fmt.Sprintf("exit %d", int(c)) }

// errUsage marks a wrong command line.
var errUsage = errors.New("see --help")

// usageArgs makes a wrong number of arguments, or an unknown subcommand, an
// error of usage.
func usageArgs(args cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return fmt.Errorf("%w; %w", err, errUsage)
		}
		return nil
	}
}

// showHelp is what a command with subcommands does alone.
func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// defaultConfig is read if no --config is given and it exists.
const defaultConfig = "/etc/hearth/nodeagent.yaml"

func rootCommand(e environment) *cobra.Command {
	var path string
	root := &cobra.Command{
		Use:           "nodeagent",
		Short:         "Keep warm, isolated environments on this node",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usageArgs(cobra.NoArgs),
		RunE:          showHelp,
		Example: `  nodeagent preflight
  nodeagent run --config nodeagent.yaml
  nodeagent image import busybox.tar
  nodeagent debug ps`,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", err, errUsage) })
	root.PersistentFlags().StringVar(&path, "config", e.getenv("HEARTH_NODE_CONFIG"), "path of nodeagent.yaml (default "+defaultConfig+" if it exists)")
	load := func() (config.Agent, error) { return loadConfig(path, e.getenv) }
	root.AddCommand(
		runCommand(e, load), readyCommand(e, load), preflightCommand(e, load), cleanupCommand(e, load), imageCommand(e, load),
		debugCommand(debugIO{stdout: e.stdout, stderr: e.stderr}, socketOf(e, load)), versionCommand(e),
	)
	return root
}

// loadConfig reads the given file, the default one, or, without either, the
// defaults of this host. A pod is told its node's name and address, which are
// defaults too, by variables, so that one file does for all nodes.
func loadConfig(path string, getenv func(string) string) (config.Agent, error) {
	host, err := config.ThisHost()
	if err != nil {
		return config.Agent{}, err
	}
	host.Name, host.Address = cmp.Or(getenv("HEARTH_NODE"), host.Name), getenv("HEARTH_ADDRESS")
	if path == "" {
		if _, err := os.Stat(defaultConfig); errors.Is(err, os.ErrNotExist) {
			return config.DefaultAgent(host), nil
		}
		path = defaultConfig
	}
	a, err := config.LoadAgent(path, host)
	if errors.Is(err, os.ErrNotExist) {
		return a, fmt.Errorf("%w: %v", env.ErrInvalid, err)
	}
	return a, err
}

// socketOf finds the agent's socket for commands that speak to a running one.
func socketOf(e environment, load func() (config.Agent, error)) func() (string, error) {
	return func() (string, error) {
		if path := e.getenv("HEARTH_NODE_SOCKET"); path != "" {
			return path, nil
		}
		a, err := load()
		return a.API.Socket, err
	}
}

func versionCommand(e environment) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(e.stdout, version)
			return err
		},
	}
}
