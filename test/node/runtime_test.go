package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/kerneltest"
	"hearth/test/stage"
)

// withClasses adds classes to the stage's agent. undo takes them away again, and
// is to be called before the test ends.
func (a *agent) withClasses(t *testing.T, more map[string]string) (undo func()) {
	t.Helper()
	for name, spec := range more {
		a.write(t, "classes/"+name+".yaml", manifest(name, spec))
	}
	a.hangup(t)
	eventually(t, 10*time.Second, func() error {
		for name := range more {
			if a.pool(t, name) == nil {
				return fmt.Errorf("no class %s", name)
			}
		}
		return nil
	})
	return func() {
		t.Helper()
		for name := range more {
			ok(t, os.Remove(a.Path("classes/"+name+".yaml")))
		}
		a.hangup(t)
		eventually(t, 60*time.Second, func() error {
			for name := range more {
				if a.pool(t, name) != nil {
					return fmt.Errorf("class %s is still there", name)
				}
			}
			return nil
		})
	}
}

// madeBy is the program that made an environment's container, as its shim wrote
// it down.
func (a *agent) madeBy(t *testing.T, c stage.Claimed) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(a.RunDir(), "containerd/io.containerd.runtime.v2.task", a.Instance(), c.Environment.Slot, "runtime"))
	ok(t, err)
	return filepath.Base(strings.TrimSpace(string(b)))
}

// A class that names crun has environments that do all that those of runc do.
func TestNodeEnvironmentsOfCrunLiveAsThoseOfRunc(t *testing.T) {
	a := node(t)
	kerneltest.HideUnifiedControllers(t)
	spec := strings.Replace(classes["web"], "resources:", "runtime: crun\n  resources:", 1)
	undo := a.withClasses(t, map[string]string{"crun": strings.Replace(spec, sprintf("warm: {slots: %d}", warm), "warm: {slots: 1}", 1)})
	defer undo()
	a.poolFull(t)
	c := a.claim(t, "crun", "-e", "GREETING=hello")
	if !c.Environment.Warm {
		t.Error("the claim was cold")
	}
	if by := a.madeBy(t, c); by != "crun" {
		t.Errorf("made by %s", by)
	}
	if beside := a.claim(t, "web"); shimOf(t, beside) == shimOf(t, c) || a.madeBy(t, beside) != "runc" {
		t.Error("containers of two runtimes share a shim")
	} else {
		a.release(t, beside)
	}
	body, err := c.Get(8000, "/cgi-bin/hello")
	if err != nil || strings.TrimSpace(body) != "hello" {
		t.Errorf("the service answers %q, %v", body, err)
	}
	a.wantLimits(t, c, 1000, 0, 128*mebibyte)
	_, err = a.Hearthctl.Run("resize", c.ID(), "--cpu", "500m", "--memory", "96Mi")
	ok(t, err)
	a.wantLimits(t, c, 500, 0, 96*mebibyte)
	_, err = a.Hearthctl.Sh(c, "echo kept > /workspace/file; echo kept > /etc/file")
	ok(t, err)
	_, err = a.Hearthctl.Run("pause", c.ID())
	ok(t, err)
	if !a.frozen(t, c) {
		t.Error("a paused environment runs")
	}
	_, err = a.Hearthctl.Run("resume", c.ID())
	ok(t, err)
	var snap struct {
		Snapshot struct {
			ID string `json:"id"`
		} `json:"snapshot"`
	}
	ok(t, a.Hearthctl.Decode(&snap, "snapshot", "create", c.ID()))
	a.kill(t)
	a.up(t)
	a.alive(t, c)
	again := a.claim(t, "crun", "--snapshot", snap.Snapshot.ID)
	out, err := a.Hearthctl.Sh(again, "cat /workspace/file /etc/file; hostname")
	if err != nil || out != "kept\nkept\n"+again.ID()+"\n" {
		t.Errorf("restored: %q, %v", out, err)
	}
	a.alive(t, again)
	a.release(t, c)
	a.release(t, again)
}

// A runtime that the node has not, makes no environments and says what to do:
// claims are refused, the pool says why it is empty, preflight says it beforehand.
func TestNodeARuntimeThatIsMissingIsSaidWithItsMend(t *testing.T) {
	a := node(t)
	undo := a.withClasses(t, map[string]string{
		"sandboxed": "  image: hearth.local/busybox:1\n  runtime: runsc\n  resources: {memory: 64Mi}\n  warm: {slots: 1}\n",
	})
	defer undo()
	mend := []string{"runtime runsc is not available on this node", "containerd.runtimes", "crun, runc"}
	a.refused(t, 3, mend, "claim", "--class", "sandboxed")
	eventually(t, 20*time.Second, func() error {
		p := a.pool(t, "sandboxed")
		for _, w := range mend {
			if !strings.Contains(p.GetMessage(), w) || p.GetReady() != 0 {
				return fmt.Errorf("the pool says %q", p.GetMessage())
			}
		}
		return nil
	})
	config, err := os.ReadFile(a.Path("nodeagent.yaml"))
	ok(t, err)
	path := a.Path("runtimes.yaml")
	defer os.Remove(path)
	ok(t, os.WriteFile(path, []byte(strings.Replace(string(config), "containerd:\n", "containerd:\n  runtimes: {crun: crun, gone: no-such-runtime}\n", 1)), 0o600))
	out, _ := exec.Command(a.Program("nodeagent"), "preflight", "--config", path).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "runtimes" {
			if want := map[string]string{"crun": "ok", "gone": "missing"}[f[1]]; f[2] != want {
				t.Errorf("preflight: %s", line)
			}
			path = ""
		}
	}
	if path != "" {
		t.Errorf("preflight says nothing of runtimes:\n%s", out)
	}
	list, err := a.Node.List(t.Context(), &hearthv1.NodeListRequest{})
	if err != nil || len(list.GetEnvironments()) != 0 {
		t.Errorf("environments: %v, %v", list.GetEnvironments(), err)
	}
}
