package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/config"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/kube"
	"hearth/internal/lifecycle"
	"hearth/internal/obs"
	"hearth/internal/rpc"
	"hearth/internal/rpc/controllerapi"
	"hearth/internal/rpc/pki"
)

const (
	// clusterStop bounds the stop of everything, what leads included.
	clusterStop = stopTimeout + 10*time.Second
	// firstLook bounds the wait for the objects that were there before.
	firstLook = time.Minute
)

// inCluster is what a controller in a cluster has from its start, leading or not.
type inCluster struct {
	log    *slog.Logger
	cfg    config.Controller
	k      config.Kubernetes
	client *kube.Client
	ca     *pki.CA
	source *pki.Source
	reg    *prometheus.Registry
	tokens *kube.Tokens
	access *kube.Access
	leads  atomic.Pointer[lifecycle.Group] // what leads; nil while standing by
}

// serveInCluster stands by, serving health and metrics only, until it leads; then
// see lead. It ends with an error when another controller leads, and stands by
// again when it is started anew.
func serveInCluster(ctx context.Context, log *slog.Logger, cfg config.Controller, k config.Kubernetes) error {
	kube.LogTo(log)
	client, err := kube.Open(kube.Config{Kubeconfig: k.Kubeconfig, UserAgent: "hearth-controller/" + version, Writes: rpc.Writes})
	if err != nil {
		return err
	}
	ca, err := clusterCA(ctx, log, client.NewAuthority(k.Namespace), cfg.Instance)
	if err != nil {
		return err
	}
	source, err := ownCredentials(ca, cfg)
	if err != nil {
		return err
	}
	reg := obs.NewRegistry(version)
	identity := kube.NewIdentityMetrics(reg)
	c := &inCluster{
		log: log, cfg: cfg, k: k, client: client, ca: ca, source: source, reg: reg,
		tokens: kube.NewTokens(log, client.API(), identity), access: kube.NewAccess(log, client.API(), identity),
	}
	processMetrics(reg, func() bool { return c.leads.Load() != nil }, endOf(source))
	g := lifecycle.NewGroup(log, clusterStop)
	g.Add(served("metrics", log, c.health(), func() (net.Listener, error) { return net.Listen("tcp", cfg.API.Metrics) }))
	g.Add(lifecycle.Part{Name: "certificate", Run: c.renew})
	g.Add(lifecycle.Part{Name: "callers' tokens", Run: c.tokens.Run})
	g.Add(lifecycle.Part{Name: "callers' access", Run: c.access.Run})
	g.Add(lifecycle.Part{Name: "leadership", Run: func(ctx context.Context) error {
		return client.Lead(ctx, log, c.candidate(), c.lead)
	}})
	log.Info("controller starting", "version", version, "instance", cfg.Instance, "listen", cfg.API.Listen, "namespace", k.Namespace)
	return g.Run(ctx)
}

// clusterCA waits for the API server, and for another replica that makes the
// authority at the same time.
func clusterCA(ctx context.Context, log *slog.Logger, a *kube.Authority, instance string) (*pki.CA, error) {
	for {
		ca, err := pki.LoadOrCreateCA(a, instance, time.Now())
		if err == nil || !errors.Is(err, env.ErrUnavailable) && !errors.Is(err, env.ErrExists) {
			return ca, err
		}
		log.Warn("waiting for the authority", "error", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Second):
		}
	}
}

func (c *inCluster) candidate() kube.Candidate {
	pod := c.k.Pod
	_, port, _ := net.SplitHostPort(c.cfg.API.Listen) // validated
	host := pod.IP
	if host == "" {
		host = c.cfg.API.Names[0]
	}
	return kube.Candidate{
		Namespace: c.k.Namespace, Lease: c.k.Lease, Holder: holder(pod), Pod: pod.Name,
		Address: net.JoinHostPort(host, port), CA: c.ca.PEM(),
	}
}

// holder names this process: a pod runs one at a time, so that one that was killed
// leads again at once.
func holder(pod config.Pod) string {
	if pod.Name != "" && pod.UID != "" {
		return pod.Name + "_" + pod.UID
	}
	name, _ := os.Hostname()
	return fmt.Sprintf("%s_%d_%s", name, os.Getpid(), env.NewID())
}

// health is /metrics, /healthz and /readyz. Standing by is being ready.
func (c *inCluster) health() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", obs.Handler(c.reg, func() error { return nil }))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		g := c.leads.Load()
		if g == nil {
			_, _ = fmt.Fprintln(w, "standing by")
			return
		}
		if err := g.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok, leading")
	})
	return mux
}

