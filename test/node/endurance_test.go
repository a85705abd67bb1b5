package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/rpc"
	"hearth/test/stage"
)

// load is what the agent's process has.
type load struct {
	heap, rss, containerd   int64 // bytes
	goroutines, descriptors int
}

func (a *agent) load(t *testing.T) (l load) {
	t.Helper()
	l.heap, l.goroutines = a.heap(t)
	l.rss, l.descriptors, l.containerd = a.rss(t), a.descriptors(t), residentOf(t, a.containerdPID(t))
	return l
}

func (l load) String() string {
	return fmt.Sprintf("heap %.2f MiB, resident %d MiB, %d goroutines, %d descriptors; containerd %d MiB",
		float64(l.heap)/mib, l.rss/mib, l.goroutines, l.descriptors, l.containerd/mib)
}

// use does a little of everything with an environment.
func (a *agent) use(t *testing.T, h *http.Client, c stage.Claimed, turn int) {
	t.Helper()
	one := *h // whose connections serve all
	one.Transport = bearer{h.Transport, c.ID(), c.Access.Token}
	g := hearthv1connect.NewGuestServiceClient(&one, "https://"+c.Access.Address, rpc.ClientOptions()...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got, err := execOf(ctx, g, 10, "sh", "-c", "echo x > /workspace/f; echo x > /root/f"); err != nil {
		t.Fatalf("exec: %v, %v", got, err)
	}
	ok(t, second(g.ListDir(ctx, &hearthv1.ListDirRequest{Path: "/workspace"})))
	switch turn % 4 {
	case 0:
		ok(t, second(a.Node.Pause(ctx, &hearthv1.NodePauseRequest{Environment: c.ID()})))
	case 1:
		ok(t, second(a.Node.Snapshot(ctx, &hearthv1.NodeSnapshotRequest{Environment: c.ID()})))
	case 2:
		ok(t, syscall.Kill(c.Environment.PID, syscall.SIGKILL))
	}
}

// After a thousand environments nothing is left of them, and the agent is as large as
// after the first ones.
func TestNodeCyclesLeaveNothingAndTheAgentDoesNotGrow(t *testing.T) {
	a := node(t)
	var h *http.Client
	cycles := func(n int) {
		t.Helper()
		for i := range n {
			c := a.claimSpec(t, &hearthv1.ClaimSpec{Class: "web", Variables: map[string]string{"GREETING": fmt.Sprint(i)}})
			if h == nil {
				h = rpc.TLSClient(tlsOf(c))
				t.Cleanup(h.CloseIdleConnections)
			}
			if i%5 == 0 {
				a.use(t, h, c, i/5)
			}
			if _, err := a.Node.Release(t.Context(), &hearthv1.NodeReleaseRequest{Environment: c.ID()}); err != nil {
				t.Fatal(err)
			}
			a.forget(c.ID(), c.Environment.Slot)
		}
		a.poolFull(t)
	}
	half := either(20, 500)
	begun := time.Now()
	cycles(max(10, half/10)) // caches fill
	first := a.load(t)
	cycles(half)
	middle := a.load(t)
	cycles(half)
	last := a.load(t)
	t.Logf("%d ms for each cycle", time.Since(begun).Milliseconds()/int64(2*half+max(10, half/10)))
	t.Logf("before:            %s", first)
	t.Logf("after %4d cycles: %s", half, middle)
	t.Logf("after %4d cycles: %s", 2*half, last)
	if grown := last.heap - middle.heap; grown > mib {
		t.Errorf("the agent's heap grew by %d bytes in %d cycles", grown, half)
	}
	if grown := last.rss - first.rss; grown > 24*mib {
		t.Errorf("the agent grew by %d MiB in %d cycles", grown/mib, 2*half)
	}
	if last.descriptors > first.descriptors+5 || last.goroutines > first.goroutines+10 {
		t.Errorf("%d descriptors and %d goroutines, before the cycles %d and %d", last.descriptors, last.goroutines, first.descriptors, first.goroutines)
	}
}

// crowd is an agent with room for so many environments, and a pool beside them.
func crowd(t *testing.T, many int) *agent {
	t.Helper()
	if !long() {
		return node(t)
	}
	require(t)
	s := newStage("").Beside(crowded)
	a := newAgentFor(t, s, 7451, many+8, map[string]string{
		"bare": "  image: hearth.local/busybox:1\n  resources: {memory: 16Mi}\n",
		"web":  "  image: hearth.local/busybox:1\n  resources: {memory: 16Mi}\n  warm: {slots: 4}\n",
	}, "")
	t.Cleanup(func() {
		remove(t, s)
		ok(t, os.RemoveAll(s.Dir()))
	})
	out, code := a.nodeagent("image", "import", a.Image())
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.up(t)
	a.release(t, a.claim(t, "bare")) // the image is unpacked on its first use
	a.leavesNothing(t)
	return a
}

// ends tells the agent to end, and waits until it has.
func (a *agent) ends(t *testing.T, sig syscall.Signal) {
	t.Helper()
	pid, err := a.PID("agent")
	ok(t, err)
	ok(t, syscall.Kill(pid, sig))
	ended(t, pid, 30*time.Second)
}

// claimsAgain starts the agent and says how long it took until a claim was answered.
func (a *agent) claimsAgain(t *testing.T, program string) time.Duration {
	t.Helper()
	begun := time.Now()
	ok(t, a.Launch("agent", exec.Command(program, "run", "--config", a.Path("nodeagent.yaml"))))
	var c stage.Claimed
	eventually(t, 60*time.Second, func() error {
		resp, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{WarmOnly: true, Spec: &hearthv1.ClaimSpec{Class: "web"}})
		if err == nil {
			c = claimed(resp)
		}
		return err
	})
	took := time.Since(begun)
	a.up(t)
	a.alive(t, c)
	a.release(t, c)
	return took
}

