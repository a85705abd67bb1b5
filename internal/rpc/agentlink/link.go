package agentlink

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/durable"
	"hearth/internal/rpc/pki"
)

// Config says who the agent is and whom it reports to.
type Config struct {
	Instance  string
	Node      string   // the node's name
	Advertise string   // host:port at which the controller and callers reach this node
	Hosts     []string // names and addresses, without ports, for the certificate
	Finder    Finder
	// Token gives the text of a join token or of the service account's token.
	// It is asked whenever there is no usable certificate, and again at each
	// try, since the cluster replaces the latter.
	Token func() (string, error)
	// Changed has an element when Stock has changed, so that the controller is told
	// before the next heartbeat is due; nil is never.
	Changed <-chan struct{}
	// Fencer holds the environments while the lease is over; nil is a node
	// that never fences.
	Fencer fencer
}

// Files in the agent's directory.
const (
	bundleFile = "agent.pem"
	maxFile    = 64 << 10
)

// Link connects one agent with its controller.
type Link struct {
	log        *slog.Logger
	cfg        Config
	dir        *durable.Dir
	source     source
	epoch      *epoch
	guard      *guard
	detections chan *hearthv1.Detection
	dropped    atomic.Uint64
	connected  atomic.Bool
}

// source is what the node's service says of itself.
type source interface {
	Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error)
	// Stock is the part of it that a heartbeat has.
	Stock() *hearthv1.Heartbeat
}

// New makes a link that keeps its files in dir. It starts nothing.
func New(log *slog.Logger, cfg Config, dir *durable.Dir, s source) (*Link, error) {
	if err := pki.Node(cfg.Instance, cfg.Node).Check(); err != nil {
		return nil, err
	}
	e, err := loadEpoch(log, dir)
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	r, kept, err := openRecord(log, dir, boot, sinceBoot())
	if err != nil {
		return nil, err
	}
	return &Link{
		log: log, cfg: cfg, dir: dir, source: s, epoch: e,
		guard:      newGuard(log, cfg.Fencer, sinceBoot, r.write, kept),
		detections: make(chan *hearthv1.Detection, 256),
	}, nil
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

// Obey lets pass a controller of this epoch, or of a higher one than any before,
// which it then remembers. A lower one is env.ErrSuperseded. It is for the gate
// of the node's own service: see rpc.RequireEpoch.
func (l *Link) Obey(epoch uint64) error { return l.epoch.obey(epoch) }

// Lease is how the node stands with its controller.
func (l *Link) Lease() Lease { return l.guard.show() }

// Guard keeps the lease until ctx ends: it fences when the lease is over,
// whether or not Run or Join get anywhere, and unfences when Run says so.
func (l *Link) Guard(ctx context.Context) error { return l.guard.run(ctx) }
