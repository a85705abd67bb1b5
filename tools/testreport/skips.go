package main

import (
	"bufio"
	"fmt"
	"os"
	"sort"
	"strings"
)

// readSkips reads lines of `package test  reason`. Empty lines and lines that
// begin with # are comments. A line without a reason, or one that stands twice,
// is an error.
func readSkips(path string) (map[name]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open skip list: %w", err)
	}
	defer file.Close()
	listed := map[name]string{}
	scanner := bufio.NewScanner(file)
	for number := 1; scanner.Scan(); number++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 3 {
			return nil, fmt.Errorf("%s:%d: want `package test  reason`, got %q", path, number, line)
		}
		id := name{fields[0], fields[1]}
		if _, twice := listed[id]; twice {
			return nil, fmt.Errorf("%s:%d: %s %s is listed twice", path, number, id.pkg, id.test)
		}
		listed[id] = strings.Join(fields[2:], " ")
	}
	return listed, scanner.Err()
}

// compareSkips says, a line each, which tests skipped without being listed and
// which are listed but did not skip.
func (r *report) compareSkips(listed map[name]string, list string) []string {
	var faults []string
	for id := range r.skipped {
		if _, ok := listed[id]; !ok {
			faults = append(faults, fmt.Sprintf("SKIP not listed: %s %s (make it run, or add it to %s with its reason)", id.pkg, id.test, list))
		}
	}
	for id, reason := range listed {
		if !r.skipped[id] {
			faults = append(faults, fmt.Sprintf("listed SKIP did not skip: %s %s (%s; remove it from %s)", id.pkg, id.test, reason, list))
		}
	}
	sort.Strings(faults)
	return faults
}
