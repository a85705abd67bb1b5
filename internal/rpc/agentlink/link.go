package agentlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// Config says who the agent is and whom it reports to.
type Config struct {
	Instance   string
	Node       string   // the node's name
	Advertise  string   // host:port at which the controller and callers reach this node
	Hosts      []string // names and addresses, without ports, for the certificate
	Controller string   // host:port
	// JoinToken gives the token's text. It is asked only if there is no usable
	// certificate on disk.
	JoinToken func() (string, error)
}

// Files in the agent's directory.
const (
	bundleFile = "agent.pem"
	epochFile  = "controller-epoch"
	maxFile    = 64 << 10
)

// Link connects one agent with its controller.
type Link struct {
	log        *slog.Logger
	cfg        Config
	dir        *durable.Dir
	source     source
	detections chan *hearthv1.Detection
	dropped    atomic.Uint64
	connected  atomic.Bool
	epoch      atomic.Uint64 // the highest that was obeyed
}

// source is what the node's service says of itself.
type source interface {
	Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error)
}

// New makes a link that keeps its files in dir. It starts nothing.
func New(log *slog.Logger, cfg Config, dir *durable.Dir, s source) (*Link, error) {
	if err := pki.Node(cfg.Instance, cfg.Node).Check(); err != nil {
		return nil, err
	}
	l := &Link{log: log, cfg: cfg, dir: dir, source: s, detections: make(chan *hearthv1.Detection, 256)}
	raw, err := dir.ReadFile(epochFile, maxFile)
	switch {
	case errors.Is(err, env.ErrNotFound):
	case err != nil:
		return nil, err
	default:
		epoch, err := strconv.ParseUint(string(raw), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: %s/%s: %.32q is no number", env.ErrCorrupt, dir.Path(), epochFile, raw)
		}
		l.epoch.Store(epoch)
	}
	return l, nil
}

// Connected reports whether the controller has answered the last report.
func (l *Link) Connected() bool { return l.connected.Load() }

// Dropped counts detections that did not fit into the queue. The node has them all.
func (l *Link) Dropped() uint64 { return l.dropped.Load() }

// Detected queues a detection for the controller. It never blocks.
func (l *Link) Detected(d *hearthv1.Detection) {
	select {
	case l.detections <- d:
	default:
		l.dropped.Add(1)
	}
}

// Load returns the credentials on disk. None, or none that is valid now, is
// env.ErrNotFound: then Join.
func (l *Link) Load() (*pki.Source, error) {
	raw, err := l.dir.ReadFile(bundleFile, maxFile)
	if err != nil {
		return nil, err
	}
	c, err := pki.ParseBundle(raw)
	if err != nil {
		return nil, fmt.Errorf("read %s/%s: %w; remove the file and join again", l.dir.Path(), bundleFile, err)
	}
	if want := pki.Node(l.cfg.Instance, l.cfg.Node); c.Identity != want {
		return nil, fmt.Errorf("%w: %s/%s is of %s, this agent is %s; remove the file to join under the new name",
			env.ErrExists, l.dir.Path(), bundleFile, c.Identity, want)
	}
	if leaf := c.Certificate.Leaf; time.Now().After(leaf.NotAfter) {
		return nil, fmt.Errorf("%w: the certificate in %s/%s ended at %s", env.ErrNotFound, l.dir.Path(), bundleFile, leaf.NotAfter)
	}
	return pki.NewSource(c)
}

// Join loads the credentials, or gets them by the join token, trying again with
// back-off until ctx ends. What cannot get better by waiting, a refused token or
// a name in use, is returned at once.
func (l *Link) Join(ctx context.Context) (*pki.Source, error) {
	s, err := l.Load()
	if !errors.Is(err, env.ErrNotFound) {
		return s, err
	}
	text, err := l.cfg.JoinToken()
	if err != nil {
		return nil, fmt.Errorf("read join token: %w", err)
	}
	token, err := pki.ParseJoinToken(text)
	if err != nil {
		return nil, err
	}
	for delay := newBackoff(); ; {
		s, err := l.joinOnce(ctx, token)
		if err == nil {
			l.log.Info("joined controller", "controller", l.cfg.Controller, "node", l.cfg.Node)
			return s, nil
		}
		if final(err) {
			return nil, fmt.Errorf("join controller %s: %w", l.cfg.Controller, err)
		}
		l.log.Warn("controller not reached", "controller", l.cfg.Controller, "error", err)
		if err := delay.wait(ctx); err != nil {
			return nil, fmt.Errorf("join controller %s: %w", l.cfg.Controller, err)
		}
	}
}

func final(err error) bool {
	return errors.Is(err, env.ErrDenied) || errors.Is(err, env.ErrInvalid) || errors.Is(err, env.ErrExists) || errors.Is(err, env.ErrCorrupt)
}

func (l *Link) joinOnce(ctx context.Context, token pki.JoinToken) (*pki.Source, error) {
	client := rpc.TLSClient(pki.PinnedConfig(token, l.cfg.Instance))
	defer client.CloseIdleConnections()
	c, err := l.request(ctx, client, token.Text())
	if err != nil {
		return nil, err
	}
	return pki.NewSource(c)
}

// request asks for a certificate of a new key, and keeps both on disk.
func (l *Link) request(ctx context.Context, client *http.Client, token string) (pki.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := pki.NewRequest(l.cfg.Hosts)
	if err != nil {
		return pki.Credentials{}, err
	}
	resp, err := l.fleetClient(client).Join(ctx, &hearthv1.JoinRequest{Token: token, Node: l.cfg.Node, CsrDer: r.DER})
	if err != nil {
		return pki.Credentials{}, err
	}
	bundle, err := r.Bundle(resp.GetCertificatePem(), resp.GetCaPem())
	if err != nil {
		return pki.Credentials{}, fmt.Errorf("controller's answer: %w", err)
	}
	c, err := pki.ParseBundle(bundle)
	if err != nil {
		return pki.Credentials{}, err
	}
	return c, l.dir.WriteFile("agent-bundle", bundleFile, bundle, 0o600)
}

func (l *Link) fleetClient(client *http.Client) hearthv1connect.FleetServiceClient {
	return hearthv1connect.NewFleetServiceClient(client, "https://"+l.cfg.Controller, rpc.ClientOptions()...)
}

// backoff doubles from 200 ms to 10 s, each with up to a half of it in jitter, so
// that a fleet does not come back all at once.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{200 * time.Millisecond} }

func (b *backoff) reset() { b.next = 200 * time.Millisecond }

func (b *backoff) wait(ctx context.Context) error {
	d := b.next + rand.N(b.next/2)
	b.next = min(2*b.next, 10*time.Second)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
