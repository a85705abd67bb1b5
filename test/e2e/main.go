// Command e2e installs Hearth on a real Kubernetes cluster, by the manifests
// that users apply, and goes through what users do. It says of each journey what
// it saw: `e2e: <journey> ok key=value …` or `e2e: <journey> FAILED <why>`.
//
// The cluster (test/cluster) lives in namespaces of its own, with no route out.
// The journeys run in a process inside those of the first node, with kubectl,
// hearthctl, curl and client-go; the process outside keeps the cluster.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `usage: e2e ROLE

  run [JOURNEY…]   start a cluster, go through all journeys (or install and those
                   named), stop the cluster; KEEP=1 leaves it running
  again JOURNEY…   go through journeys on a cluster that KEEP=1 left running
  bench            start a cluster, install, print benchmark lines, stop it
  down             stop a cluster that was left running
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, errUsage) {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	role, rest := args[0], args[1:]
	switch role {
	case "run":
		return outside(ctx, append([]string{"drive"}, rest...), os.Getenv("KEEP") != "")
	case "bench":
		return outside(ctx, append([]string{"drive-bench"}, rest...), os.Getenv("KEEP") != "")
	case "again":
		return again(ctx, append([]string{"drive-again"}, rest...))
	case "down":
		return down()
	case "inventory":
		return json.NewEncoder(os.Stdout).Encode(takeInventory())
	case "drive", "drive-again", "drive-bench":
		return privately(role, rest)
	case "inside-drive", "inside-drive-again", "inside-drive-bench":
		return inside(ctx, strings.TrimPrefix(role, "inside-"), rest)
	default:
		return errUsage
	}
}
