package main

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	hearthv1 "hearth/api/hearth/v1"
)

// execFlags are what exec and run share.
type execFlags struct {
	interactive, terminal bool
	dir, user             string
	vars                  []string
}

func (f *execFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVarP(&f.interactive, "stdin", "i", false, "pass standard input on")
	fl.BoolVarP(&f.terminal, "tty", "t", false, "run on a terminal; needs -i and a terminal here")
	fl.StringVarP(&f.dir, "workdir", "w", "", "working directory; default is /")
	fl.StringVarP(&f.user, "user", "u", "", "UID or UID:GID; default is 0:0")
}

func (f *execFlags) start(a *app, command []string) (*hearthv1.ExecStart, error) {
	uid, gid, err := parseUser(f.user)
	if err != nil {
		return nil, err
	}
	vars, err := keyValues("-e", f.vars, a.getenv)
	if err != nil {
		return nil, err
	}
	if f.dir != "" && !path.IsAbs(f.dir) {
		return nil, usagef("-w %q: want an absolute path", f.dir)
	}
	if f.terminal {
		if !f.interactive {
			return nil, usagef("-t needs -i: write -it")
		}
		if !term.IsTerminal(int(a.stdin.Fd())) {
			return nil, usagef("standard input is not a terminal: leave -t out")
		}
		if _, ok := vars["TERM"]; !ok && a.getenv("TERM") != "" {
			vars["TERM"] = a.getenv("TERM")
		}
	}
	return &hearthv1.ExecStart{Command: command, Dir: f.dir, Variables: vars, Terminal: f.terminal, Uid: uid, Gid: gid}, nil
}

func parseUser(s string) (uid, gid uint32, err error) {
	if s == "" {
		return 0, 0, nil
	}
	u, g, both := strings.Cut(s, ":")
	if !both {
		g = u
	}
	n, errU := strconv.ParseUint(u, 10, 16)
	m, errG := strconv.ParseUint(g, 10, 16)
	if errU != nil || errG != nil {
		return 0, 0, usagef("-u %q: want UID or UID:GID, numbers below 65536", s)
	}
	return uint32(n), uint32(m), nil
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec ENVIRONMENT -- COMMAND [ARG…]",
		Short: "Run a command in an environment",
		Long: `Exec runs a command and exits with its code: 128+n if signal n ended it, 125 if
hearthctl itself failed. Signals that hearthctl receives are passed on; the third
one that asks to end gives up.`,
		Example: `  hearthctl exec e-01ktz… -- uname -a
  echo 'print(6*7)' | hearthctl exec -i e-01ktz… -- python3 -
  hearthctl exec -it e-01ktz… -- top
  hearthctl exec -e MODE=test -w /workspace e-01ktz… -- make check`,
		Annotations:       map[string]string{ownCode: "true"},
		ValidArgsFunction: a.completeFirst,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(commandOf(args)) == 0 {
				return usagef("want an environment and a command: hearthctl exec ENVIRONMENT -- COMMAND")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			start, err := f.start(a, commandOf(args))
			if err != nil {
				return err
			}
			return a.execIn(cmd.Context(), args[0], start, f.interactive)
		},
	}
	f.add(cmd)
	cmd.Flags().StringArrayVarP(&f.vars, "env", "e", nil, "variable NAME=VALUE, or NAME to pass this process's own; repeatable")
	cmd.Flags().SetInterspersed(false) // what follows the environment belongs to the command
	return cmd
}

// commandOf is what follows the environment, without the dashes between.
func commandOf(args []string) []string {
	if len(args) > 1 && args[1] == "--" {
		return args[2:]
	}
	return args[min(1, len(args)):]
}

// shellScript finds the best shell of the image.
const shellScript = `command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l`

func (a *app) shellCommand() *cobra.Command {
	f := execFlags{interactive: true}
	cmd := &cobra.Command{
		Use:   "shell ENVIRONMENT",
		Short: "Open a shell in an environment",
		Long: `Shell opens bash, or sh where the image has none. On a terminal it is exec -it;
otherwise the shell reads standard input.`,
		Example: `  hearthctl shell e-01ktz…
  hearthctl shell e-01ktz… < script.sh`,
		Annotations:       map[string]string{ownCode: "true"},
		Args:              exactArgs("ENVIRONMENT"),
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.terminal = term.IsTerminal(int(a.stdin.Fd()))
			start, err := f.start(a, []string{"/bin/sh", "-c", shellScript})
			if err != nil {
				return err
			}
			return a.execIn(cmd.Context(), args[0], start, true)
		},
	}
	cmd.Flags().StringVarP(&f.dir, "workdir", "w", "", "working directory; default is /")
	cmd.Flags().StringVarP(&f.user, "user", "u", "", "UID or UID:GID; default is 0:0")
	return cmd
}

// completeFirst completes the environment only.
func (a *app) completeFirst(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.completeEnvironments(cmd, args, word)
}

// execIn runs a command in a claimed environment and ends as it ended.
func (a *app) execIn(ctx context.Context, name string, start *hearthv1.ExecStart, interactive bool) error {
	id, err := environmentID(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var ended atomic.Int32 // the signal that ended us before the command ran
	sigs, stop := catch(func(s syscall.Signal) {
		if endsUs(s) {
			ended.Store(int32(s))
			cancel()
		}
	})
	defer stop()
	code := 0
	err = a.inside(ctx, id, func(g *guest) error {
		code, err = a.execute(ctx, g, start, interactive, sigs)
		return err
	})
	switch sig := ended.Load(); {
	case err != nil && sig != 0:
		return codeError(exitSignal + int(sig))
	case err != nil:
		return fmt.Errorf("exec in %s: %w", id, err)
	case code != 0:
		return codeError(code)
	}
	return nil
}
