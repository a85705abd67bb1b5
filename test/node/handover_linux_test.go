package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/test/stage"
)

// successor starts a second agent that asks the first one to hand over, and
// returns the pids of both.
func (a *agent) successor(t *testing.T) (old, next int) {
	t.Helper()
	old, err := a.PID("agent")
	ok(t, err)
	ok(t, os.Rename(a.Path("agent.pid"), a.Path("agent-before.pid"))) // torn down too, if the test dies
	ok(t, a.Launch("agent", exec.Command(a.Program("nodeagent"), "run", "--take-over", "--config", a.Path("nodeagent.yaml"))))
	next, err = a.PID("agent")
	ok(t, err)
	return old, next
}

func (a *agent) holder(t *testing.T) int {
	t.Helper()
	pid, held, err := durable.Holder(a.Path("state/agent.lock"))
	ok(t, err)
	if !held {
		return 0
	}
	return pid
}

// ended waits for a process to be gone with its last thread, which keeps its
// locks.
func ended(t *testing.T, pid int, most time.Duration) {
	t.Helper()
	eventually(t, most, func() error {
		if err := syscall.Kill(pid, 0); err == nil {
			return fmt.Errorf("process %d still runs", pid)
		}
		return nil
	})
}

// gaps measures how long something did not work.
type gaps struct {
	mu     sync.Mutex
	last   time.Time
	worst  time.Duration
	worked int
	why    error
}

func (g *gaps) ok() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if !g.last.IsZero() {
		g.worst = max(g.worst, now.Sub(g.last))
	}
	g.last = now
	g.worked++
}

func (g *gaps) failed(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.why = err
}

// reset begins anew, and tells the worst until now.
func (g *gaps) reset() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	worst := g.worst
	g.worst, g.worked = 0, 0
	return worst
}

func (g *gaps) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Sprintf("worst gap %s over %d that worked, last failure: %v", g.worst, g.worked, g.why)
}

// steadily runs f again and again until the test ends it.
func steadily(t *testing.T, pause time.Duration, f func() error) (*gaps, func()) {
	t.Helper()
	g := &gaps{}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := f(); err != nil {
				g.failed(err)
			} else {
				g.ok()
			}
			time.Sleep(pause)
		}
	})
	return g, func() { stop(); wg.Wait() }
}

// asksNames asks the resolver, from inside an environment's network, for an
// IPv6 address, which it answers by itself. Each question has a socket of its
// own.
func asksNames(c stage.Claimed) func() error {
	return func() error {
		own, err := os.Open("/proc/thread-self/ns/net") // every thread's is the same
		if err != nil {
			return err
		}
		defer own.Close()
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.Environment.PID))
		if err != nil {
			return err
		}
		defer ns.Close()
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		err = question()
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
			return back // the thread ends with its goroutine
		}
		runtime.UnlockOSThread()
		return err
	}
}

func question() error {
	conn, err := net.DialTimeout("udp4", "100.96.0.1:53", time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	const aaaa, in = 28, 1
	q := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'x', 4, 't', 'e', 's', 't', 0, 0, aaaa, 0, in}
	if _, err := conn.Write(q); err != nil {
		return err
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if err == nil && (n < 12 || binary.BigEndian.Uint16(buf) != 0x1234) {
		err = errors.New("not the answer")
	}
	return err
}

// bpfObjects counts what a process holds of the kernel's programs and maps.
func bpfObjects(pid int) (n int) {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.Contains(to, "bpf") {
			n++
		}
	}
	return n
}

// ticker is a command inside whose output is read by the line, through the
// Guest API of the agent that runs now.
type ticker struct {
	cmd       *exec.Cmd
	lines     chan int
	complaint bytes.Buffer // read after Wait
}

