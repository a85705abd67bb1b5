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
	"hearth/internal/kube/leader"
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

	working context.Context    // ends when the agent hands over
	retire  context.CancelFunc // ends working
	quiet   chan struct{}      // closed when run does nothing any more
}

func newFront(a *agent, service *nodeapi.Service, metrics *rpc.Metrics, state *durable.Dir, e environment) (*front, error) {
	f := &front{agent: a, guests: guestapi.New(a.log, guestDoor{a.node, a.going}), quiet: make(chan struct{})}
	f.working, f.retire = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	gate := nodeapi.Gate(a.cfg.Instance)
	newest := rpc.RequireEpoch(func(epoch uint64) error { return f.link.Obey(epoch) })
	path, node := hearthv1connect.NewNodeServiceHandler(service, rpc.HandlerOptions(a.log, metrics, gate, newest)...)
	mux.Handle(path, rpc.StreamsEnd(f.working, nodeapi.BoundFetches(node)))
	f.guests.Mount(mux, rpc.HandlerOptions(a.log, metrics, f.guests.Gate)...)
	f.server = rpc.NewServer(a.log, a.tracing.Handler(mux))

	dir, err := durable.OpenDir(filepath.Join(state.Path(), "pki"), nil)
	if err != nil {
		return nil, err
	}
	a.onClose(dir.Close)
	if a.cfg.Controller == nil {
		f.ca, err = pki.LoadOrCreateCA(dir, a.cfg.Instance, time.Now())
		return f, err
	}
	finder, tokenFile, err := controllerOf(a, dir, e)
	if err != nil {
		return nil, err
	}
	f.link, err = agentlink.New(a.log, agentlink.Config{
		Instance: a.cfg.Instance, Node: a.cfg.Node, Advertise: a.cfg.API.Advertise, Hosts: a.hosts(),
		Finder: finder, Token: func() (string, error) { return readToken(tokenFile) },
		Changed: a.node.Changed(), Fencer: a.node,
	}, dir, service)
	return f, err
}

// controllerOf is where the controller is, and the file of the token that the
// agent shows it first.
func controllerOf(a *agent, dir *durable.Dir, e environment) (finder agentlink.Finder, tokenFile string, err error) {
	control := a.cfg.Controller
	if control.Kubernetes == nil {
		return agentlink.Static(control.Address), control.JoinTokenFile, nil
	}
	server, err := leader.InCluster(e.getenv)
	if err != nil {
		return nil, "", err
	}
	k := control.Kubernetes
	finder, err = leader.New(a.log, server, k.Namespace, k.Lease, dir)
	return finder, k.TokenFile, err
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
		return "", fmt.Errorf("%w: token for the controller: %v", env.ErrUnavailable, err)
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
		// Guests are served on, until letGo.
		Retire: func(context.Context) error {
			f.retire()
			return nil
		},
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
				return errors.New("no certificate yet: the controller has not let this node join")
			}
		},
	}
}

// letGo ends a retired front's listening, so that the successor can listen. Open
// guest calls go on until the stop.
func (f *front) letGo() error {
	f.server.Retire()
	select {
	case <-f.quiet:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("%w: the TCP API does not end", env.ErrUnavailable)
	}
}

// run works until the stop, or a hand-over; then only open calls go on.
func (f *front) run(ctx context.Context) error {
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.working, cancel)()
	err := f.work(working)
	close(f.quiet)
	if err == nil {
		<-ctx.Done()
	}
	return err
}

// work gets a certificate, serves, and keeps both up.
func (f *front) work(ctx context.Context) error {
	source, err := f.credentials(ctx)
	select {
	case <-ctx.Done():
		return nil
	default:
	}
	if err != nil {
		return err
	}
	listener, err := f.listen(source)
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
	return err
}

func (f *front) listen(source *pki.Source) (net.Listener, error) {
	if l := f.agent.listener; l != nil {
		return rpc.OverTLS(l, source), nil
	}
	return rpc.ListenTLS(f.agent.cfg.API.Listen, source)
}

// guard keeps the node's lease, whether or not the controller is reached.
func (f *front) guard(ctx context.Context) error {
	if f.link == nil {
		<-ctx.Done()
		return nil
	}
	return f.link.Guard(ctx)
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
type guestDoor struct {
	node  *warm.Node
	going *handOver
}

func (d guestDoor) Authorize(_ context.Context, id env.ID, token string) (guestapi.Session, error) {
	if d.going.over() {
		return guestapi.Session{}, errHandedOver
	}
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
		return guestapi.Session{
			Environment: id, Guest: client, Ports: e.Ports, Paused: e.Phase == env.PhasePaused && !e.Idle(),
			Use: func(ctx context.Context) (func(), error) { return d.node.Use(ctx, id) },
		}, nil
	default:
		return guestapi.Session{}, fmt.Errorf("%w: environment %s is %s: %s", env.ErrState, id, e.Phase, e.Message)
	}
}
