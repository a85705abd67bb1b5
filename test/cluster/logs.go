package cluster

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Logs writes what a person needs to understand a failure into a directory:
// every component's log, every container's, and the state of the API and of
// each node's network. It goes on past what cannot be had and says so.
func (c *Cluster) Logs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := []error{copyTree(filepath.Join(dir, "components"), c.path("log"))}
	for _, n := range c.nodes() {
		holder, err := c.pid(n.Name)
		errs = append(errs, err)
		if err == nil { // the node's disk is mounted in its namespace alone
			errs = append(errs, copyTree(filepath.Join(dir, n.Name, "pods"), fmt.Sprintf("/proc/%d/root/var/log/pods", holder)))
		}
		for name, argv := range map[string][]string{
			"addresses": {"ip", "addr"}, "routes": {"ip", "route", "show", "table", "all"},
			"nft": {"nft", "list", "ruleset"}, "mounts": {"cat", "/proc/self/mounts"},
			"tasks": {"ctr", "-n", "k8s.io", "tasks", "ls"}, "hearth-tasks": {"ctr", "-n", "hearth", "tasks", "ls"},
		} {
			errs = append(errs, capture(filepath.Join(dir, n.Name, name+".txt"), c.In(n.Name, argv...)))
		}
	}
	for name, args := range map[string][]string{
		"all":      {"get", "all", "-A", "-o", "wide"},
		"nodes":    {"describe", "nodes"},
		"pods":     {"describe", "pods", "-A"},
		"events":   {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		"services": {"get", "services,endpointslices", "-A", "-o", "wide"},
		"leases":   {"get", "leases", "-A", "-o", "yaml"},
	} {
		errs = append(errs, capture(filepath.Join(dir, "api", name+".txt"), c.Kubectl(append(args, "--request-timeout=10s")...)))
	}
	return errors.Join(errs...)
}

// capture writes a command's whole output to a file.
func capture(path string, cmd *exec.Cmd) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		out = fmt.Appendf(out, "\n%v\n", err)
	}
	return os.WriteFile(path, out, 0o644)
}

// copyTree copies regular files; what vanishes meanwhile is not there.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreGone(err)
		}
		in, err := os.Open(path)
		if err != nil {
			return ignoreGone(err)
		}
		defer in.Close()
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		out, err := os.Create(target)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		return errors.Join(err, out.Close())
	})
}

// logTails are the ends of the logs of what does not run, for an error's text.
func (c *Cluster) logTails() string {
	var b strings.Builder
	for _, comp := range c.components() {
		if _, err := os.Stat(c.recordPath(comp.name)); err != nil {
			continue // never started
		}
		if r, err := c.running(comp.name); err != nil || r != nil {
			continue
		}
		fmt.Fprintf(&b, "\n%s ended:\n%v", comp.name, tailError(c.logPath(comp.name)))
	}
	return b.String()
}

const tailBytes = 3000

// tailError is the end of a log as an error.
func tailError(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return fmt.Errorf("end of %s:\n%s", path, b[max(0, len(b)-tailBytes):])
}
