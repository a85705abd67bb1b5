package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// journey is one line of the run. It returns the facts to print.
type journey struct {
	name string
	run  func(*world, context.Context) (facts, error)
}

// journeys in their order: later ones use what install made, and uninstall
// takes it away.
var journeys = []journey{
	{"install", (*world).install},
	{"claim-api", (*world).claimAPI},
	{"claim-crd", (*world).claimCRD},
	{"exec", (*world).exec},
	{"files", (*world).files},
	{"ports", (*world).ports},
	{"release", (*world).release},
	{"egress", (*world).egress},
	{"detect", (*world).detect},
	{"snapshot", (*world).snapshot},
	{"classes", (*world).classes},
	{"lifetimes", (*world).lifetimes},
	{"refused", (*world).refused},
	{"books", (*world).books},
	{"disk", (*world).disk},
	{"rollout", (*world).rollout},
	{"controller-kill", (*world).controllerKill},
	{"api-down", (*world).apiDown},
	{"drain", (*world).drain},
	{"partition", (*world).partition},
	{"uninstall", (*world).uninstall},
}

// facts are what a journey saw, in the order of their making.
type facts []string

func (f *facts) add(key string, value any) { *f = append(*f, fmt.Sprintf("%s=%v", key, value)) }

func (f *facts) ms(key string, d time.Duration) {
	f.add(key, fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)))
}

// selected are the journeys named, with install before them unless it was done.
func selected(names []string, installed bool) ([]journey, error) {
	if len(names) == 0 {
		return journeys, nil
	}
	for _, n := range names {
		if !slices.ContainsFunc(journeys, func(j journey) bool { return j.name == n }) {
			return nil, fmt.Errorf("no journey %q", n)
		}
	}
	var out []journey
	for _, j := range journeys {
		if slices.Contains(names, j.name) || (j.name == "install" && !installed) {
			out = append(out, j)
		}
	}
	return out, nil
}

// play goes through the journeys, up to the first that fails.
func play(ctx context.Context, w *world, list []journey) error {
	for _, j := range list {
		begun := time.Now()
		facts, err := j.run(w, ctx)
		took := time.Since(begun).Round(100 * time.Millisecond)
		if err != nil {
			fmt.Printf("e2e: %s FAILED %.2000s\n", j.name, strings.Join(strings.Fields(err.Error()), " "))
			return fmt.Errorf("journey %s failed after %s", j.name, took)
		}
		facts.add("took", took)
		fmt.Printf("e2e: %s ok %s\n", j.name, strings.Join(facts, " "))
	}
	return nil
}
