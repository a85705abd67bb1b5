package main

import (
	"bufio"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hearth/internal/kube/uninstall"
)

func (a *app) uninstallCommand() *cobra.Command {
	cfg := uninstall.Config{Progress: a.stderr}
	var yes bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take Hearth off a Kubernetes cluster",
		Long: `Take Hearth off a Kubernetes cluster: stop claims, release every environment
(with the snapshot that its class wants), empty the pools, clean every node, and
delete the objects, the CRDs and the namespaces.

Snapshots on the nodes go too. It uses the kubeconfig, as kubectl does, and can be
run again after an interruption.`,
		Example: `  hearthctl uninstall
  hearthctl uninstall --context staging --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := uninstall.New(cfg)
			if err != nil {
				return err
			}
			found, err := u.Look(cmd.Context())
			if err != nil {
				return err
			}
			if !yes && !a.confirmed(found) {
				return usagef("not confirmed: nothing was changed")
			}
			if err := u.Run(cmd.Context()); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "uninstalled: %d environments released, %d nodes cleaned\n", found.Environments, found.Nodes)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Kubeconfig, "kubeconfig", "", "kubeconfig, a path (KUBECONFIG)")
	f.StringVar(&cfg.Context, "context", "", "context of the kubeconfig")
	f.DurationVar(&cfg.Timeout, "timeout", 10*time.Minute, "most time for the whole")
	f.BoolVar(&cfg.Force, "force", false, "go on when environments cannot be released; their last changes are lost")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// confirmed asks a person.
func (a *app) confirmed(found uninstall.Found) bool {
	fmt.Fprintf(a.stderr, "This releases %d environments in %d namespaces, deletes %d classes and all snapshots, and cleans %d nodes.\nType yes to go on: ",
		found.Environments, found.Namespaces, found.Classes, found.Nodes)
	answer, _ := bufio.NewReader(a.stdin).ReadString('\n') // no answer is none
	return strings.TrimSpace(answer) == "yes"
}
