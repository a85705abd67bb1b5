// Results turns what the VM wrote on its second serial port into the events of
// `go test -json`: each package's section goes through test2json, and the line
// that `go test` would add at its end is added.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	list := flag.String("list", "", "the file that names the packages, one a line, that must be there")
	flag.Parse()
	if err := run(*list, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "results:", err)
		os.Exit(1)
	}
}

func run(list string, in io.Reader, out io.Writer) error {
	expected, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	log, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	sections := split(log)
	encoder := json.NewEncoder(out)
	var missing []string
	for line := range strings.Lines(string(expected)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		s, found := sections[fields[0]]
		if !found {
			missing = append(missing, fields[0])
			continue
		}
		events, err := test2json(s)
		if err != nil {
			return err
		}
		if _, err := out.Write(events); err != nil {
			return err
		}
		for _, e := range s.closing() {
			if err := encoder.Encode(e); err != nil {
				return err
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the VM ended before it ran %s; see .vm/console.log", strings.Join(missing, ", "))
	}
	return nil
}

// event is one line of `go test -json`.
type event struct {
	Action  string
	Package string
	Output  string `json:",omitempty"`
}

// test2json leaves out the package's own last events, which only the command
// that ran the tests can know.
func test2json(s section) ([]byte, error) {
	cmd := exec.Command("go", "tool", "test2json", "-p", s.pkg)
	cmd.Stdin = bytes.NewReader(s.output)
	cmd.Stderr = os.Stderr
	events, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("test2json of %s: %w", s.pkg, err)
	}
	var kept bytes.Buffer
	for line := range bytes.Lines(events) {
		var e struct{ Action, Test string }
		if json.Unmarshal(line, &e) == nil && e.Test == "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			continue
		}
		kept.Write(line)
	}
	return kept.Bytes(), nil
}
