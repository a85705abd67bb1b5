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

// Config has the fleet's times. Zero values take the defaults.
type Config struct {
	// Heartbeat is the interval that agents are told. Default 2 s.
	Heartbeat time.Duration
	// LostAfter without a word a node gets no more claims. After a start the
	// fleet waits this long for nodes before it says that there are none.
	// Default five heartbeats.
	LostAfter time.Duration
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
	// KeepAnswers is how long an idempotency key is remembered, and a final
	// environment shown. Default 24 h.
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
	def(&c.KeepAnswers, 24*time.Hour)
	if c.MaxAnswers == 0 {
		c.MaxAnswers = 100_000
	}
	if c.MaxAnswerBytes == 0 {
		c.MaxAnswerBytes = 256 << 20
	}
	return c
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

	// writing makes a change's reading, storing and publishing one step. It is
	// held over the store's fsync, mu is not.
	writing sync.Mutex

	mu      sync.Mutex // guards all below; records are never changed in place
	index   *placement.Index
	nodes   map[string]*nodeState
	records map[env.ID]*Record
	answers answerBook
	due     *schedule[env.ID] // when records are to be forgotten or given up
	apiKeys map[string]APIKey
	joins   map[[32]byte]JoinToken
	busy    map[AnswerKey]chan struct{} // calls under way; closed at their end
	pending map[env.ID]struct{}         // records with stale placements
	ending  map[staleItem]*ending       // releases under way or to be tried again
	changed chan struct{}               // closed and replaced when nodes changed
	session uint64
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
		started: time.Now(),
		wake:    make(chan struct{}, 1),
		index:   placement.NewIndex(),
		nodes:   map[string]*nodeState{},
		records: map[env.ID]*Record{},
		answers: newAnswerBook(),
		due:     newSchedule[env.ID](),
		apiKeys: map[string]APIKey{},
		joins:   map[[32]byte]JoinToken{},
		busy:    map[AnswerKey]chan struct{}{},
		pending: map[env.ID]struct{}{},
		ending:  map[staleItem]*ending{},
		changed: make(chan struct{}),
	}
	f.publish(Change{Put: st})
	return f, nil
}

// Epoch is the controller's fencing number. It rises with every start.
func (f *Fleet) Epoch() uint64 { return f.epoch }

// Heartbeat is the interval that agents are told.
func (f *Fleet) Heartbeat() time.Duration { return f.cfg.Heartbeat }

// save stores a change and then shows it. The caller holds writing.
func (f *Fleet) save(c Change) error {
	if err := f.store.Save(c); err != nil {
		return fmt.Errorf("store %s: %w", c.Op, err)
	}
	f.publish(c)
	return nil
}

// publish applies a stored change to memory.
func (f *Fleet) publish(c Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range c.DeleteRecords {
		delete(f.records, id)
		delete(f.pending, id)
		f.due.drop(id)
	}
	for _, k := range c.DeleteAnswers {
		f.answers.remove(k)
	}
	for _, id := range c.DeleteAPIKeys {
		delete(f.apiKeys, id)
	}
	for _, t := range c.DeleteJoinTokens {
		delete(f.joins, t.Hash)
	}
	for _, r := range c.Put.Records {
		f.records[r.ID()] = r
		if len(r.Stale) > 0 {
			f.pending[r.ID()] = struct{}{}
		} else {
			delete(f.pending, r.ID())
		}
		if at, ok := f.dueAt(r); ok {
			f.due.set(r.ID(), at)
		} else {
			f.due.drop(r.ID())
		}
	}
	for _, a := range c.Put.Answers {
		f.answers.put(a)
	}
	for _, k := range c.Put.APIKeys {
		f.apiKeys[k.ID] = k
	}
	for _, t := range c.Put.JoinTokens {
		f.joins[t.Hash] = t
	}
}

// store and show what is new.
func (f *Fleet) put(c Change) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	return f.save(c)
}

// update changes one record: stored first, then shown. Edit gets a copy; if it
// returns an error nothing happens, and if it returns false nothing is stored.
func (f *Fleet) update(op string, id env.ID, answer *Answer, edit func(*Record) (bool, error)) (*Record, error) {
	f.writing.Lock()
	defer f.writing.Unlock()
	have := f.record(id)
	if have == nil {
		return nil, notFound(id)
	}
	r := have.clone()
	store, err := edit(r)
	if err != nil || !store {
		return have, err
	}
	r.Changed = time.Now()
	c := Change{Op: op, Put: State{Records: []*Record{r}}}
	if answer != nil {
		c.Put.Answers = []*Answer{answer}
	}
	return r, f.save(c)
}

func (f *Fleet) record(id env.ID) *Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records[id]
}

func notFound(id env.ID) error {
	return fmt.Errorf("%w: environment %s; list those that are with \"hearthctl list\"", env.ErrNotFound, id)
}

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
