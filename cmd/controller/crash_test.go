package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/env"
)

// crashVar makes the test binary the real controller, with the configuration file
// that it names, which kills itself with SIGKILL at a named operation of its store:
// "<op>:before" or "<op>:after", and "#<n>" for the n'th time.
const (
	crashVar   = "HEARTH_TEST_CONTROLLER"
	crashAtVar = "HEARTH_TEST_CONTROLLER_AT"
)

func TestMain(m *testing.M) {
	path := os.Getenv(crashVar)
	if dir := os.Getenv(drainDirVar); dir != "" {
		fmt.Fprintln(os.Stderr, drainingControl(dir))
		os.Exit(1)
	}
	if path == "" {
		os.Exit(m.Run())
	}
	at, nth, _ := strings.Cut(os.Getenv(crashAtVar), "#")
	left, _ := strconv.Atoi(nth)
	var mu sync.Mutex // guards left
	cfg, err := config.LoadController(path, config.Host{Name: "test"})
	if err == nil {
		err = serve(context.Background(), cfg, os.Stderr, func(op string) error {
			mu.Lock()
			defer mu.Unlock()
			if op != at {
				return nil
			}
			if left--; left <= 0 {
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

// TestAClaimSurvivesAKilledController kills the controller around the operation
// that a claim stores, restarts it, and repeats the claim.
func TestAClaimSurvivesAKilledController(t *testing.T) {
	for _, at := range []string{"claim-place:before", "claim-place:after"} {
		t.Run(at, func(t *testing.T) { crashAt(t, at, func(n *fakeNode) {}, 1) })
	}
}

// The claim is at its second node when the controller dies.
func TestARetriedClaimSurvivesAKilledController(t *testing.T) {
	for _, at := range []string{"claim-place:before#2", "claim-place:after#2"} {
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
	_, err := api.Claim(ctx, claimOf("k"))
	if err == nil || !errors.Is(err, env.ErrUnavailable) {
		t.Fatalf("the claim of the dying controller got %v", err)
	}
	<-c.exited
	a.set(func(n *fakeNode) { n.cut = false })
	second := startChild(t, p, "")
	api = p.client(secret)
	got := claimAgain(t, api)
	sameAnswer := cmp.Options{protocmp.Transform(), protocmp.IgnoreFields(&hearthv1.ClaimResponse{}, "placement")}
	again := claimAgain(t, api)
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
	again = claimAgain(t, p.client(secret))
	if diff := cmp.Diff(got, again, sameAnswer); diff != "" {
		t.Errorf("after another restart: %s", diff)
	}
	if wantCalls == 1 && a.made()+b.made() != 1 {
		t.Errorf("nodes made %d and %d environments", a.made(), b.made())
	}
}

// claimAgain repeats the claim as its caller does. Shortly after a start a node that
// does not report yet may run the environment: then the claim is to be repeated.
func claimAgain(t *testing.T, api hearthv1connect.EnvironmentServiceClient) (got *hearthv1.ClaimResponse) {
	t.Helper()
	eventually(t, "the repeated claim is answered", func() bool {
		var err error
		got, err = api.Claim(t.Context(), claimOf("k"))
		if err != nil && !errors.Is(err, env.ErrUnavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	return got
}

// joinChild is startNode for a controller in another process.
func joinChild(t *testing.T, addr, token string, n *fakeNode) {
	t.Helper()
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	serveNode(t, n, dir, addr, token)
}

// TestNothingIsLostOrDoubledWhereverTheControllerDies takes an environment through
// its life, and kills the controller at each operation of its store on the way. Its
// caller repeats what was not answered, and nothing else.
func TestNothingIsLostOrDoubledWhereverTheControllerDies(t *testing.T) {
	var points []string
	for _, op := range []string{"claim-place", "fork-place", "fork-place#3", "release", "release#2", "posts"} {
		name, nth, _ := strings.Cut(op, "#")
		for _, when := range []string{":before", ":after"} {
			points = append(points, name+when+strings.TrimSuffix("#"+nth, "#"))
		}
	}
	for _, at := range points {
		t.Run(at, func(t *testing.T) { liveThrough(t, at) })
	}
}

func liveThrough(t *testing.T, at string) {
	t.Helper()
	p := newProgram(t)
	c := startChild(t, p, at)
	n := &fakeNode{name: "a"}
	joinChild(t, p.api, p.file("join-token"), n)
	api := p.client(p.must("apikey", "create", "--tenant", "team-a"))
	eventually(t, "the node reports", n.link.Connected)
	// call repeats what got no answer, and starts the controller again once it is dead.
	died := false
	call := func(what string, do func(context.Context) error) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			err := do(ctx)
			cancel()
			if err == nil {
				break
			}
			if !errors.Is(err, env.ErrUnavailable) || time.Now().After(end) {
				t.Fatalf("%s: %v", what, err)
			}
			select {
			case <-c.exited:
				if died {
					t.Fatalf("%s: the second controller died", what)
				}
				died = true
				c = startChild(t, p, "")
			default:
			}
		}
	}
	claimed := map[string]*hearthv1.ClaimResponse{}
	claim := func(key string) {
		call("claim "+key, func(ctx context.Context) (err error) {
			got, err := api.Claim(ctx, claimOf(key))
			if before := claimed[key]; err == nil && before != nil &&
				(before.GetEnvironment().GetId() != got.GetEnvironment().GetId() || before.GetAccess().GetToken() != got.GetAccess().GetToken()) {
				t.Errorf("%s was answered %v, and then %v", key, before, got)
			}
			claimed[key] = got
			return err
		})
	}
	claim("k")
	claim("l")
	parent := claimed["k"].GetEnvironment().GetId()
	var fork *hearthv1.ForkResponse
	call("fork", func(ctx context.Context) (err error) {
		fork, err = api.Fork(ctx, &hearthv1.ForkRequest{IdempotencyKey: "f", Environment: parent, Count: 3})
		return err
	})
	release := func(id string) {
		call("release", func(ctx context.Context) error {
			_, err := api.Release(ctx, &hearthv1.ReleaseRequest{IdempotencyKey: "r" + id, Environment: id})
			return err
		})
	}
	release(fork.GetChildren()[0].GetEnvironment().GetId())
	release(claimed["l"].GetEnvironment().GetId())
	time.Sleep(1200 * time.Millisecond) // so that posts are written
	claim("k")
	release(fork.GetChildren()[1].GetEnvironment().GetId())
	want := map[string]uint64{parent: 1, fork.GetChildren()[2].GetEnvironment().GetId(): 1}
	eventually(t, "what was not released runs, and nothing else", func() bool { return cmp.Equal(n.has(), want) })
	claim("k")
	eventually(t, "the controller lists the same", func() bool {
		list, err := api.List(t.Context(), &hearthv1.ListRequest{})
		live := map[string]uint64{}
		for _, e := range list.GetEnvironments() {
			if e.GetPhase() == hearthv1.Phase_PHASE_RUNNING {
				live[e.GetId()] = e.GetGeneration()
			}
		}
		return err == nil && cmp.Equal(live, want)
	})
	select {
	case <-c.exited:
		died = true
	default:
	}
	if !died {
		t.Errorf("the controller did not die at %s", at)
	}
}
