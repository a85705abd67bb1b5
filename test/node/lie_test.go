package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/test/stage"
)

// lies are the ways in which test/node/liar answers, and a word that the
// agent's error must have.
var lies = map[string]string{
	"garbage": "breaks the protocol",
	"bloat":   "breaks the protocol",
	"flood":   "configure",
	"dribble": "initPath",
	"hang":    "initPath",
	"unready": "ready",
	"quit":    "init ended",
}

// An init that is not ours, or was taken over, costs its class the slots; one that
// is honest until its environment has been claimed costs those who use it, each call
// an error and in time; and nobody else anything.
func TestNodeInitThatLiesCostsOnlyItsOwnClass(t *testing.T) {
	require(t)
	s := newStage("").Beside(lying)
	classes := map[string]string{"turn-none": turncoat("none")}
	for how := range turns {
		classes["turn-"+how] = turncoat(how)
	}
	for lie := range lies {
		classes[lie] = "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n" +
			"  services:\n  - {name: " + lie + ", command: [\"true\"]}\n"
	}
	a := newAgent(t, s, 7421, classes, "initPath: "+filepath.Join(os.Getenv(programs), "liar")+"\n")
	t.Cleanup(func() {
		remove(t, s)
		ok(t, os.RemoveAll(s.Dir()))
	})
	out, code := a.nodeagent("image", "import", a.Image())
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.up(t)
	a.seesThrough(t, "quit", lies["quit"]) // the image is unpacked on its first use
	a.leavesNothing(t)
	fds, memory := a.descriptors(t), a.watch(t)
	over := a.betray(t)
	var wg sync.WaitGroup
	for lie, word := range lies {
		wg.Go(func() { a.seesThrough(t, lie, word) })
	}
	over()
	wg.Wait()
	memory.grewAtMost(t, 96*mib)
	eventually(t, 10*time.Second, func() error {
		if now := a.descriptors(t); now > fds+8 { // connections of these clients among them
			return fmt.Errorf("the agent has %d descriptors, before it had %d", now, fds)
		}
		return nil
	})
	a.noEnvironments(t)
}

// seesThrough claims cold on a lie: one clear error, in time.
func (a *agent) seesThrough(t *testing.T, lie, word string) {
	t.Helper()
	begun := time.Now()
	_, stderr, code := a.Hearthctl.Try("claim", "--class", lie)
	took := time.Since(begun)
	if code == 0 {
		t.Errorf("%s: the claim was answered", lie)
	}
	if took > 60*time.Second {
		t.Errorf("%s: the claim failed after %s only", lie, took)
	}
	holds(t, stderr, "class "+lie, word)
	if len(stderr) > 8192 || strings.ContainsAny(stderr, "\x1b\x00") {
		t.Errorf("%s: %d bytes of what the liar said come through: %.200q", lie, len(stderr), stderr)
	}
	t.Logf("%s: exit %d after %s: %s", lie, code, took.Round(time.Millisecond), strings.TrimSpace(stderr))
}

func (a *agent) noEnvironments(t *testing.T) {
	t.Helper()
	list, err := a.Node.List(context.Background(), &hearthv1.NodeListRequest{})
	ok(t, err)
	if n := len(list.GetEnvironments()); n > 0 {
		t.Errorf("%d environments are there", n)
	}
}

// A real environment turned hostile: what it sends through exec costs whoever
// asked, and nobody else.
func TestNodeFloodFromInsideIsHeldBackByItsReader(t *testing.T) {
	a := node(t)
	c, neighbour := a.claim(t, "web"), a.claim(t, "web")
	before := a.rss(t)
	var all []func()
	for range 4 {
		// Nobody reads the output: it must not pile up in the agent.
		flood := a.Hearthctl.Command("exec", c.ID(), "--", "sh", "-c", "yes $(seq 1000)")
		_, err := flood.StdoutPipe()
		ok(t, err)
		ok(t, flood.Start())
		all = append(all, func() { _ = flood.Process.Kill(); _ = flood.Wait() })
	}
	for range 10 {
		time.Sleep(100 * time.Millisecond)
		a.alive(t, neighbour)
	}
	if grown := a.rss(t) - before; grown > 64<<20 {
		t.Errorf("the agent's memory grew by %d bytes under unread output", grown)
	}
	for _, end := range all {
		end()
	}
	for _, e := range []stage.Claimed{c, neighbour} {
		a.release(t, e)
	}
}
