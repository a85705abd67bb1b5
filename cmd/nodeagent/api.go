package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/lifecycle"
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

func openAPI(a *agent, boot string, state *durable.Dir) (*api, error) {
	metrics := rpc.NewMetrics(a.registry)
	out := &api{}
	out.service = nodeapi.New(nodeapi.Info{
		Node: a.cfg.Node, Instance: a.cfg.Instance, BootID: boot, Version: version,
		GuestAddress: a.cfg.API.Advertise, CAPEM: func() []byte { return out.front.capem() },
	}, a.node, snapshotsAdapter{a.store}, a.islands, a.engine)

	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewNodeServiceHandler(out.service, rpc.HandlerOptions(a.log, metrics)...))
	handleProfiles(mux)
	out.local = rpc.NewServer(a.log, mux)
	var err error
	out.front, err = newFront(a, out.service, metrics, state)
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

// parts is the agent's life: started in this order, stopped in reverse.
func (a *agent) parts() []lifecycle.Part {
	return []lifecycle.Part{
		{Name: "containerd", Run: a.runtime.Run},
		{Name: "detection", Run: a.engine.Run},
		{Name: "resolver", Run: a.islands.ServeDNS},
		{Name: "pools", Run: a.node.Run},
		{Name: "exits", Run: a.watchExits},
		a.localPart(),
		a.api.front.part(),
		a.metricsPart(),
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

func (a *agent) localPart() lifecycle.Part {
	return lifecycle.Part{
		Name: "node api",
		Start: func(context.Context) (err error) {
			a.api.socket, err = rpc.ListenUnix(a.cfg.API.Socket)
			return err
		},
		Run:  func(context.Context) error { return a.api.local.Serve(a.api.socket) },
		Stop: a.api.local.Shutdown,
	}
}

func (a *agent) metricsPart() lifecycle.Part {
	server := &http.Server{
		Handler:           obs.Handler(a.registry, func() error { return a.ready() }),
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
