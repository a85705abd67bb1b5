package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Node is the i-th machine, from 1.
func (c *Cluster) Node(i int) Node { return c.nodes()[i-1] }

// Kubeconfig is the path of the administrator's; its server answers only inside
// the nodes' namespaces.
func (c *Cluster) Kubeconfig() string { return c.path("admin.kubeconfig") }

// CAFile is the certificate that signs the API server's.
func (c *Cluster) CAFile() string { return c.path("pki/ca.crt") }

// In is a command in the namespaces of a node, in this process's working
// directory, with the cluster's programs in PATH, KUBECONFIG for clients of the
// API, and what Defaults reads to find the cluster. It belongs to the node's
// cgroup, so Stop ends it with the rest.
func (c *Cluster) In(node string, argv ...string) *exec.Cmd {
	wd, err := os.Getwd()
	if err != nil {
		return &exec.Cmd{Err: err}
	}
	cmd := c.inNode(node, wd, argv)
	if cmd.Err == nil {
		cmd.Env = append(cmd.Env, "KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+c.path("kubectl-cache"),
			"HEARTH_CLUSTER_DIR="+c.Dir, "HEARTH_CLUSTER_BIN="+c.BinDir, "HEARTH_RUNTIME_DIR="+c.RuntimeDir)
	}
	return cmd
}

func (c *Cluster) inNode(node, wd string, argv []string) *exec.Cmd {
	if _, err := c.node(node); err != nil {
		return &exec.Cmd{Err: err}
	}
	holder, err := c.pid(node)
	if err != nil {
		return &exec.Cmd{Err: err}
	}
	return c.enter(node, append(nsenter(holder, wd, "--net", "--mount", "--uts", "--cgroup"), argv...))
}

// enter is a command in a cgroup of the cluster.
func (c *Cluster) enter(name string, argv []string) *exec.Cmd {
	anchor, err := c.pid(internetHolder)
	if err != nil {
		return &exec.Cmd{Err: err}
	}
	cmd := exec.Command(c.program("cluster"), append([]string{
		"enter", "--anchor", strconv.Itoa(anchor), "--cgroup", cgroupRoot + "/" + name + "/init", "--",
	}, argv...)...)
	cmd.Env = append(os.Environ(), "PATH="+c.RuntimeDir+":"+c.BinDir+":"+os.Getenv("PATH"))
	return cmd
}

// InInternet is a command in the network namespace of the internet's host, for
// servers and captures of a test's own.
func (c *Cluster) InInternet(argv ...string) *exec.Cmd {
	pid, err := c.pid(internetHolder)
	if err != nil {
		return &exec.Cmd{Err: err}
	}
	wd, err := os.Getwd()
	if err != nil {
		return &exec.Cmd{Err: err}
	}
	return c.enter(internetHolder, append(nsenter(pid, wd, "--net"), argv...))
}

// Kubectl is a kubectl of the administrator, on node1.
func (c *Cluster) Kubectl(args ...string) *exec.Cmd {
	return c.In("node1", append([]string{c.program("kubectl")}, args...)...)
}

// Output runs kubectl and returns its standard output; an error has what it
// wrote to standard error.
func (c *Cluster) Output(args ...string) (string, error) { return output(c.Kubectl(args...)) }

// Apply applies manifests given as text.
func (c *Cluster) Apply(manifests string) error {
	cmd := c.Kubectl("apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifests)
	_, err := output(cmd)
	return err
}

// Ctr runs ctr against a node's containerd, in the namespace of Kubernetes.
func (c *Cluster) Ctr(node string, args ...string) (string, error) {
	return output(c.In(node, append([]string{"ctr", "--namespace", "k8s.io"}, args...)...))
}

// Load imports image archives into a node's containerd, where pods with
// imagePullPolicy Never or IfNotPresent find them at once.
func (c *Cluster) Load(node string, archives ...string) error {
	for _, a := range archives {
		if _, err := c.Ctr(node, "images", "import", a); err != nil {
			return fmt.Errorf("load %s on %s: %w", a, node, err)
		}
	}
	return nil
}

// LoadAll imports image archives on every node.
func (c *Cluster) LoadAll(archives ...string) error {
	for _, n := range c.nodes() {
		if err := c.Load(n.Name, archives...); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) waitContainerd(ctx context.Context, node string) error {
	return eventually(ctx, 30*time.Second, func() error {
		_, err := c.Ctr(node, "version")
		return err
	})
}

// WaitAPI waits until the API server is ready.
func (c *Cluster) WaitAPI(ctx context.Context) error {
	return eventually(ctx, 90*time.Second, func() error {
		_, err := c.Output("get", "--raw=/readyz")
		return err
	})
}

// WaitNodeReady waits until Kubernetes believes that the node is ready.
func (c *Cluster) WaitNodeReady(ctx context.Context, node string) error {
	return c.waitNode(ctx, node, func(status string) bool { return status == "True" })
}

// WaitNodeLost waits until Kubernetes has noticed that the node is silent.
func (c *Cluster) WaitNodeLost(ctx context.Context, node string) error {
	return c.waitNode(ctx, node, func(status string) bool { return status == "Unknown" })
}

func (c *Cluster) waitNode(ctx context.Context, node string, enough func(string) bool) error {
	return eventually(ctx, 90*time.Second, func() error {
		status, err := c.Output("get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err == nil && !enough(status) {
			err = fmt.Errorf("node %s: ready is %q", node, status)
		}
		return err
	})
}

func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// pollInterval leaves the processors to what is waited for: each poll is a
// kubectl.
const pollInterval = 150 * time.Millisecond

// eventually polls until check succeeds or the time is over; then its last
// error counts.
func eventually(ctx context.Context, most time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", most, err)
		case <-time.After(pollInterval):
		}
	}
}

// HolderPID is the process that keeps a node's namespaces. Its /proc/<pid>/root
// is the node's file system.
func (c *Cluster) HolderPID(node string) (int, error) {
	if _, err := c.node(node); err != nil {
		return 0, err
	}
	return c.pid(node)
}
