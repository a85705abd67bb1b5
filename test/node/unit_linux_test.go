package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/internal/systemd"
	"hearth/test/stage"
)

// delegated is the instance of the tests that change where its tree is.
const delegated = "hearthunit"

// requireSystemd skips where the node's init is another, or its cgroups are
// hybrid: the tree is the agent's own there.
func requireSystemd(t *testing.T) {
	t.Helper()
	require(t)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil || !systemd.Booted() {
		t.Skip("systemd on pure cgroup v2 is not the init here")
	}
}

// scope is the path of a file in the instance's unit.
func (a *agent) scope(elements ...string) string {
	return filepath.Join(append([]string{"/sys/fs/cgroup", a.Instance() + ".scope"}, elements...)...)
}

// unit is a property of it.
func (a *agent) unit(t *testing.T, property string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "--property", property, "--value", a.Instance()+".scope").Output()
	ok(t, err)
	return strings.TrimSpace(string(out))
}

func (a *agent) keeper(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(a.scope("keeper", "cgroup.procs"))
	ok(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	ok(t, err)
	return pid
}

// unitInstance is an agent beside the stage's one, whose configuration has more.
func unitInstance(t *testing.T, extra string) *agent {
	t.Helper()
	s := newStage("").Beside(delegated)
	a := newAgent(t, s, 7481, map[string]string{"bare": "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n"}, extra)
	t.Cleanup(func() {
		if t.Failed() {
			a.tail(t)
		}
		remove(t, s)
		ok(t, os.RemoveAll(s.Dir()))
		for _, path := range []string{a.scope(), "/sys/fs/cgroup/" + delegated} {
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left", path)
			}
		}
		if state := a.unit(t, "ActiveState"); state != "inactive" {
			t.Errorf("the unit is left, %s", state)
		}
	})
	out, code := a.nodeagent("image", "import", a.Image())
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.up(t)
	return a
}

// The unit and what is in it outlive the agent, systemd's own restart and the death
// of the unit's keeper.
func TestNodeUnitOfSystemdOutlivesAgentsAndSystemdItself(t *testing.T) {
	requireSystemd(t)
	a := unitInstance(t, "")
	if out, _ := a.nodeagent("preflight"); !strings.Contains(out, "/"+delegated+".scope/slots (delegated by systemd)") {
		t.Errorf("preflight does not say where the tree is:\n%s", out)
	}
	c := a.claim(t, "bare")
	if got := a.unit(t, "Delegate") + " " + a.unit(t, "ActiveState"); got != "yes active" {
		t.Errorf("the unit is delegated and active: %s", got)
	}
	if _, err := os.Stat(a.scope("slots", c.Environment.Slot, "ctr")); err != nil {
		t.Errorf("the environment is not in the unit: %v", err)
	}
	keeper := a.keeper(t)
	for _, verb := range []string{"daemon-reload", "daemon-reexec"} {
		if out, err := exec.Command("systemctl", verb).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", verb, err, out)
		}
		a.alive(t, c)
	}
	a.kill(t)
	a.up(t)
	a.alive(t, c)
	if now := a.keeper(t); now != keeper {
		t.Errorf("the keeper is %d, before the restart it was %d", now, keeper)
	}
	ok(t, syscall.Kill(keeper, syscall.SIGKILL))
	a.alive(t, c)
	a.wantLimits(t, c, 1000, 0, 64*mebibyte)
	a.release(t, c) // and with the last process of the unit, the unit
	eventually(t, 10*time.Second, func() error {
		if state := a.unit(t, "ActiveState"); state != "inactive" {
			return fmt.Errorf("the empty unit is %s", state)
		}
		return nil
	})
	c = a.claim(t, "bare") // makes it again
	a.alive(t, c)
	if state := a.unit(t, "ActiveState"); state != "active" {
		t.Errorf("the unit is %s", state)
	}
	if out, err := exec.Command("systemctl", "stop", delegated+".scope").CombinedOutput(); err != nil {
		t.Errorf("stop: %v: %s", err, out)
	}
	a.failed(t, c) // as an operator wants it who stops the unit
	a.release(t, c)
	c = a.claim(t, "bare")
	a.alive(t, c)
	a.release(t, c)
}

// An agent that finds environments where an earlier one has put them leaves them
// there, and the tree with them, until they are gone.
func TestNodeTreeOfAnEarlierAgentIsUsedUntilItIsEmpty(t *testing.T) {
	requireSystemd(t)
	a := unitInstance(t, "cgroup: {root: /"+delegated+"}\n")
	c := a.claim(t, "bare")
	config, err := os.ReadFile(a.Path("nodeagent.yaml"))
	ok(t, err)
	a.write(t, "nodeagent.yaml", strings.Replace(string(config), "cgroup: {root: /"+delegated+"}\n", "", 1))
	restart := func() {
		t.Helper()
		ok(t, a.End("agent"))
		a.up(t)
	}
	own := "/sys/fs/cgroup/" + delegated
	restart()
	a.alive(t, c)
	beside := a.claim(t, "bare")
	for _, e := range []stage.Claimed{c, beside} {
		if _, err := os.Stat(filepath.Join(own, e.Environment.Slot)); err != nil {
			t.Errorf("%s is not in the earlier tree: %v", e.ID(), err)
		}
	}
	if out, _ := a.nodeagent("preflight"); !strings.Contains(out, "/"+delegated+" (own, until its slots are gone") {
		t.Errorf("preflight does not say why the tree is there:\n%s", out)
	}
	a.release(t, c)
	a.release(t, beside)
	restart()
	c = a.claim(t, "bare")
	a.alive(t, c)
	if _, err := os.Stat(a.scope("slots", c.Environment.Slot)); err != nil {
		t.Errorf("the environment is not in the unit: %v", err)
	}
	if _, err := os.Stat(own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the earlier tree is left: %v", err)
	}
	a.release(t, c)
}
