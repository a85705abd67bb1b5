package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	hearthv1 "hearth/api/hearth/v1"
)

// releaseTimeout bounds the release at the end of run.
const releaseTimeout = time.Minute

func (a *app) runCommand() *cobra.Command {
	var cf claimFlags
	var ef execFlags
	cmd := &cobra.Command{
		Use:   "run --class NAME -- COMMAND [ARG…]",
		Short: "Claim an environment, run a command, release it",
		Long: `Run claims an environment, runs a command in it and releases it, whatever
happened: also when the command fails or a signal asks run to end. It exits with
the command's code, 128+n if signal n ended it, and 125 if hearthctl failed.`,
		Example: `  hearthctl run --class base -- uname -a
  hearthctl run --class base -it -- bash
  hearthctl run --class base -e SEED=7 -- python3 -c 'import os; print(os.environ["SEED"])'
  hearthctl run --class base --snapshot e-01ktz…/3 -w /workspace -- make check`,
		Annotations:       map[string]string{ownCode: "true"},
		ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("want a command: hearthctl run --class NAME -- COMMAND")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			start, err := ef.start(a, args)
			if err != nil {
				return err
			}
			return a.runOnce(cmd.Context(), &cf, start, ef.interactive)
		},
	}
	cf.add(a, cmd)
	ef.add(cmd)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// runOnce claims, runs and releases.
func (a *app) runOnce(ctx context.Context, f *claimFlags, start *hearthv1.ExecStart, interactive bool) (err error) {
	b, err := a.backend()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var ended atomic.Int32
	// The first signal during the claim does not cancel it: its environment
	// must be known to be released. The second gives up.
	sigs, stop := catch(func(s syscall.Signal) {
		if endsUs(s) && !ended.CompareAndSwap(0, int32(s)) {
			cancel()
		}
	})
	defer stop()
	claim, err := a.claim(ctx, b, f)
	if err != nil {
		return endedBy(&ended, err)
	}
	id := claim.GetEnvironment().GetId()
	defer func() { err = a.releaseAfter(ctx, b, id, err) }()
	if ended.Load() != 0 {
		return endedBy(&ended, nil)
	}
	// From here on a signal before the command has started ends the attempt.
	defer sigs.with(func(s syscall.Signal) {
		if endsUs(s) {
			ended.Store(int32(s))
			cancel()
		}
	})()
	code, err := a.runClaimed(ctx, id, claim.GetAccess(), start, interactive, sigs)
	switch {
	case err != nil:
		return endedBy(&ended, fmt.Errorf("run in %s: %w", id, err))
	case code != 0:
		return codeError(code)
	}
	return nil
}

func (a *app) runClaimed(ctx context.Context, id string, acc *hearthv1.Access, start *hearthv1.ExecStart, interactive bool, sigs *catcher) (int, error) {
	g, err := newGuest(id, acc)
	if err != nil {
		return 0, err
	}
	defer g.http.CloseIdleConnections()
	return a.execute(ctx, g, start, interactive, sigs)
}

// endedBy prefers the signal to what it caused.
func endedBy(ended *atomic.Int32, err error) error {
	if s := ended.Load(); s != 0 {
		return codeError(exitSignal + int(s))
	}
	return err
}

// releaseAfter releases on a context of its own, since the run's may have ended.
// What came before stays the exit code; a leaked environment is always named.
func (a *app) releaseAfter(ctx context.Context, b backend, id string, before error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	_, err := a.release(ctx, b, id, false)
	switch {
	case err == nil:
		return before
	case before == nil:
		return fmt.Errorf("release %s: %w: it still exists: hearthctl release %s", id, err, id)
	default:
		fmt.Fprintf(a.stderr, "hearthctl: release %s: %s: it still exists: hearthctl release %s\n", id, err, id)
		return before
	}
}
