package systemd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/internal/env"
)

// TestMain lets the test binary be the keeper.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "hold" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeBus is a systemd without processes: its cgroups are directories and
// files that take what is written to them.
type fakeBus struct {
	mount    string
	have     unit
	dead     int // so many scopes end as soon as they are made
	fault    error
	started  []int
	stopped  int
	weight   uint64
	closed   int
	dialled  int
	answered error // of dial
}

func (b *fakeBus) dial(context.Context) (bus, error) {
	if b.answered != nil {
		return nil, b.answered
	}
	b.dialled++
	return b, nil
}

func (b *fakeBus) unit(context.Context, string) (unit, error) {
	if b.have.active == "" {
		return unit{active: "inactive"}, nil
	}
	if b.have.active == "deactivating" { // seen once
		defer func() { b.have = unit{} }()
	}
	return b.have, nil
}

func (b *fakeBus) start(_ context.Context, name string, pid int) error {
	if b.fault != nil {
		return b.fault
	}
	b.started = append(b.started, pid)
	if b.dead > 0 {
		b.dead--
		return nil
	}
	b.has(name)
	return os.WriteFile(filepath.Join(b.mount, name, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600)
}

// has makes a unit that runs.
func (b *fakeBus) has(name string) {
	b.have = unit{active: "active", delegated: true, description: description(name), cgroup: "/" + name}
	for _, dir := range []string{filepath.Join(b.mount, name), filepath.Join(b.mount, name, KeeperDir)} {
		_ = os.MkdirAll(dir, 0o700)
		_ = os.WriteFile(filepath.Join(dir, "cgroup.procs"), nil, 0o600)
	}
}

func (b *fakeBus) stop(_ context.Context, name string) error {
	b.stopped++
	b.have = unit{}
	return os.RemoveAll(filepath.Join(b.mount, name))
}

func (b *fakeBus) setWeight(_ context.Context, _ string, weight uint64) error {
	b.weight = weight
	return b.fault
}

func (b *fakeBus) version() (string, error) { return "252", nil }
func (b *fakeBus) close()                   { b.closed++ }

// scopeOn is a scope whose keepers are real processes.
func scopeOn(t *testing.T) (*Scope, *fakeBus, *[]*exec.Cmd) {
	t.Helper()
	b := &fakeBus{mount: t.TempDir()}
	s := New(Config{Name: "test.scope", Keeper: os.Args[0], Mount: b.mount}, slog.New(slog.DiscardHandler))
	var keepers []*exec.Cmd
	s.dial = b.dial
	s.spawn = func(path string) (int, error) {
		cmd := exec.Command(path, "hold")
		in, err := cmd.StdinPipe()
		if err != nil {
			return 0, err
		}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		keepers = append(keepers, cmd)
		t.Cleanup(func() { _, _ = in.Close(), cmd.Wait() })
		return cmd.Process.Pid, nil
	}
	t.Cleanup(func() {
		if b.closed != b.dialled {
			t.Errorf("%d connections, %d closed", b.dialled, b.closed)
		}
	})
	return s, b, &keepers
}

func (b *fakeBus) inKeeper(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.mount, "test.scope", KeeperDir, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestScopeIsMadeOnceAndItsKeeperLeavesTheTop(t *testing.T) {
	s, b, keepers := scopeOn(t)
	for range 2 {
		if err := s.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(*keepers) != 1 || len(b.started) != 1 {
		t.Fatalf("%d keepers, %d units", len(*keepers), len(b.started))
	}
	if got, want := b.inKeeper(t), strconv.Itoa((*keepers)[0].Process.Pid); got != want {
		t.Errorf("process %s keeps the scope, want %s", got, want)
	}
}

func TestScopeThatLostItsKeeperGetsAnother(t *testing.T) {
	s, b, keepers := scopeOn(t)
	b.has("test.scope")
	if err := s.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(b.started) != 0 || len(*keepers) != 1 {
		t.Fatalf("%d units made, %d keepers", len(b.started), len(*keepers))
	}
	if got, want := b.inKeeper(t), strconv.Itoa((*keepers)[0].Process.Pid); got != want {
		t.Errorf("process %s keeps the scope, want %s", got, want)
	}
}

func TestScopeThatEndsAtOnceIsMadeAgain(t *testing.T) {
	s, b, keepers := scopeOn(t)
	b.dead = 1
	if err := s.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(*keepers) != 2 {
		t.Errorf("%d keepers, want a second one", len(*keepers))
	}
	b.have, b.dead = unit{}, 1000
	if err := os.RemoveAll(filepath.Join(b.mount, "test.scope")); err != nil {
		t.Fatal(err)
	}
	if err := s.Ensure(t.Context()); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "journalctl -u test.scope") {
		t.Errorf("a unit that never stays: %v", err)
	}
}

func TestScopeThatStillEndsIsAwaited(t *testing.T) {
	s, b, _ := scopeOn(t)
	b.have = unit{active: "deactivating", delegated: true}
	if err := s.Ensure(t.Context()); err != nil || len(b.started) != 1 {
		t.Errorf("%v, %d units made", err, len(b.started))
	}
}

func TestUnitOfAnotherIsLeftAlone(t *testing.T) {
	for name, have := range map[string]unit{
		"not delegated":     {active: "active", description: "Hearth environments (test)", cgroup: "/test.scope"},
		"of another's":      {active: "active", delegated: true, description: "Session 1 of user root", cgroup: "/test.scope"},
		"in another cgroup": {active: "active", delegated: true, description: "Hearth environments (test)", cgroup: "/x.slice/test.scope"},
	} {
		s, b, keepers := scopeOn(t)
		b.has("test.scope")
		b.have = have
		if err := s.Ensure(t.Context()); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "cgroup.root") {
			t.Errorf("%s: %v", name, err)
		}
		if removed, err := s.Remove(t.Context()); err == nil || removed {
			t.Errorf("%s: remove = %t, %v", name, removed, err)
		}
		if len(*keepers)+len(b.started)+b.stopped != 0 {
			t.Errorf("%s: it was touched", name)
		}
	}
}

func TestKeeperOfAUnitThatDoesNotStartIsEnded(t *testing.T) {
	s, b, keepers := scopeOn(t)
	b.fault = errors.New("refused")
	if err := s.Ensure(t.Context()); !errors.Is(err, b.fault) {
		t.Fatal(err)
	}
	if pid := (*keepers)[0].Process.Pid; !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		t.Errorf("keeper %d lives", pid)
	}
}

