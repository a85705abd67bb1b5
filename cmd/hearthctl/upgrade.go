package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	hearthv1 "hearth/api/hearth/v1"
)

// keeps are the words of --keep.
var keeps = map[string]hearthv1.Keep{
	"all":       hearthv1.Keep_KEEP_ALL,
	"workspace": hearthv1.Keep_KEEP_WORKSPACE,
}

func (a *app) upgradeCommand() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "upgrade ENVIRONMENT…",
		Short: "Move environments to the newest release of their class",
		Long: `Upgrade moves a running or paused environment to the newest release of its
class, on its node: the same id, token, variables and end, its files, and new
processes. It stands still meanwhile, and needs the room of two. If anything
fails it goes on as it was.

If the class has another image, what was changed on the old one does not belong
on it: --keep workspace carries /workspace and leaves the rest of the disk as the
new image has it. All files of before are in the snapshot that is printed.`,
		Example: `  hearthctl upgrade e-01ktz…
  hearthctl upgrade e-01ktz… --keep workspace
  hearthctl list -o wide | grep outdated`,
		Args:              someEnvironments,
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			what, ok := keeps[keep]
			if !ok {
				return usagef("--keep %s: want all or workspace", keep)
			}
			return a.each(cmd.Context(), "upgrade", args, func(ctx context.Context, b backend, id string) error {
				return a.upgrade(ctx, b, id, what)
			})
		},
	}
	cmd.Flags().StringVar(&keep, "keep", "all", "files to carry over: all, or workspace")
	_ = cmd.RegisterFlagCompletionFunc("keep", cobra.FixedCompletions([]string{"all", "workspace"}, cobra.ShellCompDirectiveNoFileComp))
	a.outputFlag(cmd)
	return cmd
}

func (a *app) upgrade(ctx context.Context, b backend, id string, keep hearthv1.Keep) error {
	stop := a.progress("upgrading " + id)
	defer stop()
	key := newKey()
	r, err := again(ctx, func() (*hearthv1.UpgradeResponse, error) { return b.upgrade(ctx, key, id, keep) })
	if err != nil {
		return err
	}
	return a.print(r, []string{id}, func(w io.Writer, _ bool) {
		fmt.Fprintf(w, "%s upgraded to %s, its files of before are snapshot %s\n", id, dash(r.GetEnvironment().GetRevision()), dash(r.GetSnapshot().GetId()))
	})
}

// revisionWord is what an environment was made from, and whether it should be
// upgraded.
func revisionWord(e *hearthv1.Environment) string {
	if e.GetOutdated() {
		return dash(e.GetRevision()) + " (outdated)"
	}
	return dash(e.GetRevision())
}
