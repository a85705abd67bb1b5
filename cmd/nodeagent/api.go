package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/lifecycle"
	"hearth/internal/netpol"
	"hearth/internal/obs"
	"hearth/internal/rpc"
	"hearth/internal/rpc/nodeapi"
)

// api is what the agent serves: the Node API on its socket, the Node and Guest
// APIs on TCP, metrics and health.
type api struct {
	service *nodeapi.Service
	local   *rpc.Server
	socket  net.Listener
	front   *front
}

func openAPI(a *agent, boot string, state *durable.Dir, e environment) (*api, error) {
	metrics := rpc.NewMetrics(a.registry)
	out := &api{}
	out.service = nodeapi.New(nodeapi.Info{
		Node: a.cfg.Node, Instance: a.cfg.Instance, BootID: boot, Version: version,
		GuestAddress: a.cfg.API.Advertise, CAPEM: func() []byte { return out.front.capem() },
	}, a.node, a.snapshots(), a.islands, a.engine, commands{a.orders, a})

	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewNodeServiceHandler(out.service, rpc.HandlerOptions(a.log, metrics, a.going.gate)...))
	handleProfiles(mux)
	out.local = rpc.NewServer(a.log, a.tracing.Handler(a.going.retiredLocal(mux)))
	var err error
	out.front, err = newFront(a, out.service, metrics, state, e)
	return out, err
}

// handleProfiles serves this process's profiles. They show memory and slow the
// process down, so only root's socket has them:
//
//	curl --unix-socket /run/hearth/node.sock http://hearth/debug/pprof/profile?seconds=5
func handleProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // heap, goroutine, mutex and so on by name
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

// commands are what nodeapi may ask of the agent as a whole.
type commands struct {
	*orders
	*agent
}

// parts is the agent's life: started in this order, stopped in reverse. At a
// hand-over those with Retire linger and the others stop.
func (a *agent) parts(succeed bool) []lifecycle.Part {
	return []lifecycle.Part{
		{Name: "hand-over", Run: a.lingering, Retire: asItIs},
		{Name: "tracing", Retire: asItIs, Stop: a.tracing.Close},
		{Name: "containerd", Run: a.runtime.Run},
		{Name: "budget", Start: a.firstBudget, Run: a.orders.keepBudget},
		{Name: "detection", Run: a.engine.Run},
		a.resolverPart(),
		{Name: "pools", Run: a.node.Run},
		{Name: "lifetimes", Run: a.node.RunLifetimes},
		{Name: "disks", Run: a.disks.Run},
		{Name: "snapshots", Run: a.store.Run},
		{Name: "exits", Run: a.watchExits},
		a.localPart(succeed),
		{Name: "lease", Run: a.api.front.guard},
		a.api.front.part(),
		a.metricsPart(),
		{Name: "reload", Run: a.reloads},
		{Name: "predecessor", Run: a.relieve},
	}
}

// asItIs is the retirement of a part that goes on as before.
func asItIs(context.Context) error { return nil }

// firstBudget bounds the slots before the first one is made.
func (a *agent) firstBudget(context.Context) error {
	_, err := a.orders.enforce()
	return err
}

// resolverPart answers names until the stop, or, after a hand-over, until the
// successor does.
func (a *agent) resolverPart() lifecycle.Part {
	var names *netpol.DNS
	return lifecycle.Part{
		Name: "resolver",
		Start: func(ctx context.Context) (err error) {
			names, err = a.islands.ListenDNS(ctx)
			return err
		},
		Run: func(ctx context.Context) error {
			serving, cancel := context.WithCancel(ctx)
			var watch sync.WaitGroup
			watch.Go(func() {
				select {
				case <-a.going.served:
					cancel()
				case <-serving.Done():
				}
			})
			err := names.Serve(serving)
			cancel()
			watch.Wait()
			if err == nil {
				<-ctx.Done()
			}
			return err
		},
		Retire: asItIs,
	}
}

// reloads reads classes and rules again at each SIGHUP. What is wrong changes
// nothing.
func (a *agent) reloads(ctx context.Context) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
		}
		if err := errors.Join(a.orders.reload(ctx), a.engine.Reload(ctx)); err != nil {
			a.log.Error("reload; what is wrong stays as it was", "error", err)
		}
	}
}

// watchExits tells the node of inits that ended.
func (a *agent) watchExits(ctx context.Context) error {
	for exit := range a.runtime.Exits(ctx) {
		a.node.InitEnded(exit.Slot)
	}
	<-ctx.Done()
	return nil
}

// localPart serves the socket. A retired agent goes on doing so on the
// connections that it has: its successor takes the path.
func (a *agent) localPart(succeed bool) lifecycle.Part {
	listen := rpc.ListenUnix
	if succeed { // whom the lock does not keep away has handed over
		listen = rpc.ReplaceUnix
	}
	return lifecycle.Part{
		Name: "node api",
		Start: func(context.Context) (err error) {
			a.api.socket, err = listen(a.cfg.API.Socket)
			return err
		},
		Run:    func(context.Context) error { return a.api.local.Serve(a.api.socket) },
		Retire: asItIs,
		Stop:   a.api.local.Shutdown,
	}
}

func (a *agent) metricsPart() lifecycle.Part {
	server := &http.Server{
		Handler:           obs.Handler(a.registry, a.group.Ready),
		ReadHeaderTimeout: 5 * time.Second,
	}
	var listener net.Listener
	return lifecycle.Part{
		Name: "metrics",
		Start: func(context.Context) (err error) {
			listener, err = net.Listen("tcp", a.cfg.API.Metrics)
			return err
		},
		Run: func(context.Context) error {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
		Stop: server.Shutdown,
	}
}
