package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/cgroups"
	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

// realScope is a scope of this node's systemd.
func realScope(t *testing.T) *Scope {
	t.Helper()
	kerneltest.Require(t)
	if !Booted() {
		t.Skip("systemd is not the init here")
	}
	layout, err := cgroups.LayoutOf("")
	if err != nil || layout != cgroups.LayoutUnified {
		t.Skipf("cgroups are %s here: %v", layout, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Name: fmt.Sprintf("hearth-test-%d.scope", os.Getpid()), Keeper: self}, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if _, err := s.Remove(context.Background()); err != nil {
			t.Error(err)
		}
		if exists(s.dir()) {
			t.Errorf("%s is left behind", s.dir())
		}
		s.shows(t, "ActiveState", "inactive")
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break // keepers are this process's children
			}
		}
	})
	return s
}

// shows compares a property of the unit, as systemctl has it.
func (s *Scope) shows(t *testing.T, property, want string) {
	t.Helper()
	var got string
	for range 100 {
		out, err := exec.Command("systemctl", "show", "--property", property, "--value", s.cfg.Name).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got = strings.TrimSpace(string(out)); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s is %q, want %q", property, got, want)
}

func (s *Scope) ensured(t *testing.T) {
	t.Helper()
	if err := s.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *Scope) keeper(t *testing.T) int {
	t.Helper()
	pids, err := processes(s.path(KeeperDir))
	if err != nil || len(pids) != 1 {
		t.Fatalf("keepers %v, %v", pids, err)
	}
	return pids[0]
}

// slot puts a process into a cgroup of a slot, and gives it limits.
func (s *Scope) slot(t *testing.T) (group *cgroups.Group, pid int) {
	t.Helper()
	tree, err := cgroups.Open(cgroups.Config{Root: s.Root(), Parent: s}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tree.RemoveRoot(), tree.Close()); err != nil {
			t.Error(err)
		}
	})
	g, err := tree.Create(env.NewSlotID())
	if err != nil {
		t.Fatal(err)
	}
	if err := g.SetLimits(env.Resources{CPUMillis: 500, MemoryBytes: 64 << 20, PIDs: 20}); err != nil {
		t.Error(err)
	}
	cmd := exec.Command("/bin/sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Remove(ctx); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	})
	ctr := filepath.Join(s.cfg.Mount, g.ContainerPath())
	if err := os.Mkdir(ctr, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := put(ctr, "cgroup.procs", strconv.Itoa(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	return g, cmd.Process.Pid
}

func TestKernelScopeIsDelegatedWithEveryControllerOfASlot(t *testing.T) {
	s := realScope(t)
	s.ensured(t)
	s.shows(t, "ActiveState", "active")
	s.shows(t, "Delegate", "yes")
	s.shows(t, "TasksMax", "infinity")
	s.shows(t, "ControlGroup", "/"+s.cfg.Name)
	if top, err := processes(s.dir()); err != nil || len(top) != 0 {
		t.Errorf("processes %v in the scope's own cgroup, %v", top, err)
	}
	_, pid := s.slot(t)
	handed, err := os.ReadFile(filepath.Join(s.cfg.Mount, s.Root(), "cgroup.subtree_control"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"cpu", "io", "memory", "pids"} {
		if !slices.Contains(strings.Fields(string(handed)), c) {
			t.Errorf("controller %s is not handed down: %s", c, handed)
		}
	}
	at, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(at), "::"+s.Root()+"/s-") {
		t.Errorf("the slot's process is in %s, %v", at, err)
	}
}

func TestKernelSystemdLeavesSlotsAloneWhenItStartsAnew(t *testing.T) {
	s := realScope(t)
	s.ensured(t)
	if err := s.SetWeight(t.Context(), 250); err != nil {
		t.Error(err)
	}
	g, pid := s.slot(t)
	keeper := s.keeper(t)
	limits := func() string {
		out := ""
		for _, file := range []string{"memory.max", "cpu.max", "pids.max", "cgroup.subtree_control"} {
			b, err := os.ReadFile(filepath.Join(s.cfg.Mount, filepath.Dir(g.ContainerPath()), file))
			if err != nil {
				t.Fatal(err)
			}
			out += file + " " + string(b)
		}
		return out
	}
	before := limits()
	for _, verb := range []string{"daemon-reload", "daemon-reexec", "daemon-reload"} {
		if out, err := exec.Command("systemctl", verb).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", verb, err, out)
		}
		s.shows(t, "ActiveState", "active")
		s.ensured(t)
		if now := s.keeper(t); now != keeper {
			t.Errorf("after %s the keeper is %d, was %d", verb, now, keeper)
		}
		if now := limits(); now != before {
			t.Errorf("after %s the slot has\n%swant\n%s", verb, now, before)
		}
		if pids, err := g.Pids(); err != nil || !slices.Equal(pids, []int{pid}) {
			t.Errorf("after %s the slot has processes %v, %v", verb, pids, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(s.dir(), "cpu.weight"))
	if err != nil || strings.TrimSpace(string(b)) != "250" {
		t.Errorf("the scope's weight is %s, %v", b, err)
	}
}

func TestKernelKeeperThatEndsEndsNoSlot(t *testing.T) {
	s := realScope(t)
	s.ensured(t)
	g, pid := s.slot(t)
	first := s.keeper(t)
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	s.shows(t, "ActiveState", "active")
	s.ensured(t)
	if s.keeper(t) == first {
		t.Error("the dead keeper is still there")
	}
	if pids, err := g.Pids(); err != nil || !slices.Equal(pids, []int{pid}) {
		t.Errorf("the slot has processes %v, %v", pids, err)
	}
}

func TestKernelScopeThatWasStoppedIsMadeAgainForTheNextSlot(t *testing.T) {
	s := realScope(t)
	s.ensured(t)
	tree, err := cgroups.Open(cgroups.Config{Root: s.Root(), Parent: s}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tree.RemoveRoot(), tree.Close()); err != nil {
			t.Error(err)
		}
	})
	for name, stop := range map[string]func(){
		"stopped": func() {
			if out, err := exec.Command("systemctl", "stop", s.cfg.Name).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		},
		"keeper dead": func() {
			if err := unix.Kill(s.keeper(t), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
	} {
		stop()
		s.shows(t, "ActiveState", "inactive")
		g, err := tree.Create(env.NewSlotID())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.shows(t, "ActiveState", "active")
		if err := g.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestKernelScopeStaysWhileASlotLives(t *testing.T) {
	s := realScope(t)
	s.ensured(t)
	_, pid := s.slot(t)
	if removed, err := s.Remove(t.Context()); removed || !errors.Is(err, env.ErrState) {
		t.Errorf("remove = %t, %v", removed, err)
	}
	s.shows(t, "ActiveState", "active")
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the slot's process: %v", err)
	}
}

func TestKernelAForeignScopeOfTheNameIsLeftAlone(t *testing.T) {
	s := realScope(t)
	cmd := exec.Command("systemd-run", "--scope", "--slice", "-.slice", "--unit", s.cfg.Name, "/bin/sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	s.shows(t, "ActiveState", "active")
	if err := s.Ensure(t.Context()); !errors.Is(err, env.ErrState) {
		t.Errorf("ensure: %v", err)
	}
	if removed, err := s.Remove(t.Context()); removed || err == nil {
		t.Errorf("remove: %t, %v", removed, err)
	}
	s.shows(t, "ActiveState", "active")
}

func TestKernelKeeperHoldsNoMountsButThoseOfInit(t *testing.T) {
	s := realScope(t)
	s.ensured(t)
	keepers, err := os.Stat(fmt.Sprintf("/proc/%d/ns/mnt", s.keeper(t)))
	if err != nil {
		t.Fatal(err)
	}
	inits, err := os.Stat(initMounts)
	if err != nil || !os.SameFile(keepers, inits) {
		t.Errorf("the keeper has other mounts than process 1: %v", err)
	}
}
