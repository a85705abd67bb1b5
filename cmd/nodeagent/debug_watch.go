package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

func (d *debugger) flowsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "flows ENVIRONMENT",
		Short: "Show an environment's connections, and what was refused by reason",
		Example: `  nodeagent debug flows e-01ktz…
  nodeagent debug flows e-01ktz… -o json`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.ask(cmd.Context(), func(ctx context.Context, c hearthv1connect.NodeServiceClient) error {
				r, err := c.Flows(ctx, &hearthv1.FlowsRequest{Environment: args[0]})
				if err != nil {
					return fmt.Errorf("list flows of %s: %w", args[0], err)
				}
				if d.json {
					return d.message(r)
				}
				return d.printFlows(r)
			})
		},
	}
}

func (d *debugger) printFlows(r *hearthv1.FlowsResponse) error {
	var rows [][]string
	for _, f := range r.GetFlows() {
		rows = append(rows, []string{
			f.GetProtocol(), f.GetSource(), f.GetDestination(),
			fmt.Sprint(f.GetPacketsOut()), fmt.Sprint(f.GetBytesOut()), fmt.Sprint(f.GetPacketsIn()), fmt.Sprint(f.GetBytesIn()),
			since(f.GetLast()),
		})
	}
	if err := d.table([]string{"PROTOCOL", "SOURCE", "DESTINATION", "PACKETS-OUT", "BYTES-OUT", "PACKETS-IN", "BYTES-IN", "IDLE"}, rows); err != nil {
		return err
	}
	fmt.Fprintf(d.stdout, "\nallowed packets: %d\n", r.GetAllowedPackets())
	for _, reason := range slices.Sorted(maps.Keys(r.GetDrops())) {
		if n := r.GetDrops()[reason]; n > 0 {
			fmt.Fprintf(d.stdout, "refused (%s): %d\n", cellText(reason), n)
		}
	}
	return nil
}

func (d *debugger) detectionsCommand() *cobra.Command {
	var follow bool
	var environment string
	cmd := &cobra.Command{
		Use:   "detections",
		Short: "Show recent detections, the newest last",
		Long: `Detections shows what the rules found, the newest last. With -o json every
detection is one line. With --follow it goes on until it is interrupted.`,
		Example: `  nodeagent debug detections
  nodeagent debug detections --follow -o json
  nodeagent debug detections --environment e-01ktz…`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.ask(cmd.Context(), func(ctx context.Context, c hearthv1connect.NodeServiceClient) error {
				err := d.detections(ctx, c, &hearthv1.DetectionsRequest{Follow: follow, Environment: environment})
				if follow && ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, env.ErrUnavailable)) {
					return nil // the operator has seen enough
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new ones")
	cmd.Flags().StringVar(&environment, "environment", "", "only this environment's")
	return cmd
}

func (d *debugger) detections(ctx context.Context, c hearthv1connect.NodeServiceClient, req *hearthv1.DetectionsRequest) error {
	stream, err := c.Detections(ctx, req)
	if err != nil {
		return fmt.Errorf("list detections: %w", err)
	}
	defer func() { _ = stream.Close() }()
	n := 0
	for stream.Receive() {
		n++
		if err := d.printDetection(stream.Msg().GetDetection()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return fmt.Errorf("list detections: %w", err)
	}
	if n == 0 && !d.json {
		fmt.Fprintln(d.stderr, "No detections.")
	}
	return nil
}

// printDetection writes one line: a stream has no end to align columns by.
func (d *debugger) printDetection(x *hearthv1.Detection) error {
	if d.json {
		data, err := protojson.Marshal(x)
		if err != nil {
			return err
		}
		var line json.RawMessage = data
		if data, err = json.Marshal(line); err != nil { // compacts
			return err
		}
		_, err = fmt.Fprintf(d.stdout, "%s\n", data)
		return err
	}
	who := x.GetEnvironment()
	if who == "" {
		who = x.GetSlot()
	}
	line := fmt.Sprintf("%s %-8s %s %s", x.GetTime().AsTime().Format(time.RFC3339Nano), cellText(x.GetSeverity()), cellText(x.GetRule()), cellText(who))
	for _, kv := range [][2]string{
		{"response", x.GetResponse()}, {"pid", number(uint64(x.GetPid()))}, {"command", x.GetCommand()},
		{"destination", x.GetDestination()}, {"detail", x.GetDetail()},
	} {
		if kv[1] != "" {
			line += fmt.Sprintf(" %s=%q", kv[0], kv[1])
		}
	}
	_, err := fmt.Fprintln(d.stdout, line)
	return err
}
