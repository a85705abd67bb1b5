package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
)

func (d *debugger) psCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ps",
		Short:   "List this node's environments",
		Example: "  nodeagent debug ps",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.ask(cmd.Context(), func(ctx context.Context, c hearthv1connect.NodeServiceClient) error {
				r, err := c.List(ctx, &hearthv1.NodeListRequest{})
				if err != nil {
					return fmt.Errorf("list environments: %w", err)
				}
				if d.json {
					return d.message(r)
				}
				var rows [][]string
				for _, e := range r.GetEnvironments() {
					rows = append(rows, []string{
						e.GetId(), e.GetSlot(), e.GetClass(), phaseWord(e), e.GetAddress(),
						number(uint64(e.GetPid())), since(e.GetClaimedAt()),
					})
				}
				return d.table([]string{"ENVIRONMENT", "SLOT", "CLASS", "PHASE", "ADDRESS", "PID", "AGE"}, rows)
			})
		},
	}
}

func (d *debugger) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "inspect SLOT|ENVIRONMENT",
		Short:   "Show everything that the agent knows of one slot or environment, as JSON",
		Example: "  nodeagent debug inspect e-01ktz…",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.ask(cmd.Context(), func(ctx context.Context, c hearthv1connect.NodeServiceClient) error {
				r, err := c.Inspect(ctx, &hearthv1.InspectRequest{Name: args[0]})
				if err != nil {
					return fmt.Errorf("inspect %s: %w", args[0], err)
				}
				return d.indented(r.GetJson())
			})
		},
	}
}

func (d *debugger) poolsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "pools",
		Short:   "Show the pools of ready slots, the claims that wait, and the node's room",
		Example: "  nodeagent debug pools",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.ask(cmd.Context(), func(ctx context.Context, c hearthv1connect.NodeServiceClient) error {
				r, err := c.Inventory(ctx, &hearthv1.InventoryRequest{})
				if err != nil {
					return fmt.Errorf("read inventory: %w", err)
				}
				if d.json {
					return d.message(r)
				}
				var rows [][]string
				for _, p := range r.GetPools() {
					rows = append(rows, []string{
						p.GetClass(), p.GetRevision()[:min(12, len(p.GetRevision()))], fmt.Sprint(p.GetWant()), fmt.Sprint(p.GetReady()),
						fmt.Sprint(p.GetPreparing()), fmt.Sprint(p.GetCreated()), fmt.Sprint(p.GetClaimed()), fmt.Sprint(p.GetWaiting()), p.GetMessage(),
					})
				}
				if err := d.table([]string{"CLASS", "REVISION", "WANT", "READY", "PREPARING", "CREATED", "CLAIMED", "WAITING", "MESSAGE"}, rows); err != nil {
					return err
				}
				room := r.GetRoom()
				_, err = fmt.Fprintf(d.stdout, "\nnode %s (instance %s): slots %d of %d, memory %d of %d MiB reserved\n",
					cellText(r.GetNode()), cellText(r.GetInstance()), room.GetSlotsUsed(), room.GetSlotsMax(),
					room.GetMemoryReservedBytes()>>20, room.GetMemoryMaxBytes()>>20)
				return err
			})
		},
	}
}

func phaseWord(e *hearthv1.Environment) string {
	word := strings.ToLower(strings.TrimPrefix(e.GetPhase().String(), "PHASE_"))
	if e.GetMessage() != "" {
		word += " (" + e.GetMessage() + ")"
	}
	return word
}

func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func since(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return time.Since(t.AsTime()).Truncate(time.Second).String()
}
