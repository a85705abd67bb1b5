package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/cgroups"
	"hearth/internal/config"
	"hearth/internal/ctrd"
	"hearth/internal/detect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/netpol"
	"hearth/internal/obs"
	"hearth/internal/snapshot"
	"hearth/internal/warm"
)

// agent is every part of a running nodeagent, in the order in which they were
// made.
type agent struct {
	cfg      config.Agent
	log      *slog.Logger
	registry *prometheus.Registry
	lock     *durable.FileLock
	runtime  *ctrd.Runtime
	tree     *cgroups.Tree
	islands  *netpol.Manager
	engine   *detect.Engine
	store    *snapshot.Store
	node     *warm.Node
	api      *api
	ready    func() error
	closers  []func() error
}

// assemble makes the parts, each after what it needs. It takes back what an
// earlier agent left running, and serves nothing yet.
func assemble(ctx context.Context, cfg config.Agent, e environment, log *slog.Logger) (_ *agent, err error) {
	a := &agent{cfg: cfg, log: log, registry: obs.NewRegistry(version)}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	classes, err := config.LoadClasses(cfg.ClassesDir)
	if err != nil {
		return nil, err
	}
	state, err := a.openState()
	if err != nil {
		return nil, err
	}
	if err := a.openKernel(ctx); err != nil {
		return nil, err
	}
	if err := a.openDetection(e); err != nil {
		return nil, err
	}
	if a.store, err = snapshot.Open(snapshotConfig(cfg), nil, log); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	a.onClose(a.store.Close)
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if a.node, err = a.openNode(ctx, boot, state, classesOf(classes, cfg.Defaults.Complete)); err != nil {
		return nil, err
	}
	a.onClose(a.node.Close)
	a.registry.MustRegister(a.node, a.islands.Collector(), a.engine)
	a.api, err = openAPI(a, boot, state)
	return a, err
}

// openState takes the instance for this process alone and opens its directory.
func (a *agent) openState() (*durable.Dir, error) {
	if err := os.MkdirAll(a.cfg.StateDir, 0o700); err != nil {
		return nil, err
	}
	// Containers' init processes, which are nobody on the host, pass through
	// to the bundles of the managed containerd.
	if err := os.MkdirAll(a.cfg.RunDir, 0o711); err != nil {
		return nil, err
	}
	var err error
	if a.lock, err = durable.Lock(lockPath(a.cfg)); err != nil {
		return nil, err
	}
	a.onClose(a.lock.Unlock)
	dir, err := durable.OpenDir(filepath.Join(a.cfg.StateDir, "agent"), nil)
	if err != nil {
		return nil, err
	}
	a.onClose(dir.Close)
	return dir, nil
}

func lockPath(cfg config.Agent) string { return filepath.Join(cfg.StateDir, "agent.lock") }

// openKernel connects containerd and opens the cgroup tree and the islands.
func (a *agent) openKernel(ctx context.Context) (err error) {
	if a.runtime, err = ctrd.Open(ctx, runtimeConfig(a.cfg), a.log); err != nil {
		return err
	}
	a.onClose(a.runtime.Close)
	if a.tree, err = cgroups.Open(cgroups.Config{Root: a.cfg.Cgroup.Root}, a.log); err != nil {
		return err
	}
	a.onClose(a.tree.Close)
	budget := env.Resources{MemoryBytes: int64(a.cfg.Limits.Memory), PIDs: a.cfg.Limits.PIDs}
	if err := a.tree.SetBudget(budget); err != nil {
		return err
	}
	if a.islands, err = netpol.Open(islandConfig(a.cfg), a.log); err != nil {
		return err
	}
	a.onClose(a.islands.Close)
	return nil
}

