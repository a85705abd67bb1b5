package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/fleet"
	"hearth/internal/fleet/boltstore"
	"hearth/internal/lifecycle"
	"hearth/internal/obs"
	"hearth/internal/rpc"
	"hearth/internal/rpc/controllerapi"
	"hearth/internal/rpc/pki"
)

// stopTimeout bounds an orderly stop.
const stopTimeout = 20 * time.Second

// serve runs the controller until ctx ends: lock, state, authority, fleet, then
// the listeners, and ready. It stops in reverse. Fault is nil but in tests that
// end the process at a named operation of the store.
func serve(ctx context.Context, cfg config.Controller, logTo io.Writer, fault durable.Fault) (err error) {
	log, err := obs.NewLogger(logTo, cfg.Log.Format, cfg.Log.Level)
	if err != nil {
		return err
	}
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
	f, err := fleet.New(log, store, dialer(cfg.Instance, source), fleet.Config{
		Heartbeat: cfg.Fleet.Heartbeat.Duration, LostAfter: cfg.Fleet.LostAfter.Duration,
	}, fleet.NewMetrics(reg))
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
	g.Add(lifecycle.Part{Name: "fleet", Run: f.Run})
	g.Add(lifecycle.Part{Name: "upkeep", Run: func(ctx context.Context) error {
		return upkeep(ctx, log, b, ca, source, cfg)
	}})
	g.Add(served("metrics", log, obs.Handler(reg, g.Ready), func() (net.Listener, error) { return net.Listen("tcp", cfg.API.Metrics) }))
	g.Add(served("admin socket", log, adminHandler(log, metrics, f, ca), func() (net.Listener, error) { return rpc.ListenUnix(adminSocket(cfg.StateDir)) }))
	g.Add(served("api", log, apiHandler(log, metrics, f, ca, listed), func() (net.Listener, error) { return rpc.ListenTLS(cfg.API.Listen, source) }))
	log.Info("controller starting", "version", version, "instance", cfg.Instance, "epoch", f.Epoch(), "listen", cfg.API.Listen,
		"state", cfg.StateDir, "ca", filepath.Join(cfg.StateDir, "ca.pem"))
	return g.Run(ctx)
}

// served is a part that serves a handler on a listener of its own.
func served(name string, log *slog.Logger, h http.Handler, listen func() (net.Listener, error)) lifecycle.Part {
	s := rpc.NewServer(log, h)
	var l net.Listener
	return lifecycle.Part{
		Name: name,
		Start: func(context.Context) (err error) {
			l, err = listen()
			return err
		},
		Run:  func(context.Context) error { return s.Serve(l) },
		Stop: s.Shutdown,
	}
}

func apiHandler(log *slog.Logger, m *rpc.Metrics, f *fleet.Fleet, ca *pki.CA, listed func(string) (fleet.Principal, bool)) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewEnvironmentServiceHandler(controllerapi.NewEnvironments(f),
		rpc.HandlerOptions(log, m, controllerapi.Authenticate(f, listed))...))
	mux.Handle(hearthv1connect.NewFleetServiceHandler(controllerapi.NewFleet(log, f, ca), rpc.HandlerOptions(log, m)...))
	return mux
}

func adminHandler(log *slog.Logger, m *rpc.Metrics, f *fleet.Fleet, ca *pki.CA) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewAdminServiceHandler(controllerapi.NewAdmin(f, ca), rpc.HandlerOptions(log, m)...))
	return mux
}

// dialer makes clients that reach exactly the node that they name.
func dialer(instance string, source *pki.Source) fleet.Dial {
	return func(name, address string) hearthv1connect.NodeServiceClient {
		client := rpc.TLSClient(source.ClientConfig(pki.Node(instance, name)))
		return hearthv1connect.NewNodeServiceClient(client, "https://"+address, rpc.ClientOptions()...)
	}
}

// listedKeys are those of the keys file, if there is one.
func listedKeys(path string) (func(string) (fleet.Principal, bool), error) {
	keys, err := config.LoadAPIKeys(path)
	if err != nil && !isNotExist(err) {
		return nil, err
	}
	return func(key string) (fleet.Principal, bool) {
		k, ok := config.MatchAPIKey(keys, key)
		return fleet.Principal{Tenant: k.Tenant}, ok
	}, nil
}

func ownCredentials(ca *pki.CA, cfg config.Controller) (*pki.Source, error) {
	c, err := ca.Credentials(pki.Controller(cfg.Instance), cfg.API.Names, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: check instance and api.names", err)
	}
	return pki.NewSource(c)
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
			if now.Before(source.RenewAt()) {
				continue
			}
			c, err := ca.Credentials(pki.Controller(cfg.Instance), cfg.API.Names, now)
			if err == nil {
				err = source.Replace(c)
			}
			if err != nil {
				log.Error("certificate not renewed", "error", err)
			}
		}
	}
}
