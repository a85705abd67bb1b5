package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
)

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
}

// name is one test of one package. Subtests count as tests.
type name struct{ pkg, test string }

// report gathers the events of a run and prints what `go test` would.
type report struct {
	out     io.Writer
	ran     int
	failed  bool
	skipped map[name]bool
	// pending holds the output of tests that have not ended.
	pending map[name]*strings.Builder
	// failures holds, by package, the output of failed tests until the
	// package's own line, as `go test` prints it.
	failures map[string]*strings.Builder
}

func newReport(out io.Writer) *report {
	return &report{
		out:      out,
		skipped:  map[name]bool{},
		pending:  map[name]*strings.Builder{},
		failures: map[string]*strings.Builder{},
	}
}

// read takes events until the end of r. A line that is not an event is printed
// as it is: the go command writes some.
func (r *report) read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test events: %w", err)
		}
	}
}

func (r *report) line(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
		fmt.Fprintf(r.out, "%s", line)
		return
	}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "build-fail":
		r.failed = true
	default:
		if e.Test == "" {
			r.packageEvent(e)
		} else {
			r.testEvent(e)
		}
	}
}

func (r *report) testEvent(e event) {
	id := name{e.Package, e.Test}
	switch e.Action {
	case "run":
		r.pending[id] = &strings.Builder{}
	case "output":
		if isFraming(e.Output) {
			return
		}
		if r.pending[id] == nil {
			r.pending[id] = &strings.Builder{}
		}
		r.pending[id].WriteString(e.Output)
	case "pass", "fail":
		r.ran++
		if e.Action == "fail" {
			r.failed = true
			r.keep(id)
		}
		delete(r.pending, id)
	case "skip":
		r.skipped[id] = true
		delete(r.pending, id)
	}
}

// isFraming tells the lines of -v that say nothing more than the events.
func isFraming(output string) bool {
	for _, prefix := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME "} {
		if strings.HasPrefix(output, prefix) {
			return true
		}
	}
	return false
}

func (r *report) keep(id name) {
	kept := r.failures[id.pkg]
	if kept == nil {
		kept = &strings.Builder{}
		r.failures[id.pkg] = kept
	}
	if output := r.pending[id]; output != nil {
		kept.WriteString(output.String())
	}
}

func (r *report) packageEvent(e event) {
	switch e.Action {
	case "output":
		if e.Output == "PASS\n" {
			return
		}
		r.printFailures(e.Package)
		fmt.Fprint(r.out, e.Output)
	case "fail":
		r.failed = true
		// A panic, os.Exit or time-out leaves tests that never ended.
		for _, id := range r.unfinished(e.Package) {
			r.ran++
			fmt.Fprintf(r.out, "--- FAIL: %s (did not end)\n", id.test)
			r.keep(id)
			delete(r.pending, id)
		}
		r.printFailures(e.Package)
	}
}

func (r *report) unfinished(pkg string) []name {
	var ids []name
	for id := range r.pending {
		if id.pkg == pkg {
			ids = append(ids, id)
		}
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i].test < ids[j].test })
	return ids
}

func (r *report) printFailures(pkg string) {
	if kept := r.failures[pkg]; kept != nil {
		fmt.Fprint(r.out, kept.String())
		delete(r.failures, pkg)
	}
}
