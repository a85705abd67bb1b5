package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// A Cluster is one that runs. Its methods may be called from the machine's
// namespaces and from inside a node's, by any process: what they need to know
// is in the cluster's directory.
type Cluster struct{ Options }

// internetHolder keeps the network namespace of the internet's host and is the
// anchor: it stays in the machine's other namespaces.
const internetHolder = "internet"

// internetServers answer there.
const internetServers = "internet-servers"

// Start brings a cluster up and returns when pods can be scheduled on every
// node. On an error nothing is left running; the end of the log of each
// component that failed is in the error's text.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	lock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the holder of the internet's namespace has it too
	if _, err := os.Stat(o.Dir); err == nil {
		return nil, fmt.Errorf("%s exists: a cluster runs there or was lost; end it with `cluster down`", o.Dir)
	}
	c := &Cluster{o}
	begin := time.Now()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"certificates and configuration", c.prepare},
		{"disks", func(context.Context) error { return c.makeDisks() }},
		{"namespaces", func(ctx context.Context) error { return c.hold(ctx, lock) }},
		{"containerd, etcd and API server", c.startBase},
		{"nodes ready", c.startNodes},
		{"pods can be scheduled", c.settle},
	} {
		if err := step.do(ctx); err != nil {
			err = fmt.Errorf("start cluster: %s: %w%s", step.name, err, c.logTails())
			return nil, errors.Join(err, c.Stop())
		}
		o.say("%6.2fs %s", time.Since(begin).Seconds(), step.name)
	}
	return c, nil
}

// Open finds the cluster that runs in a directory.
func Open(dir string) (*Cluster, error) {
	o, err := loadOptions(dir)
	if err != nil {
		return nil, err
	}
	c := &Cluster{o}
	if _, err := c.pid(internetHolder); err != nil {
		return nil, err
	}
	return c, nil
}

func (o *Options) say(format string, args ...any) {
	if o.Progress != nil {
		fmt.Fprintf(o.Progress, "cluster: "+format+"\n", args...)
	}
}

// prepare writes everything that needs no process.
func (c *Cluster) prepare(context.Context) error {
	for _, dir := range []string{"run", "log", "images"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := c.save(); err != nil {
		return err
	}
	if err := c.remember(); err != nil {
		return err
	}
	if err := c.writePKI(time.Now()); err != nil {
		return err
	}
	if err := c.writeFiles(); err != nil {
		return err
	}
	if c.SandboxImage != "" {
		return nil
	}
	return writeSandboxImage(c.sandboxArchive(), c.program("pause"), c.SandboxName)
}

// hold makes cgroups and namespaces and joins them to a network. The lock goes
// to the one process that lives as long as the cluster.
func (c *Cluster) hold(_ context.Context, lock *os.File) error {
	names := []string{internetHolder}
	for _, n := range c.nodes() {
		names = append(names, n.Name)
	}
	claimed := func() error { return os.WriteFile(c.claimPath(), nil, 0o600) }
	if err := (machine{}).makeCgroups(names, claimed); err != nil {
		return err
	}
	enter := func(name string, unshare ...string) *exec.Cmd {
		argv := append([]string{"enter", "--cgroup", cgroupRoot + "/" + name, "--", "unshare"}, unshare...)
		return exec.Command(c.program("cluster"), append(argv, "--", c.program("cluster"), "hold", "--dir", c.Dir)...)
	}
	anchor := enter(internetHolder+"/init", "--net")
	if lock != nil {
		anchor.ExtraFiles = []*os.File{lock}
	}
	if err := c.startHolder(internetHolder, anchor); err != nil {
		return err
	}
	for _, n := range c.nodes() {
		cmd := enter(n.Name, "--net", "--mount", "--uts", "--cgroup")
		cmd.Args = append(cmd.Args, "--node", n.Name)
		if err := c.startHolder(n.Name, cmd); err != nil {
			return err
		}
	}
	if err := c.wire(); err != nil {
		return err
	}
	pid, err := c.pid(internetHolder)
	if err != nil {
		return err
	}
	argv := append(nsenter(pid, "/", "--net"), c.program("cluster"), "serve-internet")
	return c.launch(internetServers, c.enter(internetHolder, argv))
}

// startHolder starts a holder and waits until it says that its namespaces are
// furnished.
func (c *Cluster) startHolder(name string, cmd *exec.Cmd) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout = w
	err = c.launch(name, cmd)
	w.Close()
	if err != nil {
		return err
	}
	line := make([]byte, len(HolderReady))
	if n, err := r.Read(line); err != nil || string(line[:n]) != HolderReady {
		return fmt.Errorf("holder of %s failed: %w", name, errors.Join(err, tailError(c.logPath(name))))
	}
	return nil
}

// HolderReady is what a holder prints when its namespaces are furnished.
const HolderReady = "ready\n"

// startBase starts what the API needs, and puts the sandbox image into every
// node's containerd meanwhile.
func (c *Cluster) startBase(ctx context.Context) error {
	if err := c.startComponent(Etcd); err != nil {
		return err
	}
	for _, n := range c.nodes() {
		if err := c.startComponent(n.Name + "/containerd"); err != nil {
			return err
		}
	}
	if err := c.startComponent(APIServer); err != nil {
		return err
	}
	for _, n := range c.nodes() {
		if err := c.waitContainerd(ctx, n.Name); err != nil {
			return err
		}
		if err := c.Load(n.Name, c.sandboxArchive()); err != nil {
			return err
		}
	}
	return c.WaitAPI(ctx)
}

func (c *Cluster) sandboxArchive() string {
	if c.SandboxImage != "" {
		return c.SandboxImage
	}
	return c.path("images/sandbox.tar")
}

// startNodes starts the rest and waits for the nodes.
func (c *Cluster) startNodes(ctx context.Context) error {
	for _, comp := range c.components() {
		if r, err := c.running(comp.name); err != nil || r != nil {
			if err != nil {
				return err
			}
			continue
		}
		if err := c.startComponent(comp.name); err != nil {
			return err
		}
	}
	if err := c.applyDNSService(); err != nil {
		return err
	}
	for _, n := range c.nodes() {
		if err := c.WaitNodeReady(ctx, n.Name); err != nil {
			return err
		}
	}
	return nil
}

// settle registers the nodes' pod ranges, as a cluster's network add-on would,
// and waits until a pod is accepted and scheduled.
func (c *Cluster) settle(ctx context.Context) error {
	for _, n := range c.nodes() {
		patch := fmt.Sprintf(`{"spec":{"podCIDR":%q,"podCIDRs":[%q]}}`, n.PodCIDR(), n.PodCIDR())
		if _, err := c.Output("patch", "node", n.Name, "-p", patch); err != nil {
			return err
		}
	}
	return eventually(ctx, time.Minute, func() error {
		if _, err := c.Output("get", "serviceaccount", "default"); err != nil {
			return err
		}
		taints, err := c.Output("get", "nodes", "-o", "jsonpath={.items[*].spec.taints}")
		if err == nil && strings.TrimSpace(taints) != "" {
			err = fmt.Errorf("nodes are tainted: %s", taints)
		}
		return err
	})
}

// pid finds a holder.
func (c *Cluster) pid(name string) (int, error) {
	r, err := c.running(name)
	if err != nil {
		return 0, err
	}
	if r == nil {
		return 0, fmt.Errorf("the cluster in %s does not run: its %s is gone", c.Dir, name)
	}
	return r.PID, nil
}