// lead is the life of a controller that leads: state, fleet, then the view of the
// objects, what acts on them, and the listeners.
func (c *inCluster) lead(ctx context.Context, l *kube.Leadership) (err error) {
	log := c.log
	var made atomic.Pointer[fleet.Fleet] // the store writes before and after there is one
	seal, err := c.ca.Secret("seal of environments")
	if err != nil {
		return err
	}
	store := kube.OpenStore(log, c.client, kube.StoreConfig{
		Namespace: c.k.Namespace, Seal: seal, Lost: l.Lost, Address: func(node string) string {
			if f := made.Load(); f != nil {
				return f.AddressOf(node)
			}
			return ""
		},
	}, kube.NewStoreMetrics(c.reg))
	defer func() { err = errors.Join(err, store.Close()) }()
	events := kube.NewEvents(c.client, store)
	defer events.Close()
	tracing, err := newTracing(ctx, log, c.cfg)
	if err != nil {
		return err
	}
	dial := dialer(c.cfg.Instance, c.source, tracing, func() uint64 { return made.Load().Epoch() }) // nobody is called before it is made
	f, err := fleet.New(log, store, dial, fleetConfig(c.cfg.Fleet, events), fleet.NewMetrics(c.reg))
	if err != nil {
		return err
	}
	made.Store(f)
	listed, err := listedKeys(c.cfg.KeysFile)
	if err != nil {
		return err
	}
	watches := c.client.NewWatches(c.k.AgentNamespace)
	classes := kube.NewClasses(log, c.client, watches, f, events)
	nodes := kube.NewNodes(log, c.client, watches, f)
	environments := kube.NewEnvironments(log, watches, store, f)
	calls := rpc.NewMetrics(c.reg)

	g := lifecycle.NewGroup(log, stopTimeout)
	g.Add(lifecycle.Part{Name: "tracing", Stop: tracing.Close})
	g.Add(lifecycle.Part{Name: "fleet", Run: f.Run})
	g.Add(lifecycle.Part{Name: "watches", Run: watches.Run})
	g.Add(lifecycle.Part{Name: "first look", Start: func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, firstLook)
		defer cancel()
		return watches.Synced(ctx)
	}})
	g.Add(lifecycle.Part{Name: "nodes", Start: nodes.First, Run: nodes.Run})
	g.Add(lifecycle.Part{Name: "classes", Run: classes.Run})
	g.Add(lifecycle.Part{Name: "environments", Run: environments.Run})
	if !c.k.Hold.Disabled {
		holds := kube.NewHolds(log, c.client, watches, f, nodes, events, c.k.AgentNamespace, c.k.Hold)
		g.Add(lifecycle.Part{Name: "hold pods", Run: holds.Run})
	}
	g.Add(served("drain webhook", log, kube.DrainHandler(log, watches, nodes, f), c.listen(c.k.Webhook.Listen)))
	g.Add(lifecycle.Part{Name: "publish", Run: c.publish})
	c.addAdmin(g, calls, f)
	g.Add(served("api", log, tracing.Handler(apiHandler(log, calls, f, c.ca, listed, c.identity())), c.listen(c.cfg.API.Listen)))
	g.Add(lifecycle.Part{Name: "service", Start: func(context.Context) error { l.Serving(); return nil }})
	c.leads.Store(g)
	defer c.leads.Store(nil)
	log.Info("controller leads", "epoch", f.Epoch())
	return g.Run(ctx)
}

func (c *inCluster) identity() cluster {
	agent := env.ServiceAccount{Namespace: c.k.AgentNamespace, Name: c.k.AgentAccount}
	return cluster{
		callers: controllerapi.Cluster{Verify: c.tokens, Access: c.access},
		agents:  kube.NewReviewer(c.client.API(), c.tokens, agent),
	}
}

func (c *inCluster) listen(address string) func() (net.Listener, error) {
	return func() (net.Listener, error) { return rpc.ListenTLS(address, c.source) }
}

// addAdmin serves the commands that are run in this pod. A pod without a directory
// for the socket does without.
func (c *inCluster) addAdmin(g *lifecycle.Group, calls *rpc.Metrics, f *fleet.Fleet) {
	socket := adminSocket(c.cfg.StateDir)
	if info, err := os.Stat(filepath.Dir(socket)); err != nil || !info.IsDir() {
		c.log.Warn("no admin socket: mount a directory at stateDir for \"controller apikey\"", "state", c.cfg.StateDir)
		return
	}
	g.Add(served("admin socket", c.log, adminHandler(c.log, calls, f, c.ca), func() (net.Listener, error) { return rpc.ListenUnix(socket) }))
}
