package stage

import (
	"os/exec"
	"path/filepath"
)

// Beside names another instance on the same stage: its agent has a directory
// of its own below the stage's, and shares the namespaces and the programs.
// The caller writes its configuration, and ends and cleans it up.
func (s *Stage) Beside(instance string) *Stage {
	c := *s
	c.instance, c.dir = instance, filepath.Join(s.dir, instance)
	c.UseNode()
	return &c
}

// UseNode sets Node and Hearthctl to speak with the instance's agent alone,
// over its socket, without a controller.
func (s *Stage) UseNode() {
	s.Node = s.nodeClient()
	s.Hearthctl = Hearthctl{path: s.Program("hearthctl"), env: baseEnv(s, "HEARTH_NODE_SOCKET="+s.socket())}
}

// Launch starts a program that outlives this one, with its output in
// <name>.log, and writes its pid down for PID and End.
func (s *Stage) Launch(name string, cmd *exec.Cmd) error { return s.startLogged(name, cmd) }

// End stops what Launch started: SIGTERM, and SIGKILL if that does not help. A
// name that was never launched is no error.
func (s *Stage) End(name string) error { return s.end(name) }

// Instance names everything that the instance's agent owns.
func (s *Stage) Instance() string { return s.instance }

// RunDir is where the instance's sockets and its containerd's state are.
func (s *Stage) RunDir() string { return s.runDir() }

// Socket is the path of the agent's socket.
func (s *Stage) Socket() string { return s.socket() }

// RuntimeDir has containerd, its shim, runc and ctr.
func (s *Stage) RuntimeDir() string { return s.runtimeDir }

// Image is the path of the demo's OCI archive.
func (s *Stage) Image() string { return s.image }

// Resolver answers nothing; it is an address of the stage's internet.
const Resolver = uplinkInternet