func TestScopeWithoutItsCgroupIsMadeAnew(t *testing.T) {
	s, b, _ := scopeOn(t)
	b.has("test.scope")
	if err := os.RemoveAll(filepath.Join(b.mount, "test.scope")); err != nil {
		t.Fatal(err)
	}
	if err := s.Ensure(t.Context()); err != nil || b.stopped != 1 || len(b.started) != 1 {
		t.Errorf("%v, stopped %d, started %d", err, b.stopped, len(b.started))
	}
}

func TestCgroupThatSystemdLostStaysWhileSlotsAreInIt(t *testing.T) {
	s, b, _ := scopeOn(t)
	slot := filepath.Join(b.mount, "test.scope", SlotsDir, "s-1")
	if err := os.MkdirAll(slot, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Ensure(t.Context()); !errors.Is(err, env.ErrState) || len(b.started) != 0 {
		t.Errorf("ensure: %v, %d units made", err, len(b.started))
	}
	if removed, err := s.Remove(t.Context()); !errors.Is(err, env.ErrState) || removed {
		t.Errorf("remove: %t, %v", removed, err)
	}
	if err := os.Remove(slot); err != nil {
		t.Errorf("the slot's cgroup is gone: %v", err)
	}
	if err := s.Ensure(t.Context()); err != nil || len(b.started) != 1 {
		t.Errorf("ensure without slots: %v, %d units made", err, len(b.started))
	}
}

func TestScopeIsRemovedWithAndWithoutSystemd(t *testing.T) {
	s, b, _ := scopeOn(t)
	if removed, err := s.Remove(t.Context()); removed || err != nil {
		t.Errorf("remove nothing: %t, %v", removed, err)
	}
	b.has("test.scope")
	if removed, err := s.Remove(t.Context()); !removed || err != nil || b.stopped != 1 {
		t.Errorf("remove: %t, %v, stopped %d", removed, err, b.stopped)
	}
	b.answered = env.ErrUnavailable
	if err := os.MkdirAll(filepath.Join(b.mount, "test.scope", SlotsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Remove(t.Context()); !removed || err != nil || exists(s.dir()) {
		t.Errorf("remove without systemd: %t, %v", removed, err)
	}
}

func TestSystemdThatDoesNotAnswerIsSaidWithItsMend(t *testing.T) {
	s, b, _ := scopeOn(t)
	b.answered = env.ErrUnavailable
	for _, err := range []error{s.Ensure(t.Context()), s.SetWeight(t.Context(), 10)} {
		if !errors.Is(err, env.ErrUnavailable) {
			t.Error(err)
		}
	}
	path := filepath.Join(t.TempDir(), "bus")
	if _, err := dialFirst(t.Context(), []socket{{path, true}}); !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "/run/dbus") {
		t.Errorf("no socket: %v", err)
	}
}

func TestSystemdThatNeverAnswersIsGivenUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for _, hello := range []bool{true, false} {
		if _, err := dialFirst(ctx, []socket{{path, hello}}); !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("hello %t: %v", hello, err)
		}
	}
}

func TestWeightGoesToTheUnit(t *testing.T) {
	s, b, _ := scopeOn(t)
	if err := s.SetWeight(t.Context(), 79); err != nil || b.weight != 79 {
		t.Errorf("weight = %d, %v", b.weight, err)
	}
}
