package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"hearth/internal/env"
)

// The children of the scope's cgroup.
const (
	KeeperDir = "keeper"
	SlotsDir  = "slots"
)

const (
	// callTimeout bounds one operation, with all that it asks of systemd. It is
	// longer than a unit takes to end.
	callTimeout = endTimeout + 5*time.Second
	askTimeout  = 5 * time.Second // of a question, which an agent asks when it starts
	pollPause   = 20 * time.Millisecond
	// attempts at a scope that stays: some versions of systemd take a notice that
	// a new scope's cgroup was empty for its end (systemd issue 36781).
	attempts = 5
)

// Config names a scope.
type Config struct {
	Name string // of the unit, and of its cgroup: "hearth.scope"
	// Keeper is the path of a program that `Keeper hold` keeps in the scope until
	// its input ends. The node must have it at the same path.
	Keeper string
	Mount  string // of cgroup2; "" is /sys/fs/cgroup
}

// Scope is one delegated unit. It keeps nothing open and is safe for concurrent
// use.
type Scope struct {
	cfg   Config
	log   *slog.Logger
	dial  func(context.Context) (bus, error)
	spawn func(path string) (pid int, err error)

	mu    sync.Mutex // guards child
	child int        // the keeper that this process has started last
}

// New names a scope. It makes nothing: Ensure does.
func New(cfg Config, log *slog.Logger) *Scope {
	if cfg.Mount == "" {
		cfg.Mount = "/sys/fs/cgroup"
	}
	return &Scope{cfg: cfg, log: log, dial: dial, spawn: spawn}
}

// Root is where slots go, as a path below the cgroup mount.
func (s *Scope) Root() string { return "/" + s.cfg.Name + "/" + SlotsDir }

// dir is the scope's own cgroup. Its slice is the root of all, so that the path
// is known without systemd.
func (s *Scope) dir() string { return filepath.Join(s.cfg.Mount, s.cfg.Name) }

// unit is what systemd says of a unit (org.freedesktop.systemd1(5)).
type unit struct {
	active      string // ActiveState; "inactive" for one that does not exist
	delegated   bool
	description string
	cgroup      string // absolute below the mount
}

// bus is systemd.
type bus interface {
	unit(ctx context.Context, name string) (unit, error)
	// start makes the scope of one process, and waits until it is made.
	start(ctx context.Context, name string, pid int) error
	// stop waits until the unit has ended, or its time to end is over.
	stop(ctx context.Context, name string) error
	setWeight(ctx context.Context, name string, weight uint64) error
	version() (string, error)
	close()
}

// Ensure makes the scope unless it is there, and sees to it that its keeper
// lives. The error is env.ErrUnavailable if systemd does not answer, env.ErrState
// if the unit is not ours or its cgroup was lost by systemd while slots are in it.
func (s *Scope) Ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.ensure(ctx); err != nil {
		return fmt.Errorf("delegate cgroup %s: %w", s.cfg.Name, err)
	}
	return nil
}

func (s *Scope) ensure(ctx context.Context) error {
	b, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	for range attempts {
		u, err := s.look(ctx, b)
		switch {
		case err != nil:
			return err
		case u.active != "active":
			err = s.make(ctx, b)
		case s.check(u) != nil:
			return s.check(u)
		case !exists(s.dir()): // somebody removed what was systemd's
			err = b.stop(ctx, s.cfg.Name)
		default:
			return s.keep()
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the unit ends as soon as it is made; see journalctl -u %s, or set cgroup.root", env.ErrState, s.cfg.Name)
}

// look waits until the unit is neither starting nor ending.
func (s *Scope) look(ctx context.Context, b bus) (unit, error) {
	for {
		u, err := b.unit(ctx, s.cfg.Name)
		if err != nil || (u.active != "activating" && u.active != "deactivating") {
			return u, err
		}
		if err := pause(ctx); err != nil {
			return u, fmt.Errorf("unit is %s: %w", u.active, err)
		}
	}
}

// check refuses a unit of the same name that is another's.
func (s *Scope) check(u unit) error {
	if !u.delegated || u.description != description(s.cfg.Name) {
		return fmt.Errorf("%w: there is another unit of this name (%s); choose another instance, or set cgroup.root", env.ErrState, u.description)
	}
	if u.cgroup != "/"+s.cfg.Name {
		return fmt.Errorf("%w: systemd has its cgroup at %s; set cgroup.root", env.ErrState, u.cgroup)
	}
	return nil
}

// description is also how a unit is known as ours.
func description(name string) string {
	return "Hearth environments (" + strings.TrimSuffix(name, ".scope") + ")"
}

func (s *Scope) make(ctx context.Context, b bus) error {
	if err := s.clear(ctx); err != nil {
		return err
	}
	pid, err := s.startKeeper()
	if err != nil {
		return err
	}
	if err := b.start(ctx, s.cfg.Name, pid); err != nil {
		s.drop(pid)
		return err
	}
	s.log.Info("cgroup delegated by systemd", "unit", s.cfg.Name)
	return nil
}

// SetWeight is the scope's share of the CPU beside the other units of the node
// (CPUWeight of systemd.resource-control(5), 1 to 10000).
func (s *Scope) SetWeight(ctx context.Context, weight int64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b, err := s.dial(ctx)
	if err == nil {
		defer b.close()
		err = b.setWeight(ctx, s.cfg.Name, uint64(weight))
	}
	if err != nil {
		return fmt.Errorf("set CPUWeight of %s: %w", s.cfg.Name, err)
	}
	return nil
}

// Remove ends the scope, and says whether there was one. One that has slots
// stays, with env.ErrState.
func (s *Scope) Remove(ctx context.Context) (removed bool, err error) {
	if !exists(s.dir()) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if held, err := s.held(); err != nil || held {
		return false, errors.Join(fmt.Errorf("%w: remove unit %s: slots are in it; release them first", env.ErrState, s.cfg.Name), err)
	}
	if err := s.stop(ctx); err != nil {
		return false, fmt.Errorf("remove unit %s: %w", s.cfg.Name, err)
	}
	// A scope without a process ends by itself, a cgroup without a unit does not.
	if err := s.clear(ctx); err != nil {
		return false, fmt.Errorf("remove unit %s: run systemctl stop %s: %w", s.cfg.Name, s.cfg.Name, err)
	}
	return true, nil
}

// stop has systemd end the unit, if it answers.
func (s *Scope) stop(ctx context.Context) error {
	b, err := s.dial(ctx)
	if err != nil {
		s.log.Warn("systemd cannot be asked to end the unit, its keeper is killed", "unit", s.cfg.Name, "error", err)
		return nil
	}
	defer b.close()
	u, err := s.look(ctx, b)
	if err != nil || u.active != "active" {
		return err
	}
	if err := s.check(u); err != nil {
		return err
	}
	return b.stop(ctx, s.cfg.Name)
}

// Version is that of the systemd that answers; env.ErrUnavailable if none does.
func Version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	b, err := dial(ctx)
	if err != nil {
		return "", err
	}
	defer b.close()
	return b.version()
}

// initDirs are there if the node's init is systemd (sd_booted(3)), the second
// one seen from a pod that shares the node's processes.
var initDirs = []string{"/run/systemd/system", "/proc/1/root/run/systemd/system"}

// Booted reports whether this node's init is systemd, and process 1 of this
// process's PID namespace: to another one, our pids would be others' processes.
func Booted() bool {
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil || strings.TrimSpace(string(comm)) != "systemd" {
		return false
	}
	return slices.ContainsFunc(initDirs, func(dir string) bool {
		info, err := os.Lstat(dir)
		return err == nil && info.IsDir()
	})
}
