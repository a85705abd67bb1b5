package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Take and list snapshots",
		Long:  "A snapshot keeps the files of an environment: what it changed, and its workspace.",
		Example: `  hearthctl snapshot create e-01ktz…
  hearthctl snapshot list e-01ktz…
  hearthctl claim --class base --snapshot e-01ktz…/1`,
		Args: func(cmd *cobra.Command, args []string) error {
			return usagef("want a subcommand, create or list: see %s --help", cmd.CommandPath())
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(a.snapshotCreateCommand(), a.snapshotListCommand())
	return cmd
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "create ENVIRONMENT",
		Short:             "Take a snapshot of a running or paused environment",
		Example:           "  hearthctl snapshot create e-01ktz…",
		Args:              exactArgs("ENVIRONMENT"),
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.one(cmd.Context(), "snapshot", args[0], func(ctx context.Context, b backend, id string) error {
				stop := a.progress("taking a snapshot of " + id)
				defer stop()
				key := newKey()
				s, err := again(ctx, func() (*hearthv1.Snapshot, error) { return b.snapshot(ctx, key, id) })
				if err != nil {
					return err
				}
				return a.printSnapshots(&hearthv1.SnapshotResponse{Snapshot: s}, []*hearthv1.Snapshot{s})
			})
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) snapshotListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "list ENVIRONMENT",
		Short:             "List an environment's snapshots, also after its release",
		Example:           "  hearthctl snapshot list e-01ktz… -o json",
		Args:              exactArgs("ENVIRONMENT"),
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.one(cmd.Context(), "list snapshots of", args[0], func(ctx context.Context, b backend, id string) error {
				snaps, err := b.snapshots(ctx, id)
				if err != nil {
					return err
				}
				if len(snaps) == 0 && a.output != "json" && a.output != "yaml" {
					fmt.Fprintf(a.stderr, "No snapshots of %s found.\n", id)
					return nil
				}
				return a.printSnapshots(&hearthv1.ListSnapshotsResponse{Snapshots: snaps}, snaps)
			})
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) forkCommand() *cobra.Command {
	var count int
	var vars []string
	cmd := &cobra.Command{
		Use:   "fork ENVIRONMENT",
		Short: "Claim copies of an environment",
		Long: `Fork takes a snapshot of a running environment and claims copies that start from
it. The parent runs on.`,
		Example: `  hearthctl fork e-01ktz…
  hearthctl fork e-01ktz… --count 3 -e BRANCH=a -o name`,
		Args:              exactArgs("ENVIRONMENT"),
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 || count > 16 {
				return usagef("--count %d: want 1 to 16", count)
			}
			variables, err := keyValues("-e", vars, a.getenv)
			if err != nil {
				return err
			}
			return a.one(cmd.Context(), "fork", args[0], func(ctx context.Context, b backend, id string) error {
				return a.forkAndPrint(ctx, b, id, count, variables)
			})
		},
	}
	cmd.Flags().IntVar(&count, "count", 1, "number of copies, 1 to 16")
	cmd.Flags().StringArrayVarP(&vars, "env", "e", nil, "variable NAME=VALUE of the copies; repeatable")
	a.outputFlag(cmd)
	return cmd
}

func (a *app) forkAndPrint(ctx context.Context, b backend, id string, count int, vars map[string]string) error {
	stop := a.progress("forking " + id)
	key := newKey()
	r, err := again(ctx, func() (*hearthv1.ForkResponse, error) { return b.fork(ctx, key, id, count, vars) })
	stop()
	if err != nil {
		return err
	}
	var envs []*hearthv1.Environment
	for _, c := range r.GetChildren() {
		child, err := environmentID(c.GetEnvironment().GetId())
		if err != nil {
			return fmt.Errorf("the server's answer: %w", err)
		}
		a.keep(child, c.GetAccess())
		envs = append(envs, c.GetEnvironment())
	}
	return a.printEnvironments(r, envs)
}

func (a *app) printSnapshots(m proto.Message, snaps []*hearthv1.Snapshot) error {
	names := make([]string, len(snaps))
	for i, s := range snaps {
		names[i] = s.GetId()
	}
	return a.print(m, names, func(w io.Writer, wide bool) {
		row(w, wide, []string{"ID", "CLASS", "FILES", "SIZE", "NEW", "AGE"}, "FREEZE", "TOOK", "PARENT")
		for _, s := range snaps {
			st := s.GetStats()
			row(w, wide, []string{s.GetId(), s.GetClass(), fmt.Sprint(st.GetFiles()), bytesWord(st.GetBytes()), bytesWord(st.GetNewBytes()), age(s.GetCreatedAt())},
				fmt.Sprintf("%.1fms", st.GetFreezeMs()), millis(st.GetTook().AsDuration())+"ms", dash(s.GetParent()))
		}
	})
}
