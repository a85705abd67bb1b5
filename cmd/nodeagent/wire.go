package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/cgroups"
	"hearth/internal/config"
	"hearth/internal/ctrd"
	"hearth/internal/detect"
	"hearth/internal/disk"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/lifecycle"
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
	metrics  *ownMetrics
	tracing  *obs.Tracing // nil without an endpoint
	lock     *durable.FileLock
	runtime  *ctrd.Runtime
	tree     *cgroups.Tree
	islands  *netpol.Manager
	engine   *detect.Engine
	disks    *disk.Guard
	// diskRoots are where containerd and the agent keep what environments write.
	diskRoots []string
	store     *snapshot.Store
	node      *warm.Node
	api       *api
	orders    *orders
	inits     *durable.Dir // copies of envinit
	initCopy  string       // the one for new slots

	group  *lifecycle.Group
	stop   context.CancelFunc // ends the group as SIGTERM does
	going  *handOver
	before *predecessor // that handed over and lingers; nil if there is none
	// listener is the TCP API's, opened early so that callers wait while state
	// is taken over; nil otherwise.
	listener net.Listener
	closers  []func() error
}

// assemble makes the parts, each after what it needs. It takes back what an
// earlier agent left running, and serves nothing yet. With succeed it asks an
// agent that runs to hand over.
func assemble(ctx context.Context, cfg config.Agent, e environment, log *slog.Logger, succeed bool) (_ *agent, err error) {
	a := &agent{cfg: cfg, log: log, registry: obs.NewRegistry(version), metrics: newOwnMetrics(), going: newHandOver()}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	// What would fail later is found before an agent that runs is asked to go.
	if err := errors.Join(checkClasses(cfg), netpol.CheckMaps(islandConfig(cfg))); err != nil {
		return nil, err
	}
	if a.tracing, err = obs.NewTracing(ctx, log, obs.TracingConfig{
		Endpoint: cfg.Tracing.Endpoint, Sample: cfg.Tracing.Sample, Service: "nodeagent", Version: version, Instance: cfg.Node,
	}); err != nil {
		return nil, err
	}
	lap := laps(log)
	if err := a.openDetection(e); err != nil { // takes longest, and touches nothing of an agent that runs
		return nil, err
	}
	lap("detection")
	state, err := a.openState(ctx, succeed)
	if err != nil {
		return nil, err
	}
	lap("lock")
	if a.orders, err = newOrders(cfg, state, log); err != nil {
		return nil, err
	}
	classes, err := a.orders.classes()
	if err != nil {
		return nil, err
	}
	if err := a.openInit(); err != nil {
		return nil, err
	}
	lap("orders")
	if err := a.openKernel(ctx); err != nil {
		return nil, err
	}
	lap("kernel")
	a.engine.Payloads(a.islands.PayloadMap())
	if a.store, err = snapshot.Open(snapshotConfig(cfg), nil, log); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	a.onClose(a.store.Close)
	lap("snapshots")
	if err := a.openDisks(ctx); err != nil {
		return nil, err
	}
	lap("disks")
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if a.node, err = a.openNode(ctx, boot, state, classes); err != nil {
		return nil, err
	}
	a.onClose(a.node.Close)
	lap("node")
	a.orders.node, a.orders.tree = a.node, a.tree
	if err := a.unfenceAlone(ctx); err != nil {
		return nil, err
	}
	if err := pruneInits(ctx, a.inits, a.runtime, a.initCopy); err != nil {
		log.Warn("old copies of envinit are not removed", "error", err)
	}
	a.metrics.ofAgent(a)
	a.registry.MustRegister(a.node, a.islands.Collector(), a.engine, a.disks, a.metrics)
	a.api, err = openAPI(a, boot, state, e)
	return a, err
}

