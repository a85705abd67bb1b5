package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"hearth/internal/guest/wire"
)

// The heap of a quiet envinit is a few hundred kilobytes: collecting early
// costs nothing and keeps thousands of them small.
const (
	gcPercent   = 25
	memoryLimit = 64 << 20 // bytes; above it the collector works harder, nothing fails
	maxThreads  = 2        // goroutines that run at once
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	switch {
	case len(args) == 0:
		debug.SetGCPercent(gcPercent)
		debug.SetMemoryLimit(memoryLimit)
		runtime.GOMAXPROCS(min(maxThreads, runtime.GOMAXPROCS(0)))
		if err := serve(stderr); err != nil {
			fmt.Fprintln(stderr, "envinit:", err)
			return 1
		}
		return 0
	case len(args) == 1 && args[0] == "hold":
		return hold(stdin, stdout)
	case len(args) == 1 && args[0] == "version":
		fmt.Fprintf(stdout, "envinit: protocol %d to %d\n", wire.LeastVersion, wire.Version)
		return 0
	default:
		fmt.Fprintf(stderr, "envinit: unknown arguments %q: run it without any as pid 1, or with \"hold\" or \"version\"\n", args)
		return 2
	}
}

// hold keeps this process's namespaces alive: one byte says that it runs, the
// end of stdin ends it.
func hold(stdin io.Reader, stdout io.Writer) int {
	if _, err := stdout.Write([]byte{1}); err != nil {
		return 1
	}
	var b [64]byte
	for {
		if _, err := stdin.Read(b[:]); err != nil {
			return 0
		}
	}
}
