package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/guest"
	"hearth/internal/lifecycle"
	"hearth/internal/rpc"
	"hearth/internal/rpc/agentlink"
	"hearth/internal/rpc/guestapi"
	"hearth/internal/rpc/nodeapi"
	"hearth/internal/rpc/pki"
	"hearth/internal/warm"
)

// front is what the agent serves on TCP: the Node API to its controller by
// mutual TLS, the Guest API to callers by token. It needs a certificate, which
// comes from the controller, or, without one, from an authority of the node's
// own. Until it has one, the socket is served and TCP is not.
type front struct {
	agent  *agent
	server *rpc.Server
	guests *guestapi.Service
	link   *agentlink.Link // nil without a controller
	ca     *pki.CA         // nil with a controller
	source atomic.Pointer[pki.Source]
}

func newFront(a *agent, service *nodeapi.Service, metrics *rpc.Metrics, state *durable.Dir) (*front, error) {
	f := &front{agent: a, guests: guestapi.New(a.log, guestDoor{a.node})}
	mux := http.NewServeMux()
	gate := rpc.RequireRole(a.cfg.Instance, pki.RoleController)
	mux.Handle(hearthv1connect.NewNodeServiceHandler(service, rpc.HandlerOptions(a.log, metrics, gate)...))
	f.guests.Mount(mux, rpc.HandlerOptions(a.log, metrics, f.guests.Gate)...)
	f.server = rpc.NewServer(a.log, mux)

	dir, err := durable.OpenDir(filepath.Join(state.Path(), "pki"), nil)
	if err != nil {
		return nil, err
	}
	a.onClose(dir.Close)
	control := a.cfg.Controller
	if control == nil {
		f.ca, err = pki.LoadOrCreateCA(dir, a.cfg.Instance, time.Now())
		return f, err
	}
	f.link, err = agentlink.New(a.log, agentlink.Config{
		Instance: a.cfg.Instance, Node: a.cfg.Node, Advertise: a.cfg.API.Advertise, Hosts: a.hosts(),
		Controller: control.Address, JoinToken: func() (string, error) { return readToken(control.JoinTokenFile) },
	}, dir, service)
	return f, err
}

// hosts are the names in the certificate.
func (a *agent) hosts() []string {
	host, _, err := net.SplitHostPort(a.cfg.API.Advertise)
	if err != nil {
		return nil // Validate has checked the form
	}
	return []string{host}
}

func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%w: join token: %v", env.ErrUnavailable, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// capem is the authority that callers verify this node by; nil before there is one.
func (f *front) capem() []byte {
	if s := f.source.Load(); s != nil {
		return s.CAPEM()
	}
	return nil
}

func (f *front) part() lifecycle.Part {
	return lifecycle.Part{
		Name: "tcp api",
		Run:  f.run,
		Stop: func(ctx context.Context) error {
			f.guests.Detach() // what runs inside goes on
			return f.server.Shutdown(ctx)
		},
		Check: func() error {
			switch {
			case f.source.Load() != nil:
				return nil
			case f.link == nil:
				return errors.New("no certificate yet: the node is giving itself one")
			default:
				return fmt.Errorf("no certificate yet: the controller at %s has not let this node join", f.agent.cfg.Controller.Address)
			}
		},
	}
}

// run gets a certificate, serves, and keeps both up.
func (f *front) run(ctx context.Context) error {
	source, err := f.credentials(ctx)
	select {
	case <-ctx.Done():
		return nil
	default:
	}
	if err != nil {
		return err
	}
	listener, err := rpc.ListenTLS(f.agent.cfg.API.Listen, source)
	if err != nil {
		return err
	}
	f.source.Store(source)
	upkeep, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- f.upkeep(upkeep, source) }()
	err = f.server.Serve(listener)
	stop()
	if kept := <-done; err == nil {
		err = kept
	}
	if err == nil {
		<-ctx.Done() // Shutdown ended Serve; the part ends with its context
	}
	return err
}

func (f *front) credentials(ctx context.Context) (*pki.Source, error) {
	if f.link != nil {
		return f.link.Join(ctx)
	}
	c, err := f.issue()
	if err != nil {
		return nil, err
	}
	return pki.NewSource(c)
}

func (f *front) issue() (pki.Credentials, error) {
	cfg := f.agent.cfg
	return f.ca.Credentials(pki.Node(cfg.Instance, cfg.Node), f.agent.hosts(), time.Now())
}

// upkeep reports to the controller, or renews the certificate that the node
// gave itself.
func (f *front) upkeep(ctx context.Context, source *pki.Source) error {
	if f.link != nil {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for d := range f.agent.engine.Subscribe(ctx) {
				f.link.Detected(nodeapi.Detection(d))
			}
		}()
		err := f.link.Run(ctx, source)
		<-done
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(time.Until(source.RenewAt()), time.Minute)):
		}
		c, err := f.issue()
		if err == nil {
			err = source.Replace(c)
		}
		if err != nil {
			f.agent.log.Error("renew certificate", "error", err)
		}
	}
}

// guestDoor lets bearers of a token in.
type guestDoor struct{ node *warm.Node }

func (d guestDoor) Authorize(_ context.Context, id env.ID, token string) (guestapi.Session, error) {
	access, err := d.node.Authorize(id, token)
	if err != nil {
		return guestapi.Session{}, err
	}
	e := access.Environment
	switch e.Phase {
	case env.PhaseRunning, env.PhasePaused:
		client, ok := access.Guest.(*guest.Client) // guestsAdapter makes no other
		if !ok {
			return guestapi.Session{}, fmt.Errorf("guest of %s is a %T", id, access.Guest)
		}
		return guestapi.Session{Environment: id, Guest: client, Ports: e.Ports, Paused: e.Phase == env.PhasePaused}, nil
	default:
		return guestapi.Session{}, fmt.Errorf("%w: environment %s is %s: %s", env.ErrState, id, e.Phase, e.Message)
	}
}
