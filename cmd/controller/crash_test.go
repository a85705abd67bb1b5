package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/env"
)

// crashVar makes the test binary the real controller, with the configuration file
// that it names, which kills itself with SIGKILL at a named operation of its store.
const (
	crashVar   = "HEARTH_TEST_CONTROLLER"
	crashAtVar = "HEARTH_TEST_CONTROLLER_AT"
)

func TestMain(m *testing.M) {
	path := os.Getenv(crashVar)
	if path == "" {
		os.Exit(m.Run())
	}
	at := os.Getenv(crashAtVar)
	cfg, err := config.LoadController(path, config.Host{Name: "test"})
	if err == nil {
		err = serve(context.Background(), cfg, os.Stderr, func(op string) error {
			if op == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			return nil
		})
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// child is the program in a process of its own.
type child struct {
	*program
	cmd    *exec.Cmd
	log    output
	exited chan struct{}
}

func startChild(t *testing.T, p *program, at string) *child {
	t.Helper()
	c := &child{program: p, cmd: exec.Command(os.Args[0]), exited: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), crashVar+"="+p.config, crashAtVar+"="+at)
	c.cmd.Stderr = &c.log
	ok(t, c.cmd.Start())
	go func() {
		defer close(c.exited)
		_ = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			t.Logf("log of the controller that was to end at %q:\n%s", at, c.log.String())
		}
	})
	p.waitReady()
	return c
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.exited
}

// TestAClaimSurvivesAKilledController kills the controller around each of the
// operations that a claim stores, restarts it, and repeats the claim.
func TestAClaimSurvivesAKilledController(t *testing.T) {
	for _, at := range []string{"claim-place:before", "claim-place:after", "claim-done:before", "claim-done:after"} {
		t.Run(at, func(t *testing.T) { crashAt(t, at, func(n *fakeNode) {}, 1) })
	}
}

// The claim is at its second node when the controller dies.
func TestARetriedClaimSurvivesAKilledController(t *testing.T) {
	for _, at := range []string{"claim-lost:before", "claim-lost:after"} {
		t.Run(at, func(t *testing.T) { crashAt(t, at, func(n *fakeNode) { n.cut = true }, 0) })
	}
}

func crashAt(t *testing.T, at string, first func(*fakeNode), wantCalls int) {
	t.Helper()
	p := newProgram(t)
	c := startChild(t, p, at)
	a, b := &fakeNode{name: "a"}, &fakeNode{name: "b"}
	first(a)
	token := p.file("join-token")
	joinChild(t, p.api, token, a)
	joinChild(t, p.api, token, b)
	secret := p.must("apikey", "create", "--tenant", "team-a")
	api := p.client(secret)
	eventually(t, "both nodes report", func() bool { return a.link.Connected() && b.link.Connected() })

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := api.Claim(ctx, claimOf("k")); err == nil || !errors.Is(err, env.ErrUnavailable) {
		t.Fatalf("the claim of the dying controller got %v", err)
	}
	<-c.exited
	a.set(func(n *fakeNode) { n.cut = false })
	second := startChild(t, p, "")
	api = p.client(secret)
	got, err := api.Claim(t.Context(), claimOf("k"))
	ok(t, err)
	again, err := api.Claim(t.Context(), claimOf("k"))
	ok(t, err)
	if diff := cmp.Diff(got, again, protocmp.Transform()); diff != "" {
		t.Errorf("the repeated claim was answered otherwise: %s", diff)
	}
	e := got.GetEnvironment()
	eventually(t, "exactly one generation runs, where the answer says", func() bool {
		return cmp.Equal(running(a, b), map[string][]string{e.GetId(): {e.GetNode()}})
	})
	for _, n := range []*fakeNode{a, b} {
		if g, ok := n.has()[e.GetId()]; ok && g != e.GetGeneration() {
			t.Errorf("node %s runs generation %d, the answer says %d", n.name, g, e.GetGeneration())
		}
	}
	list, err := api.List(t.Context(), &hearthv1.ListRequest{})
	ok(t, err)
	if len(list.GetEnvironments()) != 1 {
		t.Errorf("list = %v", list)
	}
	second.kill()
	startChild(t, p, "")
	again, err = p.client(secret).Claim(t.Context(), claimOf("k"))
	ok(t, err)
	if diff := cmp.Diff(got, again, protocmp.Transform()); diff != "" {
		t.Errorf("after another restart: %s", diff)
	}
	if wantCalls == 1 && a.made()+b.made() != 1 {
		t.Errorf("nodes made %d and %d environments", a.made(), b.made())
	}
}

// joinChild is startNode for a controller in another process.
func joinChild(t *testing.T, addr, token string, n *fakeNode) {
	t.Helper()
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	serveNode(t, n, dir, addr, token)
}
