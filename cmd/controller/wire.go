package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/fleet"
	"hearth/internal/lifecycle"
	"hearth/internal/obs"
	"hearth/internal/rpc"
	"hearth/internal/rpc/controllerapi"
	"hearth/internal/rpc/pki"
)

// stopTimeout bounds an orderly stop.
const stopTimeout = 20 * time.Second

// serve runs the controller until ctx ends: alone on a host, or as one of several
// in a cluster. Fault is nil but in tests that end the process at a named operation
// of the store.
func serve(ctx context.Context, cfg config.Controller, logTo io.Writer, fault durable.Fault) error {
	log, err := obs.NewLogger(logTo, cfg.Log.Format, cfg.Log.Level)
	if err != nil {
		return err
	}
	if cfg.Kubernetes != nil {
		return serveInCluster(ctx, log, cfg, *cfg.Kubernetes)
	}
	return serveAlone(ctx, log, cfg, fault)
}

func fleetConfig(cfg config.Fleet, o fleet.Observer) fleet.Config {
	return fleet.Config{
		Observer: o, Heartbeat: cfg.Heartbeat.Duration, LostAfter: cfg.LostAfter.Duration,
		FenceAfter: cfg.FenceAfter.Duration, PlaceAfter: cfg.PlaceAfter.Duration,
	}
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

// cluster vouches for callers and agents; the zero value, without Kubernetes,
// for none.
type cluster struct {
	callers controllerapi.Cluster
	agents  interface { // TokenReview of an agent's token
		Review(ctx context.Context, token string) (node string, err error)
	}
}

func apiHandler(log *slog.Logger, m *rpc.Metrics, f *fleet.Fleet, ca *pki.CA, listed func(string) (fleet.Principal, bool), c cluster) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewEnvironmentServiceHandler(controllerapi.NewEnvironments(f, c.callers),
		rpc.HandlerOptions(log, m, controllerapi.Authenticate(f, listed, c.callers))...))
	mux.Handle(hearthv1connect.NewFleetServiceHandler(controllerapi.NewFleet(log, f, ca, c.agents), rpc.HandlerOptions(log, m)...))
	return mux
}

func adminHandler(log *slog.Logger, m *rpc.Metrics, f *fleet.Fleet, ca *pki.CA) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewAdminServiceHandler(controllerapi.NewAdmin(f, ca), rpc.HandlerOptions(log, m)...))
	return mux
}

// newTracing is nil unless the configuration asks for it.
func newTracing(ctx context.Context, log *slog.Logger, cfg config.Controller) (*obs.Tracing, error) {
	return obs.NewTracing(ctx, log, obs.TracingConfig{
		Endpoint: cfg.Tracing.Endpoint, Sample: cfg.Tracing.Sample, Service: "controller", Version: version, Instance: cfg.Instance,
	})
}

// dialer makes clients that reach exactly the node that they name, and say this
// controller's epoch at each call.
func dialer(instance string, source *pki.Source, t *obs.Tracing, epoch func() uint64) fleet.Dial {
	return func(name, address string) hearthv1connect.NodeServiceClient {
		client := rpc.TLSClient(source.ClientConfig(pki.Node(instance, name)))
		client.Transport = t.Transport(client.Transport)
		return hearthv1connect.NewNodeServiceClient(client, "https://"+address,
			append(rpc.ClientOptions(), rpc.WithEpoch(epoch))...)
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

// renewIfDue replaces the controller's certificate at half of its life.
func renewIfDue(log *slog.Logger, ca *pki.CA, source *pki.Source, cfg config.Controller, now time.Time) {
	if now.Before(source.RenewAt()) {
		return
	}
	c, err := ca.Credentials(pki.Controller(cfg.Instance), cfg.API.Names, now)
	if err == nil {
		err = source.Replace(c)
	}
	if err != nil {
		log.Error("certificate not renewed", "error", err)
	}
}
