package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"hearth/test/cluster"
)

// handle is the cluster and where this tree's products are.
type handle struct {
	*cluster.Cluster
	root string // of the source tree
}

func (h *handle) Dir() string                { return h.Options.Dir }
func (h *handle) Source() string             { return h.root }
func (h *handle) Overlay() string            { return filepath.Join(h.root, "test", "e2e", "overlay") }
func (h *handle) Product(name string) string { return filepath.Join(h.root, "bin", name) }
func (h *handle) Probe() string              { return filepath.Join(h.root, ".bin", "probe") }
func (h *handle) MonitoringRoot() string     { return filepath.Join(h.root, ".bin", "monitoring") }
func (h *handle) Monitoring(name string) string {
	return filepath.Join(h.MonitoringRoot(), "usr", "bin", name)
}
func (h *handle) Program(name string) string  { return filepath.Join(h.BinDir, name) }
func (h *handle) image(name string) string    { return filepath.Join(h.root, ".image", name+".tar") }
func (h *handle) IP(node string) string       { return h.named(node).IP() }
func (h *handle) Partition(node string) error { return h.Cluster.Partition(h.Nodes()[0], node) }
func (h *handle) Heal(string) error           { return h.Cluster.Heal() }

// Nodes are the names, node1 first.
func (h *handle) Nodes() (names []string) {
	for i := range h.Options.Nodes {
		names = append(names, h.Node(i+1).Name)
	}
	return names
}

func (h *handle) named(node string) cluster.Node {
	i, err := strconv.Atoi(strings.TrimPrefix(node, "node"))
	if err != nil {
		return cluster.Node{}
	}
	return h.Node(i)
}

// Root is a node's file system, as this process reaches it.
func (h *handle) Root(node string) (string, error) {
	pid, err := h.HolderPID(node)
	return fmt.Sprintf("/proc/%d/root", pid), err
}

func options() (cluster.Options, string, error) {
	root, err := os.Getwd()
	if err != nil {
		return cluster.Options{}, "", err
	}
	o, err := cluster.Defaults(root, os.Getenv)
	o.Progress = os.Stderr
	return o, root, err
}

func open() (*handle, error) {
	o, root, err := options()
	if err != nil {
		return nil, err
	}
	c, err := cluster.Open(o.Dir)
	if err != nil {
		return nil, err
	}
	return &handle{c, root}, nil
}

// outside starts a cluster, loads the images, runs a role of this program in the
// first node's namespaces, and stops the cluster unless it is kept.
func outside(ctx context.Context, role []string, keep bool) (err error) {
	o, root, err := options()
	if err != nil {
		return err
	}
	c, err := cluster.Start(ctx, o)
	if err != nil {
		return err
	}
	h := &handle{c, root}
	if err := h.loadImages(); err != nil {
		return errors.Join(err, c.Stop())
	}
	err = h.drive(ctx, role)
	if err != nil {
		logs := filepath.Join(root, ".test", "e2e-logs")
		fmt.Fprintln(os.Stderr, "e2e: logs and state are in", logs)
		err = errors.Join(err, h.collect(logs))
	}
	if keep {
		fmt.Fprintln(os.Stderr, "e2e: the cluster is left running; `e2e again JOURNEY…` goes on, `e2e down` ends it")
		return err
	}
	return errors.Join(err, c.Stop())
}

// loadImages brings what the manifests name, and what environments are made of,
// to every node: there is no registry.
func (h *handle) loadImages() error {
	if err := h.LoadAll(h.image("nodeagent"), h.image("controller"), h.image("pause"), h.image("busybox")); err != nil {
		return err
	}
	for _, n := range h.Nodes() {
		if _, err := h.Ctr(n, "-n", "hearth", "images", "import", "--all-platforms=false", h.image("busybox")); err != nil {
			return err
		}
	}
	return nil
}

// drive runs a role inside the first node and passes signals on.
func (h *handle) drive(ctx context.Context, role []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := h.In(h.Nodes()[0], append([]string{self}, role...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	undo := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer undo()
	return cmd.Wait()
}

func again(ctx context.Context, role []string) error {
	h, err := open()
	if err != nil {
		return err
	}
	return h.drive(ctx, role)
}

func down() error {
	h, err := open()
	if err != nil {
		return err
	}
	return h.Stop()
}

// collect keeps what explains a failure: logs of components and pods, objects.
func (h *handle) collect(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := []error{h.Logs(dir)}
	for name, args := range map[string][]string{
		"objects.txt":     {"get", "all,env,envclass,nodes,leases,pdb", "-A", "-o", "wide"},
		"events.txt":      {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		"hearth.yaml":     {"get", "env,envclass", "-A", "-o", "yaml"},
		"pods.txt":        {"describe", "pods", "-A"},
		"agents.log":      {"logs", "-n", nodesNamespace, "-l", "app.kubernetes.io/name=" + agents, "--prefix", "--tail=-1"},
		"controllers.log": {"logs", "-n", systemNamespace, "-l", "app.kubernetes.io/name=" + controllers, "--prefix", "--tail=-1"},
	} {
		out, err := h.Kubectl(args...).CombinedOutput()
		if err != nil { // what it said explains more than its exit code
			out = append(out, err.Error()...)
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), out, 0o600))
	}
	return errors.Join(errs...)
}

// privately goes on in a mount namespace of its own, so that names can be given
// to the cluster's services without a DNS server.
func privately(role string, rest []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"inside-" + role}, rest...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	return cmd.Run()
}

// inside is the process in which the journeys run.
func inside(ctx context.Context, role string, names []string) error {
	h, err := open()
	if err != nil {
		return err
	}
	w, err := newWorld(h)
	if err != nil {
		return err
	}
	switch role {
	case "drive-bench":
		return bench(ctx, w)
	case "drive-again":
		if err := w.recall(ctx); err != nil {
			return err
		}
	}
	list, err := selected(names, role == "drive-again")
	if err != nil {
		return err
	}
	return play(ctx, w, list)
}

// nameServices lets the names of the cluster's services be resolved, as a
// cluster's DNS would.
func (w *world) nameServices() error {
	ip, err := w.kubectl("-n", systemNamespace, "get", "service", controllers, "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	hosts := filepath.Join(w.scratch, "hosts")
	if err := os.WriteFile(hosts, []byte(fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", ip, server)), 0o644); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return syscall.Mount(hosts, "/etc/hosts", "", syscall.MS_BIND, "")
}

// recall takes up what an earlier run installed.
func (w *world) recall(ctx context.Context) error {
	if err := w.nameServices(); err != nil {
		return err
	}
	for _, ns := range []string{team, otherTeam} {
		if err := w.addTenant(ctx, ns); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(filepath.Join(w.scratch, "clean.json"))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, &w.clean)
}
