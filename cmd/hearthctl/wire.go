package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"hearth/internal/config"
)

// environ is what the process is given, so that tests run the real program.
type environ struct {
	stdin          *os.File
	stdout, stderr io.Writer
	getenv         func(string) string
}

// app is one invocation.
type app struct {
	environ
	flags  config.Client // global flags, empty where not given
	output string        // -o
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, e environ) int {
	a := &app{environ: e}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return a.exitCode(cmd, err)
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "hearthctl",
		Short: "Claim and use environments",
		Long: `hearthctl claims environments, runs commands and moves files in them, and
releases them.

It needs a controller, HEARTH_SERVER and HEARTH_TOKEN, or a config.yaml; on a
node, root can use the agent's socket instead (HEARTH_NODE_SOCKET).

Exit codes: 0, 1 failed, 2 usage or configuration, 3 the thing's state refuses
it, 4 not reachable. exec, shell and run exit with the command's own code, 125
for errors of their own and 128+n for signal n.`,
		Example: `  hearthctl run --class base -- python3 -c 'print("hello")'
  id=$(hearthctl claim --class base -o name)
  hearthctl exec $id -- uname -a
  hearthctl release $id`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	p := root.PersistentFlags()
	p.StringVar(&a.flags.Server, "server", "", "controller, https://host:port (HEARTH_SERVER)")
	p.StringVar(&a.flags.CA, "ca", "", "certificate authority of the controller, a path (HEARTH_CA)")
	p.StringVar(&a.flags.NodeSocket, "node-socket", "", "an agent's Unix socket, used instead of a controller (HEARTH_NODE_SOCKET)")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s: see %s --help", err, cmd.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: "life", Title: "Environments:"},
		&cobra.Group{ID: "inside", Title: "Inside an environment:"},
		&cobra.Group{ID: "state", Title: "State:"},
	)
	for id, cmds := range map[string][]*cobra.Command{
		"life":   {a.claimCommand(), a.listCommand(), a.getCommand(), a.pauseCommand(), a.resumeCommand(), a.resizeCommand(), a.extendCommand(), a.upgradeCommand(), a.releaseCommand(), a.tokenCommand()},
		"inside": {a.runCommand(), a.execCommand(), a.shellCommand(), a.cpCommand(), a.portForwardCommand()},
		"state":  {a.snapshotCommand(), a.forkCommand()},
	} {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	root.AddCommand(a.uninstallCommand(), a.versionCommand())
	return root
}
