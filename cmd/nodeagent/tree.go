package main

import (
	"context"
	"errors"
	"log/slog"

	"hearth/internal/cgroups"
	"hearth/internal/config"
	"hearth/internal/systemd"
)

// Where the cgroups of environments go: to the place that is configured, else
// to one that systemd delegates, else to one of our own. What an earlier agent has
// left decides before that: environments cannot move.

// treeFacts are what the choice depends on.
type treeFacts struct {
	unified bool  // pure cgroup v2
	booted  bool  // systemd is the node's init
	bus     error // why it does not answer
	// slots that have cgroups in either place.
	own, delegated int
}

// treePlan is the choice.
type treePlan struct {
	root      string
	delegated bool
	why       string // in a few words, for the operator
	fault     error  // why systemd does not delegate though it is the init
}

func ownRoot(cfg config.Agent) string { return "/" + cfg.Instance }

func scopeOf(cfg config.Agent, keeper string, log *slog.Logger) *systemd.Scope {
	return systemd.New(systemd.Config{Name: cfg.Instance + ".scope", Keeper: keeper}, log)
}

// planTree chooses.
func planTree(cfg config.Agent, delegatedRoot string, f treeFacts) treePlan {
	own := treePlan{root: ownRoot(cfg), why: "own"}
	delegated := treePlan{root: delegatedRoot, delegated: true, why: "delegated by systemd"}
	switch {
	case cfg.Cgroup.Root != "":
		return treePlan{root: cfg.Cgroup.Root, why: "configured"}
	case f.delegated > 0:
		delegated.fault = f.bus // it goes on without
		return delegated
	case f.own > 0 && f.booted && f.unified:
		own.why = "own, until its slots are gone: after a reboot or nodeagent cleanup systemd delegates"
		return own
	case f.own > 0 || !f.booted:
		return own
	case !f.unified:
		own.why = "own, since a unit has no one place in hybrid cgroups"
		return own
	case f.bus != nil:
		own.fault = f.bus
		return own
	}
	return delegated
}

// lookAtTree finds the facts out. It makes nothing.
func lookAtTree(ctx context.Context, cfg config.Agent, delegatedRoot string) (f treeFacts, err error) {
	layout, err := cgroups.LayoutOf("")
	if err != nil {
		return f, err
	}
	f.unified, f.booted = layout == cgroups.LayoutUnified, systemd.Booted()
	if f.booted && f.unified {
		_, f.bus = systemd.Version(ctx)
	}
	for root, slots := range map[string]*int{ownRoot(cfg): &f.own, delegatedRoot: &f.delegated} {
		if _, *slots, err = cgroups.Look(cgroups.Config{Root: root}); err != nil {
			return f, err
		}
	}
	return f, nil
}

// openTree opens the tree where it belongs. A systemd that answers and does not
// delegate costs the delegation and not the node.
func openTree(ctx context.Context, cfg config.Agent, keeper string, files []string, log *slog.Logger) (*cgroups.Tree, error) {
	scope := scopeOf(cfg, keeper, log)
	facts, err := lookAtTree(ctx, cfg, scope.Root())
	if err != nil {
		return nil, err
	}
	plan := planTree(cfg, scope.Root(), facts)
	if plan.delegated && plan.fault == nil {
		if plan.fault = scope.Ensure(ctx); plan.fault != nil && facts.delegated == 0 {
			plan = treePlan{root: ownRoot(cfg), why: "own", fault: plan.fault}
		}
	}
	if plan.fault != nil {
		log.Warn("systemd does not look after the cgroup tree", "root", plan.root, "error", plan.fault)
	}
	c := cgroups.Config{Root: plan.root, Files: files}
	if plan.delegated {
		c.Parent = scope
		if err := removeEmptyTree(ownRoot(cfg), log); err != nil {
			log.Warn("the cgroup root of an earlier agent is left", "root", ownRoot(cfg), "error", err)
		}
	}
	tree, err := cgroups.Open(c, log)
	if err != nil {
		return nil, err
	}
	log.Info("cgroup tree opened", "root", plan.root, "by", plan.why)
	return tree, nil
}

// removeEmptyTree removes a cgroup root without slots, if there is one.
func removeEmptyTree(root string, log *slog.Logger) error {
	cfg := cgroups.Config{Root: root}
	found, slots, err := cgroups.Look(cfg)
	if err != nil || !found || slots > 0 {
		return err
	}
	tree, err := cgroups.Open(cfg, log)
	if err != nil {
		return err
	}
	return errors.Join(tree.RemoveRoot(), tree.Close())
}

// openTrees opens every tree that the instance may have on this node, for
// whoever removes them.
func openTrees(cfg config.Agent, log *slog.Logger) (trees []*cgroups.Tree, err error) {
	scope := scopeOf(cfg, "", log)
	seen := map[string]bool{"": true}
	for _, c := range []cgroups.Config{
		{Root: cfg.Cgroup.Root}, {Root: ownRoot(cfg)}, {Root: scope.Root(), Parent: scope},
	} {
		if seen[c.Root] {
			continue
		}
		seen[c.Root] = true
		found, _, err := cgroups.Look(c)
		if err == nil && !found {
			continue
		}
		var tree *cgroups.Tree
		if err == nil {
			tree, err = cgroups.Open(c, log)
		}
		if err != nil {
			for _, t := range trees {
				err = errors.Join(err, t.Close())
			}
			return nil, err
		}
		trees = append(trees, tree)
	}
	return trees, nil
}

// describeTree says where the tree is going to be, for preflight.
func describeTree(cfg config.Agent) func(ctx context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		root := scopeOf(cfg, "", slog.New(slog.DiscardHandler)).Root()
		facts, err := lookAtTree(ctx, cfg, root)
		if err != nil {
			return "", err
		}
		plan := planTree(cfg, root, facts)
		return plan.root + " (" + plan.why + ")", plan.fault
	}
}
