package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/rpc"
)

// debugger is "nodeagent debug": questions of an operator to a running agent,
// over its Unix socket. It changes nothing.
type debugger struct {
	debugIO
	// socket finds the agent's socket; it is asked when a command runs.
	socket func() (string, error)
	json   bool
}

// debugIO is where debug writes.
type debugIO struct{ stdout, stderr io.Writer }

// debugCommand returns "debug" with its subcommands. socket is called once by
// the subcommand that runs.
func debugCommand(out debugIO, socket func() (string, error)) *cobra.Command {
	d := &debugger{debugIO: out, socket: socket}
	var output string
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Ask a running agent what it has and sees",
		Long: `Debug asks the agent of this node over its Unix socket, as root. It changes
nothing.`,
		Example: `  nodeagent debug ps
  nodeagent debug inspect e-01ktz…
  nodeagent debug flows e-01ktz…
  nodeagent debug detections --follow -o json`,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("-o %s: %w: want json, or nothing for a table", output, env.ErrInvalid)
			}
			d.json = output == "json"
			return nil
		},
	}
	cmd.PersistentFlags().StringVarP(&output, "output", "o", "", "format: json")
	cmd.AddCommand(d.psCommand(), d.inspectCommand(), d.poolsCommand(), d.claimProfileCommand(), d.flowsCommand(), d.detectionsCommand())
	return cmd
}

// ask runs f with a client of the agent until it is done or interrupted.
func (d *debugger) ask(ctx context.Context, f func(context.Context, hearthv1connect.NodeServiceClient) error) error {
	path, err := d.socket()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	h := rpc.UnixClient(path)
	defer h.CloseIdleConnections()
	err = f(ctx, hearthv1connect.NewNodeServiceClient(h, rpc.UnixURL, rpc.ClientOptions()...))
	if err != nil && !rpc.Answered(err) && errors.Is(err, env.ErrUnavailable) {
		return fmt.Errorf("ask the agent at %s: %w: is it running, and are you root?", path, err)
	}
	return err
}

// message writes m as one JSON document.
func (d *debugger) message(m proto.Message) error {
	data, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	return d.indented(data)
}

// indented writes JSON for people; protojson varies its white space on purpose.
func (d *debugger) indented(data []byte) error {
	var compact, out bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	if err := json.Indent(&out, compact.Bytes(), "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err := out.WriteTo(d.stdout)
	return err
}

// table writes rows under a header.
func (d *debugger) table(header []string, rows [][]string) error {
	w := tabwriter.NewWriter(d.stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(header, "\t"))
	for _, r := range rows {
		for i, cell := range r {
			r[i] = cellText(cell)
		}
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// cellText keeps a value from inside an environment from steering the terminal
// or shifting the table.
func cellText(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
