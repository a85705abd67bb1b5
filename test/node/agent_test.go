package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// The instances that some tests make beside the stage's own one, each for a
// fault that would spoil it.
const (
	fullDisk = "hearthfull"
	lying    = "hearthlie"
	stuck    = "hearthstuck"
	rebooted = "hearthboot"
	given    = "hearthgiven"
	crowded  = "hearthcrowd"
)

var instances = []string{fullDisk, lying, gone, stuck, rebooted, given, crowded, delegated}

// slots is limits.slots of every agent here, and warm how many of them the
// class "web" keeps ready.
const (
	slots = 24
	warm  = 4
)

// agent is one nodeagent on the stage.
type agent struct {
	*stage.Stage
	port int // of the TCP API; the next one is that of the metrics

	mu   sync.Mutex // guards gone
	gone []string   // names of what was released
}

// classes of the stage's own agent. Class "web" has a service that is probed
// and answers with the claim's variable; "bare" has none and no pool; a claim of
// "slow" takes until its probe is given up; "sleepy" is paused when it is idle, and
// "brief" lives an hour at most.
var classes = map[string]string{
	"web": fmt.Sprintf(`  image: hearth.local/busybox:1
  services:
  - name: web
    command:
    - sh
    - -c
    - |
      mkdir -p /srv/cgi-bin
      printf '#!/bin/sh\necho Content-Type: text/plain; echo\n. /run/hearth/env\necho "$GREETING"\n' > /srv/cgi-bin/hello
      chmod 755 /srv/cgi-bin/hello
      echo ready > /srv/index.html
      exec httpd -f -p 8000 -h /srv
  readiness:
    http: {port: 8000, path: /index.html}
    timeout: 20s
  resources: {cpu: "1", memory: 128Mi, pids: 256}
  warm: {slots: %d}
  ports:
  - {name: web, port: 8000, protocol: http}
  - {name: echo, port: 9000, protocol: tcp}
  mounts: [shared, homes]
`, warm),
	"bare": "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n",
	"slow": "  image: hearth.local/busybox:1\n  readiness: {command: [test, -e, /never], timeout: 25s}\n  resources: {memory: 64Mi}\n",
	"sleepy": `  image: hearth.local/busybox:1
  services:
  - name: web
    command: [sh, -c, "mkdir -p /srv; echo ready > /srv/index.html; exec httpd -f -p 8000 -h /srv"]
  readiness: {tcp: {port: 8000}}
  resources: {memory: 64Mi}
  ports: [{name: web, port: 8000, protocol: http}]
  lifetime: {pauseWhenIdle: 5s}
`,
	"brief": "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n  lifetime: {maxTimeToLive: 1h}\n",
	"sized": `  image: hearth.local/busybox:1
  resources:
    cpu: "1"
    cpuBurst: 500m
    cpuWeight: 50
    memory: 64Mi
    pids: 64
    openFiles: 512
    io: {writeBytes: 20Mi}
`,
	"marked":   "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi, memoryHigh: 48Mi}\n",
	"greedy":   "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi, openFiles: 1048576}\n",
	"nowhere":  "  image: not-imported:1\n",
	"unpulled": "  image: 198.51.100.2:5000/none/such:1\n",
}

// newAgent writes the configuration of an instance. extra is appended to it.
func newAgent(t *testing.T, s *stage.Stage, port int, classes map[string]string, extra string) *agent {
	t.Helper()
	return newAgentFor(t, s, port, slots, classes, extra)
}

// newAgentFor is newAgent for another limits.slots.
func newAgentFor(t *testing.T, s *stage.Stage, port, slots int, classes map[string]string, extra string) *agent {
	t.Helper()
	a := &agent{Stage: s, port: port}
	a.UseNode()
	a.write(t, "nodeagent.yaml", fmt.Sprintf(`instance: %s
node: test-node
stateDir: %s/state
runDir: %s
classesDir: %s/classes
containerd:
  binDir: %s
network:
  resolvers: ["%s"]
ids: {count: %d}
limits: {slots: %d}
refill: {cpuPressure: 100, memoryPressure: 100, ioPressure: 100}
# The machine's disk may be as full as it is.
disk: {keepFree: "0", keepFreeInodes: "0"}
api:
  listen: 127.0.0.1:%d
  advertise: 127.0.0.1:%d
  metrics: 127.0.0.1:%d
%s`, s.Instance(), s.Dir(), s.RunDir(), s.Dir(), s.RuntimeDir(), stage.Resolver, slots+40, slots, port, port, port+1, extra))
	for name, spec := range classes {
		a.write(t, "classes/"+name+".yaml", manifest(name, spec))
	}
	return a
}

func manifest(name, spec string) string {
	return "apiVersion: hearth.run/v1alpha1\nkind: EnvironmentClass\nmetadata:\n  name: " + name + "\nspec:\n" + spec
}

