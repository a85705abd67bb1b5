package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// onSmallDisk makes an agent whose state, images and snapshots lie on a small
// file system of their own.
func onSmallDisk(t *testing.T) *agent {
	t.Helper()
	require(t)
	s := newStage("").Beside(fullDisk)
	state := s.Path("state")
	ok(t, os.MkdirAll(state, 0o711))
	ok(t, syscall.Mount("tmpfs", state, "tmpfs", 0, "size=48m,mode=0711"))
	a := newAgent(t, s, 7411, map[string]string{
		"bare": "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n  warm: {slots: 2}\n",
	}, "")
	t.Cleanup(func() {
		if t.Failed() {
			a.tail(t)
		}
		remove(t, s)
		if err := syscall.Unmount(state, 0); err != nil {
			t.Error("unmount the small disk:", err)
		}
		ok(t, os.RemoveAll(s.Dir()))
	})
	out, code := a.nodeagent("image", "import", a.Image())
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.up(t)
	return a
}

// remove ends an instance; all of it but the directory must go.
func remove(t *testing.T, s *stage.Stage) {
	t.Helper()
	ok(t, s.End("agent"))
	out, code := run2(s.Program("nodeagent"), "cleanup", "--config", s.Path("nodeagent.yaml"))
	if code != 0 {
		t.Fatalf("cleanup of %s: exit %d: %s", s.Instance(), code, out)
	}
	inv := s.OuterInventory()
	for _, kind := range []string{"cgroups"} {
		if len(inv[kind]) > 0 {
			t.Errorf("cleanup of %s leaves %s %v", s.Instance(), kind, inv[kind])
		}
	}
}

// fill takes every byte of the disk but the last few pages, and gives a
// function that frees them.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	ok(t, err)
	defer f.Close()
	zeros := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(zeros)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal("fill the disk:", err)
	}
	return func() { ok(t, os.Remove(path)) }
}

func TestNodeFullDiskIsNamedAndWhatRunsGoesOn(t *testing.T) {
	a := onSmallDisk(t)
	a.leavesNothing(t)
	var running []stage.Claimed
	for range 2 {
		running = append(running, a.claim(t, "bare"))
	}
	_, err := a.Hearthctl.Sh(running[0], "for i in $(seq 400); do echo $i > /workspace/f$i; done")
	ok(t, err)
	a.poolFull(t)
	free := fill(t, a.Path("state"))

	_, err = a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: running[0].ID()})
	fails(t, err, env.ErrExhausted, running[0].ID(), "space")
	for _, c := range running {
		a.alive(t, c)
	}
	// A journal's last page has room for some records, so the first claims may
	// still be kept; one of them is not.
	for claims := 0; ; claims++ {
		var c stage.Claimed
		if err = a.Hearthctl.Decode(&c, "claim", "--class", "bare"); err != nil {
			break
		}
		running = append(running, c)
		if claims > 20 {
			t.Fatal("the agent goes on claiming on a full disk")
		}
	}
	t.Log("refused:", err)
	holds(t, err.Error(), "exit 3", "full", a.Path("state"))
	for _, c := range running {
		a.alive(t, c)
	}
	// A release is what may free the disk.
	last := running[len(running)-1]
	if _, err := a.Hearthctl.Run("release", last.ID()); err != nil {
		t.Log("release on a full disk:", err)
		holds(t, err.Error(), last.ID(), "full")
	}
	a.forget(last.ID(), last.Environment.Slot)
	running = running[:len(running)-1]
	free()
	eventually(t, 30*time.Second, func() error {
		_, err := a.Node.Get(t.Context(), &hearthv1.NodeGetRequest{Environment: last.ID()})
		if !errors.Is(err, env.ErrNotFound) {
			return fmt.Errorf("the released environment: %w", err)
		}
		return nil
	})
	a.poolFull(t)
	ok(t, errors.Join(second(a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: running[0].ID()}))))
	running = append(running, a.claim(t, "bare"))
	for _, c := range running {
		a.alive(t, c)
		a.release(t, c)
	}
}

func second[T any](_ T, err error) error { return err }

// An agent that starts on a full disk says so, or starts; either way it loses
// nothing.
func TestNodeStartOnAFullDiskLosesNothing(t *testing.T) {
	a := onSmallDisk(t)
	c := a.claim(t, "bare")
	a.poolFull(t)
	a.kill(t)
	free := fill(t, a.Path("state"))
	out := &strings.Builder{}
	cmd := a.Hearthctl.Command("list")
	cmd.Path, cmd.Args = a.Program("nodeagent"), []string{"nodeagent", "run", "--config", a.Path("nodeagent.yaml")}
	cmd.Stdout, cmd.Stderr = io.Discard, out
	ok(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
		t.Log("it says:", lastOf(out.String()))
		holds(t, lastOf(out.String()), "full", a.Path("state"))
	case <-time.After(3 * time.Second): // it serves
		ok(t, cmd.Process.Kill())
		<-ended
	}
	free()
	a.up(t)
	a.alive(t, c)
	a.release(t, c)
}

func lastOf(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