// openDetection loads sensors and rules. A response reaches the node, which is
// made later: nothing is detected before the engine runs.
func (a *agent) openDetection(e environment) error {
	cfg := detect.Config{Events: e.stdout, Respond: func(ctx context.Context, d env.Detection) error {
		return a.node.Quarantine(ctx, d.Slot, fmt.Sprintf("%s: %s", d.Rule, d.Destination))
	}}
	if dir := a.cfg.Detection.RulesDir; dir != "" {
		cfg.Rules = []fs.FS{os.DirFS(dir)}
	}
	if path := a.cfg.Detection.EventsFile; path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("open events file: %w", err)
		}
		a.onClose(f.Close)
		cfg.Events = f
	}
	var err error
	if a.engine, err = detect.Open(cfg, a.islands.PayloadMap(), a.log); err != nil {
		return err
	}
	a.onClose(a.engine.Close)
	return nil
}

func (a *agent) openNode(ctx context.Context, boot string, state *durable.Dir, classes []*env.Class) (*warm.Node, error) {
	cfg := a.cfg
	return warm.Open(ctx, warm.Config{
		Node: cfg.Node, Instance: cfg.Instance, BootID: boot,
		IDBase: cfg.IDs.Base, IDCount: int(cfg.IDs.Count),
		MaxSlots: cfg.Limits.Slots, Memory: int64(cfg.Limits.Memory),
		WorkDir:        workDir(cfg),
		PrepareTimeout: 2 * time.Minute, UndoTimeout: 30 * time.Second,
	}, state, classes, warm.Parts{
		Runtime:   runtimeAdapter{a.runtime, cfg.InitPath, &shims{namespace: cfg.Containerd.Namespace, address: containerdSocket(cfg)}},
		Cgroups:   cgroupsAdapter{a.tree},
		Islands:   islandsAdapter{a.islands},
		Inits:     warm.LinuxInits{},
		Guests:    guestsAdapter{},
		Detector:  detectorAdapter{a.engine},
		Snapshots: snapshotsAdapter{a.store},
	}, a.log)
}

func workDir(cfg config.Agent) string { return filepath.Join(cfg.StateDir, "slots") }

func runtimeConfig(cfg config.Agent) ctrd.Config {
	return ctrd.Config{
		Instance: cfg.Instance, Namespace: cfg.Containerd.Namespace, Snapshotter: cfg.Containerd.Snapshotter,
		Address: cfg.Containerd.Address, BinDir: cfg.Containerd.BinDir, RuntimeBinary: cfg.Containerd.Runtime,
		Root: filepath.Join(cfg.StateDir, "containerd"), State: filepath.Join(cfg.RunDir, "containerd"),
	}
}

// containerdSocket is where the containerd in use listens.
func containerdSocket(cfg config.Agent) string {
	if cfg.Containerd.Managed() {
		return filepath.Join(runtimeConfig(cfg).State, "containerd.sock")
	}
	return cfg.Containerd.Address
}

func islandConfig(cfg config.Agent) netpol.Config {
	c := netpol.Default()
	c.Instance, c.LinkPrefix, c.InitPath = cfg.Instance, cfg.Network.LinkPrefix, cfg.InitPath
	c.PinDir = filepath.Join("/sys/fs/bpf", cfg.Instance)
	c.Pool, c.ExtraRefused, c.Resolvers = cfg.Network.Pool, cfg.Network.Refused, cfg.Network.ResolverAddrs()
	c.MaxIslands = cfg.Limits.Slots
	c.UnsafeAllowOpen = cfg.Network.UnsafeOpenSwitch
	return c
}

func snapshotConfig(cfg config.Agent) snapshot.Config {
	limits := snapshot.DefaultLimits()
	limits.Entries, limits.Bytes = int64(cfg.Snapshots.MaxFiles), int64(cfg.Snapshots.MaxBytes)
	return snapshot.Config{Dir: cfg.Snapshots.Dir, Limits: limits}
}

// bootID names the running boot of this kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (a *agent) onClose(f func() error) { a.closers = append(a.closers, f) }

// close lets go of everything, last made first. What runs, runs on.
func (a *agent) close() {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	a.closers = nil
	if err := errors.Join(errs...); err != nil {
		a.log.Error("close", "error", err)
	}
}