// unfenceAlone lets a fenced node that has no controller any more take claims
// again: none will answer it. What was fenced stays so, since the controller may
// have placed it elsewhere; it can be captured and released.
func (a *agent) unfenceAlone(ctx context.Context) error {
	if a.cfg.Controller != nil || !a.node.Fenced() {
		return nil
	}
	var stay []env.ID
	for _, e := range a.node.List() {
		if e.Phase == env.PhaseFenced {
			stay = append(stay, e.ID)
		}
	}
	a.log.Warn("the node was fenced and has no controller any more: fenced environments stay so", "environments", len(stay))
	return a.node.Unfence(ctx, stay)
}

// laps tells how long each step of the assembly took: claims wait for all.
func laps(log *slog.Logger) func(step string) {
	last := time.Now()
	return func(step string) {
		now := time.Now()
		log.Debug("assembled", "step", step, "took", now.Sub(last))
		last = now
	}
}

// checkClasses finds faults of classesDir, which may be missing with a controller.
func checkClasses(cfg config.Agent) error {
	if cfg.Controller != nil && isMissing(cfg.ClassesDir) {
		return nil
	}
	_, err := config.LoadClasses(cfg.ClassesDir)
	return err
}

func isMissing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// openState takes the instance for this process alone and opens its directory.
func (a *agent) openState(ctx context.Context, succeed bool) (*durable.Dir, error) {
	if err := os.MkdirAll(a.cfg.StateDir, 0o700); err != nil {
		return nil, err
	}
	// Containers' init processes, which are nobody on the host, pass through
	// to the bundles of the managed containerd.
	if err := os.MkdirAll(a.cfg.RunDir, 0o711); err != nil {
		return nil, err
	}
	if err := a.takeLock(ctx, succeed); err != nil {
		return nil, err
	}
	dir, err := durable.OpenDir(filepath.Join(a.cfg.StateDir, "agent"), nil)
	if err != nil {
		return nil, err
	}
	a.onClose(dir.Close)
	return dir, nil
}

// takeLock takes the instance's lock.
func (a *agent) takeLock(ctx context.Context, succeed bool) (err error) {
	if succeed {
		a.lock, err = a.takeOver(ctx)
	} else {
		a.lock, err = durable.Lock(lockPath(a.cfg))
	}
	if err != nil {
		return err
	}
	a.onClose(a.lock.Unlock)
	if a.listener != nil {
		a.onClose(func() error {
			_ = a.listener.Close() // mostly closed already by the server that had it
			return nil
		})
	}
	return nil
}

func lockPath(cfg config.Agent) string { return filepath.Join(cfg.StateDir, "agent.lock") }

// openKernel connects containerd and opens the cgroup tree and the islands.
func (a *agent) openKernel(ctx context.Context) (err error) {
	if err := openSysctls(); err != nil {
		return err
	}
	if a.runtime, err = ctrd.Open(ctx, runtimeConfig(a.cfg), a.log); err != nil {
		return err
	}
	a.onClose(a.runtime.Close)
	root, err := a.runtime.Root(ctx)
	if err != nil {
		return err
	}
	files := []string{root, a.cfg.StateDir} // of environments: their root, and their workspaces
	if a.tree, err = openTree(ctx, a.cfg, filepath.Join(a.inits.Path(), a.initCopy), files, a.log); err != nil {
		return err
	}
	a.onClose(a.tree.Close)
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
	if a.engine, err = detect.Open(cfg, nil, a.log); err != nil {
		return err
	}
	a.onClose(a.engine.Close)
	return nil
}

// openDisks guards the filesystems that environments write to: containerd's for
// their root, the state directory's for their workspaces, and the snapshots'.
// What it stalls is the node's, which is made later: it runs after that.
func (a *agent) openDisks(ctx context.Context) error {
	root, err := a.runtime.Root(ctx)
	if err != nil {
		return err
	}
	a.diskRoots = []string{root, a.cfg.StateDir}
	cfg := disk.Config{
		Paths:   append(a.diskRoots, a.cfg.Snapshots.Dir),
		Stall:   func(ctx context.Context, slot env.SlotID, why string) error { return a.node.Stall(ctx, slot, why) },
		Relieve: func(ctx context.Context) error { return a.node.Relieve(ctx) },
	}
	if cfg.KeepFree, err = markOf(a.cfg.Disk.KeepFree); err != nil {
		return err
	}
	if cfg.KeepFreeFiles, err = markOf(a.cfg.Disk.KeepFreeInodes); err != nil {
		return err
	}
	if a.disks, err = disk.Open(cfg, a.log); err != nil {
		return err
	}
	a.onClose(a.disks.Close)
	return nil
}

