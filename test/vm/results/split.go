package main

import (
	"bytes"
	"fmt"
	"strings"
)

// The marks that the guest's init writes around each package.
const (
	markPackage = "=== VM PACKAGE "
	markExit    = "=== VM EXIT "
)

// section is what one package's test binary wrote.
type section struct {
	pkg     string
	output  []byte
	ended   bool // the binary's exit was seen
	status  string
	seconds string
}

// split cuts the log at the marks. A package without an end stays in, so that
// its tests count as not ended.
func split(log []byte) map[string]section {
	sections := map[string]section{}
	var current section
	keep := func() {
		if current.pkg != "" {
			sections[current.pkg] = current
		}
		current = section{}
	}
	for line := range bytes.Lines(log) {
		text := strings.TrimRight(string(line), "\r\n")
		if pkg, ok := strings.CutPrefix(text, markPackage); ok {
			keep()
			current.pkg = pkg
			continue
		}
		if rest, ok := strings.CutPrefix(text, markExit); ok {
			if fields := strings.Fields(rest); len(fields) == 3 && fields[0] == current.pkg {
				current.ended, current.status, current.seconds = true, fields[1], fields[2]
				// The guest begins the mark on a line of its own.
				current.output = bytes.TrimSuffix(current.output, []byte("\n"))
			}
			keep()
			continue
		}
		if current.pkg != "" {
			current.output = append(current.output, line...)
		}
	}
	keep()
	return sections
}

// closing is what `go test` says of a package when its binary has ended.
func (s section) closing() []event {
	switch {
	case !s.ended:
		return []event{
			{Action: "output", Package: s.pkg, Output: fmt.Sprintf("FAIL\t%s\tthe VM ended first\n", s.pkg)},
			{Action: "fail", Package: s.pkg},
		}
	case s.status != "0":
		return []event{
			{Action: "output", Package: s.pkg, Output: fmt.Sprintf("FAIL\t%s\t%ss\n", s.pkg, s.seconds)},
			{Action: "fail", Package: s.pkg},
		}
	default:
		return []event{
			{Action: "output", Package: s.pkg, Output: fmt.Sprintf("ok  \t%s\t%ss\n", s.pkg, s.seconds)},
			{Action: "pass", Package: s.pkg},
		}
	}
}