func (a *agent) write(t *testing.T, name, content string) {
	t.Helper()
	ok(t, os.MkdirAll(filepath.Dir(a.Path(name)), 0o700))
	ok(t, os.WriteFile(a.Path(name), []byte(content), 0o600))
}

// nodeagent runs a subcommand and returns both streams together and the code.
func (a *agent) nodeagent(args ...string) (string, int) {
	cmd := exec.Command(a.Program("nodeagent"), append(args, "--config", a.Path("nodeagent.yaml"))...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return string(out), exit.ExitCode()
	case err != nil:
		return err.Error(), -1
	}
	return string(out), 0
}

// up starts the agent if it does not run, and waits until it answers.
func (a *agent) up(t *testing.T) {
	t.Helper()
	if pid, err := a.PID("agent"); err != nil || !runs(pid) {
		ok(t, a.Launch("agent", exec.Command(a.Program("nodeagent"), "run", "--config", a.Path("nodeagent.yaml"))))
	}
	eventually(t, 30*time.Second, func() error {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", a.port+1))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz says %s", resp.Status)
		}
		return nil
	})
}

// kill ends the agent as a crash would.
func (a *agent) kill(t *testing.T) {
	t.Helper()
	pid, err := a.PID("agent")
	ok(t, err)
	ok(t, syscall.Kill(pid, syscall.SIGKILL))
	// Its locks go with its last thread, and then it can be reaped.
	eventually(t, 5*time.Second, func() error {
		if err := syscall.Kill(pid, 0); err == nil {
			return fmt.Errorf("agent %d still runs", pid)
		}
		return nil
	})
}

// theAgent is the stage's own, made by the first test that needs it.
var theAgent *agent

// node returns the stage's agent with its pools full. After the test it must
// run, its pools be full again, and nothing else be left.
func node(t *testing.T) *agent {
	t.Helper()
	require(t)
	if theAgent == nil {
		s := newStage("")
		a := newAgent(t, s, 7401, classes, fmt.Sprintf("mounts:\n  shared: {path: %s}\n  homes: {path: %s, writable: true, perTenant: true}\n", s.Path("shared"), s.Path("homes")))
		out, code := a.nodeagent("image", "import", a.Image())
		if code != 0 {
			t.Fatalf("image import: exit %d: %s", code, out)
		}
		theAgent = a
	}
	a := theAgent
	a.up(t)
	a.leavesNothing(t)
	return a
}

// require skips where the tests cannot run at all.
func require(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers and network namespaces need root")
	}
}

// leavesNothing compares the instance before and after the test.
func (a *agent) leavesNothing(t *testing.T) {
	t.Helper()
	a.poolFull(t)
	before := a.inventory()
	t.Cleanup(func() {
		if t.Failed() {
			a.tail(t)
			a.releaseAll(t)
		}
		a.poolFull(t)
		eventually(t, 40*time.Second, func() error {
			a.mu.Lock()
			defer a.mu.Unlock()
			if diff := stage.Compare(before, a.inventory(), a.gone); diff != "" {
				return errors.New("left behind: " + diff)
			}
			return nil
		})
	})
}

// inventory is the instance's, but for compiled policies: the agent keeps those
// of classes for the next claim, and a new agent begins without.
func (a *agent) inventory() stage.Inventory {
	inv := a.TakeInventory()
	inv["bpf maps"] = slices.DeleteFunc(inv["bpf maps"], isPolicy)
	inv["idle shims"] = slices.DeleteFunc(a.shims(), func(pid string) bool {
		children, err := filepath.Glob("/proc/" + pid + "/task/*/children")
		return err != nil || slices.ContainsFunc(children, func(f string) bool {
			b, err := os.ReadFile(f)
			return err == nil && len(b) > 0
		})
	})
	inv["files"] = slices.DeleteFunc(inv["files"], isShimSocket)
	return inv
}

// isShimSocket tells the sockets of shims, of which there are as many as shims:
// how the slots share them depends on which came first.
func isShimSocket(file string) bool { return strings.Contains(file, "/containerd/s/") }

// shims lists the processes of the instance's shims.
func (a *agent) shims() (out []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		args := strings.Split(string(b), "\x00")
		if at := slices.Index(args, "-namespace"); err == nil && at > 0 && at+3 < len(args) && args[at+1] == a.Instance() && args[at+2] == "-id" {
			out = append(out, filepath.Base(filepath.Dir(f)))
		}
	}
	return out
}

func isPolicy(entry string) bool { return strings.HasPrefix(entry, "policies[") }

