package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"hearth/internal/env"
)

// fault is one thing that is wrong in a file.
type fault struct {
	line int    // 0 if it belongs to no line
	path string // "spec.egress.allow[0].cidr"; "" for the whole
	text string
}

func (f fault) String() string {
	var b strings.Builder
	if f.path != "" {
		b.WriteString(f.path)
		b.WriteString(": ")
	}
	b.WriteString(f.text)
	return b.String()
}

// maxFaults bounds an error's length; more faults than these are counted.
const maxFaults = 20

// wrapFaults makes one error of all faults of a file, nil if there are none.
// Each line begins with the file and, where known, the line: "f.yaml:3: …".
func wrapFaults(file string, faults []fault) error {
	if len(faults) == 0 {
		return nil
	}
	rest := 0
	if len(faults) > maxFaults {
		rest, faults = len(faults)-maxFaults, faults[:maxFaults]
	}
	errs := make([]error, 0, len(faults)+1)
	for _, f := range faults {
		at := file
		if f.line > 0 {
			at += ":" + strconv.Itoa(f.line)
		}
		errs = append(errs, fmt.Errorf("%s: %w: %s", at, env.ErrInvalid, f))
	}
	if rest > 0 {
		errs = append(errs, fmt.Errorf("%s: %w: and %d more faults", file, env.ErrInvalid, rest))
	}
	return errors.Join(errs...)
}

// faultList collects what validation finds.
type faultList struct {
	faults []fault
}

func (l *faultList) addf(path, format string, args ...any) {
	l.faults = append(l.faults, fault{path: path, text: fmt.Sprintf(format, args...)})
}

// syntaxFault turns the parser's error ("yaml: line 3: …") into a fault with
// the line of the file.
func syntaxFault(err error, offset int) fault {
	text := strings.TrimPrefix(oneLine(err), "yaml: ")
	rest, ok := strings.CutPrefix(text, "line ")
	if !ok {
		return fault{line: offset + 1, text: text}
	}
	num, msg, ok := strings.Cut(rest, ": ")
	n, convErr := strconv.Atoi(num)
	if !ok || convErr != nil {
		return fault{line: offset + 1, text: text}
	}
	return fault{line: offset + n, text: msg}
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
