package stage

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	ClassName   = "demo"
	ServicePort = 8000
	nodePort    = "7401"
	controlPort = "7400"
)

// classManifest is the demo's class: a web server that is started and probed
// before anybody claims it, and answers with the claim's variable.
const classManifest = `apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata:
  name: demo
spec:
  image: hearth.local/busybox:1
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
  resources: {cpu: "1", memory: %s, pids: 256}
  warm: {slots: %d}
  egress: {mode: internet}
  detection:
    responses: {low: record, medium: alert, high: freeze, critical: freeze}
  ports:
  - {name: web, port: 8000, protocol: http}
  mounts: [shared]
`

func (s *Stage) agentConfig() string {
	return fmt.Sprintf(`instance: %s
node: demo-node
stateDir: %s/state
runDir: %s
classesDir: %s/classes
initPath: %s
containerd:
  binDir: %s
network:
  resolvers: ["%s"]
  unsafeOpenSwitch: true
ids: {count: 512}
limits: {slots: %d}
# The machine may be as busy, and its disk as full, as they are.
refill: {cpuPressure: 100, memoryPressure: 100, ioPressure: 100}
disk: {keepFree: 64Mi, keepFreeInodes: "1000"}
api:
  listen: 127.0.0.1:%s
  advertise: 127.0.0.1:%s
controller:
  address: 127.0.0.1:%s
  joinTokenFile: %s/controller/join-token
detection:
  eventsFile: %s/events.jsonl
mounts:
  shared: {path: %s/shared}
`, s.instance, s.dir, s.runDir(), s.dir, s.Program("envinit"), s.runtimeDir, uplinkInternet, s.MaxSlots,
		nodePort, nodePort, controlPort, s.dir, s.dir, s.dir)
}

func (s *Stage) controllerConfig() string {
	return fmt.Sprintf(`instance: %s
stateDir: %s/controller
api:
  listen: 127.0.0.1:%s
  names: [127.0.0.1]
`, s.instance, s.dir, controlPort)
}

// StartDaemons writes the configuration, imports the image and starts the
// controller and the agent, inside the stage's namespaces.
func (s *Stage) StartDaemons() error {
	if err := os.MkdirAll(s.Path("shared"), 0o755); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"nodeagent.yaml": s.agentConfig(), "controller.yaml": s.controllerConfig(), classFile: s.class(s.WarmSlots),
	} {
		if err := os.MkdirAll(filepath.Dir(s.Path(name)), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(s.Path(name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	cmd := exec.Command(s.Program("controller"), "run", "--config", s.Path("controller.yaml"))
	if err := s.startLogged("controller", cmd); err != nil {
		return err
	}
	token := filepath.Join(s.dir, "controller", "admin.key")
	if err := Eventually(60*time.Second, func() error {
		_, err := os.Stat(filepath.Join(s.dir, "controller", "join-token"))
		return err
	}); err != nil {
		return fmt.Errorf("controller: %w", err)
	}
	key, err := os.ReadFile(token)
	if err != nil {
		return err
	}
	out, err := exec.Command(s.Program("nodeagent"), "image", "import", s.image, "--config", s.Path("nodeagent.yaml")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("image import: %w: %s", err, out)
	}
	if err := s.StartAgent(); err != nil {
		return err
	}
	s.Node = s.nodeClient()
	s.Hearthctl = Hearthctl{path: s.Program("hearthctl"), env: baseEnv(s, s.clientEnv(strings.TrimSpace(string(key)))...)}
	// The controller gives claims to nodes that it has heard from.
	return Eventually(60*time.Second, func() error {
		_, err := s.Node.Pool()
		return err
	})
}

// classFile is where the agent reads its class.
const classFile = "classes/demo.yaml"

// class is the class with so many ready slots.
func (s *Stage) class(warm int) string { return fmt.Sprintf(classManifest, s.SlotMemory, warm) }

// KeepReady has the agent keep so many ready slots from now on.
func (s *Stage) KeepReady(slots int) error {
	if err := os.WriteFile(s.Path(classFile), []byte(s.class(slots)), 0o600); err != nil {
		return err
	}
	pid, err := s.PID("agent")
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGHUP)
}

func (s *Stage) clientEnv(key string) []string {
	return []string{
		"HEARTH_SERVER=https://127.0.0.1:" + controlPort,
		"HEARTH_TOKEN=" + key,
		"HEARTH_CA=" + filepath.Join(s.dir, "controller", "ca.pem"),
	}
}

// Limit lets the node have so many slots, by an agent that is started anew.
func (s *Stage) Limit(slots int) error {
	s.MaxSlots = slots
	if err := s.end("agent"); err != nil {
		return err
	}
	if err := os.WriteFile(s.Path("nodeagent.yaml"), []byte(s.agentConfig()), 0o600); err != nil {
		return err
	}
	if err := s.StartAgent(); err != nil {
		return err
	}
	return Eventually(60*time.Second, func() error {
		_, err := s.Node.Pool()
		return err
	})
}

func (s *Stage) StartAgent() error {
	return s.startLogged("agent", exec.Command(cmp.Or(s.Agent, s.Program("nodeagent")), "run", "--config", s.Path("nodeagent.yaml")))
}

// PrintKept says what to try in a demo that was left running.
func (s *Stage) PrintKept() error {
	key, err := os.ReadFile(filepath.Join(s.dir, "controller", "admin.key"))
	if err != nil {
		return err
	}
	pid, err := s.PID("node")
	if err != nil {
		return err
	}
	lines := append(s.clientEnv(strings.TrimSpace(string(key))),
		"HEARTH_NODE_SOCKET="+s.socket(), fmt.Sprintf("HEARTH_NETNS_PID=%d", pid), "HEARTH_STATE="+s.Path("state"))
	file := s.Path("env")
	if err := os.WriteFile(file, []byte("export "+strings.Join(lines, "\nexport ")+"\n"), 0o600); err != nil {
		return err
	}
	fmt.Printf(`demo: kept running; it lives in network and mount namespaces of its own. Try:

  . %s
  in_demo() { nsenter -t $HEARTH_NETNS_PID -n -m -- "$@"; }
  in_demo %s run --class demo -e WHO=me -- sh -c 'echo $WHO; hostname; id'
  in_demo %s claim --class demo
  in_demo %s list
  nsenter -t $HEARTH_NETNS_PID -n -m -- %s debug pools

End it with: make demo-stop
`, file, s.Program("hearthctl"), s.Program("hearthctl"), s.Program("hearthctl"), s.Program("nodeagent"))
	return nil
}
