package ctrd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/env"
)

// The shim writes down which program it started.
func TestNodeAContainerIsMadeByItsRuntime(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node) {
		t.Helper()
		m := n.run()
		n.report(m)
		b, err := os.ReadFile(filepath.Join(n.cfg.State, "io.containerd.runtime.v2.task", n.cfg.Instance, string(m.spec.Slot), "runtime"))
		if err != nil || filepath.Base(strings.TrimSpace(string(b))) != n.runtime {
			t.Errorf("made by %q, %v; want %s", b, err, n.runtime)
		}
		n.release(m)
	})
}

func TestNodeARuntimeThatIsNotInstalledIsRefusedBeforeAnythingIsMade(t *testing.T) {
	n := startNode(t)
	n.r.cfg.Runtimes = map[string]string{"other": "no-such-runtime", "path": "/nowhere/runtime"}
	for _, name := range []string{"other", "path"} {
		n.runtime = name
		m := n.prepare()
		_, err := n.r.Create(t.Context(), m.spec)
		if !errors.Is(err, env.ErrUnsupported) || !strings.Contains(err.Error(), "runtime "+name) || !strings.Contains(err.Error(), "containerd.runtimes."+name) {
			t.Errorf("runtime %s: %v", name, err)
		}
		if n.r.ShimOf(m.spec.Slot) != "" {
			t.Error("a container that was not made has a shim")
		}
		m.free()
		n.release(m)
	}
}
