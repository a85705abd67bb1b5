package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// slotDirs are the cgroups of the instance's slots.
func (a *agent) slotDirs() []string {
	dirs, _ := filepath.Glob(a.UnifiedCgroup("s-*", ""))
	return dirs
}

// inspection is what is read of a slot.
type inspection struct {
	Slot, Phase   string
	PID           int
	Alive, Frozen bool
}

func inspected(t *testing.T, resp *hearthv1.InspectResponse) (i inspection) {
	t.Helper()
	ok(t, json.Unmarshal(resp.GetJson(), &i))
	return i
}

// consistent compares what a new agent says with the kernel: every slot's
// cgroup is known, what is ready is frozen, what is claimed is one of want, and
// none of want is missing.
func (a *agent) consistent(t *testing.T, want map[string]stage.Claimed) {
	t.Helper()
	list, err := a.Node.List(t.Context(), &hearthv1.NodeListRequest{})
	ok(t, err)
	for _, e := range list.GetEnvironments() {
		if _, known := want[e.GetId()]; !known {
			t.Errorf("environment %s (%s) was never acknowledged", e.GetId(), e.GetPhase())
		}
	}
	if have := len(list.GetEnvironments()); have < len(want) {
		t.Errorf("%d environments are there, %d were acknowledged", have, len(want))
	}
	for _, c := range want {
		a.alive(t, c)
	}
	a.poolFull(t)
	for _, dir := range a.slotDirs() {
		resp, err := a.Node.Inspect(t.Context(), &hearthv1.InspectRequest{Name: filepath.Base(dir)})
		if err != nil {
			t.Errorf("the agent does not know cgroup %s: %v", dir, err)
			continue
		}
		i := inspected(t, resp)
		if ready := i.Phase == "ready"; !i.Alive || i.Frozen != ready || (i.Phase != "ready" && i.Phase != "claimed") {
			t.Errorf("slot %s is %s, alive %t, frozen %t", i.Slot, i.Phase, i.Alive, i.Frozen)
		}
	}
}

