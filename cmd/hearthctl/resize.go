package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/config"
)

// limitFlags are what claim, run and resize share.
type limitFlags struct{ cpu, memory, burst string }

func (f *limitFlags) add(cmd *cobra.Command, absent string) {
	fl := cmd.Flags()
	fl.StringVar(&f.cpu, "cpu", "", "CPUs: 2, 500m; default is "+absent)
	fl.StringVar(&f.memory, "memory", "", "memory: 4Gi, 512Mi; default is "+absent)
	fl.StringVar(&f.burst, "cpu-burst", "", "CPUs beyond --cpu for short times, at most as many; 0 is none, default is "+absent)
}

// resources are what the flags ask for; nil for nothing.
func (f *limitFlags) resources() (*hearthv1.Resources, error) {
	if *f == (limitFlags{}) {
		return nil, nil
	}
	r := &hearthv1.Resources{}
	var cpu, burst config.Millis
	var memory config.Bytes
	for _, q := range []struct {
		flag, text string
		into       interface{ UnmarshalJSON([]byte) error }
	}{{"--cpu", f.cpu, &cpu}, {"--memory", f.memory, &memory}, {"--cpu-burst", f.burst, &burst}} {
		if q.text == "" {
			continue
		}
		if err := q.into.UnmarshalJSON([]byte(q.text)); err != nil {
			return nil, usagef("%s: %s", q.flag, err)
		}
	}
	if f.cpu != "" && cpu == 0 || f.memory != "" && memory == 0 {
		return nil, usagef("--cpu and --memory cannot be 0: leave out what is to stay")
	}
	r.CpuMillis, r.MemoryBytes = uint64(cpu), uint64(memory)
	if f.burst != "" {
		b := uint64(burst)
		r.CpuBurstMillis = &b
	}
	return r, nil
}

func (a *app) resizeCommand() *cobra.Command {
	var f limitFlags
	cmd := &cobra.Command{
		Use:   "resize ENVIRONMENT",
		Short: "Change an environment's CPU and memory limits while it lives",
		Long: `Resize changes the limits of a running, paused or stalled environment: all that
are named, or none. What is not named stays. Memory is not lowered below what
is in use, and not raised above what the node has left. An environment that an
Environment object asks for is resized there, by spec.resources.`,
		Example: `  hearthctl resize e-01ktz… --cpu 2 --memory 4Gi
  hearthctl resize e-01ktz… --cpu-burst 1
  hearthctl resize e-01ktz… --memory 512Mi -o json`,
		Args:              exactArgs("ENVIRONMENT"),
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := f.resources()
			if err != nil {
				return err
			}
			if want == nil {
				return usagef("nothing to change: add --cpu, --memory or --cpu-burst")
			}
			return a.one(cmd.Context(), "resize", args[0], func(ctx context.Context, b backend, id string) error {
				key := newKey()
				e, err := again(ctx, func() (*hearthv1.Environment, error) { return b.resize(ctx, key, id, want) })
				if err != nil {
					return err
				}
				return a.print(e, []string{id}, func(w io.Writer, _ bool) {
					fmt.Fprintf(w, "%s resized: %s\n", id, resourcesWord(e.GetResources()))
				})
			})
		},
	}
	f.add(cmd, "what it has")
	a.outputFlag(cmd)
	return cmd
}

// resourcesWord is "cpu 1.5 (burst 0.5), memory 2.0GiB".
func resourcesWord(r *hearthv1.Resources) string {
	if r == nil {
		return "-"
	}
	cpus := func(millis uint64) string { return fmt.Sprintf("%g", float64(millis)/1000) }
	word := "cpu " + cpus(r.GetCpuMillis())
	if b := r.GetCpuBurstMillis(); b > 0 {
		word += " (burst " + cpus(b) + ")"
	}
	return word + ", memory " + bytesWord(r.GetMemoryBytes())
}
