package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/fleet"
	"hearth/internal/fleet/boltstore"
	"hearth/internal/lifecycle"
	"hearth/internal/obs"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// serveAlone runs without Kubernetes: lock, state, authority, fleet, then the
// listeners, and ready. It stops in reverse.
func serveAlone(ctx context.Context, log *slog.Logger, cfg config.Controller, fault durable.Fault) (err error) {
	dir, err := durable.OpenDir(cfg.StateDir, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	lock, err := durable.Lock(filepath.Join(cfg.StateDir, "lock"))
	if err != nil {
		return fmt.Errorf("take the state directory: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	store, err := boltstore.Open(filepath.Join(cfg.StateDir, "fleet.db"), fault)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	ca, err := pki.LoadOrCreateCA(dir, cfg.Instance, time.Now())
	if err != nil {
		return err
	}
	source, err := ownCredentials(ca, cfg)
	if err != nil {
		return err
	}
	reg := obs.NewRegistry(version)
	processMetrics(reg, func() bool { return true }, endOf(source))
	tracing, err := newTracing(ctx, log, cfg)
	if err != nil {
		return err
	}
	var f *fleet.Fleet // before it is made nothing is called
	f, err = fleet.New(log, store, dialer(cfg.Instance, source, tracing, func() uint64 { return f.Epoch() }), fleetConfig(cfg.Fleet, nil), fleet.NewMetrics(reg))
	if err != nil {
		return err
	}
	listed, err := listedKeys(cfg.KeysFile)
	if err != nil {
		return err
	}
	b := &bootstrap{log: log, dir: dir, fleet: f, ca: ca, tokenPath: cfg.JoinTokenFile}
	if err := b.run(time.Now()); err != nil {
		return err
	}

	g := lifecycle.NewGroup(log, stopTimeout)
	metrics := rpc.NewMetrics(reg)
	g.Add(lifecycle.Part{Name: "tracing", Stop: tracing.Close})
	g.Add(lifecycle.Part{Name: "fleet", Run: f.Run})
	g.Add(lifecycle.Part{Name: "upkeep", Run: func(ctx context.Context) error {
		return upkeep(ctx, log, b, ca, source, cfg)
	}})
	g.Add(served("metrics", log, obs.Handler(reg, g.Ready), func() (net.Listener, error) { return net.Listen("tcp", cfg.API.Metrics) }))
	g.Add(served("admin socket", log, adminHandler(log, metrics, f, ca), func() (net.Listener, error) { return rpc.ListenUnix(adminSocket(cfg.StateDir)) }))
	g.Add(served("api", log, tracing.Handler(apiHandler(log, metrics, f, ca, listed, cluster{})), func() (net.Listener, error) { return rpc.ListenTLS(cfg.API.Listen, source) }))
	log.Info("controller starting", "version", version, "instance", cfg.Instance, "epoch", f.Epoch(), "listen", cfg.API.Listen,
		"state", cfg.StateDir, "ca", filepath.Join(cfg.StateDir, "ca.pem"))
	return g.Run(ctx)
}

// upkeep replaces the controller's certificate and the join token in time.
func upkeep(ctx context.Context, log *slog.Logger, b *bootstrap, ca *pki.CA, source *pki.Source, cfg config.Controller) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if err := b.joinToken(now); err != nil {
				log.Warn("join token not renewed", "file", cfg.JoinTokenFile, "error", err)
			}
			renewIfDue(log, ca, source, cfg, now)
		}
	}
}