// releaseAll keeps a failed test from failing the next ones.
func (a *agent) releaseAll(t *testing.T) {
	t.Helper()
	a.up(t)
	list, err := a.Node.List(t.Context(), &hearthv1.NodeListRequest{})
	if err != nil {
		list, err = a.Node.List(context.Background(), &hearthv1.NodeListRequest{})
	}
	if err != nil {
		t.Log("list:", err)
		return
	}
	for _, e := range list.GetEnvironments() {
		if _, err := a.Node.Release(context.Background(), &hearthv1.NodeReleaseRequest{Environment: e.GetId()}); err != nil {
			t.Log("release:", err)
		}
	}
}

func (a *agent) tail(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(a.Path("agent.log"))
	if err == nil {
		t.Logf("--- end of agent.log\n%s", b[max(0, len(b)-4000):])
	}
}

// poolFull waits until every class that has an image has what it wants.
func (a *agent) poolFull(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		inv, err := a.Node.Inventory(context.Background(), &hearthv1.InventoryRequest{})
		if err != nil {
			return err
		}
		for _, p := range inv.GetPools() {
			if p.GetReady() != p.GetWant() || p.GetPreparing() != 0 {
				return fmt.Errorf("pool %s has %d of %d slots ready, %d in preparation: %s", p.GetClass(), p.GetReady(), p.GetWant(), p.GetPreparing(), p.GetMessage())
			}
		}
		return nil
	})
}

// claim claims by hearthctl, as an operator on the node does.
func (a *agent) claim(t *testing.T, class string, args ...string) stage.Claimed {
	t.Helper()
	var c stage.Claimed
	ok(t, a.Hearthctl.Decode(&c, append([]string{"claim", "--class", class}, args...)...))
	return c
}

// refused runs hearthctl, which must exit with the code, and its message hold
// every word.
func (a *agent) refused(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	_, stderr, got := a.Hearthctl.Try(args...)
	if got != code {
		t.Errorf("hearthctl %s: exit %d, want %d: %s", strings.Join(args, " "), got, code, stderr)
	}
	holds(t, stderr, words...)
}

func (a *agent) release(t *testing.T, c stage.Claimed) {
	t.Helper()
	_, err := a.Hearthctl.Run("release", c.ID())
	ok(t, err)
	a.forget(c.ID(), c.Environment.Slot)
}

// forget notes names that no later inventory may hold.
func (a *agent) forget(names ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = append(a.gone, names...)
}

func (a *agent) get(t *testing.T, id string) *hearthv1.Environment {
	t.Helper()
	resp, err := a.Node.Get(t.Context(), &hearthv1.NodeGetRequest{Environment: id})
	ok(t, err)
	return resp.GetEnvironment()
}

// alive checks that an environment runs: phase, freezer and a command.
func (a *agent) alive(t *testing.T, c stage.Claimed) {
	t.Helper()
	if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_RUNNING || int(e.GetPid()) != c.Environment.PID {
		t.Errorf("environment %s is %s with pid %d, was claimed with %d: %s", c.ID(), e.GetPhase(), e.GetPid(), c.Environment.PID, e.GetMessage())
	}
	if a.frozen(t, c) {
		t.Errorf("environment %s is frozen", c.ID())
	}
	out, err := a.Hearthctl.Sh(c, "hostname")
	if err != nil || strings.TrimSpace(out) != c.ID() {
		t.Errorf("exec in %s: %q, %v", c.ID(), out, err)
	}
}

func (a *agent) frozen(t *testing.T, c stage.Claimed) bool {
	t.Helper()
	b, err := os.ReadFile(a.UnifiedCgroup(c.Environment.Slot, "cgroup.events"))
	ok(t, err)
	return strings.Contains(string(b), "frozen 1")
}

// rss is the agent's resident memory in bytes.
func (a *agent) rss(t *testing.T) int64 {
	t.Helper()
	pid, err := a.PID("agent")
	ok(t, err)
	return residentOf(t, pid)
}

func residentOf(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	ok(t, err)
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	ok(t, err)
	return kib << 10
}

// runs reports whether a process has not ended; a zombie has.
func runs(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// holds checks that a message names what it must.
func holds(t *testing.T, message string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("the message lacks %q: %s", w, message)
		}
	}
}

// fails checks an error's sentinel and words.
func fails(t *testing.T, err, sentinel error, words ...string) {
	t.Helper()
	var ue *url.Error
	if !errors.Is(err, sentinel) || (errors.As(err, &ue) && !errors.Is(sentinel, env.ErrUnavailable)) {
		t.Errorf("error is %v, want one of kind %q", err, sentinel)
		return
	}
	holds(t, err.Error(), words...)
}

func eventually(t *testing.T, most time.Duration, check func() error) {
	t.Helper()
	if err := stage.Eventually(most, check); err != nil {
		t.Fatal(err)
	}
}

var sprintf = fmt.Sprintf
