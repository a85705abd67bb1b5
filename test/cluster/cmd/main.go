// Command cluster runs a real Kubernetes cluster for tests, in namespaces of
// its own without a route out. See package hearth/test/cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"hearth/test/cluster"
)

const usage = `usage: cluster COMMAND

  up [-nodes 2] [-lock FILE]   start; FILE stays locked while the cluster lives
  down [-force]                stop, and leave nothing behind; -force also what
                               another directory's cluster left on the machine
  status                       list the components and their processes
  kubectl ARGS…                run kubectl as the administrator
  in [-node node1] -- CMD…     run a command in a node's namespaces
  internet -- CMD…             run a command on the internet's host
  load [-node NAME] TAR…       import images, on every node by default
  start|stop|kill COMPONENT    one component, by its name in status
  partition A B | heal         drop every packet between two nodes | no more
  logs DIR                     collect logs and state

HEARTH_CLUSTER_DIR, HEARTH_CLUSTER_BIN and HEARTH_RUNTIME_DIR say where the
cluster's state and programs are; by default below the source tree that this
program was built in.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, command string, args []string) error {
	switch command {
	case "enter":
		return enter(args)
	case "hold":
		return hold(args)
	case "serve-internet":
		return cluster.ServeInternet(ctx)
	case "serve-dns":
		return serveDNS(ctx, args)
	}
	o, err := options()
	if err != nil {
		return err
	}
	switch command {
	case "up":
		return up(ctx, o, args)
	case "down":
		return down(o, args)
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	}
	c, err := cluster.Open(o.Dir)
	if err != nil {
		return err
	}
	return use(ctx, c, command, args)
}

// options finds the source tree from this program's place in it.
func options() (cluster.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return cluster.Options{}, err
	}
	o, err := cluster.Defaults(filepath.Join(filepath.Dir(self), "../.."), os.Getenv)
	o.Progress = os.Stderr
	return o, err
}

func up(ctx context.Context, o cluster.Options, args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.IntVar(&o.Nodes, "nodes", o.Nodes, "how many nodes, 1 or 2")
	flags.StringVar(&o.Lock, "lock", o.Lock, "file to keep locked while the cluster lives")
	if err := flags.Parse(args); err != nil {
		return err
	}
	_, err := cluster.Start(ctx, o)
	return err
}

func down(o cluster.Options, args []string) error {
	flags := flag.NewFlagSet("down", flag.ContinueOnError)
	force := flags.Bool("force", false, "end whichever cluster the machine has")
	if err := flags.Parse(args); err != nil {
		return err
	}
	c, err := cluster.Open(o.Dir)
	if err != nil {
		c = &cluster.Cluster{Options: o} // lost, or started by half
	}
	c.Progress = o.Progress
	if *force {
		return c.ForceStop()
	}
	return c.Stop()
}

// use does what a running cluster is for.
func use(ctx context.Context, c *cluster.Cluster, command string, args []string) error {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	node := ""
	switch command {
	case "kubectl":
		return become(c.Kubectl(args...))
	case "in":
		flags.StringVar(&node, "node", "node1", "the node")
	case "load":
		flags.StringVar(&node, "node", "", "the node; all by default")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	args = flags.Args()
	switch {
	case command == "in" && len(args) > 0:
		return become(c.In(node, args...))
	case command == "internet" && len(args) > 0:
		return become(c.InInternet(args...))
	case command == "load" && node != "":
		return c.Load(node, args...)
	case command == "load":
		return c.LoadAll(args...)
	case command == "start" && len(args) == 1:
		return c.StartComponent(ctx, args[0])
	case command == "stop" && len(args) == 1:
		return c.StopComponent(args[0])
	case command == "kill" && len(args) == 1:
		return c.Kill(args[0])
	case command == "partition" && len(args) == 2:
		return c.Partition(args[0], args[1])
	case command == "heal" && len(args) == 0:
		return c.Heal()
	case command == "logs" && len(args) == 1:
		return c.Logs(args[0])
	case command == "status":
		return status(c, os.Stdout)
	}
	return fmt.Errorf("unknown command or wrong arguments: %s\n%s", command, usage)
}

func status(c *cluster.Cluster, w io.Writer) error {
	names, pids, err := c.Components()
	if err != nil {
		return err
	}
	for _, name := range names {
		state := "stopped"
		if pids[name] != 0 {
			state = fmt.Sprint("pid ", pids[name])
		}
		fmt.Fprintf(w, "%-20s %s\n", name, state)
	}
	return nil
}

// become replaces this process, so that terminals, signals and exit codes are
// the command's own.
func become(cmd *exec.Cmd) error {
	if cmd.Err != nil {
		return cmd.Err
	}
	return syscall.Exec(cmd.Path, cmd.Args, cmd.Environ())
}

func enter(args []string) error {
	flags := flag.NewFlagSet("enter", flag.ContinueOnError)
	anchor := flags.Int("anchor", 0, "a process that sees the machine's cgroups")
	cgroup := flags.String("cgroup", "", "the cgroup to join")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return cluster.Enter(*anchor, *cgroup, flags.Args())
}

// hold says when the namespaces that it was started in are furnished, and keeps
// them.
func hold(args []string) error {
	flags := flag.NewFlagSet("hold", flag.ContinueOnError)
	dir := flags.String("dir", "", "the cluster's directory")
	node := flags.String("node", "", "the node to furnish")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *node != "" {
		if err := cluster.HoldNode(*dir, *node); err != nil {
			return err
		}
	}
	fmt.Print(cluster.HolderReady)
	// Nobody reads further, and a sleeping shell tool costs less than a Go
	// program.
	return become(exec.Command("sleep", "infinity"))
}

func serveDNS(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve-dns", flag.ContinueOnError)
	dir := flags.String("dir", "", "the cluster's directory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return cluster.ServeClusterDNS(ctx, *dir)
}
