package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"

	hearthv1 "hearth/api/hearth/v1"
)

// The formats of -o; "" is a table.
var formats = []string{"wide", "name", "json", "yaml"}

// outputFlag adds -o to a command.
func (a *app) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.output, "output", "o", "", "format: wide, name, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if a.output != "" && !slices.Contains(formats, a.output) {
			return usagef("-o %s: want wide, name, json or yaml", a.output)
		}
		return nil
	}
}

// print writes m as JSON or YAML, or else what the table and names say.
func (a *app) print(m proto.Message, names []string, table func(w io.Writer, wide bool)) error {
	switch a.output {
	case "json", "yaml":
		return writeMessage(a.stdout, m, a.output)
	case "name":
		for _, n := range names {
			if _, err := fmt.Fprintln(a.stdout, n); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 3, ' ', 0)
	table(w, a.output == "wide")
	return w.Flush()
}

func writeMessage(w io.Writer, m proto.Message, format string) error {
	data, err := protojson.MarshalOptions{EmitUnpopulated: false}.Marshal(m)
	if err != nil {
		return err
	}
	if format == "yaml" {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	}
	// protojson varies its white space on purpose; scripts and people want it stable.
	var compact, out bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return err
	}
	if err := json.Indent(&out, compact.Bytes(), "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err = out.WriteTo(w)
	return err
}

func (a *app) printEnvironments(m proto.Message, envs []*hearthv1.Environment) error {
	names := make([]string, len(envs))
	for i, e := range envs {
		names[i] = e.GetId()
	}
	return a.print(m, names, func(w io.Writer, wide bool) {
		row(w, wide, []string{"ID", "CLASS", "PHASE", "NODE", "AGE", "EXPIRES"}, "GENERATION", "START", "ADDRESS", "SLOT", "PORTS", "FROM", "LIMITS", "REVISION", "LABELS")
		for _, e := range envs {
			row(w, wide, []string{e.GetId(), e.GetClass(), phase(e), dash(e.GetNode()), age(e.GetClaimedAt()), left(e.GetExpiresAt())},
				fmt.Sprint(e.GetGeneration()), servedWord(e), dash(e.GetAddress()), dash(e.GetSlot()), portList(e.GetPorts()),
				dash(e.GetRestoredFrom()), resourcesWord(e.GetResources()), revisionWord(e), pairs(e.GetLabels()))
		}
	})
}

// row writes one line, with more columns if wide.
func row(w io.Writer, wide bool, cells []string, more ...string) {
	if wide {
		cells = append(cells, more...)
	}
	for i, c := range cells {
		cells[i] = printable(c)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// printable keeps a value from moving the cursor or another column: some come
// from inside environments.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func phase(e *hearthv1.Environment) string {
	word := strings.ToLower(strings.TrimPrefix(e.GetPhase().String(), "PHASE_"))
	if e.GetMessage() != "" {
		return word + " (" + e.GetMessage() + ")"
	}
	return word
}

// servedWord is how an environment's claim was: warm, queued or cold.
func servedWord(e *hearthv1.Environment) string {
	switch {
	case e.GetServed() == "queued":
		return "queued"
	case e.GetWarm():
		return "warm"
	default:
		return "cold"
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age is kubectl's: one unit, or two while the first is small.
func age(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return shortDuration(time.Since(t.AsTime()))
}

func shortDuration(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func portList(ports []*hearthv1.Port) string {
	var out []string
	for _, p := range ports {
		out = append(out, fmt.Sprintf("%s:%d", p.GetName(), p.GetNumber()))
	}
	return dash(strings.Join(out, ","))
}

func pairs(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return dash(strings.Join(out, ","))
}

func bytesWord(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%dB", n)
	}
	v, i := float64(n)/unit, 0
	for v >= unit && i < 4 {
		v, i = v/unit, i+1
	}
	return fmt.Sprintf("%.1f%ciB", v, "KMGTP"[i])
}