func (a *agent) ticks(t *testing.T, c stage.Claimed) *ticker {
	t.Helper()
	k := &ticker{cmd: a.Hearthctl.Command("exec", c.ID(), "--", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"), lines: make(chan int, 1<<16)}
	out, err := k.cmd.StdoutPipe()
	ok(t, err)
	k.cmd.Stderr = &k.complaint
	ok(t, k.cmd.Start())
	go func() {
		defer close(k.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			n, _ := strconv.Atoi(s.Text())
			k.lines <- n
		}
	}()
	k.goesOn(t)
	return k
}

// goesOn reads two lines that follow what was read before.
func (k *ticker) goesOn(t *testing.T) {
	t.Helper()
	for range 2 {
		select {
		case n, open := <-k.lines:
			if !open || n == 0 {
				t.Fatalf("the command's output has ended: %v: %s", k.cmd.Wait(), &k.complaint)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the command says nothing")
		}
	}
}

func (k *ticker) drain() {
	for {
		select {
		case _, open := <-k.lines:
			if !open {
				return
			}
		default:
			return
		}
	}
}

// Two agents follow each other under load: claims and releases, names, and a
// command whose output is read.
func TestNodeHandsOverToANewerAgentWithoutLosingAnything(t *testing.T) {
	a := node(t)
	want := map[string]stage.Claimed{}
	for range 6 {
		c := a.claim(t, "bare")
		want[c.ID()] = c
	}
	run := a.claim(t, "web", "-e", "GREETING=kept")
	want[run.ID()] = run
	a.poolFull(t)
	k := a.ticks(t, run)
	names, stopNames := steadily(t, 2*time.Millisecond, asksNames(run))
	claims, stopClaims := steadily(t, time.Millisecond, a.claimsAndReleases)
	guests, stopGuests := steadily(t, 5*time.Millisecond, func() error {
		_, err := run.Get(8000, "/index.html")
		return err
	})
	time.Sleep(2 * time.Second)
	usual := map[*gaps]time.Duration{names: names.reset(), claims: claims.reset()} // of this machine, without a hand-over

	begun := time.Now()
	old, next := a.successor(t)
	eventually(t, 30*time.Second, func() error {
		if out, code := a.nodeagent("ready"); code != 0 || a.holder(t) != next {
			return fmt.Errorf("ready says %d: %s", code, out)
		}
		return nil
	})
	took := time.Since(begun)
	time.Sleep(time.Second) // both are there, one serves
	if !runs(old) {
		t.Error("the old agent did not wait for its streams")
	}
	if n := bpfObjects(old); n != 0 {
		t.Errorf("the old agent holds %d kernel programs or maps: two may read one ring", n)
	}
	k.drain()
	k.goesOn(t)
	stopClaims()
	stopNames()
	stopGuests()
	t.Logf("ready after %s; claims: %s; names: %s; guest calls: %s", took, claims, names, guests)
	for g, most := range map[*gaps]time.Duration{claims: 2 * time.Second, names: 200 * time.Millisecond} {
		if g.worst > most+3*usual[g] {
			t.Errorf("a gap of %s, want at most %s, where %s are usual", g.worst, most, usual[g])
		}
	}
	stopped := time.Now()
	ok(t, syscall.Kill(old, syscall.SIGTERM))
	ended(t, old, 5*time.Second)
	t.Logf("the old agent ended in %s", time.Since(stopped))
	if err := k.cmd.Wait(); k.cmd.ProcessState.ExitCode() != 125 {
		t.Errorf("the held command ended with %v, want 125", err)
	}
	a.consistent(t, want)
	if body, err := run.Get(8000, "/cgi-bin/hello"); err != nil || body != "kept\n" {
		t.Errorf("the old token and service: %q, %v", body, err)
	}
	for _, c := range want {
		a.release(t, c)
	}
}

// claimsAndReleases claims an environment by a connection of its own and lets
// it go again.
func (a *agent) claimsAndReleases() error {
	key := string(env.NewID())
	req := &hearthv1.NodeClaimRequest{IdempotencyKey: key, Spec: &hearthv1.ClaimSpec{Class: "web"}}
	resp, err := a.Node.Claim(context.Background(), req)
	if err != nil {
		return err
	}
	id := resp.GetEnvironment().GetId()
	a.forget(id, resp.GetEnvironment().GetSlot())
	for { // what was claimed must be there, whichever agent answers
		_, err = a.Node.Release(context.Background(), &hearthv1.NodeReleaseRequest{Environment: id})
		if !errors.Is(err, env.ErrUnavailable) {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}

// The new agent dies with the lock in its hand: what the old one let go is
// found by the next, and the old one does not stay where nobody is.
func TestNodeHandOverSurvivesTheNewAgentsDeath(t *testing.T) {
	a := node(t)
	c, paused := a.claim(t, "web"), a.claim(t, "bare")
	_, err := a.Hearthctl.Run("pause", paused.ID())
	ok(t, err)
	want := map[string]stage.Claimed{c.ID(): c}
	old, next := a.successor(t)
	eventually(t, 20*time.Second, func() error {
		if a.holder(t) != next {
			return errors.New("the new agent does not hold the lock")
		}
		return nil
	})
	ok(t, syscall.Kill(next, syscall.SIGKILL))
	ended(t, next, 5*time.Second)
	if holder := a.holder(t); holder != 0 {
		t.Fatalf("process %d holds the lock", holder)
	}
	ended(t, old, 15*time.Second) // so that its supervisor starts it again
	ok(t, a.Launch("agent", exec.Command(a.Program("nodeagent"), "run", "--take-over", "--config", a.Path("nodeagent.yaml"))))
	a.up(t)
	if e := a.get(t, paused.ID()); e.GetPhase() != hearthv1.Phase_PHASE_PAUSED {
		t.Errorf("the paused environment is %s", e.GetPhase())
	}
	_, err = a.Hearthctl.Run("resume", paused.ID())
	ok(t, err)
	want[paused.ID()] = paused
	a.consistent(t, want)
	a.release(t, c)
	a.release(t, paused)
}

// A third agent comes while the first one, which handed over to one that died,
// still lingers: it takes the place at once.
func TestNodeHandOverGoesOnWithTheNextAgent(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	old, next := a.successor(t)
	eventually(t, 20*time.Second, func() error {
		if a.holder(t) != next {
			return errors.New("the new agent does not hold the lock")
		}
		return nil
	})
	ok(t, syscall.Kill(next, syscall.SIGKILL))
	ended(t, next, 5*time.Second)
	ok(t, a.Launch("agent", exec.Command(a.Program("nodeagent"), "run", "--take-over", "--config", a.Path("nodeagent.yaml"))))
	a.up(t)
	if !runs(old) {
		t.Error("the first agent had ended: the test proves nothing")
	}
	eventually(t, 5*time.Second, func() error { // the client's connection was the first agent's
		_, err := a.Node.List(t.Context(), &hearthv1.NodeListRequest{})
		return err
	})
	a.consistent(t, map[string]stage.Claimed{c.ID(): c})
	ok(t, syscall.Kill(old, syscall.SIGTERM))
	ended(t, old, 5*time.Second)
	a.consistent(t, map[string]stage.Claimed{c.ID(): c})
	a.release(t, c)
}

// The old agent dies while it ends what is under way: the new one takes the
// node as after a crash.
func TestNodeHandOverSurvivesTheOldAgentsDeath(t *testing.T) {
	a := node(t)
	kept := a.claim(t, "web")
	want := map[string]stage.Claimed{kept.ID(): kept}
	claim := make(chan error, 1)
	go func() { // takes a while, and the old agent waits for it
		_, err := a.Node.Claim(context.Background(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "slow"}})
		claim <- err
	}()
	time.Sleep(50 * time.Millisecond)
	old, next := a.successor(t)
	eventually(t, 20*time.Second, func() error {
		_, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{WarmOnly: true, Spec: &hearthv1.ClaimSpec{Class: "nowhere"}})
		if errors.Is(err, env.ErrUnavailable) && strings.Contains(err.Error(), "hands over") {
			return nil
		}
		return fmt.Errorf("the old agent takes claims: %w", err)
	})
	if a.holder(t) != old {
		t.Fatal("the old agent was done already: the test proves nothing")
	}
	ok(t, syscall.Kill(old, syscall.SIGKILL))
	if err := <-claim; err == nil {
		t.Error("the claim was answered")
	}
	a.up(t)
	if a.holder(t) != next {
		t.Errorf("process %d holds the lock, not %d", a.holder(t), next)
	}
	a.consistent(t, want)
	a.release(t, kept)
}

func TestNodeSecondAgentIsRefusedUnlessItAsks(t *testing.T) {
	a := node(t)
	out, code := a.nodeagent("run")
	if code != 3 {
		t.Errorf("a second agent: exit %d: %s", code, out)
	}
	holds(t, out, "agent.lock", "is held by process")
	if out, code := a.nodeagent("ready"); code != 0 || !strings.Contains(out, "ready") {
		t.Errorf("ready: exit %d: %s", code, out)
	}
	a.kill(t)
	if out, code := a.nodeagent("ready"); code != 3 || !strings.Contains(out, "no agent runs") {
		t.Errorf("ready without an agent: exit %d: %s", code, out)
	}
	a.up(t)
}
