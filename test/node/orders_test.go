package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

func jsonManifest(name, spec string) []byte {
	return []byte(`{"apiVersion":"hearth.run/v1alpha1","kind":"EnvironmentClass","metadata":{"name":"` + name + `","resourceVersion":"7"},"spec":` + spec + `}`)
}

// pool returns a class's pool; nil if the node has no such class.
func (a *agent) pool(t *testing.T, class string) *hearthv1.Pool {
	t.Helper()
	inv, err := a.Node.Inventory(t.Context(), &hearthv1.InventoryRequest{})
	ok(t, err)
	for _, p := range inv.GetPools() {
		if p.GetClass() == class {
			return p
		}
	}
	return nil
}

// Classes come and go while the agent runs, from its directory at SIGHUP.
func TestNodeClassesChangeLiveAtSIGHUP(t *testing.T) {
	a := node(t)
	kept := a.claim(t, "bare")
	defer func() {
		for name, spec := range classes {
			a.write(t, "classes/"+name+".yaml", manifest(name, spec))
		}
		a.hangup(t)
		a.poolFull(t)
	}()
	before := a.pool(t, "web").GetRevision()
	a.write(t, "classes/web.yaml", manifest("web", strings.Replace(classes["web"], "memory: 128Mi", "memory: 96Mi", 1)))
	ok(t, os.Remove(a.Path("classes/bare.yaml")))
	a.hangup(t)
	eventually(t, 60*time.Second, func() error {
		p := a.pool(t, "web")
		if p.GetRevision() == before || p.GetReady() != p.GetWant() || a.pool(t, "bare") != nil {
			return fmt.Errorf("pool %v", p)
		}
		return nil
	})
	if _, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "bare"}}); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("claim of a class that is gone: %v", err)
	}
	a.alive(t, kept)
	a.write(t, "classes/bad.yaml", "kind: nonsense\n") // changes nothing
	a.hangup(t)
	time.Sleep(200 * time.Millisecond)
	ok(t, os.Remove(a.Path("classes/bad.yaml")))
	if a.pool(t, "web").GetRevision() == before {
		t.Error("a wrong file changed the classes")
	}
	a.release(t, kept)
}

func (a *agent) hangup(t *testing.T) {
	t.Helper()
	pid, err := a.PID("agent")
	ok(t, err)
	ok(t, syscall.Kill(pid, syscall.SIGHUP))
}

// What a controller gives is in force at once and over a restart, and ends with
// the controller.
func TestNodeObeysClassesAndBudgetOfAController(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	restart := func(with string) { // with or without a controller in the configuration
		a.kill(t)
		b, err := os.ReadFile(a.Path("nodeagent.yaml"))
		ok(t, err)
		text, _, _ := strings.Cut(string(b), "controller:")
		ok(t, os.WriteFile(a.Path("nodeagent.yaml"), []byte(text+with), 0o600))
		pid, err := a.PID("agent")
		if err == nil && runs(pid) {
			t.Fatal("the agent runs")
		}
		ok(t, a.Launch("agent", exec.Command(a.Program("nodeagent"), "run", "--config", a.Path("nodeagent.yaml"))))
		eventually(t, 20*time.Second, func() error { // it is not ready without its controller
			_, err := a.Node.Inventory(t.Context(), &hearthv1.InventoryRequest{})
			return err
		})
	}
	controller := "controller: {address: '127.0.0.1:9', joinTokenFile: " + a.Path("none") + "}\n"
	ok(t, os.WriteFile(a.Path("none"), []byte("hearth-join:"+strings.Repeat("0", 64)+":"+strings.Repeat("0", 64)), 0o600))
	restart(controller)
	defer func() {
		ok(t, os.Remove(a.Path("state/agent/classes.json")))
		ok(t, os.Remove(a.Path("state/agent/budget.json")))
		ok(t, os.Remove(a.Path("none")))
		restart("")
		a.up(t)
		a.alive(t, c)
		a.release(t, c)
	}()
	set := &hearthv1.SetClassesRequest{Revision: "r1", Manifests: [][]byte{
		jsonManifest("eph", `{"image":"hearth.local/busybox:1","durability":"ephemeral","warm":{"slots":1},"resources":{"memory":"64Mi"}}`),
	}}
	_, err := a.Node.SetClasses(t.Context(), set)
	ok(t, err)
	_, err = a.Node.SetClasses(t.Context(), &hearthv1.SetClassesRequest{Revision: "r2", Manifests: [][]byte{jsonManifest("odd", `{"image":"no image"}`)}})
	fails(t, err, env.ErrInvalid, `"odd"`, "spec.image")
	const budget = 512 << 20
	_, err = a.Node.SetBudget(t.Context(), &hearthv1.SetBudgetRequest{MemoryBytes: budget, CpuMillis: 2000})
	ok(t, err)
	for range 2 {
		a.poolFull(t)
		inv, err := a.Node.Inventory(t.Context(), &hearthv1.InventoryRequest{})
		ok(t, err)
		if inv.GetClassesRevision() != "r1" || len(inv.GetPools()) != 1 || !inv.GetPools()[0].GetEphemeral() || inv.GetRoom().GetMemoryMaxBytes() != budget {
			t.Errorf("inventory: revision %q, pools %v, room %v", inv.GetClassesRevision(), inv.GetPools(), inv.GetRoom())
		}
		eventually(t, 10*time.Second, func() error { return a.treeHas(budget, 2048) })
		restart(controller)
	}
	resp, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "eph"}, ClaimKey: []byte("k"), ClaimRequest: []byte("r")})
	ok(t, err)
	if e := resp.GetEnvironment(); !e.GetEphemeral() || string(e.GetClaimKey()) != "k" || string(e.GetClaimRequest()) != "r" {
		t.Errorf("environment: %v", e)
	}
	_, err = a.Node.Release(t.Context(), &hearthv1.NodeReleaseRequest{Environment: resp.GetEnvironment().GetId()})
	ok(t, err)
	a.forget(resp.GetEnvironment().GetId(), resp.GetEnvironment().GetSlot())
}

