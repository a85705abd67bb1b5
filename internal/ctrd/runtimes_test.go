package ctrd

import (
	"errors"
	"strings"
	"testing"

	"hearth/internal/env"
)

func TestARuntimeThatTheNodeDoesNotKnowIsRefusedWithTheMend(t *testing.T) {
	r := &Runtime{cfg: Config{RuntimeBinary: "/opt/runc", Runtimes: map[string]string{"crun": "crun"}}}
	for _, name := range []string{"", "runc"} {
		if program, err := r.program(t.Context(), name); err != nil || program != "/opt/runc" {
			t.Errorf("runtime %q is %q, %v", name, program, err)
		}
	}
	_, err := r.program(t.Context(), "runsc")
	if !errors.Is(err, env.ErrUnsupported) || !strings.Contains(err.Error(), "runtime runsc is not available") ||
		!strings.Contains(err.Error(), "containerd.runtimes of the node's configuration, which has crun, runc") {
		t.Errorf("error is %v", err)
	}
}

func TestARuntimeIsLookedForAgainAfterAFailure(t *testing.T) {
	r := &Runtime{cfg: Config{Runtimes: map[string]string{"crun": "/usr/bin/crun"}}}
	r.found.note("crun")
	if program, err := r.program(t.Context(), "crun"); err != nil || program != "/usr/bin/crun" {
		t.Errorf("found: %q, %v", program, err)
	}
	r.found.doubt("crun")
	if r.found.has("crun") {
		t.Error("a runtime that failed is still believed in")
	}
}
