package ctrd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"hearth/internal/env"
)

// runtimeName is the shim's name in containerd.
const runtimeName = "io.containerd.runc.v2"

const defaultStartTimeout = 15 * time.Second

// Runtime is a connection to one containerd. It is safe for concurrent use.
type Runtime struct {
	cfg    Config
	log    *slog.Logger
	client *client.Client
	shims  *shims
	found  foundRuntimes
	// unpacked holds, by digest, the Images whose layers were found unpacked: to ask
	// again for each slot would be five round trips for what does not change.
	unpacked sync.Map
}

// Open connects to containerd. With Config.BinDir it first starts a containerd
// of its own if none answers on the socket. The caller runs Run to keep that
// alive.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Runtime, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	r := &Runtime{cfg: cfg, log: log, shims: newShims(cfg.SlotsPerShim)}
	if cfg.managed() {
		if err := r.ensureManaged(ctx); err != nil {
			return nil, err
		}
	}
	r.client, err = client.New(cfg.Address,
		client.WithDefaultNamespace(cfg.Namespace),
		client.WithTimeout(cfg.StartTimeout))
	if err != nil {
		return nil, r.unreachable(err)
	}
	if err := errors.Join(r.checkSnapshotter(ctx), r.adoptShims(ctx)); err != nil {
		_ = r.client.Close()
		return nil, err
	}
	return r, nil
}

func (c Config) managed() bool { return c.BinDir != "" }

// runcRoot keeps the runtime's own state beside a managed containerd's; "" is
// the default of a given one.
func (c Config) runcRoot() string {
	if !c.managed() {
		return ""
	}
	return filepath.Join(c.State, runcDir)
}

// complete fills in the defaults and refuses what cannot work.
func (c Config) complete() (Config, error) {
	if c.Instance == "" {
		return c, fmt.Errorf("%w: containerd: instance name is empty", env.ErrInvalid)
	}
	if c.Namespace == "" {
		c.Namespace = c.Instance
	}
	if c.Snapshotter == "" {
		c.Snapshotter = "overlayfs"
	}
	if c.CertsDir == "" {
		c.CertsDir = "/etc/containerd/certs.d"
	}
	if c.SlotsPerShim == 0 {
		c.SlotsPerShim = DefaultSlotsPerShim
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = defaultStartTimeout
	}
	if !c.managed() {
		if c.Address == "" {
			return c, fmt.Errorf("%w: containerd: neither an address nor a directory of binaries is configured", env.ErrInvalid)
		}
		return c, nil
	}
	for name, p := range map[string]string{"root": c.Root, "state": c.State, "binaries": c.BinDir} {
		if !filepath.IsAbs(p) {
			return c, fmt.Errorf("%w: containerd: %s %q is not an absolute path", env.ErrInvalid, name, p)
		}
	}
	c.Address = filepath.Join(c.State, "containerd.sock")
	if c.RuntimeBinary == "" {
		c.RuntimeBinary = filepath.Join(c.BinDir, "runc")
	}
	if len(c.Address)+len(".ttrpc") > maxSocketPath {
		return c, fmt.Errorf("%w: containerd: socket path %s is longer than the %d bytes that Linux allows; choose a shorter state directory", env.ErrInvalid, c.Address, maxSocketPath)
	}
	return c, nil
}

// maxSocketPath is the length of sockaddr_un.sun_path less the final zero.
const maxSocketPath = 107

// Close closes the connection. Containers, and a managed containerd, go on.
func (r *Runtime) Close() error { return r.client.Close() }

// Version is containerd's own.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	v, err := r.client.Version(ctx)
	if err != nil {
		return "", r.fail("read containerd version", err)
	}
	return v.Version, nil
}

// checkSnapshotter makes sure that containerd idmaps layers: without it every
// slot would need a copy of its image with shifted owners.
func (r *Runtime) checkSnapshotter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(r.namespaced(ctx), r.cfg.StartTimeout)
	defer cancel()
	caps, err := r.client.GetSnapshotterCapabilities(ctx, r.cfg.Snapshotter)
	if err != nil {
		return r.fail("find snapshotter "+r.cfg.Snapshotter, err)
	}
	if !slices.Contains(caps, "remap-ids") {
		return fmt.Errorf("use snapshotter %s: %w", r.cfg.Snapshotter,
			&env.UnsupportedError{Feature: "idmapped overlay layers", Needs: "Linux 5.19 and a file system with idmapped mounts below containerd's root"})
	}
	return nil
}

func (r *Runtime) namespaced(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, r.cfg.Namespace)
}
