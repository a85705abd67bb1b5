package ctrd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

func TestNodeContainersSurviveTheDeathOfContainerd(t *testing.T) {
	n := startNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.r.Run(ctx) }()
	exits := n.r.Exits(ctx)
	m, victim := n.run(), n.run()
	n.report(m)
	n.report(victim)
	old, err := n.r.managedPID()
	if err != nil || old == 0 {
		t.Fatalf("pid = %d, %v", old, err)
	}
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := victim.g.Kill(t.Context()); err != nil { // dies while containerd is away
		t.Fatal(err)
	}
	select {
	case e := <-exits:
		if e.Slot != victim.spec.Slot {
			t.Errorf("exit = %+v, want of %s", e, victim.spec.Slot)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the exit was never told")
	}
	list, err := n.r.List(t.Context())
	i := slices.IndexFunc(list, func(c Container) bool { return c.Slot == m.spec.Slot })
	if err != nil || i < 0 || list[i].PID != m.pid || list[i].Status != StatusRunning {
		t.Errorf("list = %+v, %v", list, err)
	}
	if pid, _ := n.r.managedPID(); pid == old || pid == 0 {
		t.Errorf("containerd's pid is %d, was %d", pid, old)
	}
	n.release(m)
	n.release(victim)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for range exits { // closed when ctx ends
	}
}

func TestNodeExitCarriesTheCode(t *testing.T) {
	n := startNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	exits := n.r.Exits(ctx)
	m := n.prepare()
	m.spec.Class.Env = map[string]string{"PROBE": "exit"}
	n.create(m)
	time.Sleep(100 * time.Millisecond) // the subscription
	if err := n.r.Start(t.Context(), m.spec.Slot); err != nil {
		t.Fatal(err)
	}
	if e := <-exits; e.Slot != m.spec.Slot || e.PID != m.pid || e.Code != 7 {
		t.Errorf("exit = %+v", e)
	}
	cancel()
	for range exits {
	}
	n.release(m)
}

func TestNodeManagedContainerdIsFoundAgain(t *testing.T) {
	n := startNode(t)
	before, _ := n.r.managedPID()
	second, err := Open(t.Context(), n.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	if after, _ := second.managedPID(); after != before || before == 0 {
		t.Errorf("pid %d, then %d", before, after)
	}
	if sid, err := unix.Getsid(before); err != nil || sid != before {
		t.Errorf("session %d, %v; want its own", sid, err)
	}
	m := n.prepare()
	m.free()
	if err := second.StopManaged(t.Context()); !errors.Is(err, env.ErrState) {
		t.Errorf("stop with a slot = %v, want ErrState", err)
	}
	n.release(m)
}

func TestNodeBadImagesAreNamed(t *testing.T) {
	n := startNode(t)
	ctx := t.Context()
	tests := []struct {
		name string
		err  func() error
		is   error
		says string
	}{
		{"unknown", func() error { _, err := n.r.Image(ctx, "nothing"); return err }, env.ErrNotFound, "image import"},
		{"registry refuses", func() error { _, err := n.r.Image(ctx, "localhost:1/x:1"); return err }, env.ErrUnavailable, `pull image "localhost:1/x:1"`},
		{"not a tar", func() error { _, err := n.r.Import(ctx, strings.NewReader(strings.Repeat("junk", 500))); return err }, env.ErrInvalid, "OCI archive"},
		{"empty", func() error { _, err := n.r.Import(ctx, strings.NewReader("")); return err }, env.ErrInvalid, "OCI archive"},
		{"unnamed", func() error { _, err := n.r.Import(ctx, bytes.NewReader(ociArchive(t, "", nil))); return err }, env.ErrInvalid, "names no image"},
		{"cut short", func() error {
			_, err := n.r.Import(ctx, io.LimitReader(bytes.NewReader(ociArchive(t, "localhost/cut:1", []byte("one"))), 4000))
			return err
		}, env.ErrInvalid, "OCI archive"},
		{"cut between two files", func() error {
			whole, err := n.r.Import(ctx, bytes.NewReader(withoutLayer(t, ociArchive(t, "localhost/cut:2", []byte("two")))))
			t.Log(whole)
			return err
		}, env.ErrInvalid, "cut short"},
		{"no file", func() error { _, err := n.r.ImportFile(ctx, "/nonexistent"); return err }, os.ErrNotExist, "/nonexistent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.err()
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error = %v; want %v saying %q", err, tt.is, tt.says)
			}
			t.Log(err)
		})
	}
}

func TestNodeFullDiskIsNamed(t *testing.T) {
	kerneltest.Require(t)
	dir, err := os.MkdirTemp("/tmp", "hfull")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("full", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	cfg := Config{Instance: "hearth", BinDir: binDir(t), Root: dir + "/root", State: dir + "/state"}
	r, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	t.Cleanup(func() {
		if err := r.StopManaged(context.Background()); err != nil {
			t.Error(err)
		}
	})
	_, err = r.Import(t.Context(), bytes.NewReader(ociArchive(t, testRef, make([]byte, 48<<20))))
	if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), cfg.Root) {
		t.Errorf("import on a full disk = %v", err)
	}
	t.Log(err)
}

func TestNodeDeadContainerdIsNamed(t *testing.T) {
	n := startNode(t)
	pid, _ := n.r.managedPID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitExit(t.Context(), pid)
	_, err := n.r.List(t.Context())
	if !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), n.cfg.Root+"/containerd.log") {
		t.Errorf("list = %v", err)
	}
	t.Log(err)
	if err := n.r.ensureManaged(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the client finds the new one", func() bool { _, err := n.r.List(t.Context()); return err == nil })
}

func TestNodeContainerdThatCannotStartIsNamed(t *testing.T) {
	kerneltest.Require(t)
	dir, err := os.MkdirTemp("/tmp", "hctrd") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Instance: "hearth", BinDir: dir, Root: dir + "/r", State: dir + "/s", StartTimeout: 3 * time.Second}
	_, err = Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if !errors.Is(err, env.ErrNotFound) || !strings.Contains(err.Error(), dir+"/containerd is not there") {
		t.Errorf("no binary: %v", err)
	}
	for _, b := range []string{"containerd", "containerd-shim-runc-v2"} {
		if err := os.WriteFile(filepath.Join(dir, b), []byte("#!/bin/sh\necho it broke; exit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "it broke") || !strings.Contains(err.Error(), dir+"/r/containerd.log") {
		t.Errorf("broken binary: %v", err)
	}
	if err := errors.Join(os.RemoveAll(cfg.State), os.Mkdir(cfg.State, 0o700)); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), cfg.State+" has mode 0700") {
		t.Errorf("closed state directory: %v", err)
	}
	given := Config{Instance: "hearth", Address: dir + "/none.sock", StartTimeout: 200 * time.Millisecond}
	_, err = Open(t.Context(), given, slog.New(slog.DiscardHandler))
	if !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), given.Address) {
		t.Errorf("no socket: %v", err)
	}
	t.Log(err)
}
