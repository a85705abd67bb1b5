package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"hearth/internal/config"
)

func TestTreeIsWhereItsSlotsAreAndElseWithSystemd(t *testing.T) {
	const scope = "/hearth.scope/slots"
	away := errors.New("the bus is away")
	for name, tc := range map[string]struct {
		root  string // configured
		facts treeFacts
		want  treePlan
	}{
		"configured": {"/mine", treeFacts{unified: true, booted: true, own: 2, delegated: 2},
			treePlan{root: "/mine", why: "configured"}},
		"systemd": {"", treeFacts{unified: true, booted: true},
			treePlan{root: scope, delegated: true, why: "delegated by systemd"}},
		"another init": {"", treeFacts{unified: true},
			treePlan{root: "/hearth", why: "own"}},
		"no answer": {"", treeFacts{unified: true, booted: true, bus: away},
			treePlan{root: "/hearth", why: "own", fault: away}},
		"hybrid": {"", treeFacts{booted: true},
			treePlan{root: "/hearth", why: "own, since a unit has no one place in hybrid cgroups"}},
		"slots of an agent that knew no systemd": {"", treeFacts{unified: true, booted: true, own: 1},
			treePlan{root: "/hearth", why: "own, until its slots are gone: after a reboot or nodeagent cleanup systemd delegates"}},
		"slots and no systemd": {"", treeFacts{unified: true, own: 1},
			treePlan{root: "/hearth", why: "own"}},
		"delegated slots and no answer": {"", treeFacts{unified: true, booted: true, bus: away, delegated: 3},
			treePlan{root: scope, delegated: true, why: "delegated by systemd", fault: away}},
		"slots in both": {"", treeFacts{unified: true, booted: true, own: 1, delegated: 1},
			treePlan{root: scope, delegated: true, why: "delegated by systemd"}},
	} {
		cfg := config.Agent{Instance: "hearth", Cgroup: config.Cgroup{Root: tc.root}}
		if got := planTree(cfg, scope, tc.facts); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestTreesOfTwoInstancesShareNothing(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	a, b := config.Agent{Instance: "hearth"}, config.Agent{Instance: "blue"}
	if scopeOf(a, "", log).Root() == scopeOf(b, "", log).Root() || ownRoot(a) == ownRoot(b) {
		t.Error("two instances have one place")
	}
	if root := scopeOf(a, "", log).Root(); !strings.HasPrefix(root, "/hearth.scope/") {
		t.Errorf("root = %s", root)
	}
}

func TestPreflightSaysWhereTheTreeWillBe(t *testing.T) {
	where, err := describeTree(config.Agent{Instance: "hearth", Cgroup: config.Cgroup{Root: "/mine"}})(context.Background())
	if err != nil || where != "/mine (configured)" {
		t.Errorf("%q, %v", where, err)
	}
}
