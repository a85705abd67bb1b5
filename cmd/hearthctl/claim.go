package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
)

// claimFlags are what claim and run share.
type claimFlags struct {
	class, tenant, hostname, metadata, snapshot string
	vars, labels, mounts                        []string
	key, ttl                                    string
	noEgress                                    bool
	limits                                      limitFlags
}

func (f *claimFlags) add(a *app, cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.class, "class", "", "class of the environment (required)")
	fl.StringVar(&f.tenant, "tenant", "", "tenant, where the API key may choose")
	fl.StringArrayVarP(&f.vars, "env", "e", nil, "variable NAME=VALUE, or NAME to pass this process's own; repeatable")
	fl.StringArrayVarP(&f.labels, "label", "l", nil, "label KEY=VALUE; repeatable")
	fl.StringVar(&f.hostname, "hostname", "", "host name inside; default is the environment's id")
	fl.StringVar(&f.metadata, "metadata", "", "JSON for /run/hearth/metadata.json, or @FILE")
	fl.StringVar(&f.snapshot, "snapshot", "", "snapshot to restore before the first process starts")
	fl.BoolVar(&f.noEgress, "no-egress", false, "refuse every destination, whatever the class allows")
	fl.StringArrayVar(&f.mounts, "mount", nil, "directory of the node NAME[/DIRECTORY]:PATH[:ro], as the class allows; repeatable")
	f.limits.add(cmd, "the class's")
	fl.StringVar(&f.ttl, "ttl", "", "release it after this time, 90m or 2h; at most what the class allows, default is the class's")
	fl.StringVar(&f.key, "idempotency-key", "", "repeat a claim safely: the same key gives the same environment for 24 h")
	_ = cmd.RegisterFlagCompletionFunc("class", a.completeClasses)
}

func (f *claimFlags) spec(getenv func(string) string) (*hearthv1.ClaimSpec, error) {
	if f.class == "" {
		return nil, usagef("no class: add --class NAME")
	}
	vars, err := keyValues("-e", f.vars, getenv)
	if err != nil {
		return nil, err
	}
	labels, err := keyValues("-l", f.labels, nil)
	if err != nil {
		return nil, err
	}
	meta, err := metadata(f.metadata)
	if err != nil {
		return nil, err
	}
	limits, err := f.limits.resources()
	if err != nil {
		return nil, err
	}
	mounts, err := mountsOf(f.mounts)
	if err != nil {
		return nil, err
	}
	s := &hearthv1.ClaimSpec{
		Class: f.class, Tenant: f.tenant, Variables: vars, Labels: labels,
		Hostname: f.hostname, Metadata: meta, Snapshot: f.snapshot, Resources: limits, Mounts: mounts,
	}
	if f.ttl != "" {
		ttl, err := lifetime("--ttl ", f.ttl)
		if err != nil {
			return nil, err
		}
		s.TimeToLive = durationpb.New(ttl)
	}
	if f.noEgress {
		s.Egress = &hearthv1.EgressPolicy{Mode: hearthv1.EgressPolicy_MODE_NONE}
	}
	return s, nil
}

// keyValues parses NAME=VALUE words; a bare NAME is taken from getenv.
func keyValues(flag string, words []string, getenv func(string) string) (map[string]string, error) {
	out := make(map[string]string, len(words))
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		switch {
		case k == "", !ok && getenv == nil:
			return nil, usagef("%s %q: want NAME=VALUE", flag, w)
		case !ok:
			v = getenv(k)
		}
		out[k] = v
	}
	return out, nil
}

// mountsOf parses NAME[/DIRECTORY]:PATH[:ro].
func mountsOf(words []string) (out []*hearthv1.Mount, _ error) {
	for _, w := range words {
		source, rest, _ := strings.Cut(w, ":")
		at, option, options := strings.Cut(rest, ":")
		name, dir, _ := strings.Cut(source, "/")
		if name == "" || at == "" || options && option != "ro" && option != "rw" {
			return nil, usagef("--mount %q: want NAME[/DIRECTORY]:PATH[:ro], as in datasets/images:/data:ro", w)
		}
		out = append(out, &hearthv1.Mount{Name: name, Directory: dir, Path: at, ReadOnly: option == "ro"})
	}
	return out, nil
}

// maxMetadata is the API's bound.
const maxMetadata = 64 << 10

