package warm

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// Config says how a Node works. Every field but Mounts is required.
type Config struct {
	Node     string // this node's name
	Instance string
	BootID   string // of the running kernel
	IDBase   uint32 // lowest host id of the blocks for slots
	IDCount  int    // number of blocks
	MaxSlots int    // ready, preparing and claimed together
	Memory   int64  // bytes that all slots' limits may add up to; see SetMemory
	// ColdStarts bounds the slots that are made for claims at once, Queue the claims
	// that wait for their turn or for a ready slot.
	ColdStarts, Queue int
	// WorkDir holds a directory per slot, whose "workspace" becomes /workspace.
	WorkDir string
	Mounts  map[string]MountRoot // that classes may let claims mount, by name
	// PrepareTimeout bounds making a slot, readiness included.
	PrepareTimeout time.Duration
	// UndoTimeout bounds each removal and each freeze.
	UndoTimeout time.Duration
}

// Node is the warm part of one node. Make it with Open, then call Run.
type Node struct {
	cfg     Config
	parts   Parts
	log     *slog.Logger
	state   *durable.Dir
	tokens  tokens
	metrics *Metrics
	profile profile
	wake    chan struct{}        // capacity 1: something changed for the pools
	news    chan struct{}        // capacity 1: see Changed
	now     func() time.Duration // CLOCK_BOOTTIME
	work    sync.WaitGroup
	sweepAt time.Time // Run's own
	pressAt time.Time // Run's own: when the node's pressure was asked

	archiving sync.Mutex // guards the files of classes against being pruned before they are used

	fencing sync.Mutex // serialises Fence and Unfence

	journalMu sync.Mutex // guards the order of a slot's change and its record against compaction
	journal   *durable.Log

	mu       sync.Mutex // guards all below
	classes  map[string]*env.Class
	pools    map[string]*pool
	memory   int64 // bytes that all slots' limits may add up to
	gate     gate
	fenced   bool // the node has lost its controller
	slots    map[env.SlotID]*slot
	envs     map[env.ID]*slot
	keys     map[string]*keyed
	keyAges  []keyAgeing     // of settled keys, oldest first
	pending  map[env.ID]bool // claims under way
	ids      *idRanges
	reserved int       // places for slots that are not among slots yet
	claiming int       // claims in flight; refill waits for them
	starting int       // slots that are being made for claims
	line     []*waiter // claims that wait, in the order in which they came
	restTill time.Time // refill waits until then: an answer is on its way
	checking *check    // the check of a ready slot that is under way; nil if none
	checkAt  time.Time // no check before
	rigid    string    // why this node cannot deflate slots; "" if it can, or was not asked
	pressed  string    // why the node has no power to spare; "" if it has
	// preparedAt is when the last preparation for a pool began.
	preparedAt time.Time
	doomed     []*slot // whose removal failed and is tried again
	doomedAt   time.Time
	closed     bool        // no new work
	past       []slotState // environments whose time came, oldest first; see Past
}

// pool is what is known of one class's stock beside its slots.
type pool struct {
	ready    []*slot // oldest first
	created  []*slot // oldest first
	laying   int     // created ones that are being made
	failures int
	retryAt  time.Time
	message  string // why the last preparation failed
	waits    string // why it is not refilled although it lacks slots; "" if it is, or is full
	making   int
	rolled   time.Time // the last replacement because the class changed
}

// slot is one container and all that belongs to it.
type slot struct {
	// op serialises a user's operations on a claimed slot: pause, resume,
	// snapshot, release. It holds one token; never taken under Node.mu.
	op chan struct{}

	// settling guards the freezer while it is brought to what the phase wants.
	settling sync.Mutex

	// Fixed once the slot is made.
	id     env.SlotID
	class  *env.Class
	boot   env.Resources // what it was made with: its class's, or more for a claim
	image  Image
	files  Files // where it may be filled before its container is made
	cgroup Cgroup
	island IslandInfo
	init   Init
	guest  Guest

	namespaces namespaces // for its container, until that is made

	gone sync.Once // descriptors closed

	state     slotState               // guarded by Node.mu, like all below
	asks      int64                   // memory that a claim or a resize under way is promised; 0 for none
	doomed    bool                    // its removal began
	removed   bool                    // nothing is left of it but its record
	deflated  bool                    // its memory was swapped out since it was last thawed
	condemned string                  // why to quarantine it as soon as its claim has ended
	succeeds  bool                    // it is made for an upgrade
	users     int                     // of Use
	used      time.Duration           // when one came or went, by CLOCK_BOOTTIME; 0 if never, since this agent began
	abort     context.CancelCauseFunc // ends its preparation; nil if there is none
}

func newSlot(id env.SlotID, class *env.Class) *slot {
	return &slot{id: id, class: class, boot: class.Resources, op: make(chan struct{}, 1)}
}

// keyed is a claim by idempotency key: in flight until done is closed.
type keyed struct {
	digest string
	done   chan struct{}
	id     env.ID // after done; empty if the claim failed
}

// keyAgeing is when a key's claim was answered.
type keyAgeing struct {
	key string
	at  time.Time
}

// How long a repeated key is recognised after its environment has gone, and
// how many keys are kept at most.
const (
	keyAge  = 24 * time.Hour
	maxKeys = 100_000
)

// The node's durable operations, as tests name them.
const (
	opJournal = "journal"
	opArchive = "class"
	opKey     = "node-key"
	opFence   = "fence"
)

const (
	journalFile = "journal"
	keyFile     = "token.key"
	fenceFile   = "fenced"
)

