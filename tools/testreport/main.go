// Testreport runs the tests of one or more modules, prints what `go test`
// prints, and holds their skips against a checked-in list.
//
// Packages whose tests work on the real kernel or on containerd run one after
// the other, since they share one machine; the others run side by side. Its
// last line is `tests: N run, S skipped`. It exits with 1 if a test failed, if
// a test skipped that is not on the list, or if a listed test did not skip.
//
// With -stdin it reads `go test -json` events instead of running anything.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
}

// errFaults says that the run itself worked and that what it found was printed.
var errFaults = errors.New("tests failed")

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("testreport", flag.ContinueOnError)
	dir := flags.String("dir", ".", "the repository's root")
	skips := flags.String("skips", "test/skips.txt", "list of expected skips, relative to the root")
	race := flags.Bool("race", false, "run with the race detector")
	timeout := flags.Duration("timeout", 10*time.Minute, "limit for one package")
	useStdin := flags.Bool("stdin", false, "read go test -json events from standard input")
	if err := flags.Parse(args); err != nil {
		return err
	}
	listed, err := readSkips(filepath.Join(*dir, *skips))
	if err != nil {
		return err
	}
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	report := newReport(flushWriter{out})
	if *useStdin {
		if err := report.read(stdin); err != nil {
			return err
		}
	} else if err := runTests(ctx, *dir, *race, *timeout, report); err != nil {
		return err
	}
	faults := report.compareSkips(listed, *skips)
	for _, fault := range faults {
		fmt.Fprintln(out, fault)
	}
	fmt.Fprintf(out, "tests: %d run, %d skipped\n", report.ran, len(report.skipped))
	if report.failed || len(faults) > 0 {
		return errFaults
	}
	return nil
}

// flushWriter shows a line when it is complete, so that a long run can be
// followed.
type flushWriter struct{ w *bufio.Writer }

func (f flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.w.Flush()
	}
	return n, err
}

// modules are the parts of the repository that have tests of their own. Only the
// first has tests that work on this machine's kernel: those of test/vm are about
// the VM.
var modules = []struct {
	dir       string
	exclusive bool
}{{".", true}, {"tools", false}, {"test/vm", false}}

func runTests(ctx context.Context, root string, race bool, timeout time.Duration, report *report) error {
	common := []string{"test", "-json", "-count=1", "-timeout", timeout.String()}
	if race {
		common = append(common, "-race")
	}
	for _, module := range modules {
		dir := filepath.Join(root, module.dir)
		args := append(common[:len(common):len(common)], "-skip", exclusiveTests, "./...")
		if err := goTest(ctx, dir, args, report); err != nil {
			return err
		}
		if !module.exclusive {
			continue
		}
		exclusive, err := exclusivePackages(ctx, dir)
		if err != nil {
			return err
		}
		if len(exclusive) == 0 {
			continue
		}
		args = append(common[:len(common):len(common)], "-p", "1", "-run", exclusiveTests)
		if err := goTest(ctx, dir, append(args, exclusive...), report); err != nil {
			return err
		}
	}
	return nil
}

// goTest runs one `go test -json`. A failing test is the report's matter; an
// error means that events are missing.
func goTest(ctx context.Context, dir string, args []string, report *report) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	// The go command passes the signal on, so that tests can clean up.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	readErr := report.read(events)
	waitErr := cmd.Wait()
	if readErr != nil {
		return readErr
	}
	if ctx.Err() != nil {
		return fmt.Errorf("go %s: interrupted", strings.Join(args, " "))
	}
	if waitErr != nil {
		// `go test` exits with 1 for failing tests, which the events tell; also
		// for faults before any test, which they may not.
		report.failed = true
		var exit *exec.ExitError
		if !errors.As(waitErr, &exit) {
			return fmt.Errorf("run go test: %w", waitErr)
		}
	}
	return nil
}