func metadata(s string) ([]byte, error) {
	data := []byte(s)
	if name, ok := strings.CutPrefix(s, "@"); ok {
		f, err := os.Open(name)
		if err != nil {
			return nil, usagef("--metadata: %s", err)
		}
		defer f.Close()
		if data, err = io.ReadAll(io.LimitReader(f, maxMetadata+1)); err != nil {
			return nil, usagef("--metadata: %s", err)
		}
	}
	switch {
	case len(data) == 0:
		return nil, nil
	case len(data) > maxMetadata:
		return nil, usagef("--metadata: more than %d bytes", maxMetadata)
	case !json.Valid(data):
		return nil, usagef("--metadata: not JSON")
	}
	return data, nil
}

func (a *app) claimCommand() *cobra.Command {
	var f claimFlags
	cmd := &cobra.Command{
		Use:   "claim --class NAME",
		Short: "Claim an environment",
		Long: `Claim turns a ready slot of a class into an environment, or starts one if none
is ready. It answers when the environment runs; the access to it is kept for
the commands that follow.`,
		Example: `  hearthctl claim --class base
  id=$(hearthctl claim --class base -e API_KEY -e MODE=test -o name)
  hearthctl claim --class base --cpu 2 --memory 4Gi
  hearthctl claim --class base --ttl 2h
  hearthctl claim --class base --mount datasets/images:/data:ro
  hearthctl claim --class base --snapshot e-01ktz…/3
  hearthctl claim --class base --metadata @session.json -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.cancellable(cmd.Context(), func(ctx context.Context) error { return a.claimAndPrint(ctx, &f) })
		},
	}
	f.add(a, cmd)
	a.outputFlag(cmd)
	return cmd
}

func (a *app) claimAndPrint(ctx context.Context, f *claimFlags) error {
	b, err := a.backend()
	if err != nil {
		return err
	}
	r, err := a.claim(ctx, b, f)
	if err != nil {
		return err
	}
	if a.output == "" {
		fmt.Fprintln(a.stdout, r.GetEnvironment().GetId())
		return nil
	}
	return a.printEnvironments(r, []*hearthv1.Environment{r.GetEnvironment()})
}

// claim claims, keeps the access and says so on standard error.
func (a *app) claim(ctx context.Context, b backend, f *claimFlags) (*hearthv1.ClaimResponse, error) {
	spec, err := f.spec(a.getenv)
	if err != nil {
		return nil, err
	}
	key := f.key
	if key == "" {
		key = newKey()
	}
	stop := a.progress("claiming an environment of class " + f.class)
	r, err := again(ctx, func() (*hearthv1.ClaimResponse, error) { return b.claim(ctx, key, spec) })
	stop()
	if err != nil {
		return nil, fmt.Errorf("claim class %s: %w", f.class, err)
	}
	id, err := environmentID(r.GetEnvironment().GetId())
	if err != nil {
		return nil, fmt.Errorf("claim class %s: the server's answer: %w", f.class, err)
	}
	a.keep(id, r.GetAccess())
	waited := ""
	if w := r.GetEnvironment().GetWaited().AsDuration(); w > 0 {
		waited = fmt.Sprintf(", of which it waited %s ms for its turn", millis(w))
	}
	fmt.Fprintf(a.stderr, "claimed %s %s in %s ms%s\n", id, servedWord(r.GetEnvironment()), millis(r.GetTook().AsDuration()), waited)
	return r, nil
}

// millis has one digit behind the point below 100 ms, as in "0.6".
func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms >= 100 {
		return fmt.Sprintf("%.0f", ms)
	}
	return fmt.Sprintf("%.1f", ms)
}

// cancellable runs f with a context that SIGINT and SIGTERM end; then the exit
// code says which.
func (a *app) cancellable(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(sigs)
	got := make(chan os.Signal, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-sigs:
			got <- s
			cancel()
		case <-ctx.Done():
		}
	}()
	err := f(ctx)
	cancel()
	<-done
	select {
	case s := <-got:
		if err != nil {
			return codeError(exitSignal + signalNumber(s))
		}
	default:
	}
	return err
}

func signalNumber(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return int(n)
	}
	return 0
}

// progress says on standard error what is being waited for, if it takes more
// than two seconds, and every ten after that. The returned function ends it.
func (a *app) progress(what string) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		begun := time.Now()
		for wait := 2 * time.Second; ; wait = 10 * time.Second {
			select {
			case <-quit:
				return
			case <-time.After(wait):
				fmt.Fprintf(a.stderr, "%s: %s …\n", what, shortDuration(time.Since(begun)))
			}
		}
	}()
	return func() { close(quit); <-done }
}