// Open reads the journal in dir, compares it with the kernel and containerd,
// takes back what lives and removes the rest. It starts nothing.
func Open(ctx context.Context, cfg Config, dir *durable.Dir, classes []*env.Class, parts Parts, log *slog.Logger) (*Node, error) {
	key, err := loadKey(dir)
	if err != nil {
		return nil, err
	}
	n := &Node{
		sweepAt: time.Now().Add(sweepSoon), now: sinceBoot,
		cfg: cfg, parts: parts, log: log, state: dir, tokens: tokens{key},
		metrics: newMetrics(), wake: make(chan struct{}, 1), news: make(chan struct{}, 1),
		classes: map[string]*env.Class{}, pools: map[string]*pool{},
		slots: map[env.SlotID]*slot{}, envs: map[env.ID]*slot{}, keys: map[string]*keyed{}, pending: map[env.ID]bool{},
		ids: newIDRanges(cfg.IDBase, cfg.IDCount), memory: cfg.Memory, gate: newGate(),
	}
	for _, c := range classes {
		n.classes[c.Name] = c
		n.pools[c.Name] = &pool{}
		n.metrics.know(c.Name)
	}
	if n.fenced, err = wasFenced(dir); err != nil {
		return nil, err
	}
	past := newReplay(cfg.BootID)
	if n.journal, err = dir.OpenLog(opJournal, journalFile, past.visit); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if torn := n.journal.Torn(); torn > 0 {
		log.Warn("journal had a torn tail", "bytes", torn)
	}
	n.checkRoots()
	if err := n.recover(ctx, past); err != nil {
		return nil, errors.Join(err, n.journal.Close())
	}
	return n, nil
}

// Run keeps the pools until ctx ends, then waits for work under way. It leaves
// every slot and environment running.
func (n *Node) Run(ctx context.Context) error {
	defer n.work.Wait()
	for {
		wait, err := n.step(ctx)
		if err != nil {
			n.log.Warn("pool step", "error", err)
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		if wait == 0 && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-timer:
		}
	}
}

// closePatience is how long Close lets work go on that the next start would
// complete.
const closePatience = 2 * time.Second

// Close refuses new work, waits a moment for what is under way, and closes the
// journal. Slots live on.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	n.dissolveLocked(errStopping)
	slots := make([]*slot, 0, len(n.slots))
	for _, s := range n.slots {
		slots = append(slots, s)
	}
	hurry := n.gate.hurryNow
	n.mu.Unlock()
	late := time.AfterFunc(closePatience, func() { hurry(errStopping) })
	n.work.Wait()
	late.Stop()
	for _, s := range slots {
		s.letGo()
	}
	return n.journal.Close()
}

// letGo closes the host's descriptors of a slot without changing it. Only the
// first call does anything.
func (s *slot) letGo() {
	s.gone.Do(func() {
		if s.cgroup != nil {
			_ = s.cgroup.Close()
		}
		if s.init != nil {
			s.init.Close()
		}
		_ = s.namespaces.letGo()
	})
}

// poke tells Run that something changed.
func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// change applies edit to the slot's state and journals it. If the journal
// refuses, the state stays as it was.
func (n *Node) change(s *slot, edit func(*slotState)) error {
	return n.changeIf(s, func(st *slotState) error {
		edit(st)
		return nil
	})
}

// changeIf is change with an edit that may refuse the state that it finds.
func (n *Node) changeIf(s *slot, edit func(*slotState) error) error {
	n.journalMu.Lock()
	defer n.journalMu.Unlock()
	next := n.stateOf(s)
	if err := edit(&next); err != nil {
		return err
	}
	if err := n.append(next, false); err != nil {
		return err
	}
	n.mu.Lock()
	s.state = next
	n.mu.Unlock()
	return nil
}

// forget ends a slot in the journal and in memory.
func (n *Node) forget(s *slot) error {
	n.journalMu.Lock()
	defer n.journalMu.Unlock()
	st := n.stateOf(s)
	if err := n.append(st, true); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.slots, st.ID)
	n.ids.put(st.IDs)
	n.buryEnvironment(st)
	n.changedLocked()
	return nil
}

// append writes one record. The caller holds journalMu.
func (n *Node) append(st slotState, gone bool) error {
	rec, err := encodeRecord(n.cfg.BootID, st, gone)
	if err != nil {
		return err
	}
	if err := n.journal.Append(opJournal, rec); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// stateOf copies the slot's state, so that the copy may be changed.
func (n *Node) stateOf(s *slot) slotState {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := s.state
	if st.Env != nil {
		copied := *st.Env
		st.Env = &copied
	}
	return st
}

// journalBound is the size at which the journal is rewritten.
const journalBound = 16 << 20

// compact rewrites the journal with the newest state of each slot.
func (n *Node) compact() error {
	n.journalMu.Lock()
	defer n.journalMu.Unlock()
	n.mu.Lock()
	states := make([]slotState, 0, len(n.slots))
	for _, s := range n.slots {
		states = append(states, s.state)
	}
	past := slices.Clone(n.past)
	n.mu.Unlock()
	records, err := encodeAll(n.cfg.BootID, states, past)
	if err != nil {
		return err
	}
	return n.journal.Rewrite(opJournal+"-compact", records)
}

func encodeAll(boot string, states, gone []slotState) (iter.Seq[[]byte], error) {
	recs := make([][]byte, 0, len(states)+len(gone))
	for i, st := range append(gone, states...) {
		b, err := encodeRecord(boot, st, i < len(gone))
		if err != nil {
			return nil, err
		}
		recs = append(recs, b)
	}
	return func(yield func([]byte) bool) {
		for _, b := range recs {
			if !yield(b) {
				return
			}
		}
	}, nil
}
