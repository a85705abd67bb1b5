package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/test/stage"
)

// containerdPID is the managed containerd's process.
func (a *agent) containerdPID(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(a.RunDir(), "containerd", "containerd.pid"))
	ok(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	ok(t, err)
	return pid
}

func TestNodeOutlivesItsContainerd(t *testing.T) {
	a := node(t)
	c := a.claim(t, "web", "-e", "GREETING=before")
	old := a.containerdPID(t)
	// Stopped, it cannot come back before the test has looked.
	ok(t, syscall.Kill(old, syscall.SIGSTOP))
	w, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{WarmOnly: true, Spec: &hearthv1.ClaimSpec{Class: "web"}})
	if err != nil {
		t.Error("a warm claim waits on containerd:", err)
	}
	ok(t, syscall.Kill(old, syscall.SIGKILL))
	a.alive(t, c)
	if body, err := c.Get(8000, "/cgi-bin/hello"); err != nil || body != "before\n" {
		t.Errorf("the service answers %q: %v", body, err)
	}
	// A cold claim says what is missing, or finds containerd back already.
	var cold stage.Claimed
	if _, stderr, code := a.Hearthctl.Try("claim", "--class", "bare", "-o", "name"); code != 0 {
		holds(t, stderr, "class bare", "containerd does not answer", "containerd.log")
		if code != 4 {
			t.Errorf("exit %d, want 4", code)
		}
	}
	eventually(t, 30*time.Second, func() error {
		if now := a.containerdPID(t); now == old || !runs(now) {
			return fmt.Errorf("containerd %d has not been started again", old)
		}
		return a.Hearthctl.Decode(&cold, "claim", "--class", "bare")
	})
	a.alive(t, cold)
	list, err := a.Node.List(t.Context(), &hearthv1.NodeListRequest{})
	ok(t, err)
	if w != nil {
		a.alive(t, claimed(w))
	}
	a.alive(t, c)
	for _, e := range list.GetEnvironments() {
		_, err := a.Node.Release(t.Context(), &hearthv1.NodeReleaseRequest{Environment: e.GetId()})
		ok(t, err)
		a.forget(e.GetId(), e.GetSlot())
	}
}

func TestNodeEnvironmentWhoseInitDiesFailsAndIsReleasedWhole(t *testing.T) {
	a := node(t)
	c := a.claim(t, "web")
	_, err := a.Hearthctl.Sh(c, "echo precious > /workspace/file; setsid sleep 1000 >/dev/null 2>&1 &")
	ok(t, err)
	ok(t, syscall.Kill(c.Environment.PID, syscall.SIGKILL))
	failed := func() {
		t.Helper()
		eventually(t, 5*time.Second, func() error {
			if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_FAILED || !strings.Contains(e.GetMessage(), "init ended") {
				return fmt.Errorf("the environment is %s: %q", e.GetPhase(), e.GetMessage())
			}
			return nil
		})
		_, stderr, code := a.Hearthctl.Try("exec", c.ID(), "--", "true")
		if code != 125 {
			t.Errorf("exec in a failed environment: exit %d, want 125", code)
		}
		holds(t, stderr, c.ID(), "failed", "init ended", "release it")
		a.refused(t, 3, []string{c.ID(), "failed", "release it"}, "pause", c.ID())
	}
	failed()
	// A new agent knows it too: its files are what the caller has left.
	a.kill(t)
	a.up(t)
	failed()
	var snap struct{ Snapshot struct{ ID string } }
	ok(t, a.Hearthctl.Decode(&snap, "snapshot", "create", c.ID()))
	a.release(t, c)
	again := a.claim(t, "web", "--snapshot", snap.Snapshot.ID)
	out, err := a.Hearthctl.Sh(again, "cat /workspace/file")
	if err != nil || out != "precious\n" {
		t.Errorf("the snapshot of the failed environment has %q: %v", out, err)
	}
	a.release(t, again)
}

// An init that dies while no agent runs is a failed environment, not none.
func TestNodeInitThatDiesWithoutAnAgentIsFoundFailed(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	a.kill(t)
	ok(t, syscall.Kill(c.Environment.PID, syscall.SIGKILL))
	a.up(t)
	if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_FAILED {
		t.Errorf("the environment is %s: %q", e.GetPhase(), e.GetMessage())
	}
	a.release(t, c)
}

func TestNodeDeadReadySlotIsReplacedAndNeverHandedOut(t *testing.T) {
	a := node(t)
	dead := map[int]bool{}
	for _, pid := range a.readyInits(t)[:warm-1] {
		dead[pid] = true
		ok(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	for pid := range dead {
		eventually(t, 5*time.Second, func() error {
			if err := syscall.Kill(pid, 0); err == nil {
				return fmt.Errorf("init %d still runs, or dies", pid)
			}
			return nil
		})
	}
	// At once: the agent has hardly been told.
	var all []stage.Claimed
	for range warm {
		c := a.claimSpec(t, &hearthv1.ClaimSpec{Class: "web"})
		if dead[c.Environment.PID] {
			t.Errorf("environment %s was claimed on a dead slot", c.ID())
		}
		all = append(all, c)
	}
	for _, c := range all {
		a.alive(t, c)
		a.release(t, c)
	}
	// And without a claim.
	for _, pid := range a.readyInits(t) {
		ok(t, syscall.Kill(pid, syscall.SIGKILL))
		dead[pid] = true
		break
	}
	eventually(t, 20*time.Second, func() error {
		now := a.readyInits(t)
		for _, pid := range now {
			if dead[pid] {
				return fmt.Errorf("init %d is dead and in the pool", pid)
			}
		}
		if len(now) != warm {
			return fmt.Errorf("%d ready slots, want %d", len(now), warm)
		}
		return nil
	})
}

// readyInits lists the pid of each slot that nobody has claimed.
func (a *agent) readyInits(t *testing.T) (out []int) {
	t.Helper()
	list, err := a.Node.List(context.Background(), &hearthv1.NodeListRequest{})
	ok(t, err)
	claimed := map[string]bool{}
	for _, e := range list.GetEnvironments() {
		claimed[e.GetSlot()] = true
	}
	for _, dir := range a.slotDirs() {
		if slot := filepath.Base(dir); !claimed[slot] {
			resp, err := a.Node.Inspect(context.Background(), &hearthv1.InspectRequest{Name: slot})
			if err != nil {
				continue // gone meanwhile
			}
			if pid := inspected(t, resp).PID; pid != 0 {
				out = append(out, pid)
			}
		}
	}
	return out
}
