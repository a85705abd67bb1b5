// Command controller places environments on nodes and answers callers. See
// `controller --help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"hearth/internal/env"
)

// version is set by the linker.
var version = "devel"

// environment is what the program sees of its process, so that tests run the
// real thing.
type environment struct {
	stdout, stderr io.Writer
	getenv         func(string) string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], environment{os.Stdout, os.Stderr, os.Getenv})
	stop()
	os.Exit(code)
}

// Exit codes.
const (
	exitFailed       = 1
	exitUsage        = 2 // usage or configuration
	exitPrecondition = 3 // the state is not one for it
	exitUnreachable  = 4
)

func run(ctx context.Context, args []string, e environment) int {
	root := rootCommand(e)
	root.SetArgs(args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(e.stderr, "controller: %v\n", err)
	switch {
	case errors.Is(err, env.ErrInvalid), errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, env.ErrState), errors.Is(err, env.ErrExists), errors.Is(err, env.ErrUnsupported):
		return exitPrecondition
	case errors.Is(err, env.ErrUnavailable):
		return exitUnreachable
	}
	return exitFailed
}

// errUsage marks a wrong command line.
var errUsage = errors.New("see --help")