func TestNodeSIGTERMLeavesEverythingRunning(t *testing.T) {
	a := node(t)
	run, paused := a.claim(t, "web", "-e", "GREETING=kept"), a.claim(t, "bare")
	_, err := a.Hearthctl.Run("pause", paused.ID())
	ok(t, err)
	// A held command goes on, and the one who waits for it is told.
	held := a.Hearthctl.Command("exec", run.ID(), "--", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/n; sleep 0.05; done")
	ok(t, held.Start())
	eventually(t, 5*time.Second, func() error { return exists(run, "/tmp/n") })
	ready := a.readyInits(t)
	pid, err := a.PID("agent")
	ok(t, err)
	begun := time.Now()
	ok(t, syscall.Kill(pid, syscall.SIGTERM))
	eventually(t, 15*time.Second, func() error {
		if runs(pid) {
			return fmt.Errorf("agent %d has not stopped", pid)
		}
		return nil
	})
	if took := time.Since(begun); took > stage.Slow(5*time.Second) {
		t.Errorf("the agent took %s to stop", took)
	}
	if _, err := os.Stat(a.Socket()); err == nil {
		t.Error("the socket is left")
	}
	if err := held.Wait(); held.ProcessState.ExitCode() != 125 {
		t.Errorf("a held exec ended with %v, want 125", err)
	}
	a.refused(t, 4, []string{"node.sock"}, "list")
	for _, p := range append(ready, run.Environment.PID, paused.Environment.PID) {
		if !runs(p) {
			t.Errorf("init %d ended with the agent", p)
		}
	}
	before := read(t, run, "/tmp/n")
	time.Sleep(stage.Slow(200 * time.Millisecond))
	if now := read(t, run, "/tmp/n"); now == before {
		t.Errorf("the held command stands at %q", now)
	}
	a.up(t)
	if e := a.get(t, paused.ID()); e.GetPhase() != hearthv1.Phase_PHASE_PAUSED || !a.frozen(t, paused) {
		t.Errorf("the paused environment is %s", e.GetPhase())
	}
	for _, p := range ready {
		if !runs(p) {
			t.Errorf("ready slot %d was not taken back", p)
		}
	}
	_, err = a.Hearthctl.Run("resume", paused.ID())
	ok(t, err)
	a.consistent(t, map[string]stage.Claimed{run.ID(): run, paused.ID(): paused})
	if body, err := run.Get(8000, "/cgi-bin/hello"); err != nil || body != "kept\n" {
		t.Errorf("the old token and service: %q, %v", body, err)
	}
	a.release(t, run)
	a.release(t, paused)
}

func exists(c stage.Claimed, path string) error {
	_, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", c.Environment.PID, path))
	return err
}

func read(t *testing.T, c stage.Claimed, path string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", c.Environment.PID, path))
	ok(t, err)
	return string(b)
}

// In the middle of preparations: what was half made is removed, and the pool
// fills.
func TestNodeSIGKILLDuringPreparationsLeavesNothingHalf(t *testing.T) {
	a := node(t)
	kept := a.claim(t, "web")
	want := map[string]stage.Claimed{kept.ID(): kept}
	for _, after := range []int{10, 40, 80, 120, 170, 230} {
		c := a.claim(t, "web") // makes room for a preparation
		a.forget(c.ID(), c.Environment.Slot)
		resp, err := a.Node.Release(t.Context(), &hearthv1.NodeReleaseRequest{Environment: c.ID()})
		if err != nil {
			t.Fatal(err, resp)
		}
		time.Sleep(time.Duration(after) * time.Millisecond)
		a.kill(t)
		a.up(t)
		a.consistent(t, want)
	}
	a.release(t, kept)
}

// In the middle of claims, warm and cold: every answered one is there, and a
// repetition of an unanswered one gets one environment.
func TestNodeSIGKILLDuringClaimsKeepsWhatWasAnswered(t *testing.T) {
	a := node(t)
	for round, after := range []int{1, 4, 15, 60, 200} {
		var (
			wg   sync.WaitGroup
			mu   sync.Mutex
			want = map[string]stage.Claimed{}
			lost []*hearthv1.NodeClaimRequest
		)
		for i := range warm + 3 {
			req := &hearthv1.NodeClaimRequest{IdempotencyKey: fmt.Sprintf("%s-%d-%d", t.Name(), round, i), Spec: &hearthv1.ClaimSpec{Class: "web"}}
			wg.Go(func() {
				resp, err := a.Node.Claim(context.Background(), req)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					lost = append(lost, req)
					return
				}
				want[resp.GetEnvironment().GetId()] = claimed(resp)
			})
		}
		time.Sleep(time.Duration(after) * time.Millisecond)
		a.kill(t)
		wg.Wait()
		a.up(t)
		t.Logf("killed after %d ms: %d answered, %d not", after, len(want), len(lost))
		for _, c := range want {
			a.alive(t, c)
		}
		for _, req := range lost {
			resp, err := a.Node.Claim(t.Context(), req)
			ok(t, err)
			want[resp.GetEnvironment().GetId()] = claimed(resp)
		}
		if len(want) != warm+3 {
			t.Errorf("%d keys have %d environments", warm+3, len(want))
		}
		a.consistent(t, want)
		for _, c := range want {
			a.release(t, c)
		}
		a.poolFull(t)
	}
}

// While a snapshot holds the environment frozen: the next agent thaws it, and
// the next snapshot is whole.
func TestNodeSIGKILLDuringASnapshotLeavesNothingFrozen(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	_, err := a.Hearthctl.Sh(c, `mkdir /workspace/d; cd /workspace/d; i=0; while [ $i -lt 3000 ]; do echo $i > f$i; i=$((i+1)); done
(while :; do for f in f?? f???; do echo x >> $f; done; done) >/dev/null 2>&1 &`)
	ok(t, err)
	caught := false
	for try := 0; try < 10 && !caught; try++ {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = a.Node.Snapshot(context.Background(), &hearthv1.NodeSnapshotRequest{Environment: c.ID()})
		}()
		pid, err := a.PID("agent")
		ok(t, err)
		for waiting := true; waiting; {
			select {
			case <-done:
				waiting = false
			default:
				if a.frozen(t, c) {
					ok(t, syscall.Kill(pid, syscall.SIGKILL))
					waiting = false
				}
			}
		}
		<-done
		eventually(t, 3*time.Second, func() error {
			if runs(pid) && a.frozen(t, c) {
				return fmt.Errorf("agent %d lives and the environment is frozen", pid)
			}
			return nil
		})
		caught = !runs(pid) && a.frozen(t, c)
		a.up(t)
		a.alive(t, c)
	}
	if !caught {
		t.Error("the agent never died while the environment was frozen: the test proves nothing")
	}
	a.consistent(t, map[string]stage.Claimed{c.ID(): c})
	_, err = a.Hearthctl.Sh(c, "kill -9 -1 2>/dev/null; true")
	_ = err // its own shell may be among them
	var snap struct{ Snapshot struct{ ID string } }
	ok(t, a.Hearthctl.Decode(&snap, "snapshot", "create", c.ID()))
	again := a.claim(t, "bare", "--snapshot", snap.Snapshot.ID)
	sums := "cd /workspace/d && cat f* | sha256sum"
	one, err := a.Hearthctl.Sh(c, sums)
	ok(t, err)
	two, err := a.Hearthctl.Sh(again, sums)
	if err != nil || one != two {
		t.Errorf("the restored files are %q, want %q: %v", two, one, err)
	}
	a.release(t, c)
	a.release(t, again)
}

