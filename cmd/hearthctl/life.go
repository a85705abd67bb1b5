package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func (a *app) listCommand() *cobra.Command {
	var class, nodeName string
	var all bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List environments",
		Long: `List environments. Those that were released but have snapshots are known for
ever, as the snapshots' owners; --all shows them too.`,
		Example: `  hearthctl list
  hearthctl list --class base -o wide
  hearthctl list -o name | xargs hearthctl release`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withBackend(cmd.Context(), func(ctx context.Context, b backend) error {
				envs, err := b.list(ctx, class, nodeName)
				if err != nil {
					return fmt.Errorf("list environments: %w", err)
				}
				if !all {
					envs = slices.DeleteFunc(envs, func(e *hearthv1.Environment) bool { return e.GetPhase() == hearthv1.Phase_PHASE_RELEASED })
				}
				if len(envs) == 0 && (a.output == "" || a.output == "wide") {
					fmt.Fprintln(a.stderr, "No environments found.")
					return nil
				}
				return a.printEnvironments(&hearthv1.ListResponse{Environments: envs}, envs)
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "A", false, "released environments too")
	cmd.Flags().StringVar(&class, "class", "", "only this class's")
	cmd.Flags().StringVar(&nodeName, "node", "", "only this node's")
	_ = cmd.RegisterFlagCompletionFunc("class", a.completeClasses)
	a.outputFlag(cmd)
	return cmd
}

func (a *app) getCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "get ENVIRONMENT",
		Short:             "Show one environment",
		Example:           "  hearthctl get e-01ktz… -o yaml",
		Args:              exactArgs("ENVIRONMENT"),
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.one(cmd.Context(), "get", args[0], func(ctx context.Context, b backend, id string) error {
				e, err := b.get(ctx, id)
				if err != nil {
					return err
				}
				if e.GetOutdated() && (a.output == "" || a.output == "wide") {
					fmt.Fprintf(a.stderr, "Its class has a newer release: hearthctl upgrade %s\n", id)
				}
				return a.printEnvironments(e, []*hearthv1.Environment{e})
			})
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) pauseCommand() *cobra.Command {
	return a.switchCommand("pause", "paused", "Freeze an environment",
		"Pause freezes every process of an environment. It keeps its memory, and answers\nnothing until it is resumed.",
		func(ctx context.Context, b backend, key, id string) error {
			_, err := b.pause(ctx, key, id)
			return err
		})
}

func (a *app) resumeCommand() *cobra.Command {
	return a.switchCommand("resume", "resumed", "Thaw a paused or stalled environment", "Resume lets a paused environment run on. One that was stalled, because its\nnode's disk is short, runs until it writes: long enough to remove files.",
		func(ctx context.Context, b backend, key, id string) error {
			_, err := b.resume(ctx, key, id)
			return err
		})
}

func (a *app) switchCommand(verb, done, short, long string, do func(context.Context, backend, string, string) error) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " ENVIRONMENT…",
		Short:             short,
		Long:              long,
		Example:           "  hearthctl " + verb + " e-01ktz…",
		Args:              someEnvironments,
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), verb, args, func(ctx context.Context, b backend, id string) error {
				key := newKey()
				_, err := again(ctx, func() (struct{}, error) { return struct{}{}, do(ctx, b, key, id) })
				if err == nil {
					fmt.Fprintf(a.stdout, "%s %s\n", id, done)
				}
				return err
			})
		},
	}
}

func (a *app) releaseCommand() *cobra.Command {
	var snapshot bool
	cmd := &cobra.Command{
		Use:   "release ENVIRONMENT…",
		Short: "End environments and free all that they hold",
		Long: `Release ends an environment. What was not snapshotted is gone. With --snapshot
one is taken first, and nothing is released if that fails. Releasing an
environment that is gone already succeeds.`,
		Example: `  hearthctl release e-01ktz…
  hearthctl release --snapshot e-01ktz…`,
		Args:              someEnvironments,
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), "release", args, func(ctx context.Context, b backend, id string) error {
				snap, err := a.release(ctx, b, id, snapshot)
				if err != nil {
					return err
				}
				if snap.GetId() != "" {
					fmt.Fprintf(a.stdout, "%s released, snapshot %s\n", id, snap.GetId())
					return nil
				}
				fmt.Fprintf(a.stdout, "%s released\n", id)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&snapshot, "snapshot", false, "take a snapshot first")
	return cmd
}

// release releases and forgets the kept access. An environment that is not there
// is released already, unless its snapshot was wanted.
func (a *app) release(ctx context.Context, b backend, id string, snapshot bool) (*hearthv1.Snapshot, error) {
	stop := a.progress("releasing " + id)
	defer stop()
	key := newKey()
	snap, err := again(ctx, func() (*hearthv1.Snapshot, error) { return b.release(ctx, key, id, snapshot) })
	if err != nil && (snapshot || !errors.Is(err, env.ErrNotFound)) {
		return nil, err
	}
	a.accessCache().forget(id)
	return snap, nil
}

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token ENVIRONMENT",
		Short: "Get a new access to an environment",
		Long: `Token replaces the environment's token: older ones end at once. It prints the
token; -o json has the node's address and certificate authority too.`,
		Example: `  hearthctl token e-01ktz…
  hearthctl token e-01ktz… -o json`,
		Args:              exactArgs("ENVIRONMENT"),
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.one(cmd.Context(), "get token of", args[0], func(ctx context.Context, b backend, id string) error {
				acc, err := b.token(ctx, id)
				if err != nil {
					return err
				}
				a.keep(id, acc)
				if a.output == "json" || a.output == "yaml" {
					return writeMessage(a.stdout, acc, a.output)
				}
				_, err = fmt.Fprintln(a.stdout, acc.GetToken())
				return err
			})
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Print this program's version",
		Example:           "  hearthctl version",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			version, revision := "unknown", ""
			if info, ok := debug.ReadBuildInfo(); ok {
				version = info.Main.Version
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						revision = " " + s.Value[:min(12, len(s.Value))]
					}
				}
			}
			_, err := fmt.Fprintf(a.stdout, "hearthctl %s%s %s %s/%s\n", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// withBackend runs f with the backend until it is done or interrupted.
func (a *app) withBackend(ctx context.Context, f func(context.Context, backend) error) error {
	b, err := a.backend()
	if err != nil {
		return err
	}
	return a.cancellable(ctx, func(ctx context.Context) error { return f(ctx, b) })
}

// one does something to one environment.
func (a *app) one(ctx context.Context, verb, arg string, f func(context.Context, backend, string) error) error {
	return a.each(ctx, verb, []string{arg}, f)
}

// each does something to every environment named, and joins what failed.
func (a *app) each(ctx context.Context, verb string, args []string, f func(context.Context, backend, string) error) error {
	ids := make([]string, len(args))
	for i, arg := range args {
		id, err := environmentID(arg)
		if err != nil {
			return err
		}
		ids[i] = id
	}
	return a.withBackend(ctx, func(ctx context.Context, b backend) error {
		var errs []error
		for _, id := range ids {
			if err := f(ctx, b, id); err != nil {
				errs = append(errs, fmt.Errorf("%s %s: %w", verb, id, err))
			}
		}
		return errors.Join(errs...)
	})
}

func someEnvironments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("want one or more ENVIRONMENTs: %s e-…", cmd.CommandPath())
	}
	return nil
}
