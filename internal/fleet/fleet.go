package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/placement"
)

// Config has the fleet's times and bounds. Zero values take the defaults.
type Config struct {
	// Observer is told what happens; nil is nobody.
	Observer Observer
	// Heartbeat is the interval that agents are told. Default 2 s.
	Heartbeat time.Duration
	// LostAfter without a word a node gets no more claims. After a start the
	// fleet waits this long for nodes before it says that there are none.
	// Default five heartbeats.
	LostAfter time.Duration
	// FenceAfter the sending of its last report that was answered a node freezes
	// and locks its environments. Default 5 min; negative is never.
	FenceAfter time.Duration
	// PlaceAfter the last report of a node its environments are failed, if the node
	// fences. Default FenceAfter and a minute.
	PlaceAfter time.Duration
	// AttemptTimeout bounds a claim at one node, a cold start included. Default 1 min.
	AttemptTimeout time.Duration
	// ClaimTimeout bounds a claim over all nodes. Default 3 min.
	ClaimTimeout time.Duration
	// CallTimeout bounds the calls to a node that neither claim nor capture. Default 15 s.
	CallTimeout time.Duration
	// SnapshotTimeout bounds snapshots, forks and releases. Default 15 min.
	SnapshotTimeout time.Duration
	// AbandonAfter: a claim that was interrupted and not repeated is undone. Default 10 min.
	AbandonAfter time.Duration
	// AdoptWait after a start, a claim of an ephemeral class waits for nodes to
	// report, since one of them may know its key. Default 2 s.
	AdoptWait time.Duration
	// KeepAnswers is how long an answer is remembered, and a final environment
	// shown. Default 24 h.
	KeepAnswers time.Duration
	// MaxAnswers and MaxAnswerBytes bound the remembered answers; beyond either
	// the oldest are forgotten before their time. Defaults 100,000 and 256 MiB.
	MaxAnswers, MaxAnswerBytes int
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Heartbeat, 2*time.Second)
	def(&c.LostAfter, 5*c.Heartbeat)
	def(&c.AttemptTimeout, time.Minute)
	def(&c.ClaimTimeout, 3*time.Minute)
	def(&c.CallTimeout, 15*time.Second)
	def(&c.SnapshotTimeout, 15*time.Minute)
	def(&c.AbandonAfter, 10*time.Minute)
	def(&c.AdoptWait, 2*time.Second)
	def(&c.KeepAnswers, 24*time.Hour)
	if c.MaxAnswers == 0 {
		c.MaxAnswers = 100_000
	}
	if c.MaxAnswerBytes == 0 {
		c.MaxAnswerBytes = 256 << 20
	}
	return c.withPartition()
}

// Dial makes the client of a node. It connects to nothing yet. The client's
// errors must match the sentinels of internal/env.
type Dial func(name, address string) hearthv1connect.NodeServiceClient

// Fleet is the controller's state and its operations. Its methods may be called
// concurrently.
type Fleet struct {
	log     *slog.Logger
	store   Store
	dial    Dial
	cfg     Config
	metrics *Metrics
	epoch   uint64
	started time.Time
	wake    chan struct{} // has one element if the sweep shall not wait for its tick

	// lanes and keys are held over the store's round trips, mu is not.
	lanes *lanes
	keys  sync.Mutex // makes a change to the keys or tokens, stored and shown, one step

	mu       sync.Mutex // guards all below; records are never changed in place
	index    *placement.Index
	nodes    map[string]*nodeState
	records  map[env.ID]*Record
	byClaim  map[ClaimKey][]env.ID // records by the call that made them
	answers  answerBook
	due      *schedule[env.ID] // when records are to be forgotten or given up
	apiKeys  map[string]APIKey
	joins    map[[32]byte]JoinToken
	busy     map[ClaimKey]chan struct{} // calls under way; closed at their end
	underWay map[env.ID]*underWay       // being claimed by this process
	doubtful map[env.ID]struct{}        // claims that an earlier process may have answered
	unsure   map[env.ID]struct{}        // records of which the store may hold another state
	pending  map[env.ID]struct{}        // records with stale placements
	ending   map[staleItem]*ending      // releases under way or to be tried again
	changed  chan struct{}              // closed and replaced when nodes changed
	session  uint64

	census   census
	wishes   map[string]NodeWish
	drained  map[string]struct{} // nodes of which was told that nothing is left there
	classes  *classSet           // nil if nodes have their own
	budgets  map[string]Budget
	moves    map[env.ID]*move
	users    map[env.ID]*users
	asides   int           // goroutines that go on after their report was answered
	noAsides chan struct{} // closed when there are none, if somebody waits for that
}

// New loads the store and raises its epoch. It starts nothing: see Run.
func New(log *slog.Logger, store Store, dial Dial, cfg Config, m *Metrics) (*Fleet, error) {
	epoch, err := store.NextEpoch()
	if err != nil {
		return nil, fmt.Errorf("raise controller epoch: %w", err)
	}
	st, err := store.Load()
	if err != nil {
		return nil, err
	}
	f := &Fleet{
		log: log, store: store, dial: dial, cfg: cfg.withDefaults(), metrics: m, epoch: epoch,
		started:  time.Now(),
		wake:     make(chan struct{}, 1),
		lanes:    newLanes(),
		index:    placement.NewIndex(),
		nodes:    map[string]*nodeState{},
		records:  map[env.ID]*Record{},
		byClaim:  map[ClaimKey][]env.ID{},
		answers:  newAnswerBook(),
		due:      newSchedule[env.ID](),
		apiKeys:  map[string]APIKey{},
		joins:    map[[32]byte]JoinToken{},
		busy:     map[ClaimKey]chan struct{}{},
		underWay: map[env.ID]*underWay{},
		doubtful: map[env.ID]struct{}{},
		unsure:   map[env.ID]struct{}{},
		pending:  map[env.ID]struct{}{},
		ending:   map[staleItem]*ending{},
		changed:  make(chan struct{}),
		census:   newCensus(),
		drained:  map[string]struct{}{},
		moves:    map[env.ID]*move{},
		users:    map[env.ID]*users{},
	}
	if err := f.cfg.checkPartition(); err != nil {
		return nil, err
	}
	f.begun(st)
	return f, nil
}

// begun shows what an earlier process has stored.
func (f *Fleet) begun(st State) {
	for _, r := range st.Records {
		if r.Phase() == env.PhaseClaiming {
			f.doubtful[r.ID()] = struct{}{}
		}
		f.show(r)
	}
	for _, k := range st.APIKeys {
		f.apiKeys[k.ID] = k
	}
	for _, t := range st.JoinTokens {
		f.joins[t.Hash] = t
	}
}

// Epoch is the controller's fencing number. It rises with every start.
func (f *Fleet) Epoch() uint64 { return f.epoch }

// Heartbeat is the interval that agents are told.
func (f *Fleet) Heartbeat() time.Duration { return f.cfg.Heartbeat }

// poke lets the sweep run now.
func (f *Fleet) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// waitForChange waits until nodes changed since seen was taken, ctx ends or the
// time after the start is over in which nodes are still expected.
func (f *Fleet) waitForChange(ctx context.Context, seen <-chan struct{}) bool {
	left := f.cfg.LostAfter - time.Since(f.started)
	if left <= 0 {
		return false
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-seen:
		return true
	case <-t.C:
		return false
	case <-ctx.Done():
		return false
	}
}