func markOf(s config.Share) (disk.Mark, error) {
	percent, amount, err := s.Parts()
	return disk.Mark{Percent: percent, Amount: amount}, err
}

func (a *agent) openNode(ctx context.Context, boot string, state *durable.Dir, classes []*env.Class) (*warm.Node, error) {
	cfg := a.cfg
	return warm.Open(ctx, warm.Config{
		Node: cfg.Node, Instance: cfg.Instance, BootID: boot,
		IDBase: cfg.IDs.Base, IDCount: int(cfg.IDs.Count),
		MaxSlots: cfg.Limits.Slots, Memory: a.orders.memory(),
		ColdStarts: cfg.Claims.ColdStarts, Queue: cfg.Claims.Queue,
		WorkDir: workDir(cfg), Mounts: mountRoots(cfg),
		PrepareTimeout: 2 * time.Minute, UndoTimeout: 30 * time.Second,
	}, state, classes, warm.Parts{
		Runtime:   runtimeAdapter{a.runtime, filepath.Join(a.inits.Path(), a.initCopy), &shims{namespace: cfg.Containerd.Namespace, address: containerdSocket(cfg)}},
		Cgroups:   cgroupsAdapter{a.tree},
		Islands:   islandsAdapter{a.islands},
		Inits:     warm.LinuxInits{},
		Guests:    guestsAdapter{},
		Detector:  detectorAdapter{a.engine},
		Disk:      diskAdapter{Guard: a.disks, runtime: a.runtime, roots: a.diskRoots},
		Snapshots: a.snapshots(),
		Pressure:  a.pressure(),
		Tracer:    tracerAdapter{a.tracing},
	}, a.log)
}

func mountRoots(cfg config.Agent) map[string]warm.MountRoot {
	out := make(map[string]warm.MountRoot, len(cfg.Mounts))
	for name, m := range cfg.Mounts {
		out[name] = warm.MountRoot{Path: m.Path, Writable: m.Writable, PerTenant: m.PerTenant}
	}
	return out
}

// pressure is that of the node, nil where the kernel does not tell it: refill then
// yields to claims only.
func (a *agent) pressure() pressure {
	r := a.cfg.Refill
	p, err := cgroups.OpenPressure(cgroups.PressureBounds{CPU: r.CPUPressure, Memory: r.MemoryPressure, IO: r.IOPressure})
	if err != nil {
		a.log.Warn("refill does not yield to the node's pressure", "error", err)
		return nil
	}
	return p
}

// pressure is what warm.Parts wants.
type pressure interface{ Pressed() (string, error) }

func workDir(cfg config.Agent) string { return filepath.Join(cfg.StateDir, "slots") }

func runtimeConfig(cfg config.Agent) ctrd.Config {
	return ctrd.Config{
		Instance: cfg.Instance, Namespace: cfg.Containerd.Namespace, Snapshotter: cfg.Containerd.Snapshotter,
		Address: cfg.Containerd.Address, BinDir: cfg.Containerd.BinDir, RuntimeBinary: cfg.Containerd.Runtime,
		Runtimes: cfg.Containerd.Runtimes,
		Root:     filepath.Join(cfg.StateDir, "containerd"), State: filepath.Join(cfg.RunDir, "containerd"),
		SlotsPerShim: cfg.Containerd.SlotsPerShim,
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
	c.UnsafeAllowOpen = cfg.Network.UnsafeOpenSwitch
	return c
}

func snapshotConfig(cfg config.Agent) snapshot.Config {
	limits := snapshot.DefaultLimits()
	limits.Entries, limits.Bytes = int64(cfg.Snapshots.MaxFiles), int64(cfg.Snapshots.MaxBytes)
	limits.NameBytes = int64(cfg.Snapshots.MaxNames)
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
