package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// givenContainerd starts a containerd that is not the agent's.
func givenContainerd(t *testing.T, s *stage.Stage) (start func(), address string) {
	t.Helper()
	// Init processes, which are nobody on the host, pass through to their bundles.
	state := "/run/" + s.Instance() + "-containerd"
	ok(t, os.MkdirAll(state, 0o711))
	t.Cleanup(func() { ok(t, os.RemoveAll(state)) })
	address = state + "/containerd.sock"
	config := s.Path("containerd.toml")
	ok(t, os.MkdirAll(s.Dir(), 0o700))
	ok(t, os.WriteFile(config, fmt.Appendf(nil, `version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
  address = %q
[ttrpc]
  address = %q
`, s.Path("containerd"), state+"/state", address, address+".ttrpc"), 0o600))
	return func() {
		cmd := exec.Command(s.RuntimeDir()+"/containerd", "--config", config)
		cmd.Env = append(os.Environ(), "PATH="+s.RuntimeDir()+":"+os.Getenv("PATH"))
		ok(t, s.Launch("containerd", cmd))
		eventually(t, 20*time.Second, func() error { return exec.Command(s.RuntimeDir()+"/ctr", "--address", address, "version").Run() })
	}, address
}

// The node's containerd dies and is started again by somebody else. Meanwhile only
// what needs it waits; what ended then is found afterwards.
func TestNodeGivenContainerdMayDieAndComeBack(t *testing.T) {
	require(t)
	s := newStage("").Beside(given)
	startContainerd, address := givenContainerd(t, s)
	a := newAgent(t, s, 7471, map[string]string{
		"bare": "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n",
		"web":  "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n  warm: {slots: 2}\n",
	}, "")
	config, err := os.ReadFile(a.Path("nodeagent.yaml"))
	ok(t, err)
	a.write(t, "nodeagent.yaml", strings.Replace(string(config), "  binDir: "+s.RuntimeDir(), "  address: "+address+"\n  runtime: "+s.RuntimeDir()+"/runc", 1))
	startContainerd()
	t.Cleanup(func() {
		if t.Failed() {
			a.tail(t)
		}
		ok(t, s.End("agent"))
		if out, code := a.nodeagent("cleanup", "--all"); code != 0 {
			t.Errorf("cleanup: exit %d: %s", code, out)
		}
		ok(t, s.End("containerd"))
		ok(t, os.RemoveAll(s.Dir()))
	})
	out, code := a.nodeagent("image", "import", a.Image())
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.up(t)
	a.poolFull(t)
	c, dies := a.claim(t, "bare"), a.claim(t, "bare")
	pid, err := s.PID("containerd")
	ok(t, err)
	ok(t, syscall.Kill(pid, syscall.SIGKILL))
	ended(t, pid, 10*time.Second)

	resp, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{WarmOnly: true, Spec: &hearthv1.ClaimSpec{Class: "web"}})
	ok(t, err)
	w := claimed(resp)
	ok(t, second(a.Hearthctl.Run("pause", c.ID())))
	ok(t, second(a.Hearthctl.Run("resume", c.ID())))
	ok(t, second(a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: c.ID()})))
	for _, e := range []stage.Claimed{c, w} {
		a.alive(t, e)
	}
	_, stderr, code := a.Hearthctl.Try("claim", "--class", "bare")
	t.Logf("a cold claim: exit %d: %s", code, strings.TrimSpace(stderr))
	if code != 4 {
		t.Errorf("a cold claim without containerd: exit %d, want 4", code)
	}
	holds(t, stderr, "containerd")
	ok(t, syscall.Kill(dies.Environment.PID, syscall.SIGKILL))

	startContainerd()
	eventually(t, 30*time.Second, func() error {
		cold := stage.Claimed{}
		if err := a.Hearthctl.Decode(&cold, "claim", "--class", "bare"); err != nil {
			return err
		}
		a.alive(t, cold)
		a.release(t, cold)
		return nil
	})
	a.failed(t, dies)
	for _, e := range []stage.Claimed{c, w} {
		a.alive(t, e)
	}
	a.poolFull(t)
	for _, e := range []stage.Claimed{c, w, dies} {
		a.release(t, e)
		if _, err := a.Node.Get(t.Context(), &hearthv1.NodeGetRequest{Environment: e.ID()}); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("environment %s after its release: %v", e.ID(), err)
		}
	}
}