// many claims so many environments, a few at once; every third is paused.
func (a *agent) many(t *testing.T, n int) (all []stage.Claimed, paused map[string]bool) {
	t.Helper()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
		turn = make(chan struct{}, 4)
	)
	paused = map[string]bool{}
	for i := range n {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			resp, err := a.Node.Claim(context.Background(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "bare"}})
			if err == nil && i%3 == 0 {
				_, err = a.Node.Pause(context.Background(), &hearthv1.NodePauseRequest{Environment: resp.GetEnvironment().GetId()})
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			all = append(all, claimed(resp))
			paused[resp.GetEnvironment().GetId()] = i%3 == 0
		})
	}
	wg.Wait()
	ok(t, errors.Join(errs...))
	return all, paused
}

// asBefore counts the environments that are as they were.
func (a *agent) asBefore(t *testing.T, all []stage.Claimed, paused map[string]bool) (n int) {
	t.Helper()
	for _, c := range all {
		want := hearthv1.Phase_PHASE_RUNNING
		if paused[c.ID()] {
			want = hearthv1.Phase_PHASE_PAUSED
		}
		if e := a.get(t, c.ID()); e.GetPhase() != want || int(e.GetPid()) != c.Environment.PID || !runs(c.Environment.PID) || a.frozen(t, c) != paused[c.ID()] {
			t.Errorf("environment %s is %s: %s", c.ID(), e.GetPhase(), e.GetMessage())
			continue
		}
		n++
	}
	list, err := a.Node.List(t.Context(), &hearthv1.NodeListRequest{})
	ok(t, err)
	if have := len(list.GetEnvironments()); have != len(all) {
		t.Errorf("%d environments are there, %d were claimed", have, len(all))
	}
	return n
}

func TestNodeEnvironmentsOutliveEveryEndOfTheirAgent(t *testing.T) {
	many := either(12, 200)
	a := crowd(t, many)
	begun := time.Now()
	all, paused := a.many(t, many)
	t.Logf("%d environments claimed in %d ms", many, time.Since(begun).Milliseconds())
	a.poolFull(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		begun := time.Now()
		a.ends(t, sig)
		stopped := time.Since(begun)
		took := a.claimsAgain(t, a.Program("nodeagent"))
		kept := a.asBefore(t, all, paused)
		t.Logf("%s: ended in %d ms, claims answered %d ms after the start, %d of %d environments as before",
			sig, stopped.Milliseconds(), took.Milliseconds(), kept, many)
		for i, c := range all {
			if i%(1+many/8) == 0 && !paused[c.ID()] {
				a.alive(t, c)
			}
		}
		a.poolFull(t)
	}
	for _, c := range all { // paused ones go on
		if paused[c.ID()] {
			ok(t, second(a.Node.Resume(t.Context(), &hearthv1.NodeResumeRequest{Environment: c.ID()})))
			a.alive(t, c)
			break
		}
	}
	begun = time.Now()
	a.releaseThese(t, all)
	t.Logf("%d environments released in %d ms", many, time.Since(begun).Milliseconds())
}

// releaseThese releases environments, a few at once.
func (a *agent) releaseThese(t *testing.T, all []stage.Claimed) {
	t.Helper()
	var wg sync.WaitGroup
	turn := make(chan struct{}, 4)
	for _, c := range all {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if _, err := a.Node.Release(context.Background(), &hearthv1.NodeReleaseRequest{Environment: c.ID()}); err != nil {
				t.Errorf("release %s: %v", c.ID(), err)
			}
			a.forget(c.ID(), c.Environment.Slot)
		})
	}
	wg.Wait()
}

// Another binary in the place of the agent's, and the older one again.
func TestNodeAnotherBinaryTakesOverWhatRuns(t *testing.T) {
	a := node(t)
	dir := t.TempDir()
	newer := dir + "/nodeagent"
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=newer", "-o", newer, "../../cmd/nodeagent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build another agent: %v: %s", err, out)
	}
	init, err := os.ReadFile(a.Program("envinit")) // and another init, beside it
	ok(t, err)
	ok(t, os.WriteFile(dir+"/envinit", append(init, "newer"...), 0o755))
	ok(t, os.Chmod(dir, 0o755))
	run, paused := a.claim(t, "web", "-e", "GREETING=kept"), a.claim(t, "bare")
	ok(t, second(a.Node.Pause(t.Context(), &hearthv1.NodePauseRequest{Environment: paused.ID()})))
	a.poolFull(t)
	ready := a.readyInits(t)
	for _, next := range []struct{ program, version string }{{newer, "newer"}, {a.Program("nodeagent"), ""}} {
		a.ends(t, syscall.SIGTERM)
		took := a.claimsAgain(t, next.program)
		t.Logf("%s: claims answered %d ms after the start", next.program, took.Milliseconds())
		if is := a.series(t, `hearth_build_info{version="newer"}`) == 1; is != (next.version == "newer") {
			t.Errorf("the newer agent runs: %t", is)
		}
		a.asBefore(t, []stage.Claimed{run, paused}, map[string]bool{paused.ID(): true})
		a.alive(t, run)
		if body, err := run.Get(8000, "/cgi-bin/hello"); err != nil || body != "kept\n" {
			t.Errorf("the old token and service: %q, %v", body, err)
		}
		a.poolFull(t)
	}
	left := 0
	for _, pid := range ready {
		if runs(pid) {
			left++
		}
	}
	t.Logf("%d of %d ready slots were kept", left, len(ready)) // the claims have taken two
	if left == 0 {
		t.Error("no ready slot was kept")
	}
	a.release(t, run)
	a.release(t, paused)
}
