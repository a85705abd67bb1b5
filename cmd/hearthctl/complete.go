package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// completionTimeout bounds what a press of the tab key may wait for.
const completionTimeout = 2 * time.Second

// completeEnvironments offers ids with their class and phase.
func (a *app) completeEnvironments(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	b, err := a.backend()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	envs, err := b.list(ctx, "", "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	given := map[string]bool{}
	for _, arg := range args {
		given[arg] = true
	}
	var out []string
	for _, e := range envs {
		if !given[e.GetId()] {
			out = append(out, cobra.CompletionWithDesc(e.GetId(), e.GetClass()+", "+phase(e)))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeClasses offers class names.
func (a *app) completeClasses(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	b, err := a.backend()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	names, err := b.classes(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