// treeHas compares the cgroup tree's own bounds. The share of a tree in a unit of
// systemd is the unit's.
func (a *agent) treeHas(memory, shares int64) error {
	found := map[string]bool{}
	for _, root := range a.CgroupRoots() {
		for file, want := range map[string]int64{"memory.limit_in_bytes": memory, "memory.max": memory, "cpu.shares": shares} {
			b, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				continue
			}
			found[file] = true
			if got, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); got != want {
				return fmt.Errorf("%s of %s is %d, want %d", file, root, got, want)
			}
		}
	}
	if !found["memory.max"] && !(found["memory.limit_in_bytes"] && found["cpu.shares"]) {
		return fmt.Errorf("only %v of the bounds are there", found)
	}
	return nil
}

// An environment that is about to move stands still after its capture, until
// that is taken back.
func TestNodeHeldEnvironmentStandsStillUntilItIsResumed(t *testing.T) {
	a := node(t)
	c := a.claim(t, "web")
	_, err := a.Hearthctl.Sh(c, "(while :; do echo x >> /workspace/log; sleep 0.01; done) >/dev/null 2>&1 &")
	ok(t, err)
	resp, err := a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: c.ID(), Hold: true})
	ok(t, err)
	size := func(c stage.Claimed) int64 {
		info, err := os.Stat(fmt.Sprintf("/proc/%d/root/workspace/log", c.Environment.PID))
		ok(t, err)
		return info.Size()
	}
	held := size(c)
	if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_PAUSED || !a.frozen(t, c) || !strings.Contains(e.GetMessage(), "move") {
		t.Errorf("held, it is %s: %s", e.GetPhase(), e.GetMessage())
	}
	a.refused(t, 125, []string{"paused"}, "exec", c.ID(), "--", "true")
	a.kill(t)
	a.up(t)
	if !a.frozen(t, c) || size(c) != held {
		t.Errorf("after a restart it runs: %d bytes, had %d", size(c), held)
	}
	moved := a.claim(t, "web", "--snapshot", resp.GetSnapshot().GetId())
	if got := size(moved); got != held {
		t.Errorf("the capture has %d bytes of what stands still at %d", got, held)
	}
	_, err = a.Node.Resume(t.Context(), &hearthv1.NodeResumeRequest{Environment: c.ID()})
	ok(t, err)
	a.alive(t, c)
	eventually(t, 5*time.Second, func() error {
		if size(c) == held {
			return errors.New("it still stands")
		}
		return nil
	})
	a.release(t, c)
	a.release(t, moved)
}

// Slots run a copy of envinit that has the same path on the host; copies that
// nobody runs go.
func TestNodeSlotsRunACopyOfEnvinitNamedByItsHash(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	copies, err := filepath.Glob(a.Path("state/init/envinit-*"))
	ok(t, err)
	if len(copies) != 1 {
		t.Fatalf("copies: %v", copies)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.Environment.PID))
	ok(t, err)
	if !slices.ContainsFunc(strings.Split(string(mounts), "\n"), func(line string) bool {
		return strings.Contains(line, filepath.Base(copies[0])) && strings.Contains(line, " /run/.hearth/init ")
	}) {
		t.Errorf("the environment does not run %s:\n%s", copies[0], mounts)
	}
	stray := a.Path("state/init/envinit-" + strings.Repeat("0", 64))
	ok(t, os.WriteFile(stray, []byte("old"), 0o755))
	a.kill(t)
	a.up(t)
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a copy that nobody runs is left: %v", err)
	}
	if _, err := os.Stat(copies[0]); err != nil {
		t.Errorf("the copy that runs is gone: %v", err)
	}
	a.release(t, c)
}
