//go:build e2e

package real

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/test/stage"
)

// classes of the tests. The class "debian" may reach the package mirror, by the
// address that its name has now, and one host that answers pings; "databases" has
// PostgreSQL and Redis, which run and have answered before anybody claims them.
const classes = `apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata: {name: debian}
spec:
  image: hearth.local/debian:12
  resources: {cpu: "2", memory: 1Gi, pids: 512}
  warm: {slots: 1}
  egress:
    mode: allow
    allow:
    - {cidr: %s/32, ports: ["80"]}
    - {cidr: ` + stage.PublicAddress + `/32}
  ports:
%s---
apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata: {name: databases}
spec:
  image: hearth.local/debian:12
  services:
  - name: postgres
    command:
    - sh
    - -c
    - |
      [ -d /var/lib/postgresql/15/main ] || pg_createcluster 15 main
      exec pg_ctlcluster --foreground 15 main start
  - name: redis
    command: [setpriv, --reuid=redis, --regid=redis, --init-groups, redis-server, --dir, /var/lib/redis, --save, "", --logfile, ""]
  readiness:
    command: [sh, -c, "pg_isready -q && redis-cli ping | grep -qx PONG"]
    timeout: 60s
  resources: {cpu: "2", memory: 1Gi, pids: 512}
  warm: {slots: 1}
  egress: {mode: none}
`

// The ports of class "debian", besides 80.
const firstPort, ports = 9001, 12

const agentConfig = `instance: %s
node: real-node
stateDir: %s/state
runDir: %s
classesDir: %s/classes
containerd:
  binDir: %s
network:
  resolvers: ["` + stage.Resolver + `"]
ids: {count: 64}
limits: {slots: 8}
refill: {cpuPressure: 100, memoryPressure: 100, ioPressure: 100}
# The machine's disk may be as full as it is.
disk: {keepFree: "0", keepFreeInodes: "0"}
api:
  listen: 127.0.0.1:7401
  advertise: 127.0.0.1:7401
  metrics: 127.0.0.1:7402
`

// theNode is made by the first test.
var theNode *stage.Stage

// node returns the stage with a running agent whose pools are full.
func node(t *testing.T) *stage.Stage {
	t.Helper()
	if theNode == nil {
		theNode = start(t)
	}
	poolsFull(t, theNode)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		if b, err := os.ReadFile(theNode.Path("agent.log")); err == nil {
			t.Logf("--- end of agent.log\n%s", b[max(0, len(b)-4000):])
		}
	})
	return theNode
}

func start(t *testing.T) *stage.Stage {
	t.Helper()
	s := theStage()
	s.UseNode()
	list := "  - {name: http, port: 80, protocol: http}\n"
	for i := range ports {
		list += fmt.Sprintf("  - {name: p%d, port: %d, protocol: tcp}\n", i, firstPort+i)
	}
	for name, content := range map[string]string{
		"nodeagent.yaml":    fmt.Sprintf(agentConfig, s.Instance(), s.Dir(), s.RunDir(), s.Dir(), s.RuntimeDir()),
		"classes/real.yaml": fmt.Sprintf(classes, os.Getenv(mirrorAddr), list),
	} {
		ok(t, os.MkdirAll(filepath.Dir(s.Path(name)), 0o700))
		ok(t, os.WriteFile(s.Path(name), []byte(content), 0o600))
	}
	began := time.Now()
	config := s.Path("nodeagent.yaml")
	out, err := exec.Command(s.Program("nodeagent"), "image", "import", s.Image(), "--config", config).CombinedOutput()
	if err != nil {
		t.Fatalf("image import: %v: %s", err, out)
	}
	t.Logf("image imported in %s", time.Since(began).Round(time.Second/10))
	ok(t, s.Launch("agent", exec.Command(s.Program("nodeagent"), "run", "--config", config)))
	ok(t, stage.Eventually(30*time.Second, func() error {
		resp, err := http.Get("http://127.0.0.1:7402/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz says %s", resp.Status)
		}
		return nil
	}))
	return s
}

func poolsFull(t *testing.T, s *stage.Stage) {
	t.Helper()
	ok(t, stage.Eventually(2*time.Minute, func() error {
		inv, err := s.Node.Inventory(context.Background(), &hearthv1.InventoryRequest{})
		if err != nil {
			return err
		}
		for _, p := range inv.GetPools() {
			if p.GetReady() != p.GetWant() {
				return fmt.Errorf("pool %s has %d of %d slots ready: %s", p.GetClass(), p.GetReady(), p.GetWant(), p.GetMessage())
			}
		}
		return nil
	}))
}

// machine is a claimed environment.
type machine struct {
	*stage.Stage
	stage.Claimed
}

// claim takes a warm environment, and gives it back after the test.
func claim(t *testing.T, class string, args ...string) machine {
	t.Helper()
	m := machine{Stage: node(t)}
	ok(t, m.Hearthctl.Decode(&m.Claimed, append([]string{"claim", "--class", class}, args...)...))
	if len(args) == 0 && !m.Environment.Warm {
		t.Error("the claim was cold")
	}
	t.Cleanup(func() {
		if _, err := m.Hearthctl.Run("release", m.ID()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// sh runs a script as root inside; it must succeed. It returns what the script
// wrote to standard output, without spaces around.
func (m machine) sh(t *testing.T, script string) string {
	t.Helper()
	began := time.Now()
	out, stderr, code := m.Hearthctl.Try("exec", m.ID(), "--", "sh", "-ec", script)
	if code != 0 {
		t.Fatalf("exit %d of:\n%s\n--- standard output ends\n%s\n--- standard error ends\n%s", code, script, end(out), end(stderr))
	}
	if took := time.Since(began); took > time.Second {
		t.Logf("%4.1f s: %s", took.Seconds(), strings.SplitN(strings.TrimSpace(script), "\n", 2)[0])
	}
	return strings.TrimSpace(out)
}

func end(s string) string { return s[max(0, len(s)-3000):] }

// is compares what a script said.
func is(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