// In the middle of releases: what was begun is ended, and what was not begun
// lives.
func TestNodeSIGKILLDuringReleasesEndsThem(t *testing.T) {
	a := node(t)
	kept := a.claim(t, "bare")
	for _, after := range []int{0, 3, 10, 30, 60} {
		c := a.claim(t, "web")
		done := make(chan error, 1)
		go func() {
			_, err := a.Node.Release(context.Background(), &hearthv1.NodeReleaseRequest{Environment: c.ID()})
			done <- err
		}()
		time.Sleep(time.Duration(after) * time.Millisecond)
		a.kill(t)
		answer := <-done
		a.up(t)
		want := map[string]stage.Claimed{kept.ID(): kept}
		_, err := a.Node.Get(t.Context(), &hearthv1.NodeGetRequest{Environment: c.ID()})
		if err == nil {
			want[c.ID()] = c
		}
		if answer == nil && err == nil {
			t.Errorf("environment %s lives after its release was answered", c.ID())
		}
		t.Logf("killed after %d ms: answered %t, lives %t", after, answer == nil, err == nil)
		a.consistent(t, want)
		if err == nil {
			a.release(t, c)
		}
		a.forget(c.ID(), c.Environment.Slot)
	}
	a.release(t, kept)
}

func TestNodePauseSurvivesSIGKILL(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	_, err := a.Hearthctl.Run("pause", c.ID())
	ok(t, err)
	a.kill(t)
	a.up(t)
	if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_PAUSED || !a.frozen(t, c) {
		t.Errorf("the environment is %s", e.GetPhase())
	}
	a.refused(t, 125, []string{"paused", "resume it"}, "exec", c.ID(), "--", "true")
	_, err = a.Hearthctl.Run("resume", c.ID())
	ok(t, err)
	a.consistent(t, map[string]stage.Claimed{c.ID(): c})
	a.release(t, c)
}

// A shim that containerd has forgotten, as it does when the caller of a deletion
// dies in the middle, is ended by the next start; another instance's is not, nor
// that of another containerd.
func TestNodeLostShimIsEnded(t *testing.T) {
	a := node(t)
	start := func(namespace, address string) *exec.Cmd {
		// A program that has no children, as a shim without containers.
		cmd := exec.Command(a.Probe(), "count", "1000000", "-namespace", namespace, "-id", string(env.NewSlotID()), "-address", address)
		cmd.Args[0] = "/usr/bin/containerd-shim-runc-v2"
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		ok(t, cmd.Start())
		return cmd
	}
	socket := filepath.Join(a.RunDir(), "containerd", "containerd.sock")
	lost := start(a.Instance(), socket)
	others := []*exec.Cmd{start(a.Instance()+"2", socket), start(a.Instance(), "/run/another.sock")}
	ended := make(chan error, 1)
	go func() { ended <- lost.Wait() }()
	a.kill(t)
	a.up(t)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("a lost shim lives on")
		ok(t, lost.Process.Kill())
	}
	for _, other := range others {
		if !runs(other.Process.Pid) {
			t.Errorf("the shim of another was ended: %q", other.Args)
		}
		ok(t, other.Process.Kill())
		_ = other.Wait()
	}
}
