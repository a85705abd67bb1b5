package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
)

func (a *app) extendCommand() *cobra.Command {
	var until string
	cmd := &cobra.Command{
		Use:   "extend ENVIRONMENT DURATION",
		Short: "Set when an environment ends",
		Long: `Extend sets the end of an environment's time to live: a DURATION from now, or
--until a time. It may be later or earlier than before, and at most as far ahead
as the environment's class allows. To end one now, release it.`,
		Example: `  hearthctl extend e-01ktz… 1h
  hearthctl extend e-01ktz… --until 2030-01-02T18:00:00Z`,
		Args:              extendArgs(&until),
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			end, err := endOf(args[1:], until)
			if err != nil {
				return err
			}
			return a.one(cmd.Context(), "extend", args[0], func(ctx context.Context, b backend, id string) error {
				key := newKey()
				e, err := again(ctx, func() (*hearthv1.Environment, error) { return b.extend(ctx, key, id, end) })
				if err != nil {
					return err
				}
				return a.print(e, []string{id}, func(w io.Writer, _ bool) {
					fmt.Fprintf(w, "%s ends in %s, at %s\n", id, left(e.GetExpiresAt()), e.GetExpiresAt().AsTime().Format(time.RFC3339))
				})
			})
		},
	}
	cmd.Flags().StringVar(&until, "until", "", "end at this time, RFC 3339, instead of a DURATION")
	a.outputFlag(cmd)
	return cmd
}

// extendArgs wants an environment, and a duration unless --until is there.
func extendArgs(until *string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		want := 2
		if *until != "" {
			want = 1
		}
		if len(args) != want {
			return usagef("want ENVIRONMENT and either DURATION or --until TIME: %s e-… 1h", cmd.CommandPath())
		}
		return nil
	}
}

// ending is when an environment shall end: from now, or at a time.
type ending struct {
	in time.Duration
	at *timestamppb.Timestamp // nil for in
}

func endOf(args []string, until string) (ending, error) {
	if until != "" {
		t, err := time.Parse(time.RFC3339, until)
		if err != nil {
			return ending{}, usagef("--until %q: want a time such as 2030-01-02T18:00:00Z", until)
		}
		return ending{at: timestamppb.New(t)}, nil
	}
	d, err := lifetime("", args[0])
	return ending{in: d}, err
}

// lifetime parses a length of time that somebody may live for.
func lifetime(flag, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		return 0, usagef("%s%q: want a duration of a second or more, such as 90m or 2h", flag, text)
	}
	return d, nil
}

// left is how long it is until then, "-" for ever.
func left(at *timestamppb.Timestamp) string {
	if at == nil {
		return "-"
	}
	return shortDuration(time.Until(at.AsTime()).Round(time.Second))
}
